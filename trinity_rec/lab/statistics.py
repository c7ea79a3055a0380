"""What is read off a curve, and how far it can be trusted: bootstrap intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LAST = 3  # evaluations that make up the end of a curve


def running_means(curve: Mapping[str, np.ndarray]) -> np.ndarray:
    """The mean reward of each `LAST` evaluations in a row; the first has its middle at the evaluation `LAST // 2`."""
    return np.convolve(curve["reward"], np.ones(LAST) / LAST, mode="valid")


def final(curve: Mapping[str, np.ndarray]) -> float:
    """The reward at the end: mean of the last evaluations."""
    return float(curve["reward"][-LAST:].mean())


def mean_reward(curve: Mapping[str, np.ndarray]) -> float:
    """The area under the reward curve over its length, the evaluation before training left out: how fast it learns."""
    return float(curve["reward"][1:].mean())


def first_half(curve: Mapping[str, np.ndarray]) -> float:
    """`mean_reward` of the first half of the evaluations."""
    rewards = curve["reward"][1:]
    return float(rewards[: max(1, len(rewards) // 2)].mean())


def fall(curve: Mapping[str, np.ndarray]) -> float:
    """How far the reward ends below its own best: the highest mean of `LAST` evaluations less the last one."""
    means = running_means(curve)
    return float(means.max() - means[-1])


def roughness(curve: Mapping[str, np.ndarray]) -> float:
    """Mean absolute second difference of the reward between evaluations: 0 for a straight line."""
    return float(np.abs(np.diff(curve["reward"], 2)).mean())


def divergence(curve: Mapping[str, np.ndarray]) -> float:
    """Mean over the evaluations of the KL from the initial policy, nats a token."""
    return float(curve["kl_initial"][1:].mean())


def steps_to(curve: Mapping[str, np.ndarray], target: float) -> float:
    """The training steps to a mean of `LAST` evaluations of `target`, counted to the middle one; between two means the
    reward is a line. Infinite where it is not reached.
    """
    means, steps = running_means(curve), curve["step"][LAST // 2 :]
    reached = np.flatnonzero(means >= target)
    if not len(reached):
        return float("inf")
    at = int(reached[0])
    if at == 0:
        return float(steps[0])
    return float(np.interp(target, means[at - 1 : at + 1], steps[at - 1 : at + 1]))


MEASURES: dict[str, Callable[[Mapping[str, np.ndarray]], float]] = {
    measure.__name__: measure for measure in (final, mean_reward, first_half, fall, roughness, divergence)
}


@dataclass(frozen=True)
class Estimate:
    """An effect and its 95 % interval."""

    effect: float
    low: float
    high: float

    @classmethod
    def of(cls, effect: float, resampled: np.ndarray) -> Estimate:
        low, high = np.percentile(resampled, (2.5, 97.5))
        return cls(float(effect), float(low), float(high))


def resampled_means(values: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The mean of `values` [seeds] in each of `RESAMPLES` bootstrap samples (Efron 1979), [resamples]."""
    rows = generator.integers(len(values), size=(RESAMPLES, len(values)))
    return values[rows].mean(1)
