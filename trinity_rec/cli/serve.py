"""`trinity-rec serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trinity_rec.terminal import needs_extra

EXAMPLE = "trinity-rec serve --model ./tiny_qwen2 --port 8765"


def command(
    model: Annotated[Path, typer.Option(help="A Hugging Face model directory.")],
    root: Annotated[Path, typer.Option(help="Where snapshots and checkpoints go.")] = Path("tinker_weights"),
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice by default.")] = None,
    keep: Annotated[int, typer.Option(min=2, help="Samplers without a name to keep for each run.")] = 2,
    disk_budget_gb: Annotated[
        float | None,
        typer.Option(min=0.001, help="What all weights may take on disk; by default nine tenths of what is free."),
    ] = None,
    max_rows: Annotated[int, typer.Option(min=1, help="Samples in one batch.")] = 256,
    graph_budget_mb: Annotated[
        int | None,
        typer.Option(min=0, help="Memory for graphs kept between forward and backward; by default a quarter of all."),
    ] = None,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Layers in bfloat16; it changes logprobs by about 0.01.")
    ] = False,
    name: Annotated[
        str | None, typer.Option(metavar="ORG/MODEL", help="Another name of the model, for clients that look it up.")
    ] = None,
    api_key: Annotated[
        str | None,
        typer.Option(envvar="TRINITY_REC_API_KEY", help="What clients must send; theirs is TINKER_API_KEY, tml-…"),
    ] = None,
) -> None:
    """Serve a model by the Tinker API, so that Trinity trains it on this machine; prints its URL when it is ready."""
    needs_extra("local", "trinity_rec.tinker_local").serve(
        model_dir=model,
        root=root,
        host=host,
        port=port,
        device=device,
        threads=threads,
        keep=keep,
        disk_budget_gb=disk_budget_gb,
        max_rows=max_rows,
        graph_budget_mb=graph_budget_mb,
        bf16=bf16,
        api_key=api_key,
        name=name,
        ready=lambda url: print(url, flush=True),
    )
