"""`trinity-rec quickstart --backend vllm` as a user runs it: vLLM, verl and `trinity run`, nothing mocked."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from tests.vllm.small_run import write_config
from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session import MARK, marked_processes, trained_steps
from trinity_rec.session.bench import evaluated_steps

pytestmark = pytest.mark.timeout(900)
COMMAND = [sys.executable, "-m", "trinity_rec.cli"]


def test_a_quickstart_trains_by_vllm_and_verl_and_is_benched(tmp_path):
    out = tmp_path / "run"
    options = ["--backend", "vllm", "--steps", "8", "--sync-interval", "2"]
    result = subprocess.run(
        [*COMMAND, "quickstart", *options, f"--out={out}"], capture_output=True, text=True, timeout=880
    )
    assert result.returncode == 0, result.stderr
    assert "held-out accuracy" in result.stdout
    assert "step 8/8" in result.stderr

    summary = json.loads((out / "summary.json").read_text())
    assert (summary["algorithm"], summary["backend"], summary["steps"]) == ("rec_oneside_nois", "vllm", 8)
    assert len(summary["reward_by_step"]) == 8
    assert 0 < summary["seconds_a_step"] < 60 and summary["tokens_a_second"] > 1 and 2 < summary["memory_gib"] < 20
    assert 0.2 < summary["accuracy_before"] < 0.4, "what its card says: 0.296"
    assert summary["accuracy_after"] > summary["accuracy_before"] + 0.03, "`mode: bench` read the checkpoint"
    assert (out / "reward.png").stat().st_size > 10_000

    # The sampler's logprobs are the trainer's as long as both have the same weights, and new weights do arrive: the
    # rollouts of odd steps are fresh, those of even ones a step old.
    steps = trained_steps(out / "trinity")
    gaps = [abs(step.metrics["actor/kl_k1"]) for step in steps]
    assert max(gaps[0::2]) < 1e-5
    assert min(gaps[1:4:2]) > 1e-3, "towards the end the steps are small"

    assert not any("time/ref" in step.metrics for step in steps), "no KL term, no reference model"

    # Every weight has changed.
    job = out / "trinity" / "quickstart"
    assert evaluated_steps(job) == {0, 8}
    (saved,) = job.glob("global_step_8/actor/huggingface/*.safetensors")
    before, after = load_file(ASSETS / "model" / "model.safetensors"), load_file(saved)
    assert all(not torch.equal(before[name], after[name].float()) for name in before)


def test_a_quickstart_that_is_told_to_stop_leaves_nothing(tmp_path):
    run = subprocess.Popen(
        [*COMMAND, "quickstart", "--backend", "vllm", "--steps", "4", f"--out={tmp_path / 'run'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 600
    while not list(tmp_path.glob("run/trinity/**/log/explorer.log")):  # Ray's actors are there
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.5)
    (mark,) = {child.environ().get(MARK) for child in psutil.Process(run.pid).children()} - {None}
    assert len(marked_processes(mark)) > 5
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) == 128 + signal.SIGTERM
    assert marked_processes(mark) == []
    assert "Traceback" not in run.stderr.read()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"explorer__rollout_model__engine_num": 2}, "explorer.rollout_model.engine_num: 2: weights reach a second"),
        ({"synchronizer__sync_method": "nccl"}, 'synchronizer.sync_method: "nccl" needs a GPU'),
    ],
)
def test_what_a_cpu_cannot_do_is_refused_before_ray_starts(tmp_path, monkeypatch, changes, reason):
    monkeypatch.setenv("TRINITY_REC_MODEL", str(ASSETS / "model"))
    monkeypatch.setenv("TRINITY_REC_TASKS", str(ASSETS / "tasks"))
    path = write_config(tmp_path / "run", 2, **changes)
    result = subprocess.run([*COMMAND, "run", str(path)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot run here: ") and reason in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run" / "trinity").exists(), "nothing was started"
    assert OmegaConf.load(path).mode == "both"
