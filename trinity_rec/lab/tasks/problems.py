"""What a task of the lab is: problems with a reward that a program can check, and how people get them wrong."""

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
        train, held_out: the problems of reinforcement learning and of the evaluations; no problem is in both.
    """

    name: str
    title: str
    response_length: int
    train: Sequence[Problem]
    held_out: Sequence[Problem]

    @abstractmethod
    def reward(self, problem: Problem, response: str) -> float:
        """Between 0 and 1; 1 is a right answer."""

    def rewards(self, problems: Sequence[Problem], said: Sequence[str]) -> list[float]:
        """The reward of each response; the samples of a problem lie together."""
        samples = len(said) // len(problems)
        return [self.reward(problems[row // samples], text) for row, text in enumerate(said)]


class TaughtTask(Task):
    """A task of the lab's own models.

    It also knows how people get it wrong (`mistaken`): the warm-up hears both, so that the model knows the right
    answer and yet seldom says it.

    Attributes:
        rate: the learning rate, by the rule of `trinity_rec.lab.rates`.
    """

    rate: float

    @abstractmethod
    def all_problems(self) -> list[Problem]:
        """Every problem of the family (or a fixed large choice of them), in a fixed order."""

    @abstractmethod
    def mistaken(self, problem: Problem, chance: random.Random) -> str:
        """An answer as somebody gives it who errs at times: right often enough to be the likeliest."""

    def reward(self, problem: Problem, response: str) -> float:
        return float(response == problem.answer)

    @cached_property
    def vocabulary(self) -> Vocabulary:
        texts = (f"{problem.question} {problem.answer}" for problem in self.all_problems())
        return Vocabulary([*texts, "0123456789"])

    @cached_property
    def _shuffled(self) -> list[Problem]:
        problems = list(self.all_problems())
        random.Random(0).shuffle(problems)
        return problems

    @cached_property
    def held_out(self) -> list[Problem]:
        """For evaluation; neither warm-up nor training sees them."""
        return self._shuffled[:HELD_OUT]

    @cached_property
    def train(self) -> list[Problem]:
        """For reinforcement learning; a part of the warm-up's, as an LLM has usually seen problems of the kind."""
        return self._shuffled[HELD_OUT : HELD_OUT + TRAINED_ON]

    @property
    def warm_up(self) -> list[Problem]:
        return self._shuffled[HELD_OUT:]
