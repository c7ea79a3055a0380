"""The map as files: JSON, CSV, a table in Markdown, a figure of all claims, and one a claim with a row a part."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch

from trinity_rec.lab.claims import FAILS, HOLDS, OPEN
from trinity_rec.lab.real_tasks import task_named
from trinity_rec.lab.regimes.rules import LOG_STEPS, MAPPED
from trinity_rec.plot.draw import INK, headline, new_figure, save
from trinity_rec.variants import LAGS

Row = Mapping[str, Any]
# Blue, orange and grey differ in lightness too, so that any eye, and a printer without colour, tells them apart.
COLOURS = {HOLDS: "#1f5fa8", FAILS: "#f5a742", OPEN: "#e3e3e3"}
INKS = {HOLDS: "white", FAILS: INK, OPEN: INK}


def write(out: Path, rows: Sequence[Row]) -> None:
    """Write all of it to `out`; nothing but the two tables where nothing is whole yet."""
    (out / "regimes.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    with (out / "regimes.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        numbers = [name for name in (rows[0] if rows else {}) if name != "interval"]
        writer.writerow([*numbers, "low", "high"])
        for row in rows:
            values = (*(row[name] for name in numbers), *row["interval"])
            writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in values])
    (out / "regimes.md").write_text(summary_table(rows) + "\n", encoding="utf-8")
    if rows:
        draw_map(rows, out / "map.png")
    for name in dict.fromkeys(row["claim"] for row in rows):
        draw_claim([row for row in rows if row["claim"] == name], out / f"{name}.png")


def summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """A claim on a task: in how many cells it holds, does not and is inconclusive, of how many; the same at the lowest
    rate alone; and the parts that do not hold anywhere."""
    said = []
    for claim, task in dict.fromkeys((row["claim"], row["task"]) for row in rows):
        here = [row for row in rows if (row["claim"], row["task"]) == (claim, task)]
        cells = {(row["lag"], row["factor"]): row["claim_verdict"] for row in here}
        lowest = [verdict for (_, factor), verdict in cells.items() if factor == min(factor for _, factor in cells)]
        holding = {row["part"] for row in here if row["verdict"] == HOLDS}
        said.append(
            {
                "claim": claim,
                "task": task,
                **{verdict: list(cells.values()).count(verdict) for verdict in COLOURS},
                "cells": len(cells),
                "holds at the lowest rate": f"{lowest.count(HOLDS)} of {len(lowest)}",
                "parts that hold nowhere": [
                    part for part in dict.fromkeys(row["part"] for row in here) if part not in holding
                ],
            }
        )
    return said


def summary_table(rows: Sequence[Row]) -> str:
    """`summary` as Markdown."""
    heads = ["claim", "task", *COLOURS, "at the lowest rate it holds in", "parts that hold nowhere"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for each in summary(rows):
        counts = (f"{each[verdict]} of {each['cells']}" for verdict in COLOURS)
        nowhere = ", ".join(each["parts that hold nowhere"])
        cells = [each["claim"], task_named(each["task"]).title, *counts, each["holds at the lowest rate"], nowhere]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def draw_map(rows: Sequence[Row], path: Path) -> Path:
    """A row a claim, a panel a task: the claim's verdict at each rate and lag, and how many of its parts hold."""
    said: dict[tuple[str, str], dict[tuple[str, float], tuple[str, str]]] = {}
    for row in rows:
        here = [each for each in rows if all(each[key] == row[key] for key in ("claim", "task", "lag", "factor"))]
        text = f"{sum(each['verdict'] == HOLDS for each in here)}/{len(here)}"
        said.setdefault((row["claim"], row["task"]), {})[row["lag"], row["factor"]] = (row["claim_verdict"], text)
    names = {name: f"{name}: {MAPPED[name].title}" for name in dict.fromkeys(row["claim"] for row in rows)}
    return _draw(names, said, "Where each claim holds; numbers: parts that hold", path)


def draw_claim(rows: Sequence[Row], path: Path) -> Path:
    """A row a part, a panel a task: its verdict at each rate and lag, and its effect."""
    said: dict[tuple[str, str], dict[tuple[str, float], tuple[str, str]]] = {}
    for row in rows:
        said.setdefault((row["part"], row["task"]), {})[row["lag"], row["factor"]] = (row["verdict"], effect(row))
    claim = rows[0]["claim"]
    names = {part: part for part in dict.fromkeys(row["part"] for row in rows)}
    return _draw(names, said, f"{claim}: {MAPPED[claim].title}", path)


def effect(row: Row) -> str:
    """As the cells show it; of speed how many times the steps."""
    return f"x{math.exp(row['effect']):.2f}" if row["measure"] == LOG_STEPS else f"{row['effect']:+.2f}"


def _draw(
    names: Mapping[str, str],
    said: Mapping[tuple[str, str], Mapping[tuple[str, float], tuple[str, str]]],
    title: str,
    path: Path,
) -> Path:
    """Panels of verdicts.

    Args:
        names: key of a row of panels -> its title.
        said: row of panels and task -> lag and factor -> verdict and text; no cell where nothing was measured.
    """
    tasks = list(dict.fromkeys(task for _, task in said))
    there = {(task, lag) for (_, task), cells in said.items() for lag, _ in cells}
    lags = {task: [lag for lag in LAGS if (task, lag) in there] for task in tasks}
    factors = sorted({factor for cells in said.values() for _, factor in cells})
    widths = [len(lags[task]) for task in tasks]
    height = 0.55 + 0.2 * len(factors)
    figure = new_figure(max(6.4, 1.1 + 0.62 * sum(widths)), 1.5 + height * len(names))
    grid = figure.subplots(len(names), len(tasks), sharex="col", sharey=True, squeeze=False, width_ratios=widths)
    for down, (key, name) in enumerate(names.items()):
        for across, task in enumerate(tasks):
            axes = grid[down, across]
            _panel(axes, said.get((key, task), {}), lags[task], factors)
            axes.set_title(
                f"{name}\n{task_named(task).title}" if not across else f"\n{task_named(task).title}",
                loc="left",
                color=INK,
                fontsize=8.5,
                weight="bold" if not across else "normal",
            )
        grid[down, 0].set_ylabel("rate", color=INK, fontsize=8)
    figure.legend(
        [Patch(facecolor=colour) for colour in COLOURS.values()],
        list(COLOURS),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )
    headline(figure, title, size=11)
    return save(figure, path)


def _panel(
    axes: Axes, cells: Mapping[tuple[str, float], tuple[str, str]], lags: Sequence[str], factors: Sequence[float]
) -> None:
    """Lags from left to right, rates upwards."""
    codes = np.full((len(factors), len(lags)), np.nan)
    for (lag, factor), (said, text) in cells.items():
        at = factors.index(factor), lags.index(lag)
        codes[at] = list(COLOURS).index(said)
        axes.text(at[1], at[0], text, ha="center", va="center", fontsize=7, color=INKS[said])
    axes.imshow(
        codes, cmap=ListedColormap(list(COLOURS.values())), vmin=0, vmax=len(COLOURS) - 1, aspect="auto", origin="lower"
    )
    axes.set_xticks(range(len(lags)), [LAGS[lag].title for lag in lags], rotation=40, ha="right", fontsize=7.5)
    axes.set_yticks(range(len(factors)), [f"x{factor:g}" for factor in factors], fontsize=7.5)
    axes.tick_params(length=0, colors=INK)
    axes.spines[:].set_visible(False)
