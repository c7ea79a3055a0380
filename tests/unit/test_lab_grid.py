"""A grid's progress where there is no terminal, as often as one looks at a log and no more; and its end."""

import io
import subprocess
import sys
import time
from concurrent.futures import Future
from itertools import count
from types import SimpleNamespace

import psutil
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


GRID = """
import os, sys, time
from pathlib import Path
from rich.console import Console
from trinity_rec.lab.grid import Job, Processes, run_grid

def for_ever(report):
    Path(sys.argv[1]).write_text(str(os.getpid()))
    time.sleep(600)

if __name__ == "__main__":
    with Processes(1) as processes:
        run_grid([Job(for_ever, Path("never.csv"), 1)], processes, Console(), "a grid")
"""


def test_no_run_outlives_a_parent_that_was_killed(tmp_path):
    script, said = tmp_path / "grid.py", tmp_path / "pid"
    script.write_text(GRID)
    parent = subprocess.Popen([sys.executable, str(script), str(said)], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not (said.exists() and said.read_text()):
        assert parent.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    run = psutil.Process(int(said.read_text()))
    parent.kill()
    parent.wait()
    try:
        run.wait(timeout=30)
    except psutil.TimeoutExpired:
        run.kill()
        raise
