"""Every `off_*` preset against numpy forms of the same papers, against verl's losses, and against published surrogates.

The gradient compared is that of the ascended objective with respect to each log-probability, the average included.
"""

import math

import numpy as np
import pytest
import torch

from tests.conformance.corrections_numpy import FORMS, Batch
from tests.conformance.verl_losses import reinforce, verl_loss
from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS

OFF = sorted(name for name in PRESETS if name.startswith("off_"))

# How far log rho strays: nearly on-policy (where sequence clips of 1e-3 act), stale, and far beyond every threshold.
DRIFTS = {"near": 2e-3, "stale": 0.3, "far": 4.0}


def batch(
    seed: int, drift: float, rows: int = 7, length: int = 12, padding: float = math.nan
) -> dict[str, torch.Tensor]:
    """Responses of 0, 1, 2 ... tokens with holes, A of both signs and 0, float64; padding is not a number."""
    generator = np.random.default_rng(seed)
    lengths = np.array([0, 1, 2, *generator.integers(3, length + 1, rows - 3)])
    mask = (np.arange(length) < lengths[:, None]) & ((generator.random((rows, length)) < 0.85) | (lengths < 3)[:, None])
    old_logprob = -generator.exponential(1.5, (rows, length))
    steps = generator.standard_t(3, (rows, length)) * drift
    logprob = np.minimum(old_logprob + steps, -1e-4)
    if seed % 2:  # ratios as far above 1 as they are below it elsewhere
        logprob, old_logprob = old_logprob, logprob
    signs = generator.permutation([0.0, 1.0, -1.0, *generator.choice([-1.0, 1.0], rows - 3)])
    advantages = np.repeat((signs * generator.uniform(0.2, 2, rows))[:, None], length, axis=1)
    tensors = {"logprob": logprob, "old_logprob": old_logprob, "advantages": advantages}
    return {
        **{name: torch.from_numpy(np.where(mask, x, padding)) for name, x in tensors.items()},
        "mask": torch.from_numpy(mask),
    }


def ascent(loss, data: dict[str, torch.Tensor]) -> np.ndarray:
    """The negated gradient of `loss(**data)` with respect to `logprob`."""
    logprob = data["logprob"].clone().requires_grad_()
    loss(**{**data, "logprob": logprob}).backward()
    return -logprob.grad.numpy()


def of_preset(name: str, data: dict[str, torch.Tensor], **overridden) -> np.ndarray:
    objective = Objective(**{**PRESETS[name].policy_loss, **overridden})
    return ascent(lambda **given: objective(**given)[0], data)


def of_form(name: str, data: dict[str, torch.Tensor], **thresholds) -> np.ndarray:
    return FORMS[name](
        Batch.of(*(data[x].numpy() for x in ("logprob", "old_logprob", "mask", "advantages"))), **thresholds
    )


