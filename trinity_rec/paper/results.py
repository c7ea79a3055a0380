"""What came out: a row for each run, and a picture for each of the paper's figures.

Accuracy is that of `mode: bench` on the checkpoints. Where there is none (on Tinker), it is Trinity's evaluation during
training, which samples with the rollouts' weights, so with weights as old as the setting makes them.
"""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from trinity_rec.paper.compose import Run
from trinity_rec.paper.experiments import EXPERIMENTS, FIGURES, Figure
from trinity_rec.plot import events
from trinity_rec.plot.draw import Curve, draw_curves, figure_grid, save, shared_legend
from trinity_rec.plot.runs import PANELS, Group, Panel, curve, final, find, tags_of
from trinity_rec.variants import SETTINGS, VARIANTS

ACCURACY_TAG = re.compile(r"(bench|eval)/[^/]+/accuracy/mean@\d+")
DRAWN = ("reward", "kl", "clip_fraction")
SMOOTH = 5  # steps


@dataclass(frozen=True)
class Row:
    """One run in the table; None where it logged nothing of the kind.

    Attributes:
        steps: trained.
        accuracy_first, accuracy_last, accuracy_best, best_step: on the held-out problems, 0 to 1; the first is the
            initial model's.
        measured_by: "bench" or "eval", see above.
        reward, kl, clip_fraction: mean over the last 10 training steps.
    """

    experiment: str
    seed: int
    figures: str
    steps: int
    accuracy_first: float | None = None
    accuracy_last: float | None = None
    accuracy_best: float | None = None
    best_step: int | None = None
    measured_by: str | None = None
    reward: float | None = None
    kl: float | None = None
    clip_fraction: float | None = None


def found_runs(root: Path) -> Iterator[Run]:
    """Every run of the paper's experiments in this directory, in the table's order."""
    for experiment in EXPERIMENTS.values():
        place = root / experiment.name
        seeds = (path.name.removeprefix(f"{place.name}-seed") for path in place.parent.glob(f"{place.name}-seed*"))
        for seed in sorted(int(each) for each in seeds if each.isdecimal()):
            yield Run(experiment, seed, root)


def logged(runs: Iterable[Run]) -> list[tuple[Run, events.Run]]:
    """The runs with what they logged, without those that have logged nothing yet."""
    found = []
    for run in runs:
        with contextlib.suppress(events.LogsError):
            found.append((run, events.read_run(run.directory)))
    return found


def row(run: Run, logs: events.Run) -> Row:
    measured = accuracy(logs)
    trained = find(logs, "critic/rewards/mean")
    values: dict[str, Any] = {name: _last(Group("", "", (logs,)), name) for name in DRAWN}
    if measured is not None:
        tag, series = measured
        best = int(np.argmax(series.values))
        values |= {
            "accuracy_first": float(series.values[0]) if series.steps[0] == 0 else None,
            "accuracy_last": float(series.values[-1]),
            "accuracy_best": float(series.values[best]),
            "best_step": int(series.steps[best]),
            "measured_by": tag.partition("/")[0],
        }
    return Row(
        experiment=run.experiment.name,
        seed=run.seed,
        figures=" ".join(run.experiment.figures),
        steps=int(trained.steps[-1]) if trained is not None and len(trained.steps) else 0,
        **values,
    )


def accuracy(logs: events.Run) -> tuple[str, events.Series] | None:
    """Tag and series of the held-out accuracy; `mode: bench` goes before the evaluation during training."""
    tags = sorted(tag for role in logs.roles.values() for tag in role if ACCURACY_TAG.fullmatch(tag))
    return next(((tag, series) for tag in tags if (series := find(logs, tag)) is not None and len(series.steps)), None)


def write_csv(rows: Iterable[Row], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = [field.name for field in fields(Row)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(names)
        for each in rows:
            writer.writerow("" if (value := getattr(each, name)) is None else value for name in names)
    return path


def table(rows: Iterable[Row]) -> Table:
    shown = Table()
    for field in fields(Row):
        shown.add_column(field.name.replace("_", " "), overflow="fold")
    for each in rows:
        cells = (getattr(each, field.name) for field in fields(Row))
        shown.add_row(
            *("" if cell is None else f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells)
        )
    return shown


def draw_figures(runs: list[tuple[Run, events.Run]], directory: Path) -> list[Path]:
    """A picture for each of the paper's figures that there are runs of: settings side by side, measures below each
    other, the mean over seeds with a band."""
    return [path for figure in FIGURES if (path := _draw(figure, runs, directory)) is not None]


def _draw(figure: Figure, runs: list[tuple[Run, events.Run]], directory: Path) -> Path | None:
    groups: dict[str, list[Group]] = {}
    for setting in figure.settings:
        for name in figure.algorithms:
            seeds = [logs for run, logs in runs if run.experiment.name == f"{figure.task}/{setting}/{name}"]
            if seeds:
                groups.setdefault(setting, []).append(Group(VARIANTS[name].title, name, tuple(seeds)))
    if not groups:
        return None
    panels = [_accuracy_panel(logs for _, logs in runs), *(_panel(name) for name in DRAWN)]
    canvas, grid = figure_grid(len(panels), len(groups))
    for column, (setting, compared) in enumerate(groups.items()):
        for line, panel in enumerate(panels):
            tags = tags_of(panel, [logs for group in compared for logs in group.runs])
            curves = [each for group in compared if (each := curve(group, tags)) is not None]
            draw_curves(
                grid[line, column],
                curves,
                ylabel=panel.title if column == 0 else None,
                xlabel="training step" if line == len(panels) - 1 else None,
                title=SETTINGS[setting].title if line == 0 else None,
                smooth=SMOOTH if panel.smoothed else 1,
            )
    shared_legend(canvas)
    canvas.suptitle(f"{figure.title} (figure {figure.number} of the paper)", fontsize=10)
    return save(canvas, directory / f"figure_{figure.number}_{figure.name}.png")


def _panel(name: str) -> Panel:
    return next(panel for panel in PANELS if panel.name == name)


def _accuracy_panel(runs: Iterable[events.Run]) -> Panel:
    tags = {measured[0] for logs in runs if (measured := accuracy(logs)) is not None}
    return Panel("accuracy", "held-out accuracy", tuple(sorted(tags)), smoothed=False)


def _last(group: Group, name: str) -> float | None:
    values: Curve | None = curve(group, tags_of(_panel(name), group.runs))
    return None if values is None else float(final(values.values)[0])
