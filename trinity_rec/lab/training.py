"""One off-policy experiment, top to bottom: roll out with old weights, shape the rewards, take one step, evaluate.

    rows = train(Experiment("addition", SETTINGS["sync_interval_20"], VARIANTS["rec_grpo"], seed=0, rate=2e-4))

The objective and the shaping are the plugin's own (`trinity_rec.objective`, `trinity_rec.shaping`), chosen from the
same preset table, so what is seen here is what `trinity run` trains with.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import attrgetter
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from trinity_rec.lab.model import TinyLM, TinyPolicy
from trinity_rec.lab.policy import Policy, Responses
from trinity_rec.lab.real_tasks import task_named
from trinity_rec.lab.tasks import TASKS, Task
from trinity_rec.lab.warm_up import ASSETS
from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS
from trinity_rec.shaping import Shaping
from trinity_rec.variants import Setting, Variant

GRADIENT_NORM = 1.0  # Trinity's and verl's default `grad_clip`


def objective_of(variant: Variant) -> Objective:
    return Objective(**{**PRESETS[variant.preset].policy_loss, **variant.policy_loss, "metrics": "full"})


def shaping_of(variant: Variant) -> Shaping:
    return Shaping(**{**PRESETS[variant.preset].advantage, **variant.advantage})


@dataclass(frozen=True)
class Experiment:
    """One run. The same seed gives every variant the same problems in the same order, and repeats a run to the bit.

    Attributes:
        rate: Adam's learning rate before the variant's factor.
        problems, samples: of a training step.
        evaluate_every: steps.
        model: a Hugging Face directory; by default the lab's own model of the task.
        device: torch's name of it.
        bf16: a model of Hugging Face's computes its layers in bfloat16.
    """

    task: str
    setting: Setting
    variant: Variant
    seed: int
    rate: float
    steps: int = 120
    problems: int = 16
    samples: int = 8
    evaluate_every: int = 10
    model: Path | None = None
    device: str = "cpu"
    bf16: bool = False


COLUMNS = (
    "step",
    "reward",  # mean over held-out problems, sampled from the current weights
    "rollout_reward",  # mean over the batches since the last row, sampled from the rollout weights
    "kl_initial",  # KL(pi_theta || pi_initial) per token, on the evaluation's responses
    "kl_rollout",  # KL(pi_old || pi_theta) per token, k3, mean since the last row; so are the next four
    "clip_fraction",
    "entropy",
    "gradient_norm",
    "effective_sample_size",
    "response_length",  # tokens of an evaluation's response
)
Row = dict[str, float]


@dataclass(frozen=True)
class Rollouts:
    """Of one step: the prompts, the responses to them and what these earn."""

    asked: Sequence[Tensor]
    responses: Responses
    rewards: Tensor


def train(experiment: Experiment, report: Callable[[int], None] = lambda step: None) -> list[Row]:
    """Run it; `report` hears of each step done.

    Returns:
        One row of `COLUMNS` before training and after every `evaluate_every` steps.
    """
    task, setting, variant = task_named(experiment.task), experiment.setting, experiment.variant
    policy = policy_of(experiment)
    explorer = policy.frozen()
    objective, shaping = objective_of(variant), shaping_of(variant)
    parameters = policy.parameters()
    optimizer = torch.optim.AdamW(parameters, lr=experiment.rate * variant.rate_factor, weight_decay=0.0, fused=True)
    choose = random.Random(f"problems {experiment.seed}")
    lots = torch.Generator().manual_seed(10 * experiment.seed + 2)
    prompts, held_out = (policy.prompts([problem.question for problem in part]) for part in (task.train, task.held_out))
    initial = policy.frozen().scorer(held_out)
    group = torch.arange(experiment.problems).repeat_interleave(experiment.samples)

    of_initial = rollouts_of_initial(BEFORE_TRAINING(experiment), sums(parameters))
    versions: dict[int, dict[str, Tensor]] = {}  # weights after so many steps, until the explorer has taken them
    explorer_version = 0
    upcoming: deque[Rollouts] = deque()
    rows = [{"step": 0, **evaluate(policy, initial, task, held_out, experiment.seed)}]
    recent: list[Row] = []
    for step in range(experiment.steps):
        # The explorer, with the weights that the setting gives it.
        version = setting.rollout_version(step)
        if version != explorer_version:
            explorer.take(versions.pop(version))
            explorer_version = version
        if not upcoming:
            until = min(step + policy.ahead, experiment.steps)
            alike = sum(setting.rollout_version(each) == version for each in range(step, until))
            chosen = [choose.sample(range(len(task.train)), experiment.problems) for _ in range(alike)]
            drawn = of_initial.get((step, alike)) if version == 0 else None
            if drawn is None:
                drawn = roll_out(explorer, experiment, prompts, chosen, step)
                if version == 0:
                    of_initial[step, alike] = drawn
            upcoming.extend(drawn)
        rollouts = upcoming.popleft()
        responses = rollouts.responses

        # The trainer.
        shaped = shaping.shape(
            rollouts.rewards,
            group,
            tokens=lambda mask=responses.mask: mask.sum(1),
            lottery=lambda: torch.rand(len(group), generator=lots),
        )
        scores = policy.score(rollouts.asked, responses)
        mask = responses.mask & shaped.in_loss[:, None]
        loss, metrics = objective(
            scores.logprob,
            responses.logprob,
            mask,
            shaped.advantages.float()[:, None].expand(mask.shape),
        )
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, GRADIENT_NORM)
        optimizer.step()
        if setting.rollout_version(step + 1 + setting.sync_offset) == step + 1:
            versions[step + 1] = policy.weights()

        recent.append(
            {
                "rollout_reward": rollouts.rewards.mean().item(),
                "kl_rollout": metrics["kl_k3"],
                "clip_fraction": metrics["pg_clipfrac"],
                "entropy": scores.entropy,
                "gradient_norm": gradient_norm.item(),
                "effective_sample_size": metrics["effective_sample_size"],
            }
        )
        if (step + 1) % experiment.evaluate_every == 0:
            means = {name: sum(row[name] for row in recent) / len(recent) for name in recent[0]}
            rows.append({"step": step + 1, **means, **evaluate(policy, initial, task, held_out, experiment.seed)})
            recent = []
        report(step + 1)
    return [{name: row.get(name, float("nan")) for name in COLUMNS} for row in rows]


def roll_out(
    explorer: Policy, experiment: Experiment, prompts: Sequence[Tensor], chosen: Sequence[Sequence[int]], step: int
) -> list[Rollouts]:
    """Answer the problems `chosen` for `step` and those that follow it, all in one call, and pay the answers."""
    task, samples = task_named(experiment.task), experiment.samples
    generator = torch.Generator().manual_seed(random.Random(f"rollouts {experiment.seed} {step}").getrandbits(63))
    asked = [[prompts[number] for number in numbers] for numbers in chosen]
    together = explorer.sample(list(chain(*asked)), samples, task.response_length, generator)
    rows = experiment.problems * samples
    parts = zip(*(part.split(rows) for part in (together.tokens, together.logprob, together.mask)), strict=True)
    every = []
    for numbers, of_step, part in zip(chosen, asked, parts, strict=True):
        longest = int(part[-1].sum(1).max())
        responses = Responses(*(column[:, :longest] for column in part))
        paid = task.rewards([task.train[number] for number in numbers], explorer.texts(responses))
        every.append(Rollouts(of_step, responses, torch.tensor(paid, dtype=torch.float64)))
    return every


# What of an experiment rollouts hang on while the explorer has the initial weights: no algorithm, lag or rate.
BEFORE_TRAINING = attrgetter("task", "model", "device", "bf16", "problems", "samples", "seed")


@lru_cache(maxsize=8)
def rollouts_of_initial(same: tuple[Any, ...], weights: tuple[float, ...]) -> dict[tuple[int, int], list[Rollouts]]:
    """A step and how many from there on -> the initial weights' rollouts, for all experiments of the process that have
    both in common.

    `train` fills it, and draws none twice: offline only the first of them has to sample at all. The weights count too,
    since a directory may hold others by the next run.
    """
    return {}


def sums(parameters: Sequence[Tensor]) -> tuple[float, ...]:
    """By which weights are told from others."""
    return tuple(parameter.detach().sum(dtype=torch.float64).item() for parameter in parameters)


def policy_of(experiment: Experiment) -> Policy:
    """The model as it is before training."""
    if experiment.model is not None:
        from trinity_rec.lab.language_model import LanguageModel  # needs the packages of the local backend

        return LanguageModel.load(experiment.model, experiment.device, experiment.bf16)
    task = TASKS[experiment.task]
    return TinyPolicy(TinyLM.load(ASSETS / task.name), task.vocabulary, experiment.device)


@torch.no_grad()
def evaluate(
    policy: Policy, initial: Callable[[Responses], Tensor], task: Task, prompts: Sequence[Tensor], seed: int
) -> Row:
    """Reward, distance from the initial policy and response length at temperature 1 on the held-out problems, whose
    prompts are given.

    Args:
        initial: `Policy.scorer` of the initial policy on these prompts.
    """
    said = policy.sample(prompts, 1, task.response_length, torch.Generator().manual_seed(10 * seed + 3))
    return {
        "reward": mean(task.rewards(task.held_out, policy.texts(said))),
        "kl_initial": (said.logprob - initial(said))[said.mask].mean().item(),
        "response_length": said.mask.sum(1).float().mean().item(),
    }
