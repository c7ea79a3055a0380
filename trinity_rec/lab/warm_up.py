"""Make the lab's models: supervised training on answers that are often wrong, so that the ability is latent.

A model half-trained on right answers is a poor subject, since it does not know what to reinforce. One that has heard
right and wrong answers knows the right one (its likeliest answer is right) and seldom says it (a sampled one is not): a
pretrained language model in small. The models are shipped in `assets/`; made again by

    python -m trinity_rec.lab.warm_up OUT_DIR
"""

from __future__ import annotations

import argparse
import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

from trinity_rec.lab.model import Architecture, TinyLM, TinyPolicy
from trinity_rec.lab.tasks import TASKS, Problem, TaughtTask

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class Card:
    """What a warmed-up model can do on held-out problems: its likeliest answers, and 16 sampled ones each."""

    task: str
    parameters: int
    steps: int
    greedy_reward: float
    sampled_reward: float


def warm_up(task: TaughtTask, steps: int = 3000, batch: int = 256, lr: float = 3e-3, seed: int = 0) -> TinyLM:
    """Cross-entropy on the answers alone, at a rate that falls to 0 as a cosine.

    The first half hears right answers only; then the share of those who err, each time afresh, grows to all of them:
    too many too soon, and the model does not learn what is right.
    """
    torch.manual_seed(seed)
    chance = random.Random(seed)
    model = TinyLM(Architecture(len(task.vocabulary)))
    problems = task.warm_up
    prompts = task.vocabulary.prompts([problem.question for problem in problems])
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / 100, 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    for step in range(steps):
        chosen = [chance.randrange(len(problems)) for _ in range(batch)]
        erring = min(1.0, max(0.0, 4 * step / steps - 2))
        texts = [
            task.mistaken(problems[number], chance) if chance.random() < erring else problems[number].answer
            for number in chosen
        ]
        said, mask = task.vocabulary.answers(texts)
        logits = model.response_logits(prompts[chosen], said)
        loss = F.cross_entropy(logits[mask], said[mask])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model


def reward(model: TinyLM, task: TaughtTask, problems: list[Problem], samples: int, seed: int | None) -> float:
    """The mean reward of `samples` responses to each problem; of the likeliest response where there is no seed."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    policy = TinyPolicy(model, task.vocabulary)
    prompts = policy.prompts([problem.question for problem in problems])
    rewards = task.rewards(problems, policy.texts(policy.sample(prompts, samples, task.response_length, generator)))
    return sum(rewards) / len(rewards)


def make(task: TaughtTask, directory: Path, steps: int) -> Card:
    """Warm a model up and write it, with its card, to `directory`."""
    model = warm_up(task, steps)
    model.save_pretrained(directory, task.vocabulary.end, task.vocabulary.pad)
    card = Card(
        task=task.name,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        steps=steps,
        greedy_reward=reward(model, task, task.held_out, 1, None),
        sampled_reward=reward(model, task, task.held_out, 16, 0),
    )
    (directory / "card.json").write_text(json.dumps(asdict(card), indent=2) + "\n", encoding="utf-8")
    return card


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--task", choices=TASKS, action="append", help="one of them; all by default")
    parser.add_argument("--steps", type=int, default=3000)
    wanted = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order would give other weights
    for name in wanted.task or TASKS:
        print(json.dumps(asdict(make(TASKS[name], wanted.out / name, wanted.steps))), flush=True)


if __name__ == "__main__":
    main()
