"""The central contrast once more, through the real `trinity run`: is what the lab measures what Trinity trains?

The lab's own model, task and problems, in the order in which a lab run of the same seed draws them, go through the
explorer, buffer and Tinker trainer of Trinity on the local backend (`configs/lab/addition.yaml`), at sync_interval 20.
Compared is what both have: the reward of the training rollouts, whose weights are up to 19 steps old, and what the loss
logs. The drawn responses differ, since the two samplers have random numbers of their own.

The main road, vLLM and verl in place of the Tinker backend, takes an environment of its own, so its runs are made apart
and join the figure when they are there:

    .venv-vllm/bin/python -m trinity_rec.lab.through_trinity OUT

    OUT/<variant>/seed_<n>.csv      the columns of the lab's curves, NaN where Trinity has no like
    OUT/<variant>/seed_<n>.json     what the run cost
    OUT/runs/<variant>-seed<n>/     the run's logs; `trinity-rec plot OUT/runs` draws them
    OUT/vllm/                       the same of the main road
    OUT/trinity.png                 all side by side
    OUT/trinity.json                final rewards of all

A run whose CSV is there is not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trinity.common.rewards.reward_fn import RewardFn

from trinity_rec.lab.claims import Curve as Columns
from trinity_rec.lab.grid import Job, Processes, read_rows, run_grid, write_rows
from trinity_rec.lab.model import TinyLM, with_head_width
from trinity_rec.lab.tasks import TASKS, Problem, Vocabulary
from trinity_rec.lab.training import COLUMNS, Experiment, Row, train
from trinity_rec.lab.warm_up import ASSETS
from trinity_rec.plot.draw import Curve, draw_curves, figure_grid, save, shared_legend
from trinity_rec.session import Session, TrainedStep, signals_as_exit, watch
from trinity_rec.session.run import ANY_PORT, SERVER, load, prepare, require
from trinity_rec.shipped import example, shipped
from trinity_rec.terminal import stderr
from trinity_rec.variants import SETTINGS, VARIANTS

TASK, SETTING = "addition", "sync_interval_20"
PATIENCE = 900  # seconds without a step; Trinity starts in half a minute, but not on cores that others keep busy
ALGORITHMS = ("rec_reinforce", "rec_grpo", "rec_oneside_is", "rec_oneside_nois")
VLLM_HEAD_WIDTH = 32  # the least that its attention on a CPU takes
MAIN_ROAD = ("rec_reinforce", "rec_grpo", "rec_oneside_nois")
# The lab's columns that Trinity logs too. Its entropy and effective sample size are others: of the rollout policy, and
# of single responses.
METRICS = {
    "rollout_reward": "critic/rewards/mean",
    "kl_rollout": "actor/kl_k3",
    "clip_fraction": "actor/pg_clipfrac",
    "gradient_norm": "actor/grad_norm",
}
SHOWN = {
    "rollout_reward": "reward of the rollouts",
    "kl_rollout": "KL to the rollouts",
    "clip_fraction": "clip fraction",
}


class AdditionReward(RewardFn):
    """The lab's reward, for Trinity's `simple_workflow`."""

    def __init__(self, **_: object) -> None:
        """Trinity passes the YAML's `reward_fn_args`; there are none."""

    def __call__(self, response: str, truth: str, **_: object) -> dict[str, float]:
        said = response.partition(Vocabulary.END)[0]
        return {"accuracy": TASKS[TASK].reward(Problem("", truth), said)}


def experiment(variant: str, seed: int, steps: int) -> Experiment:
    """The lab's run that a run through Trinity is compared with."""
    return Experiment(TASK, SETTINGS[SETTING], VARIANTS[variant], seed, TASKS[TASK].rate, steps)


