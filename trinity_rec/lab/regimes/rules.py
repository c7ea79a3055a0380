"""Where the claims C2 to C8 hold: what is run, and by which rules it is judged; written before any run.

`lab.claims` judges at one learning rate a task, over all lags at once. Here rate and lag are axes: each part of a claim
is judged anew in each cell (a task, a lag, a rate), on seeds of its own and over more steps (`STEPS_OF`). The verdicts
of `lab.claims` stay as they are.

- **Rates** are `FACTORS` of the one that `lab.rates` chose for the task. The small ones are the regime of the paper,
  whose 1e-6 still learns at five times that. For C5, GRPO is also run at twice and four times the highest.
- **Lags** are those of the arena for addition, and the paper's for the others, whose steps take thrice as long.
- **Speed** (`log_steps`) is the natural logarithm of the steps that it takes to a given reward, `TARGETS`: a quarter of
  the way from the model's own reward to 1. The reward is the mean of three evaluations, at the middle one, and the line
  between two such means; at the earliest the first such mean. A difference of logarithms is a ratio of steps.
- A run that does not get there counts as one that does at its last step. Where more than one in five runs of a variant
  do not, its number of steps is too small, and a verdict that a larger one might overturn is inconclusive: "faster"
  does not hold for want of the slower's steps, nor hold for want of the faster's; "as fast" does not hold without both.
- Else a verdict is that of `claims.verdict`, on the bootstrap 95 % interval over seeds: a part holds if the whole
  interval lies beyond its margin (or within it), does not hold if none of it does, and is inconclusive otherwise. No
  margin is 0 but for roughness and KL: a difference that nobody would notice is none.
- A claim holds in a cell if all its parts there do, does not hold if one does not, and is inconclusive otherwise.

Intervals are of single cells: of many that are alike, one in forty falls off on each side by chance. Read patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from trinity_rec.lab.claims import (
    ALIKE,
    CLAIMS,
    COLLAPSE,
    FAILS,
    GRPO,
    HOLDS,
    IS,
    KL_ALLOWANCE,
    NARROW,
    OFFLINE,
    OFFSET,
    ON_POLICY,
    OPEN,
    REINFORCE,
    RING,
    SYNC,
    WIDE,
    Claim,
    Curve,
    Judged,
    Part,
    by_seed,
    verdict,
)
from trinity_rec.lab.statistics import MEASURES, Estimate, resampled_means, steps_to
from trinity_rec.variants import LAGS, VARIANTS

RULES = 1  # of all that stands here; results by other rules are never mixed with these

FACTORS = (0.25, 0.5, 1.0, 2.0)
SEEDS = (2000, 2001, 2002, 2003, 2004)  # which nothing else uses
STEPS_OF = {"addition": 240, "word_problems": 160, "tool_call": 160}
EVALUATE_EVERY = 5
# In the order in which they are run.
PAPERS = (SYNC, ON_POLICY, OFFLINE, OFFSET)
LAGS_OF = {
    "addition": (*PAPERS, *(lag for lag in LAGS if lag not in PAPERS)),
    "word_problems": PAPERS,
    "tool_call": PAPERS,
}
TARGETS = {"addition": 0.42, "word_problems": 0.41, "tool_call": 0.65}

LOG_STEPS = "log_steps"
FASTER = math.log(1.1)  # a tenth more steps
AS_FAST = math.log(1.2)
MORE = 0.02  # of the reward
LATE = 0.2  # the share of a variant's runs that may not get to the target

BEHIND = tuple(lag for lag in LAGS if lag != ON_POLICY)
ALWAYS = tuple(LAGS)


def _red_against_grpo(red: str, title: str) -> tuple[Part, ...]:
    return (
        Part(f"{title} learns faster than GRPO", LOG_STEPS, {GRPO: 1, red: -1}, ALWAYS, FASTER),
        Part(f"{title} ends above GRPO", "final", {red: 1, GRPO: -1}, ALWAYS, MORE),
        Part(f"{title} is smoother than GRPO", "roughness", {GRPO: 1, red: -1}, ALWAYS),
        Part(f"{title} has a KL no larger than GRPO", "divergence", {GRPO: KL_ALLOWANCE, red: -1}, ALWAYS),
    )


def _near(name: str, title: str, other: str, other_title: str) -> tuple[Part, ...]:
    return (
        Part(f"{title} ends as {other_title} does", "final", {name: 1, other: -1}, ALWAYS, ALIKE, "within"),
        Part(f"{title} learns as fast as {other_title}", LOG_STEPS, {name: 1, other: -1}, ALWAYS, AS_FAST, "within"),
    )


def _mapped(name: str, parts: tuple[Part, ...], **other: str) -> Claim:
    """A claim of `lab.claims`, judged by these parts; its statement too where they say something else."""
    return replace(CLAIMS[name], parts=parts, **other)


MAPPED = {
    claim.name: claim
    for claim in (
        _mapped(
            "C2",
            (*_near(NARROW, "NoIS", IS, "IS"), *_near(NARROW, "NoIS", GRPO, "GRPO")),
        ),
        _mapped(
            "C3",
            (
                Part("REINFORCE falls from its best", "fall", {REINFORCE: 1}, BEHIND, COLLAPSE),
                Part("REINFORCE ends below GRPO", "final", {GRPO: 1, REINFORCE: -1}, BEHIND, COLLAPSE),
            ),
        ),
        _mapped(
            "C4",
            (
                Part("wide learns faster", LOG_STEPS, {NARROW: 1, WIDE: -1}, BEHIND, FASTER),
                Part("wide falls further offline", "fall", {WIDE: 1, NARROW: -1}, (OFFLINE,), MORE),
            ),
        ),
        _mapped(
            "C5",
            tuple(
                part
                for factor in (1, 2, 4)
                for grpo in (GRPO if factor == 1 else f"{GRPO}_rate_{factor}",)
                for part in (
                    Part(f"wide learns faster than GRPO at {factor}x", LOG_STEPS, {grpo: 1, WIDE: -1}, BEHIND, FASTER),
                    Part(f"wide earns more than GRPO at {factor}x", "mean_reward", {WIDE: 1, grpo: -1}, BEHIND, MORE),
                )
            ),
            statement="The gain of the wide range is not that of a larger learning rate: GRPO at up to four times the "
            "rate stays below it.",
        ),
        _mapped(
            "C6",
            (
                Part("wide learns faster than narrow", LOG_STEPS, {NARROW: 1, WIDE: -1}, BEHIND, FASTER),
                Part(
                    "ring is nearer to wide than to narrow", LOG_STEPS, {NARROW: 0.5, WIDE: 0.5, RING: -1}, BEHIND, 0.01
                ),
                Part("ring falls less than wide", "fall", {WIDE: 1, RING: -1}, BEHIND, MORE),
            ),
        ),
        _mapped(
            "C7",
            (*_red_against_grpo("red_drop", "RED-Drop"), *_red_against_grpo("red_weight", "RED-Weight")),
            statement="RED-Drop and RED-Weight beat GRPO, with smoother curves and a KL no larger.",
        ),
        _mapped(
            "C8",
            (*_near("rep_opmd", "OPMD", WIDE, "wide"), *_near("rep_asymre", "AsymRE", WIDE, "wide")),
        ),
    )
}


@dataclass(frozen=True)
class Cell:
    """Where claims are judged: a task, a lag, and the factor of the task's learning rate."""

    task: str
    lag: str
    factor: float


