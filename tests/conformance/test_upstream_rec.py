"""Ours against the installed upstream `rec`, both fetched from Trinity's registries and given the same arguments.

Equal to 1e-6 wherever upstream computes anything, or a row of docs/conformance.md: each row has a test of its name that
shows both sides.
"""

import hashlib
import inspect
import itertools
import pickle
import re
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from trinity.algorithm import ADVANTAGE_FN, POLICY_LOSS_FN
from trinity.algorithm import utils as upstream_utils
from trinity.common.experience import EID, Experience, group_by

UpstreamLoss, Loss = POLICY_LOSS_FN.get("rec"), POLICY_LOSS_FN.get("trinity_rec.RECPolicyLoss")
UpstreamAdvantage, Advantage = ADVANTAGE_FN.get("rec"), ADVANTAGE_FN.get("trinity_rec.RECAdvantage")

DOCUMENT = Path(__file__).parents[2] / "docs" / "conformance.md"
MOVED = "upstream's `rec` is not the one that was compared: read what changed, then docs/conformance.md and this file"

CLIP_MODES = ("none", "one-side", "gspo-one-side", "two-side", "ring")
WEIGHTS = ("none", "importance_sampling", "gspo_importance_sampling", "advantage")
REGULARIZERS = ("none", "k2", "forward-kl")
RANGES = ((0.2, 0.2, 0.6, 2.0), (0.6, 2.0, 0.6, 2.0), (3e-4, 4e-4, 3e-4, 4e-4), (1.0, 0.1, 1.0, 0.4))


# --- the upstream that is meant ---------------------------------------------------------------------------------------


def test_upstream_is_the_one_that_was_compared():
    assert version("trinity-rft") == "0.6.0", MOVED
    sources = "".join(
        inspect.getsource(part)
        for part in (
            inspect.getmodule(UpstreamLoss),
            inspect.getmodule(UpstreamAdvantage),
            upstream_utils.aggregate_loss,
            upstream_utils.masked_mean,
            upstream_utils.masked_sum,
            group_by,
        )
    )
    digest = hashlib.sha256(sources.encode()).hexdigest()
    assert digest == "6bad2ef7e82556f1dd516a64415ae0f6ae637c05f4177bc2ceb180520d3db651", MOVED


def test_every_argument_of_upstream_is_an_argument_here_with_its_default():
    ours, theirs = Loss.default_args(), UpstreamLoss.default_args()
    assert {name: ours[name] for name in theirs} == theirs, MOVED
    assert set(inspect.signature(UpstreamLoss.__init__).parameters) == {"self", "backend", *theirs}, MOVED
    ours, theirs = Advantage.default_args(), UpstreamAdvantage.default_args()
    assert {name: ours[name] for name in theirs} == theirs, MOVED
    assert set(inspect.signature(UpstreamAdvantage.__init__).parameters) == {"self", *theirs}, MOVED


def test_the_loss_asks_the_trainer_for_what_upstream_asks_for():
    for backend in ("verl", "tinker"):
        ours, theirs = Loss(backend=backend).select_keys, UpstreamLoss(backend=backend).select_keys
        assert ours[: len(theirs)] == theirs, MOVED
        assert ours[len(theirs) :] == ["batch_num_tokens", "global_batch_size", "dp_size"]


def test_each_documented_difference_has_its_test_and_each_test_its_row():
    loss, advantage = DOCUMENT.read_text().split("## Policy loss")[1].split("## Advantage")
    rows = {
        f"test_{part}_{name.replace('-', '_')}"
        for part, text in (("loss", loss), ("advantage", advantage))
        for name in re.findall(r"^\| ([a-z0-9-]+) \|", text, flags=re.M)
        if name != "difference"
    }
    tests = {
        name
        for name in globals()
        if re.match(r"test_(loss|advantage)_", name) and not name.endswith("_equals_upstream")
    }
    assert tests == rows


# --- the policy loss --------------------------------------------------------------------------------------------------


