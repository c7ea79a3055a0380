"""`use` takes over group-relative RL alone; everything else is refused with the reason, unless it is forced."""

import re

import pytest
from trinity.algorithm import ALGORITHM_TYPE
from typer.testing import CliRunner

from trinity_rec.cli import app
from trinity_rec.yaml.check import check
from trinity_rec.yaml.document import Document
from trinity_rec.yaml.source import objections

NOT_GROUP_RELATIVE = {
    "sft": "records of its own kind (sft)",
    "cpt": "records of its own kind (cpt)",
    "dpo": "records of its own kind (dpo)",
    "ppo": "trains a critic",
    "mix": "imitates expert data",
    "mix_chord": "imitates expert data",
    "raft": "imitates what is in the buffer",
    "on_policy_distill": "distils a teacher",
    "jsd": "distils a teacher",
}

FILES = {
    "a recipe of Data-Juicer": "project_name: quality\nprocess:\n  - llm_quality_score_filter: {}\n",
    "verl's own settings": "data: {}\nactor_rollout_ref: {}\nalgorithm: {adv_estimator: grpo}\ntrainer: {}\n",
    "most of its keys are not Trinity's": "name: x\nservices: {}\nvolumes: {}\n",
    "advantage_fn: jsd distils": "algorithm: {algorithm_type: grpo, advantage_fn: jsd}\n",
    "policy_loss_fn: sft imitates": "algorithm: {algorithm_type: grpo, policy_loss_fn: sft}\n",
    "sample_strategy: mix mixes": "algorithm: {algorithm_type: grpo, sample_strategy: mix}\n",
    "from queue and sql alone": "mode: train\nalgorithm: {algorithm_type: grpo}\n"
    "buffer: {trainer_input: {experience_buffer: {storage_type: file, path: x}}}\n",
    "mode bench trains nothing": "mode: bench\nalgorithm: {algorithm_type: grpo}\n",
    "an algorithm of its own": "algorithm: {algorithm_type: grpo}\n"
    "stages:\n- {stage_name: a, algorithm: {algorithm_type: sft}}\n",
}


def reasons(text: str) -> list[str]:
    return [each.reason for each in objections(Document.parse("run.yaml", text))]


@pytest.mark.parametrize("name", ALGORITHM_TYPE._default_mapping)
def test_every_algorithm_of_the_installed_trinity_is_judged(name):
    found = reasons(f"mode: both\nalgorithm: {{algorithm_type: {name}}}\n")
    if name in NOT_GROUP_RELATIVE:
        assert len(found) == 1 and found[0].startswith(name) and NOT_GROUP_RELATIVE[name] in found[0]
    else:
        assert found == []


@pytest.mark.parametrize("reason", FILES)
def test_a_file_of_another_kind_is_refused_with_its_line_and_reason(reason, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(FILES[reason])
    result = CliRunner().invoke(app, ["use", "rec_grpo", str(path), "--yes"])
    assert result.exit_code == 1
    assert re.match(re.escape(str(path)) + r":\d+: ", str(result.exception)) and reason in str(result.exception)
    assert "--force" in str(result.exception) and path.read_text() == FILES[reason]


def test_force_overrides(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("mode: both\nalgorithm:\n  algorithm_type: ppo\n")
    result = CliRunner().invoke(app, ["use", "rec_grpo", str(path), "--yes", "--force"])
    assert result.exit_code == 0 and "forced:" in result.stderr and "trains a critic" in result.stderr
    assert "trinity_rec.rec_grpo" in path.read_text()


def test_what_is_switched_already_can_be_switched_again():
    assert reasons("mode: both\nalgorithm: {algorithm_type: trinity_rec.rec_ring_is}\n") == []
    assert reasons("algorithm: {}\nmode: both\n") == []


def test_check_flags_buffers_that_cannot_be_read_or_are_not():
    text = """\
mode: train
algorithm: {algorithm_type: trinity_rec.rec_grpo}
model: {model_path: m}
buffer:
  train_batch_size: 8
  explorer_input:
    default_workflow_type: on_policy_distill_workflow
  trainer_input:
    experience_buffer: {storage_type: file, path: x.jsonl}
    auxiliary_buffers:
      experts: {path: y.jsonl, storage_type: file}
"""
    report = check(Document.parse("run.yaml", text))
    assert [(each.line, "queue and sql alone" in str(each)) for each in report.errors] == [(9, True)]
    said = {each.line: str(each) for each in report.doubts}
    assert "reads the experience buffer alone" in said[10] and "asks a teacher" in said[7]
