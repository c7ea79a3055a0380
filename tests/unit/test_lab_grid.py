"""A grid's progress where there is no terminal: as often as one looks at a log, and no more."""

import io
from concurrent.futures import Future
from itertools import count
from types import SimpleNamespace

from rich.console import Console

from trinity_rec.lab import grid


def said(monkeypatch, *, seconds: int, steps: int, total: int) -> list[str]:
    """The lines of a single run that makes a step in every look, each so many seconds after the last one."""
    looks, run, console = count(), Future(), Console(file=io.StringIO(), width=120)
    monkeypatch.setattr(grid, "time", SimpleNamespace(monotonic=lambda: next(looks) * seconds))
    monkeypatch.setattr(grid, "wait", lambda runs, **_: (runs, set()) if run.done() else (set(), runs))
    done = 0

    def steps_done() -> int:
        nonlocal done
        done += 1
        if done == steps:
            run.set_result(None)
        return done

    grid.show([run], steps_done, total, console, "counting")
    return console.file.getvalue().splitlines()


def test_a_long_run_says_so_every_five_minutes(monkeypatch):
    lines = said(monkeypatch, seconds=100, steps=12, total=1000)
    assert lines == [
        "counting: 0 of 1 runs, 4 of 1000 steps, 1660 min left",
        "counting: 0 of 1 runs, 8 of 1000 steps, 1653 min left",
        "counting: 0 of 1 runs, 12 of 1000 steps, 1647 min left",
        "counting: 1 of 1 runs, 13 of 1000 steps, 1645 min left",
    ]


def test_short_ones_say_so_at_each_tenth(monkeypatch):
    lines = said(monkeypatch, seconds=1, steps=49, total=50)
    assert [line.split(", ")[1] for line in lines] == [f"{steps} of 50 steps" for steps in range(5, 51, 5)]
