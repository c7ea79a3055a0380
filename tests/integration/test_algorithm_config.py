"""The presets in Trinity's own configuration check: what it makes of a YAML before any worker starts."""

from __future__ import annotations

import pytest
from trinity.algorithm import ADVANTAGE_FN, ALGORITHM_TYPE, POLICY_LOSS_FN, SAMPLE_STRATEGY
from trinity.common.config import Config, TasksetConfig
from trinity.common.config_validator import AlgorithmConfigValidator

from trinity_rec.presets import PRESETS


def checked(algorithm_type: str, *, tinker: bool = False, **algorithm) -> Config:
    """A configuration with this `algorithm:` section after Trinity's check of it, done twice: it must be idempotent."""
    config = Config()
    config.mode = "both"
    config.model.tinker.enable = tinker
    config.algorithm.algorithm_type = algorithm_type
    for key, value in algorithm.items():
        setattr(config.algorithm, key, value)
    return check(config)


def check(config: Config) -> Config:
    AlgorithmConfigValidator().validate(config)
    first = repr(config.algorithm)
    AlgorithmConfigValidator().validate(config)
    assert repr(config.algorithm) == first
    return config


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("tinker", [False, True])
def test_every_preset_passes_and_resolves(name, tinker):
    algorithm = checked(f"trinity_rec.{name}", tinker=tinker).algorithm
    preset = PRESETS[name]
    assert algorithm.algorithm_type == f"trinity_rec.{name}"
    assert ALGORITHM_TYPE.get(algorithm.algorithm_type).use_reference is False
    assert algorithm.kl_loss_fn == "none"
    assert preset.policy_loss.items() <= algorithm.policy_loss_fn_args.items()
    assert preset.advantage.items() <= algorithm.advantage_fn_args.items()
    backend = "tinker" if tinker else "verl"
    POLICY_LOSS_FN.get(algorithm.policy_loss_fn)(backend=backend, **algorithm.policy_loss_fn_args)
    ADVANTAGE_FN.get(algorithm.advantage_fn)(**algorithm.advantage_fn_args)
    assert SAMPLE_STRATEGY.get(algorithm.sample_strategy).default_args().keys() >= algorithm.sample_strategy_args.keys()


@pytest.mark.parametrize("tinker", [False, True])
def test_no_flag_makes_trinity_normalise_the_loss_again(tinker):
    config = Config()
    config.mode, config.model.tinker.enable = "both", tinker
    config.algorithm.algorithm_type = "trinity_rec.rec_grpo"
    config.trainer.fix_actor_microbatch_loss_scale = True
    assert check(config).trainer.fix_actor_microbatch_loss_scale is False


def test_one_argument_of_the_user_leaves_the_rest_of_the_preset():
    args = checked("trinity_rec.rec_ring_nois", policy_loss_fn_args={"epsilon_high": 1.0}).algorithm.policy_loss_fn_args
    assert (args["clip_mode"], args["weight"]) == ("ring", "none")
    assert (args["epsilon_low"], args["epsilon_high"]) == (0.2, 1.0)
    assert (args["epsilon_low_prime"], args["epsilon_high_prime"]) == (0.6, 2.0)
    args = checked("trinity_rec.red_drop", advantage_fn_args={"seed": 7}).algorithm.advantage_fn_args
    assert (args["drop"], args["drop_form"], args["seed"]) == ("balance", "exclude", 7)


@pytest.mark.parametrize(
    "yaml, average",
    [
        ({"algorithm_type": "trinity_rec.rec_gspo_is"}, "seq-mean-token-mean"),
        ({"algorithm_type": "trinity_rec.rec_grpo"}, "token-mean"),
        ({"algorithm_type": "trinity_rec.rec_grpo", "loss_agg_mode": "seq-mean-token-sum"}, "seq-mean-token-sum"),
        ({"algorithm_type": "trinity_rec.rec_gspo_is", "loss_agg_mode": "token-mean"}, "token-mean"),
        (
            {"algorithm_type": "trinity_rec.rec", "policy_loss_fn_args": {"clip_mode": "gspo-one-side"}},
            "seq-mean-token-mean",
        ),
    ],
)
def test_the_average_survives_trinitys_own_default(yaml, average):
    algorithm = checked(**yaml).algorithm
    assert algorithm.loss_agg_mode == average
    assert algorithm.policy_loss_fn_args["loss_agg_mode"] == average


@pytest.mark.parametrize(
    "kl, kl_loss_fn, reference",
    [
        ({}, "none", False),
        ({"kl_loss_fn": "k2", "kl_loss_fn_args": {"kl_coef": 0.0}}, "none", False),
        ({"kl_loss_fn_args": {"kl_coef": 0}}, "none", False),
        ({"kl_loss_fn": "none", "kl_loss_fn_args": {"kl_coef": 0.1}}, "none", False),
        ({"kl_loss_fn_args": {"kl_coef": 0.1}}, "k2", True),
        ({"kl_loss_fn": "k3", "kl_loss_fn_args": {"kl_coef": 0.1}}, "k3", True),
        ({"kl_loss_fn": "k1"}, "k1", True),
    ],
)
@pytest.mark.parametrize("tinker", [False, True])
def test_a_reference_model_only_for_a_kl_term_with_a_coefficient(kl, kl_loss_fn, reference, tinker):
    algorithm = checked("trinity_rec.rec_grpo", tinker=tinker, **kl).algorithm
    assert algorithm.kl_loss_fn == kl_loss_fn
    assert ALGORITHM_TYPE.get(algorithm.algorithm_type).use_reference is reference


