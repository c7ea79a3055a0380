"""Run what the map needs, column by column (a task and a lag), and write it anew after each that had runs to make.

OUT/scale.json                                                 by which rules; a call with others is refused
OUT/curves/<task>/<lag>/<variant>/<rate>/seed_<n>.csv          every run
OUT/regimes.json, regimes.csv, regimes.md, map.png, C2.png ... what is whole, from whichever call
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

from rich.console import Console

from trinity_rec.lab.claims import Claim, Curve
from trinity_rec.lab.cost import TimeLeft
from trinity_rec.lab.grid import Job, Processes, read_rows, run_grid
from trinity_rec.lab.regimes import report
from trinity_rec.lab.regimes.rules import (
    EVALUATE_EVERY,
    FACTORS,
    LAGS_OF,
    MAPPED,
    RULES,
    SEEDS,
    STEPS_OF,
    Cell,
    Run,
    judge_claim,
    judge_part_at,
    parts_at,
    run_of,
    runs_of,
)
from trinity_rec.lab.reproduce import claim_directory
from trinity_rec.lab.tasks import TASKS
from trinity_rec.lab.training import Experiment, train
from trinity_rec.variants import LAGS, VARIANTS


@dataclass(frozen=True)
class Map:
    """The cells of some tasks, and the runs behind them.

    Attributes:
        tasks: those that are run; what OUT holds of others is judged too.
    """

    out: Path
    tasks: Sequence[str]
    claims: Sequence[Claim] = tuple(MAPPED.values())
    factors: Sequence[float] = FACTORS
    seeds: Sequence[int] = SEEDS
    steps: Mapping[str, int] = field(default_factory=lambda: STEPS_OF)
    evaluate_every: int = EVALUATE_EVERY

    @property
    def marker(self) -> dict[str, Any]:
        """What results must have in common to stand in one directory."""
        return {
            "regime_rules": RULES,
            "steps": dict(self.steps),
            "evaluate_every": self.evaluate_every,
            "factors": list(self.factors),
            "seeds": list(self.seeds),
            "rates": {task: TASKS[task].rate for task in LAGS_OF},
        }

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Task and lag, in the order in which they are run."""
        return [(task, lag) for task in self.tasks for lag in LAGS_OF[task]]

    def cells(self, column: tuple[str, str]) -> list[Cell]:
        return [Cell(*column, factor) for factor in self.factors]

    def paths(self, cell: Cell, run: Run) -> dict[int, Path]:
        """Seed -> its curve."""
        variant, factor = run
        place = Path(self.out, "curves", cell.task, cell.lag, variant, f"{factor * TASKS[cell.task].rate:g}")
        return {seed: place / f"seed_{seed}.csv" for seed in self.seeds}

    def jobs(self, column: tuple[str, str]) -> list[Job]:
        """Every run of a column once, those of its smallest rate first."""
        task, lag = column
        jobs: dict[Path, Job] = {}
        for cell in self.cells(column):
            for run in runs_of(self.claims, cell):
                for seed, path in self.paths(cell, run).items():
                    experiment = Experiment(
                        task,
                        LAGS[lag],
                        VARIANTS[run[0]],
                        seed,
                        run[1] * TASKS[task].rate,
                        self.steps[task],
                        evaluate_every=self.evaluate_every,
                    )
                    jobs[path] = Job(partial(train, experiment), path, self.steps[task])
        return list(jobs.values())

    def runs_to_come(self) -> dict[str, int]:
        """Task -> runs that are not there, if any."""
        missing = [task for task, lag in self.columns for job in self.jobs((task, lag)) if not job.path.exists()]
        return dict(Counter(missing))

    def judged(self) -> list[dict[str, Any]]:
        """The objects of `regimes.json`: a part of a claim in a cell, where all that it needs is there, by claim."""
        rows = []
        for task, lags in LAGS_OF.items():
            for lag in (lag for lag in LAGS if lag in lags):
                for cell in self.cells((task, lag)):
                    curves = self._curves(cell, runs_of(self.claims, cell))
                    for claim in self.claims:
                        rows += self._judged_in(claim, cell, curves)
        return sorted(rows, key=itemgetter("claim"))

    def _curves(self, cell: Cell, runs: Sequence[Run]) -> dict[Run, list[Curve]]:
        """Of the runs whose seeds all are there."""
        paths = {run: list(self.paths(cell, run).values()) for run in runs}
        return {
            run: [read_rows(path) for path in files]
            for run, files in paths.items()
            if all(path.exists() for path in files)
        }

    def _judged_in(self, claim: Claim, cell: Cell, curves: dict[Run, list[Curve]]) -> list[dict[str, Any]]:
        """A claim counts in a cell where all its parts there can be judged."""
        parts = parts_at(claim, cell.lag)
        if not parts or any(run not in curves for run in runs_of([claim], cell)):
            return []
        judged = [
            judge_part_at(part, cell.task, {name: curves[run_of(name, cell.factor)] for name in part.contrast})
            for part in parts
        ]
        whole = judge_claim([each.verdict for each in judged])
        return [
            {
                "claim": claim.name,
                "part": each.statement,
                "task": cell.task,
                "lag": cell.lag,
                "factor": cell.factor,
                "rate": cell.factor * TASKS[cell.task].rate,
                "measure": part.measure,
                "effect": each.effect,
                "interval": list(each.interval),
                "verdict": each.verdict,
                "claim_verdict": whole,
                "seeds": len(self.seeds),
            }
            for part, each in zip(parts, judged, strict=True)
        ]


def regimes(here: Map, workers: int, console: Console) -> list[dict[str, Any]]:
    """Run what of the map is not there; the results are written anew after each column that had runs to make.

    Returns:
        The objects of `regimes.json`, of earlier calls too.

    Raises:
        OtherResults: `here.out` holds the runs of other rules.
    """
    claim_directory(here.out, here.marker)
    rows: list[dict[str, Any]] = []
    with Processes(workers) as processes:
        time_left = TimeLeft(here.runs_to_come(), here.steps, here.evaluate_every, workers, processes, console, "map")
        for number, column in enumerate(here.columns, 1):
            what = f"{', '.join(column)} ({number} of {len(here.columns)})"
            ran = run_grid(here.jobs(column), processes, console, what)
            if ran or number == len(here.columns):  # to draw takes 15 seconds: what is there already is drawn once
                rows = here.judged()
                report.write(here.out, rows)
            time_left.say(here.runs_to_come())
    return rows
