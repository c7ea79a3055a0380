"""A user's own rules by dotted path: they train what they say, and a wrong one is refused in one line."""

import pytest
import torch

from trinity_rec.objective import Objective
from trinity_rec.objective.rules import formula

OWN = "tests.own_rules."


def batch():
    generator = torch.Generator().manual_seed(0)
    logprob = -torch.rand(4, 6, generator=generator).double()
    old = logprob + 0.4 * torch.randn(4, 6, generator=generator).double()
    mask = torch.rand(4, 6, generator=generator) < 0.7
    advantages = torch.tensor([1.0, -1.0, 0.5, 0.0]).double()[:, None].expand(4, 6)
    return logprob, old.masked_fill(~mask, float("nan")), mask, advantages


def gradient(objective, logprob, *rest):
    logprob = logprob.clone().requires_grad_()
    loss, metrics = objective(logprob, *rest)
    loss.backward()
    return logprob.grad, metrics


def expected(factor, pull=lambda log_ratio: 0 * log_ratio):
    logprob, old, mask, advantages = batch()
    log_ratio = torch.where(mask, logprob - old, 0.0)
    return torch.where(mask, -factor(log_ratio) * advantages + pull(log_ratio), 0.0) / mask.sum()


def test_a_clip_rule_a_weight_and_a_regularizer_of_ones_own_train_what_they_say():
    found, _ = gradient(Objective(clip_mode=OWN + "soft_clip", softness=2.0), *batch())
    torch.testing.assert_close(found, expected(lambda x: 1 / (1 + 2 * x**2)))
    found, _ = gradient(Objective(weight=OWN + "cubed", scale=0.5), *batch())
    torch.testing.assert_close(found, expected(lambda x: 0.5 * (3 * x).exp()))
    found, metrics = gradient(Objective(regularizer=OWN + "pull"), *batch())
    torch.testing.assert_close(found, expected(torch.ones_like, lambda x: 0.5 * x))
    assert metrics["regularizer_loss"] > 0


def test_they_go_with_the_rules_of_this_package():
    both = Objective(clip_mode="one-side", weight=OWN + "cubed", scale=1.0, epsilon_high=0.1)
    plain = Objective(clip_mode="one-side", epsilon_high=0.1)
    logprob, old, mask, _ = batch()
    log_ratio = torch.where(mask, logprob - old, 0.0)
    torch.testing.assert_close(gradient(both, *batch())[0], gradient(plain, *batch())[0] * (3 * log_ratio).exp())


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"clip_mode": "no_such_package.rule"}, "clip_mode='no_such_package.rule' cannot be imported: ModuleNotFound"),
        ({"clip_mode": OWN + "nothing"}, "cannot be imported: AttributeError"),
        ({"weight": OWN + "cubed"}, "weight='tests.own_rules.cubed' needs an argument scale"),
        ({"weight": OWN + "cubed", "scale": "big"}, "scale='big' is not a finite number"),
        ({"clip_mode": OWN + "of_another_shape"}, r"returns \[\] where the tokens are \[3, 4\]"),
        ({"clip_mode": OWN + "not_finite"}, "clip_mode='tests.own_rules.not_finite' returns"),
        ({"weight": OWN + "raising"}, "weight='tests.own_rules.raising' raises KeyError: 'threshold'"),
        ({"weight": OWN + "with_anything"}, r"takes \*\*others"),
        ({"regularizer": OWN + "cubed", "scale": 1.0}, "returns 1 values in place of the penalty and its derivative"),
        ({"loss_agg_mode": OWN + "soft_clip"}, "loss_agg_mode=.* is not one of token-mean"),
    ],
)
def test_a_wrong_rule_is_refused_when_the_objective_is_made(arguments, words):
    with pytest.raises((ValueError, FloatingPointError), match=words) as error:
        Objective(**arguments)
    assert "\n" not in str(error.value)


def test_an_argument_that_no_rule_has_is_unknown():
    with pytest.raises(TypeError, match="unknown argument 'softness'"):
        Objective(softness=2.0)


def test_its_arguments_are_read_and_its_formula_is_its_name():
    args = {"clip_mode": OWN + "soft_clip", "softness": 2.0, "epsilon_low": 0.2}
    assert Objective.is_read("softness", args) and not Objective.is_read("epsilon_low", args)
    assert Objective.own_arguments(args) == ["softness"]
    assert formula("clip_mode", OWN + "soft_clip") == OWN + "soft_clip"