def batch(seed=0, rows=6, length=40, spread=0.4, dtype=torch.float64, flat=False):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    logprob = 3 * random(rows, length).log()
    log_ratio = spread * torch.randn(rows, length, generator=generator, dtype=torch.float64)
    mask = (torch.arange(length) < 1 + (random(rows, 1) * length).long()) & (random(rows, length) < 0.9)
    advantages = (random(rows, 1) * 5).floor().sub(2).expand(rows, length) * mask
    tensors = logprob.to(dtype), (logprob - log_ratio).to(dtype), mask, advantages.to(dtype)
    return tuple(x[0] for x in tensors) if flat else tensors


def differentiate(loss_fn, data, **columns):
    """(loss, gradient, metrics), called as Trinity's verl loss calls it: by verl's column names."""
    logprob, old_logprob, mask, advantages = data
    logprob = logprob.detach().clone().requires_grad_()
    loss, metrics = loss_fn(
        logprob=logprob, old_log_probs=old_logprob, response_mask=mask, advantages=advantages, **columns
    )
    loss.backward()
    return loss.detach(), logprob.grad, metrics


def assert_equal_loss(arguments, data):
    theirs = differentiate(UpstreamLoss(backend="verl", **arguments), data)
    ours = differentiate(Loss(backend="verl", **arguments), data)
    assert ours[1].dtype == theirs[1].dtype and ours[0].dtype == theirs[0].dtype
    largest = theirs[1].abs().max()
    torch.testing.assert_close(ours[1], theirs[1], rtol=1e-6, atol=1e-6 * largest.item())
    # The loss is a sum of terms of both signs: it is exact to their magnitude.
    magnitude = (theirs[1] * data[0]).masked_fill(~data[2], 0).abs().sum().item()
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-6 * magnitude)
    assert ours[2]["pg_clipfrac"] == pytest.approx(theirs[2]["pg_clipfrac"], rel=1e-6)
    total = ours[2]["pg_loss"] + ours[2].get("regularizer_loss", 0)
    assert total == pytest.approx(theirs[2]["pg_loss"], rel=1e-6, abs=1e-6 * magnitude)


def computable(clip_mode, weight):
    return weight != "gspo_importance_sampling" or clip_mode == "gspo-one-side"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(
    "clip_mode, weight, regularizer",
    [
        combination
        for combination in itertools.product(CLIP_MODES, WEIGHTS, REGULARIZERS)
        if computable(*combination[:2])
    ],
)
def test_each_combination_of_the_loss_equals_upstream(clip_mode, weight, regularizer, dtype):
    for number, (low, high, low_prime, high_prime) in enumerate(RANGES):
        arguments = {
            "clip_mode": clip_mode,
            "weight": weight,
            "regularizer": regularizer,
            "regularizer_coef": (0.0, 0.1, 1.5, 0.1)[number],
            "temp": (1.0, 0.5, 3.0, 1.0)[number],
            "epsilon_low": low,
            "epsilon_high": high,
            "epsilon_low_prime": low_prime,
            "epsilon_high_prime": high_prime,
        }
        for spread, flat in itertools.product((0.4, 1e-3), (False, True)):
            assert_equal_loss(arguments, batch(number, spread=spread, dtype=dtype, flat=flat))


@st.composite
def loss_arguments(draw):
    clip_mode = draw(st.sampled_from(CLIP_MODES))
    low, high = draw(st.floats(1e-4, 1)), draw(st.floats(1e-4, 3) | st.just(float("inf")))
    return {
        "clip_mode": clip_mode,
        "weight": draw(st.sampled_from([weight for weight in WEIGHTS if computable(clip_mode, weight)])),
        "regularizer": draw(st.sampled_from(REGULARIZERS)),
        "regularizer_coef": draw(st.sampled_from([0.0, 1e-3, 0.1]) | st.floats(0.01, 2)),
        "temp": draw(st.floats(0.3, 10) | st.just(float("inf"))),
        "epsilon_low": low,
        "epsilon_high": high,
        "epsilon_low_prime": draw(st.floats(low, 1)),
        "epsilon_high_prime": draw(st.floats(min(high, 4), 4)) if high < 4 else high,
    }


