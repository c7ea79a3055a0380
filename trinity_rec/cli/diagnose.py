"""`trinity-rec diagnose`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trinity_rec.cli.arguments import JSON
from trinity_rec.terminal import needs_extra, print_json, stderr, stdout

EXAMPLE = "trinity-rec diagnose runs/quickstart --out diagnosis"


def command(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN_DIR...", help="Directories that hold one Trinity run or many.")
    ],
    config: Annotated[
        Path | None, typer.Option(help="The run's YAML; by default one beside it or above it that has its name.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write a page with the pictures that prove it there.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Say what is wrong with runs, from their TensorBoard logs and YAML, and what to try.

    Exits with 1 if there is an error, with 0 if there are only doubts.
    """
    events = needs_extra("lab", "trinity_rec.plot.events")
    case = needs_extra("lab", "trinity_rec.diagnose.case").Case
    rules = needs_extra("lab", "trinity_rec.diagnose.rules")

    found = dict.fromkeys(job for directory in runs for job in events.find_runs(directory))
    judged = []
    for job in found:
        try:
            each = case.of(events.read_run(job), config)
        except events.LogsError as error:  # a run that has just begun does not keep the others from being judged
            if len(found) == 1:
                raise
            stderr().print(str(error), style="yellow", markup=False)
        else:
            judged.append((each, rules.diagnose(each)))
    page = needs_extra("lab", "trinity_rec.diagnose.page").write_page(judged, out) if out else None
    if as_json:
        print_json([as_data(*each) for each in judged])
    else:
        for each, findings in judged:
            print_findings(each, findings)
        if page:
            stderr().print(f"page {page}", markup=False)
    if any(finding.rule.level == rules.ERROR for _, findings in judged for finding in findings):
        raise typer.Exit(1)


def print_findings(case, findings) -> None:
    console, place = stdout(), escape(str(case.run.directory))
    for warning in case.run.warnings:
        stderr().print(warning, style="yellow", markup=False)
    if not case.settings:
        stderr().print(f"{place}: no YAML with this run's name found; --config names it", style="yellow")
    for finding in findings:
        colour = {"error": "red", "doubt": "yellow"}[finding.rule.level]
        console.print(f"{place}: [{colour}]{finding.rule.level}[/]: {escape(str(finding))}")
    if not findings:
        console.print(f"{place}: {case.steps} steps, nothing wrong by these rules")


def as_data(case, findings) -> dict[str, object]:
    return {
        "run": str(case.run.directory),
        "steps": case.steps,
        "ok": all(finding.rule.level != "error" for finding in findings),
        "findings": [
            {
                "level": finding.rule.level,
                "rule": finding.rule.name,
                "sign": finding.rule.sign.replace("`", ""),
                "numbers": finding.evidence.numbers,
                "likely": finding.rule.likely.replace("`", ""),
                "advice": finding.rule.advice.replace("`", ""),
                "metrics": list(finding.evidence.tags),
                "steps": finding.evidence.steps,
            }
            for finding in findings
        ],
    }
