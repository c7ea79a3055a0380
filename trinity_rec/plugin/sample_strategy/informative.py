"""`sample_strategy: trinity_rec.InformativeSampleStrategy`: groups without reward spread left out."""

from typing import Annotated, Any

from pydantic import Field
from trinity.common.config import Config
from trinity.common.constants import SyncStyle
from trinity.common.experience import Experience

from trinity_rec.declared import ReadUnder
from trinity_rec.plugin.advantage import leave_out
from trinity_rec.plugin.sample_strategy.base import RECSampleStrategy, sign


class InformativeSampleStrategy(RECSampleStrategy):
    """Leaves out groups without reward spread (as in DAPO): their advantages are all 0, they only dilute the mean."""

    class Arguments(RECSampleStrategy.Arguments):
        refill: Annotated[
            bool,
            Field(
                description="Read as many more experiences as were left out, again and again until the batch is full "
                "or max_reads is reached. Needs a sync_style under which the explorer does not wait for the trainer."
            ),
        ] = False
        max_reads: Annotated[
            int,
            Field(
                ge=1,
                description="How often to read in one step, the first included; what is still missing then is masked.",
            ),
            ReadUnder("refill", (True,)),
        ] = 8

    async def select(self, exps: list[Experience], step: int, metrics: dict[str, float]) -> list[Experience]:
        informative, idle = _by_information(exps)
        reads = 1
        left_out = len(idle)
        while self.args.refill and idle and reads < self.args.max_reads:
            try:
                more = await self.exp_buffer.read(batch_size=len(idle))
            except (StopAsyncIteration, TimeoutError):  # the explorer has ended: train on what there is
                break
            reads += 1
            fresh, idle_again = _by_information(more)
            left_out += len(idle_again)
            informative += fresh
            idle = idle_again
        for exp in idle:
            leave_out(exp)
        metrics["sample/uninformative"] = float(left_out)
        metrics["sample/masked"] = float(len(idle))
        metrics["sample/reads"] = float(reads)
        return informative + idle

    @classmethod
    def check_config(cls, config: Config, args: dict[str, Any]) -> None:
        if args["refill"] and config.mode == "both":
            style = config.synchronizer.sync_style
            if style not in (SyncStyle.EXPLORER_DRIVEN, SyncStyle.FULLY_ASYNC):
                raise ValueError(
                    "algorithm.sample_strategy_args.refill=True would starve under synchronizer.sync_style="
                    f"{style.value}: the explorer waits for the trainer; use explorer_driven or fully_async"
                )


def _by_information(exps: list[Experience]) -> tuple[list[Experience], list[Experience]]:
    """Experiences of groups with and without a nonzero advantage, in order."""
    speaking = {exp.eid.tid for exp in exps if sign(exp) != 0}
    informative = [exp for exp in exps if exp.eid.tid in speaking]
    return informative, [exp for exp in exps if exp.eid.tid not in speaking]
