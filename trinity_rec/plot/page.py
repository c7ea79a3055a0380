"""Pictures of runs: a PNG a metric, and one HTML page that holds them all and needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from trinity_rec.plot.draw import (
    Curve,
    Style,
    band,
    draw_curves,
    dress,
    new_figure,
    running_mean,
    save,
    shared_legend,
    styles_for,
)
from trinity_rec.plot.runs import LAST, Group, Panel, curve, final, tags_of


@dataclass(frozen=True)
class Picture:
    """A panel with its curves, by group label, and the tags that they were read from; no curves: nobody logged it."""

    panel: Panel
    curves: dict[str, Curve]
    tags: tuple[str, ...]

    @classmethod
    def of(cls, panel: Panel, groups: Sequence[Group]) -> Picture:
        tags = tags_of(panel, [run for group in groups for run in group.runs])
        curves = {group.label: found for group in groups if (found := curve(group, tags))}
        return cls(panel, curves, tuple(dict.fromkeys(tags.values())))

    def draw(self, styles: dict[str, Style], smooth: int) -> Figure:
        figure = new_figure(7.2, 3.6 + 0.2 * (len(self.curves) > 4))
        axes = dress(figure.subplots())
        width = smooth if self.panel.smoothed else 1
        draw_curves(
            axes,
            list(self.curves.values()),
            title=self.panel.title,
            xlabel="training step",
            smooth=width,
            styles=styles,
        )
        shared_legend(figure)
        return figure

    def caption(self, smooth: int) -> str:
        tags = ", ".join(self.tags)
        return f"{tags}; mean of the last {smooth} steps" if smooth > 1 and self.panel.smoothed else tags

    def number(self, label: str) -> str:
        """The mean over the last steps with what `draw_curves` shows as a band: ± or the span of two seeds."""
        if label not in self.curves:
            return "-"
        mean, low, high = (float(edge[0]) for edge in band(final(self.curves[label].values)[:, None]))
        seeds = int(np.isfinite(self.curves[label].values).any(1).sum())
        if seeds == 0:
            return "-"
        if seeds == 1:
            return f"{mean:.3g}"
        return f"{mean:.3g} ({low:.3g} to {high:.3g})"

    def peak(self, label: str) -> str:
        """The highest mean over `LAST` steps, and the last of these steps."""
        if label not in self.curves:
            return "-"
        curve = self.curves[label]
        mean, _, _ = band(running_mean(curve.values, LAST))
        if not np.isfinite(mean).any():
            return "-"
        best = int(np.nanargmax(mean))
        return f"{mean[best]:.3g} at {curve.steps[best]}"


def table_of(pictures: Sequence[Picture], groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: a row a group, with its runs, steps, final numbers, and where the reward was highest."""
    heads = ["", "runs", "steps", *(picture.panel.title for picture in pictures)]
    rewards = [picture for picture in pictures if picture.panel.name == "reward"]
    heads += ["highest reward"] * len(rewards)
    rows = []
    for group in groups:
        steps = max((p.curves[group.label].steps[-1] for p in pictures if group.label in p.curves), default=0)
        numbers = (picture.number(group.label) for picture in pictures)
        peaks = (picture.peak(group.label) for picture in rewards)
        rows.append([group.label, str(len(group.runs)), str(steps), *numbers, *peaks])
    return heads, rows


def write_page(groups: Sequence[Group], pictures: Sequence[Picture], out: Path, smooth: int) -> list[Path]:
    """Write `<panel>.png` for each picture that has curves, and `index.html`.

    Args:
        smooth: steps that a smoothed panel's values are averaged over.

    Returns:
        What was written, the page first.
    """
    styles = styles_for(group.name for group in groups)
    shown = [picture for picture in pictures if picture.curves]
    files = [save(picture.draw(styles, smooth), out / f"{_file_name(picture.panel.name)}.png") for picture in shown]
    figures = "\n".join(
        figure(path, f"{picture.panel.title} by training step", picture.caption(smooth))
        for picture, path in zip(shown, files, strict=True)
    )
    page = out / "index.html"
    body = _BODY.format(
        runs=f"{sum(len(group.runs) for group in groups)} runs, {len(groups)} curves",
        figures=figures,
        table=_table(shown, groups, styles),
        last=LAST,
        missing="".join(f"<p>{escape(line)}</p>" for line in not_logged(pictures)),
        directories="\n".join(
            f"<li>{escape(group.label)}: <code>{escape(str(run.directory))}</code>"
            + "".join(f"<br>{escape(warning)}" for warning in run.warnings)
            for group in groups
            for run in group.runs
        ),
    )
    page.write_text(document(", ".join(group.label for group in groups), body), encoding="utf-8")
    return [page, *files]


def not_logged(pictures: Sequence[Picture]) -> list[str]:
    """A line for each panel that no run has a metric for."""
    return [
        f"{picture.panel.title}: no run logged {' or '.join(picture.panel.tags)}"
        for picture in pictures
        if not picture.curves
    ]


def _file_name(panel: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in panel)


def _table(pictures: Sequence[Picture], groups: Sequence[Group], styles: dict[str, Style]) -> str:
    heads, rows = table_of(pictures, groups)
    lines = ["<tr>" + "".join(f"<th>{escape(head)}</th>" for head in heads) + "</tr>"]
    for group, row in zip(groups, rows, strict=True):
        style = styles[group.name]
        dashes = f' stroke-dasharray="{" ".join(f"{3 * length:g}" for length in style.dashes)}"' if style.dashes else ""
        line = (
            f'<svg width="34" height="8" aria-hidden="true"><line x1="1" x2="33" y1="4" y2="4" stroke="{style.colour}" '
            f'stroke-width="3"{dashes}/></svg>'
        )
        lines.append(
            f"<tr><th>{line} {escape(row[0])}</th>" + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        )
    return "\n".join(lines)


def document(title: str, body: str) -> str:
    """A page of HTML that needs nothing else."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}</style>\n<h1>{escape(title)}</h1>\n{body}\n</html>\n"
    )


def figure(path: Path, alt: str, caption: str) -> str:
    """A picture within the page, with its caption."""
    image = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/png;base64,{image}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


_STYLE = """  :root { color-scheme: light; }
  body { margin: 0 auto; padding: 1rem; max-width: 76rem; color: #222; background: #fff;
         font: 16px/1.5 system-ui, sans-serif; }
  h1 { font-size: 1.3rem; margin: .5rem 0 0; overflow-wrap: anywhere; }
  h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
  h3 { font-size: 1rem; margin: 1.5rem 0 0; }
  .figures { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 32rem), 1fr)); }
  figure { margin: 0; }
  img { width: 100%; height: auto; display: block; }
  figcaption, .note { color: #666; font-size: .85rem; overflow-wrap: anywhere; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
  th, td { padding: .35rem .8rem .35rem 0; text-align: right; border-bottom: 1px solid #e6e6e6; white-space: nowrap; }
  th { font-weight: 600; vertical-align: bottom; }
  tr:first-child th { white-space: normal; min-width: 5rem; }
  th:first-child { text-align: left; }
  li { overflow-wrap: anywhere; }
"""

_BODY = """<p class="note">{runs}. Lines are means over seeds. Bands: three runs or more, the mean's 95 % interval
(Student's t); two, their span.</p>
<div class="figures">
{figures}
</div>
<h2>Numbers</h2>
<p class="note">Mean of each run's last {last} values, then over runs; the band in brackets. The highest
reward is a mean over {last} steps too, with its last step.</p>
<div class="scroll"><table>
{table}
</table></div>
{missing}
<h2>Runs</h2>
<ul>
{directories}
</ul>
"""
