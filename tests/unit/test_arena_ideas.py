"""The rules that were tried in the arena (docs/arena/ideas): each does what its docstring says, and is an algorithm."""

from pathlib import Path

import numpy as np
import pytest
import torch

from trinity_rec.lab.arena.own import variant_of
from trinity_rec.lab.training import objective_of
from trinity_rec.objective.tokens import Tokens

IDEAS = Path(__file__).parents[2] / "docs" / "arena" / "ideas"
YAMLS = sorted(IDEAS.glob("*.yaml"))
PENALTIES = ("aim", "response_aim")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(IDEAS)


def rule_of(path):
    """The weight or mask, or the derivative of the penalty."""
    import ideas

    def call(x):
        found = getattr(ideas, path.stem)(x)
        return found[1] if path.stem in PENALTIES else found

    return call


def tokens(log_ratio, advantages, mask=None):
    log_ratio = torch.tensor(log_ratio, dtype=torch.float64)
    mask = torch.ones(log_ratio.shape, dtype=torch.bool) if mask is None else mask
    old = torch.full_like(log_ratio, -1.0)
    return Tokens(old + log_ratio, old, mask, torch.tensor(advantages, dtype=torch.float64).expand(log_ratio.shape))


LOG_RATIO = [[0.3, -0.2, 0.0, 0.9], [-0.5, 0.1, -1.2, 0.4]]
ADVANTAGES = [[1.0], [-0.5]]
PUSHED = np.array([[0.3, 0, 0, 0.9], [0.5, 0, 1.2, 0]])
DRIFT = float(np.sqrt(np.mean(np.square(LOG_RATIO))))
RATIO = np.exp(LOG_RATIO)
EXPECTED = {
    "taper": np.exp(-PUSHED),
    "response_taper": np.exp(-np.array([[1.0], [1.2]])),
    "relative_taper": np.exp(-PUSHED / DRIFT),
    "relative_range": (PUSHED <= DRIFT).astype(float),
    "budget": np.where(PUSHED > 0, max(0, 1 - DRIFT**2 / 0.04), 1),
    "relative_topr_both": np.exp(-PUSHED / DRIFT) * np.array([[1.0], [np.exp(-1.2)]]),
    "relative_topr": np.array([np.ones(4), np.exp(-1.2 - PUSHED[1] / DRIFT)]),
    "aim": np.abs(ADVANTAGES) * LOG_RATIO,
    "response_aim": np.abs(ADVANTAGES) * np.array([[1.0], [-1.2]]),
    "sample_size": RATIO.sum() ** 2 / (RATIO.size * np.square(RATIO).sum()) * np.minimum(RATIO, 1),
}


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_rule_is_its_formula_and_ignores_padding(path):
    rule = rule_of(path)
    expected = np.broadcast_to(EXPECTED[path.stem], (2, 4))
    np.testing.assert_allclose(rule(tokens(LOG_RATIO, ADVANTAGES)).numpy(), expected, rtol=1e-12)
    padded = [[*row, 7.0, -7.0] for row in LOG_RATIO]
    mask = torch.tensor([[True] * 4 + [False] * 2] * 2)
    np.testing.assert_allclose(rule(tokens(padded, ADVANTAGES, mask)).numpy()[:, :4], expected, rtol=1e-12)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_on_policy_a_rule_is_reinforce(path):
    """Also where sampler and trainer differ by rounding."""
    noise = 1e-6 * torch.linspace(-1, 1, 8, dtype=torch.float64).view(2, 4)
    for log_ratio in (torch.zeros(2, 4), noise):
        kept = rule_of(path)(tokens(log_ratio.tolist(), ADVANTAGES))
        if path.stem == "relative_range":  # the range is as narrow as the noise
            kept = kept.maximum((log_ratio != 0).double())
        expected = 0 if path.stem in PENALTIES else 1
        np.testing.assert_allclose(kept.expand(2, 4).numpy(), expected, atol=2e-3)


@pytest.mark.parametrize("name", PENALTIES)
def test_what_a_penalty_returns_is_its_derivative(name):
    import ideas

    x = tokens(LOG_RATIO, ADVANTAGES)
    logprob = x.logprob.clone().requires_grad_()
    held = Tokens(logprob, x.old_logprob, x.mask.bool(), x.advantages)
    penalty, derivative = getattr(ideas, name)(held)
    (found,) = torch.autograd.grad(penalty.sum(), logprob)
    np.testing.assert_allclose(found.numpy(), derivative.detach().expand(2, 4).numpy(), rtol=1e-12)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_a_yaml_is_an_algorithm_of_the_arena(path):
    variant = variant_of(path)
    assert variant.name == path.stem and variant.preset == "rec"
    loss, metrics = objective_of(variant)(
        torch.full((2, 3), -1.0, requires_grad=True), torch.full((2, 3), -1.2), torch.ones(2, 3, dtype=torch.bool),
        torch.tensor([[1.0], [-1.0]]).expand(2, 3),
    )  # fmt: skip
    assert torch.isfinite(loss) and np.isfinite(metrics["kl_k3"])


def test_every_rule_that_has_a_formula_has_a_yaml():
    assert {path.stem for path in YAMLS} == set(EXPECTED)
