"""The quickstart, start to finish: held-out accuracy before, the real `trinity run`, held-out accuracy after.

All that is special to it lies in `examples/rec_gsm8k/quickstart.yaml` and `quickstart_vllm.yaml`; this file gives the
YAML its model, its problems, what it runs on and a place to write, and watches.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from trinity_rec.quickstart.evaluation import Evaluation, Evaluator, likeliest_answers, share_right
from trinity_rec.quickstart.report import Summary, draw
from trinity_rec.quickstart.subject import SUBJECTS, Subject
from trinity_rec.quickstart.tasks import read_jsonl
from trinity_rec.session import LaunchError, Session, doing, signals_as_exit, watch
from trinity_rec.session.bench import accuracies
from trinity_rec.session.cost import Cost
from trinity_rec.session.machine import GIB
from trinity_rec.session.run import ANY_PORT, SERVER, bench, load, prepare, require
from trinity_rec.shipped import example

SAMPLES = 8  # a held-out problem
SHOWN = 6  # held-out problems with their answers before and after
PATIENCE = 900  # seconds without a step; on a busy machine vLLM and verl take minutes to start
MADE_BY = "quickstart.lock"  # says that a directory is a quickstart's, to be replaced by the next one
BACKENDS = {"local": "rec_gsm8k/quickstart.yaml", "vllm": "rec_gsm8k/quickstart_vllm.yaml"}
PRODUCTS = ("tasks", "logs", "trinity", "weights", "config.yaml", "bench.yaml", "summary.json", "reward.png")


@dataclass(frozen=True)
class Options:
    """What the command line may change in the YAML; None keeps what is there."""

    algorithm: str | None = None
    steps: int | None = None
    sync_interval: int | None = None
    seed: int = 42
    backend: str = "local"
    model: str = "tiny"


def quickstart(out: Path, options: Options, console: Console) -> Summary:
    """Run it and write `summary.json`, `reward.png` and all logs to `out`.

    Raises:
        LaunchError: a part did not start, or `trinity run` trained fewer steps than asked for.
    """
    started = time.monotonic()
    local = options.backend == "local"
    out = make_room(out)
    subject = SUBJECTS[options.model](out)
    # The YAML reads these, here as in the processes of the run.
    os.environ |= {"TRINITY_REC_MODEL": str(subject.model), "TRINITY_REC_TASKS": str(subject.tasks)}
    os.environ["TRINITY_REC_RUN_DIR"] = str(out)
    os.environ[SERVER] = ANY_PORT
    config_path, config = configure(out, options, subject.changes)
    require(load(config_path))
    held_out = read_jsonl(subject.tasks / "test.jsonl")
    algorithm = config.algorithm.algorithm_type.removeprefix("trinity_rec.")
    steps, sync_interval = config.trainer.total_steps, config.synchronizer.sync_interval
    with signals_as_exit(), Session(out / "logs") as session:
        with doing(console, "starting Ray" + (" and the local backend" if local else "")):
            prepare(session, load(config_path), out / "weights", bf16=subject.bf16)
        if local:
            address = session.base_url, session.env["TINKER_API_KEY"]
            evaluator = Evaluator(
                *address, subject.model, held_out, subject.right, subject.max_tokens, SAMPLES, options.seed
            )
            with doing(console, "sampling the held-out problems"):
                before = evaluator.untrained()
            console.print(f"held-out accuracy before: {before.sampled:.1%}; now {steps} steps of {algorithm}")
        trained = session.run_trinity(config_path, job_root=out / "trinity", total_steps=steps, patience=PATIENCE)
        cost = Cost()
        with cost.watched(session):
            rewards = [step.reward for step in watch(cost.steps(trained), steps, console)]
        with doing(console, "sampling the held-out problems"):
            if local:
                after = evaluator.trained(last_checkpoint(out / "trinity", steps))
            else:
                before, after = benched(session, config, out, steps, subject, held_out)
    answers = zip(held_out, before.answers, after.answers, strict=True)
    summary = Summary(
        model=options.model,
        algorithm=algorithm,
        backend=options.backend,
        steps=len(rewards),
        sync_interval=sync_interval,
        accuracy_before=before.sampled,
        accuracy_after=after.sampled,
        greedy_before=before.greedy,
        greedy_after=after.greedy,
        reward_by_step=rewards,
        seconds=round(time.monotonic() - started, 1),
        seconds_a_step=round(cost.seconds_a_step, 2),
        tokens_a_second=round(cost.tokens_a_second, 1),
        memory_gib=round(cost.memory / GIB, 2),
        answers=[{**row, "before": earlier, "after": later} for row, earlier, later in answers][:SHOWN],
    )
    summary.write(out / "summary.json")
    draw(summary, out / "reward.png")
    return summary


def make_room(out: Path) -> Path:
    """An absolute directory to write to; what an earlier quickstart left there goes, anything else is left alone."""
    out = out.resolve()
    if out.exists() and not out.is_dir():
        raise LaunchError(f"{out} is a file, not a directory")
    if out.is_dir() and any(out.iterdir()) and not (out / MADE_BY).exists():
        raise LaunchError(f"{out} holds something else; choose another directory with --out")
    out.mkdir(parents=True, exist_ok=True)
    (out / MADE_BY).touch()
    for name in PRODUCTS:
        path = out / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return out


def configure(out: Path, options: Options, changes: Mapping[str, object] | None = None) -> tuple[Path, DictConfig]:
    """The YAML to run: the example itself or, where `changes` or an option differ from it, a changed copy in `out`."""
    path = example(BACKENDS[options.backend])
    config = OmegaConf.load(path)
    changes = dict(changes or {})
    if options.algorithm and f"trinity_rec.{options.algorithm}" != config.algorithm.algorithm_type:
        changes["algorithm.algorithm_type"] = f"trinity_rec.{options.algorithm}"
        changes["algorithm.policy_loss_fn_args"] = None  # the example's are for its own preset
    if options.steps is not None:
        changes |= {"trainer.total_steps": options.steps, "buffer.total_steps": options.steps}
    if options.sync_interval is not None:
        changes["synchronizer.sync_interval"] = options.sync_interval
    if options.seed != config.explorer.rollout_model.seed:
        changes["explorer.rollout_model.seed"] = options.seed
    changes = {key: value for key, value in changes.items() if OmegaConf.select(config, key) != value}
    if changes:
        for key, value in changes.items():
            OmegaConf.update(config, key, value, merge=False)
        path = out / "config.yaml"
        OmegaConf.save(config, path)
    return path, config


def benched(
    session: Session, config: DictConfig, out: Path, steps: int, subject: Subject, held_out: list[dict[str, str]]
) -> tuple[Evaluation, Evaluation]:
    """Of the initial model and of the last checkpoint: sampled by Trinity's `mode: bench`, likeliest by ourselves."""
    # With a memory sync Trinity would evaluate the initial weights at each checkpoint, since no trainer has sent any.
    changes = {"mode": "bench", "explorer": {"eval_on_startup": True}, "synchronizer": {"sync_method": "checkpoint"}}
    config = OmegaConf.merge(config, changes)
    path, job = out / "bench.yaml", out / "trinity" / config.name
    OmegaConf.save(config, path)
    bench(session, path, job)
    sampled = accuracies(job, "held_out", SAMPLES)
    models = {0: subject.model, steps: job / f"global_step_{steps}" / "actor" / "huggingface"}
    answers = {
        step: likeliest_answers(model, subject.model, held_out, subject.max_tokens) for step, model in models.items()
    }
    before, after = (
        Evaluation(sampled[step], share_right(said, held_out, subject.right), said) for step, said in answers.items()
    )
    return before, after


def last_checkpoint(job_root: Path, steps: int) -> str:
    """The `tinker://…` path of the checkpoint that Trinity saved after the last step."""
    found = list(job_root.glob(f"**/global_step_{steps}/remote_checkpoint_path.txt"))
    if not found:
        raise LaunchError(f"Trinity saved no checkpoint of step {steps} in {job_root}")
    return found[0].read_text(encoding="utf-8").strip()
