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


def say_cost(
    to_come: Mapping[str, int],
    steps: Mapping[str, int],
    evaluate_every: int,
    workers: int,
    processes: Processes,
    console: Console,
    what: str,
) -> dict[str, float]:
    """Print what is to come and how long it takes; the steps a second of a task, as measured in one of the processes.

    Args:
        to_come: task -> runs; none of a task that has none.
        steps: task -> those of a run.
    """
    speeds = processes.submit(measured_speeds, tuple(to_come), evaluate_every).result() if to_come else {}
    for task, speed in speeds.items():
        runs = f"{to_come[task]} runs of {steps[task]} steps"
        console.print(f"{task}: {runs} to come, {speed:.0f} steps a second and process")
    if speeds:
        minutes = seconds(to_come, speeds, steps, workers) / 60
        console.print(f"the {what} takes about {minutes:.0f} min in {workers} processes")
    return speeds
