"""`trinity-rec check`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from trinity_rec.cli.arguments import JSON
from trinity_rec.terminal import UsageError, print_json, stdout

if TYPE_CHECKING:
    from trinity_rec.yaml.check import Report

EXAMPLE = "trinity-rec check gsm8k.yaml"


def command(
    config: Annotated[Path, typer.Argument(help="A Trinity YAML.")], as_json: Annotated[bool, JSON] = False
) -> None:
    """Say what a YAML will train and list its errors and doubtful settings, each with its line.

    Starts nothing: needs no Ray, GPU, model or network. Exits with 1 if there is an error, with 0 if there are only
    doubts.
    """
    from trinity_rec.yaml.check import check, unreadable
    from trinity_rec.yaml.document import Document

    try:
        report = check(Document.read(config))
    except UsageError as error:
        if not as_json:
            raise
        report = unreadable(str(config), error)
    if as_json:
        print_json(report.as_json())
    else:
        print_report(report)
    if report.errors:
        raise typer.Exit(1)


def print_report(report: Report) -> None:
    console = stdout()
    if report.summary is not None:
        for name, text in report.summary.lines():
            console.print(f"[bold]{name:<13}[/] {escape(text)}")
    colours = {"error": "red", "doubt": "yellow"}
    for each in report.findings:
        colour = colours[each.level]
        console.print(f"{escape(report.file)}:{each.line}: [{colour}]{each.level}[/]: {escape(str(each))}")
    counts = [
        f"{len(found)} {name}{'s'[: len(found) != 1]}"
        for name, found in (("error", report.errors), ("doubt", report.doubts))
        if found
    ]
    console.print(", ".join(counts) if counts else "no errors, no doubts")
