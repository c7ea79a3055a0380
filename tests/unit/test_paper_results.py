"""The table and the figures, from event files as torch's SummaryWriter, which Trinity's monitor uses, writes them."""

from __future__ import annotations

import csv

import pytest
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from trinity_rec.cli.paper import gather
from trinity_rec.paper.compose import Run
from trinity_rec.paper.experiments import EXPERIMENTS
from trinity_rec.paper.results import found_runs, logged, row

NAMES = ["gsm8k/sync_interval_20/rec_grpo", "gsm8k/offline/rec_grpo", "toolace/offline/rec_reinforce"]
BENCH, EVAL = "bench__gsm8k-eval__accuracy__mean@1", "eval__gsm8k-eval__accuracy__mean@4"


def log(run: Run, role: str, **tags: dict[int, float]) -> None:
    """One start of a role; `__` in a tag stands for a slash."""
    with SummaryWriter(str(run.directory / "monitor" / "tensorboard" / role)) as writer:
        for tag, values in tags.items():
            for step, value in values.items():
                writer.add_scalar(tag.replace("__", "/"), value, step)


def train(run: Run, steps: int = 40) -> None:
    every = range(1, steps + 1)
    log(
        run,
        "trainer",
        critic__rewards__mean={step: step / steps for step in every},
        actor__kl_k1=dict.fromkeys(every, 0.25),
    )


@pytest.fixture
def root(tmp_path):
    for name in NAMES:
        for seed in (1, 2):
            train(Run(EXPERIMENTS[name], seed, tmp_path))
    return tmp_path


def test_the_runs_in_a_directory_are_found(root):
    (root / "gsm8k" / "sync_interval_20" / "rec_grpo-seed42.1").mkdir()  # an offline run that was moved aside
    (root / "gsm8k" / "sync_interval_20" / "rec_grpo_rate_2-seed9").mkdir()  # has not logged anything
    runs = [(run.experiment.name, run.seed) for run, _ in logged(found_runs(root))]
    assert sorted(runs) == sorted((name, seed) for name in NAMES for seed in (1, 2))


def test_a_row_is_what_was_logged(root):
    run = Run(EXPERIMENTS[NAMES[0]], 1, root)
    log(run, "benchmark", **{BENCH: {0: 0.5, 20: 0.75, 40: 0.625}, "bench__gsm8k-eval__finished_task_count": {0: 8}})
    log(run, "explorer", **{EVAL: {0: 0.1, 20: 0.2}})
    found = row(*logged([run])[0])
    assert (found.experiment, found.seed, found.steps) == (NAMES[0], 1, 40)
    assert (found.accuracy_first, found.accuracy_last, found.accuracy_best, found.best_step) == (0.5, 0.625, 0.75, 20)
    assert found.measured_by == "bench"
    assert found.reward == pytest.approx(sum(range(31, 41)) / 10 / 40)
    assert (found.kl, found.clip_fraction) == (0.25, None)


def test_without_bench_the_evaluation_of_training_counts_and_is_called_so(root):
    run = Run(EXPERIMENTS[NAMES[0]], 2, root)
    log(run, "explorer", **{EVAL: {20: 0.25, 40: 0.5}})
    found = row(*logged([run])[0])
    assert (found.measured_by, found.accuracy_first, found.accuracy_last) == ("eval", None, 0.5)


def test_the_table_is_written_and_each_figure_with_runs_is_drawn(root, capsys):
    log(Run(EXPERIMENTS[NAMES[1]], 1, root), "benchmark", **{BENCH: {0: 0.5, 20: 0.75}})
    gather(root)
    rows = list(csv.DictReader((root / "results.csv").open()))
    assert [(each["experiment"], each["seed"]) for each in rows] == [(name, seed) for name in NAMES for seed in "12"]
    assert [each["figures"] for each in rows[:2]] == ["3 5 9-11"] * 2
    assert rows[2]["accuracy_best"] == "0.75" and rows[3]["accuracy_best"] == ""
    drawn = sorted(path.name for path in (root / "figures").iterdir())
    assert drawn == [
        "figure_3_gsm8k_rec.png",
        "figure_4_toolace_rec.png",
        "figure_5_gsm8k_red.png",
        "figure_9-11_gsm8k_rates.png",
        "figure_9-11_gsm8k_red_off_policy.png",
    ]
    # as wide as there are settings with runs
    widths = {name: Image.open(root / "figures" / name).size[0] for name in drawn}
    assert widths["figure_3_gsm8k_rec.png"] > widths["figure_5_gsm8k_red.png"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*NAMES, "results.csv", *drawn))
