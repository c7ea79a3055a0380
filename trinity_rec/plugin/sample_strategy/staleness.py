"""`sample_strategy: trinity_rec.StalenessSampleStrategy`: old experiences count less, or not at all."""

from typing import Annotated, Any

from pydantic import Field
from trinity.common.experience import Experience

from trinity_rec.plugin.advantage import leave_out
from trinity_rec.plugin.sample_strategy.base import RECSampleStrategy, add_columns


class StalenessSampleStrategy(RECSampleStrategy):
    """Weights or drops experiences by their age: how many model versions the policy has moved on since they were
    sampled.
    """

    class Arguments(RECSampleStrategy.Arguments):
        decay: Annotated[
            float,
            Field(
                gt=0,
                le=1,
                description="An experience of age a counts decay ** a in the loss (policy term and regulariser); "
                "1 weights nothing.",
            ),
        ] = 1.0
        max_staleness: Annotated[
            int | None, Field(ge=0, description="Older experiences are left out; null leaves none out.")
        ] = None

    async def select(self, exps: list[Experience], step: int, metrics: dict[str, float]) -> list[Experience]:
        # The trainer enters step s with version s - 1; Trinity's Tinker explorer calls the initial version -1, not 0.
        current = step - 1
        ages = [max(current - max(exp.info.get("model_version", current), 0), 0) for exp in exps]
        weights = [self.args.decay**age for age in ages]
        stale = [self.args.max_staleness is not None and age > self.args.max_staleness for age in ages]
        for exp, is_stale in zip(exps, stale, strict=True):
            if is_stale:
                leave_out(exp)
        if self.args.decay != 1:
            for exp, weight in zip(exps, weights, strict=True):
                add_columns([exp], {"sample_weight": weight})
        metrics["sample/staleness_mean"] = sum(ages) / len(ages)
        metrics["sample/staleness_max"] = float(max(ages))
        metrics["sample/staleness_weight_mean"] = sum(weights) / len(weights)
        metrics["sample/stale_dropped"] = float(sum(stale))
        return exps

    @classmethod
    def supplies_sample_weight(cls, args: dict[str, Any]) -> bool:
        return args["decay"] != 1
