"""Averages n: what the gradient of a token counts in the loss of a batch.

A rule takes how many tokens of each response count, [rows, 1], and its arguments by name; n is what it returns, over
the number of responses of the mini-batch, or over that of its tokens for `token_mean`. Names are those of Trinity and
verl.
"""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ScaleFactor = Annotated[
    float | None,
    Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="What seq-mean-token-sum-norm divides a response's sum by, a count of tokens, the same for every "
        "response (verl's own default, the padded length, differs between micro-batches and backends).",
    ),
]


def token_mean(tokens: "Tensor") -> "Tensor | float":
    """1 / (tokens of the mini-batch): every token counts the same."""
    return 1.0


def seq_mean_token_sum(tokens: "Tensor") -> "Tensor | float":
    """1 / responses: a response counts by its length."""
    return 1.0


def seq_mean_token_mean(tokens: "Tensor") -> "Tensor | float":
    """1 / (responses |y|): every response counts the same."""
    return 1 / tokens.clamp(min=1)


def seq_mean_token_sum_norm(tokens: "Tensor", loss_scale_factor: ScaleFactor) -> "Tensor | float":
    """1 / (responses L), L = loss_scale_factor."""
    return 1 / (loss_scale_factor or 1)


LOSS_AGG_MODES: "dict[str, Callable[..., Tensor | float] | None]" = {
    "token-mean": token_mean,
    "seq-mean-token-sum": seq_mean_token_sum,
    "seq-mean-token-mean": seq_mean_token_mean,
    "seq-mean-token-sum-norm": seq_mean_token_sum_norm,
}


def usual_average(clip_mode: object) -> str:
    """The average of an objective that names none: GSPO clips whole responses, so each counts the same there."""
    return "seq-mean-token-mean" if clip_mode == "gspo-one-side" else "token-mean"
