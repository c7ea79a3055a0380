"""Gradients of the preset table, which is plain ASCII, in the paper's symbols."""

from __future__ import annotations

import re

_NOTATION = (
    (r"1\{", "𝟙{"),  # noqa: RUF001
    (r"\bgrad log pi\b", "∇log π"),
    (r"\brho\b", "ρ"),  # noqa: RUF001
    (r"\beps'_", "ε'_"),
    (r"\beps_", "ε_"),
    (r"\bsum\b", "Σ"),
    (r">=", "≥"),
    (r"<=", "≤"),
)


def readable(gradient: str) -> str:
    """A gradient of the preset table in the paper's symbols."""
    for pattern, symbol in _NOTATION:
        gradient = re.sub(pattern, symbol, gradient)
    return gradient
