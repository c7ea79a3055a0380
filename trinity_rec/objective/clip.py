"""Clip masks M: 1 where a token keeps its policy gradient, 0 where it is clipped away.

A rule takes the `Tokens` of some responses and its arguments by name, and returns M, [rows, response] or [rows, 1].
Its docstring begins with its formula: rho is the importance ratio pi_theta / mu of a token, s = exp(mean_t log rho) and
W = prod_t rho are those of its response. Bounds are inclusive, and compared as logarithms, so that nobody pays for an
exp.

M is made of floats: on a CPU whatever makes or reads bool takes four to fifteen times as long.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from trinity_rec.objective.tokens import Tokens

# exp(80) is far above any clip range and far below float32's largest number: a ratio that is clipped away must not
# overflow, since infinity times M = 0 is not a number.
LARGEST_LOG_RATIO = 80.0

EpsilonLow = Annotated[
    float, Field(0.2, gt=0, le=1, description="The clip range of the ratio ends at 1 - epsilon_low below.")
]
EpsilonHigh = Annotated[
    float, Field(0.2, gt=0, description="The clip range of the ratio ends at 1 + epsilon_high above.")
]
EpsilonLowPrime = Annotated[
    float, Field(0.6, gt=0, le=1, description="The outer bound 1 - epsilon_low_prime of ring, below the clip range.")
]
EpsilonHighPrime = Annotated[
    float, Field(2.0, gt=0, description="The outer bound 1 + epsilon_high_prime of ring, above the clip range.")
]
DualClip = Annotated[
    float, Field(3.0, gt=1, description="With A < 0 a token is also clipped where its ratio is above dual_clip.")
]
Divergence = Annotated[
    float, Field(0.2, gt=0, le=1, allow_inf_nan=False, description="The most that pi - mu may be, in probability.")
]
MaxKL = Annotated[
    float,
    Field(
        0.5,
        ge=0,
        allow_inf_nan=False,
        description="A response with A < 0 is dropped where mean_t log(mu / pi) is above it.",
    ),
]
SecondMoment = Annotated[
    float,
    Field(
        0.04,
        gt=0,
        allow_inf_nan=False,
        description="What the mean (log rho)^2 over the tokens that are kept may be at most.",
    ),
]
PositiveShare = Annotated[
    float, Field(0.4, gt=0, lt=1, description="The share of the policy term that tokens with A > 0 should have.")
]


def one_side(x: "Tokens", epsilon_low: EpsilonLow, epsilon_high: EpsilonHigh) -> "Tensor":
    """1{A>=0, rho<=1+eps_high or A<=0, rho>=1-eps_low}

    PPO's minimum keeps the gradient of these tokens (arXiv 2509.24203, section 2; upstream's `rec` with one-side).
    """
    return _one_side(x.log_ratio, x.advantages, *log_range(epsilon_low, epsilon_high))


def two_side(x: "Tokens", epsilon_low: EpsilonLow, epsilon_high: EpsilonHigh) -> "Tensor":
    """1{1-eps_low <= rho <= 1+eps_high}

    Whatever the sign of A (arXiv 2509.24203, section 2; upstream's `rec` with two-side). With other bounds it is
    IcePop's mask (arXiv 2510.18855).
    """
    return _inside(x.log_ratio, *log_range(epsilon_low, epsilon_high))


def ring(
    x: "Tokens",
    epsilon_low: EpsilonLow,
    epsilon_high: EpsilonHigh,
    epsilon_low_prime: EpsilonLowPrime,
    epsilon_high_prime: EpsilonHighPrime,
) -> "Tensor":
    """1{1-eps_low <= rho <= 1+eps_high} or A>=0, rho<=1-eps'_low or A<=0, rho>=1+eps'_high

    Beyond the outer bounds a token is kept where A pulls it back (arXiv 2509.24203, section 2; upstream's `rec` with
    ring).
    """
    # A little inside of the outer bounds, which are inclusive, so that what lies beyond them is not 0 on them already.
    outer = log_range(epsilon_low_prime, epsilon_high_prime)
    low, high = (math.nextafter(bound, 0) if math.isfinite(bound) else bound for bound in outer)
    beyond = x.log_ratio - x.log_ratio.clamp(low, high)
    back = (beyond * x.advantages).le_(0).mul_(beyond.ne_(0))
    return back.maximum(_inside(x.log_ratio, *log_range(epsilon_low, epsilon_high)))


def gspo_one_side(x: "Tokens", epsilon_low: EpsilonLow, epsilon_high: EpsilonHigh) -> "Tensor":
    """1{A>=0, s<=1+eps_high or A<=0, s>=1-eps_low}

    One-side clipping of whole responses by their ratio s (GSPO, arXiv 2507.18071, section 4.2; upstream's `rec` with
    gspo-one-side; verl's and TRL's losses clip the same).
    """
    return _one_side(x.mean_log_ratio, x.advantages, *log_range(epsilon_low, epsilon_high))


def dual_clip(x: "Tokens", epsilon_low: EpsilonLow, epsilon_high: EpsilonHigh, dual_clip: DualClip) -> "Tensor":
    """1{A>=0, rho<=1+eps_high or A<=0, 1-eps_low<=rho<=c}, c = dual_clip

    One-side clipping that also ends what a token with A < 0 can push (dual-clip PPO, arXiv 1912.09729; always
    part of verl's `vanilla`, with c = 3).
    """
    too_far = (x.advantages * (x.log_ratio - math.log(dual_clip)).clamp_(min=0)).ge_(0)
    return one_side(x, epsilon_low, epsilon_high) * too_far


def dppo_tv(x: "Tokens", divergence_low: Divergence, divergence_high: Divergence) -> "Tensor":
    """1{A>0, pi-mu<=d_high or A<=0, pi-mu>=-d_low}

    The total variation of the sampled token alone (DPPO's binary TV, arXiv 2602.04879, eq. 13; verl's `dppo_tv`).
    """
    return _one_side(x.probability.sub_(x.old_probability), x.advantages, -divergence_low, divergence_high)


def ipo(x: "Tokens", divergence_low: Divergence, divergence_high: Divergence) -> "Tensor":
    """1{-d_low <= pi-mu <= d_high}

    Whatever the sign of A (prime-rl's default loss).
    """
    return _inside(x.probability.sub_(x.old_probability), -divergence_low, divergence_high)


def sequence_two_side(x: "Tokens", epsilon_low: EpsilonLow, epsilon_high: EpsilonHigh) -> "Tensor":
    """1{1-eps_low <= W <= 1+eps_high}

    Keeps or drops whole responses by the product of their ratios (Seq-MIS: verl's rollout correction, TRL's
    `sequence_mask`).
    """
    return _inside(x.sum_log_ratio, *log_range(epsilon_low, epsilon_high))


def geometric_two_side(x: "Tokens", epsilon_low: EpsilonLow, epsilon_high: EpsilonHigh) -> "Tensor":
    """1{1-eps_low <= s <= 1+eps_high}

    Keeps or drops whole responses by the geometric mean of their ratios (Geo-RS: verl's rollout correction).
    """
    return _inside(x.mean_log_ratio, *log_range(epsilon_low, epsilon_high))


def opsm(x: "Tokens", epsilon_low: EpsilonLow, epsilon_high: EpsilonHigh, max_kl: MaxKL) -> "Tensor":
    """1{A>=0, rho<=1+eps_high or A<=0, rho>=1-eps_low}, 0 where A<0, mean_t log(mu/pi)>d; d = max_kl

    One-side clipping that drops wrong responses which the policy has left behind (off-policy sequence masking,
    DeepSeek-V3.2, arXiv 2512.02556, eq. 9; TRL's `off_policy_mask_threshold`).
    """
    left_behind = (x.advantages * (-x.mean_log_ratio - max_kl).clamp_(min=0)).ge_(0)
    return one_side(x, epsilon_low, epsilon_high) * left_behind


def m2po(x: "Tokens", second_moment: SecondMoment) -> "Tensor":
    """0 for the largest (log rho)^2 of T = {A>0, rho>1 or A<0, rho<1} until their mean over the rest of T is <= tau

    tau = second_moment (M2PO, arXiv 2510.01161, section 5.2 and algorithm 1; outside of T nothing is clipped). AReaL
    takes the mean over all tokens, of another pair of policies. Sorts the batch.
    """
    pushed = (x.log_ratio * x.advantages > 0).flatten()
    square = x.log_ratio.square().flatten()
    # Ascending, what is outside of T last: means of the first ones never fall, so those within the budget come first.
    ordered, place = square.where(pushed, math.inf).sort()
    rank = (ordered < math.inf).cumsum(0)
    mean = ordered.where(ordered < math.inf, 0).double().cumsum(0) / rank.clamp(min=1)
    dropped = (mean > second_moment) & (ordered < math.inf)
    return square.new_empty(len(square)).scatter_(0, place, (~dropped).to(square.dtype)).view_as(x.log_ratio)


def bapo(x: "Tokens", positive_share: PositiveShare) -> "Tensor":
    """1{A>=0, rho<=c_high or A<=0, rho>=c_low}, the first bounds for which tokens with A>0 have a share >= rho_0

    of sum |A| min(rho, c_high) and sum |A| max(rho, c_low); rho_0 = positive_share. c_high goes from 1.2 to 3.0 by
    0.05, then c_low from 0.6 to 0.9 by 0.02 (BAPO, arXiv 2510.18927, eq. 8, algorithm 1, section 5). The authors' code
    raises c_low first and compares the two sums by their ratio. Sorts the batch.
    """
    highs = [1.2 + 0.05 * min(step, 36) for step in range(52)]
    lows = [0.6 + 0.02 * max(step - 36, 0) for step in range(52)]
    ratio, advantages = x.ratio.double().reshape(-1), x.advantages.double().reshape(-1)
    high, low = ratio.new_tensor(highs), ratio.new_tensor(lows)
    positive = _sum_of_clamped(ratio, advantages.clamp(min=0), high, above=True)
    negative = _sum_of_clamped(ratio, (-advantages).clamp(min=0), low, above=False)
    enough = positive >= positive_share * (positive + negative)
    enough[-1] = True  # the widest bounds, where none gives the share
    first = enough.to(ratio.dtype).argmax()
    bounds = low[first].log().to(x.log_ratio), high[first].log().to(x.log_ratio)
    return _one_side(x.log_ratio, x.advantages, *bounds)


def _one_side(value: "Tensor", advantages: "Tensor", low: Any, high: Any) -> "Tensor":
    """1 unless `value` leaves [low, high] to the side that A pushes it to."""
    return (value - value.clamp(low, high)).mul(advantages).le_(0)


def _inside(value: "Tensor", low: float, high: float) -> "Tensor":
    return value.clamp(low, high).eq_(value)


def _sum_of_clamped(value: "Tensor", weight: "Tensor", bounds: "Tensor", *, above: bool) -> "Tensor":
    """For each bound c the sum of weight * min(value, c), or of weight * max(value, c) where not `above`."""
    import torch

    value, order = value.sort()
    weight = weight[order]
    start = weight.new_zeros(1)
    mass, moment = (torch.cat([start, part.cumsum(0)]) for part in (weight, weight * value))
    place = torch.searchsorted(value, bounds, right=True)
    if above:
        return moment[place] + bounds * (mass[-1] - mass[place])
    return bounds * mass[place] + moment[-1] - moment[place]


def log_range(epsilon_low: float, epsilon_high: float) -> tuple[float, float]:
    """The bounds [1 - epsilon_low, 1 + epsilon_high] of a ratio as logarithms."""
    return (math.log(1 - epsilon_low) if epsilon_low < 1 else -math.inf), math.log(1 + epsilon_high)


CLIP_MODES: "dict[str, Callable[..., Tensor] | None]" = {
    "none": None,
    "one-side": one_side,
    "two-side": two_side,
    "ring": ring,
    "gspo-one-side": gspo_one_side,
    "dual-clip": dual_clip,
    "dppo-tv": dppo_tv,
    "ipo": ipo,
    "sequence-two-side": sequence_two_side,
    "geometric-two-side": geometric_two_side,
    "opsm": opsm,
    "m2po": m2po,
    "bapo": bapo,
}
OF_THE_BATCH = {m2po, bapo}
