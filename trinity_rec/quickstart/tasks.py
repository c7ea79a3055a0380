"""The quickstart's problems: two-digit additions in GSM8K's shape, split so that nothing held out is ever trained on.

GSM8K (Cobbe et al. 2021, arXiv 2110.14168) is a JSONL file of `question` and `answer`, whose answer ends in `#### N`.
The same shape here means that a real GSM8K file can take the place of `train.jsonl` in `quickstart.yaml`.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Right = Callable[[str, str], bool]
"""Whether a response, the first, is right by the answer of its problem, the second."""

FINAL_ANSWER = re.compile(r"####\s*(-?[\d,]*\.?\d+)")
SMALLEST, LARGEST = 10, 99


@dataclass(frozen=True)
class Addition:
    a: int
    b: int

    @property
    def question(self) -> str:
        return f"What is {self.a} + {self.b}?"

    @property
    def total(self) -> int:
        return self.a + self.b

    def to_gsm8k(self) -> dict[str, str]:
        return {
            "question": self.question,
            "answer": f"{self.a} + {self.b} = {self.total}\n{final_line(self.total)}",
        }


@dataclass(frozen=True)
class Split:
    """`warm_up` teaches the model to add, `train` is for reinforcement learning, `held_out` is seen by neither."""

    warm_up: list[Addition]
    train: list[Addition]
    held_out: list[Addition]


def final_line(number: int) -> str:
    """What the model is taught to say: GSM8K's last line."""
    return f"#### {number}"


def final_answer(text: str) -> float | None:
    """The number behind the last `####` of `text`, or None; `1,234` reads as 1234."""
    found = FINAL_ANSWER.findall(text)
    return float(found[-1].replace(",", "")) if found else None


def right_final_answer(response: str, answer: str) -> bool:
    """By the number behind `####`."""
    return final_answer(response) == final_answer(answer)


def right_last_number(response: str, answer: str) -> bool:
    """By the last number there is."""
    from trinity_rec.lab.real_tasks import last_number
    from trinity_rec.lab.tasks import Problem

    return last_number(Problem("", answer), response) == 1


def split_problems(n_train: int = 1024, n_held_out: int = 256, seed: int = 0) -> Split:
    """All 8,100 ordered pairs of two-digit numbers, shuffled and cut. `train` is a part of `warm_up`, as the problems
    that a language model is tuned on are usually of a kind that its pretraining has seen."""
    span = range(SMALLEST, LARGEST + 1)
    problems = [Addition(a, b) for a in span for b in span]
    random.Random(seed).shuffle(problems)
    held_out, warm_up = problems[:n_held_out], problems[n_held_out:]
    # 27 + 48 is no news to a model that was trained on 48 + 27
    mirrored = {Addition(p.b, p.a) for p in held_out}
    warm_up = [p for p in warm_up if p not in mirrored]
    return Split(warm_up=warm_up, train=warm_up[:n_train], held_out=held_out)


def write_jsonl(problems: list[Addition], path: Path) -> None:
    path.write_text("".join(json.dumps(p.to_gsm8k()) + "\n" for p in problems), encoding="utf-8")


def read_jsonl(path: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]
