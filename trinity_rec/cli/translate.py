"""`trinity-rec translate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trinity_rec.cli.arguments import JSON
from trinity_rec.terminal import print_json, stderr

EXAMPLE = "trinity-rec translate grpo_trainer.yaml"


def command(
    settings: Annotated[Path, typer.Argument(help="verl's YAML, or a GRPOConfig of TRL's as JSON or YAML.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Print the `algorithm:` section that means what verl's or TRL's settings do; refuse what has no equal by name."""
    from trinity_rec.plugin.lightly import lightly

    lightly()
    import yaml

    from trinity_rec.yaml.foreign import translate

    found = translate(settings)
    for note in found.notes:
        stderr().print(note, markup=False)
    if as_json:
        print_json({"algorithm": found.section, "notes": found.notes})
    else:
        print(yaml.safe_dump({"algorithm": found.section}, sort_keys=False), end="")
