"""Clip masks M: 1 where a token keeps its policy gradient, 0 where it is clipped away.

A rule takes the `Tokens` of some responses and its arguments by name, and returns M, [rows, response] or [rows, 1]. One
that takes a statistic of the batch gets the `Batch` in their place, and returns a function from `Tokens` to M. The
docstring begins with the formula: rho is the importance ratio pi_theta / mu of a token, s = exp(mean_t log rho) and
W = prod_t rho are those of its response. Bounds are inclusive, and compared as logarithms, so that nobody pays for an
exp.

M is made of floats: on a CPU whatever makes or reads bool takes four to fifteen times as long.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from trinity_rec.objective.tokens import Batch, Tokens

# exp(80) is far above any clip range and far below float32's largest number: a ratio that is clipped away must not
# overflow, since infinity times M = 0 is not a number.
LARGEST_LOG_RATIO = 80.0

# At which number the sum of the smallest gets to a value is estimated from a sample of so many of them, and looked for
# within so many of these on both sides, about two deviations of the estimate.
SAMPLE, MARGIN = 512, 24

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


def m2po(batch: "Batch", second_moment: SecondMoment) -> "Callable[[Tokens], Tensor]":
    """0 for the largest (log rho)^2 of T = {A>0, rho>1 or A<0, rho<1} until their mean over the rest of T is <= tau

    tau = second_moment (M2PO, arXiv 2510.01161, section 5.2 and algorithm 1; outside of T nothing is clipped). AReaL
    takes the mean over all tokens, of another pair of policies. Of equal squares the last go first.
    """
    import torch

    # A mean is at most tau where what tokens have above it is no more than what others lack.
    above = torch.cat([_above(x, second_moment) for x in batch])
    excess = above.sum()
    if not excess > 0:
        return lambda x: x.count.new_ones(x.count.shape)
    values = above[above > 0]
    smallest, fit = _first_that_does_not_fit(values, room=float(values.sum() - excess))
    keep = (smallest - above).sign_().clamp_(min=0)
    if fit:
        keep.view(-1)[(above == smallest).flatten().nonzero()[:fit]] = 1
    return lambda x: keep[x.rows]


def bapo(batch: "Batch", positive_share: PositiveShare) -> "Callable[[Tokens], Tensor]":
    """1{A>=0, rho<=c_high or A<=0, rho>=c_low}, the first bounds for which tokens with A>0 have a share >= rho_0

    of sum |A| min(rho, c_high) and sum |A| max(rho, c_low); rho_0 = positive_share. c_high goes from 1.2 to 3.0 by
    0.05, then c_low from 0.6 to 0.9 by 0.02 (BAPO, arXiv 2510.18927, eq. 8, algorithm 1, section 5). The authors' code
    raises c_low first and compares the two sums by their ratio.
    """
    highs = [1.2 + 0.05 * step for step in range(37)]
    loss, gains = 0.0, []
    for x in batch:
        ratio, advantages = x.ratio.flatten(), x.advantages.flatten()
        loss -= float(ratio.clamp(min=0.6).dot(advantages.clamp(max=0)))
        gains.append((ratio, advantages.clamp(min=0)))

    def is_enough(high: float) -> bool:
        gain = sum(float(ratio.clamp(max=high).dot(advantages)) for ratio, advantages in gains)
        return gain >= positive_share * (gain + loss)

    # The share grows with c_high, hence the bisection. It falls with c_low, which therefore stays or goes to its end.
    if is_enough(highs[0]):
        low, high = 0.6, highs[0]
    elif is_enough(highs[-1]):
        low, high = 0.6, highs[bisect_left(highs, True, 1, len(highs) - 1, key=is_enough)]
    else:
        low, high = 0.6 + 15 * 0.02, highs[-1]
    return lambda x: _one_side(x.log_ratio, x.advantages, math.log(low), math.log(high))


def _above(x: "Tokens", second_moment: float) -> "Tensor":
    """(log rho)^2 - tau for the tokens that A pushes on, 0 for the others, [rows, response]."""
    pushed = x.advantages.sign().mul_(x.log_ratio).clamp_(min=0)
    return pushed.square().sub_(pushed.sign_(), alpha=second_moment)


def _first_that_does_not_fit(values: "Tensor", room: float) -> tuple[float, int]:
    """Of positive `values`, added up from the smallest on, the first that takes the sum beyond `room`, and how many
    equal ones come before it. All of them together are beyond.
    """
    import torch

    # As in quickselect only a part is sorted: that between two values of a sample, where the sum should get there.
    while len(values) > 2 * SAMPLE:
        sample = values[:: len(values) // SAMPLE].sort().values
        at = int(torch.searchsorted(sample.cumsum(0), room * len(sample) / len(values)))
        low, high = sample[max(at - MARGIN, 0)], sample[min(at + MARGIN, len(sample) - 1)]
        below = float((low - values).sign_().clamp_(min=0).mul_(values).sum())
        rest = values[values.clamp(low, high) == values]
        if below > room:
            rest, below = values[values < low], 0.0
        elif below + float(rest.sum()) <= room:
            rest, below = values[values > high], below + float(rest.sum())
        if len(rest) in (0, len(values)):
            break
        values, room = rest, room - below
    ordered = values.sort().values
    fit = min(int(torch.searchsorted(ordered.cumsum(0), room, right=True)), len(ordered) - 1)
    first = float(ordered[fit])
    return first, fit - int(torch.searchsorted(ordered, first))


def _one_side(value: "Tensor", advantages: "Tensor", low: Any, high: Any) -> "Tensor":
    """1 unless `value` leaves [low, high] to the side that A pushes it to."""
    return value.clamp(low, high).sub_(value).mul(advantages).ge_(0)


def _inside(value: "Tensor", low: float, high: float) -> "Tensor":
    return value.clamp(low, high).eq_(value)


def log_range(epsilon_low: float, epsilon_high: float) -> tuple[float, float]:
    """The bounds [1 - epsilon_low, 1 + epsilon_high] of a ratio as logarithms."""
    return (math.log(1 - epsilon_low) if epsilon_low < 1 else -math.inf), math.log(1 + epsilon_high)


CLIP_MODES: dict[str, Callable[..., Any] | None] = {
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
