"""A run repeats to the bit, rolls out with the weights its setting says, and trains by the plugin's own functions."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from trinity_rec.lab import training
from trinity_rec.lab.model import TinyLM, TinyPolicy
from trinity_rec.lab.tasks import TASKS
from trinity_rec.lab.training import (
    COLUMNS,
    Experiment,
    objective_of,
    policy_of,
    roll_out,
    rollouts_of_initial,
    shaping_of,
    train,
)
from trinity_rec.presets import PRESETS
from trinity_rec.variants import SETTINGS, VARIANTS, Setting, Variant

SHORT = Experiment(
    "addition", SETTINGS["on_policy"], VARIANTS["rec_grpo"], 0, 5e-4, steps=6, problems=4, samples=4, evaluate_every=3
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def nothing_drawn_yet():
    rollouts_of_initial.cache_clear()


@pytest.fixture
def policy():
    return policy_of(SHORT)


def values(rows):
    return np.array([[row[name] for name in COLUMNS] for row in rows])


def test_the_same_seed_repeats_to_the_bit_and_another_does_not():
    first = values(train(SHORT))
    rollouts_of_initial.cache_clear()
    np.testing.assert_array_equal(first, values(train(SHORT)))
    assert not np.array_equal(first, values(train(replace(SHORT, seed=1))), equal_nan=True)


def test_rows_come_before_training_and_at_every_evaluation():
    rows = train(SHORT)
    assert [row["step"] for row in rows] == [0, 3, 6]
    assert all(tuple(row) == COLUMNS for row in rows)
    assert np.isfinite(values(rows)[1:]).all()
    assert 0 <= min(row["reward"] for row in rows) <= max(row["reward"] for row in rows) <= 1


@pytest.mark.parametrize(
    "setting, versions",
    [
        (SETTINGS["on_policy"], [0, 1, 2, 3, 4, 5]),
        (SETTINGS["offline"], [0, 0, 0, 0, 0, 0]),
        (Setting("", "", sync_interval=3), [0, 0, 0, 3, 3, 3]),
        (Setting("", "", sync_offset=2), [0, 0, 0, 1, 2, 3]),
        (Setting("", "", sync_interval=2, sync_offset=1), [0, 0, 0, 2, 2, 4]),
    ],
)
def test_rollouts_come_from_the_weights_that_the_setting_says(setting, versions, monkeypatch):
    assert [setting.rollout_version(step) for step in range(6)] == versions
    trained, rolled_out, calls = [], [], []

    class Watched(TinyPolicy):
        def sample(self, prompts, samples, *rest):
            if samples == SHORT.samples:  # a rollout, not an evaluation
                calls.append(len(prompts) // SHORT.problems)
                rolled_out.extend([fingerprint(self)] * calls[-1])
            return super().sample(prompts, samples, *rest)

        def score(self, prompts, responses):
            if len(prompts) == SHORT.problems:  # a step of training, not an evaluation
                trained.append(fingerprint(self))
            return super().score(prompts, responses)

        def frozen(self):
            return Watched(super().frozen().model, self.vocabulary)

    monkeypatch.setattr(training, "TinyPolicy", Watched)
    train(replace(SHORT, setting=setting))
    assert rolled_out == [trained[version] for version in versions]
    assert len(set(rolled_out)) == len(set(versions)) == len(calls)  # those of the same weights are drawn at once


@pytest.mark.parametrize("setting", [SETTINGS["offline"], Setting("", "", sync_interval=4)], ids=["offline", "4"])
def test_what_the_initial_weights_drew_once_serves_the_next_run_of_the_seed(setting, monkeypatch, tmp_path):
    """To the bit, random numbers included; of another seed, size or model nothing is taken."""
    experiment = replace(SHORT, setting=setting, variant=VARIANTS["red_weight"], rate=2e-3)
    alone = values(train(experiment))
    rollouts_of_initial.cache_clear()
    train(replace(SHORT, setting=setting))

    drawn, sample = [], TinyPolicy.sample

    def counted(self, prompts, samples, *rest):
        drawn.append(samples)
        return sample(self, prompts, samples, *rest)

    monkeypatch.setattr(TinyPolicy, "sample", counted)
    np.testing.assert_array_equal(values(train(experiment)), alone)
    assert drawn.count(SHORT.samples) == (0 if setting.is_offline else 1)
    for other in (replace(experiment, seed=1), replace(experiment, problems=3), replace(experiment, task="tool_call")):
        drawn.clear()
        train(other)
        assert drawn.count(SHORT.samples) == (1 if setting.is_offline else 2)

    model = TinyLM.load(training.ASSETS / SHORT.task)
    with torch.no_grad():
        model.norm.weight *= 0.9
    model.save_pretrained(tmp_path / SHORT.task, end_token=0, pad_token=0)
    monkeypatch.setattr(training, "ASSETS", tmp_path)
    drawn.clear()
    train(experiment)
    assert drawn.count(SHORT.samples) == (1 if setting.is_offline else 2)


def test_what_is_drawn_for_several_steps_at_once_belongs_to_the_problems_of_each(policy):
    """Prompts, responses, their logprobs and rewards lie as they do where each step is drawn alone."""
    task, chosen = TASKS[SHORT.task], [[3, 1, 4, 15], [9, 2, 6, 5], [35, 8, 97, 93]]
    prompts = policy.prompts([problem.question for problem in task.train])
    steps = roll_out(policy, SHORT, prompts, chosen, 0)
    assert len(steps) == len(chosen)
    for numbers, rollouts in zip(chosen, steps, strict=True):
        problems, said = [task.train[number] for number in numbers], rollouts.responses
        assert all(torch.equal(ids, prompts[number]) for ids, number in zip(rollouts.asked, numbers, strict=True))
        scored = policy.score(rollouts.asked, said).logprob
        torch.testing.assert_close(scored[said.mask].detach(), said.logprob[said.mask], atol=1e-4, rtol=0)
        assert rollouts.rewards.tolist() == pytest.approx(task.rewards(problems, policy.texts(said)))
        assert said.mask.any(0).all()  # no longer than its own longest
    assert len({rollouts.responses.tokens.sum().item() for rollouts in steps}) > 1


def fingerprint(policy):
    return sum(weight.double().sum().item() for weight in policy.model.state_dict().values())


def test_on_policy_the_ratio_is_one_and_nothing_is_clipped():
    for row in train(replace(SHORT, variant=VARIANTS["rec_ring_is"]))[1:]:
        assert row["kl_rollout"] == pytest.approx(0, abs=1e-6)
        assert row["clip_fraction"] == 0
        assert row["effective_sample_size"] == pytest.approx(1, abs=1e-4)


def test_offline_rollouts_get_stale():
    rows = train(replace(SHORT, setting=SETTINGS["offline"], rate=5e-3, steps=12, evaluate_every=12))
    assert rows[-1]["kl_rollout"] > 1e-3 and rows[-1]["kl_initial"] > 1e-3


def test_every_preset_is_a_variant_with_the_table_s_arguments():
    assert set(PRESETS) - {"rec"} <= set(VARIANTS)
    for variant in VARIANTS.values():
        objective, shaping = objective_of(variant), shaping_of(variant)
        expected = {**PRESETS[variant.preset].policy_loss, **variant.policy_loss}
        assert {name: getattr(objective, name) for name in expected} == expected
        assert {name: getattr(shaping, name) for name in PRESETS[variant.preset].advantage} == dict(
            PRESETS[variant.preset].advantage
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains(name):
    rows = train(replace(SHORT, variant=VARIANTS[name], setting=SETTINGS["sync_interval_20"], steps=3))
    assert np.isfinite(values(rows)[1:]).all()


def test_a_rule_of_ones_own_trains():
    own = {"clip_mode": "tests.own_rules.soft_clip"}
    plain, open_, soft = (
        values(train(replace(SHORT, setting=SETTINGS["offline"], variant=Variant("own", "own", "rec", rule))))
        for rule in ({}, {**own, "softness": 0.0}, {**own, "softness": 2.0})
    )
    np.testing.assert_array_equal(open_, plain)  # with softness 0 it clips nothing
    clipped = COLUMNS.index("clip_fraction")
    assert plain[-1][clipped] == 0 < soft[-1][clipped]


@pytest.mark.slow
def test_on_policy_training_raises_the_reward():
    """The point of it all, at a rate that learns within seconds."""
    experiment = Experiment("addition", SETTINGS["on_policy"], VARIANTS["rec_oneside_nois"], 0, 1e-3, steps=40)
    rows = train(experiment)
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.15
