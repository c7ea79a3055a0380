"""`trinity-rec schema`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from trinity_rec.terminal import print_json

EXAMPLE = "trinity-rec schema --whole-file > trinity-rec.schema.json"


def command(
    whole_file: Annotated[
        bool, typer.Option("--whole-file", help="For whole Trinity YAMLs: checks `algorithm`, leaves the rest free.")
    ] = False,
) -> None:
    """Print a JSON schema of the `algorithm:` section, for editors."""
    from trinity_rec.yaml.schema import SHIPPED

    section = json.loads(SHIPPED.read_text(encoding="utf-8"))
    if whole_file:
        draft = {"$schema": section.pop("$schema")}
        section = {**draft, "title": "Trinity-RFT", "type": "object", "properties": {"algorithm": section}}
    print_json(section)
