"""The loss of a batch: checks, the average, and the hand-over of the gradient to autograd."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trinity_rec.objective.metrics import summary
from trinity_rec.objective.not_finite import why_not_finite
from trinity_rec.objective.rows import EXACT, blockwise
from trinity_rec.objective.rules import Parts

_WITNESSES = ("log_ratio", "advantage", "gradient")
_LARGEST = {dtype: torch.finfo(dtype).max for dtype in EXACT}


def evaluate(
    parts: Parts,
    logprob: Tensor,
    old_logprob: Tensor,
    mask: Tensor,
    advantages: Tensor,
    sample_weight: Tensor | None,
    count: int | Tensor | None,
    dp_size: int | Tensor,
) -> tuple[Tensor, dict[str, float]]:
    """See `Objective.__call__`; `count` is what the average is over, tokens or responses."""
    if logprob.dim() not in (1, 2) or not logprob.is_floating_point():
        raise ValueError(
            f"logprob must be a floating-point [batch, response] or [response] tensor, "
            f"got {logprob.dtype} {list(logprob.shape)}"
        )
    for name, tensor in (("old_logprob", old_logprob), ("mask", mask), ("advantages", advantages)):
        if tensor.shape != logprob.shape:
            raise ValueError(f"{name} has shape {list(tensor.shape)}, logprob {list(logprob.shape)}")
    wanted = logprob.requires_grad and torch.is_grad_enabled()
    inputs = [logprob.detach(), old_logprob, mask.bool(), advantages]
    if logprob.dim() == 1:
        inputs = [x.view(1, -1) for x in inputs]
    with torch.no_grad():
        ascent, scale, total, dtype = average(parts, inputs, wanted, sample_weight, count, dp_size)
        if not _is_finite(total, dtype):
            # Padding that holds no finite number, which a product with 0 does not clear? Then without it.
            inputs = [x if x is inputs[2] else x.where(inputs[2], 0) for x in inputs]
            ascent, scale, total, dtype = average(parts, inputs, wanted, sample_weight, count, dp_size)
            if not _is_finite(total, dtype):
                sums = blockwise(parts, inputs, wanted)[1]
                raise FloatingPointError(why_not_finite(inputs, sums, scale, dimensions=logprob.dim()))
        loss = logprob.new_full((), total.get("regulariser", 0.0) - total["policy"], dtype=dtype)
    if wanted:
        loss = _WithGradient.apply(logprob, (loss, ascent, *scale))
    return loss, summary(parts, total, *inputs[0].shape)


def average(
    parts: Parts,
    inputs: Sequence[Tensor],
    wanted: bool,
    sample_weight: Tensor | None,
    count: int | Tensor | None,
    dp_size: int | Tensor,
) -> tuple[Tensor | None, tuple[float, Tensor | None], dict[str, float], torch.dtype]:
    """The gradient over -n, [batch, response]; n as a number and, where responses differ, a factor of each, [batch, 1];
    the totals of all sums over the batch, the policy term and the regulariser times n; the type of the loss.
    """
    ascent, sums = blockwise(parts, inputs, wanted)
    shared, by_row = 1.0, None
    factor = parts.average(sums["tokens"])
    if isinstance(factor, Tensor):
        by_row = factor
    else:
        shared = factor
    if sample_weight is not None:
        weight = sample_weight.to(sums["policy"]).reshape(-1, 1)
        by_row = weight.expand(len(sums["policy"]), 1) if by_row is None else by_row * weight
    if by_row is not None:
        sums |= {name: sums[name] * by_row for name in ("policy", "regulariser") if name in sums}
    total, given = _numbers(sums, [x for x in (count, dp_size) if isinstance(x, Tensor)])
    over: Any = next(given) if isinstance(count, Tensor) else count
    ranks = next(given) if isinstance(dp_size, Tensor) else dp_size
    if over is None:
        over = total["tokens"] if parts.over_tokens else len(inputs[0])
    shared *= ranks / max(over, 1)
    total["policy"] *= shared
    if "regulariser" in total:
        total["regulariser"] *= shared
    return ascent, (shared, by_row), total, sums["policy"].dtype


def _numbers(sums: dict[str, Tensor], given: list[Tensor]) -> tuple[dict[str, float], Iterator[float]]:
    """The sums of all responses together, of `ratio_max` the largest, and numbers that are given beside them."""
    names, columns = list(sums), list(sums.values())
    if len(columns[0]) == 1 and columns[0].device.type == "cpu":
        numbers = [x.item() for x in (*columns, *given)]  # for a few numbers faster than to put them together
    else:
        table = torch.cat(columns, -1)  # [batch, names]
        totals = table.sum(0, dtype=torch.float64)
        if "ratio_max" in sums and len(table):
            place = names.index("ratio_max")
            totals[place] = table[:, place].max()
        # The one transfer from the device of a call, but for what takes a statistic of the batch.
        numbers = torch.cat([totals, *(x.to(totals).reshape(1) for x in given)]).tolist()
    return dict(zip(names, numbers, strict=False)), iter(numbers[len(names) :])


def _is_finite(total: dict[str, float], dtype: torch.dtype) -> bool:
    """Whether loss and gradient are finite numbers of this type: whatever is not shows in one of these sums."""
    if not all(math.isfinite(total[name]) for name in _WITNESSES if name in total):
        return False
    return abs(total.get("regulariser", 0.0) - total["policy"]) <= _LARGEST[dtype]


class _WithGradient(torch.autograd.Function):
    """A loss with its gradient, -n * ascent; n is a number times, where responses differ, a factor of each.

    What autograd need not look at comes as one tuple: each argument of a function costs microseconds.
    """

    @staticmethod
    def forward(ctx, logprob, handed):
        ctx.shape, ctx.handed = logprob.shape, handed
        return handed[0]

    @staticmethod
    def backward(ctx, loss_gradient):
        if torch.is_grad_enabled():  # by create_graph; torch's once_differentiable takes a tenth of a short call
            raise RuntimeError("this loss is differentiable once")
        if ctx.handed is None:
            raise RuntimeError("the gradient of this loss was handed out already: call the objective again")
        (_, ascent, shared, by_row), ctx.handed = ctx.handed, None
        scale = loss_gradient * -shared
        if by_row is not None:
            scale = scale * by_row
        return ascent.mul_(scale).view(ctx.shape), None
