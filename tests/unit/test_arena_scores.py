"""The arena's numbers against independent forms and known cases."""

import numpy as np
import pytest

from trinity_rec.lab.arena import score as scores
from trinity_rec.lab.arena.plan import ALLOWANCE, COLLAPSE, LEAST_ENTROPY, LEAST_SAMPLE_SIZE


def curve(*reward, entropy=1.0, size=1.0):
    rows = len(reward)
    nan_first = np.array([np.nan] + [1.0] * (rows - 1))
    return {
        "step": np.arange(rows),
        "reward": np.array(reward, float),
        "entropy": nan_first * entropy,
        "effective_sample_size": nan_first * size,
    }


def test_the_rate_with_the_best_mean_end_is_chosen_and_of_equals_the_smallest():
    tuned = {
        1e-2: [curve(0, 0.9, 0.9, 0.9), curve(0, 0, 0, 0)],
        1e-3: [curve(0, 0.6, 0.6, 0.6), curve(0, 0.6, 0.6, 0.6)],
        1e-4: [curve(0, 0.6, 0.6, 0.6), curve(0, 0.6, 0.6, 0.6)],
    }
    assert scores.chosen_rate(tuned) == 1e-4
    assert scores.chosen_rate({**tuned, 5e-3: [curve(0, 0.7, 0.7, 0.7)] * 2}) == 5e-3


@pytest.mark.parametrize(
    "gains, expected",
    [
        ([0.1, 0.5, 0.46, 0.2, -0.3], 0.4),
        ([0.5, 0.5, 0.5, 0.5, 0.5], 1.0),
        ([0.0, 0.0, 0.5, 0.0, 0.0], 0.2),
        ([0.0, -0.1, -0.2, -0.1, 0.0], 0.0),  # who gains nowhere keeps nothing
    ],
)
def test_robustness_is_the_share_of_rates_that_keep_nine_tenths_of_the_best_gain(gains, expected):
    assert scores.robustness(dict(enumerate(gains))) == pytest.approx(expected)


def test_a_fall_from_the_best_is_a_collapse_and_a_dip_that_recovers_is_none():
    assert scores.collapsed(curve(0.2, 0.8, 0.8, 0.8, 0.3, 0.3, 0.3))
    assert not scores.collapsed(curve(0.2, 0.8, 0.8, 0.8, 0.3, 0.8, 0.8, 0.8))
    just, less = COLLAPSE + 1e-6, COLLAPSE - 1e-6
    assert scores.collapsed(curve(0, 0.8, 0.8, 0.8, *[0.8 - just] * 3))
    assert not scores.collapsed(curve(0, 0.8, 0.8, 0.8, *[0.8 - less] * 3))


def test_a_choice_costs_what_the_best_of_its_task_and_lag_is_ahead():
    ends = {
        ("a", "one", "near"): 0.9,
        ("a", "two", "near"): 0.7,
        ("b", "one", "near"): 0.2,
        ("b", "two", "near"): 0.6,
        ("a", "one", "far"): 0.1,
        ("a", "two", "far"): 0.5,
        ("a", "three", "far"): 0.4,
    }
    cells = [{"task": task, "algorithm": name, "lag": lag, "final": end} for (task, name, lag), end in ends.items()]
    found = scores.costs(cells)
    assert list(found) == ["two", "three", "one"]
    assert found["one"] == pytest.approx({"near": 0.2, "far": 0.4})
    assert found["two"] == pytest.approx({"near": 0.1, "far": 0.0})
    assert found["three"] == pytest.approx({"far": 0.1})


def test_the_entropy_gate_lets_a_policy_be_sure_of_right_answers():
    sure = LEAST_ENTROPY / 2
    assert scores.stopped_exploring(curve(0.2, 0.5, 0.5, 0.5, entropy=sure))
    assert not scores.stopped_exploring(curve(0.2, 0.95, 0.95, 0.95, entropy=sure))
    assert not scores.stopped_exploring(curve(0.2, 0.5, 0.5, 0.5, entropy=2 * LEAST_ENTROPY))


def test_the_sample_size_gate_sees_one_bad_stretch():
    one = curve(0.2, 0.5, 0.5, 0.5)
    assert not scores.lost_its_samples(one)
    one["effective_sample_size"][2] = LEAST_SAMPLE_SIZE - 0.01
    assert scores.lost_its_samples(one)


def test_the_interval_is_the_bootstrap_of_the_mean():
    values = np.array([0.1, 0.4, 0.35, 0.8, 0.6])
    found = scores.estimate(values)
    generator = np.random.default_rng(7)
    means = [generator.choice(values, len(values)).mean() for _ in range(20_000)]
    assert found.effect == pytest.approx(values.mean())
    np.testing.assert_allclose((found.low, found.high), np.quantile(means, (0.025, 0.975)), atol=0.01)


