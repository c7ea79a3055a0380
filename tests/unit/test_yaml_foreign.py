"""`translate`: verl's and TRL's settings as an `algorithm:` section; what has no equal is refused by name."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import verl as verl_package
import yaml
from typer.testing import CliRunner

from tests.conformance.test_corrections import DRIFTS, ascent, batch
from tests.conformance.verl_losses import verl_loss
from trinity_rec.cli import app
from trinity_rec.objective import Objective
from trinity_rec.yaml.effective import effective


def run(tmp_path, settings: dict, *options: str):
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings))
    return CliRunner().invoke(app, ["translate", str(path), *options])


def verl(actor=None, algorithm=None, n=8) -> dict:
    return {
        "actor_rollout_ref": {"actor": actor or {}, "rollout": {"n": n}},
        "algorithm": {"adv_estimator": "grpo", **(algorithm or {})},
    }


TRLS_STD = {"advantage_fn_args": {"epsilon": 1e-4}}


@pytest.mark.parametrize(
    ("settings", "section"),
    [
        (verl({"policy_loss": {"loss_mode": "gspo"}, "clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}),
         {"algorithm_type": "trinity_rec.rec_gspo_is", "advantage_fn_args": {"std_normalize": True}}),
        (verl({"policy_loss": {"loss_mode": "gpg"}, "use_kl_loss": True, "kl_loss_coef": 0.01},
              {"norm_adv_by_std_in_grpo": False}),
         {"algorithm_type": "trinity_rec.rec_reinforce",
          "kl_loss_fn": "low_var_kl", "kl_loss_fn_args": {"kl_coef": 0.01}}),
        ({"num_generations": 8, "loss_type": "grpo", "epsilon_high": 0.28, "beta": 0.04},
         {"algorithm_type": "trinity_rec.rec_grpo", "policy_loss_fn_args": {"epsilon_high": 0.28}, **TRLS_STD,
          "loss_agg_mode": "seq-mean-token-mean", "kl_loss_fn": "low_var_kl", "kl_loss_fn_args": {"kl_coef": 0.04}}),
        ({"num_generations": 8, "loss_type": "dr_grpo", "scale_rewards": "none", "entropy_coef": 0.01},
         {"algorithm_type": "trinity_rec.rec_oneside_is", "policy_loss_fn_args": {"loss_scale_factor": 512.0},
          "loss_agg_mode": "seq-mean-token-sum-norm", "entropy_loss_fn": "default",
          "entropy_loss_fn_args": {"entropy_coef": 0.01}}),
        ({"num_generations": 8, "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
         {"algorithm_type": "trinity_rec.rec_gspo_is", "advantage_fn_args": {"epsilon": 1e-4, "std_normalize": True},
          "loss_agg_mode": "token-mean"}),
        ({"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4,
          "scale_rewards": False}, {"algorithm_type": "trinity_rec.off_luspo"}),
        ({"loss_type": "cispo", "epsilon_high": 5.0, "scale_rewards": False},
         {"algorithm_type": "trinity_rec.off_cispo", "policy_loss_fn_args": {"epsilon_high": 4.0}}),
        ({"loss_type": "cispo", "scale_rewards": False},
         {"algorithm_type": "trinity_rec.off_tis", "policy_loss_fn_args": {"weight_cap": 0.2}}),
        ({"loss_type": "sapo", "sapo_temperature_neg": 2.0, "scale_rewards": False},
         {"algorithm_type": "trinity_rec.off_sapo", "policy_loss_fn_args": {"tau_negative": 2.0}}),
        ({"loss_type": "vespo", "vespo_k_neg": 1.0, "scale_rewards": False},
         {"algorithm_type": "trinity_rec.off_vespo", "policy_loss_fn_args": {"vespo_k_negative": 1.0}}),
        ({"beta": 0.0, "off_policy_mask_threshold": 0.3, "scale_rewards": False},
         {"algorithm_type": "trinity_rec.off_opsm", "policy_loss_fn_args": {"max_kl": 0.3}}),
        ({"beta": 0.0, "delta": 3.0, "scale_rewards": False}, {"algorithm_type": "trinity_rec.off_dual_clip"}),
        ({"beta": 0.0, "use_vllm": True, "vllm_importance_sampling_mode": "token_truncate", "scale_rewards": False},
         {"algorithm_type": "trinity_rec.off_tis", "policy_loss_fn_args": {"weight_cap": 3.0}}),
        ({"beta": 0.0, "use_vllm": True, "scale_rewards": False},
         {"algorithm_type": "trinity_rec.off_seq_tis",
          "policy_loss_fn_args": {"clip_mode": "sequence-two-side", "epsilon_low": 1.0, "epsilon_high": 2.0,
                                  "weight_cap": 3.0}}),
            (verl({"clip_ratio": 0.2, "clip_ratio_high": 0.28, "entropy_coeff": 0.001, "optim": {"lr": 1e-6}}),
             {"algorithm_type": "trinity_rec.off_dual_clip", "policy_loss_fn_args": {"epsilon_high": 0.28},
              "advantage_fn_args": {"std_normalize": True}, "entropy_loss_fn": "default",
              "entropy_loss_fn_args": {"entropy_coef": 0.001}, "optimizer": {"lr": 1e-6}}),
            (verl(algorithm={"rollout_correction": {"bypass_mode": True, "loss_type": "reinforce",
                                                    "rollout_is": "token", "rollout_is_threshold": 3.0}}),
             {"algorithm_type": "trinity_rec.off_tis", "policy_loss_fn_args": {"weight_cap": 3.0},
              "advantage_fn_args": {"std_normalize": True}}),
    ],
)  # fmt: skip
def test_what_has_an_equal(tmp_path, settings, section):
    result = run(tmp_path, settings)
    assert result.exit_code == 0, result.exception
    printed = yaml.safe_load(result.stdout)["algorithm"]
    assert printed == {**section, "repeat_times": 8}
    effective(printed)  # Trinity takes it
    assert json.loads(run(tmp_path, settings, "--json").stdout)["algorithm"] == printed


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (verl({"policy_loss": {"loss_mode": "clip_cov"}}), "actor.policy_loss.loss_mode: clip_cov has no equal"),
        (verl(algorithm={"adv_estimator": "rloo"}), "algorithm.adv_estimator: rloo has no equal"),
        ({"actor_rollout_ref": {}}, "gae, trains a critic"),
        (verl(algorithm={"use_kl_in_reward": True}), "algorithm.use_kl_in_reward: True has no equal"),
        (verl(algorithm={"rollout_correction": {"rollout_is": "token"}}), "rollout_is: token has no equal"),
        (verl(algorithm={"rollout_correction": {"rollout_rs": "seq_mean_k1"}}), "rollout_rs: seq_mean_k1 has no equal"),
        (verl({"clip_ratio": "wide"}), "clip_ratio: 'wide' is not a number"),
        (verl({"policy_loss": {"loss_mode": "gpg"}, "loss_agg_mode": "seq-mean-token-sum-norm"}), "loss_scale_factor"),
        (verl(algorithm={"rollout_correction": {"bypass_mode": True, "rollout_rs": "seq_mean_k1"}}), "rollout_rs: seq"),
        (verl(algorithm={"rollout_correction": {"bypass_mode": True, "loss_type": "reinforce", "rollout_is": "token",
                                                "rollout_is_threshold": "0.5_5", "rollout_rs": "seq_sum_k1"}}),
         "rollout_rs: seq_sum_k1 has no equal"),
        (verl(algorithm={"rollout_correction": {"bypass_mode": True, "loss_type": "reinforce", "rollout_is": "token",
                                                "rollout_is_threshold": "wide_5"}}), "'wide' is not a number"),
        ({"num_generations": 8, "loss_type": "ppo"}, "loss_type: ppo has no equal here; dapo, bnpo"),
        ({"beta": 0.1, "use_bias_correction_kl": True}, "use_bias_correction_kl: True has no equal"),
        ({"loss_type": "sapo", "importance_sampling_level": "sequence"}, "importance_sampling_level: sequence has no"),
        ({"loss_type": "dapo", "delta": 1.1}, "delta: 1.1 has no equal"),
        ({"loss_type": "dapo", "use_vllm": True, "num_iterations": 2}, "three policies"),
        ({"loss_type": "dapo", "use_vllm": True, "off_policy_mask_threshold": 0.3}, "off_policy_mask_threshold: 0.3"),
        ({"num_generations": 8, "scale_rewards": "batch"}, "scale_rewards: batch has no equal"),
        ({"num_generations": 8, "epsilon": -1}, "epsilon_low=-1.0 is"),
        ({"algorithm": {"algorithm_type": "grpo"}}, "neither verl's settings"),
        ([1], "neither verl's settings"),
    ],
)  # fmt: skip
def test_what_has_none_is_refused_by_name(tmp_path, settings, words):
    result = run(tmp_path, settings)
    assert result.exit_code == 1 and words in str(result.exception) and "\n" not in str(result.exception)


def test_what_differs_all_the_same_is_said(tmp_path):
    bypass = {"rollout_correction": {"bypass_mode": True}}
    for settings, words in (
        (verl(), "verl's ratio is to its own weights"),
        (verl({"policy_loss": {"loss_mode": "gspo"}}, bypass), "loss_mode: gspo is not read by verl in bypass mode"),
        (verl({"ppo_epochs": 2}), "ppo_epochs stays"),
        ({"beta": 0.1}, "weighs its KL term by the ratio"),
        ({"loss_type": "bnpo", "temperature": 0.7}, "temperature: 0.7 goes under model"),
        ({"loss_type": "bnpo"}, "of each local batch"),
        ({"loss_type": "dapo", "use_vllm": True, "epsilon_high": 0.28}, "epsilon_high: 0.28 count for nothing"),
    ):
        assert words in run(tmp_path, settings).stderr


IN_VERL = [
    ({}, {}),
    ({"clip_ratio_low": 0.1, "clip_ratio_high": 0.3, "clip_ratio_c": 2.0}, {}),
    ({"clip_ratio": 0.4, "clip_ratio_low": None}, {}),
    ({"policy_loss": {"loss_mode": "gspo"}, "clip_ratio_high": 0.01}, {}),
    ({"policy_loss": {"loss_mode": "cispo"}, "clip_ratio_low": 0.5}, {}),
    ({"policy_loss": {"loss_mode": "sapo"}, "tau_neg": 2.0}, {}),
    ({"policy_loss": {"loss_mode": "gpg"}}, {}),
    ({"policy_loss": {"loss_mode": "geo_mean"}, "clip_ratio_low": 0.3, "clip_ratio_high": 0.4}, {}),
    ({"policy_loss": {"loss_mode": "dppo_tv"}, "clip_ratio_low": 0.1}, {}),
    *(
        ({}, {"bypass_mode": True, "loss_type": "reinforce", **correction})
        for correction in (
            {"rollout_is": None},
            {"rollout_is": "token", "rollout_is_threshold": "0.3_4"},
            {"rollout_is": "sequence", "rollout_is_threshold": "0.5_2.5"},
            {"rollout_is": "sequence", "rollout_is_threshold": 1.5},
            {"rollout_is": None, "rollout_rs": "token_k1", "rollout_rs_threshold": 2.0},
            {"rollout_is": "token", "rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "0.5_3.0"},
            {"rollout_is": "sequence", "rollout_rs": "seq_mean_k1", "rollout_rs_threshold": "0.8_1.3"},
        )
    ),
]


@pytest.mark.parametrize(("actor", "correction"), IN_VERL, ids=str)
def test_the_gradient_is_that_of_verls_own_loss(tmp_path, actor, correction):
    """verl keeps log rho within +-20 and adds 1e-8 to a length, hence the tolerances."""
    section = json.loads(run(tmp_path, verl(actor, {"rollout_correction": correction}), "--json").stdout)["algorithm"]
    args = effective(section).policy_loss_fn_args
    mode = "bypass_mode" if correction else actor.get("policy_loss", {}).get("loss_mode", "vanilla")
    theirs = verl_loss(mode, correction, **{key: value for key, value in actor.items() if key != "policy_loss"})
    for seed in range(4):
        data = batch(seed, DRIFTS["stale"], padding=0.0)
        ours = ascent(lambda **given: Objective(**args)(**given)[0], data)
        assert abs(ours).max() > 0
        np.testing.assert_allclose(ours, ascent(theirs, data), rtol=1e-6, atol=1e-9)


def test_verls_own_file_of_defaults_is_read(tmp_path):
    text = (Path(verl_package.__file__).parent / "trainer/config/_generated_ppo_trainer.yaml").read_text()
    path = tmp_path / "verl.yaml"
    path.write_text(text.replace("adv_estimator: gae", "adv_estimator: grpo"))
    printed = yaml.safe_load(CliRunner().invoke(app, ["translate", str(path)]).stdout)["algorithm"]
    assert printed == yaml.safe_load(run(tmp_path, verl({"optim": {"lr": 1e-6}}, n=1)).stdout)["algorithm"]


# TRL 1.16's fields beside those of transformers' TrainingArguments, with their defaults:
#     dataclasses.fields(GRPOConfig), by an interpreter that has benchmarks/trl_requirements.txt
TRLS_FIELDS = json.loads((Path(__file__).parent / "trl_grpo_config.json").read_text())
# Of these the ones that say how a run is made, not what is trained, nor with what rollouts.
NOT_OF_THE_OBJECTIVE = re.compile(
    "|".join(
        (
            "model_init_kwargs|trust_remote_code|router_aux_loss_coef|disable_dropout|cast_lm_head_to_fp32",
            "remove_unused_columns|shuffle_dataset|pad_to_multiple_of|num_generations_eval|ds3_.*|generation_batch_size",
            "chat_template_kwargs|cache_implementation|max_tool_calling_iterations",
            "vllm_(?!importance).*|log_.*|num_completions_to_print|use_transformers_.*|transformers_.*",
            "ref_model_.*|entropy_coef_.*|entropy_target|gradient_accumulation_steps|vllm_importance_sampling_cap",
        )
    )
)
# Where a field is read, and another value of it.
WITHIN = {
    "sapo": {"sapo_temperature_neg": 2.0, "sapo_temperature_pos": 0.5},
    "vespo": {"vespo_k_pos": 1.0, "vespo_lambda_pos": 1.0, "vespo_k_neg": 1.0, "vespo_lambda_neg": 1.0},
    "dr_grpo": {"max_completion_length": 100},
}
OTHERS = {
    "learning_rate": 1e-5, "num_generations": 4, "steps_per_generation": 4, "temperature": 0.5, "top_p": 0.5,
    "top_k": 5, "min_p": 0.1, "generation_kwargs": {"typical_p": 0.5},
    "repetition_penalty": 1.1, "use_vllm": True, "beta": 0.1, "num_iterations": 2, "epsilon": 0.1, "delta": 3.0,
    "epsilon_high": 0.4, "importance_sampling_level": "sequence", "reward_weights": [1.0, 2.0],
    "multi_objective_aggregation": "normalize_then_sum", "scale_rewards": "none", "loss_type": "grpo",
    "mask_truncated_completions": True, "top_entropy_quantile": 0.2, "entropy_coef": 0.1, "use_adaptive_entropy": True,
    "off_policy_mask_threshold": 0.5,
}  # fmt: skip
OF_VLLM = {"vllm_importance_sampling_correction": False, "vllm_importance_sampling_mode": "token_mask",
           "vllm_importance_sampling_clip_max": 2.0, "vllm_importance_sampling_clip_min": 0.5}  # fmt: skip
OF_KL = {"use_bias_correction_kl": True, "sync_ref_model": True}


def test_all_of_trls_settings_are_read_refused_or_of_no_matter(tmp_path):
    def said(**given):
        result = run(tmp_path, {**TRLS_FIELDS, "use_bias_correction_kl": False, **given})
        return result.output + str(result.exception)

    tried = [({}, OTHERS), ({"use_vllm": True}, OF_VLLM), ({"beta": 0.1}, OF_KL)]
    tried += [({"loss_type": kind}, values) for kind, values in WITHIN.items()]
    for within, values in tried:
        for name, value in values.items():
            assert said(**within, **{name: value}) != said(**within), name
    of_matter = {name for name in TRLS_FIELDS if not NOT_OF_THE_OBJECTIVE.fullmatch(name)}
    assert of_matter == {name for _, values in tried for name in values}
