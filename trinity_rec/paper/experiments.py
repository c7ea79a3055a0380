"""The experiments of section 6 of arXiv 2509.24203 as a table: a task, a setting and an algorithm, which name it.

    gsm8k/sync_interval_20/rec_oneside_nois_wide

Algorithms and settings are those of `trinity_rec.variants`, a task is a file of configs/paper/. Nothing heavy is
imported here: `trinity-rec paper list` answers at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from trinity_rec.terminal import UsageError, by_number, did_you_mean
from trinity_rec.variants import SETTINGS, VARIANTS, Setting, Variant


@dataclass(frozen=True)
class Task:
    """A model and its problems; what else it is made of stands in configs/paper/<name>.yaml."""

    name: str
    title: str
    model: str


@dataclass(frozen=True)
class Experiment:
    """One training run of the paper.

    Attributes:
        figures: numbers of the paper's figures that it is for.
    """

    task: Task
    setting: Setting
    algorithm: Variant
    figures: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.setting.name}/{self.algorithm.name}"


TASKS = {
    task.name: task
    for task in (
        Task("gsm8k", "GSM8K", "Qwen2.5-1.5B-Instruct"),
        Task("toolace", "ToolACE", "Llama-3.2-3B-Instruct"),
        Task("guru_math", "Guru-Math", "Qwen2.5-7B-Instruct"),
        Task("math", "MATH", "Llama-3.1-8B-Instruct"),
    )
}

REC = (
    "rec_reinforce",
    "rec_grpo",
    "rec_oneside_is",
    "rec_oneside_nois",
    "rec_twoside_is",
    "rec_twoside_nois",
    "rec_ring_is",
    "rec_ring_nois",
    "rec_oneside_is_wide",
    "rec_oneside_nois_wide",
)
RED = ("red_drop", "red_weight")
REP = ("rep_opmd", "rep_asymre")
RATES = ("rec_grpo", *(f"rec_grpo_rate_{k}" for k in (2, 3, 4, 5)), "rec_oneside_nois_wide")
OFF_POLICY = ("sync_interval_20", "sync_offset_10", "offline")
APPENDIX = "9-11"


@dataclass(frozen=True)
class Figure:
    """What the paper compares in one figure: a task in some settings, several algorithms in each.

    Attributes:
        number: the paper's; which of figures 9 to 11 shows what is not known here, so these three are one.
        name: of the picture's file.
    """

    number: str
    name: str
    title: str
    task: str
    settings: tuple[str, ...]
    algorithms: tuple[str, ...]


FIGURES = (
    Figure("3", "gsm8k_rec", "REC on GSM8K", "gsm8k", OFF_POLICY, REC),
    Figure("4", "toolace_rec", "REC on ToolACE", "toolace", OFF_POLICY, REC),
    Figure("5", "gsm8k_red", "RED on GSM8K", "gsm8k", ("on_policy", "sync_interval_20"), ("rec_grpo", *RED)),
    Figure("6", "guru_math", "RED-Weight on Guru-Math", "guru_math", ("sync_interval_20",), ("rec_grpo", "red_weight")),
    Figure(
        "7", "math", "RED-Weight on MATH", "math", ("sync_interval_20",), ("rec_grpo", "rec_oneside_nois", "red_weight")
    ),
    Figure(APPENDIX, "gsm8k_rates", "a larger learning rate on GSM8K", "gsm8k", OFF_POLICY, RATES),
    Figure(
        APPENDIX, "gsm8k_rep", "REP on GSM8K", "gsm8k", OFF_POLICY, (*REP, "rec_reinforce", "rec_oneside_nois_wide")
    ),
    Figure(APPENDIX, "gsm8k_red_off_policy", "RED on GSM8K, off-policy", "gsm8k", OFF_POLICY, ("rec_grpo", *RED)),
)


def _table() -> dict[str, Experiment]:
    found: dict[tuple[str, str, str], list[str]] = {}
    for figure in FIGURES:
        for setting in figure.settings:
            for algorithm in figure.algorithms:
                numbers = found.setdefault((figure.task, setting, algorithm), [])
                if figure.number not in numbers:
                    numbers.append(figure.number)
    experiments = (
        Experiment(TASKS[task], SETTINGS[setting], VARIANTS[algorithm], tuple(sorted(numbers, key=by_number)))
        for (task, setting, algorithm), numbers in found.items()
    )
    return {each.name: each for each in experiments}


EXPERIMENTS: dict[str, Experiment] = _table()


def figure_names() -> list[str]:
    """As users type them: 9, 10 and 11 each stand for all three."""
    return sorted({name for each in EXPERIMENTS.values() for name in figures_of(each)}, key=by_number)


def figures_of(experiment: Experiment) -> list[str]:
    return [name for figure in experiment.figures for name in (["9", "10", "11"] if figure == APPENDIX else [figure])]


def select(
    names: Iterable[str] = (), task: str | None = None, setting: str | None = None, figure: str | None = None
) -> list[Experiment]:
    """The experiments of these names (shell patterns too: `gsm8k/*/rec_grpo`), in the table's order; all without names.

    Raises:
        UsageError: a name, task, setting or figure that is not there, or nothing is left.
    """
    for value, known, kind in (
        (task, TASKS, "task"),
        (setting, SETTINGS, "setting"),
        (figure, figure_names(), "figure"),
    ):
        if value is not None and value not in known:
            raise UsageError(f"no {kind} {value!r}; known: {', '.join(known)}")
    patterns = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in EXPERIMENTS):
            hint = f"no experiment is called {pattern!r}"
            is_pattern = any(sign in pattern for sign in "*?[")
            raise UsageError(f"{hint}; see `trinity-rec paper list`" if is_pattern else f"{hint}; {_nearest(pattern)}")
    chosen = [
        each
        for each in EXPERIMENTS.values()
        if (not patterns or any(fnmatchcase(each.name, pattern) for pattern in patterns))
        and task in (None, each.task.name)
        and setting in (None, each.setting.name)
        and (figure is None or figure in figures_of(each))
    ]
    if not chosen:
        raise UsageError("no experiment is left; see `trinity-rec paper list`")
    return chosen


def _nearest(name: str) -> str:
    """The nearest experiment; of the same task where that is right, since long names are alike in most letters."""
    same_task = [each for each in EXPERIMENTS if each.partition("/")[0] == name.partition("/")[0]]
    hint = did_you_mean(name, same_task or EXPERIMENTS)
    return hint if hint.startswith("did") else "names are task/setting/algorithm, see `trinity-rec paper list`"
