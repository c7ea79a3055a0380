"""`translate`: verl's and TRL's settings as an `algorithm:` section; what has no equal is refused by name."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from trinity_rec.cli import app
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
         {"algorithm_type": "trinity_rec.rec_grpo", "policy_loss_fn_args": {"epsilon_high": 0.28},
          "loss_agg_mode": "seq-mean-token-mean", "kl_loss_fn": "low_var_kl", "kl_loss_fn_args": {"kl_coef": 0.04}}),
        ({"num_generations": 8, "loss_type": "dr_grpo", "scale_rewards": "none", "max_completion_length": 512},
         {"algorithm_type": "trinity_rec.rec_grpo", "policy_loss_fn_args": {"loss_scale_factor": 512.0},
          "advantage_fn_args": {"std_normalize": False}, "loss_agg_mode": "seq-mean-token-sum-norm"}),
        ({"num_generations": 8, "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
         {"algorithm_type": "trinity_rec.rec_gspo_is", "advantage_fn_args": {"std_normalize": True},
          "loss_agg_mode": "token-mean"}),
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
        ({"num_generations": 8, "loss_type": "luspo"}, "loss_type: luspo has no equal here; dapo, bnpo, grpo"),
        ({"num_generations": 8, "scale_rewards": "batch"}, "scale_rewards: batch has no equal"),
        ({"num_generations": 8, "epsilon": -1}, "epsilon_low=-1.0 is"),
        ({"algorithm": {"algorithm_type": "grpo"}}, "neither verl's settings"),
        ([1], "neither verl's settings"),
    ],
)  # fmt: skip
def test_what_has_none_is_refused_by_name(tmp_path, settings, words):
    result = run(tmp_path, settings)
    assert result.exit_code == 1 and words in str(result.exception) and "\n" not in str(result.exception)
