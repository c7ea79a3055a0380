"""How a call is written: by the models that are trained, as JSON in a tag, and in ToolACE, as `[Name(key=value)]`.

    <think> … </think> <tool_call>[{"name": "get_weather", "arguments": {"city": "Paris"}}]</tool_call>

The first is the format that Trinity's prompt for ToolACE asks for (`tool_call_workflow`, after NVIDIA's Tool-N1, arXiv
2505.00024): the thoughts once and before the calls.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
JSON_NAMES = {"true": True, "false": False, "null": None}  # in ToolACE some values are JSON's, some Python's


@dataclass(frozen=True)
class Call:
    """A function's name and its arguments, the latter as JSON values by name."""

    name: str
    arguments: dict[str, Any]

    @property
    def key(self) -> str:
        """Equal for equal calls and for no others: JSON with sorted keys, so 1, 1.0, true and "1" all differ."""
        return json.dumps([self.name, self.arguments], sort_keys=True)


def calls_in(response: str) -> list[Call] | None:
    """The calls of a response, or None where it does not keep to the format.

    The format: one `<think>` and one `</think>`, closed before the first `<tool_call>`; within the last pair of
    `<tool_call>` tags a JSON list of objects with `name` and `arguments`, or a single such object.
    """
    found = TOOL_CALL.findall(response)
    if not found or response.count("<think>") != 1 or response.count("</think>") != 1:
        return None
    if response.find("</think>") > response.find("<tool_call>"):
        return None
    try:
        value = json.loads(found[-1].strip())
        if isinstance(value, str):  # the list as a JSON string
            value = json.loads(value)
        return calls_of(value)
    except (ValueError, RecursionError):
        return None


def calls_of(value: Any) -> list[Call]:
    """Calls of parsed JSON: a list of objects with `name` and `arguments`, or one such object.

    Raises:
        ValueError: it is something else.
    """
    items = [value] if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise ValueError(f"not a list of calls: {value!r}")
    calls = []
    for item in items:
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ValueError(f"not a call: {item!r}")
        if not isinstance(item.get("arguments"), dict):
            raise ValueError(f"{item['name']}: the arguments are not an object")
        calls.append(Call(item["name"], item["arguments"]))
    return calls


def toolace_calls(text: str) -> list[Call]:
    """Calls as ToolACE's assistant writes them: `[Get Trends(geo="DE", top=[1, 2]), news.search(q="a, (b)")]`.

    Names may hold spaces, dots and slashes; values are literals of Python or JSON.

    Raises:
        ValueError: the text is no list of calls, or a value is no literal.
    """
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        raise ValueError("not a list of calls")
    calls = []
    for part in split_top_level(text[1:-1]):
        name, bracket, rest = part.partition("(")
        if not bracket or not rest.rstrip().endswith(")") or not name.strip():
            raise ValueError(f"not a call: {part.strip()!r}")
        calls.append(Call(name.strip(), literal_arguments(rest.rstrip()[:-1])))
    return calls


def literal_arguments(text: str) -> dict[str, Any]:
    """`key=value, …` with literal values.

    Raises:
        ValueError: something is not such a pair.
    """
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(keyword.arg is None for keyword in call.keywords):
            raise ValueError(f"an argument without a name: {text!r}")
        values = {str(each.arg): ast.literal_eval(_JSONNames().visit(each.value)) for each in call.keywords}
        json.dumps(values, allow_nan=False)  # bytes, sets and complex numbers are literals, but no JSON
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(f"not arguments: {text!r}") from error
    return values


class _JSONNames(ast.NodeTransformer):
    """true, false and null as Python's."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(JSON_NAMES[node.id]) if node.id in JSON_NAMES else node


def split_top_level(text: str) -> list[str]:
    """The parts between commas that stand in no bracket and in no quotes."""
    parts, start, depth, quote = [], 0, 0, ""
    position = 0
    while position < len(text):
        letter = text[position]
        if quote:
            if letter == "\\":
                position += 1
            elif letter == quote:
                quote = ""
        elif letter in "\"'" and depth:  # in a name, outside all brackets, an apostrophe is one
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and not depth:
            parts.append(text[start:position])
            start = position + 1
        position += 1
    return [*parts, text[start:]]
