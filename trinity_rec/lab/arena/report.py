"""The arena's results as files: JSON, CSV, two figures, and one page that needs nothing else."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trinity_rec.lab.arena.plan import COLLAPSE, KEPT, LEAST_SAMPLE_SIZE, Cell
from trinity_rec.lab.arena.questions import MARGIN, NOT_MEASURED
from trinity_rec.lab.arena.score import Curve, costs, front, said_of_success, success
from trinity_rec.lab.real_tasks import task_named
from trinity_rec.plot import draw
from trinity_rec.plot.draw import COLOURS, GRID, INK, dress, figure_grid, headline, new_figure, save, shared_legend
from trinity_rec.plot.page import document, figure
from trinity_rec.presets import FAMILIES, PRESETS
from trinity_rec.variants import LAGS, Variant

ACROSS = 3  # panels in a row
MARKS = ("o", "s", "^")
COLUMNS = {
    "algorithm": "algorithm",
    "task": "task",
    "lag": "lag",
    "final": "final reward",
    "interval": "95 % interval",
    "auc": "area under the curve",
    "collapse_rate": "collapse rate",
    "robustness": "robustness",
    "rate": "rate",
    "mean_rank": "mean rank",
    "low_entropy_rate": "entropy gate",
    "low_sample_size_rate": "sample size gate",
    "seeds": "seeds",
}


def write(
    out: Path,
    cells: Sequence[Mapping[str, Any]],
    curves: Mapping[Cell, Sequence[Curve]],
    variants: Mapping[str, Variant],
    beside: Sequence[Mapping[str, Any]],
    answered: Sequence[Mapping[str, Any]],
) -> None:
    """Write all of it to `out`.

    Args:
        curves: of the judging seeds.
        beside: one's own algorithm against the others, see `run.against`; none without one.
        answered: what `questions.answers` gave.
    """
    (out / "arena.json").write_text(json.dumps(cells, indent=2) + "\n", encoding="utf-8")
    with (out / "arena.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([*(name for name in COLUMNS if name != "interval"), "low", "high"])
        for cell in cells:
            numbers = [cell[name] for name in COLUMNS if name != "interval"]
            writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in (*numbers, *cell["interval"])])
    (out / "costs.md").write_text(cost_table(cells, variants) + "\n", encoding="utf-8")
    (out / "questions.json").write_text(json.dumps(answered, indent=2) + "\n", encoding="utf-8")
    # An algorithm that took part in an earlier call may not in this one.
    for earlier in (out / "own.json", *out.glob("curves_*.png"), *out.glob("question_*.png")):
        earlier.unlink(missing_ok=True)
    if beside:
        (out / "own.json").write_text(json.dumps(beside, indent=2) + "\n", encoding="utf-8")
    pictures = [
        figure(draw_heat_map(cells, variants, out / "heat_map.png"), "final reward by algorithm and lag", _HEAT_MAP),
        figure(draw_robustness(cells, variants, out / "robustness.png"), "reward against robustness", _ROBUSTNESS),
    ]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        for family, names in families(variants).items():
            path = draw_family(task, family, names, curves, variants, out / f"curves_{task}_{family.lower()}.png")
            pictures.append(figure(path, f"curves of {family} on {task}", f"{task}: {FAMILIES[family]}"))
    body = _BODY.format(
        table=table(cells, variants),
        costs=plain_table(cost_rows(cells, variants)),
        beside=own_table(beside, variants),
        questions="\n".join(section(each, out) for each in answered),
        pictures="\n".join(pictures),
    )
    (out / "index.html").write_text(document("Arena", body), encoding="utf-8")


def families(variants: Mapping[str, Variant]) -> dict[str, list[str]]:
    """Family -> the algorithms of it that take part; one's own stands with the family of its preset."""
    found: dict[str, list[str]] = {}
    for name, variant in variants.items():
        found.setdefault(PRESETS[variant.preset].family, []).append(name)
    return found


