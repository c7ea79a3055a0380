"""Rows through the cache: a batch's gradient and each response's sums, block by block, by the rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trinity_rec.objective.metrics import full_sums
from trinity_rec.objective.rules import Parts
from trinity_rec.objective.tokens import Batch, Tokens, total

# Elements of a block of rows on a CPU: what a rule makes of it fits in a core's second-level cache, and each call of
# torch works long enough to be worth its overhead.
BLOCK = 65_536

# The types of the arithmetic. A gradient is rounded to any other type, and float16 ends at 65,504.
EXACT = (torch.float32, torch.float64)


def blockwise(parts: Parts, inputs: Sequence[Tensor], wanted: bool) -> tuple[Tensor | None, dict[str, Tensor]]:
    """The gradient over -n, [batch, response], where it is wanted, and each response's sums, [batch, 1].

    Args:
        inputs: logprob, old_logprob, mask and advantages, [batch, response] each; the mask is boolean.
    """
    count, length = inputs[0].shape
    rounded = wanted and inputs[0].dtype not in EXACT
    in_blocks = count * length > BLOCK and inputs[0].device.type == "cpu"
    batch = Batch(inputs, max(1, BLOCK // length) if in_blocks else count)
    if parts.of_the_batch:
        parts = parts._replace(**{kind: getattr(parts, kind)(batch) for kind in parts.of_the_batch})
    if batch.only_block is not None:
        ascent, sums = terms(parts, batch.only_block)
        if rounded:
            ascent = ascent.to(inputs[0].dtype)
            sums["gradient"] = total(ascent, torch.float32)
        return ascent, sums
    whole = torch.empty_like(inputs[0]) if wanted else None
    blocks = []
    for x in batch:
        ascent, sums = terms(parts, x)
        if whole is not None:
            place = whole[x.rows].copy_(ascent)
            if rounded:
                sums["gradient"] = total(place, torch.float32)
        blocks.append(sums)
    return whole, {name: torch.cat([sums[name] for sums in blocks]) for name in blocks[0]}


def terms(parts: Parts, x: Tokens) -> tuple[Tensor, dict[str, Tensor]]:
    """M w A - d regulariser / d logprob, [rows, response], and the sums over each response's tokens, [rows, 1]."""
    ascent, keep = x.advantages, None
    sums: dict[str, Any] = {"policy": None}  # first what the average weighs
    if parts.regularizer is not None:
        sums["regulariser"] = None
    sums["tokens"], sums["log_ratio"] = x.count, x.sum_log_ratio
    if parts.clip_mode is not None:
        keep = parts.clip_mode(x)
        # Rules that look at tokens keep padding, where log rho and A are 0.
        by_token = keep.shape == ascent.shape
        sums["kept"] = total(keep) if by_token else keep * x.count + x.mask.shape[-1] - x.count
    if parts.full:
        sums |= full_sums(x, keep)
    if keep is not None:
        ascent, keep = ascent * keep, None  # memory
    if parts.weight is not None:
        weight = parts.weight(x)
        if isinstance(weight, tuple):
            weight, uncapped = weight
            capped = (uncapped - weight).ne_(0)
            sums["capped"] = total(capped.mul_(x.mask)) if capped.shape == ascent.shape else capped * x.count
            capped = uncapped = None  # memory
        ascent = ascent * weight
    sums["policy"] = total(ascent * x.raw_logprob)
    if parts.regularizer is not None:
        penalty, slope = parts.regularizer(x)
        sums["regulariser"] = total(penalty * x.mask if penalty.shape == ascent.shape else penalty)
        ascent = torch.addcmul(ascent, slope, x.mask, value=-1)
    return ascent, sums
