"""The gradient of every objective against the paper's formulas, written down here once more, token by token, in numpy.

`paper_form` follows sections 2 to 4 of arXiv 2509.24203 and shares no code with the package; it is slow on purpose.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from trinity_rec.objective import Objective
from trinity_rec.objective.average import LOSS_AGG_MODES
from trinity_rec.presets import PRESETS

# The modes of the paper and of upstream's `rec`; those of other papers have a form each in tests/conformance.
CLIP_MODES = ("none", "one-side", "two-side", "ring", "gspo-one-side")
WEIGHTS = ("none", "importance_sampling", "gspo_importance_sampling", "advantage")
REGULARIZERS = ("none", "k2", "k2-sequence", "forward-kl")

# A name for each distinct loss of the presets: those that differ in their advantage alone share one.
LOSSES = {tuple(sorted(preset.policy_loss.items())): name for name, preset in reversed(PRESETS.items())}.values()
PAPER = [name for name in LOSSES if PRESETS[name].family != "OFF"]

# The gradient is stored in the dtype of logprob: a half type is exact to one unit in its last place.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def kept(arguments, ratio, advantage):
    """M of section 2, for one token."""
    mode = arguments["clip_mode"]
    low, high = 1 - arguments["epsilon_low"], 1 + arguments["epsilon_high"]
    if mode == "none":
        return True
    if mode in ("one-side", "gspo-one-side"):
        return (advantage >= 0 and ratio <= high) or (advantage <= 0 and ratio >= low)
    band = low <= ratio <= high
    if mode == "two-side":
        return band
    return (
        band
        or (advantage >= 0 and ratio <= 1 - arguments["epsilon_low_prime"])
        or (advantage <= 0 and ratio >= 1 + arguments["epsilon_high_prime"])
    )


def paper_form(objective, logprob, old_logprob, mask, advantages, sample_weight=None):
    """The loss and its gradient with respect to logprob, in float64; [batch, response] arrays."""
    arguments = dict(objective)
    loss, gradient = 0.0, np.zeros(logprob.shape)
    for i in range(len(logprob)):
        tokens = np.flatnonzero(mask[i])
        log_rho = logprob[i, tokens] - old_logprob[i, tokens]
        sequence_ratio = np.exp(log_rho.mean()) if len(tokens) else 1.0
        for t, token_log_rho in zip(tokens, log_rho, strict=True):
            advantage, rho = advantages[i, t], np.exp(token_log_rho)
            weight = {
                "none": 1.0,
                "importance_sampling": rho,
                "gspo_importance_sampling": sequence_ratio,
                "advantage": math.exp(advantage / arguments["temp"]),
            }[arguments["weight"]]
            m = 1.0 * kept(arguments, sequence_ratio if arguments["clip_mode"] == "gspo-one-side" else rho, advantage)
            coef = arguments["regularizer_coef"]
            pull = {
                "none": 0.0,
                "k2": 2 * coef * token_log_rho,
                "k2-sequence": 2 * coef * log_rho.sum(),
                "forward-kl": -coef,
            }[arguments["regularizer"]]
            regulariser = {
                "none": 0.0,
                "k2": coef * token_log_rho**2,
                "k2-sequence": coef * log_rho.sum() * token_log_rho,  # a token's share of coef * (sum log rho)^2
                "forward-kl": -coef * logprob[i, t],
            }[arguments["regularizer"]]
            n = {
                "token-mean": 1 / max(np.count_nonzero(mask), 1),
                "seq-mean-token-sum": 1 / len(logprob),
                "seq-mean-token-mean": 1 / len(logprob) / len(tokens),
                "seq-mean-token-sum-norm": 1 / len(logprob) / (arguments["loss_scale_factor"] or np.nan),
            }[arguments["loss_agg_mode"]]
            n *= 1 if sample_weight is None else sample_weight[i]
            gradient[i, t] = n * (-m * weight * advantage + pull)
            loss += n * (-m * weight * advantage * logprob[i, t] + regulariser)
    return loss, gradient


def batch(seed, rows, length, *, spread=0.5, dtype=torch.float64, objective=None):
    """Random log-probabilities, ragged masks with holes and an empty row at times, one advantage a response."""
    rng = np.random.default_rng(seed)
    logprob = -rng.exponential(1.0, (rows, length))
    log_ratio = rng.normal(0, spread, (rows, length))
    mask = np.arange(length) < rng.integers(0, length + 1, (rows, 1))
    mask &= rng.random((rows, length)) < 0.9
    advantages = np.repeat(rng.choice([-1.5, -0.5, 0.0, 0.25, 2.0], (rows, 1)), length, 1)
    tensors = [torch.tensor(x, dtype=dtype) for x in (logprob, logprob - log_ratio, advantages)]
    return tensors[0], tensors[1], torch.tensor(mask), tensors[2]


def away_from_bounds(objective, data):
    """Whether rounding cannot decide M: no ratio within float32's error of a clip bound."""
    logprob, old_logprob, mask, _ = (x.double() for x in data)
    log_ratio = (logprob - old_logprob) * mask
    sequence = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    ratio = torch.cat([log_ratio, sequence], -1).exp()
    bounds = [
        1 - objective.epsilon_low,
        1 + objective.epsilon_high,
        1 - objective.epsilon_low_prime,
        1 + objective.epsilon_high_prime,
    ]
    return all((ratio - bound).abs().min() > 1e-5 for bound in bounds if ratio.numel())


