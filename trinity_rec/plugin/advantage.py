"""`advantage_fn: trinity_rec.RECAdvantage`: rewards of an explorer batch in, one advantage for each token out."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from trinity.algorithm.advantage_fn.advantage_fn import AdvantageFn
from trinity.buffer.operators import ExperienceOperator
from trinity.common.experience import Experience

from trinity_rec.shaping import Shaped, Shaping
from trinity_rec.shaping.groups import group_statistics

# Experiences written back at a time: few enough for the caches, many enough to pay for the calls.
_CHUNK = 1024


class RECAdvantage(Shaping, AdvantageFn, ExperienceOperator):
    """Group-relative advantages; takes what upstream's `rec` advantage takes, with the same meaning (`Shaping`).

    A group is the experiences of one task. Experiences of one run (the steps of a multi-turn rollout) are one response:
    it counts once, with the reward of its last step, and all its steps get its advantage. A response whose reward is
    missing, NaN or infinite is left out of its group's statistics and of the loss, and counted. A group of one
    response, or one whose rewards are all equal, gets advantage 0: it holds no comparison.

    Raises:
        ValueError: an argument is not allowed; the message names it, its value and what is allowed.
    """

    def __call__(self, exps: list[Experience], **kwargs: Any) -> tuple[list[Experience], dict[str, float]]:
        return self.process(exps)

    def process(self, exps: list[Experience]) -> tuple[list[Experience], dict[str, float]]:
        """Set `advantages` and `returns`, [response] each, of the experiences in place; mask what the loss must not
        see.

        Args:
            exps: the experiences of one explorer step, all groups.

        Returns:
            The same experiences in the same order, and metrics under `group_advantages/`.

        Raises:
            FloatingPointError: rewards so large that an advantage overflows; names the first such response.
        """
        if not exps:
            return [], {}
        responses = _Responses.of(exps)
        shaped = self.shape(
            responses.rewards,
            responses.group,
            tokens=lambda: responses.tokens(exps),
            lottery=lambda: self._lottery(responses),
        )
        metrics = self._group_metrics(responses.rewards, responses.group, shaped) | _rollout_entropy(exps)
        if shaped.reweighting is not None:
            metrics["group_advantages/reweight_inverse_temperature"] = 1 / shaped.reweighting.temperature
            metrics["group_advantages/reweight_at_floor"] = float(shaped.reweighting.at_floor)
        advantages = shaped.advantages.float()
        for response in (~advantages.isfinite()).nonzero().flatten().tolist():
            batch, task, run = responses.keys[response]
            raise FloatingPointError(
                f"the advantage of batch {batch}, task {task}, run {run} overflows: its reward is "
                f"{float(responses.rewards[response]):.6g}"
            )
        _write_back(exps, responses.of_experience, advantages, shaped.in_loss)
        return exps, metrics

    def _lottery(self, responses: _Responses) -> Tensor:
        names = ("/".join(map(str, key)) for key in responses.keys)
        digests = (hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=4).digest() for name in names)
        return torch.tensor([int.from_bytes(digest, "big") for digest in digests], dtype=torch.float64)

    def _group_metrics(self, rewards: Tensor, group: Tensor, shaped: Shaped) -> dict[str, float]:
        keep, kept = shaped.valid, shaped.kept
        baseline = group_statistics(rewards, group, kept)
        size = torch.bincount(group).double()
        dropped = torch.bincount(group, (keep & ~kept).double(), minlength=len(size)) / size
        seen = baseline.count > 0
        metrics = {
            "group_advantages/groups": float(len(size)),
            "group_advantages/responses": float(len(group)),
            "group_advantages/invalid_responses": float((~keep).sum()),
            "group_advantages/dropped_responses": float((keep & ~kept).sum()),
            "group_advantages/groups_of_one": float((baseline.count == 1).sum()),
            "group_advantages/groups_without_spread": float((seen & (baseline.std == 0)).sum()),
        }
        per_group = {"reward_mean": baseline.mean[seen], "reward_std": baseline.std[seen], "drop_balance": dropped}
        for name, values in per_group.items():
            if len(values):
                spread = {
                    "mean": values.mean(),
                    "max": values.max(),
                    "min": values.min(),
                    "std": values.std(correction=0),
                }
                metrics.update({f"group_advantages/{name}/{stat}": value.item() for stat, value in spread.items()})
        return metrics

    @classmethod
    def compute_in_trainer(cls) -> bool:
        """False: advantages need whole groups, so they are computed where the explorer's batch is seen whole."""
        return False


