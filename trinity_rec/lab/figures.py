"""One figure a claim, in the paper's arrangement: a column a setting, and down it reward, KL and clip fraction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from trinity_rec.lab.bandit import BANDIT_VARIANTS, REWARDS
from trinity_rec.lab.claims import Claim, Curves
from trinity_rec.lab.real_tasks import task_named
from trinity_rec.plot.draw import Curve, draw_curves, figure_grid, headline, save, shared_legend
from trinity_rec.variants import SETTINGS, VARIANTS

DETAILS = {"kl_initial": "KL from the start", "clip_fraction": "clip fraction"}


def draw_claim(claim: Claim, said: str, tasks: Sequence[str], curves: Curves, path: Path) -> Path:
    """Reward on each task, then KL and clip fraction on the first one, by setting; `said` is the verdict."""
    rows = [(task, "reward", task_named(task).title) for task in tasks]
    rows += [(tasks[0], column, label) for column, label in DETAILS.items()]
    figure, grid = figure_grid(len(rows), len(claim.settings))
    for across, setting in enumerate(claim.settings):
        for down, (task, column, label) in enumerate(rows):
            lines = []
            for variant in claim.variants:
                seeds = curves(task, setting, variant)
                if seeds:
                    values = np.stack([curve[column] for curve in seeds])
                    lines.append(Curve(VARIANTS[variant].title, seeds[0]["step"], values, variant))
            draw_curves(
                grid[down, across],
                lines,
                ylabel=None if across else label,
                xlabel="training step" if down == len(rows) - 1 else None,
                title=None if down else SETTINGS[setting].title,
            )
    headline(figure, f"Claim {claim.name}: {claim.title} ({said})")
    shared_legend(figure)
    return save(figure, path)


def draw_bandit(said: str, curves: Curves, path: Path) -> Path:
    """The mass on each arm by step: above from the expected gradient, below from sampled data."""
    figure, grid = figure_grid(2, len(REWARDS))
    for down, (source, label) in enumerate((("exact", "exact gradient"), ("sampled", "sampled"))):
        for arm, reward in enumerate(REWARDS):
            lines = [
                Curve(variant.title, seeds[0]["step"], np.stack([c[f"arm_{arm + 1}"] for c in seeds]), name)
                for name, variant in BANDIT_VARIANTS.items()
                if (seeds := curves("bandit", source, name))
            ]
            draw_curves(
                grid[down, arm],
                lines,
                ylabel=None if arm else f"mass, {label}",
                xlabel="training step" if down else None,
                title=None if down else f"arm {arm + 1}, reward {reward:g}",
            )
            grid[down, arm].set_ylim(-0.02, 1.02)
    headline(figure, f"Claim C1: on data from another policy REINFORCE misses the best arm ({said})")
    shared_legend(figure)
    return save(figure, path)
