"""Shaping against slow loops over groups, written down from sections 2 and 4 of arXiv 2509.24203 in plain numpy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from trinity_rec.shaping.groups import (
    PAIRWISE_WEIGHTS,
    adaptive_temperature,
    balanced_keep,
    group_advantage,
    group_statistics,
    pairwise_advantage,
)

# Few distinct values make ties and groups without spread common; 0.1 and 0.7 have no exact float.
rewards_of_any_kind = st.sampled_from([0.0, 1.0, 0.1, 0.7, -1.0]) | st.floats(-100, 100, width=32)


@st.composite
def groups(draw, max_responses=24):
    """(rewards, group, keep) in any order, groups of unequal size, some without a kept response; dropped ones NaN."""
    size = draw(st.integers(1, max_responses))
    rewards = draw(st.lists(rewards_of_any_kind, min_size=size, max_size=size))
    group = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    keep = draw(st.lists(st.sampled_from([True, True, True, False]), min_size=size, max_size=size))
    rewards = [r if k else draw(st.sampled_from([r, math.nan, math.inf])) for r, k in zip(rewards, keep, strict=True)]
    return torch.tensor(rewards, dtype=torch.float64), torch.tensor(group), torch.tensor(keep)


def one_by_one(data):
    """The kept positions of each group, as numpy index arrays."""
    _, group, keep = (x.numpy() for x in data)
    for g in range(group.max() + 1):
        yield g, np.flatnonzero((group == g) & keep)


@given(groups())
def test_statistics_are_those_of_each_group(data):
    statistics = group_statistics(*data)
    for g, members in one_by_one(data):
        values = data[0].numpy()[members]
        assert statistics.count[g] == len(members)
        assert statistics.mean[g].item() == pytest.approx(values.mean() if len(values) else 0, abs=1e-12)
        assert statistics.std[g].item() == pytest.approx(values.std() if len(values) else 0, abs=1e-9)


@given(groups(), st.booleans(), st.sampled_from([0.0, 1e-6, 0.5]))
def test_advantages_are_centred_in_each_group(data, std_normalize, epsilon):
    advantages = group_advantage(*data, std_normalize=std_normalize, epsilon=epsilon)
    expected = np.zeros(len(data[0]))
    for _, members in one_by_one(data):
        values = data[0].numpy()[members]
        if len(set(values.tolist())) > 1:  # else no comparison: advantage 0
            expected[members] = (values - values.mean()) / (values.std() + epsilon if std_normalize else 1)
    # std in the denominator may be as small as the rewards' rounding; compare where it is not.
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-7, atol=1e-7)


@given(rewards_of_any_kind, st.integers(1, 300), st.booleans(), st.sampled_from([0.0, 1e-6]))
def test_equal_rewards_give_exactly_no_advantage(reward, size, std_normalize, epsilon):
    """0.1 summed 300 times over 300 is not 0.1: without care the std would blow rounding up to an advantage of 1."""
    rewards = torch.full((size,), reward, dtype=torch.float64)
    one_group = torch.zeros(size, dtype=torch.int64), torch.ones(size, dtype=torch.bool)
    assert not group_advantage(rewards, *one_group, std_normalize=std_normalize, epsilon=epsilon).any()
    for weights in PAIRWISE_WEIGHTS:
        assert not pairwise_advantage(rewards, *one_group, weights=weights).any()


@given(groups(), st.integers(0, 2**31 - 1))
def test_balanced_keep_drops_extra_negatives_only(data, seed):
    lottery = torch.rand(len(data[0]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = balanced_keep(*data, lottery)
    statistics = group_statistics(*data)
    expected = np.zeros(len(kept), dtype=bool)
    for g, members in one_by_one(data):
        above = data[0].numpy()[members] >= statistics.mean[g].item()
        positive, negative = members[above], members[~above]
        winners = negative[np.argsort(lottery.numpy()[negative], kind="stable")][: len(positive)]
        expected[positive] = expected[winners] = True
        assert len(winners) == min(len(negative), len(positive))
    assert kept.tolist() == expected.tolist()


@given(groups(), st.integers(0, 2**31 - 1), st.randoms(use_true_random=False))
def test_a_lot_belongs_to_its_response_wherever_it_stands(data, seed, random):
    lottery = torch.rand(len(data[0]), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    order = list(range(len(lottery)))
    random.shuffle(order)
    kept = balanced_keep(*data, lottery)
    assert torch.equal(balanced_keep(*(x[order] for x in data), lottery[order]), kept[order])


def test_every_extra_negative_is_equally_likely_to_go():
    size, groups_of_it = 8, 4000
    rewards = torch.tensor([1.0, 1.0, *[0.0] * 6], dtype=torch.float64).repeat(groups_of_it)
    group = torch.arange(groups_of_it).repeat_interleave(size)
    lottery = torch.rand(len(rewards), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = balanced_keep(rewards, group, torch.ones_like(group, dtype=torch.bool), lottery).view(-1, size)
    assert kept[:, :2].all()
    assert (kept.sum(1) == 4).all()
    share = kept[:, 2:].double().mean(0)
    assert ((share - 1 / 3).abs() < 4 * math.sqrt(2 / 9 / groups_of_it)).all(), share


@settings(max_examples=200)
@given(groups(), st.sampled_from(PAIRWISE_WEIGHTS), st.floats(20, 200))
def test_pairwise_advantages_are_sums_over_pairs(data, weights, temp):
    advantages = pairwise_advantage(*data, weights=weights, temp=temp)
    expected = np.zeros(len(data[0]))
    scale = 1.0
    for _, members in one_by_one(data):
        r = data[0].numpy()[members]
        for i in range(len(r)):
            for j in range(len(r)):
                w = {
                    "uniform": 1.0,
                    "reward-gap": abs(r[i] - r[j]),
                    "product": math.exp((r[i] - r.mean()) / temp) * math.exp((r[j] - r.mean()) / temp),
                }[weights]
                expected[members[i]] += w * (r[i] - r[j]) / len(r)
                scale = max(scale, abs(w * (r[i] - r[j])))
    np.testing.assert_allclose(advantages.numpy(), expected, rtol=1e-9, atol=1e-11 * scale)


def test_unknown_pairwise_weights_are_refused():
    with pytest.raises(ValueError, match="pairwise='ranks' is not one of uniform, reward-gap, product"):
        pairwise_advantage(torch.zeros(1), torch.zeros(1, dtype=torch.int64), torch.ones(1).bool(), weights="ranks")


def token_sum(advantages, tokens, temperature):
    return float((tokens * advantages * (advantages / temperature).exp()).sum())


@settings(max_examples=200)
@given(
    st.lists(st.tuples(st.floats(-3, 3, width=32), st.integers(0, 50)), min_size=1, max_size=12),
    st.sampled_from([0.1, 0.8, 2.0]),
)
@example([(1.0, 1), (-1.0, 1)], 0.8)  # mean 0: nothing to do
@example([(-1.0, 3)], 0.8)  # no positive advantage
@example([(1.0, 3), (-1.0, 9)], 0.8)  # T = 2 / log 3
def test_adaptive_temperature_is_the_root_or_the_floor(responses, floor):
    advantages, tokens = (torch.tensor(x, dtype=torch.float64) for x in zip(*responses, strict=True))
    found = adaptive_temperature(advantages, tokens, floor=floor)
    magnitude = float((tokens * advantages.abs()).sum())
    unweighted = float((tokens * advantages).sum())
    assume(unweighted >= 0 or unweighted < -1e-6 * magnitude)
    if unweighted >= 0:
        assert math.isinf(found.temperature) and not found.at_floor
    elif token_sum(advantages, tokens, floor) <= 0:
        assert found.temperature == floor and found.at_floor
    else:
        assert found.temperature >= floor and not found.at_floor
        terms = tokens * advantages * (advantages / found.temperature).exp()
        assert abs(terms.sum()) <= 1e-9 * terms.abs().sum()


def test_adaptive_temperature_has_the_known_root():
    """Three tokens at +1 and nine at -1: 3 exp(1/T) = 9 exp(-1/T), so T = 2 / log 3."""
    found = adaptive_temperature(torch.tensor([1.0, -1.0]), torch.tensor([3.0, 9.0]))
    assert found.temperature == pytest.approx(2 / math.log(3), rel=1e-12)
    weighted = torch.tensor([1.0, -1.0]).double() * (torch.tensor([1.0, -1.0]).double() / found.temperature).exp()
    assert weighted[0] > 0 > weighted[1]  # the sign, which clipping looks at, stays


def test_without_responses_nothing_is_reweighted():
    nothing = torch.zeros(0)
    assert math.isinf(adaptive_temperature(nothing, nothing).temperature)
    assert len(group_advantage(nothing, nothing.long(), nothing.bool())) == 0
    assert len(balanced_keep(nothing, nothing.long(), nothing.bool(), nothing)) == 0
    for weights in PAIRWISE_WEIGHTS:
        assert len(pairwise_advantage(nothing, nothing.long(), nothing.bool(), weights=weights)) == 0