@settings(max_examples=200, deadline=None)
@given(loss_arguments(), st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 30), st.booleans())
def test_any_arguments_of_the_loss_equals_upstream(arguments, seed, rows, length, flat):
    assert_equal_loss(arguments, batch(seed, rows, length, flat=flat))


@pytest.mark.parametrize("clip_mode", CLIP_MODES)
def test_an_empty_mask_equals_upstream(clip_mode):
    logprob, old_logprob, mask, advantages = batch()
    nothing = logprob, old_logprob, torch.zeros_like(mask), advantages
    arguments = {"clip_mode": clip_mode, "epsilon_low_prime": 0.6, "epsilon_high_prime": 2.0}
    assert_equal_loss(arguments, nothing)


def test_loss_ring_defaults():
    theirs = UpstreamLoss(clip_mode="ring")
    assert (theirs.epsilon_low_prime, theirs.epsilon_high_prime) == (0.4, 0.4), MOVED
    assert UpstreamLoss.default_args()["epsilon_low_prime"] == 0.6, MOVED
    assert UpstreamLoss.default_args()["epsilon_high_prime"] == 2, MOVED
    objective = Loss(clip_mode="ring").objective
    assert (objective.epsilon_low_prime, objective.epsilon_high_prime) == (0.6, 2.0)
    assert_equal_loss({**UpstreamLoss.default_args(), "clip_mode": "ring"}, batch())


def test_loss_ring_inside():
    arguments = {"clip_mode": "ring", "epsilon_low": 0.7, "epsilon_low_prime": 0.5}
    assert differentiate(UpstreamLoss(**arguments), batch())[0].isfinite(), MOVED
    with pytest.raises(ValueError, match=r"epsilon_low_prime=0\.5 is smaller than epsilon_low=0\.7"):
        Loss(**arguments)


def test_loss_gspo_weight():
    for clip_mode in CLIP_MODES:
        arguments = {"clip_mode": clip_mode, "weight": "gspo_importance_sampling", "epsilon_high_prime": 2.0}
        if clip_mode == "gspo-one-side":
            assert_equal_loss(arguments, batch())
            continue
        with pytest.raises(UnboundLocalError):
            differentiate(UpstreamLoss(**arguments), batch())
        assert differentiate(Loss(**arguments), batch())[1].isfinite().all()


@pytest.mark.parametrize(
    "name, value",
    [
        ("clip_mode", "oneside"),
        ("weight", "is"),
        ("regularizer", "k3"),
        ("epsilon_low", 0.0),
        ("epsilon_low", 1.1),
        ("epsilon_high", 0.0),
        ("epsilon_low_prime", 2.0),
        ("epsilon_high_prime", -1.0),
        ("regularizer_coef", -1.0),
        ("temp", 0.0),
        ("temp", "1.0"),
        ("temp", True),
        ("regularizer_coef", float("inf")),
    ],
)
def test_loss_bad_value(name, value):
    if value is True or value == float("inf"):
        UpstreamLoss(**{name: value})  # taken
    else:
        with pytest.raises((AssertionError, TypeError)):
            UpstreamLoss(**{name: value})
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
        Loss(**{name: value})


def test_loss_micro_batches():
    whole = batch(3, rows=8)
    parts = [tuple(x[rows] for x in whole) for rows in (slice(0, 3), slice(3, 8))]
    theirs = differentiate(UpstreamLoss(), whole)[1]
    added = torch.cat([differentiate(UpstreamLoss(), part)[1] for part in parts])
    assert added.norm() > 1.3 * theirs.norm(), MOVED
    columns = {"batch_num_tokens": int(whole[2].sum()), "global_batch_size": 8, "dp_size": 1}
    ours = torch.cat([differentiate(Loss(), part, **columns)[1] for part in parts])
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-12)


