"""Problems are what they say, rewards are what a reader of the task would pay, and nothing held out is trained on."""

import random
import re
from pathlib import Path

import pytest

from trinity_rec.lab import tasks
from trinity_rec.lab.tasks import TASKS


def test_a_file_is_a_task(tmp_path, monkeypatch):
    source = Path(tasks.__path__[0], "addition.py").read_text(encoding="utf-8")
    (tmp_path / "sums.py").write_text(source.replace('"addition"', '"sums"'), encoding="utf-8")
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    assert set(tasks.found()) == {*TASKS, "sums"}
    assert {"addition", "word_problems", "tool_call"} <= set(TASKS)


EVERY_TASK = pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)


@EVERY_TASK
def test_held_out_problems_are_never_trained_on(task):
    held_out = set(task.held_out)
    assert len(held_out) == 256 and len(set(task.train)) == 1024
    assert held_out.isdisjoint(task.train) and held_out.isdisjoint(task.warm_up)
    assert set(task.train) <= set(task.warm_up)


@EVERY_TASK
def test_right_answers_get_the_whole_reward_and_fit_the_length(task):
    for problem in task.all_problems():
        assert task.reward(problem, problem.answer) == pytest.approx(1)
        assert len(task.vocabulary.encode(problem.answer)) + 1 <= task.response_length


@EVERY_TASK
def test_text_survives_the_vocabulary(task):
    for problem in task.held_out:
        assert task.vocabulary.decode(task.vocabulary.encode(problem.answer)) == problem.answer
        assert task.vocabulary.decode(task.vocabulary.encode(problem.question)) == problem.question.replace(" ", "")


@EVERY_TASK
def test_mistakes_are_common_but_the_right_answer_is_the_likeliest(task):
    chance = random.Random(0)
    for problem in task.held_out[:5]:
        said = [task.mistaken(problem, chance) for _ in range(3000)]
        right = said.count(problem.answer)
        assert 0.1 < right / len(said) < 0.6
        assert right == max(said.count(each) for each in set(said))
        assert all(task.vocabulary.encode(each) for each in set(said))  # nothing that the vocabulary cannot say


@EVERY_TASK
@pytest.mark.parametrize("nonsense", ["", "85#", "#", "get_weather(", "1+1", "<|end|>"])
def test_nonsense_gets_nothing(task, nonsense):
    assert task.reward(task.held_out[0], nonsense) == 0


def test_the_sums_are_right():
    for problem in TASKS["addition"].held_out:
        a, b = re.fullmatch(r"(\d\d)\+(\d\d)=", problem.question).groups()
        assert int(problem.answer) == int(a) + int(b)


def test_the_stories_add_up():
    for problem in TASKS["word_problems"].held_out:
        bags, each, first, second = map(int, re.findall(r"\d", problem.question))
        signs = [1 if verb == "finds" else -1 for verb in re.findall(r"finds|loses", problem.question)]
        totals = [bags * each, bags * each + signs[0] * first, bags * each + signs[0] * first + signs[1] * second]
        assert problem.answer == ",".join(map(str, totals)) + f"#{totals[-1]}"


def test_a_word_problem_pays_for_the_last_number_alone():
    task = TASKS["word_problems"]
    problem = task.held_out[0]
    total = problem.answer.rpartition("#")[2]
    assert task.reward(problem, f"1,2,3#{total}") == 1
    assert task.reward(problem, f"1,2,{total}") == 0


def test_a_tool_call_pays_for_each_right_part():
    task = TASKS["tool_call"]
    problem = next(p for p in task.all_problems() if p.answer == "get_weather(city=rome,days=3)")
    for call, reward in {
        "get_weather(city=rome,days=4)": 0.7,
        "get_weather(city=oslo,days=3)": 0.7,
        "get_weather(city=rome,nights=3)": 0.7,
        "book_hotel(city=rome,nights=3)": 0.5,
        "book_hotel(city=oslo,nights=4)": 0.2,
        "get_weather(city=rome,days=3": 0,
        "get_weather(rome,days=3)": 0,
    }.items():
        assert task.reward(problem, call) == pytest.approx(reward), call
