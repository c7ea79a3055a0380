"""Arguments that several commands take."""

from __future__ import annotations

import typer

from trinity_rec.terminal import complete_preset

PRESET = typer.Argument(help="A preset, as `trinity-rec list` names it.", autocompletion=complete_preset)
JSON = typer.Option("--json", help="Print JSON.")
WORKERS = typer.Option(min=1, help="Processes, one thread each; one a core by default.")
