"""The learning rate of each task: chosen once, for all algorithms, from GRPO on-policy.

The rule: of `CANDIDATES`, the smallest rate at which GRPO on-policy gains at least 90 % of what the best one gains
(final reward less the reward before training, mean over `SEEDS`, which no experiment uses). Small, as practice and the
paper choose it (its 1e-6 still learns at five times that, claim C5), but not so small that nothing happens.
A task's `rate` is what the rule gave;

    trinity-rec reproduce --rates

measures it again. For a real model, whose runs take minutes, the rule chooses before anything else is run, among
`REAL_CANDIDATES`, from one seed and 20 steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
REAL_CANDIDATES, REAL_SEEDS = (1e-5, 2e-5, 5e-5), SEEDS[:1]
REAL_LENGTH = {"steps": 20, "evaluate_every": 5}


def jobs(
    like: Experiment, out: Path, candidates: Sequence[float] = CANDIDATES, seeds: Sequence[int] = SEEDS
) -> dict[float, list[Job]]:
    """Rate -> the runs that measure it, GRPO on-policy and else `like`."""
    like = replace(like, setting=SETTINGS["on_policy"], variant=VARIANTS["rec_grpo"])
    place = out / "rates" / like.task
    return {
        rate: [
            Job(
                partial(train, replace(like, rate=rate, seed=seed)),
                place / f"{rate:g}" / f"seed_{seed}.csv",
                like.steps,
            )
            for seed in seeds
        ]
        for rate in candidates
    }


def gains(measured: Mapping[float, Sequence[Job]]) -> dict[float, float]:
    """Rate -> how far the reward ends above its start, mean over the seeds."""
    curves = {rate: [read_rows(job.path) for job in runs] for rate, runs in measured.items()}
    return {rate: float(np.mean([final(c) - c["reward"][0] for c in runs])) for rate, runs in curves.items()}


def chosen(gained: Mapping[float, float]) -> float:
    """By the rule."""
    best = max(gained.values())
    return min(rate for rate, gain in gained.items() if gain >= ENOUGH * best)
