"""Which tasks suit a model: what it can do before training, and the rule that chooses by it, written before the runs.

The ability has to be latent, as that of the paper's models on their tasks: right at times, seldom enough to have
something to learn and often enough to have something to learn from. A task suits a model if

- a sampled answer is worth between 0.1 and 0.5 on the mean,
- the likeliest answer is worth more,
- at least a third of the groups of eight have spread, so that they move the weights at all.

Of the tasks that suit, in the order of `REAL_TASKS`, the first whose right answers take fewer than 40 tokens is the
short one, and the first whose take more is the long one. Measured on problems to train on, by

    trinity-rec reproduce --model DIR --tasks
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import mean

import torch

from trinity_rec.lab.policy import Policy
from trinity_rec.lab.tasks.problems import Task

SAMPLED, SPREAD, LONG = (0.1, 0.5), 1 / 3, 40
PROBLEMS, SAMPLES = 32, 8


@dataclass(frozen=True)
class Suitability:
    """What a model can do on a task.

    Attributes:
        sampled, greedy: mean reward of answers sampled at temperature 1, and of the likeliest ones.
        spread: share of the groups of `SAMPLES` answers that are not all worth the same.
        tokens: of the shortest right answer, its end included.
    """

    task: str
    sampled: float
    greedy: float
    spread: float
    tokens: int

    @property
    def suits(self) -> bool:
        low, high = SAMPLED
        return low <= self.sampled <= high and self.greedy > self.sampled and self.spread >= SPREAD

    @property
    def is_long(self) -> bool:
        return self.tokens >= LONG


def measure(policy: Policy, task: Task) -> Suitability:
    problems = list(task.train[:PROBLEMS])
    prompts = policy.prompts([problem.question for problem in problems])

    def rewards(samples: int, generator: torch.Generator | None) -> list[float]:
        said = policy.sample(prompts, samples, task.response_length, generator)
        return task.rewards(problems, policy.texts(said))

    sampled = rewards(SAMPLES, torch.Generator().manual_seed(0))
    groups = [sampled[first : first + SAMPLES] for first in range(0, len(sampled), SAMPLES)]
    return Suitability(
        task=task.name,
        sampled=mean(sampled),
        greedy=mean(rewards(1, None)),
        spread=mean(len(set(group)) > 1 for group in groups),
        tokens=1 + min(policy.length(problem.answer) for problem in problems),
    )


def chosen(measured: Iterable[Suitability]) -> dict[str, str]:
    """`short` and `long` -> the task's name, where there is one that suits."""
    suitable = [each for each in measured if each.suits]
    kinds = {kind: [each.task for each in suitable if each.is_long == (kind == "long")] for kind in ("short", "long")}
    return {kind: names[0] for kind, names in kinds.items() if names}
