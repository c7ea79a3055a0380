"""The learning rate of each task: chosen once, for all algorithms, from GRPO on-policy.

The rule: of `CANDIDATES`, the smallest rate at which GRPO on-policy gains at least 90 % of what the best one gains
(final reward less the reward before training, mean over `SEEDS`, which no experiment uses). Small, as practice and the
paper choose it (its 1e-6 still learns at five times that, claim C5), but not so small that nothing happens.
A task's `rate` is what the rule gave;

    trinity-rec reproduce --rates

measures it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from trinity_rec.lab.grid import Job, read_rows
from trinity_rec.lab.statistics import final
from trinity_rec.lab.training import Experiment, train
from trinity_rec.variants import SETTINGS, VARIANTS

CANDIDATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3)
SEEDS = (100, 101, 102)
ENOUGH = 0.9


def jobs(task: str, steps: int, out: Path) -> dict[float, list[Job]]:
    """Rate -> the runs that measure it."""
    measured = {}
    for rate in CANDIDATES:
        runs = [Experiment(task, SETTINGS["on_policy"], VARIANTS["rec_grpo"], seed, rate, steps) for seed in SEEDS]
        place = out / "rates" / task / f"{rate:g}"
        measured[rate] = [Job(partial(train, run), place / f"seed_{run.seed}.csv") for run in runs]
    return measured


def gains(measured: Mapping[float, Sequence[Job]]) -> dict[float, float]:
    """Rate -> how far the reward ends above its start, mean over the seeds."""
    curves = {rate: [read_rows(job.path) for job in runs] for rate, runs in measured.items()}
    return {rate: float(np.mean([final(c) - c["reward"][0] for c in runs])) for rate, runs in curves.items()}


def chosen(gained: Mapping[float, float]) -> float:
    """By the rule."""
    best = max(gained.values())
    return min(rate for rate, gain in gained.items() if gain >= ENOUGH * best)
