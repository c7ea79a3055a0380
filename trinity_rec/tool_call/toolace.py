"""ToolACE's dialogues as Trinity's tasks: each turn in which the assistant calls tools becomes a problem.

    python -m trinity_rec.tool_call.toolace data.json OUT_DIR

`data.json` is that of the dataset Team-ACE/ToolACE: a list of `system` (which holds the tools as a JSON list) and
`conversations` (turns with `from`, one of user, assistant and tool, and `value`); calls read `[Name(key=value)]`.
Written are `train.jsonl` and `test.jsonl` in the layout of Trinity's `tool_call_workflow`. The dataset has no test
split: a share of the dialogues is held out here, whole, so that no turn of a test dialogue is trained on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trinity_rec.tool_call.calls import toolace_calls

MARKER = "in JSON format that you can invoke:\n"  # the tools follow


def tools_in(system: str) -> list[dict[str, Any]]:
    """The definitions in a dialogue's system message.

    Raises:
        ValueError: there are none.
    """
    _, marker, rest = system.partition(MARKER)
    if not marker:
        raise ValueError("no list of tools")
    tools, _ = json.JSONDecoder().raw_decode(rest.lstrip())
    if not isinstance(tools, list) or not all(isinstance(tool, dict) and "name" in tool for tool in tools) or not tools:
        raise ValueError("no list of tools")
    return tools


def problems(dialogue: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each turn of calls: what was said before it, and the calls as the answer.

    Turns that cannot be read as calls of the dialogue's own tools are no problems; earlier ones stay in what was said.

    Raises:
        ValueError: the dialogue has no tools.
    """
    system = str(dialogue["system"])
    tools = tools_in(system)
    names = {tool["name"] for tool in tools}
    before: list[dict[str, str]] = []
    for turn in dialogue["conversations"]:
        said = {"from": str(turn["from"]), "value": str(turn["value"])}
        if said["from"] == "assistant" and said["value"].lstrip().startswith("["):
            try:
                calls = toolace_calls(said["value"])
            except ValueError:
                calls = []
            if calls:
                answer = json.dumps([{"name": call.name, "arguments": call.arguments} for call in calls])
                said = {"from": "function_call", "value": answer}
                if before and {call.name for call in calls} <= names:
                    yield {
                        "raw_system": system.partition(MARKER)[0] + MARKER,
                        "tools": json.dumps(tools),
                        "conversations": list(before),
                        "answer": answer,
                    }
        before.append(said)


def split(
    dialogues: Iterable[dict[str, Any]], test_share: float = 0.05, seed: int = 42
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Problems to train on, held-out ones, and how many dialogues gave none.

    Args:
        test_share: of the dialogues that give problems.
        seed: of the order, in which a taskset is read, and of the choice.
    """
    whole, without = [], 0
    for dialogue in dialogues:
        try:
            found = list(problems(dialogue))
        except (ValueError, KeyError, TypeError):
            found = []
        if found:
            whole.append(found)
        else:
            without += 1
    random.Random(seed).shuffle(whole)
    held_out = round(test_share * len(whole))
    test, train = whole[:held_out], whole[held_out:]
    return [row for rows in train for row in rows], [row for rows in test for row in rows], without


def write(rows: Iterable[dict[str, Any]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="the dataset's data.json")
    parser.add_argument("out", type=Path, help="the directory to write train.jsonl and test.jsonl to")
    parser.add_argument("--test-share", type=float, default=0.05, help="of the dialogues, held out (default 0.05)")
    arguments = parser.parse_args()
    try:
        dialogues = json.loads(arguments.data.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        parser.error(f"{arguments.data}: {str(error).splitlines()[0]}")
    train, test, without = split(dialogues, arguments.test_share)
    if not train:
        parser.error(f"{arguments.data}: no dialogue with tools and calls in ToolACE's layout")
    write(train, arguments.out / "train.jsonl")
    write(test, arguments.out / "test.jsonl")
    print(f"{len(train)} problems to train on, {len(test)} held out; {without} of {len(dialogues)} dialogues gave none")


if __name__ == "__main__":
    main()