def by_mean_rank(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """The algorithms, the best first."""
    places = {cell["algorithm"]: cell["mean_rank"] for cell in cells}
    return sorted(places, key=lambda name: places[name])


def draw_heat_map(cells: Sequence[Mapping[str, Any]], variants: Mapping[str, Variant], path: Path) -> Path:
    """Tuned final reward, a row an algorithm and a column a lag, a panel a task."""
    names, tasks = by_mean_rank(cells), list(dict.fromkeys(cell["task"] for cell in cells))
    lags = [lag for lag in LAGS if any(cell["lag"] == lag for cell in cells)]
    ends = {(cell["task"], cell["algorithm"], cell["lag"]): cell["final"] for cell in cells}
    picture = new_figure(2.4 + (0.8 + 0.62 * len(lags)) * len(tasks), 1.3 + 0.24 * len(names))
    panels = picture.subplots(1, len(tasks), sharey=True, squeeze=False)[0]
    for axes, task in zip(panels, tasks, strict=True):
        values = np.array([[ends.get((task, name, lag), np.nan) for lag in lags] for name in names])
        image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if np.isfinite(value):
                colour = "white" if value < 0.55 else INK
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=7.5)
        axes.set_xticks(range(len(lags)), [LAGS[lag].title for lag in lags], rotation=40, ha="right", fontsize=8)
        axes.set_yticks(range(len(names)), [variants[name].title for name in names], fontsize=8)
        axes.tick_params(length=0, colors=INK)
        axes.spines[:].set_visible(False)
        axes.set_title(task_named(task).title, loc="left", color=INK, fontsize=10, weight="bold")
    bar = picture.colorbar(image, ax=panels.tolist(), fraction=0.03, pad=0.02)
    bar.ax.tick_params(length=0, colors=INK, labelsize=8)
    bar.outline.set_visible(False)
    return save(picture, path)


