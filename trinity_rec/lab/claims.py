"""The paper's claims C1 to C8, what each is measured by, and the rules of the verdicts, written before the runs.

A claim is a conjunction of parts. A part is a contrast: a measure of some variants' curves, each with a factor, added
up seed by seed, in each cell (a task under a setting). Its effect is the mean over its cells, its interval a bootstrap
over seeds. Learning rates and tasks are the same for all variants (`rates.py`), and nothing here is tuned to a result.

- A part "greater" asks for an effect above its margin. It holds if the whole interval lies above the margin, and does
  not hold if none of it does. Where it holds on the mean but one cell's whole interval lies below, it is inconclusive.
- A part "within" asks for an effect nearer to 0 than its margin in every cell; effect and interval are those of the
  cell with the largest one. It holds if the whole interval lies within, and does not hold if none of it does.
- A claim holds if all its parts do, does not hold if one of them does not, and is inconclusive otherwise. Its effect
  and interval are those of the part that decides: the first that fails, else the first inconclusive, else the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from trinity_rec.lab.statistics import MEASURES, Estimate, resampled_means

HOLDS, FAILS, OPEN = "holds", "does not hold", "inconclusive"

Curve = Mapping[str, np.ndarray]
Curves = Callable[[str, str, str], Sequence[Curve]]
"""Task, setting and variant -> the curves of its seeds, in the order of the seeds."""


@dataclass(frozen=True)
class Part:
    """A measurable piece of a claim.

    Attributes:
        statement: what it says, one line.
        measure: of `statistics.MEASURES`.
        contrast: variant -> factor.
        settings: the settings of its cells; the tasks are the run's.
        margin: see `kind`.
        kind: "greater" or "within", see above.
    """

    statement: str
    measure: str
    contrast: dict[str, float]
    settings: tuple[str, ...]
    margin: float = 0.0
    kind: str = "greater"


@dataclass(frozen=True)
class Claim:
    """A claim of arXiv 2509.24203 that is measured on the language model's curves."""

    name: str
    title: str
    statement: str
    parts: tuple[Part, ...]

    @property
    def variants(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(variant for part in self.parts for variant in part.contrast))

    @property
    def settings(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(setting for part in self.parts for setting in part.settings))

    @property
    def rule(self) -> str:
        bounds = {"greater": "> {:g}", "within": "within ±{:g} in every cell"}
        parts = (f"{part.statement}: {part.measure} {bounds[part.kind].format(part.margin)}" for part in self.parts)
        return "Bootstrap 95 % intervals over seeds; all of: " + "; ".join(parts) + "."

    @property
    def cells(self) -> set[tuple[str, str]]:
        """Setting and variant."""
        return {(s, v) for part in self.parts for s in part.settings for v in part.contrast}

    def measured_in(self, cells: Collection[tuple[str, str]]) -> Claim:
        """The claim with the parts, and the settings of each, whose variants all are among `cells`.

        A grid that leaves cells out judges the rest by the same rules.

        Args:
            cells: setting and variant.
        """
        parts = (
            replace(part, settings=tuple(s for s in part.settings if {(s, v) for v in part.contrast} <= set(cells)))
            for part in self.parts
        )
        return replace(self, parts=tuple(part for part in parts if part.settings))


ON_POLICY, SYNC, OFFSET, OFFLINE = "on_policy", "sync_interval_20", "sync_offset_10", "offline"
STALE = (SYNC, OFFSET, OFFLINE)
EVERYWHERE = (ON_POLICY, *STALE)
NARROW, WIDE, RING, GRPO = "rec_oneside_nois", "rec_oneside_nois_wide", "rec_ring_nois", "rec_grpo"
REINFORCE, IS = "rec_reinforce", "rec_oneside_is"

WHERE = {SYNC: "at sync_interval 20", OFFSET: "at sync_offset 10", OFFLINE: "offline"}

COLLAPSE = 0.1  # of the reward, which lies between 0 and 1
ALIKE = 0.05
KL_ALLOWANCE = 1.1  # "no larger": at most a tenth


