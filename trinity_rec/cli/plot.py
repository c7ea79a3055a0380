"""`trinity-rec plot`: what any Trinity run did, from its TensorBoard logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from trinity_rec.terminal import UsageError, did_you_mean, needs_extra, print_table, stderr, stdout

EXAMPLE = "trinity-rec plot GRPO=runs/grpo-seed0 GRPO=runs/grpo-seed1 runs/rec_ring_nois --out plots"
_RUNS = typer.Argument(
    metavar="[LABEL=]RUN_DIR...", help="Directories that hold one run or many; those with the same label are one curve."
)


def command(
    runs: Annotated[list[str], _RUNS],
    out: Annotated[Path, typer.Option(help="Where the PNGs and index.html go.")] = Path("plots"),
    smooth: Annotated[int, typer.Option(min=1, help="Average reward, entropy and length over so many steps.")] = 5,
    each_run: Annotated[bool, typer.Option("--each-run", help="A curve a run, seeds too.")] = False,
    metric: Annotated[list[str] | None, typer.Option(help="Draw this tag of the logs too; can be repeated.")] = None,
) -> None:
    """Draw reward, KL to the rollout policy, clip fraction, entropy and response length of runs, on verl or Tinker.

    Runs whose paths differ only in a seed (grpo-seed0, grpo-seed1) are one curve: their mean, with a band.
    """
    logs = needs_extra("lab", "trinity_rec.plot.runs")
    page = needs_extra("lab", "trinity_rec.plot.page")

    groups = logs.read_groups(runs, each_run)
    known = logs.every_tag(groups)
    for tag in metric or ():
        if tag not in known:
            raise UsageError(f"no metric {tag!r} in these logs; {did_you_mean(tag, known)}")
    panels = [*logs.PANELS, *(logs.Panel(tag, tag, (tag,)) for tag in metric or ())]
    pictures = [page.Picture.of(panel, groups) for panel in panels]
    if not any(picture.curves for picture in pictures):
        raise UsageError(f"none of the metrics to draw is in these logs; they hold {', '.join(sorted(known))}")
    written = page.write_page(groups, pictures, out, smooth)
    for line in [
        *(each for group in groups for run in group.runs for each in run.warnings),
        *page.not_logged(pictures),
    ]:
        stderr().print(line, style="yellow", markup=False)
    heads, rows = page.table_of([picture for picture in pictures if picture.curves], groups)
    table = Table(caption=f"means of the last {logs.LAST} values; in brackets what the bands show")
    for head in heads:
        table.add_column(head, justify="left" if not head else "right")
    for row in rows:
        table.add_row(*row)
    print_table(table)
    stdout().print(
        f"page {written[0]}; pictures {', '.join(path.name for path in written[1:])} beside it", markup=False
    )
