"""Off-policy group-relative REINFORCE for Trinity-RFT: every algorithm of arXiv 2509.24203, chosen by YAML alone.

Trinity imports a dotted name wherever it needs it, so the names below work in every process without registration:
`algorithm_type: trinity_rec.<preset>` for each preset of `trinity_rec.presets`, and the building blocks.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trinity_rec.plugin.advantage import RECAdvantage
    from trinity_rec.plugin.policy_loss import RECPolicyLoss

_BLOCKS = {"RECPolicyLoss": "policy_loss", "RECAdvantage": "advantage"}
_BLOCKS |= {
    # A file a strategy, found by its name: `informative.py` holds `InformativeSampleStrategy`.
    f"{file.stem.title()}SampleStrategy".replace("Base", "REC"): f"sample_strategy.{file.stem}"
    for file in sorted((Path(__file__).parent / "plugin" / "sample_strategy").glob("[a-z]*.py"))
}

__all__ = ["RECAdvantage", "RECPolicyLoss", "__version__", *(name for name in _BLOCKS if "Sample" in name)]


def __getattr__(name: str) -> Any:
    """Import a building block, or make a preset's algorithm class, when it is first asked for (PEP 562)."""
    if name in _BLOCKS:
        value = getattr(import_module(f"trinity_rec.plugin.{_BLOCKS[name]}"), name)
    else:
        from trinity_rec.presets import PRESETS

        preset, _, _ = name.partition("_with_reference")
        if preset not in PRESETS or name not in (preset, f"{preset}_with_reference"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from trinity_rec.plugin.algorithm import algorithm_class

        value = algorithm_class(preset, use_reference=name != preset)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    from trinity_rec.presets import PRESETS

    return sorted([*__all__, *PRESETS])