def _red_against_grpo(red: str, title: str) -> tuple[Part, ...]:
    parts = []
    for setting, where in ((ON_POLICY, "on-policy"), (SYNC, "at sync_interval 20")):
        cells = (setting,)
        parts += [
            Part(f"{title} learns more than GRPO {where}", "mean_reward", {red: 1, GRPO: -1}, cells),
            Part(f"{title} is smoother than GRPO {where}", "roughness", {GRPO: 1, red: -1}, cells),
            Part(f"{title} has a KL no larger than GRPO {where}", "divergence", {GRPO: KL_ALLOWANCE, red: -1}, cells),
        ]
    return tuple(parts)


CLAIMS = {
    claim.name: claim
    for claim in (
        Claim(
            "C2",
            "with clipping, importance sampling makes no difference",
            "With clipping, importance sampling makes no difference: REC-OneSide-IS and REC-OneSide-NoIS train alike, "
            "and like GRPO.",
            (
                Part("NoIS ends as IS does", "final", {NARROW: 1, IS: -1}, EVERYWHERE, ALIKE, "within"),
                Part("NoIS learns as fast as IS", "mean_reward", {NARROW: 1, IS: -1}, EVERYWHERE, ALIKE, "within"),
                Part("NoIS ends as GRPO does", "final", {NARROW: 1, GRPO: -1}, EVERYWHERE, ALIKE, "within"),
                Part("NoIS learns as fast as GRPO", "mean_reward", {NARROW: 1, GRPO: -1}, EVERYWHERE, ALIKE, "within"),
            ),
        ),
        Claim(
            "C3",
            "without clipping, REINFORCE collapses off-policy",
            "Without clipping, vanilla REINFORCE collapses on off-policy data.",
            tuple(
                part
                for setting, where in WHERE.items()
                for part in (
                    Part(f"REINFORCE falls from its best {where}", "fall", {REINFORCE: 1}, (setting,), COLLAPSE),
                    Part(f"it ends below GRPO {where}", "final", {GRPO: 1, REINFORCE: -1}, (setting,), COLLAPSE),
                )
            ),
        ),
        Claim(
            "C4",
            "a wider clip range learns faster online, less steadily offline",
            "Without importance sampling a wider clip range (0.6, 2.0) learns faster than (0.2, 0.2) online; offline "
            "it trades stability for speed.",
            (
                Part("wide learns faster at sync_interval 20", "mean_reward", {WIDE: 1, NARROW: -1}, (SYNC,)),
                Part("wide learns faster at sync_offset 10", "mean_reward", {WIDE: 1, NARROW: -1}, (OFFSET,)),
                Part("wide learns faster offline at first", "first_half", {WIDE: 1, NARROW: -1}, (OFFLINE,)),
                Part("wide falls further offline", "fall", {WIDE: 1, NARROW: -1}, (OFFLINE,)),
            ),
        ),
        Claim(
            "C5",
            "the wide range is no larger learning rate in disguise",
            "The gain of the wide range is not that of a larger learning rate: GRPO at up to five times the rate stays "
            "below it.",
            tuple(
                Part(
                    f"wide learns faster than GRPO at {factor} times the rate",
                    "mean_reward",
                    {WIDE: 1, GRPO if factor == 1 else f"{GRPO}_rate_{factor}": -1},
                    (SYNC,),
                )
                for factor in (1, 2, 3, 4, 5)
            ),
        ),
        Claim(
            "C6",
            "ring: most of the speed, more of the stability",
            "Ring clipping keeps most of the speed of the wide range and more of the stability of the narrow one.",
            (
                Part("wide learns faster than narrow", "mean_reward", {WIDE: 1, NARROW: -1}, STALE),
                Part(
                    "ring is nearer to wide than to narrow", "mean_reward", {RING: 1, WIDE: -0.5, NARROW: -0.5}, STALE
                ),
                Part("ring falls less than wide", "fall", {WIDE: 1, RING: -1}, STALE),
            ),
        ),
        Claim(
            "C7",
            "RED-Drop and RED-Weight beat GRPO",
            "RED-Drop and RED-Weight beat GRPO, on-policy and at sync_interval 20, with smoother curves and a KL no "
            "larger.",
            (*_red_against_grpo("red_drop", "RED-Drop"), *_red_against_grpo("red_weight", "RED-Weight")),
        ),
        Claim(
            "C8",
            "OPMD and AsymRE are regularised REINFORCE",
            "OPMD and AsymRE behave as regularised REINFORCE: close to REC-OneSide-NoIS with the wide range.",
            tuple(
                Part(
                    f"{title} ends near wide",
                    "final",
                    {name: 1, WIDE: -1},
                    EVERYWHERE,
                    ALIKE,
                    "within",
                )
                for name, title in (("rep_opmd", "OPMD"), ("rep_asymre", "AsymRE"))
            ),
        ),
    )
}

