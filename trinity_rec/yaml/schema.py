"""`trinity-rec schema`: a JSON schema of the `algorithm:` section, so that an editor completes and checks it.

Everything that it says of this package's arguments is derived from where they are declared (`declared.Declared`).
"""

from __future__ import annotations

import dataclasses
import types
import typing
from pathlib import Path
from typing import Any

from trinity_rec.declared import Declared, choices_of, json_range
from trinity_rec.objective import Objective
from trinity_rec.objective.rules import OPEN, RULES
from trinity_rec.presets import PRESETS
from trinity_rec.shaping import Shaping
from trinity_rec.yaml.notation import readable

SHIPPED = Path(__file__).with_name("algorithm.schema.json")
"""`algorithm_schema()`, written by scripts/generate.py, so that the command need not import Trinity to print it."""

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def algorithm_schema() -> dict[str, Any]:
    """The `algorithm:` section of a YAML that names a preset of this package."""
    from trinity.common.config import AlgorithmConfig

    from trinity_rec.plugin import registries
    from trinity_rec.plugin.algorithm import ADVANTAGE, POLICY_LOSS

    strategies = sample_strategies()
    properties = _open(_properties_of(AlgorithmConfig))
    properties["algorithm_type"] = {
        "description": "The preset.",
        "enum": [f"trinity_rec.{name}" for name in PRESETS],
        "enumDescriptions": [f"{each.title}: {readable(each.gradient)}. {each.when}" for each in PRESETS.values()],
    }
    kl, entropy = (_named_or_dotted(terms.names()) for terms in (registries.KL_TERMS, registries.ENTROPY_TERMS))
    plain = [name for name in registries.SAMPLE_STRATEGIES.names() if name != "mix"]
    properties |= {
        "policy_loss_fn": _named_or_dotted([POLICY_LOSS]),
        "policy_loss_fn_args": {"type": ["object", "null"]},
        "advantage_fn": _named_or_dotted([ADVANTAGE]),
        "advantage_fn_args": {"type": ["object", "null"]},
        "sample_strategy": _named_or_dotted([*strategies, *plain]),
        "sample_strategy_args": {"type": ["object", "null"]},
        "loss_agg_mode": {"enum": [None, *RULES["loss_agg_mode"]]},
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
            # Arguments of a block of the user's own are its own.
            _if_ours("policy_loss_fn", POLICY_LOSS, _policy_loss_arguments()),
            _if_ours("advantage_fn", ADVANTAGE, _arguments_of(Shaping)),
            *(
                _if_then("sample_strategy", name, "sample_strategy_args", _arguments_of(strategy.Arguments))
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


def _arguments_of(declared: type[Declared]) -> dict[str, Any]:
    """The arguments of a block as the object that a YAML gives them in."""
    properties = {}
    for name, field in declared.model_fields.items():
        if name in RULES and issubclass(declared, Objective):
            names = {"enum": [*RULES[name], *([None] if field.default is None else [])]}
            schema = {"anyOf": [names, _OWN_RULE]} if name in OPEN else names
        elif choices := choices_of(field):
            schema = {"enum": list(choices)}
        else:
            schema = {**_schema_of(field.annotation), **json_range(field)}
        properties[name] = {"description": field.description or "", **schema, "default": field.default}
    return {"type": ["object", "null"], "properties": _open(properties), "additionalProperties": False}


def _policy_loss_arguments() -> dict[str, Any]:
    """Of the objective; where a rule is the user's own, its arguments are, too."""
    known = _arguments_of(Objective)
    del known["additionalProperties"]
    own_rule = {"anyOf": [{"properties": {kind: _OWN_RULE}, "required": [kind]} for kind in OPEN]}
    return {**known, "if": own_rule, "else": {"propertyNames": {"enum": list(known["properties"])}}}


_OWN_RULE = {"type": "string", "pattern": r"^[^\W\d]\w*(\.[^\W\d]\w*)+$"}


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
        return {"type": "object", "properties": _open(_properties_of(hint)), "additionalProperties": False}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return {"type": [_JSON_TYPES[each] for each in typing.get_args(hint)]}
    if typing.get_origin(hint) is list:
        return {"type": "array", "items": _schema_of(typing.get_args(hint)[0])}
    return {"type": _JSON_TYPES[hint]}


def _named_or_dotted(names: typing.Iterable[str]) -> dict[str, Any]:
    """A registered name or null, or the dotted path of a class of one's own."""
    own = {"type": "string", "pattern": r"^(?!trinity_rec\.)\w+(\.\w+)+$"}
    return {"anyOf": [{"enum": [None, *names]}, own]}


def _if_ours(key: str, ours: str, arguments: dict[str, Any]) -> dict[str, Any]:
    condition = {"properties": {key: {"enum": [None, ours]}}}
    return {"if": condition, "then": {"properties": {f"{key}_args": arguments}}}


def _open(properties: dict[str, Any]) -> dict[str, Any]:
    """The same properties, each of which may be an interpolation instead: `${oc.env:LR}`."""
    opened = {}
    for name, schema in properties.items():
        said = {key: schema[key] for key in ("description", "default") if key in schema}
        allowed = {key: value for key, value in schema.items() if key not in said}
        opened[name] = {**said, "anyOf": [allowed, {"type": "string", "pattern": r"\$\{"}]}
    return opened


def _if_then(key: str, value: str, other: str, schema: dict[str, Any]) -> dict[str, Any]:
    condition = {"properties": {key: {"const": value}}, "required": [key]}
    return {"if": condition, "then": {"properties": {other: schema}}}
