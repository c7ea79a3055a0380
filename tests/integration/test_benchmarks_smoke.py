"""The benchmarks run and write what docs/performance.md reads off them; how fast they are is not for a test to say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trinity_rec.lab.tasks import TASKS

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def run(name: str, out: Path) -> dict:
    """The JSON of a quick run."""
    command = [sys.executable, str(BENCHMARKS / name), "--quick", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.slow
def test_a_step_without_a_reference_model_is_compared_with_one(tmp_path):
    found = run("step.py", tmp_path / "step.json")
    (row,) = found["rows"]
    assert found["machine"]["cores"] >= 1
    assert row["ours"]["reference_cpu"] < 0.1 * row["upstream"]["reference_cpu"], "only upstream runs a reference"
    assert {"min", "median", "max"} == row["step_over_upstream_cpu"].keys() == row["reference_share_cpu"].keys()
    assert row["ours"]["peak_bytes"] > 0 and row["model_bytes"] > 0


@pytest.mark.slow
def test_the_local_backend_makes_steps_and_says_where_their_time_goes(tmp_path):
    pytest.importorskip("tinker", reason="the Tinker SDK needs Python 3.11")
    (row,) = run("local_backend.py", tmp_path / "local_backend.json")["rows"]
    ours = row["ours"]
    assert ours["generated_tokens"] > 0
    assert ours["server_optim_steps"] == ours["server_saves"] == 1
    assert ours["sample"] + ours["train"] + ours["sync"] == pytest.approx(ours["step"], rel=0.2)
    assert {"sample_tokens_a_second", "train_tokens_a_second_cpu", "server_generate_seconds"} <= ours.keys()


@pytest.mark.slow
def test_losses_and_advantages_are_compared_and_put_into_tables(tmp_path):
    for name, options in (
        ("objective", ["--size=8x64", "--rounds=3", "--preset=rec_oneside_is"]),
        ("advantage", ["--experiences=64", "--rounds=3", "--tokens=8"]),
    ):
        command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *options, "--json", str(tmp_path / f"{name}.json")]
        subprocess.run(command, capture_output=True, check=True)
    command = [sys.executable, str(BENCHMARKS / "report.py"), str(tmp_path)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "| `rec_grpo` and 1 more |" in report and "| verl |" in report
    assert report.count("| 64 |") == 5, "a line for each setting of the advantages"


@pytest.mark.slow
def test_the_lab_s_steps_a_second_are_counted_for_each_task():
    command = [sys.executable, str(BENCHMARKS / "lab.py"), "--steps", "4", "--repeats", "1"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(TASKS)
    assert all(float(line.split()[1]) > 1 for line in lines[1:])
