"""`trinity-rec reproduce`: measure the paper's claims on this machine and judge them by rules written before."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from trinity_rec.cli.arguments import WORKERS
from trinity_rec.terminal import UsageError, needs_extra, print_table, stderr, stdout

EXAMPLE = "trinity-rec reproduce --quick C2 C3"
_COLOUR = {"holds": "green", "does not hold": "red", "inconclusive": "yellow"}
_CLAIM = typer.Argument(metavar="CLAIM", help="C1 to C8; all of them by default.")


def command(
    claims: Annotated[list[str] | None, _CLAIM] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A reduced grid, minutes instead of hours.")] = False,
    model: Annotated[
        Path | None, typer.Option(help="A Hugging Face directory, to measure the claims on that model instead.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="With --model: what it is trained on; --tasks says what suits. With --regimes: addition, "
            "word_problems or tool_call, all by default."
        ),
    ] = None,
    tasks: Annotated[bool, typer.Option("--tasks", help="With --model: measure which tasks suit it instead.")] = False,
    device: Annotated[str, typer.Option(help="With --model: torch's name of what it is trained on.")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(help="Where results go; runs/reproduce, runs/reproduce-quick or runs/reproduce-TASK by default."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help=f"{WORKERS.help} With --model: one by default, and the cores are divided among them."),
    ] = None,
    trinity: Annotated[
        bool, typer.Option("--trinity", help="Also four runs through the real `trinity run`; takes tens of minutes.")
    ] = False,
    rates: Annotated[bool, typer.Option("--rates", help="Measure the tasks' learning rates instead.")] = False,
    regimes: Annotated[
        bool,
        typer.Option(
            "--regimes", help="Map where C2 to C8 hold instead, over learning rate, lag and task: about an hour a task."
        ),
    ] = False,
) -> None:
    """Measure the paper's claims: curves, a figure a claim, effects with intervals, verdicts.

    On small models made for it, or with --model on a language model of yours. Runs that OUT holds already are not
    repeated, so an interrupted call goes on where it stopped.
    """
    if regimes:
        if claims or quick or model or tasks or trinity or rates or device != "cpu":
            raise UsageError("--regimes goes with --task, --out and --workers alone: it maps C2 to C8 at once")
        _map(task, out, workers)
        return
    reproduce = needs_extra("lab", "trinity_rec.lab.reproduce")

    names = sorted({name.upper() for name in claims or reproduce.ALL_CLAIMS})
    if unknown := [name for name in names if name not in reproduce.ALL_CLAIMS]:
        raise UsageError(f"no claim {unknown[0]!r}; known: {', '.join(reproduce.ALL_CLAIMS)}")
    if model is not None:
        _on_model(names, model, task, tasks, device, out, workers)
        return
    if task is not None or tasks or device != "cpu":
        raise UsageError("--task, --tasks and --device want a --model; --task may stand with --regimes too")
    scale = reproduce.QUICK if quick else reproduce.FULL
    out = out or Path("runs") / ("reproduce-quick" if quick else "reproduce")
    workers = workers or os.cpu_count() or 1
    if rates:
        print_table(_table_of_rates(reproduce.measure_rates(scale, out, workers, stderr())))
        return
    judged = reproduce.reproduce(names, scale, out, workers, stderr(), trinity)
    _print(judged, out)


def _on_model(
    names: list[str], model: Path, task: str | None, tasks: bool, device: str, out: Path | None, workers: int | None
) -> None:
    on_model = needs_extra("local", "trinity_rec.lab.on_model")
    if tasks:
        print_table(_table_of_tasks(on_model.measure_suitability(model, device)))
        return
    if task not in on_model.REAL_TASKS:
        known = ", ".join(on_model.REAL_TASKS)
        raise UsageError(f"--task {task}: unknown, known are {known}" if task else f"--model wants a --task: {known}")
    out = out or Path("runs", f"reproduce-{task}")
    grid = on_model.Grid.of(task, model, device, out)
    _print(on_model.reproduce_on_model(names, grid, out, workers, stderr()), out)


def _map(task: str | None, out: Path | None, workers: int | None) -> None:
    run = needs_extra("lab", "trinity_rec.lab.regimes.run")
    if task is not None and task not in run.LAGS_OF:
        raise UsageError(f"--task {task}: unknown; known are {', '.join(run.LAGS_OF)}")
    out = out or Path("runs", "regimes")
    here = run.Map(out, [task] if task else list(run.LAGS_OF))
    rows = run.regimes(here, workers or os.cpu_count() or 1, stderr())
    table = Table()
    for column in ("claim", "task", *_COLOUR, "holds at the lowest rate"):
        table.add_column(column)
    for each in run.report.summary(rows):
        counts = (f"{each[said]} of {each['cells']}" for said in _COLOUR)
        table.add_row(each["claim"], each["task"], *counts, each["holds at the lowest rate"])
    print_table(table)
    stdout().print(f"In {out}: regimes.json, regimes.csv, regimes.md, map.png, a figure a claim (C2.png …), curves/")


def _print(judged: list[dict[str, Any]], out: Path) -> None:
    table = Table()
    for column in ("claim", "verdict", "effect", "95 % interval", "decided by"):
        table.add_column(column)
    for each in judged:
        said = each["verdict"]
        low, high = each["interval"]
        table.add_row(
            each["claim"],
            f"[{_COLOUR[said]}]{said}[/]",
            f"{each['effect']:+.3f}",
            f"{low:+.3f} to {high:+.3f}",
            each["decided_by"],
        )
    print_table(table)
    stdout().print(
        f"In {out}: report.md, claims.json, rewards.csv, a figure a claim (C1.png …), every run's curve in curves/"
    )


def _table_of_tasks(measured: Sequence[Any]) -> Table:
    from trinity_rec.lab.suitability import chosen

    kinds = {name: kind for kind, name in chosen(measured).items()}
    table = Table()
    for column in ("task", "sampled", "greedy", "groups with spread", "tokens of an answer", ""):
        table.add_column(column)
    for each in measured:
        numbers = (f"{each.sampled:.2f}", f"{each.greedy:.2f}", f"{each.spread:.0%}", str(each.tokens))
        said = f"chosen, the {kinds[each.task]} one" if each.task in kinds else "suits" if each.suits else ""
        table.add_row(each.task, *numbers, said)
    return table


def _table_of_rates(gains: dict[str, dict[float, float]]) -> Table:
    from trinity_rec.lab.rates import chosen
    from trinity_rec.lab.tasks import TASKS

    table = Table()
    for column in ("task", "rate", "gain", ""):
        table.add_column(column)
    for task, by_rate in gains.items():
        for rate, gain in by_rate.items():
            said = "chosen by the rule" if rate == chosen(by_rate) else ""
            if rate == TASKS[task].rate:
                said = f"{said}, in use".removeprefix(", ")
            table.add_row(task, f"{rate:g}", f"{gain:+.3f}", said)
    return table
