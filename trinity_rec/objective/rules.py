"""From the name of a rule in a YAML to the rule: one of this package's, or a user's own by its dotted path.

A rule is a function; its parameters after the first are its arguments, and what an annotation says of one (a type, a
pydantic `Field` with default, range and meaning) is what is checked and shown.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

from trinity_rec.objective import average, clip, regularizer, weight

if TYPE_CHECKING:
    from torch import Tensor

# The argument that names a rule, and the rules that it may name; None does nothing.
RULES: dict[str, Mapping[str, Callable[..., Any] | None]] = {
    "clip_mode": clip.CLIP_MODES,
    "weight": weight.WEIGHTS,
    "regularizer": regularizer.REGULARIZERS,
    "loss_agg_mode": average.LOSS_AGG_MODES,
}
# Of these a user may bring another.
OPEN = ("clip_mode", "weight", "regularizer")
# These take a statistic of the batch: they get the `Batch`, and return a function of `Tokens`.
OF_THE_BATCH = clip.OF_THE_BATCH | weight.OF_THE_BATCH | regularizer.OF_THE_BATCH


class Parts(NamedTuple):
    """The rules of an objective, each with its arguments; None does nothing."""

    clip_mode: Callable[..., Any] | None
    weight: Callable[..., Any] | None
    regularizer: Callable[..., Any] | None
    average: Callable[[Tensor], Tensor | float]
    over_tokens: bool  # the average is over tokens, not over responses
    of_the_batch: tuple[str, ...]  # which of them take the batch
    full: bool  # the metrics


def rule_named(kind: str, name: Any) -> Callable[..., Any] | None:
    """The rule that a YAML names under the key `kind`; None does nothing.

    Raises:
        ValueError: there is none of that name, or it cannot be imported; one line that names it.
    """
    if isinstance(name, str) and name in RULES[kind]:
        return RULES[kind][name]
    if not is_own(kind, name):
        raise ValueError(f"{kind}={name!r} is not one of {', '.join(RULES[kind])}{_OR_OWN if kind in OPEN else ''}")
    module, _, function = name.rpartition(".")
    try:
        rule = getattr(import_module(module), function)
    except Exception as error:  # whatever the user's module does when it is imported
        reason = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{kind}={name!r} cannot be imported: {type(error).__name__}: {reason}") from error
    if not inspect.isfunction(rule) or not inspect.signature(rule).parameters:
        raise ValueError(f"{kind}={name!r} is not a function of the tokens: see docs/variants.md")
    return rule


_OR_OWN = ", or the dotted path of a function of your own"


def is_own(kind: str, name: Any) -> bool:
    """Whether a YAML names a rule of the user's by its dotted path."""
    return (
        kind in OPEN
        and isinstance(name, str)
        and name not in RULES[kind]
        and all(part.isidentifier() for part in name.split("."))
        and "." in name
    )


def own_rules(arguments: Mapping[str, Any]) -> list[Callable[..., Any] | None]:
    """The user's own rules among those that the arguments of an objective name."""
    return [rule_named(kind, arguments[kind]) for kind in OPEN if is_own(kind, arguments.get(kind))]


def arguments_of(rule: Callable[..., Any] | None) -> dict[str, inspect.Parameter]:
    """The arguments of a rule by name; their annotations are types wherever these can be found."""
    if rule is None:
        return {}
    try:
        signature = inspect.signature(rule, eval_str=True)
    except Exception:  # names that only a type checker imports
        signature = inspect.signature(rule)
    return dict(list(signature.parameters.items())[1:])


def formula(kind: str, name: Any) -> str:
    """What a rule computes, by the first line of its docstring; a user's own by its path, if it has none."""
    rule = rule_named(kind, name)
    if rule is None:
        return ""
    if is_own(kind, name):
        return name
    return inspect.cleandoc(rule.__doc__ or "").splitlines()[0]
