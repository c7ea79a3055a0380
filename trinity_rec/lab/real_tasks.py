"""Tasks for a real language model: functions that make problems, and one that pays for an answer.

Each holds some things out altogether (a pair of factors in both orders, a number to start from), so that what is held
out is unseen in every wording. `suitability.py` says which of them suit a model.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from trinity_rec.lab.tasks import TASKS
from trinity_rec.lab.tasks.problems import Problem, Task

HELD_OUT = 64  # at most

Split = tuple[list[Problem], list[Problem]]
"""Problems to train on, and held-out ones."""


@dataclass(frozen=True, eq=False)
class RealTask(Task):
    """A task that a language model has met before and gets wrong at times.

    Attributes:
        make: the problems.
        pays: what a response to a problem is worth.
    """

    name: str
    title: str
    response_length: int
    make: Callable[[], Split]
    pays: Callable[[Problem, str], float]

    @cached_property
    def problems(self) -> Split:
        return self.make()

    @property
    def train(self) -> list[Problem]:
        return self.problems[0]

    @property
    def held_out(self) -> list[Problem]:
        return self.problems[1]

    def reward(self, problem: Problem, response: str) -> float:
        return self.pays(problem, response)


def numbers(text: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", text)]


def last_number(problem: Problem, response: str) -> float:
    """1 where the last number of the response is the answer."""
    return float(numbers(response)[-1:] == numbers(problem.answer))


def how_far(problem: Problem, response: str) -> float:
    """The share of the answer's numbers that the response has from the first on in their order, wherever it begins."""
    wanted, said = numbers(problem.answer), numbers(response)
    runs = (zip(said[start:], wanted, strict=False) for start in range(len(said)))
    return max((sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], run)) for run in runs), default=0) / len(
        wanted
    )


def split(things: Iterable[list[Problem]], share: float) -> Split:
    """Hold a share of the things out; each is asked in several ways, which lie together."""
    shuffled, chance = list(things), random.Random(0)
    chance.shuffle(shuffled)
    cut = round(share * len(shuffled))
    train, held_out = ([problem for thing in part for problem in thing] for part in (shuffled[cut:], shuffled[:cut]))
    chance.shuffle(held_out)
    return train, held_out[:HELD_OUT]


def products() -> Split:
    """Of two digits; a pair is held out in both orders."""
    wordings = (
        "What is {} * {}? Answer with the number only.",
        "{} * {} = ? Reply with just the number.",
        "Compute {} times {}. Give only the number.",
        "Multiply {} by {}. Answer with one number.",
    )
    pairs = [(a, b) for a in range(2, 10) for b in range(a, 10)]
    return split(
        (
            [Problem(wording.format(*order), str(a * b)) for order in sorted({(a, b), (b, a)}) for wording in wordings]
            for a, b in pairs
        ),
        share=1 / 4,
    )


def counting() -> Split:
    """Fourteen numbers, from a two-digit one on."""
    wordings = (
        "List the numbers from {} to {}, separated by commas.",
        "Write the numbers from {} to {}, separated by commas.",
    )
    return split(
        (
            [
                Problem(wording.format(first, first + 13), ", ".join(map(str, range(first, first + 14))))
                for wording in wordings
            ]
            for first in range(10, 87)
        ),
        share=1 / 3,
    )


REAL_TASKS = {
    task.name: task
    for task in (
        RealTask("products", "one-digit products", 12, products, last_number),
        RealTask("counting", "counting", 60, counting, how_far),
    )
}


def task_named(name: str) -> Task:
    """Of both kinds."""
    return TASKS[name] if name in TASKS else REAL_TASKS[name]
