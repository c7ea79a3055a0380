"""What a quickstart leaves behind: `summary.json` for programs, `reward.png` for eyes, a table for the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from math import isnan
from pathlib import Path

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trinity_rec.plot.draw import AFTER, BEFORE, INK, LINE, Curve, Style, draw_curves, dress, new_figure, save


@dataclass(frozen=True)
class Summary:
    """What `summary.json` holds.

    Attributes:
        model: what was trained, `tiny` or `smollm2`.
        backend: what sampled and trained, `local`, or `vllm` for vLLM and verl.
        accuracy_before, accuracy_after: of sampled answers to the held-out problems, 0 to 1.
        greedy_before, greedy_after: of the likeliest answers.
        reward_by_step: [i] is the mean over the batch of step i + 1.
        seconds: of all, from the start of Ray to the last answer.
        seconds_a_step, tokens_a_second: of training from the first step to the last; null of a single step.
        memory_gib: that all processes held at most while they trained, without what they share.
        answers: some held-out problems, `question`, `answer`, and the likeliest answers `before` and `after`.
    """

    model: str
    algorithm: str
    backend: str
    steps: int
    sync_interval: int
    accuracy_before: float
    accuracy_after: float
    greedy_before: float
    greedy_after: float
    reward_by_step: list[float]
    seconds: float
    seconds_a_step: float
    tokens_a_second: float
    memory_gib: float
    answers: list[dict[str, str]]

    def write(self, path: Path) -> None:
        said = {name: None if value != value else value for name, value in asdict(self).items()}  # NaN is not JSON
        path.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")

    def table(self, out: Path) -> Table:
        gain = 100 * (self.accuracy_after - self.accuracy_before)
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(style="dim")
        table.add_column()
        table.add_row("model", self.model)
        table.add_row("algorithm", self.algorithm)
        table.add_row("backend", self.backend)
        table.add_row(
            "held-out accuracy",
            f"[bold]{self.accuracy_before:.1%} → {self.accuracy_after:.1%}[/] ({gain:+.1f} points)",
        )
        table.add_row("likeliest answers", f"{self.greedy_before:.1%} → {self.greedy_after:.1%}")
        table.add_row("steps", f"{self.steps} (sync interval {self.sync_interval})")
        a_step = "" if isnan(self.seconds_a_step) else f", {self.seconds_a_step:.1f} a step"
        table.add_row("seconds", f"{self.seconds:.0f}{a_step}")
        if not isnan(self.tokens_a_second):
            table.add_row("tokens a second", f"{self.tokens_a_second:.0f}")
        table.add_row("memory", f"{self.memory_gib:.1f} GiB")
        table.add_row("picture", str(out / "reward.png"))
        table.add_row("numbers", str(out / "summary.json"))
        table.add_row("logs", f"{out / 'logs'}, Trinity's own in {out / 'trinity'}")
        return table

    def side_by_side(self) -> Table:
        """A row a held-out question."""
        table = Table("held-out question", "answer", "before", "after", box=SIMPLE_HEAD)
        for row in self.answers:
            table.add_row(*(Text(" ".join(row[name].split())) for name in ("question", "answer", "before", "after")))
        return table


def draw(summary: Summary, path: Path) -> None:
    """Reward by step, faint as measured and bold as a running mean, between held-out accuracy before and after."""
    figure = new_figure(7.2, 4.0)
    axes = dress(figure.subplots())
    label = "reward of the rollouts (mean of 5 steps)"
    reward = Curve(label, np.arange(1, summary.steps + 1), np.array([summary.reward_by_step]))
    draw_curves(axes, [reward], smooth=5, styles={label: Style(LINE)})
    for x, value, colour, name in (
        (0, summary.accuracy_before, BEFORE, "before"),
        (summary.steps, summary.accuracy_after, AFTER, "after"),
    ):
        axes.plot(
            [x], [value], "o", color=colour, markersize=9, zorder=3, clip_on=False, label=f"held-out accuracy {name}"
        )
        axes.annotate(
            f"{value:.0%}", (x, value), (0, 12), textcoords="offset points", ha="center", color=INK, weight="bold"
        )
    axes.set(xlim=(0, summary.steps), ylim=(0, 1.05), xlabel="training step", ylabel="share of right answers")
    weights = "each step" if summary.sync_interval == 1 else f"every {summary.sync_interval} steps"
    axes.set_title(f"{summary.algorithm}, new weights for the rollouts {weights}", loc="left", color=INK)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    save(figure, path)
