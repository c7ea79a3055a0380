"""What a quickstart leaves behind."""

import io
import json
from dataclasses import replace
from pathlib import Path

from matplotlib.image import imread
from rich.console import Console

from trinity_rec.quickstart.report import Summary, draw

SUMMARY = Summary(
    model="smollm2",
    algorithm="rec_ring_nois",
    backend="local",
    steps=3,
    sync_interval=2,
    accuracy_before=0.25,
    accuracy_after=0.75,
    greedy_before=0.5,
    greedy_after=0.875,
    reward_by_step=[0.2, 0.4, 0.9],
    seconds=12.5,
    seconds_a_step=1.25,
    tokens_a_second=640.0,
    memory_gib=3.5,
    answers=[{"question": "What is 7 * 8?", "answer": "56", "before": "To find\nout [bold]", "after": "56"}],
)


def test_the_summary_has_the_promised_fields(tmp_path):
    SUMMARY.write(tmp_path / "summary.json")
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["algorithm"] == "rec_ring_nois"
    assert written["reward_by_step"] == [0.2, 0.4, 0.9]
    assert {"steps", "accuracy_before", "accuracy_after", "seconds"} <= written.keys()


def test_the_table_says_what_was_gained_and_where_it_lies():
    text = io.StringIO()
    Console(file=text, width=200).print(SUMMARY.table(Path("runs/x")))
    assert "25.0% → 75.0% (+50.0 points)" in text.getvalue()
    assert "50.0% → 87.5%" in text.getvalue()
    assert "runs/x/reward.png" in text.getvalue()
    assert "640" in text.getvalue() and "3.5 GiB" in text.getvalue()


def test_what_a_single_step_cannot_tell_is_null_and_not_printed(tmp_path):
    nan, text = float("nan"), io.StringIO()
    single = replace(SUMMARY, seconds_a_step=nan, tokens_a_second=nan)
    single.write(tmp_path / "summary.json")
    Console(file=text, width=200).print(single.table(Path("runs/x")))
    assert "nan" not in text.getvalue() and "tokens a second" not in text.getvalue()
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["seconds_a_step"] is None and written["tokens_a_second"] is None
    assert written["reward_by_step"] == SUMMARY.reward_by_step


def test_answers_stand_side_by_side_on_a_line_each():
    text = io.StringIO()
    Console(file=text, width=200).print(SUMMARY.side_by_side())
    (row,) = (line for line in text.getvalue().splitlines() if "7 * 8" in line)
    assert row.split() == ["What", "is", "7", "*", "8?", "56", "To", "find", "out", "[bold]", "56"]


def test_the_picture_is_drawn(tmp_path):
    draw(SUMMARY, tmp_path / "reward.png")
    image = imread(tmp_path / "reward.png")
    assert image.shape[1] > image.shape[0] > 300
    assert image[..., :3].std() > 0.02  # not blank
