"""What goes through `trinity run` is what the lab trains: model, problems and their order, reward, settings."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from trinity_rec.lab import through_trinity, training
from trinity_rec.lab.model import TinyLM
from trinity_rec.lab.tasks import TASKS
from trinity_rec.session import TrainedStep
from trinity_rec.shipped import shipped

TASK = TASKS[through_trinity.TASK]
YAML = shipped("configs") / "lab" / "addition.yaml"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lab") / "model"
    through_trinity.write_model(directory)
    return directory


def test_trinity_reads_the_problems_as_the_lab_does(model):
    tokenizer = AutoTokenizer.from_pretrained(model)
    for problem in TASK.train:
        chat = [{"role": "user", "content": problem.question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == TASK.vocabulary.prompts([problem.question]).tolist()[0]
    assert tokenizer.eos_token_id == TASK.vocabulary.end
    assert tokenizer.decode([*TASK.vocabulary.encode("123"), TASK.vocabulary.end]) == "123<|end|>"


def test_both_train_the_same_model(model):
    tokens = TASK.vocabulary.prompts([problem.question for problem in TASK.train[:8]])
    theirs = AutoModelForCausalLM.from_pretrained(model)(tokens).logits
    own = TinyLM.load(model)
    torch.testing.assert_close(own.logits(own(tokens)[0]), theirs, atol=1e-4, rtol=1e-4)


def test_the_problems_come_in_the_order_in_which_the_lab_draws_them(tmp_path, monkeypatch):
    seen = []

    def spy(policy, prompts, *arguments):
        seen.extend(TASK.vocabulary.decode(row) for row in torch.stack(prompts).tolist())
        return sample(policy, prompts, *arguments)

    sample = training.TinyPolicy.sample
    monkeypatch.setattr(training.TinyPolicy, "sample", spy)
    monkeypatch.setattr(training, "evaluate", lambda *_: {})  # it samples too, other problems
    training.train(through_trinity.experiment("rec_grpo", seed=3, steps=4))
    through_trinity.write_problems(tmp_path / "tasks" / "train.jsonl", seed=3, steps=4)
    rows = [json.loads(line) for line in (tmp_path / "tasks" / "train.jsonl").read_text().splitlines()]
    assert [row["question"] for row in rows] == seen
    assert all(row["answer"] == str(sum(map(int, row["question"][:-1].split("+")))) for row in rows)


@pytest.mark.parametrize(
    ("response", "reward"),
    [("85<|end|>", 1), ("85", 1), ("86<|end|>", 0), ("85<|end|>5", 1), ("<|end|>", 0), ("8+5<|end|>", 0)],
)
def test_the_reward_is_the_labs(response, reward):
    assert through_trinity.AdditionReward()(response=response, truth="85", prompt="47+38=") == {"accuracy": reward}


@pytest.mark.parametrize("variant", through_trinity.ALGORITHMS)
def test_the_settings_are_the_labs(variant, tmp_path):
    lab = through_trinity.experiment(variant, 0, 120)
    config = through_trinity.Run(tmp_path, variant, 0, 120).config()
    assert config.algorithm.algorithm_type == f"trinity_rec.{lab.variant.preset}"
    assert config.algorithm.optimizer.lr == lab.rate * lab.variant.rate_factor
    assert (config.buffer.batch_size, config.algorithm.repeat_times) == (lab.problems, lab.samples)
    assert config.buffer.total_steps == config.trainer.total_steps == lab.steps
    assert config.synchronizer.sync_interval == lab.setting.sync_interval
    assert config.model.max_response_tokens == TASK.response_length
    assert config.trainer.grad_clip == training.GRADIENT_NORM
    assert config.algorithm.optimizer.weight_decay == 0


def test_the_yaml_as_it_stands_is_a_run_of_the_default_length():
    config, lab = OmegaConf.load(YAML), through_trinity.experiment("rec_oneside_nois", 0, 120)
    assert config.algorithm.optimizer.lr == lab.rate
    assert config.trainer.total_steps == training.Experiment.steps


def test_rows_are_means_between_the_labs_evaluations():
    steps = [
        TrainedStep(n, {tag: float(n) for tag in through_trinity.METRICS.values()} | {"actor/kl_k1": 9.0})
        for n in range(1, 21)
    ]
    first, second = through_trinity.rows_of(steps)
    assert tuple(first) == training.COLUMNS
    assert (first["step"], first["rollout_reward"], second["step"], second["clip_fraction"]) == (10, 5.5, 20, 15.5)
    assert math.isnan(first["reward"]) and math.isnan(first["entropy"])


def columns(final, steps=40):
    step = np.arange(10.0, steps + 1, 10)
    return {"step": step} | {name: np.linspace(0.2, final, len(step)) for name in through_trinity.METRICS}


def test_the_final_reward_is_that_of_the_last_weights():
    values = columns(0.8)
    assert through_trinity.final_rollouts(values) == round(float(values["rollout_reward"][-2:].mean()), 4)
    # a run shorter than a sync interval, from the lab, whose table begins before there are rollouts
    short = {"step": np.array([0.0, 10.0]), "rollout_reward": np.array([np.nan, 0.25])}
    assert through_trinity.final_rollouts(short) == 0.25


def test_both_sides_are_drawn(tmp_path):
    lab = {name: [columns(0.5), columns(0.6)] for name in through_trinity.ALGORITHMS}
    for runs in lab.values():  # the lab's tables begin before training, where these are not known
        for run in runs:
            for name in run:
                run[name] = np.concatenate([[0.0 if name == "step" else np.nan], run[name]])
    trinity = {name: [columns(0.55)] for name in through_trinity.ALGORITHMS}
    path = through_trinity.draw_side_by_side({"in the lab": lab, "through trinity run": trinity}, tmp_path / "both.png")
    image = imread(path)
    assert min(image.shape[:2]) > 500 and image[..., :3].std() > 0.02


def test_a_run_of_another_length_is_not_taken_for_this_one(tmp_path):
    run = through_trinity.Run(tmp_path, "rec_grpo", 0, 20)
    assert not run.is_there()
    through_trinity.write_rows([{"step": 10.0, "rollout_reward": 0.5}], run.table)
    assert not run.is_there()
    through_trinity.write_rows([{"step": 20.0, "rollout_reward": 0.5}], run.table)
    assert run.is_there()


def test_the_main_road_changes_what_runs_and_nothing_of_what_is_compared(tmp_path):
    local = through_trinity.Run(tmp_path, "rec_grpo", 3, 120).config()
    road = through_trinity.Run(tmp_path, "rec_grpo", 3, 120, main_road=True).config()
    assert (road.trainer.trainer_type, road.explorer.rollout_model.engine_type) == ("verl", "vllm")
    assert not road.model.tinker.enable
    assert road.explorer.rollout_model.seed == 3
    for key in ("algorithm", "buffer", "synchronizer", "mode"):
        assert road[key] == local[key]
    assert road.trainer.total_steps == local.trainer.total_steps == 120
    assert road.trainer.grad_clip == local.trainer.grad_clip
