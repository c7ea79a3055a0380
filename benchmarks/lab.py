"""Training steps a second of the lab, one process on one thread: `python benchmarks/lab.py`.

The default experiment of each task (GRPO at sync_interval 20, 16 problems, 8 rollouts each), with an evaluation every
ten steps as in `trinity-rec reproduce`, and with none; the median of several runs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from trinity_rec.lab.tasks import TASKS
from trinity_rec.lab.training import Experiment, train
from trinity_rec.variants import SETTINGS, VARIANTS


def steps_per_second(task: str, steps: int, evaluate_every: int) -> float:
    experiment = Experiment(
        task,
        SETTINGS["sync_interval_20"],
        VARIANTS["rec_grpo"],
        0,
        TASKS[task].rate,
        steps,
        evaluate_every=evaluate_every,
    )
    started = time.perf_counter()
    train(experiment)
    return steps / (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'task':15} {'with evaluation':>22} {'without':>22}   steps a second: median (min to max)")
    for task in TASKS:
        train(Experiment(task, SETTINGS["on_policy"], VARIANTS["rec_grpo"], 0, TASKS[task].rate, steps=5))  # warm up
        cells = []
        for every in (10, 10 * wanted.steps):
            speeds = [steps_per_second(task, wanted.steps, every) for _ in range(wanted.repeats)]
            cells.append(f"{statistics.median(speeds):.1f} ({min(speeds):.1f} to {max(speeds):.1f})")
        print(f"{task:15} {cells[0]:>22} {cells[1]:>22}", flush=True)


if __name__ == "__main__":
    main()
