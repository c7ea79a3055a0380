"""The sample strategies on Trinity's real queue, and what the Tinker trainer's loss makes of their batches."""

from __future__ import annotations

import asyncio
import json
import logging

import numpy as np
import pytest
import ray
import torch
from trinity.algorithm import SAMPLE_STRATEGY
from trinity.buffer import get_buffer_writer
from trinity.common.config import BufferConfig, Config, ExperienceBufferConfig
from trinity.common.config_validator import AlgorithmConfigValidator
from trinity.common.experience import EID, Experience
from trinity.trainer.tinker.tinker_trainer import TinkerTrainerWrapper
from trinity.trainer.tinker.utils import to_tinker_input

import trinity_rec
from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS

BATCH = 8


@pytest.fixture(scope="module", autouse=True)
def local_ray(tmp_path_factory):
    ray.init(
        address="local",
        num_cpus=2,
        namespace="strategies",
        include_dashboard=False,
        log_to_driver=False,
        _temp_dir=str(tmp_path_factory.getbasetemp() / "ray"),
    )
    yield
    ray.shutdown()


def rollouts(*rewards: list[float], version: int = 0, batch: int = 0) -> list[Experience]:
    """One group of responses for each list of rewards, of lengths 1, 2, 3, ..., with their advantages."""
    exps = [
        Experience(
            eid=EID(batch=batch, task=task, run=run),
            tokens=list(range(3 + run)),
            prompt_length=2,
            logprobs=[-0.5 - 0.1 * t - 0.01 * task for t in range(1 + run)],
            reward=reward,
            info={"model_version": version},
            prompt_text="prompt",
            response_text="response",
        )
        for task, group in enumerate(rewards)
        for run, reward in enumerate(group)
    ]
    return trinity_rec.RECAdvantage().process(exps)[0]


class Buffer:
    """A queue as `trinity run` makes it: the explorer's end is `write`, the trainer's what `strategy` makes."""

    def __init__(self, folder, name: str):
        self.queue = ExperienceBufferConfig(
            name=name,
            storage_type="queue",
            batch_size=BATCH,
            ray_namespace="strategies",
            path=str(folder / "experiences.jsonl"),
            max_read_timeout=3,
        )
        self.config = BufferConfig(cache_dir=str(folder))
        self.config.trainer_input.experience_buffer = self.queue
        self.writer = get_buffer_writer(self.queue)
        asyncio.run(self.writer.acquire())

    def write(self, exps: list[Experience]) -> None:
        asyncio.run(self.writer.write(exps))

    def close(self) -> None:
        asyncio.run(self.writer.release())

    def strategy(self, name: str, **args):
        cls = SAMPLE_STRATEGY.get(f"trinity_rec.{name}")
        return cls(buffer_config=self.config, **{**cls.default_args(), **args})


@pytest.fixture
def buffer(tmp_path, request):
    return Buffer(tmp_path, request.node.name)


def sample(strategy, step: int):
    exps, metrics, shown = asyncio.run(strategy.sample(step))
    assert len(exps) == BATCH
    assert shown
    return exps, metrics


def test_a_number_that_would_spoil_the_batch_is_refused_with_the_experience_it_is_of(buffer):
    exps = rollouts(SPREAD, SPREAD)
    exps[2].action_mask[0], exps[2].logprobs[0] = False, float("nan")  # does not count
    exps[6].logprobs[1] = float("-inf")
    buffer.write(exps)
    with pytest.raises(FloatingPointError, match=r"^logprobs\[1\] of experience 0/1/2/0/\w+ is -inf$"):
        sample(buffer.strategy("RECSampleStrategy"), 1)


def in_loss(exps: list[Experience]) -> list[bool]:
    return [bool(exp.action_mask.any()) for exp in exps]


SPREAD, FLAT = [1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]


def test_informative_masks_groups_without_spread_where_the_explorer_waits(buffer):
    buffer.write(rollouts(FLAT, SPREAD))
    exps, metrics = sample(buffer.strategy("InformativeSampleStrategy"), 1)
    assert sum(in_loss(exps)) == 4
    assert all(exp.eid.task == 1 for exp, counted in zip(exps, in_loss(exps), strict=True) if counted)
    assert (metrics["sample/uninformative"], metrics["sample/masked"]) == (4, 4)


def test_informative_refills_until_the_batch_is_full(buffer):
    buffer.write(rollouts(FLAT, SPREAD))
    buffer.write(rollouts(FLAT, SPREAD, batch=1))
    exps, metrics = sample(buffer.strategy("InformativeSampleStrategy", refill=True), 1)
    assert all(in_loss(exps))
    assert (metrics["sample/uninformative"], metrics["sample/masked"], metrics["sample/reads"]) == (8, 0, 3)


def test_informative_trains_on_what_there_is_when_the_explorer_has_ended(buffer):
    buffer.write(rollouts(FLAT, SPREAD))
    buffer.close()
    strategy = buffer.strategy("InformativeSampleStrategy", refill=True)
    exps, metrics = sample(strategy, 1)
    assert sum(in_loss(exps)) == 4
    assert metrics["sample/masked"] == 4
    with pytest.raises((StopAsyncIteration, RuntimeError)):
        asyncio.run(strategy.sample(2))


def test_informative_stops_reading_when_nothing_informs(buffer):
    for batch in range(4):
        buffer.write(rollouts(FLAT, FLAT, batch=batch))
    exps, metrics = sample(buffer.strategy("InformativeSampleStrategy", refill=True, max_reads=3), 1)
    assert not any(in_loss(exps))
    assert metrics["sample/reads"] == 3


