"""What commands say and how: results on stdout, messages on stderr, one line for what the user got wrong."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection
from difflib import get_close_matches
from importlib import import_module
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trinity_rec.presets import PRESETS, Preset


class UsageError(ValueError):
    """A value that a command cannot work with; the message is one line for the user."""


def stdout() -> Console:
    """For results. Colour only on a terminal; text is never wrapped, so that a pipe gets whole lines."""
    return Console(soft_wrap=True, highlight=False, color_system=colours())


def stderr() -> Console:
    """For messages."""
    return Console(stderr=True, soft_wrap=True, highlight=False, color_system=colours())


def print_error(error: Exception) -> None:
    """What the user got wrong, in one line."""
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    stderr().print(f"[red]error:[/] {escape(first_line)}")


def colours() -> Literal["auto"] | None:
    """No styling at all, bold neither, where NO_COLOR is set."""
    return None if os.environ.get("NO_COLOR") else "auto"


def print_table(table: Table) -> None:
    """As wide as the terminal, no name folded: where they do not fit beside each other, a line each. Where there is no
    terminal, plain lines with tabs between."""
    console = Console(highlight=False, color_system=colours())
    heads = [str(column.header) for column in table.columns]
    rows = list(zip(*(map(str, column.cells) for column in table.columns), strict=True))
    if not console.is_terminal and "COLUMNS" not in os.environ:
        for row in [heads, *rows]:
            print("\t".join(Text.from_markup(cell).plain for cell in row))
        _print_caption(table)
        return
    table.box, table.padding = SIMPLE_HEAD, (0, 1, 0, 0)
    least = 2
    for column in table.columns:
        words = [Text.from_markup(str(cell)).plain.split() for cell in (column.header, *column.cells)]
        column.overflow, column.no_wrap = "fold", all(len(each) < 2 for each in words)
        least += 1 + max((cell_len(word) for each in words for word in each), default=0)
    if least <= console.width:
        console.print(table)
        return
    for first, *others in rows:
        stdout().print(f"[bold]{first}[/]")
        for head, cell in zip(heads[1:], others, strict=True):
            if cell:
                stdout().print(f"  {head}: {cell}")
    _print_caption(table)


def _print_caption(table: Table) -> None:
    if table.caption:
        stderr().print(table.caption)


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def needs_extra(extra: str, module: str) -> Any:
    """Import `module`, which needs packages of an extra that a plain install leaves out.

    Raises:
        UsageError: one of them is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "trinity_rec":
            raise
        raise UsageError(f"{error.name} is not installed; pip install 'trinity-rec[{extra}]'") from error


def closest(name: str, known: Collection[str]) -> str | None:
    """The known name that was probably meant."""
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return near[0] if near else None


def did_you_mean(name: str, known: Collection[str]) -> str:
    near = closest(name, known)
    return f"did you mean {near}?" if near else f"known: {', '.join(sorted(known, key=by_number))}"


def by_number(name: str) -> tuple[int, str]:
    """A key to sort names by, those that begin with a number by it."""
    digits = re.match(r"\d*", name)
    return (int(digits[0]) if digits and digits[0] else 0, name)


def known_name(name: str, known: Collection[str], kind: str) -> str:
    """`name` if it is known.

    Raises:
        UsageError: it is not; names the nearest that is.
    """
    if name not in known:
        raise UsageError(f"no {kind} {name!r}; {did_you_mean(name, known)}")
    return name


def preset_named(name: str) -> Preset:
    """A row of the preset table; `trinity_rec.` before the name is allowed, as in a YAML.

    Raises:
        UsageError: there is no such preset; names the nearest.
    """
    return PRESETS[known_name(name.removeprefix("trinity_rec."), PRESETS, "preset")]


def complete_preset(incomplete: str) -> list[tuple[str, str]]:
    """For shell completion: the presets that begin so, with their titles."""
    return [(preset.name, preset.title) for preset in PRESETS.values() if preset.name.startswith(incomplete)]
