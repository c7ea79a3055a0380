"""The map of the claims end to end at a scale of seconds: what it writes, that it goes on, and what it refuses."""

import json
import re
from dataclasses import replace

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.in_process import InProcess
from trinity_rec.cli import app
from trinity_rec.lab import grid
from trinity_rec.lab.regimes import run
from trinity_rec.lab.regimes.rules import MAPPED
from trinity_rec.lab.regimes.run import Map, regimes
from trinity_rec.lab.reproduce import OtherResults

CONSOLE = Console(quiet=True)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """REINFORCE and GRPO at one lag and two rates."""
    monkeypatch.setitem(run.LAGS_OF, "addition", ("sync_interval_4",))
    monkeypatch.setattr(grid, "ProcessPoolExecutor", InProcess)
    return Map(
        tmp_path,
        ["addition"],
        (MAPPED["C3"],),
        factors=(1.0, 2.0),
        seeds=(2000, 2001),
        steps={"addition": 6},
        evaluate_every=2,
    )


def test_a_map_that_was_interrupted_goes_on_to_the_bit_and_refuses_other_rules(here, monkeypatch):
    jobs = here.jobs(("addition", "sync_interval_4"))
    assert len(jobs) == 2 * 2 * 2
    for job in jobs[:2]:  # as a call that was killed leaves them
        grid.write_rows(job.work(lambda step: None), job.path)
    before = {job.path: (job.path.read_bytes(), job.path.stat().st_mtime_ns) for job in jobs[:2]}
    rows = regimes(here, 1, CONSOLE)
    assert all((path.read_bytes(), path.stat().st_mtime_ns) == then for path, then in before.items())
    assert [(row["part"], row["factor"]) for row in rows] == [
        (part.statement, factor) for factor in (1.0, 2.0) for part in MAPPED["C3"].parts
    ]
    assert json.loads((here.out / "regimes.json").read_text()) == json.loads(json.dumps(rows))
    assert (here.out / "map.png").exists() and (here.out / "C3.png").exists()
    for row in rows:
        assert row["interval"][0] <= row["effect"] <= row["interval"][1] and row["rate"] == row["factor"] * 5e-4

    lost = jobs[0].path
    lost.unlink()
    said = [(row["part"], row["factor"], row["verdict"]) for row in rows]
    again = regimes(here, 1, CONSOLE)
    assert lost.read_bytes() == before[lost][0], "the same run, to the bit"
    assert [(row["part"], row["factor"], row["verdict"]) for row in again] == said

    with pytest.raises(OtherResults, match=r"runs with steps {'addition': 6}, these have .*8}: choose another"):
        regimes(replace(here, steps={"addition": 8}), 1, CONSOLE)
    monkeypatch.setattr(run, "RULES", run.RULES + 1)
    kept = (here.out / "regimes.json").read_bytes()
    with pytest.raises(OtherResults, match=f"regime_rules {run.RULES - 1}, these have {run.RULES}"):
        regimes(here, 1, CONSOLE)
    assert (here.out / "regimes.json").read_bytes() == kept


def test_columns_that_are_there_are_drawn_once_and_one_that_had_runs_to_make_at_its_end(here, monkeypatch):
    monkeypatch.setitem(run.LAGS_OF, "addition", ("sync_interval_4", "sync_interval_20", "offline"))
    written = []
    monkeypatch.setattr(run.report, "write", lambda out, rows: written.append({row["lag"] for row in rows}))
    regimes(here, 1, CONSOLE)
    assert [len(lags) for lags in written] == [1, 2, 3]
    here.jobs(("addition", "sync_interval_20"))[0].path.unlink()
    written.clear()
    rows = regimes(here, 1, CONSOLE)
    assert [len(lags) for lags in written] == [3, 3], "after the second column and at the end"
    written.clear()
    assert regimes(here, 1, CONSOLE) == rows and [len(lags) for lags in written] == [3]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--task", "adition"], "--task adition: unknown; known are addition, word_problems, tool_call"),
        (["--quick"], "--regimes goes with --task, --out and --workers alone"),
        (["C3"], "--regimes goes with --task, --out and --workers alone"),
    ],
)
def test_what_the_map_does_not_take_is_refused(arguments, message, tmp_path):
    said = CliRunner().invoke(app, ["reproduce", "--regimes", *arguments, "--out", str(tmp_path / "out")])
    assert said.exit_code != 0 and re.search(re.escape(message), str(said.exception))
    assert not (tmp_path / "out").exists()
