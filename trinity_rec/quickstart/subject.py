"""What a quickstart trains, and on what: the shipped model, which learns in a minute, or a real one in minutes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from trinity_rec.quickstart.tasks import Right, right_final_answer, right_last_number

ASSETS = Path(__file__).parent / "assets"
SMOLLM2 = Path("runs", "smollm2", "model")


@dataclass(frozen=True)
class Subject:
    """A model and its problems.

    Attributes:
        model: a Hugging Face directory.
        tasks: a directory with `train.jsonl` and `test.jsonl`, rows of `question` and `answer`.
        right: whether a response is, by its problem's answer.
        max_tokens: of a response.
        changes: to the example's YAML, dotted key -> value.
        bf16: the local backend computes in bfloat16.
    """

    model: Path
    tasks: Path
    right: Right
    max_tokens: int
    changes: Mapping[str, object] = field(default_factory=dict)
    bf16: bool = False


def tiny(out: Path) -> Subject:
    """150,000 parameters, two-digit sums."""
    return Subject(ASSETS / "model", ASSETS / "tasks", right_final_answer, max_tokens=8)


def smollm2(out: Path) -> Subject:
    """SmolLM2-135M-Instruct, from its package, on one-digit products; the problems go to `out`.

    Raises:
        LaunchError: the package cannot be had.
    """
    from trinity_rec.lab.language_model import bf16_is_faster
    from trinity_rec.lab.real_tasks import REAL_TASKS
    from trinity_rec.quickstart.smollm2 import make_model

    make_model(SMOLLM2)
    task, tasks = REAL_TASKS["products"], out / "tasks"
    tasks.mkdir()
    for name, problems in (("train", task.train), ("test", task.held_out)):
        rows = (json.dumps({"question": problem.question, "answer": problem.answer}) + "\n" for problem in problems)
        (tasks / f"{name}.jsonl").write_text("".join(rows), encoding="utf-8")
    changes = {
        "algorithm.policy_loss_fn_args": None,  # the preset's own narrow range
        "algorithm.optimizer.lr": 2e-5,
        "algorithm.optimizer.lr_scheduler_type": "constant",
        "model.max_response_tokens": 16,
        "model.max_model_len": 80,
        "buffer.batch_size": 8,
        "buffer.total_steps": 20,
        "buffer.explorer_input.taskset.name": "products",
        "buffer.explorer_input.default_reward_fn_type": "trinity_rec.quickstart.reward.LastNumberReward",
        "trainer.total_steps": 20,
    }
    return Subject(SMOLLM2.resolve(), tasks, right_last_number, 16, changes, bf16_is_faster("cpu"))


SUBJECTS = {"tiny": tiny, "smollm2": smollm2}
