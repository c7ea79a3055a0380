"""A `trinity run` of the main road's quickstart, made small and with some keys changed."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from trinity_rec.session import Session, TrainedStep
from trinity_rec.shipped import example

PROBLEMS, GROUP = 8, 4
PATIENCE = 900  # seconds without a step; vLLM and verl take minutes to start on a busy machine


def write_config(folder: Path, steps: int, **changes: object) -> Path:
    """The YAML of a run in `folder`; `__` in the name of a change stands for a dot."""
    config = OmegaConf.load(example("rec_gsm8k/quickstart_vllm.yaml"))
    small = {
        "checkpoint_root_dir": str(folder),
        "name": folder.name,
        "buffer.batch_size": PROBLEMS,
        "algorithm.repeat_times": GROUP,
        "buffer.total_steps": steps,
        "trainer.total_steps": steps,
        "explorer.runner_per_model": 1,
        "synchronizer.sync_interval": 2,
    }
    for key, value in {**small, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        OmegaConf.update(config, key, value, merge=False)
    folder.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, folder / "config.yaml")
    return folder / "config.yaml"


def train(session: Session, folder: Path, steps: int, **changes: object) -> list[TrainedStep]:
    """All its steps, which are counted."""
    path = write_config(folder, steps, **changes)
    trained = list(session.run_trinity(path, job_root=folder, total_steps=steps, patience=PATIENCE))
    assert [step.number for step in trained] == list(range(1, steps + 1))
    return trained
