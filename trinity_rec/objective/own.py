"""A user's own rule among those of this package: what it must return, tried before it is trained with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from trinity_rec.objective import rules
from trinity_rec.objective.tokens import Tokens

_PARTS = {"clip_mode": "M", "weight": "w", "regularizer": "the penalty and its derivative"}


def try_out(chosen: Mapping[str, Callable[..., Any] | None], modes: Mapping[str, str]) -> dict[str, Callable[..., Any]]:
    """The user's rules among `chosen`, each called once on a few tokens and wrapped so that every call is checked.

    Raises:
        ValueError: a rule raises, or returns something else than tensors of numbers in the shape of the tokens.
    """
    wrapped = {}
    for kind, rule in chosen.items():
        if rule is not None and rules.is_own(kind, modes[kind]):
            wrapped[kind] = _checked(kind, modes[kind], rule)
            logprob = -torch.linspace(0.1, 2.0, 12).view(3, 4)
            mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
            advantages = torch.tensor([[1.0], [-1.0], [0.0]]).expand(3, 4)
            with torch.no_grad():
                wrapped[kind](Tokens(logprob, logprob.flip(0), mask, advantages))
    return wrapped


def _checked(kind: str, name: str, rule: Callable[..., Any]) -> Callable[[Tokens], Any]:
    where = f"{kind}={name!r}"

    def call(x: Tokens) -> Any:
        try:
            returned = rule(x)
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")
            raise ValueError(f"{where} raises {type(error).__name__}: {reason}") from error
        pair = kind == "regularizer" or (kind == "weight" and isinstance(returned, tuple))
        parts = returned if isinstance(returned, tuple) else (returned,)
        if len(parts) != (2 if pair else 1):
            raise ValueError(f"{where} returns {len(parts)} values in place of {_PARTS[kind]}")
        spread = tuple(_spread(where, x, part, 1.0 if kind == "clip_mode" else 0.0) for part in parts)
        return spread if pair else spread[0]

    return call


def _spread(where: str, x: Tokens, part: Any, on_padding: float) -> Tensor:
    """What a rule returned as numbers of [rows, response] or, a number a response, [rows, 1]."""
    like = x.log_ratio
    if not isinstance(part, Tensor) or part.shape not in (like.shape, (len(like), 1)):
        shape = list(part.shape) if isinstance(part, Tensor) else type(part).__name__
        raise ValueError(f"{where} returns {shape} where the tokens are {list(like.shape)}: one a token or [rows, 1]")
    part = part.to(like.dtype)
    part = part.where((x.mask if part.shape == like.shape else x.count) > 0, on_padding)
    if not part.isfinite().all():
        raise FloatingPointError(f"{where} returns {float(part[~part.isfinite()][0])}: a token needs a finite number")
    return part
