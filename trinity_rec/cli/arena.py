"""`trinity-rec arena`: every off-policy correction on the same work, each at a rate of its own."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from trinity_rec.cli.arguments import WORKERS
from trinity_rec.terminal import UsageError, needs_extra, print_table, stderr, stdout

EXAMPLE = "trinity-rec arena --quick --task addition --lag sync_interval_20 --variant my.yaml"


def command(
    quick: Annotated[
        bool, typer.Option("--quick", help="Nine algorithms, three lags and one task: minutes instead of hours.")
    ] = False,
    algorithm: Annotated[
        list[str] | None,
        typer.Option(help="A preset, as `trinity-rec list` names it; may be given again. All otherwise."),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="addition, word_problems or tool_call; may be given again.")
    ] = None,
    lag: Annotated[
        list[str] | None,
        typer.Option(
            help="on_policy, sync_interval_4, sync_interval_20, sync_interval_64, sync_offset_10 or offline; may be "
            "given again."
        ),
    ] = None,
    variant: Annotated[
        Path | None, typer.Option(help="A YAML whose `algorithm:` section takes part, with rules of your own or not.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where results go; runs/arena or runs/arena-quick by default.")
    ] = None,
    workers: Annotated[int | None, WORKERS] = None,
) -> None:
    """Compare off-policy corrections on small models: algorithm x lag x task, each at a learning rate of its own.

    A lag says how old the weights are that answers are sampled from: on_policy, refreshed every 4, 20 or 64 steps, ten
    steps behind, or never (offline). Each algorithm is first trained at five rates on two seeds (one with --quick),
    then judged at its best rate on five fresh ones. OUT gets arena.json, arena.csv, what a choice costs (costs.md), a
    page with a sortable table and curves (index.html) and two figures, anew whenever a task and lag is whole. How long
    it takes is measured and printed first; runs that OUT holds already are not repeated, so an interrupted call goes on
    where it stopped.
    """
    run = needs_extra("lab", "trinity_rec.lab.arena.run")
    plan = needs_extra("lab", "trinity_rec.lab.arena.plan")
    from trinity_rec.variants import LAGS

    scale = plan.QUICK if quick else plan.FULL
    chosen = [
        _known(given or [], known, kind)
        for given, known, kind in (
            ([name.removeprefix("trinity_rec.") for name in algorithm or []], plan.ALGORITHMS, "--algorithm"),
            (task, plan.FULL.tasks, "--task"),
            (lag, tuple(LAGS), "--lag"),
        )
    ]
    scale = scale.only(*chosen)
    own = needs_extra("lab", "trinity_rec.lab.arena.own").variant_of(variant) if variant else None
    out = out or Path("runs", "arena-quick" if quick else "arena")
    planned = run.plan_of(scale, out, own)
    cells, beside = run.arena(planned, workers or os.cpu_count() or 1, stderr(), own.name if own else None)
    _print(cells)
    _print_own(beside)
    written = "index.html, arena.json, arena.csv, costs.md, heat_map.png, robustness.png, curves/"
    stdout().print(f"In {escape(str(out))}: {written}")


def _known(given: list[str], known: tuple[str, ...], option: str) -> list[str]:
    for name in given:
        if name not in known:
            raise UsageError(f"{option} {name}: unknown; known are {', '.join(known)}")
    return list(dict.fromkeys(given))


def _print(cells: list[dict[str, Any]]) -> None:
    table = Table()
    for column in ("task", "lag", "algorithm", "final", "95 % interval", "area", "collapsed", "robustness", "rate"):
        table.add_column(column)
    columns = list(dict.fromkeys((cell["task"], cell["lag"]) for cell in cells))
    for cell in sorted(cells, key=lambda cell: (columns.index((cell["task"], cell["lag"])), -cell["final"])):
        low, high = cell["interval"]
        table.add_row(
            cell["task"],
            cell["lag"],
            cell["algorithm"],
            f"{cell['final']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{cell['auc']:.3f}",
            f"{cell['collapse_rate']:.0%}",
            f"{cell['robustness']:.0%}",
            f"{cell['rate']:g}",
        )
    print_table(table)


def _print_own(beside: list[dict[str, Any]]) -> None:
    from trinity_rec.lab.arena.score import said_of_success, success

    for task, lag in dict.fromkeys((each["task"], each["lag"]) for each in beside):
        here = [each for each in beside if (each["task"], each["lag"]) == (task, lag)]
        counts = Counter(each["verdict"] for each in here)
        said = ", ".join(f"{verdict} than {counts[verdict]}" for verdict in ("better", "worse") if counts[verdict])
        undecided = f"undecided against {counts['undecided']}" if counts["undecided"] else ""
        stdout().print(f"{task}, {lag}: yours is {'; '.join(part for part in (said, undecided) if part)}")
        for each in sorted(here, key=lambda each: each["difference"]):
            low, high = each["interval"]
            numbers = f"{each['difference']:+.3f} ({low:+.3f} to {high:+.3f})"
            stdout().print(f"  {each['verdict']:9} {numbers} against {each['algorithm']}")
    if found := success(beside):
        stdout().print(said_of_success(found))
