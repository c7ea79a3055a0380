"""A small experiment of `trinity-rec paper run` on the main road: trained, its real checkpoints benched, gathered."""

from __future__ import annotations

import csv
import subprocess
import sys

import pytest
import yaml
from omegaconf import OmegaConf

from tests.vllm.small_run import GROUP, PROBLEMS
from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session.bench import evaluated_steps
from trinity_rec.shipped import example

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
EXPERIMENT = "gsm8k/sync_interval_20/rec_oneside_nois_wide"
STEPS = 4


def settings() -> list[str]:
    """Of the paper's YAML: model and sizes of the quickstart, and its set-up of vLLM and verl on a CPU."""
    road = OmegaConf.load(example("rec_gsm8k/quickstart_vllm.yaml"))
    sets = {
        "model.max_prompt_tokens": 64,
        "model.max_response_tokens": 8,
        "model.max_model_len": 72,
        "algorithm.repeat_times": GROUP,
        "algorithm.optimizer.lr": 6.0e-4,
        "buffer.batch_size": PROBLEMS,
        "buffer.total_steps": STEPS,
        "buffer.explorer_input.taskset.subset_name": None,
        "buffer.explorer_input.eval_tasksets[0].subset_name": None,
        "buffer.explorer_input.default_workflow_type": "simple_workflow",
        "buffer.explorer_input.default_reward_fn_type": "trinity_rec.quickstart.reward.GSM8KReward",
        "cluster.gpu_per_node": 2,
        "explorer.runner_per_model": 2,
        "explorer.eval_interval": 1000,
        "synchronizer.sync_method": "memory",
        "synchronizer.sync_interval": 2,
        "trainer.save_interval": 2,
    }
    sets |= {f"explorer.rollout_model.{key}": value for key, value in road.explorer.rollout_model.items()}
    for key in ("trainer_strategy", "use_remove_padding", "max_token_len_per_gpu", "trainer_config"):
        sets[f"trainer.{key}"] = road.trainer[key]
    return [f"--set={key}={flow(value)}" for key, value in sets.items()]


def flow(value: object) -> str:
    """The value as YAML on one line."""
    plain = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def test_an_experiment_goes_from_training_to_the_table(session, tmp_path):
    out = tmp_path / "out"
    env = session.env | {"TRINITY_MODEL_PATH": str(ASSETS / "model"), "TRINITY_TASKSET_PATH": str(ASSETS / "tasks")}
    command = [sys.executable, "-m", "trinity_rec.cli", "paper", "run", EXPERIMENT, f"--out={out}", *settings()]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=3000, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert evaluated_steps(out / f"{EXPERIMENT}-seed42") == {0, 2, 4}
    (row,) = csv.DictReader((out / "results.csv").open())
    assert (row["experiment"], row["steps"], row["measured_by"]) == (EXPERIMENT, str(STEPS), "bench")
    assert 0.2 < float(row["accuracy_first"]) < 0.4, "the initial model"
    assert float(row["accuracy_last"]) > 0
    assert EXPERIMENT in result.stdout
