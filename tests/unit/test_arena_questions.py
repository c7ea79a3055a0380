"""What the field disagrees on, asked of made-up runs whose answers are known."""

import numpy as np
import pytest

from trinity_rec.lab.arena import questions, report
from trinity_rec.lab.arena.plan import COLLAPSE, LEAST_SAMPLE_SIZE
from trinity_rec.lab.arena.questions import BEYOND, MARGIN, QUESTIONS, answers, contrasted, counts, foretold
from trinity_rec.presets import PRESETS
from trinity_rec.variants import LAGS

HEALTHY = (0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8)
FALLEN = (0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.3, 0.3, 0.3)  # means of three: 0.4, 0.6, 0.73, 0.8, 0.63, 0.47, 0.3


def curve(reward, low_at=()):
    """An evaluation every ten steps; the effective sample size is below the gate before those in `low_at`."""
    size = np.ones(len(reward))
    size[0] = np.nan
    size[list(low_at)] = LEAST_SAMPLE_SIZE - 0.01
    return {"step": 10.0 * np.arange(len(reward)), "reward": np.array(reward), "effective_sample_size": size}


def ending(at, seeds=5, spread=0.005):
    return [curve([0.2, *[at + offset * spread] * 3]) for offset in np.linspace(-1, 1, seeds)]


def found(question, cells, lag):
    """The row of the first contrast."""
    return next(row for row in contrasted(question, cells)["contrasts"] if row["lag"] == lag)


CLIPPING, SAMPLING, RATIO = QUESTIONS


def test_every_algorithm_asked_about_exists_and_differs_in_what_is_asked():
    for question in QUESTIONS:
        assert set(question.answers) == {"better", "worse", "alike"}
        for contrast in question.contrasts:
            assert {name for pair in contrast.pairs for name in pair} <= set(PRESETS)
    for one, two in SAMPLING.contrasts[0].pairs:
        first, second = (dict(PRESETS[name].policy_loss) for name in (one, two))
        assert first.pop("weight") and {**second, "weight": None} == {**first, "weight": None}


@pytest.mark.parametrize(
    "without, verdict, answer",
    [
        (0.3, "worse", "needed"),
        (0.9, "better", "unnecessary"),
        (0.705, "alike", "unnecessary"),
        (0.7 - MARGIN, "undecided", "undecided"),
    ],
)
def test_clipping_is_judged_by_the_difference_that_its_absence_makes(without, verdict, answer):
    cells = {
        ("addition", "offline", "rec_reinforce"): ending(without, spread=0.01)[::-1],
        ("addition", "offline", "rec_oneside_nois"): ending(0.7),
    }
    row = found(CLIPPING, cells, "offline")
    assert (row["verdict"], row["answer"], row["cells"]) == (verdict, answer, 1)
    assert row["difference"] == pytest.approx(without - 0.7) and row["interval"][0] <= row["difference"]
    assert found(CLIPPING, cells, "on_policy") == {
        "contrast": CLIPPING.contrasts[0].title,
        "lag": "on_policy",
        "verdict": "not measured",
        "cells": 0,
        "answer": "not measured",
    }
    assert found(CLIPPING, cells, "all_but_on_policy")["difference"] == row["difference"]


def test_pairs_and_tasks_are_averaged_and_on_policy_is_kept_apart():
    cells = {}
    for task, lag, gain in (("addition", "offline", 0.3), ("tool_call", "offline", 0.1), ("addition", "on_policy", 0)):
        for kind in ("oneside", "ring"):
            cells[task, lag, f"rec_{kind}_is"] = ending(0.5 + gain)
            cells[task, lag, f"rec_{kind}_nois"] = ending(0.5)
    cells["addition", "offline", "rec_gspo_is"] = ending(0.0)  # without its partner it says nothing
    row = found(SAMPLING, cells, "offline")
    assert row["difference"] == pytest.approx(0.2) and row["cells"] == 4 and row["answer"] == "needed"
    assert found(SAMPLING, cells, "on_policy")["answer"] == "not needed"
    assert found(SAMPLING, cells, "all_but_on_policy")["difference"] == pytest.approx(0.2)
    assert found(RATIO, cells, "offline")["answer"] == "not measured"


def test_a_collapse_begins_where_the_reward_leaves_its_best_for_good():
    assert questions.collapse(curve(HEALTHY)) is None
    # 0.8 at step 40; 0.63 at step 50 is more than COLLAPSE below it
    assert COLLAPSE == 0.1 and questions.collapse(curve(FALLEN)) == 50
    dip = (0.2, 0.8, 0.8, 0.8, 0.1, 0.8, 0.8, 0.8, 0.8, 0.3, 0.3, 0.3)
    assert questions.collapse(curve(dip)) == 80  # not in the dip that it recovered from


