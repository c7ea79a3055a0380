"""`trinity-rec diff`."""

from __future__ import annotations

from typing import Annotated

from rich.table import Table

from trinity_rec.cli.arguments import JSON, PRESET
from trinity_rec.terminal import preset_named, print_json, print_table

EXAMPLE = "trinity-rec diff rec_grpo rec_oneside_nois"


def command(
    first: Annotated[str, PRESET], second: Annotated[str, PRESET], as_json: Annotated[bool, JSON] = False
) -> None:
    """Show where two presets differ: the gradient and each argument that counts."""
    from trinity_rec.yaml.catalogue import differences

    left, right = preset_named(first), preset_named(second)
    rows = differences(left, right)
    if as_json:
        print_json({key: {left.name: a, right.name: b} for key, (a, b) in rows.items()})
        return
    table = Table("", left.name, right.name)
    for key, values in rows.items():
        table.add_row(key, *("" if value is None else str(value) for value in values))
    print_table(table)
