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
    configs: Annotated[list[Path], typer.Argument(metavar="CONFIG...", help="Trinity YAMLs.")],
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Say what a YAML will train and list its errors and doubtful settings, each with its line.

    Starts nothing: needs no Ray, GPU, model or network. Exits with 1 if there is an error, with 0 if there are only
    doubts. JSON of several files is a list.
    """
    from trinity_rec.plugin.lightly import lightly

    lightly()
    from trinity_rec.yaml.check import check, unreadable
    from trinity_rec.yaml.document import Document

    reports = []
    for config in configs:
        try:
            reports.append(check(Document.read(config)))
        except UsageError as error:
            if not as_json and len(configs) == 1:
                raise
            reports.append(unreadable(str(config), error))
        if not as_json:
            if len(configs) > 1:
                stdout().print(f"[bold underline]{escape(str(config))}[/]")
            print_report(reports[-1])
    if as_json:
        data = [report.as_json() for report in reports]
        print_json(data if len(data) > 1 else data[0])
    if any(report.errors for report in reports):
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