def test_loss_padding():
    logprob, old_logprob, mask, advantages = batch(4)
    dirty = logprob, old_logprob.masked_fill(~mask, float("nan")), mask, advantages.masked_fill(~mask, float("nan"))
    assert differentiate(UpstreamLoss(), dirty)[1].isnan().any(), MOVED
    ours = differentiate(Loss(), dirty)
    assert torch.equal(ours[1], differentiate(Loss(), (logprob, old_logprob, mask, advantages))[1])


def test_loss_mask_weights():
    logprob, old_logprob, mask, advantages = batch(4)
    weights = mask * torch.linspace(0.5, 1.5, mask.shape[1], dtype=torch.float64)
    theirs = [differentiate(UpstreamLoss(), (logprob, old_logprob, m, advantages))[1] for m in (mask, weights)]
    assert not torch.allclose(*theirs), MOVED
    ours = [differentiate(Loss(), (logprob, old_logprob, m, advantages))[1] for m in (mask, weights)]
    assert torch.equal(*ours)


@pytest.mark.parametrize("clip_mode", ["one-side", "two-side"])
def test_loss_clipped_overflow(clip_mode):
    """exp(100) is infinite in float32."""
    old_logprob = torch.tensor([[-101.0, -1.0]])
    data = torch.tensor([[-1.0, -1.0]]), old_logprob, torch.ones(1, 2, dtype=torch.bool), torch.ones(1, 2)
    arguments = {"clip_mode": clip_mode, "weight": "importance_sampling"}
    assert differentiate(UpstreamLoss(**arguments), data)[0].isnan(), MOVED
    loss, gradient, metrics = differentiate(Loss(**arguments), data)
    assert loss.item() == 0.5
    assert gradient.tolist() == [[0, -0.5]]
    assert metrics["pg_clipfrac"] == 0.5


def test_loss_half_types():
    data = batch(5, rows=8, length=300, spread=0.02, dtype=torch.bfloat16)
    arguments = {"clip_mode": "one-side", "weight": "importance_sampling", "epsilon_low": 0.02, "epsilon_high": 0.02}
    exact = tuple(x if x.dtype == torch.bool else x.double() for x in data)
    expected = differentiate(Loss(**arguments), exact)
    ours, theirs = (differentiate(loss(**arguments), data) for loss in (Loss, UpstreamLoss))
    assert ours[0].dtype == torch.float32 and ours[1].dtype == torch.bfloat16
    torch.testing.assert_close(ours[0].double(), expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours[1].double(), expected[1], rtol=2**-7, atol=1e-9)
    assert (theirs[1].double() - expected[1]).norm() > 5 * (ours[1].double() - expected[1]).norm(), MOVED


def test_loss_pg_loss_metric():
    arguments = {"regularizer": "k2", "regularizer_coef": 0.5}
    theirs, ours = (differentiate(loss(**arguments), batch(6)) for loss in (UpstreamLoss, Loss))
    assert theirs[2]["pg_loss"] == pytest.approx(theirs[0].item()), MOVED
    assert ours[2]["pg_loss"] == pytest.approx(differentiate(UpstreamLoss(), batch(6))[0].item())
    assert ours[2]["pg_loss"] + ours[2]["regularizer_loss"] == pytest.approx(theirs[0].item())


# --- the advantage ----------------------------------------------------------------------------------------------------


def experiences(groups, length=3):
    """One experience a reward; `groups` is a list of lists of rewards."""
    return [
        Experience(
            eid=EID(batch=0, task=task, run=run, suffix=f"{task}-{run}"),
            tokens=torch.arange(2 + length + run % 3, dtype=torch.int32),
            prompt_length=2,
            logprobs=torch.zeros(length + run % 3),
            reward=reward,
        )
        for task, rewards in enumerate(groups)
        for run, reward in enumerate(rewards)
    ]


