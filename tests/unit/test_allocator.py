"""Processes of a grid use the jemalloc that Ray brings along, and keep what they free; nothing else does."""

import os
import resource
from pathlib import Path

import pytest
import torch

from trinity_rec.lab.grid import Processes
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


def test_only_what_begins_in_the_block_gets_it():
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), with_jemalloc():
        assert "jemalloc" in os.environ["LD_PRELOAD"]
        raise ZeroDivisionError
    assert dict(os.environ) == before


def faults_of_a_large_tensor() -> list[int]:
    """128 MiB, which is 32768 pages, taken and freed again and again: how many pages are cleared."""
    found = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1 << 25)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


def libraries() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.slow
def test_a_process_of_a_grid_takes_again_what_it_freed():
    assert min(faults_of_a_large_tensor()) > 30_000  # glibc, here
    with Processes(1) as processes:
        assert "libjemalloc" in processes.submit(libraries).result()
        first, *then = processes.submit(faults_of_a_large_tensor).result()
    assert first > 30_000 and max(then) < 1_000
    assert "LD_PRELOAD" not in os.environ
