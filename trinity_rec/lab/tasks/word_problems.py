"""A little story, the running totals, the answer behind `#`: GSM8K's shape (Cobbe et al. 2021, arXiv 2110.14168).

Longer than an addition, and right less often.
"""

from __future__ import annotations

import random

from trinity_rec.lab.tasks.problems import Problem, TaughtTask


class WordProblems(TaughtTask):
    """ann has 3 bags of 4 pens, finds 5, loses 2 → 12,17,15#15"""

    name, title, response_length = "word_problems", "three-step word problems", 13
    rate = 2e-4
    _WHO = ("ann", "ben", "cleo", "dan", "eve", "finn", "gus", "hana")
    _WHAT = ("pens", "nuts", "coins", "books", "pears", "cards", "shells", "cups")
    _COUNT = 12_000
    _SLIP, _MISREAD = 0.35, 0.15

    def all_problems(self) -> list[Problem]:
        chance = random.Random(1)
        problems = {}
        while len(problems) < self._COUNT:
            bags, each, first, second = (chance.randint(2, 9) for _ in range(4))
            signs = [chance.choice((-1, 1)) for _ in range(2)]
            who, what = chance.choice(self._WHO), chance.choice(self._WHAT)
            totals = [bags * each, bags * each + signs[0] * first]
            totals.append(totals[1] + signs[1] * second)
            if min(totals) < 0:
                continue
            verbs = ["finds" if sign > 0 else "loses" for sign in signs]
            question = f"{who} has {bags} bags of {each} {what} , {verbs[0]} {first} , {verbs[1]} {second}"
            problems[question] = Problem(question, ",".join(map(str, totals)) + f"#{totals[-1]}")
        return list(problems.values())

    def mistaken(self, problem: Problem, chance: random.Random) -> str:
        totals = [int(total) for total in problem.answer.partition("#")[0].split(",")]
        steps = [totals[0], totals[1] - totals[0], totals[2] - totals[1]]
        said, running = [], 0
        for step in steps:
            running += step
            if chance.random() < self._SLIP:
                running = abs(running + chance.choice((-1, 1)) * chance.randint(1, 9))
            said.append(abs(running))
        last = said[-1]
        if chance.random() < self._MISREAD:
            last = abs(last + chance.choice((-1, 1)) * chance.randint(1, 9))
        return ",".join(map(str, said)) + f"#{last}"

    def reward(self, problem: Problem, response: str) -> float:
        """1 where the number behind `#` is right, however it was reached."""
        return float("#" in response and response.rpartition("#")[2] == problem.answer.rpartition("#")[2])


TASK = WordProblems()
