"""Where the YAML files that come with the package lie: inside it in a wheel, next to it in a checkout."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(directory: str) -> Path:
    """`examples` or `configs`.

    Raises:
        FileNotFoundError: this install has neither place.
    """
    for place in (PACKAGE / directory, PACKAGE.parent / directory):
        if place.is_dir():
            return place
    raise FileNotFoundError(f"this installation of trinity-rec lacks its {directory}")


def example_names() -> list[str]:
    """As `rec_gsm8k/quickstart.yaml`, in order."""
    root = shipped("examples")
    return sorted(path.relative_to(root).as_posix() for path in root.glob("*/*.yaml"))


def example(name: str) -> Path:
    return shipped("examples") / name
