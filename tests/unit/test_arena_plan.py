"""What is run: whole cells, seeds that serve once, a cost that is what is to come, and one's own algorithm."""

import importlib
import linecache
import shutil
import sys
from dataclasses import replace

import pytest

from trinity_rec.lab.arena import own, plan
from trinity_rec.lab.arena.run import plan_of
from trinity_rec.lab.cost import seconds
from trinity_rec.presets import PRESETS
from trinity_rec.terminal import UsageError
from trinity_rec.variants import LAGS, SETTINGS


@pytest.mark.parametrize("scale", [plan.FULL, plan.QUICK])
def test_no_seed_both_chooses_a_rate_and_judges(scale):
    assert not set(scale.tuning) & set(scale.judging)
    assert len(scale.judging) == len(set(scale.judging)) >= 5


def test_the_rates_are_five_over_two_decades():
    assert len(plan.RATES) == 5 and plan.RATES[-1] / plan.RATES[0] == pytest.approx(100)
    assert list(plan.RATES) == sorted(plan.RATES)


def test_all_algorithms_of_all_families_and_all_lags_take_part():
    assert set(plan.FULL.algorithms) == set(PRESETS) - {"rec"}
    assert set(plan.FULL.lags) == set(LAGS) >= set(SETTINGS)
    assert {LAGS[name].sync_interval for name in LAGS} == {1, 4, 20, 64, None}
    assert plan.FULL.steps >= 2 * 64  # there is training after the longest interval's refresh


def small(tmp_path, **changes):
    scale = replace(plan.QUICK, algorithms=("rec_grpo", "off_tis"), **changes)
    return plan_of(scale, tmp_path)


def test_a_column_is_its_whole_cells(tmp_path):
    planned = small(tmp_path)
    assert planned.columns == [("addition", lag) for lag in planned.scale.lags]
    cells = planned.cells(("addition", "offline"))
    assert cells == [("addition", "offline", "rec_grpo"), ("addition", "offline", "off_tis")]
    tuning = planned.tuning(cells)
    judging = planned.judging(dict.fromkeys(cells, 5e-4))
    assert len(tuning) == 2 * 5 * len(planned.scale.tuning) and len(judging) == 2 * 5
    paths = {job.path for job in tuning + judging}
    assert len(paths) == len(tuning) + len(judging)  # no run stands for two


def test_the_cost_is_that_of_the_runs_that_are_not_there(tmp_path):
    planned = small(tmp_path)
    each_cell = 5 * len(planned.scale.tuning) + 5
    assert planned.runs_to_come() == {"addition": 2 * 3 * each_cell}
    cost = seconds(planned.runs_to_come(), {"addition": 10.0}, {"addition": planned.scale.steps}, workers=2)
    assert cost == pytest.approx(6 * each_cell * planned.scale.steps / 20)
    cell = planned.cells(("addition", "offline"))[0]
    done = planned.tuning([cell]) + planned.judging({cell: 5e-4})[:3]
    for job in done:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        job.path.touch()
    assert planned.runs_to_come() == {"addition": 6 * each_cell - len(done)}


def test_quick_is_a_part_that_is_over_in_minutes(tmp_path):
    """At 30 steps a second and process, less than what one slow core was measured to make of addition."""
    quick = plan_of(plan.QUICK, tmp_path)
    assert set(plan.QUICK.algorithms) <= set(plan.ALGORITHMS)
    steps = {"addition": plan.QUICK.steps}
    assert seconds(quick.runs_to_come(), {"addition": 30.0}, steps, workers=2) <= 15 * 60
    full, speeds = plan_of(plan.FULL, tmp_path), {"addition": 50.0, "word_problems": 17.0, "tool_call": 17.0}
    assert seconds(full.runs_to_come(), speeds, dict.fromkeys(speeds, plan.FULL.steps), workers=2) <= 10 * 3600


def written(tmp_path, text, name="mine.yaml"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_ones_own_algorithm_is_its_section(tmp_path):
    path = written(
        tmp_path,
        "algorithm:\n  algorithm_type: trinity_rec.rec_oneside_nois\n  repeat_times: 8\n"
        "  policy_loss_fn_args: {epsilon_high: 1.5}\n  advantage_fn_args: {std_normalize: true}\n",
    )
    found = own.variant_of(path)
    assert (found.name, found.preset) == ("mine", "rec_oneside_nois")
    assert found.policy_loss == {"epsilon_high": 1.5} and found.advantage == {"std_normalize": True}
    assert own.shaping_of(found).std_normalize and own.objective_of(found).epsilon_high == 1.5


def test_another_definition_has_curves_of_its_own(tmp_path):
    one = (
        "algorithm:\n  algorithm_type: trinity_rec.rec\n  policy_loss_fn_args: {clip_mode: tests.own_rules.soft_clip}\n"
    )
    first = own.variant_of(written(tmp_path, one))
    second = own.variant_of(written(tmp_path, one.replace("soft_clip}", "soft_clip, softness: 2.0}")))
    assert own.digest(first) == own.digest(own.variant_of(written(tmp_path, one)))
    assert own.digest(first) != own.digest(second)
    paths = {
        plan_of(plan.QUICK, tmp_path, each).path(("addition", "offline", "mine"), 5e-4, 0) for each in (first, second)
    }
    assert len(paths) == 2


def test_what_a_rule_calls_is_part_of_its_definition(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    text = "algorithm:\n  algorithm_type: trinity_rec.rec\n  policy_loss_fn_args: {weight: mine_alone.rule}\n"
    rule = "def helper(x):\n    return x.ratio\n\n\ndef rule(x):\n    return helper(x)\n"
    digests = set()
    for source in (rule, rule.replace("x.ratio", "x.ratio**2")):
        sys.modules.pop("mine_alone", None)
        linecache.clearcache()
        (tmp_path / "mine_alone.py").write_text(source)
        importlib.invalidate_caches()
        digests.add(own.digest(own.variant_of(written(tmp_path, text))))
        shutil.rmtree(tmp_path / "__pycache__", ignore_errors=True)
    assert len(digests) == 2


REC = "algorithm:\n  algorithm_type: trinity_rec.rec\n"


@pytest.mark.parametrize(
    "text, message",
    [
        ("buffer: {}\n", "no `algorithm:` section"),
        ("algorithm: {algorithm_type: 3}\n", "no `algorithm:` section"),
        ("algorithm: {algorithm_type: trinity_rec.off_tiss}\n", "did you mean off_tis"),
        (f"{REC}  kl_loss_fn: k2\n", ":3: the arena does not read algorithm.kl_loss_fn"),
        (f"{REC}  policy_loss_fn_args: 3\n", ":3: algorithm.policy_loss_fn_args is not a mapping"),
        (f"{REC}  policy_loss_fn_args: {{epsilon_low: 2}}\n", "epsilon_low=2 is not in"),
        (
            f"{REC}  policy_loss_fn_args: {{clip_mode: no.such}}\n",
            ":3: algorithm.policy_loss_fn_args: clip_mode='no.such'",
        ),
        (f"{REC}  advantage_fn_args: {{drop: all}}\n", ":3: algorithm.advantage_fn_args: drop='all'"),
    ],
)
def test_what_is_no_algorithm_is_refused_with_its_line(text, message, tmp_path):
    with pytest.raises(UsageError) as error:
        own.variant_of(written(tmp_path, text))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_name_that_is_taken_is_refused(tmp_path):
    text = "algorithm: {algorithm_type: trinity_rec.rec}\n"
    with pytest.raises(UsageError, match="rec_grpo is the name of an algorithm"):
        own.variant_of(written(tmp_path, text, "rec_grpo.yaml"))
