"""`VERL_USE_EXTERNAL_MODULES=trinity_rec.verl`: every preset's loss in verl's own worker, without Trinity."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.integration.test_verl_worker import OF_THE_BATCH, expected_norm, model_and_batch
from tests.lone_worker import lone_worker_environment
from tests.tiny_model import make_tiny_model
from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_preset_is_a_loss_mode_of_verl_with_the_whole_batchs_gradient(tmp_path):
    model_dir = make_tiny_model(tmp_path / "model")
    _, batch = model_and_batch(model_dir)
    torch.save(batch, tmp_path / "batch.pt")
    environment = lone_worker_environment()
    environment["VERL_USE_EXTERNAL_MODULES"] += ",trinity_rec.verl"
    modes = [f"trinity_rec.{name}" for name in PRESETS]
    result = subprocess.run(
        [sys.executable, "-m", "tests.verl_alone", model_dir, tmp_path / "batch.pt", *modes],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        timeout=280,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    norms = json.loads(result.stdout.splitlines()[-1])
    for name, preset in PRESETS.items():
        if name in OF_THE_BATCH:  # a statistic of the batch is of a micro-batch here
            assert norms[f"trinity_rec.{name}"] > 0
            continue
        expected = expected_norm(model_dir, Objective(**preset.policy_loss))
        assert norms[f"trinity_rec.{name}"] == pytest.approx(expected, rel=1e-4), name
