"""`sample_strategy: trinity_rec.BalancedSampleStrategy`: as many positives as negatives."""

from typing import Annotated

import torch
from pydantic import Field
from trinity.common.experience import Experience

from trinity_rec.plugin.advantage import leave_out
from trinity_rec.plugin.sample_strategy.base import RECSampleStrategy, sign


class BalancedSampleStrategy(RECSampleStrategy):
    """RED-Drop at the batch: drops random responses of the larger side until positives (A > 0) and negatives are equal.

    Baselines stay those of the whole groups, computed before; `red_drop` recomputes them on what it keeps. Responses
    with A = 0 belong to neither side and stay.
    """

    class Arguments(RECSampleStrategy.Arguments):
        seed: Annotated[int, Field(description="Of the choice; (seed, step) decides it.")] = 0

    async def select(self, exps: list[Experience], step: int, metrics: dict[str, float]) -> list[Experience]:
        signs = [sign(exp) for exp in exps]
        positive = [i for i, sign in enumerate(signs) if sign > 0]
        negative = [i for i, sign in enumerate(signs) if sign < 0]
        fewer, more = sorted((positive, negative), key=len)
        lots = torch.Generator().manual_seed(hash((self.args.seed, step)) % 2**63)
        surplus = torch.randperm(len(more), generator=lots)[len(fewer) :].tolist()
        for i in surplus:
            leave_out(exps[more[i]])
        metrics["sample/dropped_positive"] = float(len(surplus) if more is positive else 0)
        metrics["sample/dropped_negative"] = float(len(surplus) if more is negative else 0)
        return exps
