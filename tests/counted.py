"""Work that can be counted, for tests and benchmarks: it is the same on any machine and at any load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most memory that `run` holds at once beyond what was there before, by the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events, "the profiler saw no allocation"
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class Kernels(TorchDispatchMode):
    """Counts the calls of torch's kernels while it is entered; a view of what is there or reading a number is none."""

    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += not function.is_view and function is not torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})
