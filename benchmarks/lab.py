"""Training steps a second of the lab, one process on one thread: `python benchmarks/lab.py`.

The default experiment of each task (GRPO at sync_interval 20, 16 problems, 8 rollouts each), with an evaluation every
ten steps as in `trinity-rec reproduce`; the median of several runs.

    python benchmarks/lab.py --against ../another/checkout

measures the code of that checkout too, on the models of this one, in turns. Seconds are then the process's CPU time,
since a busy machine slows both alike, and the speed-up is the median of the ratios of runs that followed each other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from turns import Worker

from trinity_rec.lab.tasks import TASKS

HERE = Path(__file__).resolve()
WORKER = "--worker"


def work(models: Path, steps: int) -> None:
    """Answer each line of a task, a rate and a seed on standard input with the seconds of a run."""
    import torch

    from trinity_rec.lab import reproduce, training

    torch.set_num_threads(1)
    training.ASSETS = models
    setting, variant = reproduce.SETTINGS["sync_interval_20"], reproduce.VARIANTS["rec_grpo"]
    for line in sys.stdin:
        task, rate, seed = line.split()
        wall, cpu = time.perf_counter(), time.process_time()
        training.train(training.Experiment(task, setting, variant, int(seed), float(rate), steps))
        print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}), flush=True)


def started(checkout: Path, models: Path, steps: int, log: Path) -> Worker:
    from trinity_rec.session.allocator import jemalloc  # a worker's checkout may be from before it

    command = [sys.executable, str(HERE), WORKER, str(models), str(steps)]
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    if (checkout / "trinity_rec" / "session" / "allocator.py").exists():  # as its own grids have it
        environment |= jemalloc()
    return Worker(command, log, environment)


def shown(values: list[float], number: Callable[[float], str]) -> str:
    return f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    wanted = parser.parse_args()
    own, clock = HERE.parents[1], "cpu" if wanted.against else "wall"
    models = own / "trinity_rec" / "lab" / "assets"
    checkouts = [own, *([wanted.against.resolve()] if wanted.against else [])]
    with tempfile.TemporaryDirectory() as logs:
        workers = [started(each, models, wanted.steps, Path(logs) / str(n)) for n, each in enumerate(checkouts)]
        print("steps a second: median (min to max)")
        for name, task in TASKS.items():
            seconds: list[list[float]] = [[] for _ in workers]
            for turn in range(wanted.repeats + 1):  # the first one warms up
                for spent, worker in zip(seconds, workers, strict=True):
                    took = worker.step(f"{name} {task.rate} {turn}")[clock]  # a seed twice would not sample anew
                    spent += [took] if turn else []
            speeds = [shown([wanted.steps / each for each in spent], "{:.1f}".format) for spent in seconds]
            ratios = [other / here for here, other in zip(seconds[0], seconds[-1], strict=True)]
            more = f"; before {speeds[1]}: {shown(ratios, '{:.2f}'.format)} times" if wanted.against else ""
            print(f"{name:15} {speeds[0]}{more}", flush=True)
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    if WORKER in sys.argv:
        work(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
