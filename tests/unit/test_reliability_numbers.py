"""Numbers that go wrong: whatever the batch holds, a loss and its gradient are finite or there is an error that says
where.

2,000 generated cases in CI; `make soak` generates 100,000.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor
from trinity.common.experience import EID, Experience

from trinity_rec.declared import choices_of
from trinity_rec.objective import Objective
from trinity_rec.objective.rules import RULES
from trinity_rec.objective.tokens import Batch
from trinity_rec.plugin.advantage import RECAdvantage
from trinity_rec.presets import PRESETS
from trinity_rec.shaping import Shaping

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
NOT_FINITE = (math.nan, math.inf, -math.inf)

CI = settings(max_examples=2_000, deadline=None, suppress_health_check=list(HealthCheck))
SOAK = settings(CI, max_examples=100_000)


@st.composite
def objectives(draw) -> Objective:
    epsilon_low, epsilon_high = draw(st.floats(1e-4, 1.0)), draw(st.floats(1e-4, 3.0) | st.just(math.inf))
    return Objective(
        clip_mode=draw(st.sampled_from(list(RULES["clip_mode"]))),
        weight=draw(st.sampled_from(list(RULES["weight"]))),
        regularizer=draw(st.sampled_from(list(RULES["regularizer"]))),
        regularizer_coef=draw(st.sampled_from((0.0, 1e-3, 0.1, 1e6))),
        temp=draw(st.sampled_from((1e-3, 1.0, math.inf))),
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        epsilon_low_prime=draw(st.floats(epsilon_low, 1.0)),
        epsilon_high_prime=max(epsilon_high, 2.0),
        loss_agg_mode=draw(st.sampled_from(list(RULES["loss_agg_mode"]))),
        loss_scale_factor=1024,
        metrics=draw(st.sampled_from(("basic", "full"))),
    )


# What rollouts hold, ratios of e^50 either way, and what no rollout should.
LOGPROBS = st.floats(-12, 0, width=32) | st.sampled_from((-0.0, -50.0, -1e4, -3e38)) | st.sampled_from(NOT_FINITE)
ADVANTAGES = (
    st.floats(-3, 3, width=32) | st.sampled_from((0.0, 1e-30, 1e5, -1e5, 3e38, -3e38)) | st.sampled_from(NOT_FINITE)
)


@st.composite
def batches(draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logprob, old_logprob, mask, advantages; whole responses and batches without a token among them."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=4))
    dtype = draw(st.sampled_from(DTYPES))
    # Mostly ordinary numbers: `fill` is what most cells hold.
    logprob, old_logprob = (
        draw(hnp.arrays(np.float64, shape, elements=LOGPROBS, fill=st.floats(-12, 0, width=32))) for _ in range(2)
    )
    advantages = draw(hnp.arrays(np.float64, shape, elements=ADVANTAGES, fill=st.floats(-3, 3, width=32)))
    mask = draw(hnp.arrays(np.bool_, shape))
    if draw(st.booleans()) and mask.ndim == 2 and len(mask):
        mask[draw(st.integers(0, len(mask) - 1))] = False
    tensors = (torch.tensor(x).to(dtype) for x in (logprob, old_logprob, advantages))
    logprob, old_logprob, advantages = tensors
    if draw(st.booleans()):  # in another type than the logprobs
        advantages = advantages.float()
    return logprob, old_logprob, torch.tensor(mask), advantages


def is_finite_or_says_where(objective: Objective, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    logprob, old_logprob, mask, advantages = batch
    leaf = logprob.clone().requires_grad_()
    inputs = {"logprob": logprob, "old_logprob": old_logprob, "advantages": advantages}
    bad = {name: mask & ~x.isfinite() for name, x in inputs.items()}
    try:
        loss, metrics = objective(leaf, old_logprob, mask, advantages)
    except FloatingPointError as error:
        message = str(error)
        assert "\n" not in message
        if any(x.any() for x in bad.values()):
            name, place = re.match(r"(\w+)\[([\d, ]+)\] is (?:nan|-?inf): ", message).groups()
            index = tuple(map(int, place.split(", ")))
            assert bad[name][index], "it names a token that is as it should be"
            first = min(tuple(x.nonzero()[0].tolist()) for x in bad.values() if x.any())
            assert index == first
        else:
            assert re.match(r"the loss of response \d+ overflows: log ratios from", message) or "overflows" in message
        return
    assert not any(x.any() for x in bad.values()), "a number that is not finite went through"
    assert loss.isfinite() and loss.dtype.itemsize >= 4
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    loss.backward()
    assert leaf.grad.isfinite().all()
    assert (leaf.grad[~mask] == 0).all()


@CI
@given(objectives(), batches())
def test_a_loss_is_finite_or_says_where_it_is_not(objective, batch):
    is_finite_or_says_where(objective, batch)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@SOAK
@given(objectives(), batches())
def test_a_loss_is_finite_or_says_where_it_is_not_100_000_times(objective, batch):
    is_finite_or_says_where(objective, batch)


@pytest.mark.parametrize("metrics", ["basic", "full"])
@pytest.mark.parametrize("name", PRESETS)
def test_the_look_at_the_numbers_costs_no_transfer_of_its_own(name, metrics, monkeypatch):
    """One, but for what a rule reads itself that takes a statistic of the batch."""
    transfers = []
    for method in ("tolist", "item", "__bool__", "__float__", "__int__", "cpu", "nonzero"):
        original = getattr(Tensor, method)
        monkeypatch.setattr(Tensor, method, lambda *args, f=original, m=method: (transfers.append(m), f(*args))[1])
    logprob = torch.full((3, 5), -1.0, requires_grad=True)
    others = torch.full((3, 5), -1.5), torch.ones(3, 5), torch.ones(3, 5)
    objective = Objective(**PRESETS[name].policy_loss, metrics=metrics)
    batch = Batch([logprob.detach(), others[0], others[1].bool(), others[2]], 3)
    for kind in objective._parts.of_the_batch:
        getattr(objective._parts, kind)(batch)
    assert bool(transfers) == (name in ("off_m2po", "off_bapo", "off_p3o"))
    of_the_rule = transfers.copy()
    transfers.clear()
    objective(logprob, *others)
    assert transfers == [*of_the_rule, "tolist"]


def test_the_first_bad_token_is_named():
    objective = Objective(**PRESETS["rec_ring_is"].policy_loss)
    numbers = {name: torch.full((4, 3), -1.0) for name in ("logprob", "old_logprob", "advantages")}
    mask = torch.ones(4, 3, dtype=torch.bool)
    mask[0] = False
    numbers["logprob"][0, 1] = math.nan  # does not count
    numbers["advantages"][3, 0] = math.inf
    numbers["old_logprob"][2, 1] = math.nan
    with pytest.raises(FloatingPointError, match=r"old_logprob\[2, 1\] is nan"):
        objective(numbers["logprob"], numbers["old_logprob"], mask, numbers["advantages"])
    one = {name: x[3] for name, x in numbers.items()}
    with pytest.raises(FloatingPointError, match=r"advantages\[0\] is inf"):
        objective(one["logprob"], one["old_logprob"], mask[3], one["advantages"])
    with pytest.raises(FloatingPointError, match="sample_weight"):
        one["advantages"][0] = 1.0
        objective(one["logprob"], one["old_logprob"], mask[3], one["advantages"], dp_size=torch.tensor(math.nan))


def test_a_gradient_too_large_for_its_type_is_an_error():
    objective = Objective(weight="importance_sampling")
    logprob, old = torch.tensor([[-1.0], [-1.0]]), torch.tensor([[-1.0], [-21.0]])
    advantages, mask = torch.ones(2, 1), torch.ones(2, 1)
    leaf = logprob.bfloat16().requires_grad_()
    objective(leaf, old, mask, advantages)[0].backward()
    assert leaf.grad.isfinite().all()
    with pytest.raises(FloatingPointError, match=r"response 1 overflows: log ratios from 20 to 20, advantages up to 1"):
        objective(logprob.half().requires_grad_(), old, mask, advantages)


# ---- rewards ----


@st.composite
def shapings(draw) -> RECAdvantage:
    pairwise = draw(st.sampled_from(choices_of(Shaping.model_fields["pairwise"])))
    return RECAdvantage(
        epsilon=draw(st.sampled_from((0.0, 1e-6))),
        std_normalize=pairwise is None and draw(st.booleans()),
        drop=draw(st.sampled_from(choices_of(Shaping.model_fields["drop"]))) if pairwise is None else None,
        drop_form=draw(st.sampled_from(choices_of(Shaping.model_fields["drop_form"]))),
        pairwise=pairwise,
        pairwise_temp=draw(st.sampled_from((1e-9, 1.0))),
        reweight=draw(st.sampled_from(choices_of(Shaping.model_fields["reweight"]))),
        reweight_floor=draw(st.sampled_from((1e-9, 0.8))),
    )


REWARDS = (
    st.sampled_from((0.0, 1.0))
    | st.floats(-10, 10)
    | st.sampled_from((None, *NOT_FINITE, 1e-300, 1e5, 1e38, -1e39, 1.7e308, -1.7e308))
)


def experiences(groups: list[list[float | None]], tokens: int = 2) -> list[Experience]:
    return [
        Experience(
            eid=EID(batch=7, task=task, run=run),
            tokens=list(range(1 + tokens)),
            prompt_length=1,
            logprobs=[-1.0] * tokens,
            reward=reward,
        )
        for task, rewards in enumerate(groups)
        for run, reward in enumerate(rewards)
    ]


def advantages_are_finite_or_the_response_is_named(advantage: RECAdvantage, groups: list[list[float | None]]) -> None:
    exps = experiences(groups)
    try:
        exps, metrics = advantage.process(exps)
    except FloatingPointError as error:
        task, run = map(
            int, re.match(r"the advantage of batch 7, task (\d+), run (\d+) overflows: ", str(error)).groups()
        )
        largest = max(abs(reward) for reward in groups[task] if reward is not None and math.isfinite(reward))
        assert largest >= 1e5 or advantage.pairwise_temp < 1 or advantage.reweight_floor < 0.8, "an ordinary group"
        assert 0 <= run < len(groups[task])
        return
    for exp in exps:
        assert exp.advantages.isfinite().all() and math.isfinite(exp.reward)
    bad = [reward for rewards in groups for reward in rewards if reward is None or not math.isfinite(reward)]
    assert metrics["group_advantages/invalid_responses"] == len(bad)
    for exp, reward in zip(exps, (reward for rewards in groups for reward in rewards), strict=True):
        if reward is None or not math.isfinite(reward):
            assert not exp.action_mask.any() and (exp.advantages == 0).all()


GROUPS = st.lists(st.lists(REWARDS, min_size=1, max_size=5), min_size=1, max_size=3)


@settings(CI, max_examples=500)
@given(shapings(), GROUPS)
def test_advantages_are_finite_or_the_response_is_named(advantage, groups):
    advantages_are_finite_or_the_response_is_named(advantage, groups)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@settings(SOAK, max_examples=20_000)
@given(shapings(), GROUPS)
def test_advantages_are_finite_or_the_response_is_named_20_000_times(advantage, groups):
    advantages_are_finite_or_the_response_is_named(advantage, groups)
