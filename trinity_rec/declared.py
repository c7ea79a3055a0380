"""Arguments, each declared once beside what reads it: name, default, range and meaning are one field of a `Declared`
class.

What refuses a wrong value, the JSON schema, the comments of `trinity-rec show` and the tables of the docs are derived
from it. Nothing here imports torch, so that the command line answers at once.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class ReadUnder:
    """Says of an argument that it is read only where another one, its mode, has one of these values."""

    mode: str
    values: tuple[Any, ...]


class Declared(BaseModel):
    """A block's arguments; the block is frozen.

    Raises:
        ValueError: a value is not allowed; one line with the argument, the value and what is allowed.
        TypeError: there is no such argument.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", arbitrary_types_allowed=True)

    def __init__(self, **given: Any) -> None:
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise _refusal(type(self), error) from None

    @classmethod
    def default_args(cls) -> dict[str, Any]:
        """Every argument's default."""
        return {name: field.default for name, field in cls.model_fields.items()}

    @classmethod
    def read_under(cls, argument: str) -> tuple[ReadUnder, ...]:
        """The modes under any of which an argument is read; none where it always is."""
        return tuple(each for each in cls.model_fields[argument].metadata if isinstance(each, ReadUnder))

    @classmethod
    def is_read(cls, argument: str, args: Mapping[str, Any]) -> bool:
        """Whether `argument` has an effect beside the other arguments `args`; what is not given has its default."""
        if argument not in cls.model_fields:
            return True
        under = cls.read_under(argument)
        return not under or any(args.get(each.mode, cls.default_args()[each.mode]) in each.values for each in under)

    @classmethod
    def read_only(cls, args: Mapping[str, Any]) -> dict[str, Any]:
        """`args` without what is not read."""
        return {name: value for name, value in args.items() if cls.is_read(name, args)}


def choices_of(field: FieldInfo) -> tuple[Any, ...] | None:
    """The values of an argument that takes one of a few; None where it does not."""
    parts = [part for part in _parts(field.annotation) if part is not type(None)]
    if not all(typing.get_origin(part) is typing.Literal for part in parts):
        return None
    or_null = [None] if len(parts) < len(_parts(field.annotation)) else []
    return (*or_null, *(value for part in parts for value in typing.get_args(part)))


def allowed(field: FieldInfo) -> str:
    """What an argument may be, to follow "is not": "in (0, 1]", "greater than 0", "a whole number of at least 1"."""
    parts = _parts(field.annotation)
    or_null = ", or null" if type(None) in parts and choices_of(field) is None else ""
    if choices := choices_of(field):
        return f"one of {', '.join(map(str, choices))}"
    if bool in parts:
        return f"true or false{or_null}"
    low, low_open, high, high_open = _bounds(field)
    if int in parts:
        return ("an integer" if low == -math.inf else f"a whole number of at least {low}") + or_null
    if high < math.inf:
        return f"in {'(' if low_open else '['}{low:g}, {high:g}{')' if high_open else ']'}{or_null}"
    if low_open:
        return f"greater than {low:g}{or_null}"
    return (f"a number of at least {low:g}" if low > -math.inf else "a finite number") + or_null


def _parts(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(typing.get_args(annotation))
    return (annotation,)


def _bounds(field: FieldInfo) -> tuple[float, bool, float, bool]:
    """The least and the largest number, each with whether it is itself out of range."""
    names = ("gt", "ge", "lt", "le")
    found = {name: getattr(each, name) for each in field.metadata for name in names if hasattr(each, name)}
    low, high = found.get("gt", found.get("ge", -math.inf)), found.get("lt", found.get("le", math.inf))
    return low, "gt" in found, high, "lt" in found


def _refusal(declared: type[Declared], error: ValidationError) -> Exception:
    """The first of pydantic's errors in one line."""
    first = error.errors()[0]
    if first["type"] == "value_error":
        return first["ctx"]["error"]
    name, value = first["loc"][0], first["input"]
    if first["type"] == "extra_forbidden":
        return TypeError(f"unknown argument {name!r}")
    field = declared.model_fields[str(name)]
    said = allowed(field)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if float in _parts(field.annotation):
        if not is_number or math.isnan(value) or first["type"] == "finite_number":
            said = "a finite number"
        elif _bounds(field)[:2] == (0, False):
            return ValueError(f"{name}={value!r} is negative, not {said}")
    return ValueError(f"{name}={value!r} is not {said}")
