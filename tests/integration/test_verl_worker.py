"""The loss inside verl's real training worker (FSDP2 on the CPU): the whole batch's gradient, however it is cut."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.lone_worker import lone_worker_config, lone_worker_environment, update
from tests.tiny_model import make_tiny_model
from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS

PROMPT, RESPONSE, VOCABULARY = 4, 6, 50
PROMPT_LENGTHS = [4, 2, 3, 4]
RESPONSE_LENGTHS = [6, 3, 1, 5]


@functools.cache
def model_and_batch(model_dir: Path) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The model and four rollouts as Trinity's trainer makes them: prompts padded on the left, responses on the right.

    The rollout policy is near the model, so that some ratios are inside every clip range and some outside.
    """
    generator = torch.Generator().manual_seed(0)
    size = len(PROMPT_LENGTHS)
    attention = torch.zeros(size, PROMPT + RESPONSE, dtype=torch.long)
    response_mask = torch.zeros(size, RESPONSE, dtype=torch.bool)
    for i, (prompt, response) in enumerate(zip(PROMPT_LENGTHS, RESPONSE_LENGTHS, strict=True)):
        attention[i, PROMPT - prompt : PROMPT + response] = 1
        response_mask[i, :response] = True
    ids = torch.randint(5, VOCABULARY, attention.shape, generator=generator) * attention
    data = {
        "input_ids": ids,
        "prompts": ids[:, :PROMPT],
        "responses": ids[:, PROMPT:],
        "attention_mask": attention,
        "position_ids": (attention.cumsum(-1) - 1).clip(0),
        "response_mask": response_mask,
        "advantages": torch.tensor([[1.0], [-0.5], [0.75], [-1.25]]) * response_mask,
    }
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa")
    noise = 0.3 * torch.randn(response_mask.shape, generator=generator)
    data["old_log_probs"] = (logprobs(model, data).detach() + noise) * response_mask
    return model, data


def logprobs(model: torch.nn.Module, data: dict[str, torch.Tensor]) -> torch.Tensor:
    logits = model(data["input_ids"], attention_mask=data["attention_mask"], position_ids=data["position_ids"]).logits
    return logits[:, PROMPT - 1 : -1].log_softmax(-1).gather(-1, data["responses"].unsqueeze(-1)).squeeze(-1)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


OF_THE_BATCH = ("off_m2po", "off_bapo", "off_p3o")


@pytest.fixture(scope="module")
def worker(model_dir):
    """A function that trains one step with the loss of an `algorithm:` section and returns the step's metrics."""
    with pytest.MonkeyPatch.context() as environment:
        for key, value in lone_worker_environment().items():
            environment.setenv(key, value)
        from tensordict import TensorDict
        from trinity.trainer.verl.config import build_verl_config
        from trinity.trainer.verl.monkey_patch import left_right_2_no_padding
        from trinity.trainer.verl.workers import TrinityActorRolloutRefWorker

        size = len(PROMPT_LENGTHS)
        _, rollouts = model_and_batch(model_dir)

        def config_of(**algorithm):
            # Every step sees the same weights.
            return lone_worker_config(model_dir, size, prompt=16, response=16, learning_rate=0.0, **algorithm)

        config = config_of(algorithm_type="trinity_rec.rec")
        actor = TrinityActorRolloutRefWorker(config=build_verl_config(config), role="actor")
        actor.init_model()

        def train(max_tokens: int, left_out: tuple[int, ...] = (), columns: dict | None = None, **algorithm) -> dict:
            actor.set_trinity_config(config_of(**algorithm).algorithm, "vllm", "tests")
            data = left_right_2_no_padding(TensorDict(masked(rollouts, left_out) | (columns or {}), batch_size=size))
            return update(actor, data, size, use_dynamic_bsz=True, max_token_len_per_gpu=max_tokens)

        yield train
        torch.distributed.destroy_process_group()


def gradient_norm(metrics: dict) -> float:
    values = metrics["grad_norm"]
    return float(values[0] if isinstance(values, list) else values)


