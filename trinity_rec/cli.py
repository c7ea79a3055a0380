"""`trinity-rec`: results on stdout, messages on stderr, every error one line and a non-zero exit.

Each command is thin and imports what it runs only when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from trinity_rec import __version__, commands
from trinity_rec.commands.terminal import UsageError, known_name, preset_named, stderr, stdout

app = typer.Typer(
    help="Off-policy group-relative REINFORCE (REC, REP, RED) for Trinity-RFT.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` reports errors
)
commands.register(app)
out, err = stdout(), stderr()


def print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error comes from.")] = False,
) -> None:
    """Options of every command."""


@app.command(epilog="Example: trinity-rec quickstart --algorithm rec_ring_nois --sync-interval 20")
def quickstart(
    algorithm: Annotated[str | None, typer.Option(help="A preset; the YAML's by default.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the YAML's by default.")] = None,
    sync_interval: Annotated[
        int | None, typer.Option(min=1, help="Steps between new weights for the rollouts; the YAML's by default.")
    ] = None,
    out_dir: Annotated[Path, typer.Option("--out", help="Where results and logs go.")] = Path("runs/quickstart"),
    seed: Annotated[int, typer.Option(help="Seeds the sampling.")] = 42,
) -> None:
    """Train a small model on this machine, without a GPU, and report its held-out accuracy before and after."""
    if algorithm is not None:
        algorithm = preset_named(algorithm).name
    run = needs_extra("local", "trinity_rec.quickstart.run")
    summary = run.quickstart(out_dir, run.Options(algorithm, steps, sync_interval, seed), err)
    out.print(summary.table(out_dir))


@app.command(epilog="Example: trinity-rec serve --model ./tiny_qwen2 --port 8765")
def serve(
    model: Annotated[Path, typer.Option(help="A Hugging Face model directory.")],
    root: Annotated[Path, typer.Option(help="Where snapshots and checkpoints go.")] = Path("tinker_weights"),
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    device: Annotated[str, typer.Option(help="A torch device.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; torch's choice by default.")] = None,
    keep: Annotated[int, typer.Option(min=2, help="Snapshots, and checkpoints, to keep for each run.")] = 2,
    max_rows: Annotated[int, typer.Option(min=1, help="Samples in one batch.")] = 256,
    graph_budget_mb: Annotated[
        int | None,
        typer.Option(min=0, help="Memory for graphs kept between forward and backward; by default a quarter of all."),
    ] = None,
    bf16: Annotated[
        bool, typer.Option("--bf16", help="Layers in bfloat16, if faster here; it changes logprobs by about 0.01.")
    ] = False,
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
        max_rows=max_rows,
        graph_budget_mb=graph_budget_mb,
        bf16=bf16,
        api_key=api_key,
        ready=lambda url: print(url, flush=True),
    )


@app.command("plugin-dir", epilog='Example: trinity run --config rec.yaml --plugin-dir "$(trinity-rec plugin-dir)"')
def plugin_dir() -> None:
    """Print the directory for `trinity run --plugin-dir`, which makes the presets known by their plain names."""
    print(Path(__file__).parent / "plugin" / "register")


@app.command(epilog="Example: trinity-rec examples rec_gsm8k/gsm8k.yaml --copy .")
def examples(
    name: Annotated[str | None, typer.Argument(help="One of them; prints its path.")] = None,
    copy: Annotated[Path | None, typer.Option(help="Copy it, or all of them, into this directory.")] = None,
) -> None:
    """List the example YAMLs, find one, or copy them to a directory of yours."""
    from trinity_rec.shipped import example, example_names

    names = example_names() if name is None else [known_name(name, example_names(), "example")]
    for each in names:
        if copy is None:
            print(each if name is None else example(each))
        else:
            target = copy / Path(each).name
            if target.exists():
                raise UsageError(f"{target} is there already")
            copy.mkdir(parents=True, exist_ok=True)
            print(shutil.copyfile(example(each), target))


def needs_extra(extra: str, module: str) -> Any:
    """Import `module`, which needs packages of an extra that a plain install leaves out."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "trinity_rec":
            raise
        raise UsageError(f"{error.name} is not installed; pip install 'trinity-rec[{extra}]'") from error


def main() -> None:
    """The entry point; reports an error by one line, or all of it with `--debug`."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        err.print(f"[red]error:[/] {escape(first_line)}")
        sys.exit(1)


if __name__ == "__main__":
    main()
