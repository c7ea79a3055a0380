"""The commands put together, and how their errors are reported."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated

import typer

from trinity_rec import __version__
from trinity_rec.cli import paper
from trinity_rec.terminal import colours, print_error

app = typer.Typer(
    help="Off-policy group-relative REINFORCE (REC, REP, RED) for Trinity-RFT.",
    no_args_is_help=True,
    rich_markup_mode="rich" if colours() else None,
    pretty_exceptions_enable=False,  # `main` reports errors
)

# In the order of `--help`. Each module is one command: its function `command`, and an example of a call.
COMMANDS = (
    "list",
    "show",
    "diff",
    "use",
    "translate",
    "check",
    "schema",
    "quickstart",
    "run",
    "serve",
    "plot",
    "diagnose",
)
COMMANDS += ("reproduce", "arena", "examples", "plugin-dir")

for name in COMMANDS:
    module = import_module(f"trinity_rec.cli.{name.replace('-', '_')}")
    app.command(name, epilog=f"Example: {module.EXAMPLE}")(module.command)
app.add_typer(paper.app, name="paper")


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


def main() -> None:
    """The entry point; reports an error by one line, or all of it with `--debug`."""
    try:
        app()
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        print_error(error)
        sys.exit(1)