def masked(data: dict[str, torch.Tensor], left_out: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """A copy in which some responses are out of the loss, in their places, as a sample strategy leaves them."""
    data = {key: x.clone() for key, x in data.items()}
    data["response_mask"][list(left_out)] = False
    return data


def expected_norm(model_dir: Path, objective: Objective, left_out: tuple[int, ...] = ()) -> float:
    """The norm of the whole batch's gradient by plain transformers, without verl."""
    model, data = model_and_batch(model_dir)
    data = masked(data, left_out)
    model.zero_grad()
    loss, _ = objective(logprobs(model, data), data["old_log_probs"], data["response_mask"], data["advantages"])
    loss.backward()
    return float(torch.stack([p.grad.norm() for p in model.parameters()]).norm())


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_with_the_gradient_of_the_whole_batch(worker, model_dir, name):
    expected = expected_norm(model_dir, Objective(**PRESETS[name].policy_loss))
    assert (expected > 0) is (name != "off_geo_rs")  # which rejects every one of these responses
    # A statistic of the batch is of one call of the loss: the same gradient where that sees the whole batch.
    tokens = 4096 if name in OF_THE_BATCH else 12
    trained = worker(max_tokens=tokens, algorithm_type=f"trinity_rec.{name}")
    assert gradient_norm(trained) == pytest.approx(expected, rel=1e-4)


def test_a_rule_of_ones_own_trains_with_its_gradient(worker, model_dir):
    own = {"clip_mode": "tests.own_rules.soft_clip", "softness": 4.0}
    expected = expected_norm(model_dir, Objective(**own))
    assert expected != pytest.approx(expected_norm(model_dir, Objective()), rel=1e-2)
    trained = worker(max_tokens=12, algorithm_type="trinity_rec.rec", policy_loss_fn_args=own)
    assert gradient_norm(trained) == pytest.approx(expected, rel=1e-4)


def test_one_micro_batch_gives_the_same_gradient(worker, model_dir):
    whole = worker(max_tokens=4096, algorithm_type="trinity_rec.rec_grpo")
    expected = expected_norm(model_dir, Objective(**PRESETS["rec_grpo"].policy_loss))
    assert gradient_norm(whole) == pytest.approx(expected, rel=1e-4)
    assert {"actor/pg_loss", "actor/pg_clipfrac", "actor/kl_k1"} <= whole.keys()
    assert "actor/kl_loss" not in whole


def test_a_response_that_is_left_out_keeps_its_place_without_effect(worker, model_dir):
    objective = Objective(**PRESETS["rep_opmd"].policy_loss)
    expected = expected_norm(model_dir, objective, left_out=(1, 3))
    assert expected != pytest.approx(expected_norm(model_dir, objective), rel=1e-2)
    metrics = worker(max_tokens=12, left_out=(1, 3), algorithm_type="trinity_rec.rep_opmd")
    assert gradient_norm(metrics) == pytest.approx(expected, rel=1e-4)


def test_a_logprob_that_is_not_a_number_stops_the_step_and_is_named(worker, model_dir):
    _, data = model_and_batch(model_dir)
    old_logprob = data["old_log_probs"].clone()
    old_logprob[1, 2] = float("nan")
    with pytest.raises(FloatingPointError, match=r"^old_logprob\[1, 2\] is nan: "):
        worker(max_tokens=4096, columns={"old_log_probs": old_logprob}, algorithm_type="trinity_rec.rec_oneside_nois")
    assert gradient_norm(worker(max_tokens=4096, algorithm_type="trinity_rec.rec_oneside_nois")) > 0


def test_upstreams_gradient_depends_on_the_micro_batches(worker):
    """A difference that the documentation lists: if this fails, upstream has mended it and the page must say so."""
    algorithm = {"algorithm_type": "rec", "kl_loss_fn": "none"}
    whole, cut = worker(max_tokens=4096, **algorithm), worker(max_tokens=12, **algorithm)
    assert gradient_norm(cut) > 1.5 * gradient_norm(whole)
