"""Which runs are seeds of one another, and what to draw of them.

Trinity keeps no copy of a run's YAML, so names decide: runs whose paths differ only in a seed (`grpo-seed1`,
`seed_2/…`), or in the time that Trinity appends to a name that is taken, are one curve. A label before the path decides
otherwise.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from trinity_rec.plot.draw import STYLES, Curve
from trinity_rec.plot.events import Run, Series, find_runs, read_run
from trinity_rec.presets import PRESETS

SEED = re.compile(r"[-_.]?seed[-_.=]?\d+", re.IGNORECASE)
TAKEN = re.compile(r"_\d{14}$")  # what Trinity appends where a directory of this name is there already
LAST = 10  # steps that a final number is the mean of


@dataclass(frozen=True)
class Panel:
    """One picture: the metric's name and title, and the tags that carry it, the preferred one first."""

    name: str
    title: str
    tags: tuple[str, ...]
    smoothed: bool = True


PANELS = (
    Panel("reward", "reward of the rollouts", ("critic/rewards/mean", "critic/score/mean")),
    # From sync to sync these two rise and fall like a saw, which is what they tell: they are drawn as they are.
    Panel("kl", "KL to the rollout policy (k1)", ("actor/kl_k1", "actor/ppo_kl", "actor/approx_kl"), smoothed=False),
    Panel("clip_fraction", "clipped share of tokens", ("actor/pg_clipfrac",), smoothed=False),
    Panel(
        "entropy",
        "entropy per token (nats)",
        ("actor/entropy", "experience_pipeline/group_advantages/rollout_entropy", "actor/entropy_loss"),
    ),
    Panel("response_length", "response length (tokens)", ("response_length/mean",)),
)


@dataclass(frozen=True)
class Group:
    """Runs that are seeds of one another: what the legend says, the name whose style the curve takes, and the runs."""

    label: str
    name: str
    runs: tuple[Run, ...]


def read_groups(arguments: Sequence[str], each_run: bool = False) -> list[Group]:
    """The runs in the directories of a command line, each `DIR` or `LABEL=DIR`, grouped over seeds.

    Args:
        each_run: every run by itself.

    Raises:
        LogsError: a directory without logs, or a damaged one.
    """
    found: dict[tuple[str, Path], None] = {}  # a run may be drawn under several labels, but once under each
    for argument in arguments:
        label, equals, path = argument.partition("=")
        if not equals or Path(argument).exists():
            label, path = "", argument
        for job in find_runs(Path(path)):
            found[label, job.resolve()] = None
    grouped: dict[str, list[Path]] = {}
    for (given, job), own in zip(found, labels_of([job for _, job in found], each_run), strict=True):
        label = f"{given}/{own}" if given and each_run else given or own
        grouped.setdefault(label, []).append(job)
    presets = {label: label.rpartition("/")[2].removeprefix("trinity_rec.").replace("-", "_") for label in grouped}
    times = Counter(presets.values())
    groups = []
    for label, jobs in grouped.items():
        known = presets[label] in STYLES and times[presets[label]] == 1  # one of its kind: it takes the preset's style
        title = PRESETS[label].title if known and label in PRESETS else label
        groups.append(Group(title, presets[label] if known else label, tuple(map(read_run, jobs))))
    return groups


def labels_of(jobs: Sequence[Path], each_run: bool = False) -> list[str]:
    """What is particular about each absolute path: its parts that are not everybody's, without the seed."""
    parts = [list(job.parts) for job in jobs]
    if not each_run:
        parts = [[kept for part in path if (kept := SEED.sub("", TAKEN.sub("", part)))] for path in parts]
    start = _in_common(parts)
    if any(len(path) == start for path in parts):
        start -= 1  # one path is the beginning of the others, or there is only one
    end = _in_common([path[:start:-1] for path in parts])
    return ["/".join(path[start : len(path) - end]) for path in parts]


def _in_common(paths: Sequence[Sequence[str]]) -> int:
    """How many parts all paths begin with."""
    return len(list(takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))))


def find(run: Run, tag: str) -> Series | None:
    """The series of this tag, whichever role logged it."""
    if tag == "actor/entropy_loss" and any("loss:sum" in tags for tags in run.roles.values()):
        return None  # Trinity's Tinker trainer knows the drawn tokens alone: there it is no entropy
    return next((tags[tag] for tags in run.roles.values() if tag in tags), None)


def tags_of(panel: Panel, runs: Iterable[Run]) -> dict[Path, str]:
    """The tag to draw of each run that has one: the same for all if one can be, else the first that each has."""
    runs = list(runs)
    for tag in panel.tags:
        if all(find(run, tag) for run in runs):
            return {run.directory: tag for run in runs}
    chosen = {run.directory: next((tag for tag in panel.tags if find(run, tag)), "") for run in runs}
    return {directory: tag for directory, tag in chosen.items() if tag}


def curve(group: Group, tags: dict[Path, str]) -> Curve | None:
    """A group's curve, with the seeds that have the metric; None without any."""
    known = [find(run, tags[run.directory]) for run in group.runs if run.directory in tags]
    seeds = [series for series in known if series is not None]
    if not seeds:
        return None
    steps = np.unique(np.concatenate([series.steps for series in seeds]))
    values = np.full((len(seeds), len(steps)), np.nan)
    for row, series in zip(values, seeds, strict=True):
        row[np.searchsorted(steps, series.steps)] = series.values
    return Curve(group.label, steps, values, group.name)


def final(values: np.ndarray) -> np.ndarray:
    """Each seed's mean over its last `LAST` values, [seeds]; NaN for a seed without any."""
    known = [seed[np.isfinite(seed)][-LAST:] for seed in values]
    return np.array([seed.mean() if len(seed) else np.nan for seed in known])


def every_tag(groups: Iterable[Group]) -> set[str]:
    return {tag for group in groups for run in group.runs for tags in run.roles.values() for tag in tags}
