"""Tinker's own losses on the server: value and gradient are those of the formula, differentiated by autograd."""

import pytest
import torch

from tests.tiny_model import VOCABULARY, make_tiny_model

pytest.importorskip("tinker", reason="the Tinker SDK needs Python 3.11")

from trinity_rec.tinker_local.errors import RequestError
from trinity_rec.tinker_local.losses import LOSSES, settings, weighted
from trinity_rec.tinker_local.model import load
from trinity_rec.tinker_local.stats import Stats
from trinity_rec.tinker_local.training import Datum, TrainingRun

LOW, HIGH, BETA = 0.7, 1.4, 0.3
CONFIG = {
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": LOW, "clip_high_threshold": HIGH},
    "cispo": {"clip_low_threshold": LOW, "clip_high_threshold": HIGH},
    "dro": {"beta": BETA},
}


def formula(name: str, logprob, old, advantage):
    """As a client would write it for forward_backward_custom."""
    ratio = (logprob - old).exp()
    if name == "importance_sampling":
        return -(ratio * advantage).sum()
    if name == "ppo":
        return -torch.min(ratio * advantage, ratio.clamp(LOW, HIGH) * advantage).sum()
    if name == "cispo":
        return -(ratio.clamp(LOW, HIGH).detach() * logprob * advantage).sum()
    return -(logprob * advantage - 0.5 * BETA * (logprob - old) ** 2).sum()


def batch_of(logprobs, generator) -> list[Datum]:
    """Sequences whose old logprobs lie around the given ones, within and beyond the clip range, both ways."""
    rows = []
    for row in logprobs:
        old = row - torch.randn(len(row), generator=generator) * 0.5
        advantages = torch.randn(len(row), generator=generator)
        advantages[: len(row) // 3] = 0
        rows.append(Datum(torch.arange(len(row)), torch.arange(len(row)), advantages, old, advantages))
    return rows


@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient_are_those_of_the_formula(name):
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logprobs = [-torch.rand(size, generator=generator) * 3 for size in (7, 1, 30, 12)]
        batch = batch_of(logprobs, generator)
        rows, value = weighted(name, settings(name, CONFIG[name]), batch, [row.clone() for row in logprobs])
        total = 0.0
        for datum, row, ours in zip(batch, logprobs, rows, strict=True):
            exact = row.double().requires_grad_()
            loss = formula(name, exact, datum.old_logprobs.double(), datum.advantages.double())
            loss.backward()
            total += loss.item()
            torch.testing.assert_close(ours.weights.double(), -exact.grad, atol=1e-6, rtol=1e-6)
        assert value == pytest.approx(total, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_by_the_server_is_the_step_of_the_client_s_own_loss(name, tmp_path):
    served = load(make_tiny_model(tmp_path), "cpu")
    generator = torch.Generator().manual_seed(1)
    plain = []
    for size in (20, 9, 14):
        tokens = torch.randint(3, VOCABULARY, (size + 1,), generator=generator)
        advantages = torch.randn(size, generator=generator)
        advantages[: size // 3] = 0
        wanted = torch.ones(size) if LOSSES[name].everywhere else (advantages != 0).float()
        plain.append(Datum(tokens[:-1], tokens[1:], wanted, torch.zeros(size), advantages))
    server, client = (TrainingRun(served.copy(), 1e12, Stats()) for _ in range(2))
    batch = []
    for datum, row in zip(plain, server.forward(plain), strict=True):
        old = row - torch.randn(len(row), generator=generator) * 0.3
        batch.append(Datum(datum.tokens, datum.targets, datum.weights, old, datum.advantages))
    rows, _ = weighted(name, settings(name, CONFIG[name]), batch, server.forward(batch))
    server.forward_backward(rows)

    # What the SDK's forward_backward_custom does: logprobs, the loss in Python, weights = -gradient, and back.
    logprobs = [row.requires_grad_() for row in client.forward(batch)]
    terms = [
        formula(
            name, row[datum.weights != 0], datum.old_logprobs[datum.weights != 0], datum.advantages[datum.weights != 0]
        )
        for row, datum in zip(logprobs, batch, strict=True)
    ]
    torch.stack(terms).sum().backward()
    client.forward_backward(
        [Datum(datum.tokens, datum.targets, -row.grad) for datum, row in zip(batch, logprobs, strict=True)]
    )
    for ours, theirs in zip(server.model.parameters(), client.model.parameters(), strict=True):
        largest = theirs.grad.abs().max()
        assert largest > 0 and (ours.grad - theirs.grad).abs().max() <= 1e-6 * largest


@pytest.mark.parametrize(
    "name, config",
    [
        ("importance_sampling", {"beta": 1.0}),
        ("ppo", {"clip_low_threshold": -0.1}),
        ("ppo", {"clip_high_threshold": 1.0}),
        ("cispo", {"clip_low_threshold": float("nan")}),
        ("cispo", {"clip_high_threshold": float("inf")}),
        ("dro", {"beta": -1.0}),
        ("dro", {"x" * 1000: 1.0}),
    ],
)
def test_settings_that_are_none_get_a_reason(name, config):
    with pytest.raises(RequestError, match="loss_fn_config") as refused:
        settings(name, config)
    assert len(refused.value.reason) < 200


def test_a_loss_that_is_not_finite_is_the_client_s_mistake():
    row = torch.tensor([-1.0, -1.0])
    datum = Datum(torch.arange(2), torch.arange(2), torch.ones(2), row - 200, torch.full((2,), 3e38))
    with pytest.raises(RequestError, match="importance_sampling"):
        weighted("importance_sampling", {}, [datum], [row])
