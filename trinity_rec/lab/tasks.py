"""Three families of problems with rewards that a program can check, of different length and reward density.

`addition` has short answers that are right or wrong. `word_problems` have GSM8K's shape (Cobbe et al. 2021, arXiv
2110.14168): a little story, the running totals, the answer behind `#`; longer, and right less often. `tool_call` asks,
in the spirit of ToolACE (Liu et al. 2024, arXiv 2409.00920), for a function call, and pays for each right part.

A task also knows how people get it wrong (`mistaken`): the warm-up hears both, so that the model knows the right answer
and yet seldom says it.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

HELD_OUT, TRAINED_ON = 256, 1024


@dataclass(frozen=True)
class Problem:
    """What is asked and what is right, as text."""

    question: str
    answer: str


class Vocabulary:
    """Words, single digits and signs as tokens; spaces part words and are not tokens themselves."""

    PAD, END = "<|pad|>", "<|end|>"
    pad, end = 0, 1
    PIECE = re.compile(r"[a-z_]+|\S")

    def __init__(self, texts: Iterable[str]) -> None:
        pieces = {piece for text in texts for piece in self.PIECE.findall(text)}
        self.tokens = [self.PAD, self.END, *sorted(pieces)]
        self._ids = {token: number for number, token in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        return [self._ids[piece] for piece in self.PIECE.findall(text)]

    def decode(self, ids: Iterable[int]) -> str:
        """The text up to the end token, without spaces."""
        text = []
        for number in ids:
            if number == self.end:
                break
            text.append(self.tokens[number])
        return "".join(text)

    def prompts(self, questions: list[str]) -> Tensor:
        """Ids [questions, longest], padded on the left; the model is warmed up on the same padding."""
        rows = [self.encode(question) for question in questions]
        width = max(map(len, rows))
        return torch.tensor([[self.pad] * (width - len(row)) + row for row in rows])

    def answers(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Ids with the end token and their mask, [texts, longest] each, padded on the right with the end token."""
        rows = [[*self.encode(text), self.end] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [self.end] * (width - len(row)) for row in rows])
        return ids, torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])


class Task(ABC):
    """A family of problems.

    Attributes:
        name: what users type.
        title: what figures say.
        response_length: tokens of a response at most, the end token included.
    """

    name: str
    title: str
    response_length: int

    @abstractmethod
    def all_problems(self) -> list[Problem]:
        """Every problem of the family (or a fixed large choice of them), in a fixed order."""

    @abstractmethod
    def mistaken(self, problem: Problem, chance: random.Random) -> str:
        """An answer as somebody gives it who errs at times: right often enough to be the likeliest."""

    def reward(self, problem: Problem, response: str) -> float:
        """Between 0 and 1; 1 is a right answer."""
        return float(response == problem.answer)

    def rewards(self, problems: Sequence[Problem], said: Tensor) -> list[float]:
        """The reward of each response in `said` [problems * samples, response], token ids; a problem's lie together."""
        samples = len(said) // len(problems)
        texts = map(self.vocabulary.decode, said.tolist())
        return [self.reward(problems[row // samples], text) for row, text in enumerate(texts)]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        texts = (f"{problem.question} {problem.answer}" for problem in self.all_problems())
        return Vocabulary([*texts, "0123456789"])

    @cached_property
    def _shuffled(self) -> list[Problem]:
        problems = list(self.all_problems())
        random.Random(0).shuffle(problems)
        return problems

    @property
    def held_out(self) -> list[Problem]:
        """For evaluation; neither warm-up nor training sees them."""
        return self._shuffled[:HELD_OUT]

    @property
    def train(self) -> list[Problem]:
        """For reinforcement learning; a part of the warm-up's, as an LLM has usually seen problems of the kind."""
        return self._shuffled[HELD_OUT : HELD_OUT + TRAINED_ON]

    @property
    def warm_up(self) -> list[Problem]:
        return self._shuffled[HELD_OUT:]


class Addition(Task):
    """47+38= → 85"""

    name, title, response_length = "addition", "two-digit addition", 4

    def all_problems(self) -> list[Problem]:
        span = range(10, 100)
        return [Problem(f"{a}+{b}=", str(a + b)) for a in span for b in span]

    def mistaken(self, problem: Problem, chance: random.Random) -> str:
        if chance.random() < 0.35:
            return problem.answer
        return str(abs(int(problem.answer) + chance.choice((-1, 1)) * chance.randint(1, 19)))


class WordProblems(Task):
    """ann has 3 bags of 4 pens, finds 5, loses 2 → 12,17,15#15"""

    name, title, response_length = "word_problems", "three-step word problems", 13
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


class ToolCall(Task):
    """weather in rome for 3 days → get_weather(city=rome,days=3)

    0.2 for a call that parses, 0.2 more for the right function, 0.3 for each right argument.
    """

    name, title, response_length = "tool_call", "tool calls", 12
    _TOOLS = (
        ("get_weather", "days", "weather in {} for {} days"),
        ("book_hotel", "nights", "find a bed in {} , {} nights"),
        ("reserve_table", "guests", "eat out in {} with {} friends"),
        ("buy_tickets", "seats", "fly to {} , {} of us"),
    )
    _CITIES = (
        *("rome", "oslo", "lima", "cairo", "paris", "tokyo", "delhi", "quito", "riga", "bonn", "porto", "accra"),
        *("dakar", "hanoi", "kyoto", "lagos", "malmo", "nairobi", "osaka", "perth", "seoul", "sofia", "tunis", "turin"),
    )
    _POLITE = ("", "please", "hello", "today", "quick", "now")
    _CALL = re.compile(r"([a-z_]+)\(city=([a-z]+),([a-z]+)=(\d)\)")

    def all_problems(self) -> list[Problem]:
        return [
            Problem(f"{word} {asked.format(city, number)}".strip(), f"{tool}(city={city},{unit}={number})")
            for tool, unit, asked in self._TOOLS
            for city in self._CITIES
            for number in range(1, 10)
            for word in self._POLITE
        ]

    def mistaken(self, problem: Problem, chance: random.Random) -> str:
        tool, city, unit, number = self._parts(problem.answer)
        if chance.random() < 0.3:
            tool, unit, _ = chance.choice(self._TOOLS)
        if chance.random() < 0.35:
            city = chance.choice(self._CITIES)
        if chance.random() < 0.35:
            number = str(chance.randint(1, 9))
        call = f"{tool}(city={city},{unit}={number})"
        if chance.random() < 0.25:
            sign, instead = chance.choice((("city=", ""), (",", ")"), (")", "")))
            call = call.replace(sign, instead, 1)
        return call

    def reward(self, problem: Problem, response: str) -> float:
        found = self._CALL.fullmatch(response)
        if found is None:
            return 0.0
        tool, city, unit, number = self._parts(problem.answer)
        call = found.groups()
        return 0.2 + 0.2 * (call[0] == tool) + 0.3 * (call[1] == city) + 0.3 * (call[2:] == (unit, number))

    def _parts(self, call: str) -> tuple[str, ...]:
        found = self._CALL.fullmatch(call)
        if found is None:
            raise ValueError(f"{call!r} is not a call")
        return found.groups()


TASKS: dict[str, Task] = {task.name: task for task in (Addition(), WordProblems(), ToolCall())}