def test_every_preset_of_the_family_has_a_form():
    assert sorted(FORMS) == OFF and len(OFF) == 21


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("name", OFF)
def test_gradient_is_that_of_the_numpy_form(name, drift):
    for seed in range(8):
        data = batch(seed, DRIFTS[drift])
        np.testing.assert_allclose(of_preset(name, data), of_form(name, data), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", OFF)
def test_float32_loses_no_more_than_its_digits(name):
    """Products of ratios beyond 2^24, where 1 + W is W, included."""
    for seed in range(8):
        data = {x: t.float() if t.is_floating_point() else t for x, t in batch(seed, DRIFTS["far"], length=40).items()}
        np.testing.assert_allclose(of_preset(name, data), of_form(name, data), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OFF)
def test_the_comparison_sees_the_method(name):
    """On some of the batches compared, the method is not the plain policy gradient with its average."""
    plain = {
        "off_dapo": {"low": 1.0, "high": math.inf},
        "off_dual_clip": {"c": math.inf},
        "off_opsm": {"delta": math.inf},
        "off_bapo": {"share": 0.0},
        "off_m2po": {"threshold": math.inf},
        "off_icepop": {"lower": 0.0, "upper": math.inf},
        "off_dppo_tv": {"low": 1.0, "high": 1.0},
        "off_ipo": {"low": 1.0, "high": 1.0},
    }.get(name)
    seen = 0
    for drift in DRIFTS.values():
        for seed in range(8):
            data = batch(seed, drift)
            ours = of_form(name, data)
            without = of_form(name, data, **plain) if plain else of_form("off_tis", data, cap=math.inf)
            seen += not np.allclose(ours, without, rtol=1e-6, atol=1e-9)
    assert seen >= 3


@pytest.mark.parametrize("name", OFF)
def test_ratios_that_no_number_holds_give_no_infinity(name):
    """At log rho = +-800, beyond float64's exp: what a method does not bound is capped at e^80."""
    old = torch.full((2, 2), -800.0, dtype=torch.float64)
    new = torch.full((2, 2), -0.1, dtype=torch.float64)
    for logprob, old_logprob in ((new, old), (old, new)):
        data = {
            "logprob": logprob,
            "old_logprob": old_logprob,
            "mask": torch.ones(2, 2, dtype=torch.bool),
            "advantages": torch.tensor([[1.0, 1.0], [-1.0, -1.0]], dtype=torch.float64),
        }
        assert np.isfinite(of_preset(name, data)).all()


def test_the_effective_sample_size_has_no_scale():
    """Ratios so small that their squares are 0, beside padding, whose log rho of 0 is no ratio."""
    data = batch(1, 0.5)
    data["logprob"] = data["logprob"] - 400
    np.testing.assert_allclose(of_preset("off_p3o", data), of_form("off_p3o", data), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", OFF)
def test_on_policy_every_method_is_reinforce(name):
    """At rho = 1 nothing is clipped or weighed: A times the method's average."""
    data = batch(0, 0.0, padding=0.0)
    data["logprob"] = data["old_logprob"].clone()
    weighed = Batch.of(*(data[x].numpy() for x in ("logprob", "old_logprob", "mask", "advantages")))
    averages = {
        "off_sapo": weighed.sequence_mean_of_token_mean,
        "off_gmpo": weighed.sequence_mean_of_token_mean,
        "off_luspo": weighed.sequence_mean_of_token_sum,
    }
    expected = averages.get(name, weighed.token_mean)([r.advantages for r in weighed.responses])
    np.testing.assert_allclose(of_preset(name, data), expected, rtol=1e-10, atol=1e-13)


# verl, where the installed one has the loss.


NEVER = 1e9  # a dual clip or a cap that never acts

IN_VERL = {
    "off_dapo": verl_loss("vanilla", clip_ratio_low=0.2, clip_ratio_high=0.28, clip_ratio_c=NEVER),
    "off_dual_clip": verl_loss("vanilla", clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0),
    "off_tis": reinforce(rollout_is="token", rollout_is_threshold=2.0),
    "off_icepop": reinforce(rollout_is="token", rollout_is_threshold="0.5_5.0"),
    "off_cispo": verl_loss("cispo", clip_ratio_low=1.0, clip_ratio_high=0.28),
    "off_sapo": verl_loss("sapo", tau_pos=1.0, tau_neg=1.05),
    "off_dppo_tv": verl_loss("dppo_tv", clip_ratio_low=0.15, clip_ratio_high=0.15, clip_ratio_c=20.0),
    "off_gmpo": verl_loss("geo_mean", clip_ratio_low=0.4, clip_ratio_high=0.4),
    "off_seq_tis": reinforce(rollout_is="sequence", rollout_is_threshold=2.0),
    "off_seq_mis": reinforce(rollout_is=None, rollout_rs="seq_sum_k1", rollout_rs_threshold="0.5_2.0"),
    "off_geo_rs": reinforce(rollout_is=None, rollout_rs="seq_mean_k1", rollout_rs_threshold="0.999_1.001"),
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("name", sorted(IN_VERL))
def test_gradient_is_that_of_verl(name, drift):
    """verl adds 1e-8 to a length and keeps log rho and log W within +-20, hence the tolerances."""
    for seed in range(8):
        data = batch(seed, DRIFTS[drift], padding=0.0)
        data["logprob"] = data["logprob"].clamp(data["old_logprob"] - 15, data["old_logprob"] + 15)
        np.testing.assert_allclose(of_preset(name, data), ascent(IN_VERL[name], data), rtol=1e-6, atol=1e-9)


def test_luspo_is_verls_gspo_times_the_length():
    for seed in range(8):
        data = batch(seed, DRIFTS["near"], padding=0.0)
        gspo = ascent(verl_loss("gspo", clip_ratio_low=3e-4, clip_ratio_high=4e-4), data)
        lengths = data["mask"].sum(1, keepdim=True).numpy()
        np.testing.assert_allclose(of_preset("off_luspo", data), gspo * lengths, rtol=1e-6, atol=1e-12)


# The objectives as published, differentiated by autograd: each is what is ascended, for responses without padding.


def token_mean(objective, mask):
    return -(objective * mask).sum() / mask.sum()


def response_mean(objective, mask):
    return -((objective * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()


def of_response(a, m):
    """A of a response, which is the same on each of its tokens."""
    return (a * m).sum(1) / m.sum(1).clamp(min=1)


def clipped(ratio, advantages, low, high):
    """PPO's term."""
    return torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)


def dapo(rho, a, m, **_):
    return token_mean(clipped(rho, a, 0.2, 0.28), m)


def dual_clip(rho, a, m, **_):
    term = clipped(rho, a, 0.2, 0.2)
    return token_mean(torch.where(a < 0, torch.maximum(term, 3 * a), term), m)


def tis(rho, a, m, **_):
    """min(rho, C) as a weight is the derivative of rho below the cap, and of C log rho above it."""
    return token_mean(torch.where(rho <= 2, rho, 2 * rho.log()) * a, m)


def icepop(rho, a, m, **_):
    return token_mean(torch.where((rho >= 0.5) & (rho <= 5), rho, 0.0) * a, m)


def cispo(rho, a, m, logprob, **_):
    return token_mean(rho.clamp(0, 1.28).detach() * a * logprob, m)


def sapo(rho, a, m, **_):
    tau = 1 + 0.05 * (a <= 0).to(a.dtype)
    return response_mean(4 / tau * torch.sigmoid(tau * (rho - 1)) * a, m)


def aspo(rho, a, m, logprob, **_):
    """The ratio of A > 0 turned over, PPO's clip, and the cap as a constant weight beyond it."""
    turned = rho / rho.detach() ** 2
    positive = torch.where(turned.detach() > 3, 3 * logprob, torch.where(rho > 1.2, 0.0, turned))
    negative = torch.where(rho.detach() > 3, 3 * logprob, rho.clamp(min=0.8))
    return token_mean(torch.where(a > 0, positive, negative) * a, m)


def dppo_tv(rho, a, m, logprob, old_logprob):
    change = (logprob.exp() - old_logprob.exp()).detach()
    kept = torch.where(a > 0, change <= 0.15, change >= -0.15)
    return token_mean(torch.where(rho <= 20, rho, 20 * rho.log()) * kept * a, m)


def ipo(rho, a, m, logprob, old_logprob):
    kept = (logprob.exp() - old_logprob.exp()).detach().abs() <= 0.2
    return token_mean(rho * a * kept - 1e-3 * rho.log() ** 2, m)


def gmpo(rho, a, m, **_):
    log_rho, sign = rho.log(), a.sign()
    least = sign * torch.minimum(sign * log_rho, sign * log_rho.clamp(-0.4, 0.4))
    mean = (least * m).sum(1) / m.sum(1).clamp(min=1)
    return -(mean.exp() * of_response(a, m)).mean()


def luspo(rho, a, m, **_):
    lengths = m.sum(1)
    s = ((rho.log() * m).sum(1) / lengths.clamp(min=1)).exp()
    return -(clipped(s, of_response(a, m), 3e-4, 4e-4) * lengths).mean()


def of_product(kernel):
    """A function of W whose derivative by log W weighs every token of a response."""

    def loss(rho, a, m, **_):
        a = of_response(a, m)
        return -(kernel((rho.log() * m).sum(1), a) * a).sum() / m.sum()

    return loss


def seq_tis(log_w, a):
    return torch.where(log_w <= math.log(2), log_w.exp(), 2 * log_w)


def topr(log_w, a):
    """log W for what is pushed up; for what is pushed down W to 1, then log W."""
    return torch.where(a < 0, torch.where(log_w <= 0, log_w.exp(), log_w), log_w)


def vespo(log_w, a):
    """The integral of e^lambda W^(k-1) e^(-lambda W): an incomplete gamma function."""

    def integral(k, lamb):
        scale = math.exp(lamb) * math.gamma(k) / lamb**k
        return scale * torch.special.gammainc(torch.tensor(k, dtype=log_w.dtype), lamb * log_w.exp())

    return torch.where(a < 0, integral(3.0, 2.0), integral(2.0, 3.0))


def opsm(rho, a, m, **_):
    drift = -(rho.log() * m).sum(1, keepdim=True) / m.sum(1, keepdim=True).clamp(min=1)
    kept = ((a >= 0) | (drift <= 0.5)).detach()
    return token_mean(clipped(rho, a, 0.2, 0.2) * kept, m)


def p3o(rho, a, m, logprob, **_):
    w = rho.detach()[m.bool()]
    size = w.sum() ** 2 / (len(w) * (w**2).sum())
    return token_mean(rho.detach().clamp(max=size) * a * logprob + (1 - size) * logprob, m)


SURROGATES = {
    "off_dapo": dapo,
    "off_dual_clip": dual_clip,
    "off_tis": tis,
    "off_icepop": icepop,
    "off_cispo": cispo,
    "off_sapo": sapo,
    "off_aspo": aspo,
    "off_dppo_tv": dppo_tv,
    "off_ipo": ipo,
    "off_gmpo": gmpo,
    "off_luspo": luspo,
    "off_seq_tis": of_product(seq_tis),
    "off_topr": of_product(topr),
    "off_vespo": of_product(vespo),
    "off_opsm": opsm,
    "off_p3o": p3o,
}


@pytest.mark.parametrize("drift", DRIFTS)
@pytest.mark.parametrize("name", sorted(SURROGATES))
def test_gradient_is_that_of_the_published_surrogate(name, drift):
    def loss(logprob, old_logprob, mask, advantages):
        rho = (logprob - old_logprob).exp()
        return SURROGATES[name](rho, advantages, mask.to(rho.dtype), logprob=logprob, old_logprob=old_logprob)

    for seed in range(8):
        data = batch(seed, DRIFTS[drift], padding=0.0)
        expected = np.where(data["mask"].numpy(), ascent(loss, data), 0.0)
        np.testing.assert_allclose(of_preset(name, data), expected, rtol=1e-9, atol=1e-12)