Run = tuple[str, float]
"""A variant and its factor of the task's learning rate."""


def run_of(variant: str, factor: float) -> Run:
    """GRPO at twice the rate is GRPO in the next cell: one run for both."""
    row = VARIANTS[variant]
    return (variant if row.rate_factor == 1 else row.preset), factor * row.rate_factor


def parts_at(claim: Claim, lag: str) -> list[Part]:
    """The parts of a claim that say something at a lag."""
    return [part for part in claim.parts if lag in part.settings]


def runs_of(claims: Sequence[Claim], cell: Cell) -> list[Run]:
    """What the claims need in a cell, every run once."""
    variants = [variant for claim in claims for part in parts_at(claim, cell.lag) for variant in part.contrast]
    return list(dict.fromkeys(run_of(variant, cell.factor) for variant in variants))


def log_steps(curve: Curve, target: float) -> float:
    """The logarithm of the steps to the reward `target`; of all of them where it is not reached."""
    return math.log(min(steps_to(curve, target), float(curve["step"][-1])))


def judge_part_at(part: Part, task: str, curves: Mapping[str, Sequence[Curve]]) -> Judged:
    """A part in one cell.

    Args:
        curves: variant -> the curves of its seeds, in the order of the seeds.
    """
    measure = partial(log_steps, target=TARGETS[task]) if part.measure == LOG_STEPS else MEASURES[part.measure]
    differences = by_seed(part, measure, curves.__getitem__)
    estimate = Estimate.of(differences.mean(), resampled_means(differences, np.random.default_rng(0)))
    said = verdict(estimate, part.margin, part.kind)
    if part.measure == LOG_STEPS and _might_be_overturned(part, said, estimate.effect, TARGETS[task], curves):
        said = OPEN
    return Judged(part.statement, estimate.effect, (estimate.low, estimate.high), said)


def _might_be_overturned(
    part: Part, said: str, effect: float, target: float, curves: Mapping[str, Sequence[Curve]]
) -> bool:
    """By the steps that a late variant would still have needed: they raise the effect if its factor is positive."""
    late = {
        name: np.mean([math.isinf(steps_to(curve, target)) for curve in curves[name]]) > LATE for name in part.contrast
    }
    up = any(late[name] for name, factor in part.contrast.items() if factor > 0)
    down = any(late[name] for name, factor in part.contrast.items() if factor < 0)
    if part.kind == "within":
        return (up or down) if said == HOLDS else down if effect > 0 else up
    return down if said == HOLDS else up


def judge_claim(verdicts: Sequence[str]) -> str:
    """Of a cell, from those of the claim's parts there."""
    return next((said for said in (FAILS, OPEN) if said in verdicts), HOLDS)
