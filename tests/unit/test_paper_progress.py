"""How far a run is, by the files that Trinity leaves, and what it is given to go on from there."""

from __future__ import annotations

import pytest
from torch.utils.tensorboard import SummaryWriter

from trinity_rec.paper.compose import Run, parsed, validated
from trinity_rec.paper.experiments import EXPERIMENTS
from trinity_rec.paper.run import Progress, attempt, delete_checkpoints, move_aside, progress, same_settings
from trinity_rec.terminal import UsageError

INTERVAL = EXPERIMENTS["gsm8k/sync_interval_20/rec_grpo"]


def state(run: Run) -> Progress:
    return progress(run, validated(run.training(), run.name))


def checkpoint(run: Run, *steps: int) -> None:
    for step in steps:
        (run.directory / f"global_step_{step}").mkdir(parents=True)
        (run.directory / f"global_step_{step}" / "remote_checkpoint_path.txt").write_text("tinker://run/weights/x")
    (run.directory / "latest_checkpointed_iteration.txt").write_text(str(steps[-1]))


def evaluate(run: Run, *steps: int) -> None:
    with SummaryWriter(str(run.directory / "monitor" / "tensorboard" / "benchmark")) as writer:
        for step in steps:
            writer.add_scalar("bench/gsm8k-eval/finished_task_count", 1319, step)


def test_a_run_from_its_beginning_to_its_end(tmp_path):
    run = Run(INTERVAL, 1, tmp_path)
    assert str(state(run)) == "0 of 160 steps trained, 0 evaluated"
    checkpoint(run, 20, 100, 160)
    assert state(run).is_trained and state(run).unevaluated == [0, 20, 100, 160]
    evaluate(run, 0, 20)
    assert str(state(run)) == "trained, 2 evaluated" and not state(run).is_done
    evaluate(run, 100, 160)
    assert state(run).is_done and str(state(run)) == "done"
    delete_checkpoints(run)
    assert state(run).is_done and not list(run.directory.glob("global_step_*"))


def test_a_checkpoint_that_was_written_after_the_evaluation_is_still_to_be_evaluated(tmp_path):
    run = Run(INTERVAL, 1, tmp_path)
    checkpoint(run, 20, 40)
    evaluate(run, 0, 20)
    assert state(run).unevaluated == [40] and state(run).trained == 40


def test_on_tinker_there_is_no_benchmark(tmp_path):
    run = Run(INTERVAL, 1, tmp_path, parsed(["model.tinker.enable=true"]))
    checkpoint(run, 160)
    assert state(run).is_done and state(run).unevaluated == []


def test_a_run_that_starts_anew_keeps_what_there_was(tmp_path):
    run = Run(EXPERIMENTS["gsm8k/offline/rec_grpo"], 1, tmp_path)
    for number in (1, 2):
        checkpoint(run, 20)
        assert move_aside(run) == run.directory.with_name(f"rec_grpo-seed1.{number}")
        assert str(state(run)) == "0 of 160 steps trained, 0 evaluated"
    assert (tmp_path / "gsm8k/offline/rec_grpo-seed1.2/global_step_20").is_dir()


def test_a_directory_is_one_choice_of_settings(tmp_path):
    run = Run(INTERVAL, 1, tmp_path)
    same_settings(run, run.training())
    same_settings(run, run.training())
    other = Run(INTERVAL, 1, tmp_path, parsed(["trainer.grad_clip=0.5"]))
    with pytest.raises(UsageError, match=r"trainer\.grad_clip 1\.0, not 0\.5; choose another --out"):
        same_settings(other, other.training())


def test_every_start_has_its_own_directory_and_namespace(tmp_path):
    run = Run(INTERVAL, 1, tmp_path)
    namespaces = []
    for number in (1, 2):
        with attempt(run, "train", run.training()) as (session, path):
            assert session.logs == path.parent == run.directory / "launch" / f"train-{number}"
            namespaces.append(next(line for line in path.read_text().splitlines() if line.startswith("ray_namespace")))
    assert len(set(namespaces)) == 2
