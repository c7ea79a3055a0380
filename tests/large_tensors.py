"""What a process does with the memory of large tensors; a process of a grid imports this."""

import resource
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from trinity_rec.session.allocator import give_back


def faults() -> list[int]:
    """128 MiB, which is 32768 pages, taken and freed again and again: how many pages are cleared."""
    found = []
    for _ in range(6):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(1 << 25)
        found.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return found


def mebibytes_before_and_after_giving_back() -> tuple[float, float]:
    held = []
    large = [torch.ones(1 << 18) for _ in range(400)]  # 1 MiB each
    del large[::2]  # what stays lies between
    for do in (lambda: None, give_back):
        do()
        held.append(psutil.Process().memory_info().rss / (1 << 20))
    return held[0], held[1]


def held_as_it_begins(report: Callable[[int], None]) -> list[dict[str, float]]:
    """A run of one step that takes 400 MiB and frees it."""
    held = psutil.Process().memory_info().rss / (1 << 20)
    torch.ones(100 << 20)
    report(1)
    return [{"mebibytes": held}]


def libraries() -> str:
    return Path("/proc/self/maps").read_text()