def differentiate(objective, logprob, *rest, **normalisers):
    """Loss, gradient by autograd, metrics."""
    logprob = logprob.detach().clone().requires_grad_()
    loss, metrics = objective(logprob, *rest, **normalisers)
    loss.backward()
    return loss.item(), logprob.grad, metrics


def assert_is_paper_form(objective, data, sample_weight=None):
    shaped = [x.reshape(-1, x.shape[-1]).double().numpy() for x in data]
    weights = None if sample_weight is None else sample_weight.double().reshape(-1).numpy()
    expected_loss, expected = paper_form(objective, *shaped, sample_weight=weights)
    loss, gradient, _ = differentiate(objective, *data, sample_weight=sample_weight)
    dtype = data[0].dtype
    assert gradient.dtype == dtype and gradient.shape == data[0].shape
    smallest = torch.finfo(dtype).smallest_normal  # what lies below it is rounded away
    scale = np.abs(expected).max(initial=0)
    actual = gradient.double().reshape(expected.shape).numpy()
    if objective.regularizer == "k2-sequence":  # a sum over tokens, in which log ratios may cancel
        log_ratio = np.abs(np.where(shaped[2], shaped[0] - shaped[1], 0)).sum(-1)
        scale = max(scale, 2 * objective.regularizer_coef * log_ratio.max(initial=0))
    np.testing.assert_allclose(actual, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 0.1 * scale + smallest)
    precision = TOLERANCE[torch.float64 if dtype == torch.float64 else torch.float32]
    terms = np.abs(expected) @ np.abs(shaped[0]).T if expected.size else np.zeros(1)
    assert loss == pytest.approx(
        expected_loss, rel=10 * precision, abs=10 * precision * (terms.max() + scale) + smallest
    )


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", PAPER)
def test_each_preset_has_the_gradient_of_the_paper(name, dtype):
    objective = Objective(**PRESETS[name].policy_loss)
    checked = 0
    for seed in range(30):
        # The GSPO presets clip at 3e-4: without a small spread every response would be clipped.
        spread = (0.5, 1e-3, 3e-2)[seed % 3]
        data = batch(seed, rows=1 + seed % 5, length=1 + 7 * seed % 23, spread=spread, dtype=dtype)
        if away_from_bounds(objective, data):
            assert_is_paper_form(objective, data)
            one_response = [x[0] for x in data]
            assert_is_paper_form(objective, one_response)
            checked += 1
    assert checked >= 10


def test_presets_differ_in_gradient():
    stale, fresh = batch(1, rows=6, length=40, spread=0.5), batch(1, rows=6, length=40, spread=1e-3)
    left_behind, ahead = ((stale[0], stale[1] + shift, *stale[2:]) for shift in (1, -1))
    gradients = {}
    for preset in PRESETS.values():
        key = tuple(sorted(preset.policy_loss.items()))
        objective = Objective(**preset.policy_loss)
        gradients[key] = torch.stack(
            [differentiate(objective, *data)[1] for data in (stale, fresh, left_behind, ahead)]
        )
    distinct = list(gradients.values())
    assert len(distinct) == len(LOSSES) >= 12
    for i, one in enumerate(distinct):
        assert not any(torch.equal(one, other) for other in distinct[:i])


