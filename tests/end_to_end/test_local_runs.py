"""Real runs of `trinity run` on the local backend: each sample strategy, off-policy, and the reference model."""

from __future__ import annotations

import json
import os
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from omegaconf import OmegaConf

import trinity_rec
from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session import Session, TrainedStep
from trinity_rec.shipped import example

BATCH, GROUP = 4, 4
ROOT = Path(__file__).parents[2]
PLUGIN_DIR = Path(trinity_rec.__file__).parent / "plugin" / "register"


@pytest.fixture(scope="module")
def ray_session(tmp_path_factory):
    with Session(tmp_path_factory.mktemp("session") / "logs") as session:
        session.env["PYTHONPATH"] += f"{os.pathsep}{ROOT}"  # Ray's processes find tests.own_rules
        session.start_ray()
        session.env |= {"TRINITY_REC_MODEL": str(ASSETS / "model"), "TRINITY_REC_TASKS": str(ASSETS / "tasks")}
        yield session


@pytest.fixture
def session(ray_session, tmp_path_factory):
    """With a server of the test's own: one server trains only so many models at a time."""
    ray_session.start_server(ASSETS / "model", root=tmp_path_factory.mktemp("weights"))
    ray_session.env["TRINITY_REC_BASE_URL"] = ray_session.base_url
    return ray_session


def run(session: Session, folder: Path, steps: int, after: int = 0, **changes: object) -> list[TrainedStep]:
    """`trinity run` of the quickstart's YAML, small and with some keys changed; `__` in a key stands for a dot.

    Args:
        after: the steps that were trained before, of a run that is resumed.
    """
    config = OmegaConf.load(example("rec_gsm8k/quickstart.yaml"))
    small = {
        "buffer.batch_size": BATCH,
        "algorithm.repeat_times": GROUP,
        "buffer.total_steps": steps,
        "trainer.total_steps": steps,
        "checkpoint_root_dir": str(folder),
        "name": folder.name,
        "explorer.runner_per_model": 1,  # each is a process
        "synchronizer.sync_interval": 2,
    }
    for key, value in {**small, **{key.replace("__", "."): value for key, value in changes.items()}}.items():
        OmegaConf.update(config, key, value, merge=False)
    path = folder / "config.yaml"
    OmegaConf.save(config, path)
    trained = list(session.run_trinity(path, job_root=folder, total_steps=steps))
    assert [step.number for step in trained] == list(range(after + 1, steps + 1))
    return trained


def sample_requests(session: Session) -> int:
    """How often the server was asked to sample so far; a reference's logprobs are asked for as a sample too."""
    stats = Request(f"{session.base_url}/stats", headers={"X-API-Key": session.env["TINKER_API_KEY"]})
    with urlopen(stats) as answer:
        return int(json.load(answer).get("sample_requests", 0))


def test_a_kl_term_has_a_reference_pass_and_informative_masks_under_fixed_sync(session, tmp_path):
    before = sample_requests(session)
    informative = {"algorithm__sample_strategy": "trinity_rec.InformativeSampleStrategy"}
    steps = run(session, tmp_path, 3, algorithm__kl_loss_fn_args={"kl_coef": 0.01}, **informative)
    assert sample_requests(session) - before == BATCH * len(steps) * (1 + GROUP)
    for step in steps:
        assert "actor/kl_loss" in step.metrics and step.metrics["actor/grad_norm"] > 0
        assert step.metrics["sample/masked"] == step.metrics["sample/uninformative"]
        assert step.metrics["sample/masked"] % GROUP == 0


def test_a_plain_name_a_rule_of_ones_own_no_reference_pass_and_balanced(session, tmp_path, monkeypatch):
    monkeypatch.setitem(session.env, "TRINITY_PLUGIN_DIRS", str(PLUGIN_DIR))
    before = sample_requests(session)
    own_rule = {"clip_mode": "tests.own_rules.soft_clip", "softness": 2.0}
    plain = {"algorithm_type": "red_weight", "policy_loss_fn_args": {"temp": 0.5, **own_rule}}
    nothing = {"kl_loss_fn": "k2", "kl_loss_fn_args": {"kl_coef": 0.0}}
    balanced = {"sample_strategy": "trinity_rec.BalancedSampleStrategy"}
    changes = {f"algorithm__{key}": value for key, value in (plain | nothing | balanced).items()}
    steps = run(session, tmp_path, 3, **changes)
    assert "Failed to load plugin" not in session.log("trinity")
    assert sample_requests(session) - before == BATCH * len(steps)
    for step in steps:
        assert "actor/kl_loss" not in step.metrics and step.metrics["actor/grad_norm"] > 0
    # M = 1 / (1 + 2 (log rho)^2) is 1 where the rollouts are fresh, and less where they are a step old.
    assert abs(steps[0].metrics["actor/pg_clipfrac"]) < 1e-4 < steps[1].metrics["actor/pg_clipfrac"]
    for step in steps:
        assert {"sample/dropped_positive", "sample/dropped_negative"} <= step.metrics.keys()
        assert 0 in (step.metrics["sample/dropped_positive"], step.metrics["sample/dropped_negative"])
    assert any(step.metrics["sample/dropped_negative"] for step in steps)


@pytest.mark.soak
def test_informative_refills_under_explorer_driven_sync(session, tmp_path):
    steps = run(
        session,
        tmp_path,
        3,
        buffer__total_steps=12,
        synchronizer__sync_style="explorer_driven",
        algorithm__sample_strategy="trinity_rec.InformativeSampleStrategy",
        algorithm__sample_strategy_args={"refill": True},
    )
    for step in steps:
        assert step.metrics["sample/masked"] == 0 or step.metrics["sample/reads"] > 1


def test_staleness_weights_reach_the_loss(session, tmp_path):
    steps = run(
        session,
        tmp_path,
        4,
        algorithm__sample_strategy="trinity_rec.StalenessSampleStrategy",
        algorithm__sample_strategy_args={"decay": 0.5},
    )
    assert [step.metrics["sample/staleness_mean"] for step in steps] == [0, 1, 0, 1]
    assert [step.metrics["sample/staleness_weight_mean"] for step in steps] == [1, 0.5, 1, 0.5]


def test_offline_goes_on_with_its_data_after_a_resume(session, tmp_path):
    offline = {
        "algorithm__sample_strategy": "trinity_rec.OfflineSampleStrategy",
        "algorithm__sample_strategy_args": {"batches": 2},
        "buffer__total_steps": 8,
    }
    first = run(session, tmp_path, 3, **offline)
    assert [step.metrics["sample/offline_epoch"] for step in first] == [0, 0, 1]
    assert all(step.metrics["sample/model_version/max"] <= 0 for step in first)
    resumed = run(session, tmp_path, 6, after=3, continue_from_checkpoint=True, **offline)
    assert [step.metrics["sample/offline_epoch"] for step in resumed] == [1, 2, 2]
    assert all(step.metrics["sample/model_version/max"] <= 0 for step in resumed)
    # The same batches come again: an odd step is the first batch, whose rewards are known.
    assert [step.reward for step in resumed] == [first[1].reward, first[0].reward, first[1].reward]
