"""`trinity-rec reproduce --model`: the claims on a model of the user's, cell by cell, over many calls."""

import csv
import json
import os
from dataclasses import replace

import psutil
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from tests.tiny_model import make_tiny_model
from trinity_rec.cli import app
from trinity_rec.lab import on_model, rates
from trinity_rec.lab.claims import CENTRAL, CLAIMS, OFFLINE, REAL_CELLS, REAL_CELLS_LONG, SYNC
from trinity_rec.lab.grid import Processes
from trinity_rec.lab.on_model import Grid, check_room, reproduce_on_model
from trinity_rec.lab.reproduce import ALL_CLAIMS, OtherResults
from trinity_rec.tinker_local.errors import ServeError

CONSOLE = Console(quiet=True)
CELLS = ((SYNC, "rec_reinforce"), (SYNC, "rec_grpo"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def grid(model, tmp_path, monkeypatch):
    """Two cells of two seeds, two steps each."""
    monkeypatch.setattr(rates, "REAL_LENGTH", {"steps": 2, "evaluate_every": 2})
    monkeypatch.setattr(rates, "REAL_CANDIDATES", (1e-3, 2e-3))
    monkeypatch.setattr(on_model, "LENGTH", {"steps": 2, "problems": 2, "samples": 2, "evaluate_every": 1})
    grid = Grid.of("products", model, "cpu", tmp_path)
    return replace(grid, cells=CELLS, seeds=2)


@pytest.mark.slow
def test_the_grid_goes_on_where_it_stopped_and_judges_whole_cells(grid, tmp_path, monkeypatch):
    def stop(jobs, processes, console, what, each=lambda: None):
        run_grid(jobs[:3], processes, console, what, each)
        if len(jobs) == 4:
            raise KeyboardInterrupt

    run_grid = on_model.run_grid
    with monkeypatch.context() as patched:
        patched.setattr(on_model, "run_grid", stop)
        with pytest.raises(KeyboardInterrupt):
            reproduce_on_model(ALL_CLAIMS, grid, tmp_path, 1, CONSOLE)
    missing = "1 of 2 cells are whole; not yet run:\n\n- sync_interval 20, GRPO"
    assert missing in (tmp_path / "report.md").read_text()
    with (tmp_path / "rewards.csv").open() as file:
        assert [(row["variant"], row["seeds"]) for row in csv.DictReader(file)] == [("rec_reinforce", "2")]
    rate = json.loads((tmp_path / "rates.json").read_text())
    assert rate["chosen"] in (1e-3, 2e-3) and len(rate["gains"]) == 2
    curves = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("seed_*.csv")}
    assert len(curves) == 2 + 3

    lost = tmp_path / "curves" / "products" / SYNC / "rec_grpo" / "seed_0.csv"
    before = lost.read_bytes()
    lost.unlink()
    judged = reproduce_on_model(ALL_CLAIMS, grid, tmp_path, 1, CONSOLE)
    assert lost.read_bytes() == before, "the same run, to the bit"
    assert {path: path.stat().st_mtime_ns for path in curves if path != lost} == {
        path: time for path, time in curves.items() if path != lost
    }
    assert [each["claim"] for each in judged] == ["C3"]
    assert {cell["setting"] for part in judged[0]["parts"] for cell in part["cells"]} == {SYNC}
    assert json.loads((tmp_path / "claims.json").read_text()) == json.loads(json.dumps(judged))
    assert "not yet run" not in (tmp_path / "report.md").read_text()
    assert (tmp_path / "C3.png").read_bytes().startswith(b"\x89PNG")


def test_results_of_another_model_are_not_mixed(grid, tmp_path, tmp_path_factory):
    on_model.claim_directory(tmp_path, on_model.scale_of(grid))
    other = make_tiny_model(tmp_path_factory.mktemp("other"), seed=1)
    with pytest.raises(OtherResults, match="holds runs with model"):
        on_model.claim_directory(tmp_path, on_model.scale_of(replace(grid, like=replace(grid.like, model=other))))
    assert on_model.digest(other) != on_model.digest(grid.like.model)


def test_a_later_call_computes_as_the_first_one_did(grid, tmp_path):
    scale = on_model.scale_of(grid)
    for bf16 in (True, False):
        (tmp_path / "scale.json").write_text(json.dumps(scale | {"bf16": bf16}))
        assert Grid.of("products", grid.like.model, "cpu", tmp_path).like.bf16 is bf16


def test_the_cells_and_their_order():
    assert REAL_CELLS[:4] == REAL_CELLS_LONG == tuple((SYNC, variant) for variant in CENTRAL)
    assert [setting for setting, _ in REAL_CELLS] == [SYNC] * 10 + [OFFLINE] * 6
    judged = [claim.measured_in(REAL_CELLS) for claim in CLAIMS.values()]
    assert all(claim.parts for claim in judged), "every claim has a part that these cells measure"
    assert set().union(*(claim.cells for claim in judged)) <= set(REAL_CELLS)
    assert [len(claim.parts) for claim in judged] == [2, 4, 3, 1, 3, 6, 2]


def test_the_cores_are_divided_among_the_processes(grid, tmp_path, monkeypatch):
    """One process at a time has them all: training a model is a matter of memory, where several stand in each other's
    way; and each run has a new one.
    """
    asked = []

    class Begun(Exception):
        pass

    def processes(workers, threads, runs):
        asked.append((workers, threads, runs))
        raise Begun

    monkeypatch.setattr(on_model, "Processes", processes)
    monkeypatch.setattr(on_model, "ACTIVATIONS", 0)  # nothing trains here, whatever memory other tests leave
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for workers in (None, 3):
        with pytest.raises(Begun):
            reproduce_on_model(ALL_CLAIMS, grid, tmp_path, workers, CONSOLE)
    assert asked == [(1, 8, 1), (3, 2, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_process_has_the_threads_that_it_is_given(threads):
    with Processes(1, threads) as processes:
        assert processes.submit(torch.get_num_threads).result() == threads


@pytest.mark.slow
@pytest.mark.parametrize(("runs", "begun"), [(1, 2), (None, 1)])
def test_a_process_makes_way_after_its_runs(runs, begun):
    with Processes(1, runs=runs) as processes:
        assert len({processes.submit(os.getpid).result() for _ in range(2)}) == begun


def test_too_little_memory_is_said_with_the_number_needed(model):
    check_room(model, "cpu", 1)
    too_many = int(psutil.virtual_memory().available // on_model.ACTIVATIONS) + 1
    with pytest.raises(ServeError, match=rf"in {too_many} processes takes about \d+\.\d GiB of memory, \d+\.\d are"):
        check_room(model, "cpu", too_many)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--task", "products"], "--task, --tasks and --device want a --model"),
        (["--model", "{model}"], "--model wants a --task: products, counting"),
        (["--model", "{model}", "--task", "sums"], "--task sums: unknown, known are products, counting"),
        (["--model", "nowhere", "--task", "products"], "no such model directory: nowhere"),
        (["--model", "{model}", "--task", "products", "--device", "tpu9"], "device 'tpu9' is unknown to torch"),
    ],
)
def test_mistakes_are_said_in_a_line(model, tmp_path, options, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["reproduce", *(option.format(model=model) for option in options)])
    assert result.exit_code != 0 and said in str(result.exception)
    assert not list(tmp_path.iterdir()), "nothing was begun"