def test_balanced_drops_the_larger_side_by_seed_and_step(buffer):
    for batch in range(4):
        buffer.write(rollouts(SPREAD, SPREAD, batch=batch))
    strategy = buffer.strategy("BalancedSampleStrategy", seed=5)
    exps, metrics = sample(strategy, 1)
    signs = [np.sign(float(exp.advantages.sum())) for exp in exps]
    assert (signs.count(1), signs.count(-1)) == (2, 2)
    assert (metrics["sample/dropped_negative"], metrics["sample/dropped_positive"]) == (4, 0)
    again = in_loss(sample(buffer.strategy("BalancedSampleStrategy", seed=5), 1)[0])
    assert again == in_loss(exps), "a resumed run draws the same lots"
    others = [in_loss(sample(buffer.strategy("BalancedSampleStrategy", seed=seed), 1)[0]) for seed in (6, 7)]
    assert any(other != again for other in others)


def test_staleness_weights_and_drops_by_age(buffer):
    old, new = rollouts(SPREAD, version=1), rollouts(SPREAD, version=4, batch=1)
    buffer.write(old + new)
    strategy = buffer.strategy("StalenessSampleStrategy", decay=0.5, max_staleness=3)
    exps, metrics = sample(strategy, 6)  # step 6 trains version 5: ages 4 and 1
    assert in_loss(exps) == [False] * 4 + [True] * 4
    assert [exp.info["sample_weight"] for exp in exps] == [0.5**4] * 4 + [0.5] * 4
    assert {field.destination_field for field in exps[0].custom_fields} == {"sample_weight"}
    assert metrics["sample/stale_dropped"] == 4
    assert metrics["sample/staleness_max"] == 4


def test_the_initial_policy_is_of_version_0_whatever_the_explorer_calls_it(buffer):
    buffer.write(rollouts(SPREAD, version=-1) + rollouts(SPREAD, version=0, batch=1))
    _, metrics = sample(buffer.strategy("StalenessSampleStrategy"), 1)
    assert metrics["sample/staleness_max"] == 0


def test_offline_cycles_over_the_first_batches_also_after_a_resume(buffer):
    for batch in range(3):
        buffer.write(rollouts(SPREAD, SPREAD, batch=batch))
    strategy = buffer.strategy("OfflineSampleStrategy", batches=2)
    seen = [sample(strategy, step)[0][0].eid.batch for step in (1, 2, 3, 4, 5)]
    assert seen == [0, 1, 0, 1, 0]
    state = json.loads(json.dumps(strategy.state_dict()))  # Trinity keeps it as JSON
    resumed = buffer.strategy("OfflineSampleStrategy", batches=2)
    resumed.load_state_dict(state)
    assert [sample(resumed, step)[0][0].eid.batch for step in (6, 7)] == [1, 0]


def test_invalid_rewards_reach_the_trainer_masked(buffer):
    exps = rollouts([1.0, 0.0, float("nan"), 0.0], SPREAD)
    buffer.write(exps)
    exps, _ = sample(buffer.strategy("RECSampleStrategy"), 1)
    assert in_loss(exps) == [True, True, False, True] + [True] * 4
    assert exps[2].reward == 0.0


def tinker_trainer(name: str) -> TinkerTrainerWrapper:
    """Trinity's Tinker trainer with a preset's loss, without a service behind it."""
    config = Config()
    config.mode = "both"
    config.model.tinker.enable = True
    config.algorithm.algorithm_type = f"trinity_rec.{name}"
    AlgorithmConfigValidator().validate(config)
    trainer = TinkerTrainerWrapper.__new__(TinkerTrainerWrapper)
    trainer.config, trainer.logger = config, logging.getLogger("test")
    trainer._init_algorithm()
    return trainer


@pytest.fixture(scope="module")
def tinker_batch(tmp_path_factory):
    buffer = Buffer(tmp_path_factory.mktemp("tinker"), "tinker")
    buffer.write(rollouts([1.0, 0.0, float("nan"), 0.0], SPREAD))
    return sample(buffer.strategy("RECSampleStrategy", backend="tinker"), 1)[0]


# A statistic of the batch is of one call of the loss, which is one response on Tinker.
BY_RESPONSE = [name for name in PRESETS if name not in ("off_m2po", "off_bapo", "off_p3o")]


@pytest.mark.parametrize("name", BY_RESPONSE)
def test_tinkers_loss_by_single_responses_has_the_gradient_of_the_whole_batch(tinker_batch, name):
    exps, trainer = tinker_batch, tinker_trainer(name)
    assert trainer.algorithm.use_reference is False
    batch, _, trainer.model_inputs_list = to_tinker_input(exps, trainer.logger)
    generator = torch.Generator().manual_seed(0)
    logprobs = [exp.logprobs + 0.4 * torch.randn(len(exp.logprobs), generator=generator) for exp in exps]

    singly = [logprob.clone().requires_grad_() for logprob in logprobs]
    # The trainer hands over the logprobs of prompt and response; it cuts the response off itself.
    padded = [torch.cat([torch.zeros(exp.prompt_length - 1), x]) for exp, x in zip(exps, singly, strict=True)]
    loss, metrics = trainer._loss_func(batch, padded)
    loss.backward()

    def pad(tensors):
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)

    whole = pad(logprobs).requires_grad_()
    expected, _ = Objective(**PRESETS[name].policy_loss)(
        whole,
        pad([exp.logprobs for exp in exps]),
        pad([exp.action_mask for exp in exps]),
        pad([exp.advantages for exp in exps]),
    )
    expected.backward()
    torch.testing.assert_close(loss.detach(), expected.detach(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(pad([x.grad for x in singly]), whole.grad, rtol=1e-5, atol=1e-8)
    assert "actor/pg_clipfrac" in metrics
