"""How a run is shown while it goes on: alive on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from trinity_rec.session.logs import TrainedStep


@contextmanager
def doing(console: Console, what: str) -> Iterator[None]:
    """A spinner on a terminal, a line elsewhere."""
    if console.is_terminal:
        with console.status(f"{what} …"):
            yield
    else:
        console.print(f"{what} …")
        yield


def watch(trained: Iterator[TrainedStep], total: int, console: Console) -> Iterator[TrainedStep]:
    """Pass the steps on and show them: a bar on a terminal, elsewhere a line for each tenth of the run."""
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[news]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=total, news="Trinity is starting")
        first = None
        for step in trained:
            first = first or (step.number, time.monotonic())
            news = f"reward {step.reward:.2f}"
            if gone := step.number - first[0]:
                news += f", {(time.monotonic() - first[1]) / gone * (total - step.number):.0f} s left"
            bar.update(task, completed=step.number, news=news)
            if not console.is_terminal and (step.number % max(1, total // 10) == 0 or step.number == total):
                console.print(f"step {step.number}/{total}, {news}")
            yield step
