"""What is read off the curves of a cell; pure functions, by the rules of `plan`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from trinity_rec.lab.arena.plan import ALLOWANCE, COLLAPSE, ENOUGH_REWARD, KEPT, LEAST_ENTROPY, LEAST_SAMPLE_SIZE
from trinity_rec.lab.statistics import LAST, Estimate, fall, final, mean_reward, resampled_means

Curve = Mapping[str, np.ndarray]
BETTER, WORSE, UNDECIDED = "better", "worse", "undecided"


def gain(curve: Curve) -> float:
    """How far the reward ends above its start."""
    return final(curve) - float(curve["reward"][0])


def chosen_rate(tuned: Mapping[float, Sequence[Curve]]) -> float:
    """The rate with the highest mean final reward; of equals the smallest."""
    return max(sorted(tuned), key=lambda rate: float(np.mean([final(curve) for curve in tuned[rate]])))


def robustness(gains: Mapping[float, float]) -> float:
    """The share of the rates at which `KEPT` of the best gain is kept; 0 where nothing is gained at any."""
    best = max(gains.values())
    return sum(each >= KEPT * best for each in gains.values()) / len(gains) if best > 0 else 0.0


def collapsed(curve: Curve) -> bool:
    """The reward ends `COLLAPSE` or more below its best."""
    return fall(curve) >= COLLAPSE


def stopped_exploring(curve: Curve) -> bool:
    """Next to no entropy at the end, and yet reward to be had."""
    return float(curve["entropy"][-LAST:].mean()) < LEAST_ENTROPY and final(curve) < ENOUGH_REWARD


def lost_its_samples(curve: Curve) -> bool:
    """The effective sample size was below `LEAST_SAMPLE_SIZE` of the batch at some time."""
    return alarm(curve) is not None


def alarm(curve: Curve) -> float | None:
    """The step at which the effective sample size was seen below the gate for the first time; None if never."""
    below = np.flatnonzero(curve["effective_sample_size"][1:] < LEAST_SAMPLE_SIZE)
    return float(curve["step"][1:][below[0]]) if len(below) else None


def estimate(values: Sequence[float]) -> Estimate:
    """The mean over seeds and its bootstrap 95 % interval."""
    array = np.asarray(values, float)
    return Estimate.of(array.mean(), resampled_means(array, np.random.default_rng(0)))


def score(
    algorithm: str, task: str, lag: str, tuned: Mapping[float, Sequence[Curve]], judged: Sequence[Curve]
) -> dict[str, Any]:
    """The object of a cell in `arena.json`.

    Args:
        tuned: rate -> the curves of the tuning seeds.
        judged: the curves of the judging seeds, at the chosen rate.
    """
    gains = {rate: float(np.mean([gain(curve) for curve in curves])) for rate, curves in tuned.items()}
    ends, areas = (estimate([measure(curve) for curve in judged]) for measure in (final, mean_reward))
    gates = (collapsed, stopped_exploring, lost_its_samples)
    shares = [float(np.mean([gate(curve) for curve in judged])) for gate in gates]
    return {
        "algorithm": algorithm,
        "task": task,
        "lag": lag,
        "rate": chosen_rate(tuned),
        "final": ends.effect,
        "interval": [ends.low, ends.high],
        "auc": areas.effect,
        "auc_interval": [areas.low, areas.high],
        "collapse_rate": shares[0],
        "low_entropy_rate": shares[1],
        "low_sample_size_rate": shares[2],
        "robustness": robustness(gains),
        "gains": {f"{rate:g}": value for rate, value in gains.items()},
        "seeds": len(judged),
    }


def ranks(values: Sequence[float]) -> np.ndarray:
    """The place of each value, 1 for the highest; equals share the mean of their places. [values]."""
    array = np.asarray(values, float)
    above = (array[None, :] > array[:, None]).sum(1)
    equal = (array[None, :] == array[:, None]).sum(1)
    return above + (equal + 1) / 2


def mean_ranks(cells: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Algorithm -> its mean place by final reward over the columns (task and lag) that it is in."""
    places: dict[str, list[float]] = {}
    for column in dict.fromkeys((cell["task"], cell["lag"]) for cell in cells):
        here = [cell for cell in cells if (cell["task"], cell["lag"]) == column]
        for cell, place in zip(here, ranks([cell["final"] for cell in here]), strict=True):
            places.setdefault(cell["algorithm"], []).append(float(place))
    return {name: float(np.mean(found)) for name, found in places.items()}


def costs(cells: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """What a choice costs: algorithm -> lag -> how far it ends below the highest there, mean over the tasks that it is
    in; the cheapest first, by the mean over lags.

    The highest is the best of many estimates, and so a little better than what it stands for.
    """
    best: dict[tuple[str, str], float] = {}
    for cell in cells:
        column = cell["task"], cell["lag"]
        best[column] = max(cell["final"], best.get(column, cell["final"]))
    lost: dict[str, dict[str, list[float]]] = {}
    for cell in cells:
        of_lag = lost.setdefault(cell["algorithm"], {})
        of_lag.setdefault(cell["lag"], []).append(best[cell["task"], cell["lag"]] - cell["final"])
    means = {name: {lag: float(np.mean(each)) for lag, each in of_lag.items()} for name, of_lag in lost.items()}
    return dict(sorted(means.items(), key=lambda item: float(np.mean(list(item[1].values())))))


def front(points: Mapping[str, Sequence[float]]) -> set[str]:
    """The names that no other beats: none is as high in every coordinate and higher in one."""
    return {
        name
        for name, here in points.items()
        if not any(
            all(x >= y for x, y in zip(there, here, strict=True)) and tuple(there) != tuple(here)
            for there in points.values()
        )
    }


def compared(own: Sequence[Curve], other: Sequence[Curve]) -> dict[str, Any]:
    """The difference in final reward, own less other, paired by seed, and what may be said of it."""
    difference = estimate([final(a) - final(b) for a, b in zip(own, other, strict=True)])
    said = BETTER if difference.low > 0 else WORSE if difference.high < 0 else UNDECIDED
    return {"difference": difference.effect, "interval": [difference.low, difference.high], "verdict": said}


def said_of_success(found: Mapping[str, Any]) -> str:
    """What `success` found, as a sentence."""
    worst, robustness = found["worst"], found["robustness"]
    return (
        f"Against the best preset of each task and lag it is at worst {worst['difference']:+.3f} ({worst['task']}, "
        f"{worst['lag']}, {worst['algorithm']}; {-ALLOWANCE:+.2f} is allowed), its robustness {robustness['own']:.2f} "
        f"to their {robustness['other']:.2f}: it {'could' if found['succeeds'] else 'does not'} take their place."
    )


def success(beside: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Whether one's own algorithm could take the place of all presets, by the rule at `plan.ALLOWANCE`.

    The best preset of a task and lag is chosen by the seeds that it is then compared on, which favours it.

    Args:
        beside: the objects of `own.json`.

    Returns:
        `worst`, the comparison with a best preset that it stands worst in, `robustness` of its own and of the best
        presets, means over tasks and lags, and `succeeds`; None where there is nothing to compare with.
    """
    best = [each for each in beside if each["is_best"]]
    if not best:
        return None
    worst = min(best, key=lambda each: each["difference"])
    robustness = {key: float(np.mean([each["robustness"][key] for each in best])) for key in ("own", "other")}
    succeeds = worst["difference"] >= -ALLOWANCE and robustness["own"] > robustness["other"]
    return {"worst": worst, "robustness": robustness, "succeeds": succeeds}
