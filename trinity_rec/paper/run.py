"""Train an experiment, then evaluate its checkpoints, through `trinity run`; go on where an earlier start stopped.

What is done is read off what Trinity left on disk, never noted separately: the last checkpoint says how far training
is, the TensorBoard logs of `mode: bench` which checkpoints are evaluated. Trinity exits 0 also when it failed, so both
are looked at again after every start.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from trinity_rec import without_gpu
from trinity_rec.paper.compose import Run
from trinity_rec.plugin.resume import last_checkpoint
from trinity_rec.session import MARK, LaunchError, Session, last_error, script, signals_as_exit, watch
from trinity_rec.session.bench import ROLE as BENCH_ROLE
from trinity_rec.session.bench import evaluated_steps
from trinity_rec.terminal import UsageError

PATIENCE = 2 * 3600.0  # seconds without a training step; the first comes after loading the model and an evaluation
RAY_PATIENCE = 120.0  # seconds for `ray status`


@dataclass(frozen=True)
class Progress:
    """How far a run is, by the files in its directory.

    Attributes:
        trained: steps up to the last checkpoint.
        total: steps that the YAML asks for.
        checkpoints: steps of the checkpoints there are, ascending.
        evaluated: steps of the evaluations by `mode: bench`, 0 for the initial model.
        benches: whether `mode: bench` can evaluate this run at all.
    """

    trained: int
    total: int
    checkpoints: tuple[int, ...]
    evaluated: frozenset[int]
    benches: bool

    @property
    def is_trained(self) -> bool:
        return self.trained >= self.total

    @property
    def unevaluated(self) -> list[int]:
        return sorted({0, *self.checkpoints} - self.evaluated) if self.benches else []

    @property
    def is_done(self) -> bool:
        return self.is_trained and not self.unevaluated

    def __str__(self) -> str:
        if self.is_done:
            return "done"
        training = "trained" if self.is_trained else f"{self.trained} of {self.total} steps trained"
        return training + (f", {len(self.evaluated)} evaluated" if self.benches else "")


def progress(run: Run, config: Any) -> Progress:
    """How far the run is whose typed training configuration (`validated`) this is."""
    return Progress(
        trained=last_checkpoint(run.directory, remote=config.model.tinker.enable),
        total=config.trainer.total_steps or config.buffer.total_steps,
        checkpoints=tuple(
            sorted(int(path.name.removeprefix("global_step_")) for path in run.directory.glob("global_step_*"))
        ),
        evaluated=frozenset(evaluated_steps(run.directory)),
        benches=not config.model.tinker.enable and bool(config.buffer.explorer_input.eval_tasksets),
    )


def missing(config: Any) -> list[str]:
    """What a run of this configuration needs and this machine or its Ray cluster does not have."""
    lacks = []
    address = config.cluster.ray_address
    ask = [*script("ray"), "status", *([] if address == "auto" else [f"--address={address}"])]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=RAY_PATIENCE)
        status = answer.stdout if answer.returncode == 0 else None
    except subprocess.TimeoutExpired:  # an address at which nobody answers
        status = None
    if status is None:
        lacks.append("a running Ray cluster (ray start --head)")
    if config.model.tinker.enable:
        return lacks
    if status is None:
        import torch

        gpus = torch.cuda.device_count()
    else:
        found = re.search(r"/(\d+)(?:\.\d+)? GPU", status)
        gpus = int(found[1]) if found else 0
    needed = config.cluster.node_num * config.cluster.gpu_per_node
    if gpus < needed:
        lacks.append(f"{needed} GPUs ({gpus} found)")
    parts = ["vllm"] if without_gpu.ASKED in os.environ else ["vllm", "flash_attn"]  # the one that only GPUs can run
    return lacks + [name for name in parts if find_spec(name) is None]


def require_machine(run: Run, config: Any) -> None:
    """Raises LaunchError, one line with everything that is missing, if the run could not start here."""
    if lacks := missing(config):
        raise LaunchError(
            f"{run.name} cannot run here, missing: {', '.join(lacks)} (docs/paper.md, requirements/gpu.txt)"
        )


def perform(run: Run, config: Any, console: Console) -> None:
    """Bring one run to its end: train what is left to train, evaluate what is left to evaluate.

    Args:
        config: the run's training configuration, typed (`validated`).

    Raises:
        LaunchError: Trinity trained or evaluated less than it should have; says why, from its logs.
        UsageError: the directory holds a run with other settings.
    """
    training = run.training()
    same_settings(run, training)
    before = progress(run, config)
    if not before.is_trained:
        train(run, training, before, console)
        before = progress(run, config)
        if not before.is_trained:
            raise LaunchError(f"{run.name}: Trinity left no checkpoint of step {before.total}")
    if not before.benches and run.experiment.setting.is_offline:
        console.print("no evaluation: the rollouts are the initial policy's, and mode: bench does not work on Tinker")
    if before.unevaluated:
        bench(run, before, console)


def same_settings(run: Run, training: DictConfig) -> None:
    """Remember the settings of a run, and refuse to go on with others.

    Raises:
        UsageError: names the first setting that differs.
    """
    path = run.directory / "launch" / "train.yaml"
    if not path.exists():
        write_yaml(training, path)
        return
    old, new = _flat(OmegaConf.load(path)), _flat(training)
    for key in dict.fromkeys([*old, *new]):
        if old.get(key) != new.get(key):
            raise UsageError(
                f"{run.directory} holds this run with {key} {old.get(key)}, not {new.get(key)}; choose another --out"
            )


def train(run: Run, training: DictConfig, before: Progress, console: Console) -> None:
    """`trinity run` in `mode: both`, from the last checkpoint on (`trinity_rec.plugin.resume` sees to the details)."""
    done = before.trained
    if done and run.experiment.setting.is_offline:
        console.print(f"{run.name}: an offline run cannot be resumed; what there was is in {move_aside(run)}")
        same_settings(run, training)
        done = 0
    console.print(f"{run.name}: training" + (f", from step {done}" if done else ""))
    with attempt(run, "train", training) as (session, path):
        steps = session.run_trinity(path, run.directory, total_steps=before.total, patience=PATIENCE)
        for _ in watch(steps, before.total, console):
            pass


def move_aside(run: Run) -> Path:
    """Rename a run's directory to the first free `<name>.<n>`, so that it starts anew; returns the new place.

    Trinity starts the explorer of a resumed run with the trainer's weights, but offline all rollouts are the initial
    policy's.
    """
    names = (run.directory.with_name(f"{run.directory.name}.{n}") for n in count(1))
    return run.directory.rename(next(path for path in names if not path.exists()))


def bench(run: Run, before: Progress, console: Console) -> None:
    """`trinity run` in `mode: bench`, on the initial model and the checkpoints that have no result yet.

    Raises:
        LaunchError: Trinity ended with a checkpoint not evaluated.
    """
    left_out = before.unevaluated
    # Trinity's benchmark goes through the checkpoints in order, and begins behind the step noted here.
    if behind := [step for step in before.evaluated if step < left_out[0]]:
        note = run.directory / f"{BENCH_ROLE}_meta.json"
        note.write_text(json.dumps({"latest_iteration": max(behind)}), encoding="utf-8")
    console.print(f"{run.name}: evaluating the weights of steps {', '.join(map(str, left_out))}")
    with attempt(run, "bench", run.bench()) as (session, path):
        for _ in session.run_trinity(path, run.directory, total_steps=0, patience=math.inf):
            pass
        if still := sorted(set(left_out) - evaluated_steps(run.directory)):
            reason = last_error(session.log("trinity")) or f"see {session.logs}/trinity.log"
            raise LaunchError(f"{run.name}: mode: bench left steps {', '.join(map(str, still))} out: {reason}")


@contextmanager
def attempt(run: Run, stage: str, config: DictConfig) -> Iterator[tuple[Session, Path]]:
    """A session for one `trinity run` and the path of its YAML; a directory of its own, nothing left running.

    The environment is the caller's: on a cluster Ray, the models and the data are set up there.
    """
    launches = run.directory / "launch"
    place = launches / f"{stage}-{1 + len(list(launches.glob('*-[0-9]*')))}"
    # Trinity's Synchronizer is detached, and its way to end (`exit_actor` in a background task) leaves it there, deaf:
    # a later start in the same Ray namespace would get it by its name, and wait for it forever.
    OmegaConf.update(config, "ray_namespace", f"{run.name}/{place.name}")
    path = write_yaml(config, place / "config.yaml")
    with signals_as_exit(), Session(place) as session:
        session.env = {**os.environ, MARK: session.mark, "PYTHONUNBUFFERED": "1"}
        yield session, path


def delete_checkpoints(run: Run) -> None:
    """What the authors did when a run was evaluated; `latest_checkpointed_iteration.txt` stays and says that it is."""
    for path in run.directory.glob("global_step_*"):
        shutil.rmtree(path)


def write_yaml(config: DictConfig, path: Path, header: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + OmegaConf.to_yaml(config), encoding="utf-8")
    return path


def _flat(config: Any) -> dict[str, Any]:
    return dict(_items(OmegaConf.to_container(config, resolve=False)))


def _items(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _items(each, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
