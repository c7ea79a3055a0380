"""The one place where curves are drawn: the mean over seeds with a band, each algorithm always in the same style.

    figure, grid = figure_grid(rows=2, columns=3)
    draw_curves(grid[0, 0], [Curve("REC-Ring-NoIS", steps, values, name="rec_ring_nois")], ylabel="reward")
    shared_legend(figure)
    save(figure, path)

Matplotlib's object interface alone: no pyplot, no display, nothing kept between figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

INK, GRID, FAINT = "#222222", "#e6e6e6", "#767676"  # text, lines of the grid, what may recede
LINE, BEFORE, AFTER = "#2a6fbb", "#b0b0b0", "#d1495b"  # where no algorithm is compared: a curve, two of its points
DPI = 160
LEGEND_ROW = 0.19  # inches
# Student's t, two-sided 95 %, for 3 to 12 seeds; for more the last one, which is a little wider than need be.
T_95 = np.array([4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201])


@dataclass(frozen=True)
class Style:
    """How an algorithm's line looks; `dashes` are lengths of ink and gap in line widths, empty for a solid line."""

    colour: str
    dashes: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curve:
    """One algorithm's values in one setting.

    Attributes:
        label: what the legend says.
        steps: [points], ascending.
        values: [seeds, points]; NaN where a seed has none.
        name: the preset or variant whose style it takes; `label` by default.

    Raises:
        ValueError: the shapes do not fit.
    """

    label: str
    steps: np.ndarray
    values: np.ndarray
    name: str = ""

    def __post_init__(self) -> None:
        if np.ndim(self.steps) != 1 or np.ndim(self.values) != 2 or len(self.steps) != np.shape(self.values)[1]:
            raise ValueError(
                f"curve {self.label!r}: steps {np.shape(self.steps)} and values {np.shape(self.values)} are not "
                "[points] and [seeds, points]"
            )


# Nine colours that stay apart for normal sight, protanopia, deuteranopia and tritanopia (a test measures it). Where two
# algorithms share a colour their dashes differ: solid without importance sampling, dashed with it or for a variant.
VERMILION, BLUE, SKY, GREEN, AMBER = "#ec5807", "#0a3fb7", "#29afff", "#249e72", "#f1a202"
SILVER, PLUM, MAUVE = "#b0b3b4", "#761861", "#796086"
DASHED, DASH_DOT, DOTTED = (4.0, 1.6), (5.0, 1.4, 1.2, 1.4), (1.2, 1.2)
DASH_DOT_DOT, LONG_SHORT = (5.0, 1.4, 1.2, 1.4, 1.2, 1.4), (7.0, 1.6, 3.0, 1.6)

STYLES: dict[str, Style] = {
    "rec": Style(SILVER, DOTTED),
    "rec_reinforce": Style(VERMILION),
    "rec_grpo": Style(INK),
    "rec_grpo_rate_2": Style(INK, DASHED),
    "rec_grpo_rate_3": Style(INK, DASH_DOT),
    "rec_grpo_rate_4": Style(INK, DASH_DOT_DOT),
    "rec_grpo_rate_5": Style(INK, DOTTED),
    "rec_oneside_nois": Style(BLUE),
    "rec_oneside_is": Style(BLUE, DASHED),
    "rec_oneside_nois_wide": Style(SKY),
    "rec_oneside_is_wide": Style(SKY, DASHED),
    "rec_twoside_nois": Style(MAUVE),
    "rec_twoside_is": Style(MAUVE, DASHED),
    "rec_ring_nois": Style(GREEN),
    "rec_ring_is": Style(GREEN, DASHED),
    "rec_gspo_nois": Style(SILVER),
    "rec_gspo_is": Style(SILVER, DASHED),
    "rep_opmd": Style(PLUM, DASH_DOT),
    "rep_asymre": Style(AMBER, DASH_DOT),
    "red_drop": Style(PLUM),
    "red_pairwise": Style(PLUM, DASHED),
    "red_weight": Style(AMBER),
    "red_weight_adaptive": Style(AMBER, DASHED),
}
COLOURS = (BLUE, VERMILION, GREEN, AMBER, PLUM, SKY, INK, MAUVE, SILVER)  # for what the table does not know


def styles_for(names: Iterable[str]) -> dict[str, Style]:
    """The table's style for the names in it; for the others the ones that are left, in order."""
    names = list(dict.fromkeys(names))
    taken = {STYLES[name] for name in names if name in STYLES}
    every = (Style(colour, dashes) for dashes in ((), DASHED, DOTTED, DASH_DOT, LONG_SHORT) for colour in COLOURS)
    free = [style for style in every if style not in taken] or [Style(INK)]
    unknown = [name for name in names if name not in STYLES]
    return {name: STYLES[name] for name in names if name in STYLES} | {
        name: free[number % len(free)] for number, name in enumerate(unknown)
    }


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    # The padding, in inches, keeps the last tick of one panel off the first of the next.
    return Figure(figsize=(width, height), dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=0.07, h_pad=0.05))


