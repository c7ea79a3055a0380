"""The policy objective of every algorithm here: one choice of clip mask, data weight, regulariser and average.

Its gradient is its specification. For response i and token t (arXiv 2509.24203, sections 2 to 4)

    dL / dlogprob[i, t] = n[i] * ( -M[i, t] * w[i, t] * A[i, t]  +  d regulariser / d logprob[i, t] )

where M, w and n are constants: see `clip`, `weight`, `regularizer` and `average`. The gradient is in closed form, so
the loss writes it down while the inputs are in cache and hands it to autograd.

    objective = Objective(clip_mode="one-side", weight="importance_sampling")
    loss, metrics = objective(logprob, old_logprob, mask, advantages)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PrivateAttr, create_model, model_validator
from pydantic.fields import FieldInfo

from trinity_rec.declared import Declared, ReadUnder
from trinity_rec.objective import rules
from trinity_rec.objective.average import usual_average

if TYPE_CHECKING:
    from torch import Tensor

Metrics = Annotated[
    Literal["basic", "full"],
    Field("basic", description="What is logged: basic, or full (docs/metrics.md)."),
]
_NAMED = {
    "clip_mode": (str, Field("none", description="The clip mask M.")),
    "weight": (str, Field("none", description="The data weight w.")),
    "regularizer": (str, Field("none", description="What is added to the loss to hold the policy near the rollouts.")),
    "loss_agg_mode": (
        str | None,
        Field(None, description="The average n; by default seq-mean-token-mean with gspo-one-side, else token-mean."),
    ),
}


def _declared() -> dict[str, Any]:
    """The arguments of all rules, each where it is declared: in the signature of the rules that read it."""
    found: dict[str, Any] = {}
    for table in rules.RULES.values():
        for rule in table.values():
            for name, parameter in rules.arguments_of(rule).items():
                found.setdefault(name, (parameter.annotation, FieldInfo.from_annotation(parameter.annotation).default))
    return found


_FIELDS: dict[str, Any] = {**_NAMED, **_declared(), "metrics": (Metrics, "basic")}
_Arguments: Any = create_model("_Arguments", __base__=Declared, **_FIELDS)


class Objective(_Arguments, extra="allow"):  # type: ignore[call-arg]
    """A policy objective; its arguments are those of upstream's `rec` loss with their meaning, and those of its rules.

    Attributes:
        clip_mode, weight, regularizer, loss_agg_mode: names of rules, or dotted paths to functions of your own (all but
            the average). The arguments of your own go beside those of the others.
        metrics: "basic" or "full", see `metrics.summary`.

    Raises:
        ValueError: an argument is not allowed, or a rule of one's own cannot be imported, misses an argument or returns
            another shape; the message names it, its value and what is allowed.
        TypeError: there is no such argument.
    """

    _parts: rules.Parts = PrivateAttr()

    def __init__(self, **given: Any) -> None:
        modes = {kind: given.get(kind, type(self).model_fields[kind].default) for kind in rules.RULES}
        if modes["loss_agg_mode"] is None:
            modes["loss_agg_mode"] = usual_average(modes["clip_mode"])
        chosen = {kind: rules.rule_named(kind, name) for kind, name in modes.items()}
        own: dict[str, Any] = {}
        for kind, rule in chosen.items():
            if rules.is_own(kind, modes[kind]):
                own |= _own_arguments(f"{kind}={modes[kind]!r}", rule, given, type(self).model_fields)
        unknown = [name for name in given if name not in type(self).model_fields and name not in own]
        if unknown:
            raise TypeError(f"unknown argument {unknown[0]!r}")
        super().__init__(**{**given, **modes, **own})
        ready: dict[str, Any] = {
            kind: rule and partial(rule, **{name: getattr(self, name) for name in rules.arguments_of(rule)})
            for kind, rule in chosen.items()
        }
        if any(rules.is_own(kind, name) for kind, name in modes.items()):
            from trinity_rec.objective.own import try_out

            ready |= try_out(ready, modes)
        self._parts = rules.Parts(
            ready["clip_mode"],
            ready["weight"],
            ready["regularizer"],
            ready["loss_agg_mode"],
            over_tokens=self.loss_agg_mode == "token-mean",
            of_the_batch=tuple(kind for kind, rule in chosen.items() if rule in rules.OF_THE_BATCH),
            full=self.metrics == "full",
        )

    @model_validator(mode="after")
    def _goes_together(self) -> Objective:
        if self.loss_agg_mode == "seq-mean-token-sum-norm" and self.loss_scale_factor is None:
            raise ValueError(
                "loss_scale_factor=None: loss_agg_mode 'seq-mean-token-sum-norm' divides by it, so it must be a "
                "number, the longest response's tokens say"
            )
        for inner, outer in (("epsilon_low", "epsilon_low_prime"), ("epsilon_high", "epsilon_high_prime")):
            if self.clip_mode == "ring" and getattr(self, outer) < getattr(self, inner):
                raise ValueError(
                    f"{outer}={getattr(self, outer)!r} is smaller than {inner}={getattr(self, inner)!r}: "
                    "the outer bounds of clip_mode 'ring' must enclose the clip range"
                )
        return self

    @classmethod
    def read_under(cls, argument: str) -> tuple[ReadUnder, ...]:
        return _read_under().get(argument, ())

    @classmethod
    def is_read(cls, argument: str, args: Mapping[str, Any]) -> bool:
        own = rules.own_rules(args)
        return super().is_read(argument, args) or any(argument in rules.arguments_of(rule) for rule in own)

    @classmethod
    def own_arguments(cls, args: Mapping[str, Any]) -> list[str]:
        """The arguments of the user's own rules among `args` that no rule of this package has."""
        found = (name for rule in rules.own_rules(args) for name in rules.arguments_of(rule))
        return [name for name in found if name not in cls.model_fields]

    def __call__(
        self,
        logprob: Tensor,
        old_logprob: Tensor,
        mask: Tensor,
        advantages: Tensor,
        *,
        sample_weight: Tensor | None = None,
        batch_num_tokens: int | Tensor | None = None,
        global_batch_size: int | Tensor | None = None,
        dp_size: int | Tensor = 1,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch or a micro-batch, differentiable once with respect to `logprob`.

        Args:
            logprob: log pi_theta of the sampled tokens, [batch, response] or [response], floating point.
            old_logprob: log mu of the same tokens, from the policy that sampled them; the shape of `logprob`.
            mask: nonzero on the tokens that count; the shape of `logprob`. What is masked may hold anything, NaN too.
            advantages: A, the shape of `logprob` (usually one value a response, repeated).
            sample_weight: a factor on everything that a response adds to the loss, [batch] or a scalar.
            batch_num_tokens, global_batch_size: the tokens and responses of the whole mini-batch, where this call sees
                only a part of it; without them the call is the mini-batch.
            dp_size: how many such losses the caller averages afterwards (data-parallel ranks; on Tinker, responses).

        Returns:
            The loss, a scalar of at least float32, and metrics as floats. Without any token both are 0.

        Raises:
            ValueError: the shapes differ, or `logprob` is not a floating-point tensor of one or two dimensions.
            FloatingPointError: a token that counts has a logprob or an advantage that is not finite, or the loss
                overflows; names the first such token, or response. No gradient is handed out.
        """
        count = batch_num_tokens if self.loss_agg_mode == "token-mean" else global_batch_size
        return self._evaluate(logprob, old_logprob, mask, advantages, sample_weight, count, dp_size)

    @cached_property
    def _evaluate(self) -> Callable[..., tuple[Tensor, dict[str, float]]]:
        """`evaluate` with the rules; made by the first call, since it imports torch, and arguments are read without."""
        from trinity_rec.objective.evaluate import evaluate

        return partial(evaluate, self._parts)


@cache
def _read_under() -> dict[str, tuple[ReadUnder, ...]]:
    """Of each argument, which rules have it in their signature."""
    found: dict[str, list[ReadUnder]] = {name: [] for name in Objective.model_fields}
    for kind, table in rules.RULES.items():
        readers = {name: list(rules.arguments_of(rule)) for name, rule in table.items()}
        for argument in {name: None for names in readers.values() for name in names}:
            found[argument].append(ReadUnder(kind, tuple(name for name in table if argument in readers[name])))
    return {name: tuple(under) for name, under in found.items()}


def _own_arguments(
    where: str, rule: Callable[..., Any] | None, given: Mapping[str, Any], known: Mapping[str, FieldInfo]
) -> dict[str, Any]:
    """The arguments of a user's rule that are not declared here, checked by their annotations."""
    fields: dict[str, Any] = {}
    for name, parameter in rules.arguments_of(rule).items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise ValueError(
                f"{where} takes {parameter}: arguments of a rule are passed by name, each its own parameter"
            )
        if name in known:
            continue
        needed = parameter.default is parameter.empty
        if needed and name not in given:
            raise ValueError(f"{where} needs an argument {name}, and it is not given")
        annotation = Any if isinstance(parameter.annotation, str) or parameter.annotation is parameter.empty else None
        fields[name] = (annotation or parameter.annotation, ... if needed else parameter.default)
    model = create_model("own", __base__=Declared, **fields)
    return model(**{name: given[name] for name in fields if name in given}).model_dump()
