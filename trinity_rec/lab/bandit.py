"""The paper's three-armed bandit (arXiv 2509.24203, figure 2): what each gradient does with data from another policy.

The policy is a softmax over three logits; the data come from a fixed behaviour policy, at which training starts. An
arm is a response of one token, so the plugin's objective and shaping apply as they are. `exact` follows the expected
gradient, every arm weighted by its probability under the behaviour policy; `sampled` draws groups of arms instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trinity_rec.lab.training import Row, objective_of, shaping_of
from trinity_rec.variants import VARIANTS, Variant

BEHAVIOUR = (0.3, 0.6, 0.1)
REWARDS = (0.0, 0.8, 1.0)
RATE = 0.5  # of plain gradient ascent on the logits
STEPS = 500
GROUPS, SAMPLES = 16, 8  # of a sampled step
ROW_EVERY = 5  # steps between the rows of a curve

_PRESETS = ("rec_reinforce", "rec_grpo", "rec_oneside_nois", "rep_opmd", "rep_asymre", "red_drop", "red_weight")
BANDIT_VARIANTS = {
    **{name: VARIANTS[name] for name in _PRESETS},
    "red_weight_cold": Variant("red_weight_cold", "RED-Weight, T = 0.1", "red_weight", {"temp": 0.1}),
}


def curve(name: str, seed: int | None, report: Callable[[int], None] = lambda step: None) -> list[Row]:
    """The mass on each arm by step, of a sampled run or, without a seed, of the expected gradient.

    `report` hears of the last step.
    """
    variant = BANDIT_VARIANTS[name]
    path = exact(variant) if seed is None else sampled(variant, seed)
    report(STEPS)
    return [
        {"step": step, **{f"arm_{arm + 1}": mass for arm, mass in enumerate(path[step].tolist())}}
        for step in range(0, len(path), ROW_EVERY)
    ]


def exact(variant: Variant, steps: int = STEPS) -> Tensor:
    """The policy before training and after each step, [steps + 1, 3], under the expected gradient.

    The baseline is the expected reward, the limit of a large group's mean; an advantage that needs more than the
    mean of a group (the std, a drop) is that of a group of 1,000 with the arms in the behaviour policy's proportions.
    """
    counts = torch.tensor([round(1000 * probability) for probability in BEHAVIOUR])
    arms = torch.arange(3).repeat_interleave(counts)
    return _follow(variant, lambda generator: arms, samples=1000, steps=steps, seed=0)


def sampled(variant: Variant, seed: int, steps: int = STEPS) -> Tensor:
    """As `exact`, from `GROUPS` groups of `SAMPLES` arms a step, drawn from the behaviour policy."""
    probabilities = torch.tensor(BEHAVIOUR)

    def draw(generator: torch.Generator) -> Tensor:
        return torch.multinomial(probabilities, GROUPS * SAMPLES, replacement=True, generator=generator)

    return _follow(variant, draw, samples=SAMPLES, steps=steps, seed=seed)


def _follow(variant: Variant, draw, *, samples: int, steps: int, seed: int) -> Tensor:
    """Gradient ascent on the logits from the behaviour policy; `draw` gives the arms of a step, [groups * samples]."""
    generator = torch.Generator().manual_seed(seed)
    objective, shaping = objective_of(variant), shaping_of(variant)
    behaviour, rewards = torch.tensor(BEHAVIOUR).double(), torch.tensor(REWARDS).double()
    logits = behaviour.log().requires_grad_()
    path = [behaviour]
    for _ in range(steps):
        arms = draw(generator)
        shaped = shaping.shape(
            rewards[arms],
            torch.arange(len(arms)) // samples,
            tokens=lambda arms=arms: torch.ones(len(arms)),
            lottery=lambda arms=arms: torch.rand(len(arms), generator=generator),
        )
        loss, _ = objective(
            logits.log_softmax(0)[arms][:, None],
            behaviour.log()[arms][:, None],
            shaped.in_loss[:, None],
            shaped.advantages[:, None],
        )
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= RATE * gradient
        path.append(logits.detach().softmax(0))
    return torch.stack(path)
