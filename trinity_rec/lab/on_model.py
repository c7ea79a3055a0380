"""The claims on a real language model: `trinity-rec reproduce --model DIR --task NAME`.

A run takes minutes, so that a grid goes on over many calls: cell by cell in the order of `claims.REAL_CELLS`, judged
anew whenever a run is done, from the cells whose seeds are all there.

OUT/scale.json       what is run, on which model; a call that wants something else is refused
OUT/rates/…          the runs from which the learning rate is chosen, before all others
OUT/rates.json       what they gave
OUT/curves/…, claims.json, rewards.csv, report.md, a figure a claim: as without a model
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from safetensors.torch import load_file

from trinity_rec.lab import rates, suitability
from trinity_rec.lab.claims import CLAIMS, REAL_CELLS, REAL_CELLS_LONG, Curve
from trinity_rec.lab.grid import Job, Processes, run_grid
from trinity_rec.lab.language_model import LanguageModel, bf16_is_faster
from trinity_rec.lab.real_tasks import REAL_TASKS
from trinity_rec.lab.report import report
from trinity_rec.lab.reproduce import Cell, claim_directory, curve_path, curves_of, judge_and_draw, write_rewards
from trinity_rec.lab.training import Experiment, train
from trinity_rec.session.machine import GIB, parameters
from trinity_rec.tinker_local.errors import ServeError
from trinity_rec.variants import SETTINGS, VARIANTS

SCALE = "scale.json"
SEEDS = 3
LENGTH = {"steps": 60, "problems": 8, "samples": 8}
# Of a training process: float32 weights, gradients, Adam's two moments, the model as loaded, the newest version for the
# explorer, and explorer and initial policy, in float32 at worst; and activations. A run of `counting` with SmolLM2-135M
# held 10 GiB after a few steps, and up to 17 where there was room to keep what is freed.
BYTES_A_PARAMETER = 4 * 8
ACTIVATIONS = 7 * GIB


@dataclass(frozen=True)
class Grid:
    """What is run.

    Attributes:
        like: an experiment with the task, the model and the size of all.
        cells: setting and variant, in the order in which they are run.
    """

    like: Experiment
    cells: Sequence[tuple[str, str]]
    seeds: int = SEEDS

    @classmethod
    def of(cls, task: str, model: Path, device: str, out: Path) -> Grid:
        """The grid of a task; in bfloat16 where that is faster, or as the runs in `out` are.

        Raises:
            ServeError: no such model or device.
        """
        LanguageModel.load(model, device)  # what is wrong with it is said here, once
        setting, variant = SETTINGS["on_policy"], VARIANTS["rec_grpo"]
        bf16 = json.loads((out / SCALE).read_text(encoding="utf-8"))["bf16"] if (out / SCALE).exists() else None
        bf16 = bf16_is_faster(device) if bf16 is None else bf16
        like = Experiment(task, setting, variant, 0, 0.0, **LENGTH, model=model, device=device, bf16=bf16)
        return cls(like, cells_of(task))

    def job(self, out: Path, cell: Cell, seed: int, rate: float) -> Job:
        _, setting, variant = cell
        one = replace(self.like, setting=SETTINGS[setting], variant=VARIANTS[variant], seed=seed, rate=rate)
        return Job(partial(train, one), curve_path(out, cell, seed), one.steps)


def cells_of(task: str) -> Sequence[tuple[str, str]]:
    """What is run of a task: all, or the central contrast where answers are long."""
    return REAL_CELLS_LONG if REAL_TASKS[task].response_length >= suitability.LONG else REAL_CELLS


def reproduce_on_model(
    names: Sequence[str], grid: Grid, out: Path, workers: int | None, console: Console
) -> list[dict[str, Any]]:
    """Measure the claims `names` as far as the grid's cells do; everything goes to `out`, which a later call goes on
    from.

    Args:
        workers: processes, among which the cores are divided; by default one: each needs gigabytes (`check_room`).

    Returns:
        The objects of `claims.json`.

    Raises:
        ServeError: too little memory.
        OtherResults: `out` holds the runs of something else.
    """
    like, model = grid.like, grid.like.model
    workers = workers or 1
    check_room(model, like.device, workers)
    claim_directory(out, scale_of(grid))
    claims = [claim for name in names if name in CLAIMS if (claim := CLAIMS[name].measured_in(grid.cells)).parts]
    needed = {cell for claim in claims for cell in claim.cells} if set(CLAIMS) - set(names) else grid.cells
    wanted = [(like.task, *cell) for cell in grid.cells if cell in needed]

    def curves(task: str, setting: str, variant: str) -> list[Curve]:
        there = curves_of(out, (task, setting, variant), grid.seeds)
        return there if len(there) == grid.seeds else []

    def settle() -> list[dict[str, Any]]:
        whole = [cell for cell in wanted if curves(*cell)]
        here = [claim.measured_in([(setting, variant) for _, setting, variant in whole]) for claim in claims]
        judged = judge_and_draw([claim for claim in here if claim.parts], [like.task], curves, out)
        (out / "claims.json").write_text(json.dumps(judged, indent=2) + "\n", encoding="utf-8")
        write_rewards(whole, curves, out / "rewards.csv")
        missing = "".join(
            f"- {SETTINGS[s].title}, {VARIANTS[v].title}\n" for _, s, v in wanted if (like.task, s, v) not in whole
        )
        note = f"\n{len(whole)} of {len(wanted)} cells are whole; not yet run:\n\n{missing}" if missing else ""
        (out / "report.md").write_text(report(judged, None) + note, encoding="utf-8")
        return judged

    # A process for each run: the gigabytes that one has kept are not the next one's.
    with Processes(workers, max(1, (os.cpu_count() or 1) // workers), runs=1) as processes:
        rate = measured_rate(grid, out, processes, console)
        jobs = [grid.job(out, cell, seed, rate) for cell in wanted for seed in range(grid.seeds)]
        run_grid(jobs, processes, console, like.task, settle)
    return settle()


def scale_of(grid: Grid) -> dict[str, Any]:
    like = grid.like
    return {
        "task": like.task,
        "seeds": grid.seeds,
        "steps": like.steps,
        "problems": like.problems,
        "samples": like.samples,
        "model": {"parameters": parameters(str(like.model)), "digest": digest(like.model)},
        "bf16": like.bf16,
    }


def measured_rate(grid: Grid, out: Path, processes: Processes, console: Console) -> float:
    """The learning rate of all runs, by the rule of `rates.py`."""
    measured = rates.jobs(replace(grid.like, **rates.REAL_LENGTH), out, rates.REAL_CANDIDATES, rates.REAL_SEEDS)
    run_grid([job for runs in measured.values() for job in runs], processes, console, "learning rate")
    gains = rates.gains(measured)
    rate = rates.chosen(gains)
    said = {"gains": {f"{rate:g}": round(gain, 4) for rate, gain in gains.items()}, "chosen": rate}
    (out / "rates.json").write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    return rate


def measure_suitability(model: Path, device: str) -> list[suitability.Suitability]:
    """Of every task, by `suitability.py`.

    Raises:
        ServeError: no such model.
    """
    policy = LanguageModel.load(model, device, bf16_is_faster(device)).frozen()
    return [suitability.measure(policy, task) for task in REAL_TASKS.values()]


def check_room(model: Path, device: str, workers: int) -> None:
    """See that `workers` processes can train at once.

    Raises:
        ServeError: the memory does not suffice.
    """
    needed = workers * (BYTES_A_PARAMETER * parameters(str(model)) + ACTIVATIONS)
    on_gpu = torch.device(device).type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if on_gpu else psutil.virtual_memory().available
    if free < needed:
        processes = f" in {workers} processes" if workers > 1 else ""
        raise ServeError(
            f"{model}: to train it{processes} takes about {needed / GIB:.1f} GiB of memory, {free / GIB:.1f} are free"
        )


def digest(model: Path) -> str:
    """Of the weights, whichever way the files store them."""
    sums = {}
    for path in model.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            sums[name] = blake2b(tensor.view(-1).view(torch.uint8).numpy()).hexdigest()
    return blake2b(json.dumps(sums, sort_keys=True).encode(), digest_size=8).hexdigest()
