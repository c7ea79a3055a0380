"""Lets Trinity run text-only without vLLM.

Trinity 0.6.0 imports three vLLM modules wherever a model wrapper is made (`trinity/common/models/mm_utils.py`), for
multi-modal prompts, also on the Tinker backend, which never uses vLLM. This directory holds a package `vllm` with the
names it imports and nothing behind them. Only our launcher puts the directory on PYTHONPATH, only where no real vLLM is
installed; and should both be there after all, the stand-in hands over to the real one.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

DIRECTORY = Path(__file__).parent


def python_path() -> list[str]:
    """What to put on PYTHONPATH: this directory, or nothing where vLLM is installed."""
    spec = find_spec("vllm")
    real = spec is not None and not (spec.origin or "").startswith(str(DIRECTORY))
    return [] if real else [str(DIRECTORY)]
