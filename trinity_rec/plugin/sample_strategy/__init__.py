"""Sample strategies, one file each: `<name>.py` holds `trinity_rec.<Name>SampleStrategy`, and a new file is found by
itself."""

from __future__ import annotations

from importlib import import_module

from trinity_rec.plugin.sample_strategy.base import RECSampleStrategy


def strategy_named(name: str | None) -> type[RECSampleStrategy] | None:
    """The strategy of this package that a YAML names by its dotted path; None for any other."""
    package, _, attribute = (name or "").rpartition(".")
    if package.split(".")[0] != "trinity_rec":
        return None
    found = getattr(import_module(package), attribute, None)
    return found if isinstance(found, type) and issubclass(found, RECSampleStrategy) else None
