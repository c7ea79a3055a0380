"""Where the time goes: seconds, tokens and counts by phase, served at GET /stats."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Stats:
    """Running totals. Each counter has one writing thread, so no lock is needed."""

    def __init__(self) -> None:
        self._totals: defaultdict[str, float] = defaultdict(float)

    def add(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._totals[name] += amount

    @contextmanager
    def timed(self, phase: str, **amounts: float) -> Iterator[None]:
        """Add the given amounts to their totals, and the block's wall-clock time to `<phase>_seconds`."""
        self.add(**amounts)  # at once: whoever gets an answer from within the block may look at the totals
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(**{f"{phase}_seconds": time.perf_counter() - start})

    def snapshot(self) -> dict[str, float]:
        return {name: round(total, 6) for name, total in sorted(self._totals.copy().items())}