@st.composite
def objectives(draw):
    clip_mode = draw(st.sampled_from(CLIP_MODES))
    epsilon_low = draw(st.floats(1e-4, 1.0))
    epsilon_high = draw(st.floats(1e-4, 3.0))
    loss_agg_mode = draw(st.sampled_from((None, *LOSS_AGG_MODES)))
    factors = (7.0, 1024) if loss_agg_mode == "seq-mean-token-sum-norm" else (None, 7.0)
    return Objective(
        clip_mode=clip_mode,
        weight=draw(st.sampled_from(WEIGHTS)),
        regularizer=draw(st.sampled_from(REGULARIZERS)),
        regularizer_coef=draw(st.sampled_from((0.0, 1e-3, 0.1)) | st.floats(0.01, 2)),
        temp=draw(st.floats(0.3, 10)),
        epsilon_low=epsilon_low,
        epsilon_high=epsilon_high,
        epsilon_low_prime=draw(st.floats(epsilon_low, 1.0)),
        epsilon_high_prime=draw(st.floats(epsilon_high, 4.0)),
        loss_agg_mode=loss_agg_mode,
        loss_scale_factor=draw(st.sampled_from(factors)),
        metrics=draw(st.sampled_from(("basic", "full"))),
    )


@st.composite
def batches(draw):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=2, min_side=1, max_side=7))
    numbers = {
        "logprob": st.floats(-12, 0, width=32),
        "log_ratio": st.floats(-3, 3, width=32),
        "advantage": st.floats(-3, 3, width=32),
    }
    arrays = {name: draw(hnp.arrays(np.float64, shape, elements=numbers[name])) for name in numbers}
    mask = draw(hnp.arrays(np.bool_, shape))
    if draw(st.booleans()):  # the usual case: one advantage a response
        arrays["advantage"][...] = arrays["advantage"][..., :1]
    tensors = {name: torch.tensor(value) for name, value in arrays.items()}
    logprob = tensors["logprob"]
    return logprob, logprob - tensors["log_ratio"], torch.tensor(mask), tensors["advantage"]


@settings(max_examples=400, deadline=None)
@given(objectives(), batches(), st.sampled_from((torch.float64, torch.float32)), st.booleans())
def test_any_objective_on_any_batch_has_the_gradient_of_the_paper(objective, data, dtype, weighted):
    data = [x if x.dtype == torch.bool else x.to(dtype) for x in data]
    assume(away_from_bounds(objective, data))
    rows = data[0].shape[0] if data[0].dim() == 2 else 1
    sample_weight = torch.linspace(0.25, 2, rows, dtype=torch.float32) if weighted else None
    assert_is_paper_form(objective, data, sample_weight)


@pytest.mark.parametrize("ratio, advantage", [(1.0, 1), (0.5, -1), (2.0, 1), (0.25, 1), (4.0, -1)])
@pytest.mark.parametrize("clip_mode", [mode for mode in CLIP_MODES if mode != "none"])
def test_a_ratio_on_a_bound_is_kept(clip_mode, ratio, advantage):
    """The bounds of section 2 are inclusive; powers of two have exact logarithms to compare with."""
    objective = Objective(
        clip_mode=clip_mode, epsilon_low=0.5, epsilon_high=1.0, epsilon_low_prime=0.75, epsilon_high_prime=3.0
    )
    if clip_mode == "two-side" and not 0.5 <= ratio <= 2:
        return
    old = torch.zeros(1, dtype=torch.float64)
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64)
    kept_here = torch.tensor([True]), torch.tensor([float(advantage)], dtype=torch.float64)
    assert math.exp(math.log(ratio)) == ratio
    _, gradient, metrics = differentiate(objective, logprob, old, *kept_here)
    assert gradient.item() == -advantage
    assert metrics["pg_clipfrac"] == 0


