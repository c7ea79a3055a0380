"""Run the experiments behind the claims, judge them, draw them: `trinity-rec reproduce`.

OUT/curves/<task>/<setting>/<variant>/seed_<n>.csv   every run
OUT/C1.png ...                                       a figure a claim
OUT/claims.json                                      effects, intervals, verdicts and their rules
OUT/rewards.csv                                      the final reward of every variant, task and setting
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from trinity_rec.lab import bandit, figures, rates
from trinity_rec.lab.claims import CLAIMS, Claim, Curve, Curves, Judged, judge, judge_part, verdict
from trinity_rec.lab.grid import Job, Processes, read_rows, run_grid
from trinity_rec.lab.report import report
from trinity_rec.lab.statistics import Estimate, final, resampled_means
from trinity_rec.lab.tasks import TASKS
from trinity_rec.lab.training import Experiment, train
from trinity_rec.presets import PRESETS
from trinity_rec.variants import SETTINGS, VARIANTS

BANDIT = "C1"
BANDIT_STATEMENT = (
    "On bandit data from another policy, REINFORCE moves to the arm that is seen often (reward 0.8), not to the best."
)
BANDIT_MARGIN = 0.5
BANDIT_RULE = (
    f"Sampled REINFORCE after {bandit.STEPS} steps: mass on arm 2 less mass on arm 3 > {BANDIT_MARGIN}, "
    "bootstrap 95 % interval over seeds."
)
ALL_CLAIMS = (BANDIT, *CLAIMS)
PAPER = ("REC", "REP", "RED")  # its families; the corrections of others are not what its claims are about


@dataclass(frozen=True)
class Scale:
    """How much is run. `every_variant`: all algorithms of the paper, else only the variants of the claims."""

    tasks: tuple[str, ...]
    seeds: int
    steps: int
    every_variant: bool


FULL = Scale(("addition", "word_problems", "tool_call"), seeds=5, steps=120, every_variant=True)
QUICK = Scale(("addition",), seeds=4, steps=100, every_variant=False)


class OtherResults(ValueError):
    """The directory holds results of another scale or of other learning rates."""


def reproduce(
    names: Sequence[str], scale: Scale, out: Path, workers: int, console: Console, trinity: bool = False
) -> list[dict[str, Any]]:
    """Measure the claims `names`; writes everything to `out` and returns the objects of `claims.json`.

    With `trinity` the central contrast also goes through the real `trinity run` (`through_trinity.py`).

    Raises:
        OtherResults: `out` holds the runs of another scale, which must not be mixed with these.
    """
    started = time.monotonic()
    rates_in_use = {task: TASKS[task].rate for task in scale.tasks}
    claim_directory(out, {**asdict(scale), "tasks": list(scale.tasks), "rates": rates_in_use})
    runs = cells([name for name in names if name != BANDIT], scale)
    jobs = [job(out, scale, cell, seed) for cell in runs for seed in range(scale.seeds)]
    if BANDIT in names:
        jobs = [*bandit_jobs(out, scale), *jobs]
    with Processes(workers) as processes:
        run_grid(jobs, processes, console, "reproduce")

    def curves(task: str, setting: str, variant: str) -> list[Curve]:
        return curves_of(out, (task, setting, variant), scale.seeds)

    judged = []
    if BANDIT in names:
        judged.append(judge_bandit(curves))
        figures.draw_bandit(judged[-1]["verdict"], curves, out / f"{BANDIT}.png")
    judged += judge_and_draw([CLAIMS[name] for name in names if name != BANDIT], scale.tasks, curves, out)
    (out / "claims.json").write_text(json.dumps(judged, indent=2) + "\n", encoding="utf-8")
    if trinity:
        from trinity_rec.lab.through_trinity import through_trinity  # needs the packages of the local backend

        through_trinity(out / "trinity", out / "curves", scale.steps, scale.seeds, workers, console)
    summary = out / "trinity" / "trinity.json"
    side_by_side = json.loads(summary.read_text(encoding="utf-8")) if summary.exists() else None
    (out / "report.md").write_text(report(judged, side_by_side), encoding="utf-8")
    write_rewards(runs, curves, out / "rewards.csv")
    console.print(f"{len(jobs)} runs, {time.monotonic() - started:.0f} s in this call")
    return judged


def claim_directory(out: Path, wanted: Mapping[str, Any]) -> None:
    """Make `out` for results of the scale `wanted`, or see that what is there is of the same."""
    marker = out / "scale.json"
    if marker.exists():
        found = json.loads(marker.read_text(encoding="utf-8"))
        if different := [key for key in wanted if found.get(key) != wanted[key]]:
            key = different[0]
            raise OtherResults(
                f"{out} holds runs with {key} {found.get(key)}, these have {wanted[key]}: choose another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def judge_and_draw(claims: Sequence[Claim], tasks: Sequence[str], curves: Curves, out: Path) -> list[dict[str, Any]]:
    """The objects of `claims.json`, and a figure a claim in `out`."""
    judged = []
    for claim in claims:
        parts = [judge_part(part, tasks, curves) for part in claim.parts]
        judged.append(judge(claim.name, claim.statement, claim.rule, parts))
        figures.draw_claim(claim, judged[-1]["verdict"], tasks, curves, out / f"{claim.name}.png")
    return judged


Cell = tuple[str, str, str]
"""Task, setting, variant."""


def cells(names: Sequence[str], scale: Scale) -> list[Cell]:
    """What the claims need; with `every_variant` also the paper's algorithms, at the task's rate, in all settings."""
    needed = [
        (task, setting, variant)
        for name in names
        for setting in CLAIMS[name].settings
        for variant in CLAIMS[name].variants
        for task in scale.tasks
    ]
    if names and scale.every_variant:
        needed += [
            (task, setting, variant.name)
            for variant in VARIANTS.values()
            if variant.rate_factor == 1 and PRESETS[variant.preset].family in PAPER
            for setting in SETTINGS
            for task in scale.tasks
        ]
    return list(dict.fromkeys(needed))


def job(out: Path, scale: Scale, cell: Cell, seed: int) -> Job:
    task, setting, variant = cell
    experiment = Experiment(task, SETTINGS[setting], VARIANTS[variant], seed, TASKS[task].rate, scale.steps)
    return Job(partial(train, experiment), curve_path(out, cell, seed), scale.steps)


def curve_path(out: Path, cell: Cell, seed: int) -> Path:
    return Path(out, "curves", *cell, f"seed_{seed}.csv")


def curves_of(out: Path, cell: Cell, seeds: int) -> list[Curve]:
    """The curves of its seeds, those that are there."""
    paths = [curve_path(out, cell, seed) for seed in range(seeds)]
    return [read_rows(path) for path in paths if path.exists()]


def bandit_jobs(out: Path, scale: Scale) -> list[Job]:
    return [
        Job(partial(bandit.curve, name, seed), curve_path(out, ("bandit", source, name), seed or 0), bandit.STEPS)
        for name in bandit.BANDIT_VARIANTS
        for source, seed in (("exact", None), *(("sampled", seed) for seed in range(scale.seeds)))
    ]


def judge_bandit(curves: Any) -> dict[str, Any]:
    """C1 by `BANDIT_RULE`; the final masses of every variant are reported with it."""
    ends = {
        source: {
            name: np.array([[curve[f"arm_{arm}"][-1] for arm in (1, 2, 3)] for curve in curves("bandit", source, name)])
            for name in bandit.BANDIT_VARIANTS
        }
        for source in ("exact", "sampled")
    }
    masses = ends["sampled"]["rec_reinforce"]
    difference = masses[:, 1] - masses[:, 2]
    estimate = Estimate.of(difference.mean(), resampled_means(difference, np.random.default_rng(0)))
    said = verdict(estimate, BANDIT_MARGIN, "greater")
    part = Judged("REINFORCE ends on arm 2", estimate.effect, (estimate.low, estimate.high), said)
    final_mass = {source: {name: m.mean(0).round(4).tolist() for name, m in by.items()} for source, by in ends.items()}
    return judge(BANDIT, BANDIT_STATEMENT, BANDIT_RULE, [part]) | {"final_mass": final_mass}


def write_rewards(runs: Sequence[Cell], curves: Any, path: Path) -> None:
    """The final reward of every cell that was run, with its interval."""
    generator = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("task", "setting", "variant", "seeds", "final_reward", "low", "high"))
        for cell in runs:
            ends = np.array([final(curve) for curve in curves(*cell)])
            estimate = Estimate.of(ends.mean(), resampled_means(ends, generator))
            writer.writerow((*cell, len(ends), *(f"{x:.4f}" for x in (estimate.effect, estimate.low, estimate.high))))


def measure_rates(scale: Scale, out: Path, workers: int, console: Console) -> dict[str, dict[float, float]]:
    """Task -> rate -> gain, by the rule in `rates.py`."""
    measured = {}
    for task in scale.tasks:
        like = Experiment(task, SETTINGS["on_policy"], VARIANTS["rec_grpo"], 0, TASKS[task].rate, scale.steps)
        measured[task] = rates.jobs(like, out)
    jobs = [each for by_rate in measured.values() for runs in by_rate.values() for each in runs]
    with Processes(workers) as processes:
        run_grid(jobs, processes, console, "rates")
    return {task: rates.gains(by_rate) for task, by_rate in measured.items()}
