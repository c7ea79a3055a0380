"""What the arena runs, and by which rules it is judged; written before any run.

A cell is an algorithm on a task under a lag. First it is trained at each of `RATES` on the seeds of `TUNING`; the rate
with the highest mean final reward (of equals the smallest) is its own. Then it is trained at that rate on the seeds of
`JUDGING`, which nothing was chosen on, and only these count. A comparison at one rate for all would compare how well
that rate happens to suit each: a rule that shrinks its gradient is then called stable, and slow.

The cells of one task and lag are a column. The arena runs column by column, so that what is there when it stops is
whole.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from trinity_rec.lab.grid import Job
from trinity_rec.lab.training import Experiment, train
from trinity_rec.presets import PRESETS
from trinity_rec.variants import LAGS, VARIANTS, Variant

RULES = 1  # of the tables below and of `score`; results by other rules are never mixed with these

# Two decades around the rates that `lab.rates` finds for GRPO on-policy (2e-4 and 5e-4), in steps of sqrt(10).
RATES = (5e-5, 1.6e-4, 5e-4, 1.6e-3, 5e-3)
TUNING = (1000, 1001)
JUDGING = (0, 1, 2, 3, 4)

# The gates: a run that fails one is reported beside its reward, which may look well all the same.
COLLAPSE = 0.1  # the reward ends so far below its best: the highest mean of three evaluations less the last
LEAST_ENTROPY = 0.02  # nats a token at the end, where
ENOUGH_REWARD = 0.9  # the reward is below this: nothing is tried any more, and something is left to learn
LEAST_SAMPLE_SIZE = 0.5  # of the batch, in any stretch between two evaluations: few tokens make up the gradient
KEPT = 0.9  # robustness: the share of the rates at which an algorithm keeps so much of its best gain

# An algorithm of one's own succeeds where it nowhere ends more than this below the preset that ends highest there, and
# its robustness, mean over tasks and lags, is above that of those presets.
ALLOWANCE = 0.02

ALGORITHMS = tuple(name for name in VARIANTS if name in PRESETS)


@dataclass(frozen=True)
class Scale:
    """How much is run.

    Attributes:
        steps: of a run; two and more refreshes at the longest interval of `LAGS`, where there is room for it.
        tuning: seeds of each rate.
    """

    tasks: tuple[str, ...]
    lags: tuple[str, ...]
    algorithms: tuple[str, ...]
    steps: int
    evaluate_every: int
    tuning: tuple[int, ...] = TUNING
    judging: tuple[int, ...] = JUDGING
    rates: tuple[float, ...] = RATES

    @property
    def marker(self) -> dict[str, Any]:
        """What results must have in common to stand in one directory."""
        return {
            "rules": RULES,
            "steps": self.steps,
            "evaluate_every": self.evaluate_every,
            "rates": list(self.rates),
            "tuning": list(self.tuning),
            "judging": list(self.judging),
        }

    def only(self, algorithms: Collection[str] = (), tasks: Collection[str] = (), lags: Collection[str] = ()) -> Scale:
        """The part that is asked for; what is not asked for stays whole."""
        return replace(
            self,
            algorithms=tuple(algorithms) or self.algorithms,
            tasks=tuple(tasks) or self.tasks,
            lags=tuple(lags) or self.lags,
        )


FULL = Scale(("addition", "word_problems", "tool_call"), tuple(LAGS), ALGORITHMS, steps=128, evaluate_every=16)
# One of each kind: no correction, clipping, both ratios of it, a regulariser, weights of the data, a cap, a mask, a
# clipped weight, a rule of the whole response.
QUICK = Scale(
    ("addition",),
    ("on_policy", "sync_interval_20", "offline"),
    (
        "rec_reinforce",
        "rec_grpo",
        "rec_oneside_nois",
        "rep_opmd",
        "red_weight",
        "off_tis",
        "off_icepop",
        "off_cispo",
        "off_topr",
    ),
    steps=100,
    evaluate_every=10,
    tuning=TUNING[:1],
)

Cell = tuple[str, str, str]
"""Task, lag, algorithm."""


@dataclass(frozen=True)
class Plan:
    """The runs of a scale, with the algorithms that take part.

    Attributes:
        variants: name -> algorithm; the scale's, and one's own.
        folders: name -> what its curves lie under, where that is not the name.
    """

    scale: Scale
    out: Path
    variants: Mapping[str, Variant]
    folders: Mapping[str, str] = field(default_factory=dict)

    @property
    def columns(self) -> list[tuple[str, str]]:
        """Task and lag, in the order in which they are run."""
        return list(product(self.scale.tasks, self.scale.lags))

    def cells(self, column: tuple[str, str]) -> list[Cell]:
        return [(*column, name) for name in self.variants]

    def path(self, cell: Cell, rate: float, seed: int) -> Path:
        task, lag, name = cell
        return Path(self.out, "curves", task, lag, self.folders.get(name, name), f"{rate:g}", f"seed_{seed}.csv")

    def job(self, cell: Cell, rate: float, seed: int) -> Job:
        task, lag, name = cell
        experiment = Experiment(
            task, LAGS[lag], self.variants[name], seed, rate, self.scale.steps, evaluate_every=self.scale.evaluate_every
        )
        return Job(partial(train, experiment), self.path(cell, rate, seed), self.scale.steps)

    def tuning(self, cells: Sequence[Cell]) -> list[Job]:
        every = product(cells, self.scale.rates, self.scale.tuning)
        return [self.job(*each) for each in every]

    def judging(self, rates: Mapping[Cell, float]) -> list[Job]:
        return [self.job(cell, rate, seed) for cell, rate in rates.items() for seed in self.scale.judging]

    def whole(self) -> list[Cell]:
        """The cells that are there in full, from this call or another, by task, lag and algorithm."""
        names = [*ALGORITHMS, *(name for name in self.variants if name not in ALGORITHMS)]
        every = product(FULL.tasks, LAGS, names)
        return [
            cell
            for cell in every
            if self.path(cell, self.scale.rates[0], self.scale.tuning[0]).exists() and not self._missing(cell)
        ]

    def runs_to_come(self) -> dict[str, int]:
        """Task -> runs that are not there, if any. Before its tuning is done a cell's judging counts as to come."""
        return {
            task: runs
            for task in self.scale.tasks
            if (runs := sum(self._missing(cell) for cell in self._cells_of(task)))
        }

    def _cells_of(self, task: str) -> Iterator[Cell]:
        return (cell for column in self.columns if column[0] == task for cell in self.cells(column))

    def _missing(self, cell: Cell) -> int:
        runs = product(self.scale.rates, self.scale.tuning)
        tuning = sum(not self.path(cell, *run).exists() for run in runs)
        there = max(
            sum(self.path(cell, rate, seed).exists() for seed in self.scale.judging) for rate in self.scale.rates
        )
        return tuning + len(self.scale.judging) - there
