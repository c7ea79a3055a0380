"""The quickstart, start to finish: held-out accuracy before, the real `trinity run`, held-out accuracy after.

All that is special to it lies in `examples/rec_gsm8k/quickstart.yaml` and `quickstart_vllm.yaml`; this file gives the
YAML its model, its problems, what it runs on and a place to write, and watches.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from trinity_rec.quickstart.report import Summary, draw
from trinity_rec.quickstart.tasks import read_jsonl
from trinity_rec.session import LaunchError, Session, doing, signals_as_exit, watch
from trinity_rec.session.bench import accuracies
from trinity_rec.session.run import ANY_PORT, SERVER, bench, load, prepare, require
from trinity_rec.shipped import example

if TYPE_CHECKING:
    from trinity_rec.quickstart.evaluation import Evaluator

ASSETS = Path(__file__).parent / "assets"
SAMPLES = 8  # a held-out problem
PATIENCE = 900  # seconds without a step; on a busy machine vLLM and verl take minutes to start
MADE_BY = "quickstart.lock"  # says that a directory is a quickstart's, to be replaced by the next one
BACKENDS = {"local": "rec_gsm8k/quickstart.yaml", "vllm": "rec_gsm8k/quickstart_vllm.yaml"}
PRODUCTS = ("logs", "trinity", "weights", "config.yaml", "bench.yaml", "summary.json", "reward.png")


@dataclass(frozen=True)
class Options:
    """What the command line may change in the YAML; None keeps what is there."""

    algorithm: str | None = None
    steps: int | None = None
    sync_interval: int | None = None
    seed: int = 42
    backend: str = "local"


def quickstart(out: Path, options: Options, console: Console) -> Summary:
    """Run it and write `summary.json`, `reward.png` and all logs to `out`.

    Raises:
        LaunchError: a part did not start, or `trinity run` trained fewer steps than asked for.
    """
    started = time.monotonic()
    # The YAML reads these, here as in the processes of the run.
    os.environ |= {"TRINITY_REC_MODEL": str(ASSETS / "model"), "TRINITY_REC_TASKS": str(ASSETS / "tasks")}
    os.environ["TRINITY_REC_RUN_DIR"] = str(out.resolve())
    os.environ[SERVER] = ANY_PORT
    require(load(example(BACKENDS[options.backend])))
    out = make_room(out)
    config_path, config = configure(out, options)
    algorithm = config.algorithm.algorithm_type.removeprefix("trinity_rec.")
    steps, sync_interval = config.trainer.total_steps, config.synchronizer.sync_interval
    with signals_as_exit(), Session(out / "logs") as session:
        with doing(console, "starting Ray" + (" and the local backend" if options.backend == "local" else "")):
            prepare(session, load(config_path), out / "weights")
        if options.backend == "local":
            evaluator = tinker_evaluator(session, options.seed)
            with doing(console, "sampling the held-out problems"):
                before = evaluator.untrained()
            console.print(f"held-out accuracy before: {before:.1%}; now {steps} steps of {algorithm}")
        trained = session.run_trinity(config_path, job_root=out / "trinity", total_steps=steps, patience=PATIENCE)
        rewards = [step.reward for step in watch(trained, steps, console)]
        with doing(console, "sampling the held-out problems"):
            if options.backend == "local":
                after = evaluator.trained(last_checkpoint(out / "trinity", steps))
            else:
                before, after = benched(session, config, out, steps)
    summary = Summary(
        algorithm=algorithm,
        backend=options.backend,
        steps=len(rewards),
        sync_interval=sync_interval,
        accuracy_before=before,
        accuracy_after=after,
        reward_by_step=rewards,
        seconds=round(time.monotonic() - started, 1),
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


def configure(out: Path, options: Options) -> tuple[Path, DictConfig]:
    """The YAML to run: the example itself or, where an option differs from it, a changed copy in `out`."""
    path = example(BACKENDS[options.backend])
    config = OmegaConf.load(path)
    changes: dict[str, object] = {}
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


def tinker_evaluator(session: Session, seed: int) -> Evaluator:
    from trinity_rec.quickstart.evaluation import Evaluator

    held_out = read_jsonl(ASSETS / "tasks" / "test.jsonl")
    return Evaluator(session.base_url, session.env["TINKER_API_KEY"], ASSETS / "model", held_out, SAMPLES, seed)


def benched(session: Session, config: DictConfig, out: Path, steps: int) -> tuple[float, float]:
    """Held-out accuracy of the initial model and of the last checkpoint, by Trinity's `mode: bench`."""
    # With a memory sync Trinity would evaluate the initial weights at each checkpoint, since no trainer has sent any.
    changes = {"mode": "bench", "explorer": {"eval_on_startup": True}, "synchronizer": {"sync_method": "checkpoint"}}
    config = OmegaConf.merge(config, changes)
    path, job = out / "bench.yaml", out / "trinity" / config.name
    OmegaConf.save(config, path)
    bench(session, path, job)
    accuracy = accuracies(job, "held_out", SAMPLES)
    return accuracy[0], accuracy[steps]


def last_checkpoint(job_root: Path, steps: int) -> str:
    """The `tinker://…` path of the checkpoint that Trinity saved after the last step."""
    found = list(job_root.glob(f"**/global_step_{steps}/remote_checkpoint_path.txt"))
    if not found:
        raise LaunchError(f"Trinity saved no checkpoint of step {steps} in {job_root}")
    return found[0].read_text(encoding="utf-8").strip()
