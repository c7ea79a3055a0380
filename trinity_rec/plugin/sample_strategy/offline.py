"""`sample_strategy: trinity_rec.OfflineSampleStrategy`: the first batches again and again."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from trinity.common.config import BufferConfig, Config
from trinity.common.constants import SyncStyle
from trinity.common.experience import Experience

from trinity_rec.plugin.resume import write_atomically
from trinity_rec.plugin.sample_strategy.base import RECSampleStrategy


class OfflineSampleStrategy(RECSampleStrategy):
    """The paper's offline stress test (section 5): the first `batches` batches are kept and cycled over, never fresh
    data.

    Step s trains on batch (s - 1) mod `batches`. Batches are written to the run's buffer folder as they come, so that a
    resumed run goes on with the same set.
    """

    class Arguments(RECSampleStrategy.Arguments):
        batches: Annotated[
            int,
            Field(
                ge=1,
                description="How many to keep. They must all come from the initial policy, so with sync_style fixed "
                "it is at most sync_interval + sync_offset.",
            ),
        ] = 1

    def __init__(self, buffer_config: BufferConfig, **args: Any) -> None:
        super().__init__(buffer_config, **args)
        self.folder = Path(buffer_config.cache_dir) / "offline"
        self.kept: dict[int, bytes] = {}

    async def read(self, step: int) -> list[Experience]:
        number = (step - 1) % self.args.batches
        if number not in self.kept:
            path = self.folder / f"batch_{number}.experiences"
            if not path.exists():
                write_atomically(path, Experience.serialize_many(await self.exp_buffer.read()))
            self.kept[number] = path.read_bytes()
        return Experience.deserialize_many(self.kept[number])

    async def select(self, exps: list[Experience], step: int, metrics: dict[str, float]) -> list[Experience]:
        metrics["sample/offline_epoch"] = float((step - 1) // self.args.batches)
        return exps

    @classmethod
    def check_config(cls, config: Config, args: dict[str, Any]) -> None:
        sync = config.synchronizer
        initial = sync.sync_interval + sync.sync_offset
        if config.mode == "both" and sync.sync_style == SyncStyle.FIXED and args["batches"] > initial:
            raise ValueError(
                f"algorithm.sample_strategy_args.batches={args['batches']} is more than the {initial} batches that the "
                "initial policy makes (synchronizer.sync_interval + sync_offset); raise sync_interval or keep fewer"
            )
