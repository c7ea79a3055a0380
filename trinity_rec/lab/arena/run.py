"""Run the arena, column by column; after each that had runs to make write what is there, from whichever call.

OUT/scale.json                                                   by which rules; a call with others is refused
OUT/curves/<task>/<lag>/<algorithm>/<rate>/seed_<n>.csv          every run
OUT/arena.json, arena.csv, index.html, heat_map.png, robustness.png
OUT/costs.md                                                     how far each ends below the best of a lag
OUT/questions.json, question_*.png                               what the field disagrees on
OUT/own.json                                                     one's own algorithm against the others
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from trinity_rec.lab.arena import report
from trinity_rec.lab.arena.own import digest
from trinity_rec.lab.arena.plan import Cell, Plan, Scale
from trinity_rec.lab.arena.questions import answers
from trinity_rec.lab.arena.score import Curve, chosen_rate, compared, mean_ranks, score
from trinity_rec.lab.cost import TimeLeft
from trinity_rec.lab.grid import Processes, read_rows, run_grid
from trinity_rec.lab.reproduce import claim_directory
from trinity_rec.presets import PRESETS
from trinity_rec.variants import VARIANTS, Variant


def plan_of(scale: Scale, out: Path, own: Variant | None = None) -> Plan:
    """The scale's algorithms and one's own, whose curves lie under its name and digest."""
    variants, folders = {name: VARIANTS[name] for name in scale.algorithms}, {}
    if own is not None:
        variants[own.name], folders[own.name] = own, f"{own.name}-{digest(own)}"
    return Plan(scale, out, variants, folders)


def arena(
    plan: Plan, workers: int, console: Console, own: str | None = None
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Run what of the plan is not there; the results are written anew after each column that had runs to make.

    Args:
        own: the name of the user's algorithm among the plan's.

    Returns:
        The objects of `arena.json` that were asked for, and those of `own.json`.

    Raises:
        OtherResults: `plan.out` holds the runs of another scale or of other rules.
    """
    claim_directory(plan.out, plan.scale.marker)
    results = Results(plan)
    with Processes(workers) as processes:
        steps = dict.fromkeys(plan.scale.tasks, plan.scale.steps)
        time_left = TimeLeft(
            plan.runs_to_come(), steps, plan.scale.evaluate_every, workers, processes, console, "arena"
        )
        for number, (task, lag) in enumerate(plan.columns, 1):
            where = f"{task}, {lag} ({number} of {len(plan.columns)})"
            here = plan.cells((task, lag))
            tuned = run_grid(plan.tuning(here), processes, console, f"{where}, rates")
            rates = {cell: chosen_rate(tuned_curves(plan, cell)) for cell in here}
            judged = run_grid(plan.judging(rates), processes, console, f"{where}, seeds")
            if tuned or judged or number == len(plan.columns):  # what is there already is drawn once
                results.write(own)
            time_left.say(plan.runs_to_come())
    asked = {cell for column in plan.columns for cell in plan.cells(column)}
    return [cell for cell in results.cells if cell_of(cell) in asked], results.beside


def tuned_curves(plan: Plan, cell: Cell) -> dict[float, list[Curve]]:
    """Rate -> the curves of its tuning seeds."""
    scale = plan.scale
    return {rate: [read_rows(plan.path(cell, rate, seed)) for seed in scale.tuning] for rate in scale.rates}


def cell_of(scored: Mapping[str, Any]) -> Cell:
    return scored["task"], scored["lag"], scored["algorithm"]


class Results:
    """What follows from the runs that are there, those of earlier calls too.

    Attributes:
        cells: the objects of `arena.json`.
        beside: those of `own.json`: one's own algorithm against each other one.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._scored: dict[Cell, dict[str, Any]] = {}
        self._curves: dict[Cell, list[Curve]] = {}
        self._runs: dict[Cell, list[Curve]] = {}
        self.cells: list[dict[str, Any]] = []
        self.beside: list[dict[str, Any]] = []

    def write(self, own: str | None) -> None:
        """Read what is new and write everything anew."""
        plan, there = self._plan, self._plan.whole()
        for cell in there:
            if cell not in self._scored:
                task, lag, name = cell
                tuned = tuned_curves(plan, cell)
                rate = chosen_rate(tuned)
                self._curves[cell] = [read_rows(plan.path(cell, rate, seed)) for seed in plan.scale.judging]
                self._runs[cell] = [*(curve for curves in tuned.values() for curve in curves), *self._curves[cell]]
                self._scored[cell] = score(name, task, lag, tuned, self._curves[cell])
        self.cells = [self._scored[cell] for cell in there]
        places = mean_ranks(self.cells)
        for scored in self.cells:
            scored["mean_rank"] = places[scored["algorithm"]]
        curves = {cell: self._curves[cell] for cell in there}
        self.beside = against(own, self._scored, curves) if own else []
        variants = {
            name: plan.variants.get(name) or VARIANTS[name] for name in dict.fromkeys(cell[2] for cell in there)
        }
        runs = {cell: self._runs[cell] for cell in there if cell[2] in PRESETS}
        report.write(plan.out, self.cells, curves, variants, self.beside, answers(curves, runs))


def against(
    own: str, scored: Mapping[Cell, Mapping[str, Any]], curves: Mapping[Cell, list[Curve]]
) -> list[dict[str, Any]]:
    """One's own algorithm against each other one in each column that it is in."""
    beside = []
    for mine in [cell for cell in curves if cell[2] == own]:
        others = [cell for cell in curves if cell[:2] == mine[:2] and cell != mine]
        ends = {cell: scored[cell]["final"] for cell in others if cell[2] in PRESETS}
        best = max(ends, key=lambda cell: ends[cell], default=None)
        beside += [
            {
                "task": cell[0],
                "lag": cell[1],
                "algorithm": cell[2],
                **compared(curves[mine], curves[cell]),
                "is_best": cell == best,
                "robustness": {"own": scored[mine]["robustness"], "other": scored[cell]["robustness"]},
            }
            for cell in others
        ]
    return beside
