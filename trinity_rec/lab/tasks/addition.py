"""Short answers that are right or wrong."""

from __future__ import annotations

import random

from trinity_rec.lab.tasks.problems import Problem, TaughtTask


class Addition(TaughtTask):
    """47+38= → 85"""

    name, title, response_length = "addition", "two-digit addition", 4
    rate = 5e-4

    def all_problems(self) -> list[Problem]:
        span = range(10, 100)
        return [Problem(f"{a}+{b}=", str(a + b)) for a in span for b in span]

    def mistaken(self, problem: Problem, chance: random.Random) -> str:
        if chance.random() < 0.35:
            return problem.answer
        return str(abs(int(problem.answer) + chance.choice((-1, 1)) * chance.randint(1, 19)))


TASK = Addition()
