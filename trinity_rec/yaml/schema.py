"""`trinity-rec schema`: a JSON schema of the `algorithm:` section, so that an editor completes and checks it.

pydantic derives it from where the arguments are declared: `declared.Declared`, and Trinity's own configuration.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from trinity_rec.declared import Declared, choices_of
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
    section = TypeAdapter(AlgorithmConfig).json_schema()
    kl, entropy = (_named_or_dotted(terms.names()) for terms in (registries.KL_TERMS, registries.ENTROPY_TERMS))
    plain = [name for name in registries.SAMPLE_STRATEGIES.names() if name != "mix"]
    section["properties"] |= {
        "policy_loss_fn": _named_or_dotted([POLICY_LOSS]),
        "advantage_fn": _named_or_dotted([ADVANTAGE]),
        "sample_strategy": _named_or_dotted([*strategies, *plain]),
        "loss_agg_mode": {"enum": [None, *RULES["loss_agg_mode"]]},
        "kl_loss_fn": kl,
        "kl_penalty_fn": kl,
        "entropy_loss_fn": entropy,
    }
    closed = _closed(section, section["$defs"])
    closed["properties"]["algorithm_type"] = {
        "description": "The preset.",
        "enum": [f"trinity_rec.{name}" for name in PRESETS],
        "enumDescriptions": [f"{each.title}: {readable(each.gradient)}. {each.when}" for each in PRESETS.values()],
    }
    return {
        "$schema": _DRAFT,
        "title": "The algorithm section of a Trinity-RFT YAML with a trinity_rec preset",
        **closed,
        "required": ["algorithm_type"],
        "allOf": [
            # Arguments of a block of the user's own are its own.
            _if_then("policy_loss_fn", [None, POLICY_LOSS], _policy_loss_arguments()),
            _if_then("advantage_fn", [None, ADVANTAGE], _arguments_of(Shaping)),
            *(
                _if_then("sample_strategy", [name], _arguments_of(strategy.Arguments))
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
    schema = declared.model_json_schema()
    for name, field in declared.model_fields.items():
        argument = schema["properties"][name]
        if name in RULES and issubclass(declared, Objective):
            names = {"enum": [*RULES[name], *([None] if field.default is None else [])]}
            argument |= {"anyOf": [names, *([_OWN_RULE] if name in OPEN else [])]}
        elif choices := choices_of(field):
            argument |= {"enum": list(choices)}
    return {**_closed(schema), "type": ["object", "null", "string"]}  # a string is an interpolation


def _policy_loss_arguments() -> dict[str, Any]:
    """Of the objective; where a rule is the user's own, its arguments are, too."""
    known = _arguments_of(Objective)
    del known["additionalProperties"]
    own_rule = {"anyOf": [{"properties": {kind: _OWN_RULE}, "required": [kind]} for kind in OPEN]}
    return {**known, "if": own_rule, "else": {"propertyNames": {"enum": list(known["properties"])}}}


_OWN_RULE = {"type": "string", "pattern": r"^[^\W\d]\w*(\.[^\W\d]\w*)+$"}


def _closed(schema: dict[str, Any], defined: dict[str, Any] | None = None) -> dict[str, Any]:
    """pydantic's schema of an object, without keys that it does not name; each value may be an interpolation."""
    properties = {}
    for name, value in schema["properties"].items():
        if "$ref" in value:
            value = _closed((defined or {})[value["$ref"].rpartition("/")[2]], defined)
        said = {key: value[key] for key in ("description", "default") if key in value}
        allowed = {key: each for key, each in value.items() if key not in ("title", *said)}
        properties[name] = {**said, "anyOf": [allowed, {"type": "string", "pattern": r"\$\{"}]}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _named_or_dotted(names: Iterable[str]) -> dict[str, Any]:
    """A registered name or null, or the dotted path of a class of one's own."""
    own = {"type": "string", "pattern": r"^(?!trinity_rec\.)\w+(\.\w+)+$"}
    return {"anyOf": [{"enum": [None, *names]}, own]}


def _if_then(key: str, names: list[str | None], arguments: dict[str, Any]) -> dict[str, Any]:
    """What the arguments of the block under `key` are where it has one of these names; null is where it is absent."""
    condition = {"properties": {key: {"enum": names}}, "required": [] if None in names else [key]}
    return {"if": condition, "then": {"properties": {f"{key}_args": arguments}}}
