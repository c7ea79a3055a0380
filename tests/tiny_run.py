"""A `trinity run` that is small and repeats itself: the quickstart's model and problems, two a step, one worker.

With one workflow runner the rollouts come in one order, and each request carries the YAML's seed; the local backend's
arithmetic is the same each time. So two runs are equal, and a run that was broken off and resumed equals an unbroken
one: what a checkpoint forgets or a resumed run reads twice shows in the weights.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from trinity_rec.quickstart.run import last_checkpoint
from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session import Session, TrainedStep, marked_processes
from trinity_rec.shipped import example

NAME = "tiny"  # of every run, since the backend's random streams hang on the names of snapshots, and these on it
PROBLEMS, GROUP = 2, 4


def start_backend(session: Session, root: Path) -> None:
    session.start_server(ASSETS / "model", root=root)
    session.env |= {
        "TRINITY_REC_BASE_URL": session.base_url,
        "TRINITY_REC_MODEL": str(ASSETS / "model"),
        "TRINITY_REC_TASKS": str(ASSETS / "tasks"),
    }


def write_config(folder: Path, steps: int, **changes: object) -> Path:
    """The YAML of a run in `folder`; `__` in the name of a change stands for a dot."""
    config = OmegaConf.load(example("rec_gsm8k/quickstart.yaml"))
    small = {
        "checkpoint_root_dir": str(folder),
        "name": NAME,
        "buffer.batch_size": PROBLEMS,
        "algorithm.repeat_times": GROUP,
        "buffer.total_steps": steps,
        "trainer.total_steps": steps,
        "trainer.save_interval": 2,
        "synchronizer.sync_interval": 2,
        "explorer.runner_per_model": 1,
    }
    for key, value in {**small, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        OmegaConf.update(config, key, value, merge=False)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    return folder / "config.yaml"


def train(session: Session, folder: Path, steps: int) -> Iterator[TrainedStep]:
    return session.run_trinity(folder / "config.yaml", job_root=folder, total_steps=steps)


def actor(session: Session, name: str, since: float) -> psutil.Process | None:
    """The process of Trinity's trainer or explorer that has started since then; Ray names it in its command line."""
    for process in marked_processes(session.mark):
        with contextlib.suppress(psutil.Error):
            title = re.match(rf"ray::({name}:)?{name.capitalize()}\b", " ".join(process.cmdline()))
            if title and process.create_time() > since:
                return process
    return None


def weights_after(folder: Path, root: Path, step: int) -> dict[str, torch.Tensor]:
    """The weights in the checkpoint of a step, from the backend's files under `root`."""
    return load_file(root / last_checkpoint(folder, step).removeprefix("tinker://") / "weights.safetensors")


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)
