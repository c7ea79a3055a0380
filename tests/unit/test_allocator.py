"""Processes of a grid use the jemalloc that Ray brings along, and keep what they free; nothing else does."""

import os
from pathlib import Path

import pytest
from rich.console import Console

from tests import large_tensors
from trinity_rec.lab.grid import Job, Processes, read_rows, run_grid
from trinity_rec.session.allocator import jemalloc, with_jemalloc


@pytest.fixture(autouse=True)
def nothing_preloaded(monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.delenv("MALLOC_CONF", raising=False)


def test_the_pinned_ray_has_one():
    assert Path(jemalloc()["LD_PRELOAD"]).is_file()


def test_what_the_user_preloads_stays(monkeypatch):
    monkeypatch.setenv("LD_PRELOAD", "")
    assert jemalloc() == {}
    with with_jemalloc():
        assert os.environ["LD_PRELOAD"] == "" and "MALLOC_CONF" not in os.environ


@pytest.mark.parametrize("own", [{}, {"MALLOC_CONF": "thp:always"}], ids=["nothing", "a conf"])
def test_only_what_begins_in_the_block_gets_it(own, monkeypatch):
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), with_jemalloc():
        assert "jemalloc" in os.environ["LD_PRELOAD"]
        raise ZeroDivisionError
    assert dict(os.environ) == before


@pytest.mark.slow
def test_a_process_of_a_grid_takes_again_what_it_freed_until_it_gives_it_back(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # the process finds tests.large_tensors
    assert min(large_tensors.faults()) > 30_000  # glibc, here
    with Processes(1) as processes:
        assert "libjemalloc" in processes.submit(large_tensors.libraries).result()
        first, *then = processes.submit(large_tensors.faults).result()
        before, after = processes.submit(large_tensors.mebibytes_before_and_after_giving_back).result()
    assert first > 30_000 and max(then) < 1_000
    assert before - after > 150
    assert "LD_PRELOAD" not in os.environ


@pytest.mark.slow
def test_a_run_of_a_grid_leaves_nothing_kept_to_the_next(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    jobs = [Job(large_tensors.held_as_it_begins, tmp_path / f"{number}.csv", 1) for number in range(3)]
    with Processes(1) as processes:
        run_grid(jobs, processes, Console(quiet=True), "memory")
    first, *then = [read_rows(job.path)["mebibytes"][0] for job in jobs]
    assert max(then) < first + 100
