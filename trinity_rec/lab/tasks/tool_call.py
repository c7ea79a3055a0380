"""A function call, paid for each right part, in the spirit of ToolACE (Liu et al. 2024, arXiv 2409.00920)."""

from __future__ import annotations

import random
import re

from trinity_rec.lab.tasks.problems import Problem, TaughtTask


class ToolCall(TaughtTask):
    """weather in rome for 3 days → get_weather(city=rome,days=3)

    0.2 for a call that parses, 0.2 more for the right function, 0.3 for each right argument.
    """

    name, title, response_length = "tool_call", "tool calls", 12
    rate = 2e-4
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


TASK = ToolCall()
