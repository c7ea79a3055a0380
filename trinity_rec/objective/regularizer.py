"""Regularisers: what is added to the loss to hold the policy near the rollouts.

A rule takes the `Tokens` of some responses and its arguments by name, and returns two tensors: the penalty,
[rows, response] a token or [rows, 1] a response, and its derivative with respect to each token's log pi_theta, of the
same shape or [rows, 1]. One that takes a statistic of the batch gets the `Batch` in their place, and returns a function
from `Tokens` to these. The docstring begins with the derivative, which is what the gradient of a token loses.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from trinity_rec.objective.tokens import Batch, Tokens

Coefficient = Annotated[
    float,
    Field(0.0, ge=0, allow_inf_nan=False, description="The coefficient of the regulariser; takes in OPMD's 1/2."),
]


def k2(x: "Tokens", regularizer_coef: Coefficient) -> "tuple[Tensor, Tensor]":
    """2 coef log rho

    Of the penalty coef (log rho)^2 of each token: OPMD's square, a token at a time (arXiv 2509.24203, section 3;
    upstream's `rec` with k2).
    """
    slope = x.log_ratio * (2 * regularizer_coef)
    return slope * x.log_ratio / 2, slope


def k2_sequence(x: "Tokens", regularizer_coef: Coefficient) -> "tuple[Tensor, Tensor]":
    """2 coef log W

    Of the penalty coef (log W)^2 of each response: OPMD's square as the paper writes it (arXiv 2509.24203, section 3;
    Kimi k1.5).
    """
    return regularizer_coef * x.sum_log_ratio.square(), 2 * regularizer_coef * x.sum_log_ratio


def forward_kl(x: "Tokens", regularizer_coef: Coefficient) -> "tuple[Tensor, Tensor]":
    """-coef

    Of the penalty -coef log pi of each token, up to a constant coef KL(mu || pi), which is AsymRE's lowered baseline
    (arXiv 2509.24203, section 3; upstream's `rec` with forward-kl).
    """
    return -regularizer_coef * x.raw_logprob, x.count.new_full(x.count.shape, -regularizer_coef)


def ess_forward_kl(batch: "Batch") -> "Callable[[Tokens], tuple[Tensor, Tensor]]":
    """-(1 - ESS)

    Of the penalty -(1 - ESS) log pi of each token, up to a constant (1 - ESS) KL(mu || pi), with the ESS of the batch
    (P3O, arXiv 1905.01756; the authors' code takes KL(pi || mu) over all actions).
    """
    size = batch.effective_sample_size

    def penalty(x: "Tokens") -> "tuple[Tensor, Tensor]":
        slope = x.count.new_full(x.count.shape, size - 1)
        return slope * x.raw_logprob, slope

    return penalty


REGULARIZERS: dict[str, Callable[..., Any] | None] = {
    "none": None,
    "k2": k2,
    "k2-sequence": k2_sequence,
    "forward-kl": forward_kl,
    "ess-forward-kl": ess_forward_kl,
}
OF_THE_BATCH = {ess_forward_kl}
