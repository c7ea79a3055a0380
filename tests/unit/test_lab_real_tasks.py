"""A real model's tasks pay for what they ask, hold things out altogether, and are chosen by the rule."""

import re
from math import prod

import pytest
import torch

from trinity_rec.lab.real_tasks import REAL_TASKS, how_far, numbers
from trinity_rec.lab.suitability import PROBLEMS, SAMPLES, Suitability, chosen, measure
from trinity_rec.lab.tasks import Problem

EVERY_TASK = pytest.mark.parametrize("task", REAL_TASKS.values(), ids=REAL_TASKS)


@EVERY_TASK
def test_right_answers_get_all_and_nonsense_gets_nothing(task):
    for problem in [*task.train, *task.held_out]:
        assert task.reward(problem, problem.answer) == 1
        assert task.reward(problem, "") == task.reward(problem, "To find out, we") == 0


@EVERY_TASK
def test_what_is_held_out_is_unseen_in_every_wording(task):
    asked = [{tuple(sorted(numbers(problem.question))) for problem in part} for part in task.problems]
    assert asked[0].isdisjoint(asked[1])
    assert 32 < len(task.held_out) <= 64 < len(task.train)
    wordings = [{re.sub(r"\d+", "N", problem.question) for problem in part} for part in task.problems]
    assert wordings[0] == wordings[1] and len(wordings[0]) >= 2
    assert task.make() == task.problems, "the same problems in every process"


def test_products_are_right_and_the_last_number_counts():
    task = REAL_TASKS["products"]
    for problem in [*task.train, *task.held_out]:
        assert int(problem.answer) == prod(numbers(problem.question))
    problem = Problem("What is 7 * 8?", "56")
    for said, reward in {"56": 1, "7 * 8 = 56.": 1, "56, not 54": 0, "It is 5 6": 0, "056": 1, "156": 0}.items():
        assert task.reward(problem, said) == reward, said


def test_counting_pays_for_how_far_it_gets():
    problem = Problem("", "8, 9, 10, 11")
    for said, reward in {
        "8, 9, 10, 11": 1,
        "8 9 10 11 12 13": 1,
        "8, 9, 11, 10": 0.5,
        "9, 10, 11": 0,
        "8 to 11: 8, 9, 10": 0.75,
    }.items():
        assert how_far(problem, said) == reward, said


def test_the_rule():
    def one(task, sampled=0.3, greedy=0.5, spread=0.5, tokens=3):
        return Suitability(task, sampled, greedy, spread, tokens)

    unfit = [one("a", sampled=0.09), one("b", sampled=0.51, greedy=0.6), one("c", greedy=0.3), one("d", spread=0.3)]
    assert not any(each.suits for each in unfit)
    assert chosen(unfit) == {}
    fit = [one("e", tokens=39), one("f"), one("g", tokens=40), one("h", sampled=0.1, spread=1 / 3, tokens=99)]
    assert all(each.suits for each in fit)
    assert chosen([*unfit, *fit]) == {"short": "e", "long": "g"}


class Parrot:
    """Says the right answer to every second sample, and when it is not sampled."""

    def prompts(self, questions):
        return [torch.tensor([number]) for number, _ in enumerate(questions)]

    def length(self, text):
        return len(text)

    def sample(self, prompts, samples, length, generator):
        return [(int(prompt), generator is None or row % 2 == 0) for prompt in prompts for row in range(samples)]

    def texts(self, said):
        return [REAL_TASKS["products"].train[number].answer if right else "?" for number, right in said]


def test_what_is_measured():
    task = REAL_TASKS["products"]
    shortest = min(len(problem.answer) for problem in task.train[:PROBLEMS])
    assert SAMPLES == 8 and measure(Parrot(), task) == Suitability("products", 0.5, 1.0, 1.0, shortest + 1)
