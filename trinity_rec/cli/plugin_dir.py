"""`trinity-rec plugin-dir`."""

from __future__ import annotations

from pathlib import Path

import trinity_rec

EXAMPLE = 'trinity run --config rec.yaml --plugin-dir "$(trinity-rec plugin-dir)"'


def command() -> None:
    """Print the directory for `trinity run --plugin-dir`, which makes the presets known by their plain names."""
    print(Path(trinity_rec.__file__).parent / "plugin" / "register")
