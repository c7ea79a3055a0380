"""What the field disagrees on, asked of the arena's runs; pure functions, by rules written before the full
arena was run.

Is clipping unnecessary (RGRA, arXiv 2603.18756)? Is importance sampling needed (2512.01374)? Is the ratio the wrong
variable of a trust region (DPPO, 2602.04879)? Each is a contrast of algorithms that differ in this alone, or in as
little else as there is, each at its own rate: the difference in final reward on the judging seeds, paired by seed, mean
over tasks and pairs, at each lag and over all lags but on-policy. With the bootstrap 95 % interval over seeds the first
is `better` where the whole interval lies above `MARGIN`, `worse` where it lies below -`MARGIN`, `alike` where it lies
between, and `undecided` otherwise; a question's answer is that of its first contrast.

Does the effective sample size foretell collapse (VCPO, 2602.17616)? Asked of every run behind the cells, at all rates,
at all lags but on-policy, where it is 1:

- a run gives the alarm at the first evaluation before which it was below the gate, `LEAST_SAMPLE_SIZE`;
- it collapses as `score.collapsed` says, at the first evaluation from which on the mean of three (at the middle one)
  stays `COLLAPSE` or more below its best;
- hit rate: of the runs that collapse, the share that gave the alarm before; false alarms: of those that do not, the
  share that gave it at all; lead: the mean number of steps from alarm to collapse, of the hits.

The runs of a cell resemble each other, so the intervals are a bootstrap over cells. It `foretells` where the whole
interval of the hit rate less the false alarms lies above `USEFUL`, `does not` where none of it does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trinity_rec.lab.arena.plan import COLLAPSE, Cell
from trinity_rec.lab.arena.score import BETTER, UNDECIDED, WORSE, Curve, alarm, collapsed, estimate
from trinity_rec.lab.statistics import LAST, RESAMPLES, final, running_means
from trinity_rec.variants import LAGS

MARGIN = 0.02  # of the final reward: what nobody would change an algorithm for
USEFUL = 0.5  # of hit rate less false alarms
ALIKE, NOT_MEASURED = "alike", "not measured"
ON_POLICY = "on_policy"
BEYOND = tuple(lag for lag in LAGS if lag != ON_POLICY)
WHERE = {**{lag: (lag,) for lag in LAGS}, "all_but_on_policy": BEYOND}


@dataclass(frozen=True)
class Contrast:
    """The first algorithm of each pair less the second."""

    title: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Question:
    """What contrasts answer.

    Attributes:
        answers: the first contrast's verdict -> the question's answer.
    """

    name: str
    title: str
    contrasts: tuple[Contrast, ...]
    answers: Mapping[str, str]


QUESTIONS = (
    Question(
        "clipping",
        "Is clipping unnecessary?",
        (
            Contrast("REINFORCE less REC-OneSide-NoIS", (("rec_reinforce", "rec_oneside_nois"),)),
            Contrast("OPMD less REC-OneSide-NoIS", (("rep_opmd", "rec_oneside_nois"),)),
            Contrast("AsymRE less REC-OneSide-NoIS", (("rep_asymre", "rec_oneside_nois"),)),
        ),
        {BETTER: "unnecessary", ALIKE: "unnecessary", WORSE: "needed"},
    ),
    Question(
        "importance_sampling",
        "Is importance sampling needed?",
        (
            Contrast(
                "with less without it, clipped",
                tuple((f"rec_{kind}_is", f"rec_{kind}_nois") for kind in ("oneside", "twoside", "ring", "gspo")),
            ),
            Contrast("TIS less REINFORCE, not clipped", (("off_tis", "rec_reinforce"),)),
        ),
        {BETTER: "needed", ALIKE: "not needed", WORSE: "not needed"},
    ),
    Question(
        "ratio",
        "Is the ratio the wrong variable?",
        (
            Contrast("DPPO-TV less REC-OneSide-IS", (("off_dppo_tv", "rec_oneside_is"),)),
            Contrast("DPPO-TV less DAPO's clip-higher", (("off_dppo_tv", "off_dapo"),)),
        ),
        {BETTER: "the difference of probabilities is better", ALIKE: "both are alike", WORSE: "the ratio is better"},
    ),
)
SAMPLE_SIZE = ("sample_size", "Does the effective sample size foretell collapse?")
FORETELLS, DOES_NOT = "foretells", "does not"


def answers(judged: Mapping[Cell, Sequence[Curve]], runs: Mapping[Cell, Sequence[Curve]]) -> list[dict[str, Any]]:
    """The objects of `questions.json`.

    Args:
        judged: the curves of each cell's judging seeds, in the order of the seeds.
        runs: all curves of each cell, at all rates.
    """
    return [
        *({"question": each.name, "title": each.title, **contrasted(each, judged)} for each in QUESTIONS),
        {"question": SAMPLE_SIZE[0], "title": SAMPLE_SIZE[1], **sample_size(runs)},
    ]


def contrasted(question: Question, judged: Mapping[Cell, Sequence[Curve]]) -> dict[str, Any]:
    """Each contrast at each lag and over all but on-policy, and the answer there."""
    rows = []
    for contrast in question.contrasts:
        for where, lags in WHERE.items():
            found = difference(contrast.pairs, lags, judged)
            answer = {}
            if contrast is question.contrasts[0]:
                answer = {"answer": question.answers.get(found["verdict"], found["verdict"])}
            rows.append({"contrast": contrast.title, "lag": where, **found, **answer})
    return {"contrasts": rows}


def difference(
    pairs: Sequence[tuple[str, str]], lags: Collection[str], judged: Mapping[Cell, Sequence[Curve]]
) -> dict[str, Any]:
    """In final reward, the first of each pair less the second, paired by seed, where both are there."""
    both = [
        ((task, lag, first), (task, lag, second))
        for task, lag in dict.fromkeys((task, lag) for task, lag, _ in judged)
        for first, second in pairs
        if lag in lags and (task, lag, first) in judged and (task, lag, second) in judged
    ]
    if not both:
        return {"verdict": NOT_MEASURED, "cells": 0}
    by_seed = np.mean(
        [[final(a) - final(b) for a, b in zip(judged[one], judged[two], strict=True)] for one, two in both], axis=0
    )
    found = estimate(list(by_seed))
    return {
        "verdict": said_of(found.low, found.high),
        "difference": found.effect,
        "interval": [found.low, found.high],
        "cells": len(both),
    }


def said_of(low: float, high: float) -> str:
    """Of an interval, by `MARGIN`."""
    if low > MARGIN:
        return BETTER
    if high < -MARGIN:
        return WORSE
    return ALIKE if low > -MARGIN and high < MARGIN else UNDECIDED


def collapse(curve: Curve) -> float | None:
    """The step from which on the reward stays `COLLAPSE` below its best; None if it ends above that."""
    if not collapsed(curve):
        return None
    means = running_means(curve)
    above = np.flatnonzero(means.max() - means < COLLAPSE)
    return float(curve["step"][LAST // 2 :][above[-1] + 1])


def counts(curves: Sequence[Curve]) -> np.ndarray:
    """Of a cell: runs that collapse, hits, runs that do not collapse, false alarms, and the sum of the hits' leads."""
    total = np.zeros(5)
    for curve in curves:
        alarmed, fell = alarm(curve), collapse(curve)
        if fell is None:
            total += (0, 0, 1, alarmed is not None, 0)
        else:
            hit = alarmed is not None and alarmed < fell
            total += (1, hit, 0, 0, fell - alarmed if hit and alarmed is not None else 0)
    return total


