"""`trinity-rec show`."""

from __future__ import annotations

import sys
from typing import Annotated

from trinity_rec.cli.arguments import JSON, PRESET
from trinity_rec.terminal import preset_named, print_json, stdout

EXAMPLE = "trinity-rec show rec_oneside_nois"


def command(preset: Annotated[str, PRESET], as_json: Annotated[bool, JSON] = False) -> None:
    """Show a preset: its gradient, when to use it, and the `algorithm:` section that it stands for."""
    from rich.syntax import Syntax

    from trinity_rec.yaml.catalogue import details, section_text

    chosen = preset_named(preset)
    if as_json:
        print_json(details(chosen))
    elif stdout().is_terminal:
        # Syntax fills lines with spaces up to the width; a copied section must not carry them.
        code = Syntax(section_text(chosen), "yaml", theme="ansi_dark", background_color="default")
        stdout().print(code.highlight(code.code), end="")
    else:
        print(section_text(chosen, _unicode_works()), end="")


def _unicode_works() -> bool:
    return (sys.stdout.encoding or "ascii").lower().replace("-", "").startswith("utf")
