"""Resuming a run: everything that Trinity noted on its way is brought back to the trainer's last checkpoint.

Trinity's trainer notes its place at each checkpoint, its explorer at each synchronisation, each in files of its own,
written in place. A run that is killed leaves them at different steps or half-written, and Trinity goes on from them as
they are: problems are trained on twice or never, or the run ends early or does not start. So each training step is
entered in a ledger together with how far it had read the explorer's batches, and `settle`, which the configuration
check calls in the driver before any worker starts, sets every file to what the ledger says of the checkpoint.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trinity.common.config import Config
from trinity.manager.synchronizer import Synchronizer
from trinity.utils.log import get_logger

LEDGER = "consumed.jsonl"  # in the run's buffer directory


@dataclass(frozen=True)
class Entry:
    """What the trainer had read when it had the batch of a step.

    Attributes:
        step: the training step, from 1.
        explored: the newest batch of the explorer read so far, from 1; the explorer calls its batches steps too.
        reader: state of the buffer's reader.
    """

    step: int
    explored: int
    reader: dict[str, Any]


class Ledger:
    """A file with one line a training step, appended as the steps go. Lines cut off by a kill are not read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entry: Entry) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(entry)) + "\n")

    def entries(self) -> list[Entry]:
        if not self.path.exists():
            return []
        entries = []
        for line in self.path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                if line.endswith("\n"):
                    entries.append(Entry(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return entries

    def close_at(self, step: int) -> Entry | None:
        """Forget all steps after `step`, which a resumed run makes again; return the entry of `step` itself."""
        kept = [entry for entry in self.entries() if entry.step <= step]
        if self.path.exists():
            write_atomically(self.path, "".join(json.dumps(asdict(entry)) + "\n" for entry in kept))
        return next((entry for entry in reversed(kept) if entry.step == step), None)


def settle(config: Config) -> None:
    """Make the run's directory say one thing: the trainer's last whole checkpoint, and what it had consumed.

    Only for the modes in which this driver starts the trainer; in `both` and `colocate` also the explorer goes back to
    where that checkpoint had read, and makes again what was lost with the queue. Doing it twice changes nothing.

    Raises:
        ValueError: there is a checkpoint, but which one cannot be told.
    """
    if config.mode not in ("both", "colocate", "train") or not config.checkpoint_job_dir:
        return
    job = Path(config.checkpoint_job_dir)
    if config.mode != "train" and not config.ray_namespace:
        # Trinity's synchronizer outlives a killed driver for a while; in a namespace of its own a run never meets it.
        config.ray_namespace = "/".join(filter(None, [config.project, config.group, config.name, f"{time.time():.0f}"]))
    if not job.is_dir():
        return
    for unfinished in job.glob("**/.writing-*"):
        unfinished.unlink()
    step = last_checkpoint(job, remote=config.model.tinker.enable)
    entry = Ledger(job / "buffer" / LEDGER).close_at(step)
    _settle_trainer(job, config, step, entry)
    _settle_sampler(job, step)
    if config.mode != "train":
        per_step = (config.buffer.train_batch_size or 0) / (config.buffer.batch_size * config.algorithm.repeat_times)
        explored = entry.explored if entry else math.ceil(step * (per_step or 1))
        _settle_explorer(job, config, explored)


def last_checkpoint(job: Path, remote: bool) -> int:
    """The step of the newest whole checkpoint, 0 if there is none; repairs the file that should say so.

    Args:
        remote: the weights are Tinker's, and a checkpoint here is the file with their path.
    """
    latest = job / "latest_checkpointed_iteration.txt"
    if not latest.exists():
        return 0
    noted = latest.read_text(encoding="utf-8").strip()
    if not remote:
        if not noted.isdecimal():
            raise ValueError(f"{latest} does not name a step: {noted[:80]!r}; write the last good one into it")
        return int(noted)
    whole = [
        int(path.parent.name.removeprefix("global_step_"))
        for path in job.glob("global_step_*/remote_checkpoint_path.txt")
        if path.read_text(encoding="utf-8").strip()
    ]
    step = int(noted) if noted.isdecimal() and int(noted) in whole else max(whole, default=0)
    if step:
        write_atomically(latest, str(step))
    else:
        latest.unlink()
    return step


def _settle_trainer(job: Path, config: Config, step: int, entry: Entry | None) -> None:
    meta = job / f"{config.trainer.name}_meta.json"
    if not step:
        meta.unlink(missing_ok=True)
    elif entry is not None:
        state = {"latest_iteration": step, "sample_strategy_state": entry.reader}
        write_atomically(meta, json.dumps(state, indent=2))


def _settle_sampler(job: Path, step: int) -> None:
    """Forget weights that were handed to the explorer after the checkpoint: they are of a training that is undone."""
    latest = job / "latest_state_dict_iteration.txt"
    path = job / f"global_step_{step}" / "remote_sampler_path.txt"
    if latest.exists() and not (latest.read_text().strip() == str(step) and path.exists() and path.read_text().strip()):
        latest.unlink()


def _settle_explorer(job: Path, config: Config, explored: int) -> None:
    meta = job / f"{config.explorer.name}_meta.json"
    if not explored:
        meta.unlink(missing_ok=True)
        return
    inputs = config.buffer.explorer_input
    if len(inputs.tasksets) > 1:
        get_logger(__name__).warning(
            f"several tasksets: which problems the checkpoint had seen is not known; the explorer goes on from {meta}"
        )
        return
    read = {"current_index": explored * config.buffer.batch_size}
    write_atomically(meta, json.dumps({"latest_iteration": explored, "taskset_states": [read]}, indent=2))
    sync = config.synchronizer
    if 0 < sync.sync_offset <= explored:
        # Trinity counts the offset from step 0. The resumed queue is empty, so the head start is needed again.
        interval = sync.explorer_sync_interval or sync.sync_interval
        sync.sync_offset += explored // interval * interval


def await_resumed_weights(namespace: str) -> None:
    """Let the explorer of a resumed run wait for the checkpoint's weights; called in the trainer, before it prepares.

    Trinity has the explorer fetch weights while the trainer is still sending them. The synchronizer starts at version
    0, so the explorer is told that the initial model is the newest, and samples a whole interval from it. At -1, the
    explorer's own version before it has any, it waits.
    """
    try:
        synchronizer = Synchronizer.get_actor(namespace=namespace)
    except ValueError:  # not inside a run: there is no explorer
        return
    synchronizer.set_model_state_dict.remote(None, -1)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Replace a file by its new content at once: it is there whole, old or new, whenever the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".writing-", delete=False) as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)
