"""What experiments compare, in one table for lab and paper: algorithms, and how far off-policy their rollouts are.

An algorithm is a preset and what differs from it. Nothing heavy is imported: a command that lists experiments answers
at once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trinity_rec.presets import PRESETS


@dataclass(frozen=True)
class Setting:
    """How far off-policy the rollouts are (section 5 of arXiv 2509.24203).

    Attributes:
        name, title: what users type, what tables and figures say.
        sync_interval: the rollout weights are refreshed every so many training steps; None never (offline).
        sync_offset: the rollouts run so many steps ahead of training.
    """

    name: str
    title: str
    sync_interval: int | None = 1
    sync_offset: int = 0

    @property
    def is_offline(self) -> bool:
        """All rollouts come from the initial policy."""
        return self.sync_interval is None

    def rollout_version(self, step: int) -> int:
        """The rollouts of training step `step` (from 0) come from the weights after so many steps."""
        if self.sync_interval is None:
            return 0
        return max(0, step - self.sync_offset) // self.sync_interval * self.sync_interval

    def synchronizer(self) -> dict[str, Any]:
        """What it sets in that section of Trinity's YAML. Offline, the first new weights come when all is over."""
        interval = "${buffer.total_steps}" if self.sync_interval is None else self.sync_interval
        return {"sync_interval": interval, "sync_offset": self.sync_offset}


@dataclass(frozen=True)
class Variant:
    """An algorithm of an experiment.

    Attributes:
        name, title: what users type, what tables and figures say.
        preset: a row of `trinity_rec.presets`.
        policy_loss, advantage: arguments of its policy loss and advantage that differ from the preset's.
        rate_factor: on the task's learning rate.
    """

    name: str
    title: str
    preset: str
    policy_loss: dict[str, Any] = field(default_factory=dict)
    rate_factor: int = 1
    advantage: dict[str, Any] = field(default_factory=dict)


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("on_policy", "on-policy"),
        Setting("sync_interval_20", "sync_interval 20", sync_interval=20),
        # The paper gives the offset alone; with new weights at each step every batch is ten steps old.
        Setting("sync_offset_10", "sync_offset 10", sync_offset=10),
        Setting("offline", "offline", sync_interval=None),
    )
}

# What the arena compares: the paper's settings, and intervals between and beyond them.
LAGS = {
    setting.name: setting
    for setting in (
        SETTINGS["on_policy"],
        Setting("sync_interval_4", "sync_interval 4", sync_interval=4),
        SETTINGS["sync_interval_20"],
        Setting("sync_interval_64", "sync_interval 64", sync_interval=64),
        SETTINGS["sync_offset_10"],
        SETTINGS["offline"],
    )
}

WIDE = {"epsilon_low": 0.6, "epsilon_high": 2.0}

VARIANTS = {
    variant.name: variant
    for variant in (
        *(Variant(preset.name, preset.title, preset.name) for preset in PRESETS.values() if preset.name != "rec"),
        Variant("rec_oneside_nois_wide", "REC-OneSide-NoIS (0.6, 2.0)", "rec_oneside_nois", WIDE),
        Variant("rec_oneside_is_wide", "REC-OneSide-IS (0.6, 2.0)", "rec_oneside_is", WIDE),
        *(Variant(f"rec_grpo_rate_{k}", f"GRPO, {k} times the rate", "rec_grpo", rate_factor=k) for k in (2, 3, 4, 5)),
    )
}
