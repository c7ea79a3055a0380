"""1 where a response makes exactly the right calls in the right format, else 0.

The rule is that of `tool_call_workflow`, which Trinity, the paper's framework, has for ToolACE: as many calls of each
name, with equal arguments, types included, in any order. Trinity's own code fails on some malformed responses
(`<tool_call>5</tool_call>`), and with it the whole group; here they score 0.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass

from trinity.common.rewards.reward_fn import RewardFn

from trinity_rec.tool_call.calls import Call, calls_in, calls_of


@dataclass(frozen=True)
class Grade:
    """What is right about a response: the format; the functions' names; names and arguments, which is the reward."""

    format: bool
    names: bool
    exact: bool


def grade(response: str, answer: list[Call]) -> Grade:
    """Compare the calls of a response with the right ones; order does not matter, number does."""
    calls = calls_in(response)
    if calls is None:
        return Grade(False, False, False)
    names = Counter(call.name for call in calls) == Counter(call.name for call in answer)
    try:
        exact = Counter(call.key for call in calls) == Counter(call.key for call in answer)
    except RecursionError:  # nested as deep as Python can just read
        exact = False
    return Grade(True, names, exact)


def answer_calls(truth: str) -> list[Call]:
    """The `answer` of a task: JSON, `[{"name": …, "arguments": {…}}, …]`.

    Raises:
        ValueError: it is something else; a mistake in the taskset.
    """
    value = json.loads(truth)
    return calls_of(json.loads(value) if isinstance(value, str) else value)


class ToolCallReward(RewardFn):
    """For Trinity's workflows; in a YAML `default_reward_fn_type: trinity_rec.tool_call.reward.ToolCallReward`.

    Args:
        names_credit: reward for the right names with wrong arguments; the paper's framework gives none, a small model
            may need it to learn at all.
        format_credit: reward for a well-formed response with wrong names, likewise.
    """

    def __init__(self, names_credit: float = 0.0, format_credit: float = 0.0) -> None:
        if not 0 <= format_credit <= names_credit <= 1:
            raise ValueError(
                f"reward_fn_args: format_credit {format_credit} and names_credit {names_credit} must be ascending and "
                "between 0 and 1"
            )
        self.names_credit, self.format_credit = names_credit, format_credit

    def __call__(self, response: str, truth: str, **_: object) -> dict[str, float]:
        """The parts of the reward, which Trinity adds up: `accuracy`, 1 or 0, and any `partial_credit`."""
        graded = grade(response, answer_calls(truth))
        parts = {"accuracy": float(graded.exact)}
        if self.names_credit:
            credit = self.names_credit if graded.names else self.format_credit if graded.format else 0.0
            parts["partial_credit"] = 0.0 if graded.exact else credit
        return parts
