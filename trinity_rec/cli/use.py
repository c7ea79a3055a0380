"""`trinity-rec use`."""

from __future__ import annotations

import difflib
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trinity_rec.terminal import UsageError, complete_preset, print_error, stderr, stdout

EXAMPLE = "trinity-rec use rec_oneside_nois gsm8k.yaml --set epsilon_high=2.0 -o rec.yaml"


def _complete(incomplete: str) -> list[tuple[str, str]]:
    own = [("nearest", "the preset with the objective of a YAML for upstream's rec")]
    return [each for each in own if each[0].startswith(incomplete)] + complete_preset(incomplete)


def command(
    preset: Annotated[
        str,
        typer.Argument(
            help="A preset; `nearest` finds the one with the same objective as a YAML for upstream's rec.",
            autocompletion=_complete,
        ),
    ],
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Trinity YAMLs.")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Also set this key of the algorithm section: epsilon_high=2.0, repeat_times=16, optimizer.lr=2e-6 …",
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write here; CONFIG itself by default.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show the difference.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Write over a file without asking.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Switch a YAML of another kind of training too.")] = False,
) -> None:
    """Switch YAMLs to a preset. Only the algorithm section is rewritten; the difference is shown first.

    Stays: repeat_times, optimizer and all else that says how to run; arguments of upstream's rec, or of another preset,
    that mean the same in the new one. Goes: what makes up the objective (policy loss, advantage, KL, entropy, their
    arguments, loss_agg_mode) and a sample strategy of Trinity's.

    A YAML whose training is not group-relative RL (SFT, DPO, a critic, distillation, ...) is refused with the reason.
    Asks before it writes over a file, where there is a terminal to ask on.
    """
    from trinity_rec.plugin.lightly import lightly

    lightly()
    if output and len(configs) > 1:
        raise UsageError(f"--output {output}: is one file, and there are {len(configs)} to write")
    refused = False
    for config in configs:
        try:
            switch_file(config, output or config, preset, settings or [], dry_run=dry_run, yes=yes, force=force)
        except UsageError as error:
            if len(configs) == 1:
                raise
            print_error(error)
            refused = True
    if refused:
        raise typer.Exit(1)


def switch_file(
    config: Path, target: Path, preset: str, settings: list[str], *, dry_run: bool, yes: bool, force: bool
) -> None:
    """Raises UsageError where it is not a file to switch, or a setting is wrong."""
    from trinity_rec.yaml.document import Document, dotted
    from trinity_rec.yaml.rewrite import parse_settings, switch, write
    from trinity_rec.yaml.source import objections

    document = Document.read(config)
    for objection in objections(document):
        reason = f"{config}:{document.line(objection.keys)}: {dotted(objection.keys)}: {objection.reason}"
        if not force:
            raise UsageError(f"{reason}; a preset would train something else (--force switches it all the same)")
        stderr().print(f"[yellow]forced:[/] {escape(reason)}")
    switched = switch(document, preset, parse_settings(settings))
    show_difference(document.text, switched.text, str(config), str(target))
    for note in switched.notes:
        stderr().print(escape(f"{config}: {note}"))
    if dry_run:
        return
    if target.exists() and not yes and sys.stdin.isatty():
        typer.confirm(f"Write {target}?", abort=True, err=True)
    write(target, switched.text)
    stderr().print(
        f"[green]wrote {escape(str(target))}[/]; `trinity-rec check {escape(str(target))}` says what it trains"
    )


def show_difference(old: str, new: str, old_name: str, new_name: str) -> None:
    """A unified diff, coloured on a terminal."""
    colours = {"+": "green", "-": "red", "@": "cyan"}
    console = stdout()
    lines = list(difflib.unified_diff(old.splitlines(), new.splitlines(), old_name, new_name, lineterm=""))
    for line in lines:
        console.print(line, style=colours.get(line[:1]), markup=False)
    if not lines:
        stderr().print("nothing to change")
