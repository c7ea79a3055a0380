"""The commands for a Trinity YAML that is there already: list, show, diff, use, check, schema.

Each module holds plain functions, which tests and scripts call, and the thin commands over them.
"""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the commands to `trinity-rec`."""
    from trinity_rec.commands import catalogue, check, paper, plot, reproduce, rewrite, schema

    for family in (catalogue, rewrite, check, schema, plot, reproduce, paper):
        family.register(app)
