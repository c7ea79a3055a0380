"""Contestants in processes of their own, which take turns: each makes a step when told to, and says what it cost."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path


class WorkerError(RuntimeError):
    """The process ended instead of answering; the message is the last line that it wrote to its log."""


class Worker:
    """A process that answers every line on its standard input with a line of JSON, of numbers by name.

    Args:
        log: where its standard error goes.
    """

    def __init__(self, command: list[str], log: Path, env: Mapping[str, str] | None = None) -> None:
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1, env=env
            )

    def step(self, order: str = "step") -> dict[str, float]:
        """What the process answers to a line."""
        try:
            self._process.stdin.write(f"{order}\n")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            lines = self._log.read_text().strip().splitlines() or ["it wrote nothing"]
            raise WorkerError(lines[-1])
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