@pytest.mark.parametrize("clip_mode", ["one-side", "gspo-one-side"])
def test_a_token_without_advantage_is_not_counted_as_clipped(clip_mode):
    data = batch(0, rows=4, length=16, spread=1.0)
    _, gradient, metrics = differentiate(Objective(clip_mode=clip_mode), *data[:3], torch.zeros_like(data[3]))
    assert metrics["pg_clipfrac"] == 0
    assert not gradient.any()


@pytest.mark.parametrize("metrics", ["basic", "full"])
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_what_is_masked_does_not_matter(name, garbage, metrics):
    objective = Objective(**PRESETS[name].policy_loss, metrics=metrics)
    logprob, old_logprob, mask, advantages = batch(5, rows=5, length=12, spread=0.05, dtype=torch.float32)
    clean = differentiate(objective, logprob, old_logprob, mask, advantages)
    dirty = [x.masked_fill(~mask, garbage) for x in (logprob, old_logprob, advantages)]
    loss, gradient, numbers = differentiate(objective, dirty[0], dirty[1], mask, dirty[2])
    assert loss == clean[0]
    assert torch.equal(gradient, clean[1])
    assert numbers == clean[2]
    assert not gradient[~mask].any()


@pytest.mark.parametrize("shape", [(3, 5), (5,), (0, 5), (3, 0), (0,)])
@pytest.mark.parametrize("name", LOSSES)
def test_without_tokens_everything_is_zero(name, shape):
    objective = Objective(**PRESETS[name].policy_loss, metrics="full")
    nothing = torch.full(shape, float("nan"))
    loss, gradient, metrics = differentiate(objective, nothing, nothing, torch.zeros(shape, dtype=torch.bool), nothing)
    assert loss == 0
    assert not gradient.any()
    assert all(value == 0 for name, value in metrics.items() if name != "masked_fraction")


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int32, torch.int64, torch.float32])
def test_the_dtype_of_the_mask_does_not_matter(mask_dtype):
    logprob, old_logprob, mask, advantages = batch(3, rows=3, length=9)
    objective = Objective(clip_mode="one-side", regularizer="k2", regularizer_coef=0.1)
    expected = differentiate(objective, logprob, old_logprob, mask, advantages)
    actual = differentiate(objective, logprob, old_logprob, mask.to(mask_dtype), advantages)
    assert actual[0] == expected[0] and torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("loss_agg_mode", LOSS_AGG_MODES)
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("off_m2po", "off_bapo", "off_p3o")])
def test_micro_batches_add_up_to_the_whole_batch(name, loss_agg_mode):
    """verl adds the gradients of micro-batches and averages over ranks, whatever the cut; for all rules but those that
    take a statistic of the batch, which is that of the call.
    """
    objective = Objective(**PRESETS[name].policy_loss | {"loss_agg_mode": loss_agg_mode, "loss_scale_factor": 30})
    whole = batch(11, rows=12, length=17, spread=0.02)
    loss, gradient, _ = differentiate(objective, *whole)
    tokens = int(whole[2].sum())
    for ranks in (1, 2, 3):
        share = 12 // ranks
        total_loss, total = 0.0, torch.zeros_like(gradient)
        for rank in range(ranks):
            for start in range(rank * share, (rank + 1) * share, 2):
                rows = slice(start, start + 2)
                # A micro-batch is padded to its own longest response only.
                length = max(1, int(whole[2][rows].any(0).nonzero().max()) + 1 if whole[2][rows].any() else 1)
                part = differentiate(
                    objective,
                    *(x[rows, :length] for x in whole),
                    batch_num_tokens=tokens,
                    global_batch_size=12,
                    dp_size=ranks,
                )
                total_loss += part[0] / ranks
                total[rows, :length] += part[1] / ranks
        torch.testing.assert_close(total, gradient, rtol=1e-12, atol=1e-15)
        assert total_loss == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("loss_agg_mode", LOSS_AGG_MODES)
