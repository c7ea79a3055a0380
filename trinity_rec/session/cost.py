"""What a run costs: seconds a step, tokens a second, and the memory of all its processes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import psutil

from trinity_rec.session.logs import TrainedStep
from trinity_rec.session.processes import Session, marked_processes

TOKENS = "perf/total_num_tokens"  # of a step, prompts and responses; verl counts them, and Trinity's Tinker trainer
LOOK_EVERY = 2.0  # seconds


@dataclass
class Cost:
    """Of the steps that passed through `steps`, and while `watched`.

    Attributes:
        memory: bytes that all processes of the session held at most, without what they share, as libraries.
    """

    memory: int = 0
    _tokens: list[float] = field(default_factory=list)
    _times: list[float] = field(default_factory=list)

    @contextlib.contextmanager
    def watched(self, session: Session) -> Iterator[Cost]:
        """Look at the session's memory while the block runs."""
        done = threading.Event()
        watcher = threading.Thread(target=self._look, args=(session.mark, done), daemon=True)
        watcher.start()
        try:
            yield self
        finally:
            done.set()
            watcher.join()

    def steps(self, trained: Iterable[TrainedStep]) -> Iterator[TrainedStep]:
        """Pass the steps on, and note when each came and how many tokens it had."""
        for step in trained:
            self._times.append(time.monotonic())
            self._tokens.append(step.metrics.get(TOKENS, float("nan")))
            yield step

    @property
    def seconds_a_step(self) -> float:
        """From the first step to the last, since before the first everything starts; NaN of less than two."""
        gone = len(self._times) - 1
        return (self._times[-1] - self._times[0]) / gone if gone > 0 else float("nan")

    @property
    def tokens_a_second(self) -> float:
        """Of prompts and responses; NaN of less than two steps, or where they are not counted."""
        seconds = self.seconds_a_step * (len(self._times) - 1)
        return sum(self._tokens[1:]) / seconds if seconds > 0 else float("nan")

    def _look(self, mark: str, done: threading.Event) -> None:
        while not done.wait(LOOK_EVERY):
            self.memory = max(self.memory, sum(own_memory(process) for process in marked_processes(mark)))


def own_memory(process: psutil.Process) -> int:
    """Bytes in memory that the process does not share with files or others; 0 where it has ended."""
    with contextlib.suppress(psutil.Error):
        held = process.memory_info()
        return held.rss - getattr(held, "shared", 0)
    return 0