@pytest.mark.parametrize(
    "algorithm, message",
    [
        (
            {"policy_loss_fn_args": {"epsilon_hig": 1.0}},
            "algorithm.policy_loss_fn_args: unknown argument 'epsilon_hig'; did you mean 'epsilon_high'?",
        ),
        (
            {"policy_loss_fn_args": {"clip_mode": "one_side"}},
            "algorithm.policy_loss_fn_args.clip_mode='one_side' is not one of none, one-side, two-side",
        ),
        (
            {"policy_loss_fn_args": {"epsilon_low": 1.5}},
            "algorithm.policy_loss_fn_args.epsilon_low=1.5 is not in (0, 1]",
        ),
        ({"advantage_fn_args": {"drop": "all"}}, "algorithm.advantage_fn_args.drop='all' is not one of None, balance"),
        ({"loss_agg_mode": "mean"}, "algorithm.policy_loss_fn_args.loss_agg_mode='mean' is not one of token-mean"),
        (
            {"sample_strategy": "trinity_rec.InformativeSampleStrategy", "sample_strategy_args": {"refill": True}},
            "would starve under synchronizer.sync_style=fixed",
        ),
        (
            {"sample_strategy": "trinity_rec.OfflineSampleStrategy", "sample_strategy_args": {"batches": 2}},
            "is more than the 1 batches that the initial policy makes",
        ),
        (
            {"sample_strategy": "trinity_rec.StalenessSampleStrategy", "sample_strategy_args": {"decay": 0}},
            "algorithm.sample_strategy_args.decay=0 is not in (0, 1]",
        ),
        (
            {"sample_strategy": "trinity_rec.BalancedSampleStrategy", "sample_strategy_args": {"sed": 1}},
            "algorithm.sample_strategy_args: unknown argument 'sed'; did you mean 'seed'?",
        ),
    ],
)
def test_a_wrong_argument_is_refused_by_name_value_and_what_is_allowed(algorithm, message):
    with pytest.raises(ValueError) as refused:
        checked("trinity_rec.rec", **algorithm)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_strategy_that_weights_is_linked_to_the_loss():
    strategy = {"sample_strategy": "trinity_rec.StalenessSampleStrategy"}
    weighted = checked("trinity_rec.rec", **strategy, sample_strategy_args={"decay": 0.9}).algorithm
    loss = POLICY_LOSS_FN.get(weighted.policy_loss_fn)(backend="verl", **weighted.policy_loss_fn_args)
    assert "sample_weight" in loss.select_keys
    plain = checked("trinity_rec.rec", **strategy).algorithm
    loss = POLICY_LOSS_FN.get(plain.policy_loss_fn)(backend="verl", **plain.policy_loss_fn_args)
    assert "sample_weight" not in loss.select_keys


def test_rollouts_on_tinker_are_at_temperature_1():
    config = Config()
    config.model.tinker.enable = True
    config.algorithm.algorithm_type = "trinity_rec.rec_grpo"
    config.model.temperature = 0.7
    with pytest.raises(ValueError, match=r"model\.temperature=0\.7: .* temperature 1"):
        check(config)
    taskset = TasksetConfig(name="train", path="somewhere")
    taskset.rollout_args.temperature = 1.0
    config.buffer.explorer_input.taskset = taskset
    check(config)
    taskset.rollout_args.temperature = 0.5
    with pytest.raises(ValueError, match=r"explorer_input\.taskset\.rollout_args\.temperature=0\.5"):
        check(config)
    config.model.tinker.enable = False
    check(config)


def test_a_foreign_sample_strategy_on_tinker_pays_for_a_reference_pass():
    algorithm = checked("trinity_rec.rec_grpo", tinker=True, sample_strategy="staleness_control").algorithm
    assert ALGORITHM_TYPE.get(algorithm.algorithm_type).use_reference is True
    assert algorithm.kl_loss_fn == "none"
    algorithm = checked("trinity_rec.rec_grpo", sample_strategy="staleness_control").algorithm
    assert ALGORITHM_TYPE.get(algorithm.algorithm_type).use_reference is False


def test_parts_of_other_families_are_left_alone():
    algorithm = checked(
        "trinity_rec.rec_grpo", policy_loss_fn="ppo", advantage_fn="grpo", policy_loss_fn_args={"clip_range": 0.3}
    ).algorithm
    assert algorithm.policy_loss_fn_args["clip_range"] == 0.3
    assert "clip_mode" not in algorithm.policy_loss_fn_args
    assert "drop" not in algorithm.advantage_fn_args


def test_the_building_blocks_serve_upstreams_algorithm_types():
    algorithm = checked(
        "grpo",
        policy_loss_fn="trinity_rec.RECPolicyLoss",
        policy_loss_fn_args={"clip_mode": "ring"},
        advantage_fn="trinity_rec.RECAdvantage",
    ).algorithm
    loss = POLICY_LOSS_FN.get(algorithm.policy_loss_fn)(backend="verl", **algorithm.policy_loss_fn_args)
    assert loss.objective.epsilon_high_prime == 2.0
    ADVANTAGE_FN.get(algorithm.advantage_fn)(**algorithm.advantage_fn_args)


def test_upstreams_own_algorithms_stay_reachable():
    for name in ("opmd", "asymre", "rec", "grpo"):
        assert checked(name).algorithm.algorithm_type == name
        assert ALGORITHM_TYPE.get(name).__module__ == "trinity.algorithm.algorithm"