@dataclass
class _Responses:
    """The responses behind a list of experiences: `of_experience` [experiences] numbers each experience's response."""

    rewards: Tensor
    group: Tensor
    keys: list[tuple]
    of_experience: list[int]

    @classmethod
    def of(cls, exps: Sequence[Experience]) -> _Responses:
        steps = list(map(attrgetter("eid.batch", "eid.task", "eid.run", "eid.step"), exps))
        # Workflows that number neither runs nor steps leave (run, step) repeated in a task: then each is a response.
        unnumbered: set[tuple] = set()
        if len(set(steps)) < len(steps):
            unnumbered = {step[:2] for step, times in Counter(steps).items() if times > 1}

        groups: dict[tuple, int] = {}
        index: dict[tuple, int] = {}
        group: list[int] = []
        rewards: list[float] = []
        last_step: list[int] = []
        of_experience: list[int] = []
        for position, (exp, (batch, task, run, step)) in enumerate(zip(exps, steps, strict=True)):
            key = (batch, task, position if unnumbered and (batch, task) in unnumbered else run)
            number = index.setdefault(key, len(index))
            if number == len(group):
                group.append(groups.setdefault((batch, task), len(groups)))
                rewards.append(_reward(exp))
                last_step.append(step)
            elif step >= last_step[number]:
                rewards[number], last_step[number] = _reward(exp), step
            of_experience.append(number)
        return cls(
            torch.tensor(rewards, dtype=torch.float64),
            torch.tensor(group, dtype=torch.int64),
            list(index),
            of_experience,
        )

    def tokens(self, exps: Sequence[Experience]) -> Tensor:
        """How many tokens of each response are in the loss, [responses]."""
        counts = []
        for first in range(0, len(exps), _CHUNK):
            masks = [exp.action_mask for exp in exps[first : first + _CHUNK]]
            so_far = torch.nn.functional.pad(torch.cat(masks).bool().double().cumsum(0), (1, 0))
            ends = torch.tensor([mask.numel() for mask in masks]).cumsum(0)
            counts.append(so_far[ends].diff(prepend=so_far[:1]))
        return torch.zeros(len(self.keys)).double().index_add(0, torch.tensor(self.of_experience), torch.cat(counts))


def _reward(exp: Experience) -> float:
    """The scalar reward; NaN where it is missing or not a number."""
    if exp.reward is not None:
        return float(exp.reward)
    return float("nan") if exp.token_level_reward is None else float(exp.token_level_reward.sum())


def _rollout_entropy(exps: Sequence[Experience]) -> dict[str, float]:
    """Minus the mean log-probability of the drawn tokens: in expectation the entropy of the rollout policy a token."""
    if any(exp.logprobs is None for exp in exps):
        return {}
    total = tokens = 0.0
    for first in range(0, len(exps), _CHUNK):
        chunk = exps[first : first + _CHUNK]
        drawn = torch.cat([exp.action_mask for exp in chunk]).float()
        total -= torch.cat([exp.logprobs for exp in chunk]).float().dot(drawn).item()
        tokens += drawn.sum().item()
    return {"group_advantages/rollout_entropy": total / tokens} if tokens else {}


def _write_back(exps: Sequence[Experience], of_experience: list[int], advantages: Tensor, in_loss: Tensor) -> None:
    number = torch.tensor(of_experience)
    for position in (~in_loss[number]).nonzero().flatten().tolist():
        leave_out(exps[position])
    values = advantages[number].numpy()
    for first in range(0, len(exps), _CHUNK):
        chunk = exps[first : first + _CHUNK]
        masks = [exp.action_mask for exp in chunk]
        lengths = [mask.numel() for mask in masks]
        flat_advantages = np.repeat(values[first : first + _CHUNK], lengths)
        flat_advantages *= torch.cat(masks).float().numpy()
        flat_returns = flat_advantages.copy()
        # numpy's slices: `from_numpy` gives each a storage of its own size, where a torch view would take the whole
        # chunk into every pickle.
        start = 0
        for exp, length in zip(chunk, lengths, strict=True):
            end = start + length
            exp.advantages = torch.from_numpy(flat_advantages[start:end])
            exp.returns = torch.from_numpy(flat_returns[start:end])
            start = end


def leave_out(exp: Experience) -> None:
    """Take an experience out of the loss, in its place: batches keep their size, so it is masked, not removed.

    A reward that is missing or not finite becomes 0, since the trainers build a tensor from it; `info` records that.
    """
    exp.action_mask = torch.zeros_like(exp.action_mask)
    if not math.isfinite(_reward(exp)):
        exp.info["invalid_reward"] = str(exp.reward)
        exp.reward, exp.token_level_reward = 0.0, None
    if exp.advantages is not None:
        exp.advantages = torch.zeros_like(exp.advantages)