def sample_size(runs: Mapping[Cell, Sequence[Curve]]) -> dict[str, Any]:
    """Hit rate, false alarms and lead at each lag but on-policy and over all of these."""
    of_cell = {cell: counts(curves) for cell, curves in runs.items()}
    rows = []
    for where, lags in WHERE.items():
        if where != ON_POLICY:
            here = [total for cell, total in of_cell.items() if cell[1] in lags]
            rows.append({"lag": where, **foretold(np.array(here).reshape(-1, 5))})
    return {"lags": rows}


def foretold(cells: np.ndarray) -> dict[str, Any]:
    """What `counts` of cells, [cells, 5], say together; a share of nothing is None."""
    generator = np.random.default_rng(0)
    totals = cells.sum(0)
    fell, hits, stood, false, lead = totals
    said: dict[str, Any] = {"runs": int(fell + stood), "collapsed": int(fell), "verdict": NOT_MEASURED}
    if not fell or not stood:
        return said
    times_drawn = generator.multinomial(len(cells), np.full(len(cells), 1 / len(cells)), size=RESAMPLES)
    draws = (times_drawn @ cells).T
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = {
            "hit_rate": (hits / fell, draws[1] / draws[0]),
            "false_alarms": (false / stood, draws[3] / draws[2]),
            "hits_less_false_alarms": (hits / fell - false / stood, draws[1] / draws[0] - draws[3] / draws[2]),
            "lead": (lead / hits if hits else None, draws[4] / draws[1]),
        }
    for name, (value, resampled) in shares.items():
        known = resampled[np.isfinite(resampled)]
        said[name] = None if value is None else float(value)
        said[f"{name}_interval"] = (
            None if value is None else [float(edge) for edge in np.percentile(known, (2.5, 97.5))]
        )
    low, high = said["hits_less_false_alarms_interval"]
    return said | {"verdict": FORETELLS if low > USEFUL else DOES_NOT if high <= USEFUL else UNDECIDED}
