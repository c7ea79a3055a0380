"""What is to come costs, from a rate measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import replace

from rich.console import Console

from trinity_rec.lab.grid import Processes
from trinity_rec.lab.tasks import TASKS
from trinity_rec.lab.training import Experiment, train
from trinity_rec.variants import LAGS, VARIANTS


def measured_speeds(tasks: Collection[str], evaluate_every: int, steps: int = 10) -> dict[str, float]:
    """Steps a second of each task in this process, with an evaluation every so many, by the process's own clock.

    What others take of the machine is not in it.
    """
    speeds = {}
    for task in tasks:
        like = Experiment(
            task, LAGS["on_policy"], VARIANTS["rec_grpo"], 0, TASKS[task].rate, steps, evaluate_every=2 * steps
        )
        train(replace(like, steps=2))
        began = time.thread_time()
        train(replace(like, steps=steps))
        once = time.thread_time()
        train(replace(like, steps=2 * steps, evaluate_every=4 * steps))
        step = (time.thread_time() - once - (once - began)) / steps
        evaluation = max(once - began - steps * step, 0.0)
        speeds[task] = 1 / (max(step, 1e-6) + evaluation / evaluate_every)
    return speeds


def seconds(to_come: Mapping[str, int], speeds: Mapping[str, float], steps: Mapping[str, int], workers: int) -> float:
    """So many runs of each task take about so long, given the steps of a run and the steps a second of one process."""
    return sum(runs * steps[task] / speeds[task] for task, runs in to_come.items()) / workers


class TimeLeft:
    """Says what a call costs, from a rate measured in one of the processes, and after some of its runs what is left.

    Args:
        to_come: task -> runs; none of a task that has none.
        steps: task -> those of a run.
        what: that takes so long.
    """

    def __init__(
        self,
        to_come: Mapping[str, int],
        steps: Mapping[str, int],
        evaluate_every: int,
        workers: int,
        processes: Processes,
        console: Console,
        what: str,
    ) -> None:
        self._steps, self._workers, self._console, self._what = steps, workers, console, what
        self._speeds: dict[str, float] = {}
        if to_come:
            self._speeds = processes.submit(measured_speeds, tuple(to_come), evaluate_every).result()
        for task, speed in self._speeds.items():
            runs = f"{to_come[task]} runs of {steps[task]} steps"
            console.print(f"{task}: {runs} to come, {speed:.0f} steps a second and process")
        self._whole, self._began = self._seconds(to_come), time.monotonic()
        if to_come:
            console.print(f"the {what} takes about {self._whole / 60:.0f} min in {workers} processes")

    def say(self, to_come: Mapping[str, int]) -> None:
        """What is left, by the time that the runs so far took."""
        left = self._seconds(to_come)
        if left and self._whole > left:
            left *= (time.monotonic() - self._began) / (self._whole - left)
            self._console.print(f"about {left / 60:.0f} min left of the {self._what}")

    def _seconds(self, to_come: Mapping[str, int]) -> float:
        return seconds(to_come, self._speeds, self._steps, self._workers)