def assert_equal_advantages(arguments, groups):
    theirs, their_metrics = UpstreamAdvantage(**arguments).process(experiences(groups))
    ours, our_metrics = Advantage(**arguments).process(experiences(groups))
    assert [exp.eid.suffix for exp in ours] == [exp.eid.suffix for exp in theirs]
    largest = max(abs(reward) for rewards in groups for reward in rewards)
    for one, other in zip(ours, theirs, strict=True):
        for name in ("advantages", "returns"):
            torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-6, atol=1e-6 * largest)
        assert torch.equal(one.action_mask, other.action_mask)
    for name, value in their_metrics.items():
        assert our_metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6 * largest), name


# Steps of a quarter are exact in float32, so that equal rewards are equal and no mean is decided by rounding.
spread_groups = st.lists(
    st.lists(st.integers(-8, 8).map(lambda n: n / 4), min_size=2, max_size=16).filter(
        lambda group: len(set(group)) > 1
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=200, deadline=None)
@given(spread_groups, st.sampled_from([True, False, None]), st.sampled_from([1e-6, 1e-3, 0.5]))
def test_any_arguments_of_the_advantage_equals_upstream(groups, std_normalize, epsilon):
    assert_equal_advantages({"std_normalize": std_normalize, "epsilon": epsilon}, groups)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([True, False]))
def test_general_rewards_equals_upstream(seed, std_normalize):
    rewards = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert_equal_advantages({"std_normalize": std_normalize}, rewards.tolist())


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=4), st.booleans())
def test_balanced_binary_rewards_equals_upstream(counts, std_normalize):
    """Which negatives go is random on both sides; how many, and what the others get, is not."""
    groups = [[1.0] * positive + [0.0] * negative for positive, negative in counts]
    arguments = {"drop": "balance", "std_normalize": std_normalize}
    theirs, their_metrics = UpstreamAdvantage(**arguments).process(experiences(groups))
    ours, our_metrics = Advantage(**arguments).process(experiences(groups))
    for task in range(len(groups)):
        one, other = (
            sorted(exp.advantages[0].item() for exp in exps if exp.eid.task == task) for exps in (ours, theirs)
        )
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)
    for name, value in their_metrics.items():
        assert our_metrics[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert all(exp.action_mask.all() for exp in ours + theirs)  # dropped tokens stay in the mean: `drop_form: zero`


def test_an_experience_carries_only_its_own_advantages():
    """Computed for the whole batch at once, yet what is pickled or changed with an experience is that experience's."""
    exps, _ = Advantage().process(experiences([[1.0, 0.0]] * 50, length=10))
    for exp in exps:
        for tensor in (exp.advantages, exp.returns):
            assert tensor.untyped_storage().nbytes() == tensor.nbytes == 4 * len(exp.action_mask)
            assert len(pickle.dumps(tensor)) < 1000
    exps[0].returns.add_(1)
    assert exps[0].advantages[0] == 0.5 and exps[1].returns[0] == -0.5


def test_no_experiences_equals_upstream():
    assert UpstreamAdvantage().process([]) == Advantage().process([]) == ([], {})


def test_advantage_group_of_one():
    with pytest.raises(UnboundLocalError):
        UpstreamAdvantage().process(experiences([[1.0]]))
    ours, metrics = Advantage(std_normalize=True).process(experiences([[1.0], [0.0, 1.0]]))
    assert ours[0].advantages.tolist() == [0, 0, 0]
    assert ours[0].action_mask.all()
    assert metrics["group_advantages/groups_of_one"] == 1
    assert ours[1].advantages[0] < 0 < ours[2].advantages[0]


def test_advantage_equal_rewards():
    theirs, _ = UpstreamAdvantage(std_normalize=True).process(experiences([[100.1] * 8]))
    assert max(exp.advantages.abs().max().item() for exp in theirs) > 0.8, MOVED
    group = [[0.9] * 8]
    _, metrics = UpstreamAdvantage(drop="balance").process(experiences(group))
    assert metrics["group_advantages/drop_balance/mean"] == 1, MOVED
    for arguments in ({"std_normalize": True}, {"drop": "balance"}, {"epsilon": 0.0, "std_normalize": True}):
        ours, metrics = Advantage(**arguments).process(experiences(group))
        assert all(not exp.advantages.any() and exp.action_mask.all() for exp in ours)
        assert metrics["group_advantages/groups_without_spread"] == 1
        assert metrics["group_advantages/dropped_responses"] == 0


def test_advantage_missing_reward():
    with pytest.raises(TypeError):
        UpstreamAdvantage().process(experiences([[1.0, 0.0, None]]))
    theirs, _ = UpstreamAdvantage().process(experiences([[1.0, 0.0, float("nan")]]))
    assert all(exp.advantages.isnan().all() for exp in theirs), MOVED
    for missing in (None, float("nan"), float("inf")):
        ours, metrics = Advantage().process(experiences([[1.0, 0.0, missing]]))
        assert [exp.advantages[0].item() for exp in ours] == [0.5, -0.5, 0]
        assert [bool(exp.action_mask.any()) for exp in ours] == [True, True, False]
        assert metrics["group_advantages/invalid_responses"] == 1


def test_advantage_multi_step():
    def rollouts():
        """Run 0 takes three steps and succeeds, runs 1 and 2 take one and fail."""
        exps = experiences([[1.0, 1.0, 1.0, 0.0, 0.0]])
        for exp, (run, step) in zip(exps, [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)], strict=True):
            exp.eid.run, exp.eid.step = run, step
        return exps

    theirs, _ = UpstreamAdvantage().process(rollouts())
    assert [exp.advantages[0].item() for exp in theirs] == pytest.approx([0.4, 0.4, 0.4, -0.6, -0.6]), MOVED
    ours, _ = Advantage().process(rollouts())
    assert [exp.advantages[0].item() for exp in ours] == pytest.approx([2 / 3, 2 / 3, 2 / 3, -1 / 3, -1 / 3])


