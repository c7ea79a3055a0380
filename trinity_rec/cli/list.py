"""`trinity-rec list`."""

from __future__ import annotations

from typing import Annotated

from rich.table import Table

from trinity_rec.cli.arguments import JSON
from trinity_rec.terminal import print_json, print_table

EXAMPLE = "trinity-rec list"


def command(as_json: Annotated[bool, JSON] = False) -> None:
    """List the presets: what each clips, weights and regularises, and what it needs."""
    from trinity_rec.commands.catalogue import overview
    from trinity_rec.presets import PRESETS

    rows = [overview(preset) for preset in PRESETS.values()]
    if as_json:
        print_json(rows)
        return
    table = Table()
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(("yes" if cell else "no") if isinstance(cell, bool) else cell for cell in row.values()))
    print_table(table)
