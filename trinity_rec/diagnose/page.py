"""The findings with the pictures that prove them, on one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from trinity_rec.diagnose.case import Case
from trinity_rec.diagnose.rules import Finding
from trinity_rec.plot.draw import AFTER, LINE, Curve, Style, draw_curves, dress, new_figure, save
from trinity_rec.plot.page import document, figure


def write_page(judged: Sequence[tuple[Case, list[Finding]]], out: Path) -> Path:
    """Write `index.html`, and beside it a PNG for each metric that a finding rests on."""
    parts = []
    for number, (case, findings) in enumerate(judged):
        parts.append(f"<h2>{escape(str(case.run.directory))}</h2>")
        if not findings:
            parts.append("<p>Nothing wrong by these rules.</p>")
        for finding in findings:
            parts.append(f"<h3>{escape(finding.rule.level)}: {escape(finding.rule.sign.replace('`', ''))}</h3>")
            parts.append(f"<p>{escape(str(finding))}</p>")
            images = [
                figure(path, f"{tag} by step", tag)
                for tag in finding.evidence.tags
                if (
                    path := _draw(case, tag, finding, out / f"{number}-{finding.rule.name}-{tag.replace('/', '-')}.png")
                )
            ]
            parts.append(f'<div class="figures">{"".join(images)}</div>')
    out.mkdir(parents=True, exist_ok=True)
    page = out / "index.html"
    page.write_text(document("Diagnosis", "\n".join(parts)), encoding="utf-8")
    return page


def _draw(case: Case, tag: str, finding: Finding, path: Path) -> Path | None:
    found = case.series(tag)
    if found is None:
        return None
    series = found[1]
    picture = new_figure(7.2, 3.0)
    axes = dress(picture.subplots())
    draw_curves(
        axes,
        [Curve(tag, series.steps, series.values[None])],
        title=tag,
        xlabel="step",
        styles={tag: Style(LINE)},
    )
    if finding.evidence.steps:
        first, last = finding.evidence.steps
        axes.axvspan(first - 0.5, last + 0.5, color=AFTER, alpha=0.12, linewidth=0)
    return save(picture, path)
