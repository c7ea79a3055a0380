"""`trinity-rec paper run` on the local backend: a real, small experiment is trained, interrupted, resumed, gathered.

What changes from the cluster's run is given by `--set`, as a user would: model, problems, sizes, backend.
"""

from __future__ import annotations

import csv
import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from trinity_rec.paper.compose import Run, parsed
from trinity_rec.paper.experiments import EXPERIMENTS
from trinity_rec.paper.results import logged
from trinity_rec.paper.results import row as results_row
from trinity_rec.paper.run import Progress, bench
from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session import LaunchError, Session, trained_steps
from trinity_rec.session.bench import evaluated_steps

EXPERIMENT = "gsm8k/sync_interval_20/rec_oneside_nois_wide"
STEPS = 4


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Sums in GSM8K's shape, the held-out ones as its test split."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "train.jsonl").write_bytes((ASSETS / "tasks" / "train.jsonl").read_bytes())
    held_out = (ASSETS / "tasks" / "test.jsonl").read_text().splitlines(keepends=True)
    (folder / "test.jsonl").write_text("".join(held_out[:8]))
    return folder


@pytest.fixture(scope="module")
def session(tmp_path_factory, tasks):
    folder = tmp_path_factory.mktemp("session")
    with Session(folder / "logs") as session:
        session.start_ray()
        session.start_server(ASSETS / "model", root=folder / "weights")
        session.env |= {"TRINITY_MODEL_PATH": str(ASSETS / "model"), "TRINITY_TASKSET_PATH": str(tasks)}
        yield session


def small(session: Session) -> list[str]:
    settings = {
        "model.tinker.enable": "true",
        "model.tinker.base_url": session.base_url,
        "model.max_prompt_tokens": 64,
        "model.max_response_tokens": 8,
        "model.max_model_len": 72,
        "trainer.trainer_type": "tinker",
        "trainer.save_interval": 2,
        "algorithm.repeat_times": 4,
        "algorithm.optimizer.lr": "1.0e-3",
        "buffer.batch_size": 4,
        "buffer.total_steps": STEPS,
        "buffer.explorer_input.taskset.subset_name": "null",
        "buffer.explorer_input.eval_tasksets[0].subset_name": "null",
        "buffer.explorer_input.default_workflow_type": "simple_workflow",
        "buffer.explorer_input.default_reward_fn_type": "trinity_rec.quickstart.reward.GSM8KReward",
        "explorer.rollout_model.engine_num": 1,
        "explorer.runner_per_model": 1,
        "explorer.eval_interval": 2,
        "synchronizer.sync_method": "memory",
        "synchronizer.sync_interval": 2,
    }
    return [f"--set={key}={value}" for key, value in settings.items()]


def paper_run(session: Session, out: Path, *more: str, experiment: str = EXPERIMENT) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "trinity_rec.cli",
        "paper",
        "run",
        experiment,
        "--out",
        out,
        *small(session),
        *more,
    ]
    return subprocess.Popen(
        command, env=session.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=out.parent
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_is_resumed_where_it_was_interrupted_and_gathered(session, tmp_path):
    out = tmp_path / "out"
    place = out / f"{EXPERIMENT}-seed42"
    checkpoint = place / "latest_checkpointed_iteration.txt"
    first = paper_run(session, out)
    deadline = time.monotonic() + 500
    while not checkpoint.exists() and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    first.terminate()
    _, said = first.communicate(timeout=180)
    assert checkpoint.exists(), said
    done = int(checkpoint.read_text())
    assert 0 < done < STEPS

    second = paper_run(session, out)
    printed, said = second.communicate(timeout=600)
    assert second.returncode == 0, said
    assert f"from step {done}" in said
    assert int(checkpoint.read_text()) == STEPS
    assert [step.number for step in trained_steps(place)][done - STEPS :] == list(range(done + 1, STEPS + 1))

    (row,) = csv.DictReader((out / "results.csv").open())
    assert (row["experiment"], row["seed"], row["steps"]) == (EXPERIMENT, "42", str(STEPS))
    assert row["measured_by"] == "eval"
    assert 0 <= float(row["accuracy_last"]) <= 1 and float(row["reward"]) > 0
    assert (out / "figures" / "figure_3_gsm8k_rec.png").stat().st_size > 10_000
    assert EXPERIMENT in printed

    third = paper_run(session, out)
    printed, said = third.communicate(timeout=180)
    assert third.returncode == 0 and said == ""
    assert EXPERIMENT in printed
    assert len(list((place / "launch").glob("train-*"))) == 2

    other = paper_run(session, out, "--set=algorithm.optimizer.lr=2.0e-3", "--set=buffer.total_steps=6")
    _, said = other.communicate(timeout=180)
    assert other.returncode == 1
    assert "algorithm.optimizer.lr 0.001, not 0.002; choose another --out" in said


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_mode_bench_evaluates_the_initial_model_and_what_it_leaves_out_is_an_error(session, tmp_path, monkeypatch):
    """Trinity's `mode: bench` on Tinker: it evaluates the initial model, and cannot load a checkpoint. This is what
    docs/paper.md says of it; when this test fails because the checkpoint is evaluated, the page has become wrong."""
    for name, value in session.env.items():
        monkeypatch.setenv(name, value)
    run = Run(EXPERIMENTS[EXPERIMENT], 7, tmp_path, parsed([each.removeprefix("--set=") for each in small(session)]))
    console = Console(file=io.StringIO())
    before = Progress(trained=2, total=2, checkpoints=(), evaluated=frozenset(), benches=True)
    bench(run, before, console)
    assert evaluated_steps(run.directory) == {0}
    ((_, logs),) = logged([run])
    row = results_row(run, logs)
    assert row.measured_by == "bench" and row.accuracy_first is not None and 0 <= row.accuracy_first <= 1

    (run.directory / "global_step_2").mkdir()
    before = Progress(trained=2, total=2, checkpoints=(2,), evaluated=frozenset({0}), benches=True)
    with pytest.raises(LaunchError, match=r"mode: bench left steps 2 out: .*model_path or base_model must be provided"):
        bench(run, before, console)
