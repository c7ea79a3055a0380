"""The map of the claims: what its rules say of curves whose truth is known, and what it runs."""

import csv
import json
import math

import numpy as np
import pytest

from trinity_rec.lab import rates
from trinity_rec.lab.arena import plan
from trinity_rec.lab.claims import CLAIMS, FAILS, HOLDS, OPEN
from trinity_rec.lab.cost import seconds
from trinity_rec.lab.grid import write_rows
from trinity_rec.lab.regimes import report, rules
from trinity_rec.lab.regimes.rules import AS_FAST, FASTER, LOG_STEPS, MAPPED, TARGETS, Part, judge_part_at
from trinity_rec.lab.regimes.run import Map
from trinity_rec.lab.statistics import MEASURES, steps_to
from trinity_rec.lab.tasks import TASKS
from trinity_rec.lab.warm_up import ASSETS
from trinity_rec.variants import LAGS, SETTINGS, VARIANTS

TARGET = TARGETS["addition"]
STEPS = np.arange(0, 250, 10)


def rising(at, *, fall=0.0, horizon=240):
    """Reaches the target of addition at step `at`, on a line from 0.2 that is bent nowhere near it."""
    steps = STEPS[horizon >= STEPS]
    rewards = 0.2 + (TARGET - 0.2) * steps / at
    rewards[len(rewards) // 2 :] -= fall
    return {"step": steps, "reward": rewards, "kl_initial": np.full(len(steps), 0.1)}


def seeds(at, spread=1.0, **rest):
    return [rising(at + offset * spread, **rest) for offset in (-2, -1, 0, 1, 2)]


@pytest.mark.parametrize("at", [33.0, 47.5, 80.0, 150.0])
def test_the_steps_to_a_reward_lie_on_the_line_between_evaluations(at):
    assert steps_to(rising(at), TARGET) == pytest.approx(at)


def test_steps_count_to_the_middle_of_three_evaluations_and_not_to_one_lucky_one():
    curve = {"step": np.arange(0, 70, 10), "reward": np.array([0.2, 0.2, 0.5, 0.2, 0.2, 0.8, 0.8])}
    # means: 0.3, 0.3, 0.3, 0.4, 0.6 at steps 10 to 50
    assert steps_to(curve, 0.42) == pytest.approx(41)
    assert math.isinf(steps_to(curve, 0.9)) and steps_to(curve, 0.1) == 10


FAST = Part("a is faster than b", LOG_STEPS, {"b": 1, "a": -1}, ("x",), FASTER)
LIKE = Part("a is as fast as b", LOG_STEPS, {"a": 1, "b": -1}, ("x",), AS_FAST, "within")


@pytest.mark.parametrize(
    "part, a, b, said",
    [
        (FAST, 60, 120, HOLDS),
        (FAST, 120, 60, FAILS),
        (FAST, 100, 100, FAILS),  # a difference that nobody would notice is none
        (FAST, 200, 200 * 1.1, OPEN),
        (FAST, 100, 1000, HOLDS),  # the slower one never gets there: it is slower at least so much
        (FAST, 235, 1000, OPEN),  # and here the end of the run hides by how much
        (FAST, 1000, 100, FAILS),
        (FAST, 1000, 1000, OPEN),
        (LIKE, 100, 101, HOLDS),
        (LIKE, 100, 150, FAILS),
        (LIKE, 150, 100, FAILS),
        (LIKE, 100, 1000, FAILS),
        (LIKE, 1000, 100, FAILS),
        (LIKE, 230, 1000, OPEN),  # 240 at most is near 230, but it may be any number beyond
        (LIKE, 1000, 1000, OPEN),
    ],
)
def test_speed_is_judged_by_steps_and_what_was_not_reached_decides_nothing(part, a, b, said):
    found = judge_part_at(part, "addition", {"a": seeds(a), "b": seeds(b)})
    assert found.verdict == said, found


def test_one_run_in_five_that_is_late_does_not_make_a_part_undecided_and_two_do():
    slow, fast = seeds(150), seeds(60)
    late = [rising(1000)]
    assert judge_part_at(FAST, "addition", {"a": slow, "b": fast[:4] + late}).verdict == FAILS
    assert judge_part_at(FAST, "addition", {"a": slow, "b": seeds(40)[:3] + late * 2}).verdict == OPEN
    two_late = judge_part_at(FAST, "addition", {"a": seeds(40), "b": fast[:3] + late * 2})
    assert two_late.verdict == HOLDS  # more steps of the slower one only add to it
    assert judge_part_at(FAST, "addition", {"a": seeds(40)[:3] + late * 2, "b": seeds(239)}).verdict == OPEN


def test_effects_of_speed_are_ratios_of_steps():
    found = judge_part_at(FAST, "addition", {"a": seeds(60, 0), "b": seeds(90, 0)})
    assert math.exp(found.effect) == pytest.approx(1.5)
    assert report.effect({"effect": found.effect, "measure": LOG_STEPS}) == "x1.50"
    assert report.effect({"effect": -0.123, "measure": "final"}) == "-0.12"


def test_other_measures_are_those_of_the_claims():
    part = Part("a falls further", "fall", {"a": 1, "b": -1}, ("x",), 0.02)
    found = judge_part_at(part, "addition", {"a": seeds(100, fall=0.9), "b": seeds(100)})
    expected = MEASURES["fall"](rising(100, fall=0.9)) - MEASURES["fall"](rising(100))
    assert found.effect == pytest.approx(expected, abs=0.02) and found.verdict == HOLDS


@pytest.mark.parametrize("parts, said", [([HOLDS, HOLDS], HOLDS), ([HOLDS, OPEN], OPEN), ([OPEN, FAILS, HOLDS], FAILS)])
def test_a_claim_holds_where_all_its_parts_do(parts, said):
    assert rules.judge_claim(parts) == said


def test_the_map_has_the_claims_their_variants_and_their_margins():
    assert list(MAPPED) == list(CLAIMS)
    for name, claim in MAPPED.items():
        assert set(claim.variants) <= set(VARIANTS) and set(claim.settings) <= set(LAGS)
        assert {v for v in claim.variants if VARIANTS[v].rate_factor == 1} >= {
            v for v in CLAIMS[name].variants if VARIANTS[v].rate_factor == 1
        }
        for part in claim.parts:
            assert part.measure in (*MEASURES, LOG_STEPS)
            assert part.margin > 0 or part.measure in ("roughness", "divergence")
    assert set(rules.LAGS_OF) == set(plan.FULL.tasks)
    for lags in rules.LAGS_OF.values():
        assert set(SETTINGS) <= set(lags) <= set(LAGS) and len(set(lags)) == len(lags)


def test_a_target_is_a_quarter_of_the_way_from_the_model_to_one():
    for task, target in TARGETS.items():
        start = json.loads((ASSETS / task / "card.json").read_text(encoding="utf-8"))["sampled_reward"]
        assert target == pytest.approx(start + (1 - start) / 4, abs=0.006)


def test_no_seed_has_served_before():
    used = {*range(5), *plan.TUNING, *plan.JUDGING, *rates.SEEDS}
    assert not used & set(rules.SEEDS) and len(set(rules.SEEDS)) >= 5


def test_grpo_at_twice_the_rate_is_run_once_for_both(tmp_path):
    here = Map(tmp_path, ["addition"])
    jobs = here.jobs(("addition", "sync_interval_20"))
    assert len({job.path for job in jobs}) == len(jobs)
    grpo = {job.path.parent.name for job in jobs if job.path.parent.parent.name == "rec_grpo"}
    rate = TASKS["addition"].rate
    assert grpo == {f"{rate * factor:g}" for factor in (0.25, 0.5, 1, 2, 4, 8)}
    one = rules.run_of("rec_grpo_rate_4", 0.5)
    assert one == rules.run_of("rec_grpo_rate_2", 1.0) == rules.run_of("rec_grpo", 2.0) == ("rec_grpo", 2.0)


def test_the_map_can_be_afforded(tmp_path):
    """At the steps a second and process that were measured beside other work."""
    speeds = {"addition": 42.0, "word_problems": 12.0, "tool_call": 15.0}
    minutes = {
        task: seconds(Map(tmp_path, [task]).runs_to_come(), speeds, rules.STEPS_OF, workers=2) / 60 for task in speeds
    }
    assert minutes["addition"] <= 60 and minutes["word_problems"] + minutes["tool_call"] <= 180


def made_up(here, column, ends):
    """Curves of every run of a column; `ends` says where a variant's reach the target."""
    for job in here.jobs(column):
        at = ends.get(job.path.parent.parent.name, 100) + float(job.path.stem[-1])
        curve = rising(at)
        rows = [
            dict(zip(("step", "reward", "kl_initial"), row, strict=True))
            for row in zip(curve["step"], curve["reward"], curve["kl_initial"], strict=True)
        ]
        write_rows(rows, job.path)


def test_what_is_whole_is_judged_written_and_drawn(tmp_path):
    here = Map(tmp_path, ["addition"], factors=(0.5, 1.0))
    assert here.judged() == []
    column = ("addition", "offline")
    made_up(here, column, {"rec_oneside_nois_wide": 60, "rec_reinforce": 1000})
    rows = here.judged()
    assert {row["lag"] for row in rows} == {"offline"} and {row["factor"] for row in rows} == {0.5, 1.0}
    said = {row["part"]: row["verdict"] for row in rows if row["claim"] == "C4"}
    assert said == {"wide learns faster": HOLDS, "wide falls further offline": FAILS}
    assert {row["claim_verdict"] for row in rows if row["claim"] == "C4"} == {FAILS}
    assert {row["claim_verdict"] for row in rows if row["claim"] == "C2"} == {HOLDS}
    report.write(tmp_path, rows)
    assert json.loads((tmp_path / "regimes.json").read_text()) == json.loads(json.dumps(rows))
    table = list(csv.DictReader((tmp_path / "regimes.csv").open()))
    assert len(table) == len(rows) and float(table[0]["low"]) == pytest.approx(rows[0]["interval"][0], rel=1e-4)
    said = {each["claim"]: each for each in report.summary(rows)}
    assert (said["C4"][HOLDS], said["C4"][FAILS], said["C4"]["cells"]) == (0, 2, 2)
    assert said["C4"]["parts that hold nowhere"] == ["wide falls further offline"]
    assert said["C2"]["holds at the lowest rate"] == "1 of 1" and said["C2"][HOLDS] == 2
    line = "| C4 | two-digit addition | 0 of 2 | 2 of 2 | 0 of 2 | 0 of 1 | wide falls further offline |"
    assert line in (tmp_path / "regimes.md").read_text().splitlines()
    for name in ("map", *MAPPED):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")

    next((tmp_path / "curves").rglob("rec_ring_nois/0.0005/seed_2004.csv")).unlink()
    assert {row["factor"] for row in here.judged() if row["claim"] == "C6"} == {0.5}  # a cell is whole or is not there
    assert {row["factor"] for row in here.judged() if row["claim"] == "C3"} == {0.5, 1.0}


def test_colours_differ_in_lightness():
    """So that eyes of any kind, and a printer without colour, tell them apart."""

    def lightness(colour):
        red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        return 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2

    light = sorted(lightness(colour) for colour in report.COLOURS.values())
    assert set(report.COLOURS) == {HOLDS, FAILS, OPEN} and min(np.diff(light)) > 0.2
