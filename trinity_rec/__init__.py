"""Off-policy group-relative REINFORCE for Trinity-RFT: every algorithm of arXiv 2509.24203, chosen by YAML alone.

Trinity imports a dotted name wherever it needs it, so the names below work in every process without registration:
`algorithm_type: trinity_rec.<preset>` for each preset of `trinity_rec.presets`, and the building blocks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from trinity_rec.plugin.advantage import RECAdvantage
    from trinity_rec.plugin.policy_loss import RECPolicyLoss
    from trinity_rec.plugin.sample_strategy import (
        BalancedSampleStrategy,
        InformativeSampleStrategy,
        OfflineSampleStrategy,
        RECSampleStrategy,
        StalenessSampleStrategy,
    )

_BUILDING_BLOCKS = {
    "RECPolicyLoss": "policy_loss",
    "RECAdvantage": "advantage",
    "RECSampleStrategy": "sample_strategy",
    "InformativeSampleStrategy": "sample_strategy",
    "BalancedSampleStrategy": "sample_strategy",
    "StalenessSampleStrategy": "sample_strategy",
    "OfflineSampleStrategy": "sample_strategy",
}

__all__ = [
    "BalancedSampleStrategy",
    "InformativeSampleStrategy",
    "OfflineSampleStrategy",
    "RECAdvantage",
    "RECPolicyLoss",
    "RECSampleStrategy",
    "StalenessSampleStrategy",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Import a building block, or make a preset's algorithm class, when it is first asked for (PEP 562)."""
    if name in _BUILDING_BLOCKS:
        value = getattr(import_module(f"trinity_rec.plugin.{_BUILDING_BLOCKS[name]}"), name)
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