@dataclass(frozen=True)
class Run:
    """One algorithm through `trinity run`, and where its results and logs go, below `out`.

    On the `main_road` vLLM samples and verl trains, else the local Tinker backend does both.
    """

    out: Path
    variant: str
    seed: int
    steps: int
    main_road: bool = False

    @property
    def table(self) -> Path:
        return self.out / self.variant / f"seed_{self.seed}.csv"

    @property
    def cost(self) -> Path:
        return self.table.with_suffix(".json")

    @property
    def place(self) -> Path:
        return (self.out / "runs" / f"{self.variant}-seed{self.seed}").resolve()

    def is_there(self) -> bool:
        """Whether `table` holds this run, and not one of other length."""
        return self.table.exists() and read_rows(self.table)["step"][-1] == self.steps

    def execute(self) -> Iterator[TrainedStep]:
        """Run it and yield its steps as they are trained; writes `table` when all are.

        Raises:
            LaunchError: a part did not start, or fewer steps were trained.
        """
        began, place = time.monotonic(), self.place
        shutil.rmtree(place, ignore_errors=True)  # of a run that did not reach its end
        write_model(place / "model", VLLM_HEAD_WIDTH if self.main_road else None)
        write_problems(place / "tasks" / "train.jsonl", self.seed, self.steps)
        OmegaConf.save(self.config(), place / "config.yaml")
        steps = []
        os.environ |= {
            "TRINITY_REC_RUN_DIR": str(place),
            "TRINITY_REC_MODEL": str(place / "model"),
            "TRINITY_REC_TASKS": str(place / "tasks"),
            SERVER: ANY_PORT,
        }
        config = load(place / "config.yaml")
        require(config)
        with signals_as_exit(), Session(place / "logs") as session:
            prepare(session, config, place / "weights", threads=1)
            trained = session.run_trinity(place / "config.yaml", place, total_steps=self.steps, patience=PATIENCE)
            for step in trained:
                steps.append(step)
                yield step
        shutil.rmtree(place / "weights", ignore_errors=True)
        self.cost.parent.mkdir(parents=True, exist_ok=True)
        self.cost.write_text(json.dumps({"seconds": round(time.monotonic() - began, 1)}) + "\n", encoding="utf-8")
        write_rows(rows_of(steps), self.table)

    def config(self) -> DictConfig:
        """`configs/lab/addition.yaml` for this run."""
        config: Any = OmegaConf.load(shipped("configs") / "lab" / "addition.yaml")
        variant = VARIANTS[self.variant]
        config.algorithm.algorithm_type = f"trinity_rec.{variant.preset}"
        config.algorithm.policy_loss_fn_args.update(variant.policy_loss)
        config.algorithm.optimizer.lr = TASKS[TASK].rate * variant.rate_factor
        config.buffer.total_steps = config.trainer.total_steps = self.steps
        return on_main_road(config, self.seed) if self.main_road else config


def on_main_road(config: Any, seed: int) -> DictConfig:
    """The same run with vLLM and verl in place of the Tinker backend, set up as in the quickstart's YAML for them."""
    road: Any = OmegaConf.load(example("rec_gsm8k/quickstart_vllm.yaml"))
    config.model.tinker = {"enable": False}
    config.cluster = road.cluster
    config.explorer.rollout_model = road.explorer.rollout_model
    config.explorer.rollout_model.seed = seed
    config.explorer.eval_on_startup = False
    for key, value in road.trainer.items():
        if key != "total_steps":
            config.trainer[key] = value
    return config


def write_model(directory: Path, head_width: int | None = None) -> None:
    """The lab's warmed-up model as Trinity takes one: with a tokenizer, and a chat template that adds nothing."""
    vocabulary, model = TASKS[TASK].vocabulary, TinyLM.load(ASSETS / TASK)
    model = with_head_width(model, head_width) if head_width else model
    model.save_pretrained(directory, vocabulary.end, vocabulary.pad)
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(vocabulary.tokens)}, vocabulary.PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(vocabulary.PIECE.pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=vocabulary.END,
        pad_token=vocabulary.PAD,
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
    ).save_pretrained(directory)


def write_problems(path: Path, seed: int, steps: int) -> None:
    """The problems that a lab run of this seed draws, step by step, for Trinity to read in order."""
    shape, problems = experiment(ALGORITHMS[0], seed, steps), TASKS[TASK].train
    choose = random.Random(f"problems {seed}")
    drawn = [number for _ in range(steps) for number in choose.sample(range(len(problems)), shape.problems)]
    path.parent.mkdir(parents=True)
    rows = ({"question": problems[number].question, "answer": problems[number].answer} for number in drawn)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def rows_of(steps: Sequence[TrainedStep]) -> list[Row]:
    """A row for each of the lab's evaluations: means over the steps since the last one."""
    every = experiment(ALGORITHMS[0], 0, len(steps)).evaluate_every
    rows = []
    for last in range(every, len(steps) + 1, every):
        part = steps[last - every : last]
        means = {name: float(np.mean([step.metrics[tag] for step in part])) for name, tag in METRICS.items()}
        rows.append({name: float("nan") for name in COLUMNS} | {"step": float(last)} | means)
    return rows