def panel_a_lag(there: Collection[str], panel: tuple[float, float]) -> tuple[Figure, dict[str, Axes]]:
    """A figure with a panel, of so many inches, for each lag that is there, `ACROSS` in a row."""
    lags = [lag for lag in LAGS if lag in there]
    picture, grid = figure_grid(-(-len(lags) // ACROSS), min(ACROSS, len(lags)), panel)
    for axes in grid.flat[len(lags) :]:
        axes.set_visible(False)
    return picture, dict(zip(lags, grid.flat, strict=False))


def draw_robustness(cells: Sequence[Mapping[str, Any]], variants: Mapping[str, Variant], path: Path) -> Path:
    """Each algorithm's tuned final reward against its robustness, means over tasks; a panel a lag, a colour a family.

    Named are those that no other beats in both; one's own is a star.
    """
    picture, panels = panel_a_lag({cell["lag"] for cell in cells}, (4.0, 3.0))
    family_of = {name: family for family, names in families(variants).items() for name in names}
    colours = dict(zip(FAMILIES, COLOURS, strict=False))
    for number, (lag, axes) in enumerate(panels.items()):
        points = {}
        for name in family_of:
            here = [cell for cell in cells if cell["lag"] == lag and cell["algorithm"] == name]
            if here:
                points[name] = tuple(float(np.mean([cell[key] for cell in here])) for key in ("robustness", "final"))
        unbeaten = front(points)
        for place, (name, (x, y)) in enumerate(points.items()):
            x += 0.05 * (place / len(points) - 0.5)  # robustness takes few values: equals lie beside each other
            family, own = family_of[name], name not in PRESETS
            axes.scatter(
                [x],
                [y],
                s=90 if own else 34,
                marker="*" if own else "o",
                color=INK if own else colours[family],
                alpha=0.8,
                linewidths=0,
                zorder=4 if own else 3,
                label=variants[name].title if own else f"{family}: {FAMILIES[family]}",
            )
            if name in unbeaten and not own:  # the legend has one's own
                axes.annotate(
                    variants[name].title,
                    (x, y),
                    xytext=(3, 5),
                    textcoords="offset points",
                    rotation=20,  # so that neighbours' names pass each other
                    rotation_mode="anchor",
                    fontsize=8,
                    color=INK,
                    zorder=5,
                )
        axes.set_xlim(-0.05, 1.05)
        axes.set_title(LAGS[lag].title, loc="left", color=INK, fontsize=10, weight="bold")
        axes.set_xlabel("robustness", color=INK, fontsize=9.5)
        if number % ACROSS == 0:
            axes.set_ylabel("final reward", color=INK, fontsize=9.5)
    shared_legend(picture)
    return save(picture, path)


def draw_family(
    task: str,
    family: str,
    names: Sequence[str],
    curves: Mapping[Cell, Sequence[Curve]],
    variants: Mapping[str, Variant],
    path: Path,
) -> Path:
    """The reward curves of a family's algorithms at their own rates, a panel a lag."""
    here = {lag for lag in LAGS if any((task, lag, name) in curves for name in names)}
    picture, panels = panel_a_lag(here, (3.6, 2.4))
    styles = draw.styles_for(variants)
    for number, (lag, axes) in enumerate(panels.items()):
        lines = [
            draw.Curve(variants[name].title, seeds[0]["step"], np.stack([curve["reward"] for curve in seeds]), name)
            for name in names
            if (seeds := curves.get((task, lag, name)))
        ]
        draw.draw_curves(
            axes,
            lines,
            title=LAGS[lag].title,
            ylabel=None if number % ACROSS else "reward",
            xlabel="training step",
            styles=styles,
        )
    headline(picture, f"{task_named(task).title}: {family}", size=11)
    shared_legend(picture)
    return save(picture, path)


def shown(value: Any) -> str:
    """A number, a name or an interval as tables show it."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 0.01 and value else f"{value:.3f}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return " to ".join(f"{x:.3f}" for x in value)
    return str(value)


def table(cells: Sequence[Mapping[str, Any]], variants: Mapping[str, Variant]) -> str:
    """Every cell, a row each; a click on a head sorts."""
    heads = "".join(f'<th scope="col" tabindex="0">{escape(head)}</th>' for head in COLUMNS.values())
    rows = []
    for cell in sorted(cells, key=lambda cell: (cell["task"], list(LAGS).index(cell["lag"]), -cell["final"])):
        values = []
        for name in COLUMNS:
            value = cell[name]
            text = (
                variants[value].title if name == "algorithm" else LAGS[value].title if name == "lag" else shown(value)
            )
            key = value[0] if name == "interval" else text if isinstance(value, str) else value
            values.append(f'<td data-key="{escape(str(key))}">{escape(text)}</td>')
        rows.append(f"<tr>{''.join(values)}</tr>")
    return f'<table class="sortable"><thead><tr>{heads}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def cost_rows(cells: Sequence[Mapping[str, Any]], variants: Mapping[str, Variant]) -> list[list[str]]:
    """`costs` with heads: a row an algorithm, a column a lag, and the mean over lags."""
    lags = [lag for lag in LAGS if any(cell["lag"] == lag for cell in cells)]
    rows = [["algorithm", *(LAGS[lag].title for lag in lags), "mean"]]
    for name, of_lag in costs(cells).items():
        lost = [f"{of_lag[lag]:.2f}" if lag in of_lag else "" for lag in lags]
        rows.append([variants[name].title, *lost, f"{np.mean(list(of_lag.values())):.2f}"])
    return rows


def cost_table(cells: Sequence[Mapping[str, Any]], variants: Mapping[str, Variant]) -> str:
    """`cost_rows` as Markdown."""
    heads, *rows = (f"| {' | '.join(row)} |" for row in cost_rows(cells, variants))
    return "\n".join([heads, "|---" * (heads.count("|") - 1) + "|", *rows])


def own_table(beside: Sequence[Mapping[str, Any]], variants: Mapping[str, Variant]) -> str:
    """One's own algorithm against the others; nothing without one."""
    if not beside:
        return ""
    heads = ["task", "lag", "against", "difference", "95 % interval", "it is"]
    rows = [
        [
            task_named(each["task"]).title,
            LAGS[each["lag"]].title,
            variants[each["algorithm"]].title,
            f"{each['difference']:+.3f}",
            shown(each["interval"]),
            each["verdict"],
        ]
        for each in beside
    ]
    found = success(beside)
    note = f'<p class="note">{escape(said_of_success(found))}</p>' if found else ""
    return f"<h2>Your algorithm against the others</h2>{note}{plain_table([heads, *rows])}"


def section(answered: Mapping[str, Any], out: Path) -> str:
    """A question with its answers as a table, and a figure in `out`; what is not there is said not to be measured."""
    title = f"<h3>{escape(answered['title'])}</h3>"
    rows = answered.get("contrasts") or answered["lags"]
    if all(row["verdict"] == NOT_MEASURED for row in rows):
        return f"{title}<p>Not measured: the cells that it takes are not there.</p>"
    path = out / f"question_{answered['question']}.png"
    if "contrasts" in answered:
        heads = ["contrast", "lag", "difference", "95 % interval", "it is", "answer", "cells"]
        body = [
            [
                row["contrast"],
                _where(row["lag"]),
                *((f"{row['difference']:+.3f}", shown(row["interval"])) if "interval" in row else ("", "")),
                row["verdict"],
                row.get("answer", ""),
                str(row["cells"]),
            ]
            for row in rows
        ]
        draw_contrasts(rows, path)
    else:
        heads = ["lag", *(f"{name}, 95 % interval" for name in SHARES.values()), "runs", "collapsed", "it"]
        body = [
            [
                _where(row["lag"]),
                *(_with_interval(row, key) for key in SHARES),
                str(row["runs"]),
                str(row["collapsed"]),
                row["verdict"],
            ]
            for row in rows
        ]
        draw_shares(rows, path)
    picture = figure(path, answered["title"], answered["title"])
    return f'{title}<div class="scroll">{plain_table([heads, *body])}</div><div class="figures">{picture}</div>'


def plain_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row are the heads."""
    lines: list[str] = []
    for row in rows:
        tag = "td" if lines else "th"
        lines.append(f"<tr>{''.join(f'<{tag}>{escape(each)}</{tag}>' for each in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def _where(lag: str) -> str:
    return LAGS[lag].title if lag in LAGS else "all but on-policy"


def _with_interval(row: Mapping[str, Any], key: str) -> str:
    return f"{shown(row[key])} ({shown(row[f'{key}_interval'])})" if row.get(key) is not None else ""


def draw_contrasts(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Each contrast's difference and interval by lag; within the grey band algorithms are alike."""
    picture = new_figure(7.2, 3.4)
    axes = dress(picture.subplots())
    lags = list(dict.fromkeys(row["lag"] for row in rows if "interval" in row))
    titles = list(dict.fromkeys(row["contrast"] for row in rows))
    for number, title in enumerate(titles):
        here = [row for row in rows if row["contrast"] == title and "interval" in row]
        if here:
            at = [lags.index(row["lag"]) + 0.22 * (number - (len(titles) - 1) / 2) for row in here]
            _errors(axes, at, [(row["difference"], row["interval"]) for row in here], number, title)
    axes.axhspan(-MARGIN, MARGIN, color=GRID, zorder=0)
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_xticks(range(len(lags)), [_where(lag) for lag in lags], rotation=20, ha="right")
    axes.set_ylabel("difference in final reward", color=INK, fontsize=9.5)
    shared_legend(picture)
    return save(picture, path)


def draw_shares(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Hit rate and false alarms by lag, and the lead in steps beside them."""
    picture = new_figure(9.0, 3.4)
    here = [row for row in rows if row["verdict"] != NOT_MEASURED]
    panels = picture.subplots(1, 2)
    for axes, keys, title in (
        (panels[0], ("hit_rate", "false_alarms"), "share of runs"),
        (panels[1], ("lead",), "steps from alarm to collapse"),
    ):
        dress(axes)
        for number, key in enumerate(keys):
            at = [place + 0.2 * number for place, row in enumerate(here) if row[key] is not None]
            points = [(row[key], row[f"{key}_interval"]) for row in here if row[key] is not None]
            if points:
                _errors(axes, at, points, number + 2 * (key == "lead"), SHARES[key])
        axes.set_xticks(range(len(here)), [_where(row["lag"]) for row in here], rotation=25, ha="right")
        axes.set_title(title, loc="left", color=INK, fontsize=10, weight="bold")
    panels[0].set_ylim(-0.03, 1.03)
    shared_legend(picture)
    return save(picture, path)


def _errors(
    axes: Axes, at: Sequence[float], points: Sequence[tuple[float, Sequence[float]]], number: int, label: str
) -> None:
    values = np.array([value for value, _ in points])
    low, high = np.array([interval for _, interval in points]).T
    axes.errorbar(
        at,
        values,
        np.maximum([values - low, high - values], 0),
        color=COLOURS[number],
        marker=MARKS[number],
        linestyle="",
        markersize=5,
        capsize=3,
        label=label,
        zorder=3,
    )


SHARES = {
    "hit_rate": "hit rate",
    "false_alarms": "false alarms",
    "hits_less_false_alarms": "hit rate less false alarms",
    "lead": "lead in steps",
}
_HEAT_MAP = "Final reward at each algorithm's own rate, mean over fresh seeds; the best mean rank is on top."
_ROBUSTNESS = (
    f"Robustness: the share of the rates at which {KEPT:.0%} of the best gain is kept. Means over tasks; named are the "
    "algorithms that no other beats in both."
)
_BODY = (
    """<p class="note">Each algorithm trains at a learning rate of its own, chosen per task and lag on seeds that
count for nothing else. Intervals are bootstrap 95 % over fresh seeds. Collapse: the reward ends """
    + f"{COLLAPSE:g}"
    + """ or more below its best. Mean rank is over tasks and lags. The gates are shares of runs that stopped exploring
with reward left to gain, and whose effective sample size fell below a half. A click on a head sorts.</p>
<div class="scroll">{table}</div>
<div class="scroll">{beside}</div>
<h2>What a choice costs</h2>
<p class="note">How far an algorithm, at its own rate, ends below the best of a task and lag; mean over tasks.</p>
<div class="scroll">{costs}</div>
<h2>What the field disagrees on</h2>
<p class="note">Differences in final reward, paired by seed, means over tasks; bootstrap 95 %. Less than """
    + f"{MARGIN:g}"
    + """ either way is alike. An alarm is an effective sample size below """
    + f"{LEAST_SAMPLE_SIZE:g}"
    + """, a hit one before a collapse. The rules stand in trinity_rec/lab/arena/questions.py.</p>
{questions}
<div class="figures">
{pictures}
</div>
<script>
document.querySelectorAll("table.sortable").forEach(table => table.querySelectorAll("th").forEach((head, column) => {{
  const sort = () => {{
    const body = table.tBodies[0], key = row => row.cells[column].dataset.key, now = head.getAttribute("aria-sort");
    const down = now ? now === "ascending" : !isNaN(key(body.rows[0]));  // first names from A, numbers from the top
    table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const order = (a, b) => isNaN(key(a)) ? key(a).localeCompare(key(b)) : key(a) - key(b);
    [...body.rows].sort((a, b) => down ? order(b, a) : order(a, b)).forEach(row => body.append(row));
  }};
  head.style.cursor = "pointer";
  head.addEventListener("click", sort);
  head.addEventListener("keydown", event => event.key === "Enter" && sort());
}}));
</script>
"""
)
