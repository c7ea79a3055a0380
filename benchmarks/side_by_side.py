"""Measuring side by side: contestants take turns in one process, so that a busy machine slows them alike.

Time is the thread's CPU time: waiting for a core that something else holds is nobody's work. Ratios are taken round by
round and summarised by their median; a ratio of two medians would compare different moments.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Run = Callable[[], Any]


def responses(rows: int, length: int) -> dict[str, Tensor]:
    """What a policy loss is given, [rows, length] each: responses of half to full length, ratios around 1 with a spread
    of 0.3, one advantage a response.
    """
    generator = torch.Generator().manual_seed(0)
    logprob = -3 * torch.rand(rows, length, generator=generator)
    old_logprob = logprob + 0.3 * torch.randn(rows, length, generator=generator)
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
    mask = torch.arange(length) < lengths
    advantages = torch.randn(rows, 1, generator=generator) * mask
    return {"logprob": logprob, "old_logprob": old_logprob, "action_mask": mask, "advantages": advantages}


def cpu_seconds(run: Run, calls: int = 1) -> float:
    """CPU seconds a call, on this thread; one more call before takes the caches and the allocator over."""
    run()
    started = time.thread_time()
    for _ in range(calls):
        run()
    return (time.thread_time() - started) / calls


def alternate(
    contestants: Mapping[str, Run],
    rounds: int,
    calls: int = 1,
    elsewhere: Mapping[str, Callable[[], float]] | None = None,
) -> dict[str, list[float]]:
    """CPU seconds a call of each contestant in each round; the order rotates from round to round.

    Those that run `elsewhere`, in a process of their own, give the seconds that they took.
    """
    turns = {name: partial(cpu_seconds, run, calls) for name, run in contestants.items()} | dict(elsewhere or {})
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for turn in range(rounds):
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            seconds[name].append(turns[name]())
    return seconds


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
    """min, median and max over the rounds of numerator / denominator."""
    ratios = [a / b for a, b in zip(numerator, denominator, strict=True)]
    return {"min": min(ratios), "median": statistics.median(ratios), "max": max(ratios)}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = lines[0].split(":", 1)[1].strip() if lines else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write_json(path: Path | None, rows: list[dict[str, Any]]) -> None:
    """The machine and the rows, where a path is given."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
