"""The maths of data shaping, in pure torch: from the rewards of grouped responses to one advantage a response.

A group holds the K responses to one prompt. Every function works on all groups of a batch at once: `rewards` and the
results are [responses], and `group` [responses] numbers each response's group from 0. Sources are sections of
"Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm" (arXiv 2509.24203) unless another is named.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from trinity_rec.shaping import PairwiseWeights

PAIRWISE_WEIGHTS = get_args(PairwiseWeights)


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
