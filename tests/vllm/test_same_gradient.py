"""One batch of vLLM's rollouts, trained on by verl and by the Tinker road: the gradient is the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.vllm.small_run import GROUP, PATIENCE, PROBLEMS, write_config
from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session import Session, TrainedStep

pytestmark = pytest.mark.timeout(1800)
ALGORITHM = "trinity_rec.rec_grpo"


def buffer(database: Path) -> dict[str, object]:
    return {
        "algorithm__algorithm_type": ALGORITHM,
        "algorithm__policy_loss_fn_args": None,
        "buffer__train_batch_size": PROBLEMS * GROUP,
        "buffer__trainer_input__experience_buffer": {
            "name": "experiences",
            "storage_type": "sql",
            "schema_type": "experience",
            "path": f"sqlite:///{database}",
        },
    }


def explore(session: Session, folder: Path) -> Path:
    """A database with the rollouts of one step, their advantages included."""
    folder.mkdir()
    database = folder / "experiences.db"
    path = write_config(folder, 1, mode="explore", **buffer(database))
    steps = session.run_trinity(path, job_root=folder, total_steps=1, patience=PATIENCE, role="explorer")
    assert [step.number for step in steps] == [1]
    return database


def trained(session: Session, folder: Path, rollouts: Path, **changes: object) -> TrainedStep:
    """The one step that a trainer makes of the rollouts; it takes them out of its database, a copy."""
    folder.mkdir()
    database = shutil.copy(rollouts, folder)
    path = write_config(folder, 1, mode="train", **buffer(Path(database)), **changes)
    (step,) = session.run_trinity(path, job_root=folder, total_steps=1, patience=PATIENCE)
    return step


def test_verl_and_the_tinker_road_make_the_same_step_of_the_same_rollouts(session, tmp_path):
    rollouts = explore(session, tmp_path / "explore")
    by_verl = trained(session, tmp_path / "verl", rollouts)
    session.start_server(ASSETS / "model", root=tmp_path / "weights")
    tinker = {"model__tinker": {"enable": True, "base_url": session.base_url}, "trainer__trainer_type": "tinker"}
    by_tinker = trained(session, tmp_path / "tinker", rollouts, **tinker)
    assert by_verl.reward == by_tinker.reward
    for name in ("actor/grad_norm", "actor/pg_loss"):
        assert by_verl.metrics[name] == pytest.approx(by_tinker.metrics[name], rel=1e-3, abs=1e-6), name
    assert by_verl.metrics["actor/grad_norm"] > 0.01