def figure_grid(rows: int, columns: int, panel: tuple[float, float] = (2.9, 2.0)) -> tuple[Figure, np.ndarray]:
    """A figure of `rows` by `columns` panels, `panel` inches each; a row shares its y axis, a column its x axis.

    Returns:
        The figure and its axes, [rows, columns].
    """
    width, height = panel[0] * columns + 0.5, panel[1] * rows + 0.75
    figure = new_figure(width, height)
    grid = figure.subplots(rows, columns, sharex="col", sharey="row", squeeze=False)
    for axes in grid.flat:
        dress(axes)
    return figure, grid


def headline(figure: Figure, text: str, size: float = 12) -> None:
    """What the figure shows, above its panels; on as many lines as its width asks for. `size` in points."""
    figure.suptitle(text, x=0.01, ha="left", color=INK, fontsize=size, weight="bold", wrap=True)


def dress(axes: Axes) -> Axes:
    """The project's look: a light grid behind the data, no frame."""
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.tick_params(length=0, colors=INK, labelsize=8.5)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    return axes


def draw_curves(
    axes: Axes,
    curves: Sequence[Curve],
    *,
    ylabel: str | None = None,
    xlabel: str | None = None,
    title: str | None = None,
    smooth: int = 1,
    styles: Mapping[str, Style] | None = None,
) -> None:
    """The mean over seeds of each curve, and a band.

    With three seeds or more the band is the mean's 95 % interval (Student's t over the seeds), with two it spans them;
    a single seed has none, and shows its values faintly behind the smoothed line.

    Args:
        smooth: each seed's values are averaged over the last so many points before anything else.
        styles: by curve name; the table's by default.
    """
    styles = styles or styles_for(curve.name or curve.label for curve in curves)
    for depth, curve in enumerate(curves):
        style = styles[curve.name or curve.label]
        # The first curve lies on top. Dashes, thinner and with white gaps, lie above solid lines: where the two agree,
        # both are seen, even in one colour.
        order = 3 - depth / 100 + bool(style.dashes)
        mean, low, high = band(running_mean(np.asarray(curve.values, float), smooth))
        if len(curve.values) == 1 and smooth > 1:
            axes.plot(curve.steps, curve.values[0], color=style.colour, alpha=0.25, linewidth=0.8, zorder=2.5)
        axes.fill_between(curve.steps, low, high, color=style.colour, alpha=0.16, linewidth=0, zorder=2)
        axes.plot(
            curve.steps,
            mean,
            color=style.colour,
            label=curve.label,
            linewidth=1.3 if style.dashes else 2.1,
            zorder=order,
            dashes=style.dashes or (None, None),
            gapcolor="white" if style.dashes else None,
            dash_capstyle="butt",
            solid_capstyle="round",
        )
    if ends := [(curve.steps[0], curve.steps[-1]) for curve in curves if len(curve.steps)]:
        first, last = min(first for first, _ in ends), max(last for _, last in ends)
        axes.set_xlim(first, max(last, first + 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))  # they are steps
    if title:
        axes.set_title(title, loc="left", color=INK, fontsize=10, weight="bold")
    if ylabel:
        axes.set_ylabel(ylabel, color=INK, fontsize=9.5)
    if xlabel:
        axes.set_xlabel(xlabel, color=INK, fontsize=9.5)


def band(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper edge over the first axis, as `draw_curves` says; NaN where no seed has a value.

    Args:
        values: [seeds, points].
    """
    known = np.isfinite(values)
    seeds = known.sum(0)
    mean = np.where(known, values, 0.0).sum(0) / np.where(seeds, seeds, np.nan)
    squares = np.where(known, values - mean, 0.0) ** 2
    error = np.sqrt(squares.sum(0) / np.maximum(seeds - 1, 1) / np.maximum(seeds, 1))
    half = T_95[np.clip(seeds - 3, 0, len(T_95) - 1)] * error
    least = np.where(known, values, np.inf).min(0)
    most = np.where(known, values, -np.inf).max(0)
    span = seeds < 3
    return (
        mean,
        np.where(span, np.minimum(least, mean), mean - half),
        np.where(span, np.maximum(most, mean), mean + half),
    )


def running_mean(values: np.ndarray, width: int = 5) -> np.ndarray:
    """The mean of the last `width` values along the last axis, of fewer at the start; NaN counts as no value."""
    known = np.isfinite(values)
    sums, counts = np.cumsum(np.where(known, values, 0.0), -1), np.cumsum(known, -1)
    for total in (sums, counts):
        total[..., width:] = total[..., width:] - total[..., :-width]
    return np.where(known, sums / np.maximum(counts, 1), np.nan)


def shared_legend(figure: Figure) -> None:
    """One legend below the panels, every label once, in the order of drawing, in as many columns as fit.

    The figure grows by what it takes beyond one row: the panels keep their size.
    """
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    if not handles:
        return
    widest = max(len(label) for label in handles) * 0.075 + 0.6  # inches, at this size of type
    fitting = max(1, min(len(handles), int(figure.get_figwidth() / widest)))
    rows = -(-len(handles) // fitting)
    figure.set_figheight(figure.get_figheight() + LEGEND_ROW * (rows - 1))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=-(-len(handles) // rows),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=2.6,
        columnspacing=1.6,
    )


def save(figure: Figure, path: Path) -> Path:
    """Write `figure` as what the path's ending says (PNG, SVG, PDF); makes its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, facecolor="white")
    return path
