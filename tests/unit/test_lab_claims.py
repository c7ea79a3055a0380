"""Verdicts follow their written rules: curves whose truth is known are judged as they must be."""

import numpy as np
import pytest

from trinity_rec.lab.claims import CLAIMS, FAILS, HOLDS, OPEN, Part, judge, judge_part, verdict
from trinity_rec.lab.statistics import (
    MEASURES,
    Estimate,
    fall,
    final,
    first_half,
    mean_reward,
    resampled_means,
    roughness,
)
from trinity_rec.variants import SETTINGS, VARIANTS

STEPS = 13


def curve(end, start=0.2, kl=0.1, wiggle=0.0):
    rewards = np.linspace(start, end, STEPS) + wiggle * (-1) ** np.arange(STEPS)
    return {"reward": rewards, "kl_initial": np.full(STEPS, kl)}


def curves_with(ends, seeds=5, spread=0.01):
    """Curves that end at `ends[variant]`, or `ends[variant][setting]`, give or take `spread`."""

    def curves(task, setting, variant):
        end = ends[variant]
        end = end[setting] if isinstance(end, dict) else end
        offsets = np.linspace(-spread, spread, seeds)
        return [curve(end + offset) for offset in np.roll(offsets, len(variant))]

    return curves


def test_measures_of_a_known_curve():
    rewards = {"reward": np.array([0.0, 0.2, 0.4, 0.6, 0.6, 0.6, 0.3, 0.3, 0.3])}
    assert final(rewards) == pytest.approx(0.3)
    assert fall(rewards) == pytest.approx(0.3)
    assert mean_reward(rewards) == pytest.approx(np.mean(rewards["reward"][1:]))
    assert first_half(rewards) == pytest.approx(0.45)
    assert roughness({"reward": np.linspace(0, 1, 9)}) == pytest.approx(0)
    assert roughness({"reward": np.array([0.0, 1.0, 0.0, 1.0])}) == pytest.approx(2)


def test_the_bootstrap_covers_the_mean_about_as_often_as_it_says():
    """With 20 values of a normal distribution the percentile interval covers in about 92 % of the samples."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(300):
        estimate = Estimate.of(0, resampled_means(generator.normal(size=20), generator))
        covered += estimate.low < 0 < estimate.high
    assert 0.87 < covered / 300 < 0.98


@pytest.mark.parametrize(
    "kind, low, high, expected",
    [
        ("greater", 0.11, 0.2, HOLDS),
        ("greater", 0.05, 0.2, OPEN),
        ("greater", -0.2, 0.1, FAILS),
        ("within", -0.09, 0.05, HOLDS),
        ("within", -0.2, 0.05, OPEN),
        ("within", 0.1, 0.3, FAILS),
        ("within", -0.3, -0.1, FAILS),
    ],
)
def test_verdicts_by_the_interval(kind, low, high, expected):
    assert verdict(Estimate((low + high) / 2, low, high), 0.1, kind) == expected


def test_a_part_that_one_cell_contradicts_is_inconclusive():
    part = Part("a above b", "final", {"a": 1, "b": -1}, ("x", "y"))
    assert judge_part(part, ["t"], curves_with({"a": 0.8, "b": 0.5})).verdict == HOLDS
    mixed = judge_part(part, ["t"], curves_with({"a": {"x": 0.9, "y": 0.4}, "b": 0.5}))
    assert mixed.effect > 0 and mixed.verdict == OPEN
    assert [cell["verdict"] for cell in mixed.cells] == [HOLDS, FAILS]


def test_likeness_is_judged_by_the_worst_cell():
    """Differences of opposite sign must not cancel."""
    part = Part("a as b", "final", {"a": 1, "b": -1}, ("x", "y"), 0.05, "within")
    apart = judge_part(part, ["t"], curves_with({"a": {"x": 0.6, "y": 0.4}, "b": 0.5}))
    assert apart.verdict == FAILS and abs(apart.effect) > 0.05
    assert judge_part(part, ["t"], curves_with({"a": 0.51, "b": 0.5})).verdict == HOLDS


def test_the_deciding_part_gives_a_claim_its_numbers():
    good, bad = (
        judge_part(Part(name, "final", {"a": sign, "b": -sign}, ("x",)), ["t"], curves_with({"a": 0.8, "b": 0.5}))
        for name, sign in (("right", 1), ("wrong", -1))
    )
    said = judge("C9", "a claim", "a rule", [good, bad])
    assert said["verdict"] == FAILS and said["decided_by"] == "wrong"
    assert said["effect"] == bad.effect and tuple(said["interval"]) == bad.interval
    assert judge("C9", "a claim", "a rule", [good, good])["verdict"] == HOLDS
    assert {"claim", "statement", "effect", "interval", "verdict", "rule"} <= set(said)


def test_claims_name_variants_settings_and_measures_that_exist():
    assert list(CLAIMS) == [f"C{number}" for number in range(2, 9)]
    for claim in CLAIMS.values():
        assert set(claim.variants) <= set(VARIANTS) and set(claim.settings) <= set(SETTINGS)
        assert all(part.measure in MEASURES for part in claim.parts)
        for part in claim.parts:
            assert part.statement in claim.rule
        assert len({part.statement for part in claim.parts}) == len(claim.parts)


def everything_holds(name):
    """Curves of the world that the paper describes."""
    ends = {"rec_oneside_nois_wide": 0.75, "rec_grpo": 0.6}

    def curves(task, setting, variant):
        stale = setting != "on_policy"
        if variant == "rec_reinforce" and stale:
            shape = [np.concatenate([np.linspace(0.2, 0.5, 7), np.linspace(0.45, 0.05, 6)])] * 5
        elif name == "C8":
            shape = [np.linspace(0.2, 0.7, STEPS)] * 5
        elif variant.startswith("red_"):
            shape = [np.linspace(0.2, 0.8, STEPS)] * 5
        elif variant.startswith("rec_grpo") and name == "C7":
            shape = [np.linspace(0.2, 0.6, STEPS) + 0.05 * (-1) ** np.arange(STEPS)] * 5
        elif name == "C6" and variant == "rec_ring_nois":
            shape = [np.concatenate([np.linspace(0.2, 0.8, 5), np.full(8, 0.8)])] * 5
        elif variant == "rec_oneside_nois_wide" and (setting == "offline" or name == "C6"):
            shape = [np.concatenate([np.linspace(0.2, 0.9, 7), np.linspace(0.88, 0.7, 6)])] * 5
        else:
            shape = [np.linspace(0.2, ends.get(variant, 0.6), STEPS)] * 5
        offsets = (0.01, -0.01, 0, 0.005, -0.005)
        return [
            {"reward": rewards + offset, "kl_initial": np.full(STEPS, 0.1)}
            for rewards, offset in zip(shape, offsets, strict=True)
        ]

    return curves


@pytest.mark.parametrize("name", CLAIMS)
def test_a_world_as_the_paper_says_confirms_each_claim_and_a_world_without_effects_none_of_difference(name):
    claim = CLAIMS[name]
    parts = [judge_part(part, ["addition"], everything_holds(name)) for part in claim.parts]
    assert {part.verdict for part in parts} == {HOLDS}, [(part.statement, part.verdict) for part in parts]

    def flat(task, setting, variant):
        return [curve(0.5 + offset) for offset in (0.01, -0.01, 0, 0.005, -0.005)]

    parts = [judge_part(part, ["addition"], flat) for part in claim.parts]
    if all(part.kind == "within" for part in claim.parts):
        assert {part.verdict for part in parts} == {HOLDS}
    else:
        assert FAILS in {part.verdict for part in parts}
