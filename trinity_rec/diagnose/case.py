"""What is known of a run: its TensorBoard logs, its YAML, and how its trainer's log ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from trinity_rec.plot.events import Run, Series
from trinity_rec.plot.runs import LAST, PANELS, TAKEN, find

REWARD, KL, CLIPPED, ENTROPY, _ = (panel.tags for panel in PANELS)
GROUPS = "experience_pipeline/group_advantages"
VERSION = "sample/model_version/mean"


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        run: its logs.
        settings: its YAML; empty where none was found.
        log: the text of `log/trainer.log`; empty where there is none.
    """

    run: Run
    settings: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""

    @classmethod
    def of(cls, run: Run, config: Path | None = None) -> Case:
        """With its YAML, the given one or the one that is found near the run."""
        paths = [config] if config else _yamls_near(run.directory)
        settings = next(
            (found for path in paths if (found := _settings(path, config or run.directory)) is not None), {}
        )
        log = run.directory / "log" / "trainer.log"
        return cls(run, settings, log.read_text("utf-8", "replace") if log.is_file() else "")

    def setting(self, *keys: str) -> Any:
        value: Any = self.settings
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def series(self, *tags: str) -> tuple[str, Series] | None:
        """The first of these tags that the run logged, with its values."""
        return next(((tag, found) for tag in tags if (found := find(self.run, tag))), None)

    def last(self, *tags: str) -> tuple[str, float] | None:
        """The mean of a metric's last finite values."""
        found = self.series(*tags)
        return (found[0], mean(found[1].values[-LAST:])) if found and len(found[1].steps) else None

    def ages(self) -> dict[int, float]:
        """By training step, how many updates old its rollouts were on average; Tinker's first version is -1."""
        found = self.series(VERSION)
        if found is None:
            return {}
        return {
            int(step): max(step - 1 - max(version, 0.0), 0.0)
            for step, version in zip(found[1].steps, found[1].values, strict=True)
        }

    @property
    def steps(self) -> int:
        """How far the trainer came."""
        trained = [s.steps[-1] for tag, s in self.run.roles.get("trainer", {}).items() if tag.startswith("actor/")]
        return int(max(trained, default=0))


def at_age(case: Case, series: Series, stale: bool) -> Series:
    """The steps of a series whose rollouts were stale, or fresh; none where ages are not logged."""
    ages = case.ages()
    kept = np.array([step in ages and (ages[step] > 0) == stale for step in series.steps.tolist()], dtype=bool)
    return Series(series.steps[kept], series.values[kept])


def mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else float("nan")


def _yamls_near(directory: Path) -> Iterator[Path]:
    """Beside the run or above it: Trinity keeps no copy of its YAML, but this package's commands do."""
    for place in [directory, *directory.resolve().parents][:5]:
        yield from sorted([*place.glob("*.yaml"), *place.glob("launch/*.yaml")])


def _settings(path: Path, run: Path) -> dict[str, Any] | None:
    """The content of a YAML if it is the run's: the one that the user named, or one with the run's `name`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        if path == run:
            raise ValueError(f"{path}: {str(error).splitlines()[0]}") from error
        return None
    if not isinstance(content, dict):
        return None
    is_runs = path == run or ("algorithm" in content and content.get("name") == TAKEN.sub("", run.name))
    return content if is_runs else None
