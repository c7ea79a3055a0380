"""`trinity-rec run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trinity_rec.terminal import needs_extra, stderr, stdout

EXAMPLE = "trinity-rec run gsm8k.yaml"


def command(
    config: Annotated[Path, typer.Argument(help="A Trinity YAML.")],
    patience: Annotated[float, typer.Option(min=1, help="Seconds without a step after which a run is stuck.")] = 1800,
) -> None:
    """Run a YAML by `trinity run` on this machine and follow it; a missing step is an error, unlike with Trinity.

    Starts and stops what the YAML needs: Ray, and the local Tinker server (model.tinker.enable) or, where there is no
    GPU, what vLLM and verl need to do without.
    """
    job = needs_extra("local", "trinity_rec.session.run").run(config, stderr(), patience)
    stdout().print(escape(str(job)))
