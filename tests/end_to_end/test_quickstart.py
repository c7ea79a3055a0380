"""`trinity-rec quickstart` as a user runs it: the real `trinity run`, a few steps, nothing mocked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session import MARK, marked_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trinity_rec.cli", *arguments]


def test_a_quickstart_trains_and_reports(tmp_path):
    out = tmp_path / "run"
    result = subprocess.run(
        command("quickstart", "--algorithm", "rec_ring_nois", "--steps", "4", "--sync-interval", "2", f"--out={out}"),
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert result.returncode == 0, result.stderr
    assert "held-out accuracy" in result.stdout
    assert "step 4/4" in result.stderr

    summary = json.loads((out / "summary.json").read_text())
    assert (summary["algorithm"], summary["steps"]) == ("rec_ring_nois", 4)
    assert len(summary["reward_by_step"]) == 4
    assert all(0 <= reward <= 1 for reward in summary["reward_by_step"])
    assert 0.2 < summary["accuracy_before"] < 0.45
    assert 0 < summary["seconds"] < 280
    assert 0 < summary["seconds_a_step"] < summary["seconds"] / 3 and summary["tokens_a_second"] > 1
    assert 0.5 < summary["memory_gib"] < 8
    assert (out / "reward.png").stat().st_size > 10_000
    assert list(out.glob("trinity/**/log/trainer.log")) and list(out.glob("trinity/**/log/explorer.log"))

    # every weight was trained, and the rollouts' weights were renewed after steps 2 and 4
    before = load_file(ASSETS / "model" / "model.safetensors")
    (checkpoint,) = out.glob("trinity/**/global_step_4/remote_checkpoint_path.txt")
    after = load_file(weights_of(checkpoint.read_text().strip(), out / "weights"))
    assert before.keys() == after.keys()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    assert list(out.glob("trinity/**/global_step_2/remote_sampler_path.txt"))


def weights_of(checkpoint: str, root: Path) -> Path:
    (found,) = (root / checkpoint.removeprefix("tinker://")).glob("*.safetensors")
    return found


def test_a_quickstart_that_is_told_to_stop_leaves_nothing(tmp_path):
    run = subprocess.Popen(
        command("quickstart", "--steps", "4", f"--out={tmp_path / 'run'}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not list(tmp_path.glob("run/trinity/**/log/explorer.log")):  # Ray's actors are there
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    (mark,) = {mark_of(child) for child in psutil.Process(run.pid).children()} - {None}
    assert len(marked_processes(mark)) > 5
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=30) == 128 + signal.SIGTERM
    assert marked_processes(mark) == []
    assert "Traceback" not in run.stderr.read()


def mark_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(MARK)
    except psutil.Error:
        return None
