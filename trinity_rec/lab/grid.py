"""Many runs at once, one a process and a core, results kept as they come.

Each run ends as one CSV that appears when it is complete; a grid that was interrupted goes on with the runs whose file
is not there.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trinity_rec.lab.training import Row
from trinity_rec.session.allocator import give_back, with_jemalloc


@dataclass(frozen=True)
class Job:
    """A run.

    Attributes:
        work: gives its rows; a picklable callable, which is told whom to report the number of each step done to.
        path: the file that they go to.
        steps: how many there are.
    """

    work: Callable[[Callable[[int], None]], Sequence[Row]]
    path: Path
    steps: int


class Processes:
    """So many processes of so many threads each, for all grids of a call: to start one, with torch, takes seconds.

    None starts before the first run. Leaving the block cancels the runs that have not begun and waits for the others.

    Args:
        runs: of a process, which then makes way for a new one; by default all that come.
    """

    def __init__(self, workers: int, threads: int = 1, runs: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self._steps = context.Value("l", 0)
        self._allocator = with_jemalloc()
        self._pool = ProcessPoolExecutor(
            workers,
            mp_context=context,
            initializer=_begin,
            initargs=(self._steps, threads),
            max_tasks_per_child=runs,
        )

    def __enter__(self) -> Processes:
        self._allocator.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._allocator.__exit__(None, None, None)

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Picklable work for one of them."""
        return self._pool.submit(work, *arguments)

    @property
    def steps_done(self) -> int:
        """By all runs so far."""
        return self._steps.get_obj().value  # without the lock, which a process that was killed may hold


def run_grid(
    jobs: Sequence[Job], processes: Processes, console: Console, what: str, each: Callable[[], None] = lambda: None
) -> bool:
    """Run the jobs whose file is not there, in order; shows the time left.

    `each` is called whenever another file is there.

    Returns:
        Whether there were any.
    """
    missing = [job for job in jobs if not job.path.exists()]
    if done := len(jobs) - len(missing):
        console.print(f"{what}: {done} of {len(jobs)} runs are there already")
    if missing:
        before = processes.steps_done
        runs = [processes.submit(_run, job) for job in missing]
        total = sum(job.steps for job in missing)
        show(runs, lambda: processes.steps_done - before, total, console, what, each)
    return bool(missing)


def _begin(steps: Any, threads: int) -> None:
    """In a new process; `steps` is where it adds the steps that it makes."""
    global _steps
    _steps = steps
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which lets the runs at work finish
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that was killed tells nobody: the run would go on, and its process wait for another one for ever."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


def _run(job: Job) -> None:
    done = 0

    def report(step: int) -> None:
        nonlocal done
        with _steps.get_lock():
            _steps.value += step - done
        done = step

    write_rows(job.work(report), job.path)
    give_back()  # kept pieces that no later tensor fits into would add up to gigabytes in an hour


def show(
    runs: Sequence[Future[None]],
    steps_done: Callable[[], int],
    total: int,
    console: Console,
    what: str,
    each: Callable[[], None] = lambda: None,
) -> None:
    """Wait for all runs with a bar of their steps and the time left; where there is no terminal, a line at each tenth,
    at the end of a run if the last one is a minute ago, and after five minutes in any case.
    """
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps,"),
        TimeElapsedColumn(),
        TextColumn("gone,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    began = said = time.monotonic()
    tenths, waiting = 0, set(runs)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        while waiting:
            finished, waiting = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for run in finished:
                run.result()
                each()
            done, now = steps_done(), time.monotonic()
            bar.update(task, completed=done)
            due = 10 * done // total > tenths or now - said > (60 if finished else 300)
            if due and not console.is_terminal:
                tenths, said = 10 * done // total, now
                left = (now - began) / max(done, 1) * (total - done) / 60
                runs_done = len(runs) - len(waiting)
                console.print(f"{what}: {runs_done} of {len(runs)} runs, {done} of {total} steps, {left:.0f} min left")


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
