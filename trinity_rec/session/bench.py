"""What Trinity's `mode: bench` has logged of a run: which checkpoints it evaluated, and how they did."""

from __future__ import annotations

from pathlib import Path

from trinity_rec.plot.events import LogsError, Series, read_run

ROLE = "benchmark"  # what Trinity calls its explorer in `mode: bench`


def evaluated_steps(directory: Path) -> set[int]:
    """The steps that a run has results of, 0 for the initial model."""
    finished = [series for tag, series in results(directory).items() if "/finished_task" in tag]
    return {int(step) for series in finished for step in series.steps}


def accuracies(directory: Path, taskset: str, repeats: int) -> dict[int, float]:
    """The mean accuracy on a taskset by step; each of its tasks was answered `repeats` times."""
    series = results(directory).get(f"bench/{taskset}/accuracy/mean@{repeats}")
    return {} if series is None else dict(zip(map(int, series.steps), map(float, series.values), strict=True))


def results(directory: Path) -> dict[str, Series]:
    """Its series by tag, `bench/<taskset>/<metric>`."""
    try:
        logged = read_run(directory).roles.get(ROLE, {})
    except LogsError:
        return {}
    return {tag: series for tag, series in logged.items() if tag.startswith("bench/")}
