"""A JSON schema of the `algorithm:` section, so that an editor completes and checks it.

Names, types, defaults, choices and descriptions are read off the code. Only the ranges of numbers are written down
here; tests/unit/test_commands_schema.py holds them against what the code accepts.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any

from trinity_rec.commands import arguments
from trinity_rec.presets import PRESETS
from trinity_rec.yaml.notation import readable

_DRAFT = "https://json-schema.org/draft/2020-12/schema"

# The ranges of numbers, by argument; the names are unique among the building blocks.
RANGES: dict[str, dict[str, Any]] = {
    "epsilon_low": {"exclusiveMinimum": 0, "maximum": 1},
    "epsilon_high": {"exclusiveMinimum": 0},
    "epsilon_low_prime": {"exclusiveMinimum": 0, "maximum": 1},
    "epsilon_high_prime": {"exclusiveMinimum": 0},
    "temp": {"exclusiveMinimum": 0},
    "regularizer_coef": {"minimum": 0},
    "loss_scale_factor": {"exclusiveMinimum": 0},
    "epsilon": {"minimum": 0},
    "pairwise_temp": {"minimum": 1e-9},
    "reweight_floor": {"minimum": 1e-9},
    "max_reads": {"minimum": 1},
    "decay": {"exclusiveMinimum": 0, "maximum": 1},
    "max_staleness": {"minimum": 0},
    "batches": {"minimum": 1},
}
# What the configuration check sets for itself.
_INTERNAL = ("backend", "sample_weight")


def algorithm_schema() -> dict[str, Any]:
    """The `algorithm:` section of a YAML that names a preset of this package."""
    from trinity.algorithm import ENTROPY_LOSS_FN, KL_FN, SAMPLE_STRATEGY
    from trinity.common.config import AlgorithmConfig

    from trinity_rec.objective import LOSS_AGG_MODES, Objective
    from trinity_rec.plugin.advantage import RECAdvantage
    from trinity_rec.plugin.algorithm import ADVANTAGE, POLICY_LOSS

    strategies = sample_strategies()
    properties = _properties_of(AlgorithmConfig)
    properties["algorithm_type"] = {
        "description": "The preset.",
        "enum": [f"trinity_rec.{name}" for name in PRESETS],
        "enumDescriptions": [f"{each.title}: {readable(each.gradient)}. {each.when}" for each in PRESETS.values()],
    }
    kl, entropy = (_named_or_dotted(registry._default_mapping) for registry in (KL_FN, ENTROPY_LOSS_FN))
    plain = [name for name in SAMPLE_STRATEGY._default_mapping if name != "mix"]
    properties |= {
        "policy_loss_fn": _named_or_dotted([POLICY_LOSS]),
        "policy_loss_fn_args": _arguments_of(Objective),
        "advantage_fn": _named_or_dotted([ADVANTAGE]),
        "advantage_fn_args": _arguments_of(RECAdvantage),
        "sample_strategy": _named_or_dotted([*strategies, *plain]),
        "sample_strategy_args": {"type": ["object", "null"]},
        "loss_agg_mode": {"enum": [None, *LOSS_AGG_MODES]},
        "kl_loss_fn": kl,
        "kl_penalty_fn": kl,
        "entropy_loss_fn": entropy,
    }
    return {
        "$schema": _DRAFT,
        "title": "The algorithm section of a Trinity-RFT YAML with a trinity_rec preset",
        "type": "object",
        "properties": properties,
        "required": ["algorithm_type"],
        "additionalProperties": False,
        "allOf": [
            *(
                _if_then("sample_strategy", name, "sample_strategy_args", _strategy_arguments(strategy))
                for name, strategy in strategies.items()
            ),
        ],
    }


def sample_strategies() -> dict[str, type]:
    """The sample strategies of this package by the names that a YAML gives them."""
    import trinity_rec
    from trinity_rec.plugin.sample_strategy import RECSampleStrategy

    blocks = {f"trinity_rec.{name}": getattr(trinity_rec, name) for name in trinity_rec.__all__}
    classes = {name: block for name, block in blocks.items() if isinstance(block, type)}
    return {name: block for name, block in classes.items() if issubclass(block, RECSampleStrategy)}


def choices() -> dict[str, tuple[Any, ...]]:
    """The arguments that take one of a few values."""
    from trinity_rec import objective, shaping

    return {
        "clip_mode": objective.CLIP_MODES,
        "weight": objective.WEIGHTS,
        "regularizer": objective.REGULARIZERS,
        "loss_agg_mode": (None, *objective.LOSS_AGG_MODES),
        "metrics": objective.METRICS,
        "std_normalize": (False, True, None),
        "drop": shaping.DROPS,
        "drop_form": shaping.DROP_FORMS,
        "pairwise": shaping.PAIRWISE,
        "reweight": shaping.REWEIGHTS,
    }


def _arguments_of(documented: type) -> dict[str, Any]:
    """The arguments of a building block, a dataclass, as the object that a YAML gives them in."""
    said, modes = arguments.descriptions(documented), choices()
    properties = {}
    for name, schema in _properties_of(documented).items():
        if name in modes:
            schema = {"enum": list(modes[name]), **{key: schema[key] for key in schema if key == "default"}}
        properties[name] = {"description": said.get(name, ""), **schema, **RANGES.get(name, {})}
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _strategy_arguments(strategy: Any) -> dict[str, Any]:
    """The arguments of a sample strategy; its types are those of its constructor."""
    said, hints = arguments.descriptions(strategy), typing.get_type_hints(strategy.__init__)
    properties = {
        name: {"description": said[name], **_schema_of(hints[name]), "default": default, **RANGES.get(name, {})}
        for name, default in strategy.default_args().items()
        if name not in _INTERNAL
    }
    return {"type": ["object", "null"], "properties": properties, "additionalProperties": False}


def _properties_of(dataclass: type) -> dict[str, Any]:
    hints = typing.get_type_hints(dataclass)
    properties = {}
    for field in dataclasses.fields(dataclass):
        properties[field.name] = _schema_of(hints[field.name])
        if field.default is not dataclasses.MISSING:
            properties[field.name]["default"] = field.default
    return properties


_JSON_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object", type(None): "null"}


def _schema_of(hint: Any) -> dict[str, Any]:
    """The schema of a type annotation of the configuration's dataclasses."""
    if dataclasses.is_dataclass(hint):
        return {"type": "object", "properties": _properties_of(hint), "additionalProperties": False}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return {"type": [_JSON_TYPES[each] for each in typing.get_args(hint)]}
    if typing.get_origin(hint) is list:
        return {"type": "array", "items": _schema_of(typing.get_args(hint)[0])}
    return {"type": _JSON_TYPES[hint]}


def _named_or_dotted(names: typing.Iterable[str]) -> dict[str, Any]:
    """A registered name or null, or the dotted path of a class of one's own."""
    own = {"type": "string", "pattern": r"^(?!trinity_rec\.)\w+(\.\w+)+$"}
    return {"anyOf": [{"enum": [None, *names]}, own]}


def _if_then(key: str, value: str, other: str, schema: dict[str, Any]) -> dict[str, Any]:
    condition = {"properties": {key: {"const": value}}, "required": [key]}
    return {"if": condition, "then": {"properties": {other: schema}}}
