"""The table of which arguments count under which modes, held against the code that reads them."""

import itertools

import pytest
import torch
from trinity.common.experience import EID, Experience

from trinity_rec.declared import choices_of
from trinity_rec.objective import Objective
from trinity_rec.objective.rules import RULES
from trinity_rec.plugin.advantage import RECAdvantage
from trinity_rec.plugin.sample_strategy.informative import InformativeSampleStrategy
from trinity_rec.plugin.sample_strategy.staleness import StalenessSampleStrategy
from trinity_rec.shaping import Shaping
from trinity_rec.yaml.catalogue import BLOCKS

# Two allowed values of each argument, far enough apart to be told from one another.
VALUES = {
    "epsilon_low": (0.1, 0.5),
    "epsilon_high": (0.1, 0.5),
    "epsilon_low_prime": (0.5, 0.7),
    "epsilon_high_prime": (0.6, 2.0),
    "temp": (0.5, 2.0),
    "regularizer_coef": (0.1, 1.0),
    "loss_scale_factor": (10.0, 20.0),
    "epsilon": (1e-6, 1.0),
    "drop_form": ("zero", "exclude"),
    "seed": (0, 1),
    "pairwise_temp": (0.5, 2.0),
    "reweight_floor": (0.5, 100.0),
    "dual_clip": (1.5, 3.0),
    "divergence_low": (0.01, 0.5),
    "divergence_high": (0.01, 0.5),
    "max_kl": (0.0, 0.5),
    "second_moment": (0.01, 1.0),
    "positive_share": (0.1, 0.9),
    "weight_cap": (1.1, 2.0),
    "tau_positive": (0.5, 2.0),
    "tau_negative": (0.5, 2.0),
    "vespo_k": (1.0, 2.0),
    "vespo_lambda": (1.0, 2.0),
    "vespo_k_negative": (1.0, 2.0),
    "vespo_lambda_negative": (1.0, 2.0),
}


def gradient(**args) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(64, 7, generator=generator)
    logprob = (old + torch.randn(64, 7, generator=generator)).requires_grad_()
    advantages = torch.randn(64, 1, generator=generator).expand(64, 7)
    loss, _ = Objective(**args)(logprob, old, torch.ones(64, 7), advantages)
    loss.backward()
    return logprob.grad


def advantages(**args) -> torch.Tensor:
    """Of ten groups, mostly wrong; advantages and masks, end to end."""
    generator = torch.Generator().manual_seed(0)
    exps = []
    for task, run in itertools.product(range(10), range(8)):
        tokens = torch.arange(6)
        exp = Experience(eid=EID(batch=1, task=task, run=run, step=0), tokens=tokens, prompt_length=2)
        exp.reward = float(torch.rand((), generator=generator) ** 4)
        exp.action_mask = torch.ones(4 if exp.reward > 0.2 else 40)
        exps.append(exp)
    RECAdvantage(**args)(exps)
    return torch.cat([torch.cat([exp.advantages, exp.action_mask.float()]) for exp in exps])


@pytest.mark.parametrize(
    "name, mode, value",
    [
        (name, mode, value)
        for name in VALUES
        if name in Objective.model_fields
        for mode in dict.fromkeys(under.mode for under in Objective.read_under(name))
        for value in RULES[mode]
    ],
)
def test_the_loss_reads_an_argument_just_where_its_rules_have_it(name, mode, value):
    low, high = (gradient(**{mode: value, **_companions(name), name: each}) for each in VALUES[name])
    assert torch.equal(low, high) is not Objective.is_read(name, {mode: value})


def _companions(name: str) -> dict:
    return {"epsilon_high_prime": {"epsilon_high": 0.1}, "epsilon_low_prime": {"epsilon_low": 0.1}}.get(name, {})


@pytest.mark.parametrize(
    "name, mode, value",
    [
        (name, under.mode, value)
        for name in VALUES
        if name in Shaping.model_fields
        for under in Shaping.read_under(name)
        for value in choices_of(Shaping.model_fields[under.mode]) or (True, False)
    ],
)
def test_the_advantage_reads_an_argument_just_where_it_is_declared_to(name, mode, value):
    low, high = (advantages(**{mode: value, name: each}) for each in VALUES[name])
    assert torch.equal(low, high) is not Shaping.is_read(name, {mode: value})


def test_every_argument_is_a_mode_or_is_tried_above():
    for block in BLOCKS.values():
        modes = {under.mode for name in block.model_fields for under in block.read_under(name)} | {"metrics"}
        assert set(block.model_fields) - modes - set(VALUES) <= {"regularizer", "weight", "clip_mode", "loss_agg_mode"}


@pytest.mark.parametrize(
    "declared", [Objective, RECAdvantage, StalenessSampleStrategy.Arguments, InformativeSampleStrategy.Arguments]
)
def test_every_argument_is_described_where_it_is_declared(declared):
    assert declared.model_fields
    assert all(len(field.description) > 10 for field in declared.model_fields.values())
