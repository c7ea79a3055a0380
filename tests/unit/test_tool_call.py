"""Tool calls: what counts as one, what a response earns, and how ToolACE's dialogues become tasks."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trinity.common.workflows.customized_toolcall_workflows import compute_toolcall_reward, construct_prompt

from trinity_rec.tool_call.calls import Call, calls_in, split_top_level, toolace_calls
from trinity_rec.tool_call.reward import Grade, ToolCallReward, answer_calls, grade
from trinity_rec.tool_call.toolace import MARKER, problems, split, write

WEATHER = {"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}
NEWS = {"name": "news.search", "arguments": {"query": "rain, (heavy)"}}


def response(calls, thoughts="<think>I must call.</think> ") -> str:
    return f"{thoughts}<tool_call>{calls if isinstance(calls, str) else json.dumps(calls)}</tool_call>"


RIGHT, WRONG_ARGUMENTS, WRONG_NAMES, NO_FORMAT = (
    Grade(True, True, True),
    Grade(True, True, False),
    Grade(True, False, False),
    Grade(False, False, False),
)

KNOWN = [
    # response, answer, what is right about it
    (response([WEATHER]), [WEATHER], RIGHT),
    (response(WEATHER), [WEATHER], RIGHT),
    (response(json.dumps([WEATHER])), [WEATHER], RIGHT),
    (response(json.dumps(json.dumps([WEATHER]))), [WEATHER], RIGHT),
    (response([NEWS, WEATHER]), [WEATHER, NEWS], RIGHT),
    (response([{"arguments": {"days": 3, "city": "Paris"}, "name": "get_weather", "id": 1}]), [WEATHER], RIGHT),
    (response([]), [], RIGHT),
    ("<think></think><tool_call>[]</tool_call><tool_call>" + json.dumps([WEATHER]) + "</tool_call>", [WEATHER], RIGHT),
    (response([{**WEATHER, "arguments": {"city": "Paris", "days": 3.0}}]), [WEATHER], WRONG_ARGUMENTS),
    (response([{**WEATHER, "arguments": {"city": "Paris", "days": "3"}}]), [WEATHER], WRONG_ARGUMENTS),
    (response([{**WEATHER, "arguments": {"city": "paris", "days": 3}}]), [WEATHER], WRONG_ARGUMENTS),
    (response([{**WEATHER, "arguments": {"city": "Paris"}}]), [WEATHER], WRONG_ARGUMENTS),
    (response([WEATHER, WEATHER]), [WEATHER], WRONG_NAMES),
    (response([WEATHER]), [WEATHER, NEWS], WRONG_NAMES),
    (response([WEATHER]), [], WRONG_NAMES),
    (response([NEWS]), [WEATHER], WRONG_NAMES),
    (response([{"name": "get_weather"}]), [WEATHER], NO_FORMAT),
    (response([{"name": "get_weather", "arguments": "Paris"}]), [WEATHER], NO_FORMAT),
    (response("[{'name': 'get_weather'}]"), [WEATHER], NO_FORMAT),
    (response("get_weather(city='Paris')"), [WEATHER], NO_FORMAT),
    (response([WEATHER], thoughts=""), [WEATHER], NO_FORMAT),
    (response([WEATHER], thoughts="<think>a</think><think>b</think>"), [WEATHER], NO_FORMAT),
    (response([WEATHER]).replace("</think>", "") + "</think>", [WEATHER], NO_FORMAT),
    (response([WEATHER], thoughts="<think>"), [WEATHER], NO_FORMAT),
    (response([WEATHER]).removesuffix("</tool_call>"), [WEATHER], NO_FORMAT),
    ("<think>nothing to call</think>", [WEATHER], NO_FORMAT),
    ("", [WEATHER], NO_FORMAT),
]


@pytest.mark.parametrize(("said", "answer", "graded"), KNOWN)
def test_known_responses(said, answer, graded):
    assert grade(said, answer_calls(json.dumps(answer))) == graded
    reward = ToolCallReward()(said, json.dumps(answer))
    assert reward == {"accuracy": float(graded.exact)}
    assert sum(reward.values()) == compute_toolcall_reward(said, json.dumps(answer))


# Trinity's own reward fails on these, and with it the group of responses.
@pytest.mark.parametrize("inner", ["5", "true", "[5]", "[null]", '[{"name": ["a"], "arguments": {}}]', "[" * 100_000])
def test_a_malformed_response_scores_0(inner):
    assert ToolCallReward()(response(inner), json.dumps([WEATHER])) == {"accuracy": 0.0}


@pytest.mark.parametrize("inner", ["5", "true", "[" * 100_000])
def test_trinitys_own_reward_still_fails_on_them(inner):
    """When this fails, the sentence about it in `trinity_rec.tool_call.reward` has become wrong."""
    with pytest.raises((TypeError, RecursionError)):
        compute_toolcall_reward(response(inner), json.dumps([WEATHER]))


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.floats(allow_nan=False, allow_infinity=False, width=16)
    | st.text("ab<>/", max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
some_calls = st.lists(
    st.fixed_dictionaries(
        {"name": st.sampled_from(["f", "g h"]), "arguments": st.dictionaries(st.sampled_from("xy"), json_values)}
    ),
    max_size=3,
)
fragments = st.lists(
    st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "[]", '[{"name":"f","arguments":{}}]', " "]),
    max_size=8,
).map("".join)


@given(some_calls, some_calls, st.one_of(st.none(), fragments))
def test_the_reward_is_trinitys_wherever_that_has_one(said, answer, scrambled):
    text, truth = response(said) if scrambled is None else scrambled, json.dumps(answer)
    try:
        expected = compute_toolcall_reward(text, truth)
    except (TypeError, AttributeError):
        expected = 0.0
    assert ToolCallReward()(text, truth) == {"accuracy": expected}
    assert ToolCallReward()(response(answer), truth) == {"accuracy": 1.0}


@pytest.mark.parametrize(("said", "answer", "graded"), KNOWN)
def test_partial_credit(said, answer, graded):
    reward = ToolCallReward(names_credit=0.5, format_credit=0.1)(said, json.dumps(answer))
    expected = {RIGHT: 1.0, WRONG_ARGUMENTS: 0.5, WRONG_NAMES: 0.1, NO_FORMAT: 0.0}[graded]
    assert sum(reward.values()) == expected


def test_credits_must_rise():
    with pytest.raises(ValueError, match=r"format_credit 0\.5 and names_credit 0\.2"):
        ToolCallReward(names_credit=0.2, format_credit=0.5)


def test_a_task_without_a_readable_answer_is_an_error():
    with pytest.raises(ValueError, match="not a call"):
        ToolCallReward()(response([]), '[{"arguments": {}}]')


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("[f()]", [Call("f", {})]),
        ("[Get Trends (geo='DE', top=[1, 2])]", [Call("Get Trends", {"geo": "DE", "top": [1, 2]})]),
        ('[a.b/c(q="x, (y) \\" [z]"), g(n=-1.5)]', [Call("a.b/c", {"q": 'x, (y) " [z]'}), Call("g", {"n": -1.5})]),
        ("[What's New(on=true, off=False, no=null)]", [Call("What's New", {"on": True, "off": False, "no": None})]),
        ('[f(a={"k": [1, {"l": "m)"}]})]', [Call("f", {"a": {"k": [1, {"l": "m)"}]}})]),
        (' [f(x="one\\ntwo")] ', [Call("f", {"x": "one\ntwo"})]),
    ],
)
def test_toolaces_calls_are_read(text, calls):
    assert toolace_calls(text) == calls


@pytest.mark.parametrize(
    "text", ["f(x=1)", "[f]", "[]", "[f(1)]", "[f(**{})]", "[f(x=y)]", "[f(x=1]", "[(x=1)]", "[f(x={1})]", "[f(x=b'')]"]
)
def test_what_is_no_list_of_calls_is_refused(text):
    with pytest.raises(ValueError):
        toolace_calls(text)


@given(
    st.lists(
        st.builds(
            Call, st.sampled_from(["f", "A b.c", "x/y"]), st.dictionaries(st.sampled_from(["k", "l"]), json_values)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_calls_written_in_toolaces_way_are_read_back(calls):
    written = ", ".join(f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})" for c in calls)
    assert [call.key for call in toolace_calls(f"[{written}]")] == [call.key for call in calls]


def test_commas_in_brackets_and_quotes_do_not_split():
    assert split_top_level("a(b, [c, d]), e('f, )'), g") == ["a(b, [c, d])", " e('f, )')", " g"]
    assert calls_in("no call at all") is None


TOOLS = [{"name": "get_weather", "description": "d", "parameters": {}}, {"name": "news.search", "parameters": {}}]
SYSTEM = f"You compose functions. Here are functions {MARKER}{json.dumps(TOOLS)}. \nShould you decide to call, …"


def dialogue(*turns: tuple[str, str], system: str = SYSTEM) -> dict:
    return {"system": system, "conversations": [{"from": who, "value": what} for who, what in turns]}


DIALOGUE = dialogue(
    ("user", "Weather in Paris, three days?"),
    ("assistant", "[get_weather(city='Paris', days=3)]"),
    ("tool", '[{"name": "get_weather", "results": {"rain": true}}]'),
    ("assistant", "It rains."),
    ("user", "Any news of it?"),
    ("assistant", "[news.search(query='rain, (heavy)')]"),
)


def test_each_turn_of_calls_is_a_problem_with_what_was_said_before():
    first, second = problems(DIALOGUE)
    assert first["conversations"] == DIALOGUE["conversations"][:1]
    assert json.loads(first["answer"]) == [WEATHER] and json.loads(second["answer"]) == [NEWS]
    assert [turn["from"] for turn in second["conversations"]] == ["user", "function_call", "tool", "assistant", "user"]
    assert second["conversations"][1]["value"] == first["answer"]
    assert json.loads(first["tools"]) == TOOLS
    assert first["raw_system"].endswith(MARKER) and "Should you decide" not in first["raw_system"]


def test_trinitys_prompt_is_made_of_a_problem():
    messages = construct_prompt(next(iter(problems(DIALOGUE))))
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "<tool_call>" in messages[0]["content"] and '"get_weather"' in messages[0]["content"]


def test_turns_that_cannot_be_read_are_no_problems_but_were_said():
    odd = dialogue(
        ("user", "a"), ("assistant", "[unknown(x=1)]"), ("assistant", "[not a call]"), ("assistant", "[get_weather()]")
    )
    (problem,) = problems(odd)
    assert [turn["from"] for turn in problem["conversations"]] == ["user", "function_call", "assistant"]


def test_dialogues_are_held_out_whole_and_the_split_repeats():
    dialogues = [
        dialogue(("user", str(n)), *[(t["from"], t["value"]) for t in DIALOGUE["conversations"]]) for n in range(40)
    ]
    train, test, without = split([*dialogues, dialogue(("user", "hi"), system="no tools")], test_share=0.25)
    assert (len(train), len(test), without) == (60, 20, 1)
    heard = [{row["conversations"][0]["value"] for row in rows} for rows in (train, test)]
    assert not heard[0] & heard[1]
    assert split(dialogues, test_share=0.25)[:2] == (train, test)


def test_the_conversion_from_the_command_line(tmp_path):
    data = tmp_path / "data.json"
    write([], data)
    data.write_text(json.dumps([DIALOGUE] * 20))
    command = [sys.executable, "-m", "trinity_rec.tool_call.toolace", data, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout == "38 problems to train on, 2 held out; 0 of 20 dialogues gave none\n", done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "train.jsonl").read_text().splitlines()]
    assert {"raw_system", "tools", "conversations", "answer"} == set(rows[0])

    for content, complaint in (("{", "Expecting property name"), ("[]", "no dialogue with tools and calls")):
        data.write_text(content)
        failed = subprocess.run(command, capture_output=True, text=True)
        assert failed.returncode == 2 and complaint in failed.stderr and "Traceback" not in failed.stderr
