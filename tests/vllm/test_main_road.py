"""Real runs of Trinity on vLLM and verl: every preset, each sample strategy, what else a YAML may ask for."""

from __future__ import annotations

import pytest

from tests.vllm.small_run import GROUP, train
from trinity_rec.presets import PRESETS

pytestmark = pytest.mark.timeout(1800)
KL = {"algorithm__kl_loss_fn": "k2", "algorithm__kl_loss_fn_args": {"kl_coef": 0.01}}
ENTROPY = {"algorithm__entropy_loss_fn": "default", "algorithm__entropy_loss_fn_args": {"entropy_coef": 0.001}}


def strategy(name: str, **arguments: object) -> dict[str, object]:
    return {
        "algorithm__sample_strategy": f"trinity_rec.{name}SampleStrategy",
        "algorithm__sample_strategy_args": arguments,
    }


def test_a_reference_model_gives_a_kl_and_the_entropy_is_logged(session, tmp_path):
    steps = train(session, tmp_path / "reference", 2, **KL, **ENTROPY)
    first, second = (step.metrics for step in steps)
    assert "time/ref" in first, "the reference model ran"
    assert abs(first["actor/kl_loss"]) < 1e-6 < second["actor/kl_loss"], "it begins as the policy itself"
    assert second["actor/entropy_loss"] != 0


@pytest.mark.soak
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_two_steps(session, tmp_path, name):
    changes = {"algorithm__algorithm_type": f"trinity_rec.{name}", "algorithm__policy_loss_fn_args": None}
    if name == "off_geo_rs":  # a step of this size takes every response out of its band of 0.1 %
        changes["synchronizer__sync_interval"] = 1
    for step in train(session, tmp_path / name, 2, **changes):
        assert 0 < step.metrics["actor/grad_norm"] < 1e3


@pytest.mark.soak
def test_informative_masks_groups_that_teach_nothing(session, tmp_path):
    for step in train(session, tmp_path / "informative", 3, **strategy("Informative")):
        assert step.metrics["sample/masked"] == step.metrics["sample/uninformative"]
        assert step.metrics["sample/masked"] % GROUP == 0


@pytest.mark.soak
def test_balanced(session, tmp_path):
    for step in train(session, tmp_path / "balanced", 3, **strategy("Balanced")):
        assert 0 in (step.metrics["sample/dropped_positive"], step.metrics["sample/dropped_negative"])


@pytest.mark.soak
def test_staleness(session, tmp_path):
    steps = train(session, tmp_path / "staleness", 4, **strategy("Staleness", decay=0.5))
    assert [step.metrics["sample/staleness_mean"] for step in steps] == [0, 1, 0, 1]
    assert [step.metrics["sample/staleness_weight_mean"] for step in steps] == [1, 0.5, 1, 0.5]


@pytest.mark.soak
def test_offline(session, tmp_path):
    steps = train(session, tmp_path / "offline", 4, **strategy("Offline", batches=2), buffer__total_steps=4)
    assert [step.metrics["sample/offline_epoch"] for step in steps] == [0, 0, 1, 1]
    assert (steps[0].reward, steps[1].reward) == (steps[2].reward, steps[3].reward)


@pytest.mark.soak
def test_a_sync_offset_makes_every_rollout_that_much_older(session, tmp_path):
    plain = strategy("Staleness", decay=1.0)
    steps = train(session, tmp_path / "offset", 6, **plain, synchronizer__sync_offset=2)
    assert [step.metrics["sample/staleness_mean"] for step in steps] == [0, 1, 2, 3, 2, 3]


@pytest.mark.soak
def test_a_sync_by_checkpoint_rounds_the_weights(session, tmp_path):
    """verl casts to bfloat16 what it sends; docs/metrics.md says how to tell this gap from staleness."""
    changes = {"synchronizer__sync_method": "checkpoint", "synchronizer__sync_interval": 1}
    gaps = [abs(step.metrics["actor/kl_k1"]) for step in train(session, tmp_path / "rounded", 4, **changes)]
    assert all(1e-6 < gap < 1e-3 for gap in gaps[1:]), gaps
