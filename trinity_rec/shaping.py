"""Data shaping, in pure torch: from the rewards of grouped responses to one advantage a response.

A group holds the K responses to one prompt. Every function works on all groups of a batch at once: `rewards` and the
results are [responses], and `group` [responses] numbers each response's group from 0. Sources are sections of
"Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm" (arXiv 2509.24203) unless another is named.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

PAIRWISE_WEIGHTS = ("uniform", "reward-gap", "product")
DROPS = (None, "balance")
DROP_FORMS = ("zero", "exclude")
REWEIGHTS = (None, "adaptive")
PAIRWISE = (None, *PAIRWISE_WEIGHTS)


@dataclass
class Shaping:
    """How the rewards of a batch become advantages: one choice of baseline, scale, drop and reweighting.

    Attributes:
        epsilon: added to the std by `std_normalize`.
        std_normalize: divide by the group's population standard deviation, as GRPO does.
        drop: "balance" is RED-Drop (section 4); None drops nothing.
        drop_form: what dropping means. "zero", upstream's form: the advantage is 0, but the tokens stay in the token
            mean and under any regulariser. "exclude", the paper's: they are out of both. Upstream's is the default
            here, so that its YAMLs keep their meaning; the preset `red_drop` takes the paper's.
        pairwise: weights of pairwise-weighted REINFORCE (`pairwise_advantage`); None is r - mean.
        pairwise_temp: the temperature of `pairwise: product`.
        reweight: "adaptive" is adaptive RED-Weight (`adaptive_temperature`); None does not reweight.
        reweight_floor: the least temperature of `reweight`.

    Raises:
        ValueError: an argument is not allowed; the message names it, its value and what is allowed.
    """

    epsilon: float = 1e-6
    std_normalize: bool | None = False
    drop: str | None = None
    drop_form: str = "zero"
    pairwise: str | None = None
    pairwise_temp: float = 1.0
    reweight: str | None = None
    reweight_floor: float = 0.8

    def __post_init__(self) -> None:
        choices = {"drop": DROPS, "drop_form": DROP_FORMS, "pairwise": PAIRWISE, "reweight": REWEIGHTS}
        for name, allowed in {**choices, "std_normalize": (True, False, None)}.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(map(str, allowed))}")
        for name, least in (("epsilon", 0), ("pairwise_temp", 1e-9), ("reweight_floor", 1e-9)):
            value = getattr(self, name)
            if not isinstance(value, Real) or isinstance(value, bool) or not least <= float(value) < math.inf:
                raise ValueError(f"{name}={value!r} is not a number of at least {least}")
        if self.pairwise is not None and (self.std_normalize or self.drop):
            raise ValueError(
                f"pairwise={self.pairwise!r} does not go with std_normalize or drop: it is a baseline itself"
            )

    def shape(
        self, rewards: Tensor, group: Tensor, *, tokens: Callable[[], Tensor], lottery: Callable[[], Tensor]
    ) -> Shaped:
        """The advantages of a batch.

        Args:
            rewards: [responses]; a response whose reward is not finite is left out of its group and of the loss.
            group: [responses], int64, from 0.
            tokens: gives how many tokens of each response are in the loss, [responses]; asked only to reweight.
            lottery: gives a random number for each response, [responses]; asked only to drop.
        """
        valid = kept = rewards.isfinite()
        if self.drop == "balance":
            kept = balanced_keep(rewards, group, valid, lottery())
        if self.pairwise is None:
            advantages = group_advantage(
                rewards, group, kept, std_normalize=bool(self.std_normalize), epsilon=self.epsilon
            )
        else:
            advantages = pairwise_advantage(rewards, group, kept, weights=self.pairwise, temp=self.pairwise_temp)
        reweighting = None
        if self.reweight == "adaptive":
            reweighting = adaptive_temperature(advantages[kept], tokens()[kept], floor=self.reweight_floor)
            advantages = advantages * (advantages / reweighting.temperature).exp()
        in_loss = kept if self.drop_form == "exclude" else valid
        return Shaped(advantages, valid, kept, in_loss, reweighting)


@dataclass(frozen=True)
class Shaped:
    """What `Shaping.shape` found, [responses] each.

    Attributes:
        advantages: float64; 0 where a response is not kept.
        valid: bool; its reward is finite.
        kept: bool; valid and not dropped.
        in_loss: bool; whether its tokens count in the loss.
        reweighting: the temperature of `reweight`, None without.
    """

    advantages: Tensor
    valid: Tensor
    kept: Tensor
    in_loss: Tensor
    reweighting: Reweighting | None


@dataclass(frozen=True)
class GroupStatistics:
    """Of each group's kept responses: how many, their mean reward and the population standard deviation, [groups].

    A group without a kept response has count, mean and std 0.
    """

    count: Tensor
    mean: Tensor
    std: Tensor


def group_statistics(rewards: Tensor, group: Tensor, keep: Tensor) -> GroupStatistics:
    """Baselines of section 2: the mean and the spread of rewards in each group, over the responses in `keep`.

    Args:
        rewards: [responses]; what is not kept may be NaN.
        group: [responses], int64, from 0.
        keep: [responses], bool.

    Returns:
        Statistics in float64. Where all rewards of a group are equal its mean is exactly that reward and its std
        exactly 0: rounding must not make an advantage.
    """
    groups = int(group.max()) + 1 if len(group) else 0
    rewards = rewards.double().masked_fill(~keep, 0)
    zeros = rewards.new_zeros(groups)
    count = zeros.index_add(0, group, keep.double())
    mean = zeros.index_add(0, group, rewards) / count.clamp(min=1)
    lowest = zeros.scatter_reduce(0, group[keep], rewards[keep], "amin", include_self=False)
    highest = zeros.scatter_reduce(0, group[keep], rewards[keep], "amax", include_self=False)
    mean = torch.where(lowest == highest, lowest, mean)
    square = (rewards - mean[group]).square().masked_fill(~keep, 0)
    return GroupStatistics(count, mean, (zeros.index_add(0, group, square) / count.clamp(min=1)).sqrt())


def group_advantage(
    rewards: Tensor, group: Tensor, keep: Tensor, *, std_normalize: bool = False, epsilon: float = 1e-6
) -> Tensor:
    """A = r - mean, or (r - mean) / (std + epsilon) as in GRPO (section 2); 0 where a response is not kept, float64."""
    statistics = group_statistics(rewards, group, keep)
    advantages = rewards.double() - statistics.mean[group]
    if std_normalize:
        scale = statistics.std[group] + epsilon
        advantages = torch.where(scale > 0, advantages / scale, 0)  # epsilon may be 0
    return advantages.masked_fill(~keep, 0)


def balanced_keep(rewards: Tensor, group: Tensor, keep: Tensor, lottery: Tensor) -> Tensor:
    """RED-Drop (section 4): where a group has more negatives (r < mean) than positives, drop extra negatives at random.

    Args:
        rewards, group, keep: as in `group_statistics`; what is not kept already counts on neither side.
        lottery: [responses], a random number each; the negatives with the smallest numbers stay.

    Returns:
        A bool tensor [responses]: `keep` without the dropped responses; negatives no longer outnumber positives.
    """
    above = rewards.double() - group_statistics(rewards, group, keep).mean[group]
    positive = (above >= 0) & keep
    negative = (above < 0) & keep
    groups = int(group.max()) + 1 if len(group) else 0
    places = positive.new_zeros(groups, dtype=torch.int64).index_add(0, group, positive.long())
    # Sorted by group, negatives first and by their number: a negative's place in its group is its rank in the lottery.
    order = torch.argsort(lottery, stable=True)
    order = order[torch.argsort((~negative[order]).long(), stable=True)]
    order = order[torch.argsort(group[order], stable=True)]
    size = torch.bincount(group, minlength=groups)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - (size.cumsum(0) - size)[group[order]]
    return positive | (negative & (rank < places[group]))


def pairwise_advantage(
    rewards: Tensor, group: Tensor, keep: Tensor, *, weights: str = "uniform", temp: float = 1.0
) -> Tensor:
    """A_i = (1/K) sum_j w_ij (r_i - r_j): the gradient of the pairwise surrogate at theta_t (sections 1 and 4).

    Args:
        rewards, group, keep: as in `group_statistics`; K counts the kept responses of a group.
        weights: "uniform", w_ij = 1, gives r_i - mean; "reward-gap", w_ij = |r_i - r_j|, trusts the clear
            comparisons; "product", w_ij = w_i w_j with w_i = exp((r_i - mean) / temp), leans to the good responses.
        temp: the temperature of "product".

    Returns:
        Advantages in float64, 0 where not kept. Time and memory grow with the sum of K^2 over the groups.

    Raises:
        ValueError: `weights` is not one of `PAIRWISE_WEIGHTS`.
    """
    if weights not in PAIRWISE_WEIGHTS:
        raise ValueError(f"pairwise={weights!r} is not one of {', '.join(PAIRWISE_WEIGHTS)}")
    if weights == "uniform":
        return group_advantage(rewards, group, keep)
    statistics = group_statistics(rewards, group, keep)
    centred = (rewards.double() - statistics.mean[group]).masked_fill(~keep, 0)
    size = statistics.count.clamp(min=1)[group]
    if weights == "product":
        # sum_j w_i w_j (r_i - r_j) needs no pairs: w_i * (r_i * sum_j w_j - sum_j w_j r_j).
        weight = (centred / temp).exp().masked_fill(~keep, 0)
        total = torch.zeros_like(statistics.mean)
        weight_sum = total.index_add(0, group, weight)[group]
        weighted_rewards = total.index_add(0, group, weight * centred)[group]
        return weight * (centred * weight_sum - weighted_rewards) / size
    # All groups with the same number of kept responses at once.
    order = torch.argsort(group.masked_fill(~keep, -1), stable=True)[int((~keep).sum()) :]
    advantages = torch.zeros_like(centred)
    for count in statistics.count.unique().tolist():
        members = order[statistics.count[group[order]] == count].view(-1, max(int(count), 1))
        gap = centred[members][:, :, None] - centred[members][:, None]
        advantages[members] = (gap.abs() * gap).sum(2)
    return advantages / size


@dataclass(frozen=True)
class Reweighting:
    """What `adaptive_temperature` decided: T (infinite: no reweighting) and whether T stands at its floor."""

    temperature: float
    at_floor: bool


def adaptive_temperature(advantages: Tensor, tokens: Tensor, *, floor: float = 0.8, steps: int = 60) -> Reweighting:
    """T of adaptive RED-Weight (Chen et al. 2026, arXiv 2606.20002): sum over tokens of A exp(A / T) = 0, T >= floor.

    Only a batch whose mean token advantage is negative is reweighted. The sum falls as T grows, from above 0 (with a
    positive advantage, at small T) to its negative value without weights, so the root is unique; it is found by
    bisection on 1 / T. Where the root lies below the floor, or no advantage is positive, T is the floor.

    Args:
        advantages: A, [responses].
        tokens: how many tokens of each response are in the loss, [responses].
        floor: the least T, above 0.
        steps: halvings of the interval.
    """
    # Groups of right-or-wrong rewards have few different advantages: the sum runs over these.
    advantages, which = advantages.double().unique(return_inverse=True)
    tokens = torch.zeros_like(advantages).index_add(0, which, tokens.double())

    def token_sum(inverse: float) -> float:
        return float((tokens * advantages * (advantages * inverse).exp()).sum())

    if token_sum(0.0) >= 0:
        return Reweighting(float("inf"), at_floor=False)
    low, high = 0.0, 1 / floor
    if token_sum(high) <= 0:
        return Reweighting(floor, at_floor=True)
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if token_sum(middle) < 0 else (low, middle)
    return Reweighting(1 / high, at_floor=False)