# On a real model a run takes minutes, so fewer cells are run, in this order; the claims are judged by the parts that
# these measure (`Claim.measured_in`). On long answers the first four at sync_interval 20 are all.
CENTRAL = (REINFORCE, NARROW, GRPO, WIDE)
FIRST = (*CENTRAL, RING, "red_drop")
REAL_CELLS = tuple(
    [(SYNC, variant) for variant in (*FIRST, "red_weight", "red_weight_adaptive", "rep_opmd", "rep_asymre")]
    + [(OFFLINE, variant) for variant in FIRST]
)
REAL_CELLS_LONG = tuple((SYNC, variant) for variant in CENTRAL)


@dataclass(frozen=True)
class Judged:
    """An estimate with its verdict."""

    statement: str
    effect: float
    interval: tuple[float, float]
    verdict: str
    cells: list[dict[str, Any]] = field(default_factory=list)


def verdict(estimate: Estimate, margin: float, kind: str) -> str:
    """By the rules at the top of this file."""
    if kind == "greater":
        return HOLDS if estimate.low > margin else FAILS if estimate.high <= margin else OPEN
    if -margin < estimate.low and estimate.high < margin:
        return HOLDS
    return FAILS if estimate.low >= margin or estimate.high <= -margin else OPEN


def by_seed(part: Part, measure: Callable[[Curve], float], curves: Callable[[str], Sequence[Curve]]) -> np.ndarray:
    """The contrast of a part in one cell, [seeds]; `curves` are those of a variant, in the order of the seeds."""
    measured = [
        factor * np.array([measure(curve) for curve in curves(variant)]) for variant, factor in part.contrast.items()
    ]
    return np.sum(measured, axis=0)


def judge_part(part: Part, tasks: Sequence[str], curves: Curves) -> Judged:
    """The effect of a part in each cell and on the whole."""
    measure, generator = MEASURES[part.measure], np.random.default_rng(0)
    effects, resampled, cells = [], [], []
    for task in tasks:
        for setting in part.settings:
            differences = by_seed(part, measure, partial(curves, task, setting))
            effects.append(differences.mean())
            resampled.append(resampled_means(differences, generator))
            here = Estimate.of(effects[-1], resampled[-1])
            said = verdict(here, part.margin, part.kind)
            cells.append({"task": task, "setting": setting, **asdict(here), "verdict": said})
    if part.kind == "within":
        worst = int(np.argmax(np.abs(effects)))
        whole = Estimate.of(effects[worst], resampled[worst])
    else:
        whole = Estimate.of(np.mean(effects), np.mean(resampled, axis=0))
    said = verdict(whole, part.margin, part.kind)
    if said == HOLDS and any(cell["verdict"] == FAILS for cell in cells):
        said = OPEN
    return Judged(part.statement, whole.effect, (whole.low, whole.high), said, cells)


def judge(name: str, statement: str, rule: str, parts: Sequence[Judged]) -> dict[str, Any]:
    """The object of a claim in `claims.json`."""
    decides = next((part for said in (FAILS, OPEN) for part in parts if part.verdict == said), parts[0])
    return {
        "claim": name,
        "statement": statement,
        "effect": decides.effect,
        "interval": list(decides.interval),
        "verdict": decides.verdict,
        "rule": rule,
        "decided_by": decides.statement,
        "parts": [asdict(part) for part in parts],
    }
