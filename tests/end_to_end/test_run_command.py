"""`trinity-rec run` on a YAML of the Tinker road: it starts what the YAML needs, and fails where Trinity does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from trinity_rec.cli import app
from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session import trained_steps
from trinity_rec.shipped import example

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


FAILING_LOSS = """
from trinity.algorithm.policy_loss_fn.policy_loss_fn import PolicyLossFn

class FailsAtTheSecondStep(PolicyLossFn):
    calls = 0

    def __init__(self, backend="tinker"):
        super().__init__(backend=backend)

    def __call__(self, logprob, old_logprob, action_mask, advantages, **kwargs):
        FailsAtTheSecondStep.calls += 1
        if FailsAtTheSecondStep.calls > 32:  # responses a step, once each
            raise ArithmeticError("the second step is too much")
        return -(logprob * advantages * action_mask).mean(), {}

    @classmethod
    def default_args(cls):
        return {}
"""


def run(folder: Path, **changes: object) -> subprocess.CompletedProcess[str]:
    config = OmegaConf.load(example("rec_gsm8k/quickstart.yaml"))
    small = {"buffer.batch_size": 4, "buffer.total_steps": 4, "trainer.total_steps": 4, "explorer.runner_per_model": 1}
    for key, value in (small | {key.replace("__", "."): value for key, value in changes.items()}).items():
        OmegaConf.update(config, key, value, merge=False)
    OmegaConf.save(config, folder / "config.yaml")
    env = os.environ | {
        "TRINITY_REC_RUN_DIR": str(folder),
        "TRINITY_REC_MODEL": str(ASSETS / "model"),
        "TRINITY_REC_TASKS": str(ASSETS / "tasks"),
        "PYTHONPATH": str(folder),
    }
    command = [sys.executable, "-m", "trinity_rec.cli", "run", str(folder / "config.yaml")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=580)


def test_a_yaml_is_run_to_its_last_step_and_then_is_done(tmp_path):
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr
    assert "step 4/4" in first.stderr
    job = tmp_path / "trinity" / "quickstart"
    assert first.stdout.strip() == str(job)
    assert [step.number for step in trained_steps(job)] == [1, 2, 3, 4]
    diagnosed = CliRunner().invoke(app, ["diagnose", str(job)])
    assert diagnosed.exit_code == 0 and "error" not in diagnosed.stdout, diagnosed.stdout
    again = run(tmp_path)
    assert again.returncode == 0 and "all 4 steps are trained already" in again.stderr


def test_a_missing_step_is_an_error_with_its_reason_and_leaves_nothing(tmp_path):
    (tmp_path / "failing_loss.py").write_text(FAILING_LOSS)
    loss = {"algorithm__policy_loss_fn": "failing_loss.FailsAtTheSecondStep", "algorithm__policy_loss_fn_args": {}}
    result = run(tmp_path, **loss)
    assert result.returncode == 1
    reason = "error: trinity run stopped after 1 of 4 steps: ArithmeticError: the second step is too much\n"
    assert result.stderr.endswith(reason), result.stderr
    assert [process for process in psutil.process_iter(["environ"]) if works_in(tmp_path, process)] == []

    diagnosed = CliRunner().invoke(app, ["diagnose", str(tmp_path), "--json", "--out", str(tmp_path / "page")])
    assert diagnosed.exit_code == 1
    (judged,) = json.loads(diagnosed.stdout)
    found = {each["rule"]: each for each in judged["findings"]}
    assert not judged["ok"] and judged["steps"] == 1
    assert found["ended_early"]["level"] == "error"
    assert found["ended_early"]["numbers"] == "1 of 4 steps, ArithmeticError: the second step is too much"
    page = (tmp_path / "page" / "index.html").read_text()
    assert "the second step is too much" in page and "data:image/png;base64," in page


def works_in(folder: Path, process: psutil.Process) -> bool:
    """Whether it belongs to the run there; what one may not look at was not started here, and a zombie has ended."""
    return (process.info["environ"] or {}).get("TRINITY_REC_RUN_DIR") == str(folder)
