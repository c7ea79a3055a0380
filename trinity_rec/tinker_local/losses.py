"""Tinker's own policy-gradient losses, computed by the server through this package's objective.

Each is a sum over all tokens, with rho = exp(logprob - the given logprob) and the advantage A of each token:

| loss | per token | settings |
|---|---|---|
| importance_sampling | -rho A | |
| ppo | -min(rho A, clip(rho, low, high) A) | clip_low_threshold 0.8, clip_high_threshold 1.2 |
| cispo | -clip(rho, low, high) A logprob, its first factor held constant | the same |
| dro | -(A logprob - beta / 2 (log rho)^2) | beta 0.05 |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trinity_rec.objective import Objective
from trinity_rec.tinker_local.errors import RequestError
from trinity_rec.tinker_local.logprobs import pad
from trinity_rec.tinker_local.training import Datum

_CLIP = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2}
_SUM = {"loss_agg_mode": "seq-mean-token-sum"}  # of one response, which is the batch: a sum


@dataclass(frozen=True)
class Loss:
    """One of the losses above.

    Attributes:
        defaults: its settings.
        objective: from the settings; has the loss's gradient.
        value: of rho's logarithm, the logprobs and A, each [tokens], and the settings: the loss of each token.
        everywhere: whether tokens without an advantage count.
    """

    defaults: Mapping[str, float]
    objective: Callable[[Mapping[str, float]], Objective]
    value: Callable[[Tensor, Tensor, Tensor, Mapping[str, float]], Tensor]
    everywhere: bool = False


def _clipped(log_ratio: Tensor, config: Mapping[str, float]) -> Tensor:
    return log_ratio.exp().clamp(config["clip_low_threshold"], config["clip_high_threshold"])


LOSSES = {
    "importance_sampling": Loss(
        {},
        lambda config: Objective(weight="importance_sampling", **_SUM),
        lambda log_ratio, logprob, advantages, config: -log_ratio.exp() * advantages,
    ),
    "ppo": Loss(
        _CLIP,
        lambda config: Objective(
            clip_mode="one-side",
            weight="importance_sampling",
            epsilon_low=1 - config["clip_low_threshold"],
            epsilon_high=config["clip_high_threshold"] - 1,
            **_SUM,
        ),
        lambda log_ratio, logprob, advantages, config: (
            -torch.minimum(log_ratio.exp() * advantages, _clipped(log_ratio, config) * advantages)
        ),
    ),
    "cispo": Loss(
        _CLIP,
        lambda config: Objective(
            weight="clipped_importance_sampling",
            epsilon_low=1 - config["clip_low_threshold"],
            epsilon_high=config["clip_high_threshold"] - 1,
            **_SUM,
        ),
        lambda log_ratio, logprob, advantages, config: -_clipped(log_ratio, config) * advantages * logprob,
    ),
    "dro": Loss(
        {"beta": 0.05},
        lambda config: Objective(regularizer="k2", regularizer_coef=config["beta"] / 2, **_SUM),
        lambda log_ratio, logprob, advantages, config: -(advantages * logprob - config["beta"] / 2 * log_ratio**2),
        everywhere=True,
    ),
}


def settings(name: str, given: Mapping[str, float]) -> dict[str, float]:
    """The settings of a loss with its defaults.

    Raises:
        RequestError: there is none of that name, or a value is not allowed.
    """
    defaults = LOSSES[name].defaults
    for key, value in given.items():
        if key not in defaults:
            allowed = ", ".join(defaults) or "nothing"
            raise RequestError(f"loss_fn_config of {name} takes {allowed}, not {key[:40]!r}")
        allowed, holds = {
            "clip_low_threshold": ("at least 0 and below 1", 0 <= value < 1),
            "clip_high_threshold": ("above 1, up to a million", 1 < value <= 1e6),
            "beta": ("from 0 to a million", 0 <= value <= 1e6),
        }[key]
        if not holds:
            raise RequestError(f"loss_fn_config: {key} is {allowed}, not {value}")
    return {**defaults, **given}


def weighted(
    name: str, config: Mapping[str, float], batch: list[Datum], logprobs: list[Tensor]
) -> tuple[list[Datum], float]:
    """The batch with weights = -d loss / d logprob, and the loss.

    Args:
        batch: with logprobs and advantages.
        logprobs: of the model's, each [length].

    Raises:
        RequestError: the loss is not finite.
    """
    loss = LOSSES[name]
    now, old, advantages = (
        pad(rows) for rows in (logprobs, [d.old_logprobs for d in batch], [d.advantages for d in batch])
    )
    mask = pad([torch.ones(len(row)) for row in logprobs]).bool()
    if not loss.everywhere:
        mask &= advantages != 0
    log_ratio = (now - old).masked_fill(~mask, 0.0)
    now = now.requires_grad_()
    try:
        total, _ = loss.objective(config)(now, old, mask, advantages, global_batch_size=1)
        total.backward()
    except FloatingPointError as error:
        raise RequestError(f"{name}: {error}") from error
    value = float(loss.value(log_ratio, now.detach(), advantages, config)[mask].double().sum())
    rows = [replace(datum, weights=-row[: len(datum.tokens)]) for datum, row in zip(batch, now.grad, strict=True)]
    return rows, value
