"""Arguments from a YAML: refused before any worker starts, with the name that was probably meant."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

T = TypeVar("T")


def build(factory: Callable[..., T], where: str, known: Collection[str], given: Mapping[str, Any]) -> T:
    """Call `factory` with the arguments of the YAML key `where`.

    Raises:
        ValueError: an argument is unknown or its value not allowed; one line with the key, the value and what is
            allowed.
    """
    for name in given:
        if name not in known:
            near = get_close_matches(str(name)[:100], known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise ValueError(f"{where}: unknown argument {shortened(repr(name), 100)}; {hint}")
    try:
        return factory(**given)
    except ValueError as error:
        raise ValueError(f"{where}.{shortened(str(error))}") from error


def shortened(message: str, most: int = 500) -> str:
    """A message that repeats what a user wrote, which may be a whole file: in one line, its middle left out."""
    message = " ".join(message.splitlines())
    return message if len(message) <= most else f"{message[: most // 2]}…{message[-most // 2 :]}"
