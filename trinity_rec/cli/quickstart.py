"""`trinity-rec quickstart`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from trinity_rec.terminal import needs_extra, preset_named, stderr, stdout

EXAMPLE = "trinity-rec quickstart --algorithm rec_ring_nois --sync-interval 20"


def command(
    algorithm: Annotated[str | None, typer.Option(help="A preset; the YAML's by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the YAML's by default.")] = None,
    sync_interval: Annotated[
        int | None, typer.Option(min=1, help="Steps between new weights for the rollouts; the YAML's by default.")
    ] = None,
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", help="Where results and logs go; runs/quickstart[-smollm2][-vllm] by default."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the sampling.")] = 42,
    backend: Annotated[
        Literal["local", "vllm"],
        typer.Option(help="What samples and trains: a Tinker server of our own, or vLLM and verl on the CPU."),
    ] = "local",
    model: Annotated[
        Literal["tiny", "smollm2"],
        typer.Option(help="A shipped one that learns sums, or SmolLM2-135M-Instruct, fetched, that learns products."),
    ] = "tiny",
) -> None:
    """Train a small model on this machine, without a GPU, and report its held-out accuracy before and after."""
    if algorithm is not None:
        algorithm = preset_named(algorithm).name
    parts = ["quickstart", *([model] if model != "tiny" else []), *([backend] if backend != "local" else [])]
    out_dir = out_dir or Path("runs", "-".join(parts))
    run = needs_extra("local", "trinity_rec.quickstart.run")
    summary = run.quickstart(out_dir, run.Options(algorithm, steps, sync_interval, seed, backend, model), stderr())
    stdout().print(summary.side_by_side())
    stdout().print(summary.table(out_dir))
