"""Which arguments of an algorithm count: an argument is read only under certain values of another one, its mode.

Held against the objective, the advantages and the sample strategies by tests/unit/test_commands_arguments.py.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import Any

_CLIPPING = ("one-side", "two-side", "ring", "gspo-one-side")

# Argument -> the argument that decides whether it is read, and the values under which it is.
POLICY_LOSS = {
    "epsilon_low": ("clip_mode", _CLIPPING),
    "epsilon_high": ("clip_mode", _CLIPPING),
    "epsilon_low_prime": ("clip_mode", ("ring",)),
    "epsilon_high_prime": ("clip_mode", ("ring",)),
    "temp": ("weight", ("advantage",)),
    "regularizer_coef": ("regularizer", ("k2", "k2-sequence", "forward-kl")),
    "loss_scale_factor": ("loss_agg_mode", ("seq-mean-token-sum-norm",)),
}
ADVANTAGE = {
    "epsilon": ("std_normalize", (True,)),
    "drop_form": ("drop", ("balance",)),
    "seed": ("drop", ("balance",)),
    "pairwise_temp": ("pairwise", ("product",)),
    "reweight_floor": ("reweight", ("adaptive",)),
}
SAMPLE_STRATEGY = {"max_reads": ("refill", (True,))}

# How the loss is computed and reported, not what is optimised.
RUNTIME = ("metrics", "compile")

Modes = Mapping[str, tuple[str, tuple[Any, ...]]]


def is_read(argument: str, args: Mapping[str, Any], modes: Modes) -> bool:
    """Whether `argument` has an effect beside the other arguments of `args`."""
    mode, values = modes.get(argument, (argument, None))
    return values is None or args.get(mode) in values


def read_only(args: Mapping[str, Any], modes: Modes) -> dict[str, Any]:
    """`args` without what is not read."""
    return {name: value for name, value in args.items() if is_read(name, args, modes)}


def descriptions(documented: type) -> dict[str, str]:
    """What the docstrings of a class and its bases say about each argument, under `Attributes:` or `Args:`."""
    docstrings = (inspect.cleandoc(each.__doc__ or "") for each in reversed(documented.__mro__))
    return {name: text for docstring in docstrings for name, text in _described(docstring)}


def _described(docstring: str) -> Iterator[tuple[str, str]]:
    _, _, section = re.sub(r"^(?:Attributes|Args):$", "\0", docstring, count=1, flags=re.MULTILINE).partition("\0")
    section = re.split(r"\n(?=\S)", section)[0]
    for names, text in re.findall(r"^ {4}(\w[\w, ]*): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE):
        for name in names.split(", "):
            yield name, " ".join(text.split())