def through_trinity(
    out: Path, curves: Path, steps: int, lab_seeds: int, workers: int, console: Console, seeds: Sequence[int] = (0,)
) -> list[dict[str, Any]]:
    """Run `ALGORITHMS` through Trinity and in the lab, draw both side by side.

    Args:
        out: for everything of Trinity's, and the figure.
        curves: where the lab's runs are or go, `<task>/<setting>/<variant>/seed_<n>.csv`.
        steps: of each run; a multiple of the lab's `evaluate_every`.
        lab_seeds: of the lab's runs; one takes seconds.
        workers: processes for the lab's.
        seeds: of Trinity's runs; one takes minutes.

    Returns:
        What `trinity.json` holds: for each algorithm the final rewards of both by seed, and the seconds of each
        `trinity run`, its start included.

    Raises:
        LaunchError: Trinity did not train all steps of a run.
    """
    place = curves / TASK / SETTING
    tables = {name: [place / name / f"seed_{seed}.csv" for seed in range(lab_seeds)] for name in ALGORITHMS}
    jobs = [
        Job(partial(train, experiment(name, seed, steps)), path, steps)
        for name, paths in tables.items()
        for seed, path in enumerate(paths)
    ]
    with Processes(workers) as processes:
        run_grid(jobs, processes, console, "lab")
    runs = {name: [Run(out, name, seed, steps) for seed in seeds] for name in ALGORITHMS}
    execute([run for of_seed in zip(*runs.values(), strict=True) for run in of_seed], console)

    lab = {name: [read_rows(path) for path in paths] for name, paths in tables.items()}
    trinity = {name: [read_rows(run.table) for run in same] for name, same in runs.items()}
    sides = {"in the lab": lab, "through trinity run": trinity}
    main_road = {run.variant: run for run in main_road_runs(out, steps) if run.is_there()}
    if main_road:
        sides["with vLLM and verl"] = {name: [read_rows(run.table)] for name, run in main_road.items()}
    draw_side_by_side(sides, out / "trinity.png")
    summary = [
        {
            "variant": name,
            "lab_final": [final_rollouts(columns) for columns in lab[name]],
            "trinity_final": [final_rollouts(columns) for columns in trinity[name]],
            "vllm_final": [final_rollouts(read_rows(main_road[name].table))] if name in main_road else [],
            "seconds": [json.loads(run.cost.read_text(encoding="utf-8"))["seconds"] for run in runs[name]],
        }
        for name in ALGORITHMS
    ]
    (out / "trinity.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def main_road_runs(out: Path, steps: int) -> list[Run]:
    return [Run(out / "vllm", name, 0, steps, main_road=True) for name in MAIN_ROAD]


def execute(runs: Sequence[Run], console: Console) -> None:
    """One after the other, those that are not there; says how long all of them will take as soon as one is done."""
    missing = [run for run in runs if not run.is_there()]
    if done := len(runs) - len(missing):
        console.print(f"trinity run: {done} of {len(runs)} runs are there already")
    started = time.monotonic()
    for number, run in enumerate(missing):
        each = (time.monotonic() - started) / number if number else None
        left = f"; about {each * (len(missing) - number) / 60:.0f} min left for all" if each else ""
        console.print(f"trinity run {number + 1} of {len(missing)}, {VARIANTS[run.variant].title}{left}")
        for _ in watch(run.execute(), run.steps, console):
            pass


def final_rollouts(columns: Columns) -> float:
    """Mean reward of the rollouts over the last sync interval, all from the same weights."""
    last = columns["step"] > columns["step"][-1] - (SETTINGS[SETTING].sync_interval or 1)
    return round(float(np.nanmean(columns["rollout_reward"][last])), 4)


def draw_side_by_side(sides: Mapping[str, Mapping[str, Sequence[Columns]]], path: Path) -> Path:
    """A column a side; down it the reward of the rollouts, KL and clip fraction."""
    figure, grid = figure_grid(len(SHOWN), len(sides), panel=(4.2, 2.0))
    for across, (title, variants) in enumerate(sides.items()):
        for down, (column, label) in enumerate(SHOWN.items()):
            lines = [
                Curve(VARIANTS[name].title, runs[0]["step"][-len(values[0]) :], np.stack(values), name)
                for name, runs in variants.items()
                if (values := [run[column][np.isfinite(run[column])] for run in runs])
            ]
            draw_curves(
                grid[down, across],
                lines,
                ylabel=None if across else label,
                xlabel="training step" if down == len(SHOWN) - 1 else None,
                title=None if down else title,
            )
    shared_legend(figure)
    return save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the runs of the main road; needs the environment of test-vllm.")
    parser.add_argument("out", type=Path, help="OUT/trinity of `trinity-rec reproduce --trinity`")
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    execute(main_road_runs(options.out, options.steps), stderr())


if __name__ == "__main__":
    main()
