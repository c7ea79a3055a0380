"""`trinity-rec diagnose` on event files as Trinity writes them: each rule where there is trouble, and where none."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner

from trinity_rec.cli import app
from trinity_rec.diagnose.case import Case
from trinity_rec.diagnose.rules import RULES, diagnose, markdown_table
from trinity_rec.plot.events import read_run

STEPS, SYNC = 40, 4
GROUPS = "experience_pipeline/group_advantages"
# A run that learns at sync_interval 4: rollouts of step s come from the weights after the last sync.
HEALTHY = {
    "critic/rewards/mean": lambda s: 0.2 + 0.6 * s / STEPS,
    "actor/kl_k1": lambda s: 0.002 * ((s - 1) % SYNC),
    "actor/pg_clipfrac": lambda s: 0.02 * ((s - 1) % SYNC),
    "actor/lr": lambda s: 1e-5,
    "actor/effective_sample_size": lambda s: 0.9,
    "sample/model_version/mean": lambda s: (s - 1) // SYNC * SYNC,
    f"{GROUPS}/groups": lambda s: 16,
    f"{GROUPS}/groups_of_one": lambda s: 0,
    f"{GROUPS}/groups_without_spread": lambda s: 4,
    f"{GROUPS}/invalid_responses": lambda s: 0,
    f"{GROUPS}/rollout_entropy": lambda s: 1.0 - 0.5 * s / STEPS,
}
TROUBLE = {
    "not_finite": {"actor/grad_norm": lambda s: 1.0 if s < 30 else np.nan},
    "ratio_of_one": {"actor/kl_k1": lambda s: 0.0},
    "reward_fell": {"critic/rewards/mean": lambda s: 0.2 + 0.02 * s if s < 20 else max(0.6 - 0.03 * (s - 20), 0)},
    "groups_of_one": {f"{GROUPS}/groups_of_one": lambda s: 16},
    "sampler_gap": {"actor/kl_k1": lambda s: 0.05 + 0.002 * ((s - 1) % SYNC)},
    "clipped_at_once": {"actor/pg_clipfrac": lambda s: 0.3},
    "clipped_share": {"actor/pg_clipfrac": lambda s: 0.9 * (s > 5)},
    "few_samples": {"actor/effective_sample_size": lambda s: 0.1},
    "no_spread": {f"{GROUPS}/groups_without_spread": lambda s: 16},
    "entropy_collapse": {f"{GROUPS}/rollout_entropy": lambda s: 0.8**s},
    "invalid_rewards": {f"{GROUPS}/invalid_responses": lambda s: int(s == 7)},
}


def make_run(job: Path, tags, steps=STEPS, total=STEPS, log="> Trainer finished.") -> Path:
    for role in ("trainer", "explorer"):
        with SummaryWriter(str(job / "monitor" / "tensorboard" / role)) as writer:
            for tag, value in tags.items():
                if tag.startswith(GROUPS) == (role == "explorer"):
                    for step in range(1, steps + 1):
                        writer.add_scalar(tag, value(step), step)
    (job / "log").mkdir()
    (job / "log" / "trainer.log").write_text(log)
    yaml = f"project: p\nname: {job.name}\nalgorithm: {{algorithm_type: grpo}}\ntrainer: {{total_steps: {total}}}\n"
    (job.parent / "config.yaml").write_text(yaml)
    return job


def found(job: Path) -> dict[str, str]:
    return {each.rule.name: str(each) for each in diagnose(Case.of(read_run(job)))}


def test_nothing_is_wrong_with_a_run_that_learns(tmp_path):
    assert found(make_run(tmp_path / "run", HEALTHY)) == {}


@pytest.mark.parametrize("rule", TROUBLE)
def test_each_trouble_is_found_and_no_other(tmp_path, rule):
    assert set(found(make_run(tmp_path / "run", HEALTHY | TROUBLE[rule]))) == {rule}


def test_every_rule_is_tried():
    assert {rule.name for rule in RULES} == {*TROUBLE, "ended_early"}


def test_a_run_that_ended_early_is_told_from_its_yaml_or_from_its_log(tmp_path):
    job = make_run(tmp_path / "run", HEALTHY, steps=25, total=100)
    assert "25 of 100 steps" in found(job)["ended_early"]
    log = 'Error in Trainer:\nTraceback (most recent call last):\n  File "x.py", line 1\nRuntimeError: out of memory\n'
    (job / "log" / "trainer.log").write_text(log)
    assert "25 of 100 steps, RuntimeError: out of memory" in found(job)["ended_early"]
    prefix = "ERROR 11-28 16:05:10 [trainer.py:156] "  # as Trinity's logger writes it
    (job / "log" / "trainer.log").write_text("".join(prefix + line + "\n" for line in log.splitlines()))
    assert "25 of 100 steps, RuntimeError: out of memory" in found(job)["ended_early"]
    (tmp_path / "config.yaml").unlink()
    assert "after step 25: RuntimeError: out of memory" in found(job)["ended_early"]


def test_a_ratio_of_one_is_no_fault_on_fresh_rollouts_nor_where_nothing_is_learned(tmp_path):
    zero = HEALTHY | {"actor/kl_k1": lambda s: 0.0}
    fresh = make_run(tmp_path / "fresh", zero | {"sample/model_version/mean": lambda s: s - 1})
    assert found(fresh) == {}
    assert found(make_run(tmp_path / "frozen", zero | {"actor/lr": lambda s: 0.0})) == {}
    tinker = make_run(tmp_path / "tinker", zero | {"sample/model_version/mean": lambda s: [-1, s - 1][s > 1]})
    assert found(tinker) == {}


def test_trinitys_own_metrics_serve_too(tmp_path):
    upstream = {tag: value for tag, value in HEALTHY.items() if not tag.startswith("actor/kl")}
    assert set(found(make_run(tmp_path / "run", upstream | {"actor/ppo_kl": lambda s: 0.0}))) == {"ratio_of_one"}


def test_what_was_not_logged_is_not_judged(tmp_path):
    job = make_run(tmp_path / "run", {"critic/rewards/mean": HEALTHY["critic/rewards/mean"], "actor/lr": lambda s: 1})
    assert found(job) == {}


def test_noise_is_no_fall(tmp_path):
    rng = np.random.default_rng(0)
    noisy = {"critic/rewards/mean": lambda s: float(rng.normal(0.5, 0.1))}
    assert found(make_run(tmp_path / "run", HEALTHY | noisy)) == {}


def test_the_command_says_it_in_lines_in_json_and_on_a_page(tmp_path):
    make_run(tmp_path / "good", HEALTHY)
    make_run(tmp_path / "bad" / "one", HEALTHY | TROUBLE["ratio_of_one"] | TROUBLE["few_samples"])
    runner = CliRunner()
    good = runner.invoke(app, ["diagnose", str(tmp_path / "good")])
    assert good.exit_code == 0 and "40 steps, nothing wrong" in good.stdout
    bad = runner.invoke(app, ["diagnose", str(tmp_path / "bad"), "--out", str(tmp_path / "page")])
    assert bad.exit_code == 1
    assert "error: the ratio is exactly 1 although rollouts are stale" in bad.stdout
    assert "bypass_old_logprobs: true" in bad.stdout and "doubt: a few tokens carry" in bad.stdout
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "rollouts up to 3 updates old" in page
    data = json.loads(runner.invoke(app, ["diagnose", str(tmp_path), "--json"]).stdout)
    assert {Path(each["run"]).name: each["ok"] for each in data} == {"good": True, "one": False}
    assert [each["rule"] for run in data for each in run["findings"]] == ["ratio_of_one", "few_samples"]


def test_a_run_that_has_just_begun_does_not_keep_the_others_from_being_judged(tmp_path):
    make_run(tmp_path / "good", HEALTHY)
    make_run(tmp_path / "new" / "begun", {})
    result = CliRunner().invoke(app, ["diagnose", str(tmp_path)])
    assert result.exit_code == 0 and "40 steps, nothing wrong" in result.stdout
    assert "begun hold no metric yet" in result.stderr
    alone = CliRunner().invoke(app, ["diagnose", str(tmp_path / "new")])
    assert alone.exit_code == 1 and "hold no metric yet" in str(alone.exception)


def test_doubts_alone_exit_with_0(tmp_path):
    make_run(tmp_path / "run", HEALTHY | TROUBLE["few_samples"])
    assert CliRunner().invoke(app, ["diagnose", str(tmp_path)]).exit_code == 0


def test_a_yaml_of_another_run_is_not_taken_for_its_own(tmp_path):
    job = make_run(tmp_path / "run", HEALTHY, total=100)
    config = (tmp_path / "config.yaml").read_text()
    (tmp_path / "config.yaml").write_text(config.replace("name: run", "name: another"))
    assert found(job) == {}
    assert "ended_early" in {each.rule.name for each in diagnose(Case.of(read_run(job), tmp_path / "config.yaml"))}


def test_the_documentations_table_is_the_list_of_rules():
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert markdown_table() in page, "run make generate"
    assert not re.search(r"\|\|", markdown_table())
