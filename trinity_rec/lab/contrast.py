"""The paper's central contrast on a real model, through `trinity run`: does REINFORCE collapse where clipping does not?

It judges quickstarts, whose steps between two syncs all see rollouts of the same weights:

    for seed in 1 2; do for algorithm in rec_reinforce rec_oneside_nois; do
      trinity-rec quickstart --model smollm2 --algorithm $algorithm --steps 120 --sync-interval 20 \\
        --seed $seed --out runs/contrast/$algorithm-seed$seed
    done; done
    python -m trinity_rec.lab.contrast runs/contrast

    DIR/<algorithm>-seed<n>/summary.json    what a quickstart left
    DIR/contrast.json, contrast.png         the verdict with all that it rests on, and a picture of it
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trinity_rec.plot.draw import FAINT, INK, Curve, draw_curves, figure_grid, save, shared_legend, styles_for
from trinity_rec.terminal import UsageError, stdout
from trinity_rec.variants import VARIANTS

UNCLIPPED, CLIPPED = "rec_reinforce", "rec_oneside_nois"
MARGIN = 0.1  # of reward: a fall as large is a collapse; of held-out accuracy: a lead as large counts


@dataclass(frozen=True)
class Run:
    """One quickstart.

    Attributes:
        intervals: [i], mean reward of the steps whose rollouts come from the weights of the i-th sync.
        accuracy: of sampled answers to the held-out problems, at the end.
    """

    algorithm: str
    seed: int
    intervals: list[float]
    accuracy: float

    @property
    def collapses(self) -> bool:
        return max(self.intervals) - self.intervals[-1] >= MARGIN


def read_run(directory: Path) -> Run:
    """The run in `<algorithm>-seed<n>`.

    Raises:
        UsageError: `directory` has another name, or no whole run.
    """
    algorithm, _, seed = directory.name.rpartition("-seed")
    if algorithm not in VARIANTS or not seed.isdecimal():
        raise UsageError(f"{directory}: a run of the contrast is called ALGORITHM-seedN")
    try:
        summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{directory} holds no quickstart that reached its end: {error}") from error
    if summary["algorithm"] != algorithm:
        raise UsageError(f"{directory} holds a run of {summary['algorithm']}")
    rewards, length = summary["reward_by_step"], summary["sync_interval"]
    intervals = [float(np.mean(rewards[first : first + length])) for first in range(0, len(rewards), length)]
    return Run(algorithm, int(seed), intervals, summary["accuracy_after"])


def seen(runs: Sequence[Run]) -> bool:
    """With each seed REINFORCE collapses, REC-OneSide-NoIS does not and ends ahead by `MARGIN` of held-out accuracy.

    Raises:
        UsageError: a seed has one of the two alone.
    """
    by_seed: dict[int, dict[str, Run]] = {}
    for run in runs:
        by_seed.setdefault(run.seed, {})[run.algorithm] = run
    for seed, pair in by_seed.items():
        if missing := {UNCLIPPED, CLIPPED} - pair.keys():
            raise UsageError(f"seed {seed} lacks {', '.join(sorted(missing))}")
    return all(
        pair[UNCLIPPED].collapses
        and not pair[CLIPPED].collapses
        and pair[CLIPPED].accuracy - pair[UNCLIPPED].accuracy >= MARGIN
        for pair in by_seed.values()
    )


def contrast_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """The runs of `contrast.json` as Markdown."""
    rows = ["| algorithm | seed | reward by interval | collapses | held-out |", "|---|---|---|---|---|"]
    for run in runs:
        rewards = ", ".join(f"{reward:.2f}" for reward in run["intervals"])
        says = "yes" if run["collapses"] else "no"
        cells = [VARIANTS[run["algorithm"]].title, str(run["seed"]), rewards, says, f"{run['accuracy']:.2f}"]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def draw(runs: Sequence[Run], path: Path) -> Path:
    """A panel a seed: mean reward by interval, and beyond the last one the held-out accuracy."""
    seeds, styles = sorted({run.seed for run in runs}), styles_for(run.algorithm for run in runs)
    figure, grid = figure_grid(1, len(seeds), panel=(3.6, 2.6))
    for axes, seed in zip(grid[0], seeds, strict=True):
        same = [run for run in runs if run.seed == seed]
        curves = [
            Curve(
                VARIANTS[run.algorithm].title,
                np.arange(1, len(run.intervals) + 1),
                np.array([run.intervals]),
                run.algorithm,
            )
            for run in same
        ]
        draw_curves(axes, curves, title=f"seed {seed}", xlabel="sync interval", styles=styles)
        end = max(len(run.intervals) for run in same) + 0.6
        for run in same:
            axes.plot([end], [run.accuracy], "o", color=styles[run.algorithm].colour, markersize=7, clip_on=False)
        axes.set(xlim=(0.8, end), ylim=(0, 1.02))
    grid[0, 0].set_ylabel("reward of the rollouts", color=INK, fontsize=9.5)
    grid[0, 0].plot([], [], "o", color=FAINT, markersize=7, label="held-out accuracy at the end")
    shared_legend(figure)
    return save(figure, path)


def judge(directory: Path) -> dict[str, Any]:
    """Read the runs in `directory` and leave the verdict and the picture beside them.

    Returns:
        What `contrast.json` holds: `seen`, and the `runs`.

    Raises:
        UsageError: `directory` holds no runs, or not each seed's two.
    """
    found = (read_run(path.parent) for path in directory.glob("*/summary.json"))
    runs = sorted(found, key=lambda run: (run.seed, run.algorithm))
    if not runs:
        raise UsageError(f"{directory} holds no quickstarts; --help says how they are made")
    verdict = {"seen": seen(runs), "runs": [asdict(run) | {"collapses": run.collapses} for run in runs]}
    (directory / "contrast.json").write_text(json.dumps(verdict, indent=2) + "\n", encoding="utf-8")
    draw(runs, directory / "contrast.png")
    return verdict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    directory = parser.parse_args().directory
    try:
        verdict = judge(directory)
    except UsageError as error:
        parser.error(str(error))
    console = stdout()
    console.print(contrast_table(verdict["runs"]), markup=False)
    console.print(f"The contrast is {'seen' if verdict['seen'] else 'not seen'}; {directory / 'contrast.png'}")


if __name__ == "__main__":
    main()
