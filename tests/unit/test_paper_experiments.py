"""The table of the paper's experiments, how users name them, and how their YAMLs are composed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from trinity_rec.paper.compose import Run, header, ours, parsed, typed, validated
from trinity_rec.paper.experiments import EXPERIMENTS, TASKS, figure_names, select
from trinity_rec.terminal import UsageError
from trinity_rec.variants import SETTINGS, VARIANTS

GRPO = EXPERIMENTS["gsm8k/sync_interval_20/rec_grpo"]


def trinity_rec(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trinity_rec.cli", "paper", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=180)


def assert_one_line_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_names_say_task_setting_and_algorithm():
    for name, experiment in EXPERIMENTS.items():
        task, setting, algorithm = name.split("/")
        assert experiment.task is TASKS[task]
        assert experiment.setting is SETTINGS[setting]
        assert experiment.algorithm is VARIANTS[algorithm]


def test_settings_and_rates_are_those_that_the_paper_names():
    synchronizers = {
        "on_policy": (1, 0),
        "sync_interval_20": (20, 0),
        "sync_offset_10": (1, 10),
        "offline": ("${buffer.total_steps}", 0),
    }
    assert set(synchronizers) == set(SETTINGS)
    for name, (interval, offset) in synchronizers.items():
        assert SETTINGS[name].synchronizer() == {"sync_interval": interval, "sync_offset": offset}
        assert SETTINGS[name].is_offline is (name == "offline")
    for factor in (2, 3, 4, 5):
        config = Run(EXPERIMENTS[f"gsm8k/sync_interval_20/rec_grpo_rate_{factor}"], 1).training()
        assert config.algorithm.optimizer.lr == pytest.approx(factor * 1e-6)
    assert float(Run(GRPO, 1).training().algorithm.optimizer.lr) == 1e-6


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ({"figure": "3"}, 30),
        ({"figure": "4"}, 30),
        ({"figure": "5"}, 6),
        ({"figure": "6"}, 2),
        ({"figure": "7"}, 3),
        ({"task": "toolace", "setting": "offline"}, 10),
        ({"names": ["*/sync_interval_20/rec_grpo"]}, 4),
        ({"names": ["gsm8k/on_policy/*", "math/*"]}, 6),
    ],
)
def test_selection(choice, count):
    assert len(select(**choice)) == count


def test_figures_9_to_11_are_one():
    assert select(figure="9") == select(figure="10") == select(figure="11")
    assert {"9", "10", "11"} <= set(figure_names()) and "9-11" not in figure_names()


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (
            {"names": ["gsm8k/sync_interval_20/rec_oneside_noise"]},
            "did you mean gsm8k/sync_interval_20/rec_oneside_nois?",
        ),
        ({"names": ["gms8k/sync_interval_20/rec_grpo"]}, "did you mean gsm8k/sync_interval_20/rec_grpo?"),
        ({"names": ["gsm8k"]}, "names are task/setting/algorithm"),
        ({"names": ["cifar/*"]}, "see `trinity-rec paper list`"),
        ({"task": "bandit"}, "no task 'bandit'; known: gsm8k, toolace, guru_math, math"),
        ({"setting": "online"}, "known: on_policy, sync_interval_20, sync_offset_10, offline"),
        ({"figure": "2"}, "no figure '2'"),
        ({"task": "math", "figure": "3"}, "no experiment is left"),
    ],
)
def test_what_is_not_there_is_said(choice, words):
    with pytest.raises(UsageError) as error:
        select(**choice)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_overrides_are_yaml_and_come_last():
    overrides = parsed(["algorithm.optimizer.lr=2e-6", "model.tinker.enable=true", "buffer.total_steps=3"])
    overrides += parsed(["buffer.explorer_input.eval_tasksets[0].path=/data/gsm8k", "model.rope_scaling={factor: 2}"])
    config = Run(EXPERIMENTS["gsm8k/offline/rec_grpo_rate_3"], 1, None, overrides).training()
    assert float(config.algorithm.optimizer.lr) == 2e-6
    assert config.model.tinker.enable is True
    assert config.buffer.explorer_input.eval_tasksets[0].path == "/data/gsm8k"
    assert config.model.rope_scaling.factor == 2
    # offline stays offline, whatever the number of steps
    assert config.synchronizer.sync_interval == config.trainer.total_steps == 3


@pytest.mark.parametrize("wrong", ["trainer.total_steps", "=3", "a.b={"])
def test_an_override_that_cannot_be_read_is_refused(wrong):
    with pytest.raises(UsageError, match="--set"):
        parsed([wrong])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("trainer.total_stepz=3", "no setting trainer.total_stepz; did you mean total_steps?"),
        ("trainer.total_steps=many", "trainer.total_steps"),
        ("trainer=3", "TrainerConfig"),
    ],
)
def test_an_override_that_trinity_does_not_know_is_refused(setting, words):
    run = Run(GRPO, 1, None, parsed([setting]))
    with pytest.raises(UsageError) as error:
        typed(run.training(), run.name)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_taskset_that_is_not_given_is_asked_for(monkeypatch):
    monkeypatch.delenv("TRINITY_TASKSET_PATH", raising=False)
    run = Run(EXPERIMENTS["toolace/offline/rec_grpo"], 1)
    with pytest.raises(UsageError, match="set the environment variable TRINITY_TASKSET_PATH"):
        validated(run.training(), run.name)
    assert validated(Run(GRPO, 1).training(), "gsm8k").buffer.explorer_input.taskset.path == "openai/gsm8k"


def test_the_benchmark_takes_all_gpus_whatever_the_engines_size():
    run = Run(GRPO, 1, None, parsed(["explorer.rollout_model.tensor_parallel_size=2", "cluster.node_num=2"]))
    model = run.bench().explorer.rollout_model
    assert model.engine_num * model.tensor_parallel_size == 16
    assert run.bench().explorer.runner_per_model * model.engine_num == 128
    own = Run(GRPO, 1, None, parsed(["explorer.rollout_model.engine_num=3", "synchronizer.sync_method=memory"]))
    assert own.bench().explorer.rollout_model.engine_num == 3
    assert own.bench().synchronizer.sync_method == "checkpoint"


def test_a_written_yaml_says_where_it_comes_from():
    text = header(Run(EXPERIMENTS["math/sync_interval_20/red_weight"], 3))
    assert all(line.startswith("#") for line in text.splitlines())
    assert "figure 7 of arXiv 2509.24203" in text and "--seed 3" in text
    assert all(f"#   {key}\n" in text for key in ours(EXPERIMENTS["math/sync_interval_20/red_weight"]))
    assert ours(GRPO) == [] and "Our choice" not in header(Run(GRPO, 3))


def test_the_list_as_json():
    listed = json.loads(trinity_rec("list", "--figure", "6", "--json").stdout)
    assert [each["name"] for each in listed] == [
        "guru_math/sync_interval_20/rec_grpo",
        "guru_math/sync_interval_20/red_weight",
    ]
    assert listed[1]["preset"] == "red_weight" and "buffer.batch_size" in listed[1]["ours"]


def test_yamls_are_written_as_they_are_composed(tmp_path):
    done = trinity_rec("write", "gsm8k/*/rec_grpo", "--seed", 1, "--seed", 2, "--out", tmp_path)
    paths = [tmp_path / line for line in done.stdout.splitlines()]
    assert len(paths) == 4 * 2 * 2 and all(path.exists() for path in paths)
    for seed in (1, 2):
        run = Run(GRPO, seed)
        assert OmegaConf.load(tmp_path / f"{run.name}.yaml") == run.training()
        assert OmegaConf.load(tmp_path / f"{run.name}-bench.yaml") == run.bench()


def test_errors_are_one_line(tmp_path):
    assert_one_line_error(trinity_rec("list", "gsm8k/sync_interval_20/rec_grp0"), "did you mean")
    assert_one_line_error(trinity_rec("run"), "--figure")
    wrong = trinity_rec("write", "gsm8k/*/rec_grpo", "--set", "modle.model_path=x", "--out", tmp_path / "none")
    assert_one_line_error(wrong, "did you mean mode?")
    assert not (tmp_path / "none").exists()


def test_a_machine_that_cannot_run_it_is_told_what_is_missing_before_anything_starts(tmp_path):
    result = trinity_rec("run", "gsm8k/sync_interval_20/rec_grpo", "--out", tmp_path / "out")
    assert_one_line_error(result, "cannot run here", "8 GPUs (0 found)", "vllm, flash_attn")
    assert not (tmp_path / "out").exists()
