"""The quickstart's problems and its reward."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trinity_rec.quickstart.tasks import Addition, final_answer, final_line, read_jsonl, split_problems, write_jsonl


@given(st.integers(-(10**9), 10**9))
def test_the_final_line_reads_back(number):
    assert final_answer(final_line(number)) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She sold 48/2 = <<48/2=24>>24 clips.\n#### 72", 72),
        ("#### 1,234<|im_end|>", 1234),
        ("####-5", -5),
        ("#### 3 then #### 2.5", 2.5),
        ("#### 75.", 75),
        ("75", None),
        ("#### none", None),
        ("####", None),
        ("", None),
    ],
)
def test_the_final_answer_is_the_number_behind_the_last_mark(text, number):
    assert final_answer(text) == number


def test_held_out_problems_are_trained_on_in_neither_order():
    split = split_problems()
    seen = {frozenset((p.a, p.b)) for p in split.warm_up}
    assert not seen & {frozenset((p.a, p.b)) for p in split.held_out}
    assert set(split.train) <= set(split.warm_up)
    assert len(set(split.train)) == len(split.train) == 1024
    assert len(set(split.held_out)) == len(split.held_out) == 256


def test_the_split_depends_on_its_seed_alone():
    assert split_problems(seed=1) == split_problems(seed=1) != split_problems(seed=2)


def test_rows_have_the_shape_of_gsm8k(tmp_path):
    write_jsonl([Addition(27, 48)], tmp_path / "train.jsonl")
    assert json.loads((tmp_path / "train.jsonl").read_text()) == {
        "question": "What is 27 + 48?",
        "answer": "27 + 48 = 75\n#### 75",
    }
    (row,) = read_jsonl(tmp_path / "train.jsonl")
    assert final_answer(row["answer"]) == 75


def test_the_reward_is_found_by_its_dotted_name_and_compares_numbers():
    from trinity.common.rewards import REWARD_FUNCTIONS

    reward = REWARD_FUNCTIONS.get("trinity_rec.quickstart.reward.GSM8KReward")()
    truth = "27 + 48 = 75\n#### 75"
    assert reward(response="#### 75<|im_end|>", truth=truth) == {"accuracy": 1.0}
    assert reward(response="#### 57", truth=truth) == {"accuracy": 0.0}
    assert reward(response="27 + 48 = 75", truth=truth) == {"accuracy": 0.0}
    with pytest.raises(ValueError, match="no `#### N`"):
        reward(response="#### 75", truth="75")