def test_ranks_are_those_of_a_sort_and_equals_share_theirs():
    np.testing.assert_array_equal(scores.ranks([0.3, 0.9, 0.5]), [3, 1, 2])
    np.testing.assert_array_equal(scores.ranks([0.5, 0.9, 0.5, 0.1]), [2.5, 1, 2.5, 4])
    values = np.random.default_rng(0).random(20)
    np.testing.assert_array_equal(scores.ranks(values), 20 - values.argsort().argsort())


def test_the_mean_rank_is_over_the_columns_an_algorithm_is_in():
    ends = {("a", "x"): 0.9, ("b", "x"): 0.5, ("a", "y"): 0.1, ("b", "y"): 0.2, ("c", "y"): 0.3}
    cells = [{"algorithm": name, "task": "t", "lag": lag, "final": end} for (name, lag), end in ends.items()]
    assert scores.mean_ranks(cells) == {"a": 2.0, "b": 2.0, "c": 1.0}


def test_a_cell_says_what_its_curves_say():
    tuned = {1e-4: [curve(0.2, 0.3, 0.3, 0.3)], 1e-3: [curve(0.2, 0.7, 0.7, 0.7)]}
    judged = [curve(0.2, 0.6, 0.6, 0.6), curve(0.2, 0.9, 0.9, 0.9, 0.5, 0.5, 0.5, size=0.1)]
    cell = scores.score("rec_grpo", "addition", "offline", tuned, judged)
    assert {key: cell[key] for key in ("algorithm", "task", "lag", "rate", "seeds")} == {
        "algorithm": "rec_grpo",
        "task": "addition",
        "lag": "offline",
        "rate": 1e-3,
        "seeds": 2,
    }
    assert cell["final"] == pytest.approx((0.6 + 0.5) / 2) and cell["interval"] == pytest.approx([0.5, 0.6])
    assert cell["auc"] == pytest.approx((0.6 + 0.7) / 2)
    assert (cell["collapse_rate"], cell["low_sample_size_rate"], cell["low_entropy_rate"]) == (0.5, 0.5, 0.0)
    assert cell["robustness"] == 0.5 and cell["gains"] == pytest.approx({"0.0001": 0.1, "0.001": 0.5})


def test_the_front_is_who_no_other_beats_in_both():
    points = {"high": (0.2, 0.9), "robust": (0.6, 0.7), "as robust": (0.6, 0.5), "beaten": (0.2, 0.7)}
    assert scores.front(points) == {"high", "robust"}
    assert scores.front({"a": (0.2, 0.9), "b": (0.2, 0.9)}) == {"a", "b"}  # equals beat nobody


@pytest.mark.parametrize(
    "lead, verdict",
    [([0.1, 0.12, 0.09], "better"), ([-0.1, -0.02, -0.2], "worse"), ([0.1, -0.1, 0.0], "undecided"),
     ([0.0, 0.0, 0.0], "undecided")],
)  # fmt: skip
def test_the_difference_is_paired_by_seed(lead, verdict):
    other = [curve(0, base, base, base) for base in (0.2, 0.5, 0.7)]  # spread far wider than the difference
    own = [curve(0, *[base + more] * 3) for base, more in zip((0.2, 0.5, 0.7), lead, strict=True)]
    found = scores.compared(own, other)
    assert found["verdict"] == verdict and found["difference"] == pytest.approx(np.mean(lead), abs=1e-12)
    assert found["interval"][0] <= found["difference"] <= found["interval"][1]


def beside(difference, own, other, is_best=True):
    return {
        "task": "addition",
        "lag": "offline",
        "algorithm": "off_tis",
        "difference": difference,
        "is_best": is_best,
        "robustness": {"own": own, "other": other},
    }


def test_ones_own_succeeds_where_it_is_nowhere_far_below_the_best_and_more_robust():
    here = beside(0.1, 0.2, 0.2)
    assert scores.success([here, beside(-ALLOWANCE, 0.6, 0.4)])["succeeds"]
    assert not scores.success([here, beside(-ALLOWANCE - 1e-3, 0.6, 0.4)])["succeeds"]
    assert not scores.success([here, beside(0.0, 0.4, 0.4)])["succeeds"]  # as robust is not enough
    others = beside(-0.5, 0.0, 1.0, is_best=False)  # who is not the best does not count
    found = scores.success([here, others, beside(-0.01, 0.6, 0.4)])
    assert found["worst"]["difference"] == -0.01 and found["succeeds"]
    assert found["robustness"] == {"own": pytest.approx(0.4), "other": pytest.approx(0.3)}
    assert scores.success([others]) is None
    assert "at worst -0.010 (addition, offline, off_tis" in scores.said_of_success(found)
