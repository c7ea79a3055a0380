"""Data weights w: what a token's policy gradient counts, a constant for the gradient.

A rule takes the `Tokens` of some responses and its arguments by name, and returns w, [rows, response] or [rows, 1];
where it caps a weight, the pair of w and what it would be without the cap, from which the share of capped tokens is
counted. One that takes a statistic of the batch gets the `Batch` in their place, and returns a function from `Tokens`
to that. The docstring begins with the formula: rho is the importance ratio pi_theta / mu of a token, s = exp(mean_t log
rho) and W = prod_t rho are those of its response.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trinity_rec.objective.clip import LARGEST_LOG_RATIO, EpsilonHigh, EpsilonLow, log_range

if TYPE_CHECKING:
    from torch import Tensor

    from trinity_rec.objective.tokens import Batch, Tokens

Temperature = Annotated[float, Field(1.0, gt=0, description="The temperature of weight advantage, exp(A / temp).")]
WeightCap = Annotated[float, Field(2.0, gt=0, description="The largest weight of a token.")]
TauPositive = Annotated[
    float, Field(1.0, gt=0, allow_inf_nan=False, description="How steep the gate of weight sapo is where A > 0.")
]
TauNegative = Annotated[
    float, Field(1.05, gt=0, allow_inf_nan=False, description="How steep the gate of weight sapo is where A <= 0.")
]
VespoK = Annotated[float, Field(2.0, ge=0, allow_inf_nan=False, description="k of weight vespo where A >= 0.")]
VespoLambda = Annotated[
    float, Field(3.0, ge=0, allow_inf_nan=False, description="lambda of weight vespo where A >= 0.")
]
VespoKNegative = Annotated[float, Field(3.0, ge=0, allow_inf_nan=False, description="k of weight vespo where A < 0.")]
VespoLambdaNegative = Annotated[
    float, Field(2.0, ge=0, allow_inf_nan=False, description="lambda of weight vespo where A < 0.")
]


def importance_sampling(x: "Tokens") -> "Tensor":
    """rho

    The ratio of the token alone (arXiv 2509.24203, section 2; upstream's `rec`).
    """
    return x.ratio


def gspo_importance_sampling(x: "Tokens") -> "Tensor":
    """s

    The geometric mean of the response's ratios (GSPO, arXiv 2507.18071, section 4.2; upstream's `rec`).
    """
    return x.sequence_ratio


def advantage(x: "Tokens", temp: Temperature) -> "Tensor":
    """exp(A / temp)

    RED-Weight (arXiv 2509.24203, section 4; upstream's `rec`).
    """
    return (x.advantages / temp).exp_()


def capped_importance_sampling(x: "Tokens", weight_cap: WeightCap) -> "tuple[Tensor, Tensor]":
    """min(rho, cap)

    Truncated importance sampling, TIS (verl's rollout correction, TRL's `token_truncate`, slime); DPPO caps the same.
    """
    return x.ratio.clamp(max=weight_cap), x.ratio


def clipped_importance_sampling(
    x: "Tokens", epsilon_low: EpsilonLow, epsilon_high: EpsilonHigh
) -> "tuple[Tensor, Tensor]":
    """clip(rho, 1-eps_low, 1+eps_high)

    CISPO (arXiv 2506.13585): no token loses its gradient. Verl's, Tinker's and Trinity's `cispo` clip on
    both sides, TRL's above only (which is epsilon_low = 1 here).
    """
    return x.ratio.clamp(1 - epsilon_low, 1 + epsilon_high), x.ratio


def sapo(x: "Tokens", tau_positive: TauPositive, tau_negative: TauNegative) -> "Tensor":
    """4 p (1-p) rho, p = sigmoid(tau (rho-1)), tau = tau_pos if A>0 else tau_neg

    The derivative of SAPO's soft gate (4 / tau) p, times rho (arXiv 2511.20347; verl's, TRL's `sapo`). Trinity
    0.6 detaches the value of the gate in its place.
    """
    difference = x.ratio - 1
    # One temperature a token: the middle of the two, moved towards tau_positive where A > 0 and to the other elsewhere.
    positive = x.advantages.sign().clamp_(min=0)
    gate = difference.mul_(positive.mul_(tau_positive - tau_negative).add_(tau_negative)).sigmoid_()
    return (gate - gate.square()).mul_(4).mul_(x.ratio)


def aspo(x: "Tokens", weight_cap: WeightCap) -> "tuple[Tensor, Tensor]":
    """min(1/rho, cap) if A>0 else min(rho, cap)

    The ratio turned over for what is to be made more likely: unlikely right tokens learn most (ASPO, arXiv 2510.06062).
    """
    flip = x.advantages.sign().mul_(-1).add_(0.5).sign_()  # -1 where A > 0, else 1
    raw = flip.mul_(x.log_ratio).clamp_(max=LARGEST_LOG_RATIO).exp_()
    return raw.clamp(max=weight_cap), raw


def gmpo(x: "Tokens", epsilon_low: EpsilonLow, epsilon_high: EpsilonHigh) -> "Tensor":
    """exp(mean_t log of min(rho, 1+eps_high) where A>0, max(rho, 1-eps_low) where A<0)

    The geometric mean of the clipped ratios (GMPO, arXiv 2507.20673; verl's `geo_mean`, which gives its bounds
    as logarithms).
    """
    cut = x.log_ratio.clamp(*log_range(epsilon_low, epsilon_high)).sub_(x.log_ratio)
    cut *= (cut * x.advantages).sign_().clamp_(max=0).neg_()  # where the bound counts: it holds A back
    cut += x.log_ratio
    return (cut.sum(-1, keepdim=True) / x.count.clamp(min=1)).clamp_(max=LARGEST_LOG_RATIO).exp_()


def sequence_importance_sampling(x: "Tokens", weight_cap: WeightCap) -> "tuple[Tensor, Tensor]":
    """min(W, cap)

    Truncated importance sampling of whole responses, Seq-TIS (verl's rollout correction, TRL's `sequence_truncate`).
    """
    return x.product_ratio.clamp(max=weight_cap), x.product_ratio


def topr(x: "Tokens") -> "tuple[Tensor, Tensor]":
    """1 if A>0 else clip(W, 0, 1)

    Tapered off-policy REINFORCE (arXiv 2503.14286, eq. 8). Trinity 0.6 clips the ratio of each token instead of the
    response's.
    """
    raw = x.product_ratio.where(x.advantages <= 0, 1.0)  # W + (1 - W) would be 0 where W is beyond 1 / eps
    return raw.clamp(max=1), raw


def vespo(
    x: "Tokens",
    vespo_k: VespoK,
    vespo_lambda: VespoLambda,
    vespo_k_negative: VespoKNegative,
    vespo_lambda_negative: VespoLambdaNegative,
) -> "Tensor":
    """e^l W^k e^(-l W), (k, l) = (vespo_k, vespo_lambda) if A>=0, the negative ones if A<0

    A soft kernel that is 1 at W = 1 and vanishes on both sides (VESPO, arXiv 2602.10693; TRL's `vespo`).
    """

    def kernel(k: float, decay: float) -> "Tensor":
        return (k * x.sum_log_ratio + decay * (1 - x.product_ratio)).exp_()

    negative = (-x.advantages).sign_().clamp_(min=0)
    positive = kernel(vespo_k, vespo_lambda)
    return positive + (kernel(vespo_k_negative, vespo_lambda_negative) - positive) * negative


def minpro(x: "Tokens") -> "Tensor":
    """rho_t min_(j<t) rho_j, which is 1 before the first

    The smallest ratio before a token in place of their product (MinPRO, arXiv 2601.22718, by its abstract: the equation
    itself was not seen).
    """
    return x.smallest_log_ratio_before.add_(x.log_ratio).clamp_(max=LARGEST_LOG_RATIO).exp_()


def ess_capped_importance_sampling(batch: "Batch") -> "Callable[[Tokens], tuple[Tensor, Tensor]]":
    """min(rho, ESS), ESS = (sum rho)^2 / (n sum rho^2) over the n tokens of the batch

    P3O (arXiv 1905.01756): the staler the batch, the less its tokens count.
    """
    size = batch.effective_sample_size
    return lambda x: (x.ratio.clamp(max=size), x.ratio)


WEIGHTS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "importance_sampling": importance_sampling,
    "gspo_importance_sampling": gspo_importance_sampling,
    "advantage": advantage,
    "capped_importance_sampling": capped_importance_sampling,
    "clipped_importance_sampling": clipped_importance_sampling,
    "sapo": sapo,
    "aspo": aspo,
    "gmpo": gmpo,
    "sequence_importance_sampling": sequence_importance_sampling,
    "topr": topr,
    "vespo": vespo,
    "minpro": minpro,
    "ess_capped_importance_sampling": ess_capped_importance_sampling,
}
OF_THE_BATCH = {ess_capped_importance_sampling}
