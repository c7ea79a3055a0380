"""Many runs at once, one a process and a core, results kept as they come.

Each run ends as one CSV that appears when it is complete; a grid that was interrupted goes on with the runs whose file
is not there.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trinity_rec.lab.training import Row


@dataclass(frozen=True)
class Job:
    """A run: what gives its rows (a picklable callable), and the file that they go to."""

    work: Callable[[], Sequence[Row]]
    path: Path


def run_grid(jobs: Sequence[Job], workers: int, console: Console, what: str) -> None:
    """Run the jobs whose file is not there, in `workers` processes of one thread each; shows the time left."""
    missing = [job for job in jobs if not job.path.exists()]
    if done := len(jobs) - len(missing):
        console.print(f"{what}: {done} of {len(jobs)} runs are there already")
    if missing:
        with _pool_at_work(missing, workers) as finished:
            show(finished, len(missing), console, what)


@contextmanager
def _pool_at_work(jobs: Sequence[Job], workers: int) -> Iterator[Iterator[None]]:
    """Gives an iterator that waits for one run after the other; leaving the block cancels those that have not begun."""
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread)
    try:
        futures = [pool.submit(_run, job) for job in jobs]
        yield (future.result() for future in as_completed(futures))
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets the runs at work finish
    torch.set_num_threads(1)


def _run(job: Job) -> None:
    write_rows(job.work(), job.path)


def show(finished: Iterable[None], total: int, console: Console, what: str) -> None:
    """Wait for all of `finished` with a bar and the time left; where there is no terminal, a line for each tenth."""
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("runs,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        for number, _ in enumerate(finished, 1):
            bar.update(task, completed=number)
            if not console.is_terminal and (number % max(1, total // 10) == 0 or number == total):
                console.print(f"{what}: {number} of {total} runs")


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """As CSV, all at once: a reader finds the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    with unfinished.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in rows)
    unfinished.replace(path)


def read_rows(path: Path) -> dict[str, np.ndarray]:
    """The columns of a file that `write_rows` wrote, [rows] each."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