@pytest.mark.parametrize(
    "reward, low_at, expected",
    [
        (FALLEN, [2, 7], (1, 1, 0, 0, 30)),  # the first alarm counts: from step 20 to 50
        (FALLEN, [5], (1, 0, 0, 0, 0)),  # at the collapse is not before it
        (FALLEN, [], (1, 0, 0, 0, 0)),
        (HEALTHY, [3], (0, 0, 1, 1, 0)),
        (HEALTHY, [], (0, 0, 1, 0, 0)),
    ],
)
def test_an_alarm_is_a_hit_only_before_the_collapse(reward, low_at, expected):
    assert tuple(counts([curve(reward, low_at)])) == expected


def test_shares_are_of_the_runs_and_their_intervals_a_bootstrap_over_cells():
    cells = np.array([counts([curve(FALLEN, [2])] * 2 + [curve(HEALTHY)] * 3)] * 10)
    always = foretold(cells)
    assert (always["hit_rate"], always["false_alarms"], always["lead"]) == (1.0, 0.0, 30.0)
    assert always["runs"] == 50 and always["collapsed"] == 20 and always["verdict"] == "foretells"
    blind = foretold(np.array([counts([curve(FALLEN, [2]), curve(HEALTHY, [2])])] * 10))
    assert blind["hits_less_false_alarms"] == 0 and blind["verdict"] == "does not"

    mixed = np.array([[4, hits, 4, 1, 20 * hits] for hits in (0, 1, 2, 3, 4, 4, 4, 4)], float)
    said = foretold(mixed)
    generator = np.random.default_rng(1)
    drawn = [mixed[generator.integers(8, size=8)].sum(0) for _ in range(5000)]
    np.testing.assert_allclose(
        said["hit_rate_interval"], np.percentile([d[1] / d[0] for d in drawn], (2.5, 97.5)), atol=0.03
    )
    assert said["verdict"] == "undecided"


@pytest.mark.parametrize("rewards", [[HEALTHY], [FALLEN], []])
def test_without_runs_of_both_kinds_nothing_is_foretold(rewards):
    runs = {("addition", "offline", "rec_grpo"): [curve(each, [2]) for each in rewards]} if rewards else {}
    for row in questions.sample_size(runs)["lags"]:
        assert row["verdict"] == "not measured" and "hit_rate" not in row


def test_runs_on_policy_are_not_asked_whether_their_samples_are_lost():
    runs = {
        ("addition", lag, "rec_grpo"): [curve(FALLEN, [2]), curve(HEALTHY, [2] if lag == "on_policy" else [])]
        for lag in LAGS
    }
    said = {row["lag"]: row for row in questions.sample_size(runs)["lags"]}
    assert set(said) == {*BEYOND, "all_but_on_policy"}
    assert said["all_but_on_policy"]["false_alarms"] == 0 and said["all_but_on_policy"]["runs"] == 2 * len(BEYOND)


def test_all_four_are_answered_or_said_not_to_be_measured():
    said = answers({}, {})
    assert [each["question"] for each in said] == ["clipping", "importance_sampling", "ratio", "sample_size"]
    rows = [row for each in said for row in each.get("contrasts", each.get("lags"))]
    assert {row["verdict"] for row in rows} == {"not measured"}


def test_the_page_shows_what_was_measured_with_a_figure_and_what_was_not_in_words(tmp_path):
    judged = {
        ("addition", "offline", "rec_reinforce"): ending(0.3),
        ("addition", "offline", "rec_oneside_nois"): ending(0.7),
    }
    runs = {cell: [curve(FALLEN, [2]), curve(HEALTHY), *curves] for cell, curves in judged.items()}
    clipping, sampling, ratio, size = (report.section(each, tmp_path) for each in answers(judged, runs))
    row = (
        "<td>REINFORCE less REC-OneSide-NoIS</td><td>offline</td><td>-0.400</td>"
        "<td>-0.400 to -0.400</td><td>worse</td><td>needed</td><td>1</td>"
    )
    assert row in clipping and "<td>not measured</td>" in clipping
    assert "<td>offline</td><td>1.000 (1.000 to 1.000)</td><td>0.000 (0.000 to 0.000)</td>" in size
    assert "<td>foretells</td>" in size and "30.000 (30.000 to 30.000)" in size
    assert "Not measured" in sampling and "Not measured" in ratio and "<img" not in sampling + ratio
    for shown, name in ((clipping, "clipping"), (size, "sample_size")):
        assert "data:image/png;base64," in shown and (tmp_path / f"question_{name}.png").exists()
    assert len(list(tmp_path.iterdir())) == 2
