"""A wrong argument is refused when the objective is made, by name, value and what is allowed."""

import math

import pytest
import torch

from trinity_rec.objective import Objective


@pytest.mark.parametrize(
    "arguments, parts",
    [
        ({"clip_mode": "oneside"}, ["clip_mode='oneside'", "one-side", "ring"]),
        ({"weight": None}, ["weight=None", "importance_sampling"]),
        ({"regularizer": "k3"}, ["regularizer='k3'", "k2-sequence", "forward-kl"]),
        ({"loss_agg_mode": "mean"}, ["loss_agg_mode='mean'", "token-mean", "seq-mean-token-sum-norm"]),
        ({"metrics": "all"}, ["metrics='all'", "basic", "full"]),
        ({"regularizer_coef": -0.1}, ["regularizer_coef=-0.1", "negative"]),
        ({"temp": 0}, ["temp=0", "greater than 0"]),
        ({"temp": float("nan")}, ["temp=nan", "finite number"]),
        ({"epsilon_low": 0}, ["epsilon_low=0", "(0, 1]"]),
        ({"epsilon_low": 1.5}, ["epsilon_low=1.5", "(0, 1]"]),
        ({"epsilon_low_prime": -0.5}, ["epsilon_low_prime=-0.5", "(0, 1]"]),
        ({"epsilon_high": 0.0}, ["epsilon_high=0.0", "greater than 0"]),
        ({"epsilon_high": math.nan}, ["epsilon_high=nan", "finite number"]),
        ({"regularizer_coef": math.inf}, ["regularizer_coef=inf", "finite number"]),
        ({"epsilon_high": "0.2"}, ["epsilon_high='0.2'", "finite number"]),
        ({"epsilon_high": True}, ["epsilon_high=True", "finite number"]),
        ({"epsilon_high_prime": -1}, ["epsilon_high_prime=-1", "greater than 0"]),
        ({"loss_scale_factor": 0}, ["loss_scale_factor=0", "greater than 0"]),
        ({"loss_agg_mode": "seq-mean-token-sum-norm"}, ["loss_scale_factor=None", "so it must be a"]),
        (
            {"clip_mode": "ring", "epsilon_low": 0.7, "epsilon_low_prime": 0.6},
            ["epsilon_low_prime=0.6", "epsilon_low=0.7", "enclose"],
        ),
        (
            {"clip_mode": "ring", "epsilon_high": 2.0, "epsilon_high_prime": 1.0},
            ["epsilon_high_prime=1.0", "epsilon_high=2.0", "enclose"],
        ),
    ],
)
def test_a_wrong_argument_is_refused(arguments, parts):
    with pytest.raises(ValueError) as error:
        Objective(**arguments)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in parts), message


def test_ring_bounds_are_free_where_they_are_not_used():
    Objective(clip_mode="one-side", epsilon_low=0.6, epsilon_high=2.0, epsilon_low_prime=0.2, epsilon_high_prime=0.2)
    Objective(clip_mode="ring", epsilon_low=0.2, epsilon_high=0.2, epsilon_low_prime=0.2, epsilon_high_prime=0.2)


def test_a_bound_may_be_infinite():
    x, mask = torch.tensor([-1.0, -2.0]), torch.ones(2, dtype=torch.bool)
    unbounded = Objective(clip_mode="one-side", weight="advantage", epsilon_high=math.inf, temp=math.inf)
    loss, metrics = unbounded(x + 50, x, mask, torch.ones(2))
    assert metrics["pg_clipfrac"] == 0
    assert loss.item() == pytest.approx(-48.5)


def test_the_average_follows_the_clip_mode_unless_it_is_given():
    assert Objective(clip_mode="one-side").loss_agg_mode == "token-mean"
    assert Objective(clip_mode="gspo-one-side").loss_agg_mode == "seq-mean-token-mean"
    assert Objective(clip_mode="gspo-one-side", loss_agg_mode="token-mean").loss_agg_mode == "token-mean"


def test_inputs_of_another_shape_or_kind_are_refused():
    x, m = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"advantages has shape \[2, 1\], logprob \[2, 3\]"):
        Objective()(x, x, m, torch.zeros(2, 1))
    with pytest.raises(ValueError, match=r"mask has shape \[3\]"):
        Objective()(x, x, m[0], x)
    with pytest.raises(ValueError, match="floating-point"):
        Objective()(x.long(), x, m, x)
    with pytest.raises(ValueError, match="floating-point"):
        Objective()(x[None], x[None], m[None], x[None])