def test_advantage_drop_choice():
    groups = [[1.0, *[0.0] * 15]] * 4

    def choices(make):
        exps, _ = make().process(experiences(groups))
        return [exp.advantages[0].item() != 0 for exp in exps]

    theirs = {tuple(choices(lambda: UpstreamAdvantage(drop="balance"))) for _ in range(3)}
    assert len(theirs) > 1, MOVED
    torch.manual_seed(1)
    ours = choices(lambda: Advantage(drop="balance"))
    torch.manual_seed(2)
    assert choices(lambda: Advantage(drop="balance")) == ours
    assert choices(lambda: Advantage(drop="balance", seed=1)) != ours
    assert sum(ours) == 8
    shuffled = experiences(groups)[::-1]
    Advantage(drop="balance").process(shuffled)
    assert [exp.advantages[0].item() != 0 for exp in shuffled[::-1]] == ours


def test_advantage_order():
    mixed = experiences([[1.0, 0.0], [1.0, 0.0]])[::2] + experiences([[1.0, 0.0], [1.0, 0.0]])[1::2]
    names = [exp.eid.suffix for exp in mixed]
    theirs, _ = UpstreamAdvantage().process(deepcopy(mixed))
    assert [exp.eid.suffix for exp in theirs] == sorted(names) != names, MOVED
    ours, _ = Advantage().process(mixed)
    assert [exp.eid.suffix for exp in ours] == names


@pytest.mark.parametrize("name, value", [("drop", "random"), ("epsilon", -1.0), ("std_normalize", "yes")])
def test_advantage_bad_value(name, value):
    if name == "drop":
        with pytest.raises(AssertionError):
            UpstreamAdvantage(**{name: value})
    else:
        UpstreamAdvantage(**{name: value})  # taken
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}")):
        Advantage(**{name: value})


def test_advantage_float64():
    groups = [[1e8 + 1, 1e8 + 2, 1e8 + 3]]
    theirs, _ = UpstreamAdvantage().process(experiences(groups))
    assert [exp.advantages[0].item() for exp in theirs] != [-1, 0, 1], MOVED
    ours, _ = Advantage().process(experiences(groups))
    assert [exp.advantages[0].item() for exp in ours] == [-1, 0, 1]
    assert ours[0].advantages.dtype == theirs[0].advantages.dtype == torch.float32
