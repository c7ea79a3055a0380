"""jemalloc for processes that take and free large tensors all the time.

glibc's malloc gives what is freed back to the system, and has its pages cleared anew when it is taken again. Told to
keep it, it looks through one long list of free pieces at every call. jemalloc does neither, and Ray brings it along.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

# What is freed is kept, large tensors too, and every thread takes from it: each with an arena of its own would keep
# twice as much.
KEEP = "narenas:1,dirty_decay_ms:-1,muzzy_decay_ms:-1,oversize_threshold:0"


def jemalloc() -> dict[str, str]:
    """The environment of a new process that is to use it; nothing where Ray has none, or something is preloaded."""
    ray = find_spec("ray")
    library = Path(ray.origin).parent / "core" / "libjemalloc.so" if ray and ray.origin else None
    if library is None or not library.exists() or "LD_PRELOAD" in os.environ:
        return {}
    return {"LD_PRELOAD": str(library), "MALLOC_CONF": KEEP}


def give_back() -> None:
    """To the system, what this process keeps for its next tensors; nothing without jemalloc, which alone keeps it."""
    if control := getattr(ctypes.CDLL(None), "mallctl", None):
        control(b"arena.4096.purge", None, None, None, 0)  # MALLCTL_ARENAS_ALL of jemalloc.h


@contextmanager
def with_jemalloc() -> Iterator[None]:
    """Processes that begin in this block use it."""
    given = jemalloc()
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
