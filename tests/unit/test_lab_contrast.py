"""The rule of docs/reproduction.md, "Through the real pipeline", on rewards written down by hand."""

import json

import pytest

from trinity_rec.lab.contrast import contrast_table, judge
from trinity_rec.terminal import UsageError

FALLS, STAYS = [0.1, 0.5, 0.9, 0.2], [0.1, 0.4, 0.6, 0.8]


def write(directory, algorithm, seed, by_interval, accuracy, says=None):
    """A quickstart whose steps scatter around the means of their intervals; its summary `says` the algorithm."""
    place = directory / f"{algorithm}-seed{seed}"
    place.mkdir()
    rewards = [mean + scatter for mean in by_interval for scatter in (-0.05, 0.0, 0.05)]
    summary = {"algorithm": says or algorithm, "sync_interval": 3, "reward_by_step": rewards}
    (place / "summary.json").write_text(json.dumps(summary | {"accuracy_after": accuracy}), encoding="utf-8")


def two_seeds(directory, reinforce=FALLS, nois=STAYS, reinforce_ends=0.3, nois_ends=0.8):
    """The first seed shows the contrast, the second is as told."""
    write(directory, "rec_reinforce", 1, FALLS, 0.3)
    write(directory, "rec_oneside_nois", 1, STAYS, 0.8)
    write(directory, "rec_reinforce", 2, reinforce, reinforce_ends)
    write(directory, "rec_oneside_nois", 2, nois, nois_ends)
    return judge(directory)


def test_an_interval_is_the_mean_of_its_steps(tmp_path):
    runs = two_seeds(tmp_path)["runs"]
    assert [(run["algorithm"], run["seed"]) for run in runs] == [
        ("rec_oneside_nois", 1),
        ("rec_reinforce", 1),
        ("rec_oneside_nois", 2),
        ("rec_reinforce", 2),
    ]
    assert runs[0]["intervals"] == pytest.approx(STAYS) and runs[1]["intervals"] == pytest.approx(FALLS)
    assert [run["collapses"] for run in runs] == [False, True, False, True]


@pytest.mark.parametrize(
    ("second_seed", "seen"),
    [
        ({}, True),
        ({"reinforce": [0.1, 0.5, 0.9, 0.79]}, True),  # by a little more than the margin
        ({"reinforce": [0.1, 0.5, 0.9, 0.81]}, False),
        ({"nois": [0.1, 0.9, 0.85, 0.79]}, False),
        ({"nois": [0.1, 0.9, 0.85, 0.81]}, True),
        ({"reinforce_ends": 0.71}, False),
        ({"reinforce_ends": 0.69}, True),
    ],
)
def test_each_condition_counts_with_each_seed(tmp_path, second_seed, seen):
    assert two_seeds(tmp_path, **second_seed)["seen"] is seen
    assert json.loads((tmp_path / "contrast.json").read_text(encoding="utf-8"))["seen"] is seen


def test_the_table_has_a_row_a_run_and_the_picture_is_drawn(tmp_path):
    table = contrast_table(two_seeds(tmp_path)["runs"]).splitlines()
    assert table[0] == "| algorithm | seed | reward by interval | collapses | held-out |"
    assert table[3] == "| REINFORCE | 1 | 0.10, 0.50, 0.90, 0.20 | yes | 0.30 |" and len(table) == 6
    assert (tmp_path / "contrast.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda place: None, "holds no quickstarts"),
        (lambda place: write(place, "rec_reinforce", 1, FALLS, 0.3), "seed 1 lacks rec_oneside_nois"),
        (lambda place: write(place, "reinforce", 1, FALLS, 0.3), "ALGORITHM-seedN"),
        (lambda place: write(place, "rec_grpo", 1, FALLS, 0.3, says="rec_reinforce"), "a run of rec_reinforce"),
    ],
)
def test_what_is_no_contrast_is_refused_and_nothing_written(tmp_path, spoil, message):
    spoil(tmp_path)
    with pytest.raises(UsageError, match=message):
        judge(tmp_path)
    assert not (tmp_path / "contrast.json").exists()


def test_a_run_that_broke_off_is_refused(tmp_path):
    write(tmp_path, "rec_reinforce", 1, FALLS, 0.3)
    (tmp_path / "rec_reinforce-seed1" / "summary.json").write_text('{"algorithm": "rec', encoding="utf-8")
    with pytest.raises(UsageError, match="no quickstart that reached its end"):
        judge(tmp_path)