def test_single_responses_averaged_add_up_to_the_whole_batch(loss_agg_mode):
    """Trinity's Tinker trainer averages the losses of [response] tensors."""
    objective = Objective(
        clip_mode="ring", weight="importance_sampling", loss_agg_mode=loss_agg_mode, loss_scale_factor=30
    )
    whole = batch(12, rows=6, length=17)
    _, gradient, _ = differentiate(objective, *whole)
    tokens = torch.tensor(float(whole[2].sum()))
    rows = [
        differentiate(objective, *(x[i] for x in whole), batch_num_tokens=tokens, global_batch_size=6.0, dp_size=6.0)[1]
        for i in range(6)
    ]
    torch.testing.assert_close(torch.stack(rows) / 6, gradient, rtol=1e-12, atol=1e-15)


def test_large_batches_are_the_sum_of_small_ones():
    """Blocks of rows are an implementation detail: one row at a time gives the same numbers."""
    objective = Objective(clip_mode="one-side", weight="importance_sampling", metrics="full")
    whole = batch(13, rows=9, length=20_001, spread=0.3)
    loss, gradient, metrics = differentiate(objective, *whole)
    tokens = int(whole[2].sum())
    rows = [differentiate(objective, *(x[i] for x in whole), batch_num_tokens=tokens) for i in range(9)]
    torch.testing.assert_close(torch.stack([row[1] for row in rows]), gradient, rtol=1e-12, atol=0)
    assert sum(row[0] for row in rows) == pytest.approx(loss, rel=1e-12)
    assert max(row[2]["ratio_max"] for row in rows) == pytest.approx(metrics["ratio_max"])


def test_the_gradient_scales_with_what_comes_after_the_loss():
    data = batch(2, rows=3, length=8)
    logprob = data[0].clone().requires_grad_()
    loss, _ = Objective()(logprob, *data[1:])
    (3 * loss).backward()
    torch.testing.assert_close(logprob.grad, 3 * differentiate(Objective(), *data)[1])
    with pytest.raises(RuntimeError):
        loss.backward()


def test_no_gradient_is_made_where_none_is_asked_for():
    data = batch(2, rows=3, length=8)
    loss, _ = Objective()(*data)
    assert not loss.requires_grad
    assert loss.item() == differentiate(Objective(), *data)[0]
    assert not any(x.requires_grad for x in data)


def test_inputs_are_left_as_they_were():
    data = batch(2, rows=3, length=8)
    before = [x.clone() for x in data]
    differentiate(Objective(clip_mode="ring", weight="importance_sampling", metrics="full"), *data)
    assert all(torch.equal(x, y) for x, y in zip(data, before, strict=True))


def test_full_metrics_are_what_their_names_say():
    objective = Objective(clip_mode="one-side", regularizer="k2", regularizer_coef=0.3, metrics="full")
    logprob, old_logprob, mask, advantages = batch(21, rows=7, length=30, spread=0.4)
    loss, _, metrics = differentiate(objective, logprob, old_logprob, mask, advantages)
    log_ratio = (logprob - old_logprob)[mask].numpy()
    ratio, a = np.exp(log_ratio), advantages[mask].numpy()
    clipped = ((a > 0) & (ratio > 1.2)) | ((a < 0) & (ratio < 0.8))
    regulariser = 0.3 * np.mean(log_ratio**2)
    policy = loss - regulariser
    expected = {
        "pg_loss": policy,
        "regularizer_loss": regulariser,
        "pg_clipfrac": clipped.mean(),
        "pg_clipfrac_positive": clipped[a > 0].mean(),
        "pg_clipfrac_negative": clipped[a < 0].mean(),
        "kl_k1": -log_ratio.mean(),
        "kl_k3": (ratio - 1 - log_ratio).mean(),
        "ratio_mean": ratio.mean(),
        "ratio_max": ratio.max(),
        "effective_sample_size": ratio.sum() ** 2 / (ratio**2).sum() / len(ratio),
        "advantage_mean": a.mean(),
        "regularizer_share": regulariser / (abs(policy) + regulariser),
        "masked_fraction": 1 - mask.any(-1).double().mean().item(),
    }
    assert metrics == pytest.approx(expected, rel=1e-9)
    basic = differentiate(Objective(**{**dict(objective), "metrics": "basic"}), logprob, old_logprob, mask, advantages)
    assert basic[2] == pytest.approx({name: expected[name] for name in basic[2]})
    assert set(basic[2]) == {"pg_loss", "pg_clipfrac", "kl_k1", "regularizer_loss"}
