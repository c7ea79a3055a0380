"""Processes of a grid use the jemalloc that Ray brings along, and keep what they free; nothing else does."""

import os
import resource
from pathlib import Path

import psutil
import pytest
import torch

from trinity_rec.lab.grid import Processes
from trinity_rec.session.allocator import give_back, jemalloc, with_jemalloc


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


def mebibytes_before_and_after() -> tuple[float, float]:
    held = []
    large = [torch.ones(1 << 18) for _ in range(400)]  # 1 MiB each
    del large[::2]  # what stays lies between
    for do in (lambda: None, give_back):
        do()
        held.append(psutil.Process().memory_info().rss / (1 << 20))
    return held[0], held[1]


def libraries() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.slow
def test_a_process_of_a_grid_takes_again_what_it_freed_until_it_gives_it_back():
    assert min(faults_of_a_large_tensor()) > 30_000  # glibc, here
    with Processes(1) as processes:
        assert "libjemalloc" in processes.submit(libraries).result()
        first, *then = processes.submit(faults_of_a_large_tensor).result()
        before, after = processes.submit(mebibytes_before_and_after).result()
    assert first > 30_000 and max(then) < 1_000
    assert before - after > 150
    assert "LD_PRELOAD" not in os.environ
