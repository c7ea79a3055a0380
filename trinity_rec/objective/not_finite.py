"""Which number kept a loss from being finite."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SUMS = ("policy", "regulariser", "log_ratio", "advantage", "gradient")


def why_not_finite(
    inputs: Sequence[Tensor],
    sums: dict[str, Tensor],
    scale: tuple[float, Tensor | None],
    *,
    dimensions: int,
) -> str:
    """The first token, or response, that keeps a loss from being finite, in one line; here transfers may cost.

    Args:
        inputs: logprob, old_logprob, mask and advantages, [batch, response] each.
        sums: over each response's tokens, [batch, 1] each.
        scale: n, a number and a factor of each response, [batch, 1].
        dimensions: of the logprob that the caller gave.
    """
    logprob, old_logprob, mask, advantages = inputs
    found = []
    for name, x in (("logprob", logprob), ("old_logprob", old_logprob), ("advantages", advantages)):
        for row, token in (mask & ~x.isfinite()).nonzero()[:1].tolist():
            found.append((row, token, name, float(x[row, token])))
    if found:
        row, token, name, value = min(found)
        place = f"{row}, {token}" if dimensions == 2 else f"{token}"
        return f"{name}[{place}] is {value}: the loss of a token that counts needs a finite number"
    if not math.isfinite(scale[0]) or (scale[1] is not None and not scale[1].isfinite().all()):
        return "sample_weight, batch_num_tokens, global_batch_size or dp_size is not a finite number"
    by_row = torch.cat([sums[name] for name in _SUMS if name in sums], -1)
    for row in (~by_row.sum(-1).isfinite()).nonzero()[:1].flatten().tolist():
        log_ratio = (logprob[row].double() - old_logprob[row].double())[mask[row]]
        largest = float(advantages[row][mask[row]].abs().max())
        return (
            f"the loss of response {row} overflows: log ratios from {float(log_ratio.min()):.3g} to "
            f"{float(log_ratio.max()):.3g}, advantages up to {largest:.3g}"
        )
    return "the loss overflows, although that of each response does not"
