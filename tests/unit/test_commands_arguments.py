"""The table of which arguments count under which modes, held against the code that reads them."""

import itertools

import pytest
import torch
from trinity.common.experience import EID, Experience

from trinity_rec.commands.arguments import ADVANTAGE, POLICY_LOSS, RUNTIME, descriptions, is_read
from trinity_rec.commands.schema import choices
from trinity_rec.objective import Objective
from trinity_rec.plugin.advantage import RECAdvantage
from trinity_rec.plugin.sample_strategy import StalenessSampleStrategy

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
    [(name, mode, value) for name, (mode, _) in POLICY_LOSS.items() for value in choices()[mode] if value],
)
def test_the_loss_reads_an_argument_just_where_the_table_says(name, mode, value):
    low, high = (gradient(**{mode: value, **_companions(name), name: each}) for each in VALUES[name])
    assert torch.equal(low, high) is not is_read(name, {mode: value}, POLICY_LOSS)


def _companions(name: str) -> dict:
    return {"epsilon_high_prime": {"epsilon_high": 0.1}, "epsilon_low_prime": {"epsilon_low": 0.1}}.get(name, {})


@pytest.mark.parametrize(
    "name, mode, value",
    [(name, mode, value) for name, (mode, _) in ADVANTAGE.items() for value in choices()[mode]],
)
def test_the_advantage_reads_an_argument_just_where_the_table_says(name, mode, value):
    low, high = (advantages(**{mode: value, name: each}) for each in VALUES[name])
    assert torch.equal(low, high) is not is_read(name, {mode: value}, ADVANTAGE)


def test_every_argument_that_is_no_mode_has_its_row():
    """A new number in the code without a row would be called read everywhere."""
    modes = choices()
    for table, block in ((POLICY_LOSS, Objective()), (ADVANTAGE, RECAdvantage())):
        numbers = {name for name in vars(block) if name not in modes and name not in RUNTIME}
        assert numbers <= set(table) <= set(vars(block))


@pytest.mark.parametrize("documented", [Objective, RECAdvantage, StalenessSampleStrategy])
def test_every_argument_is_described_by_its_docstring(documented):
    known = set(documented.default_args()) - {"backend"} if documented is not Objective else set(vars(Objective()))
    said = descriptions(documented)
    assert known <= set(said)
    assert all(len(text) > 10 for text in said.values())
