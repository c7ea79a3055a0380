"""The quickstart, start to finish: held-out accuracy, the real `trinity run`, held-out accuracy again.

All that is special to it lies in `examples/rec_gsm8k/quickstart.yaml`; this file gives that YAML its model, its
problems, a backend and a place to write, and watches.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from trinity_rec.launch import LaunchError, Session, TrainedStep, signals_as_exit
from trinity_rec.quickstart.report import Summary, draw
from trinity_rec.quickstart.tasks import read_jsonl
from trinity_rec.shipped import example

ASSETS = Path(__file__).parent / "assets"
SAMPLES = 8  # a held-out problem
MADE_BY = "quickstart.lock"  # says that a directory is a quickstart's, to be replaced by the next one
PRODUCTS = ("logs", "trinity", "weights", "config.yaml", "summary.json", "reward.png")


@dataclass(frozen=True)
class Options:
    """What the command line may change in the YAML; None keeps what is there."""

    algorithm: str | None = None
    steps: int | None = None
    sync_interval: int | None = None
    seed: int = 42


def quickstart(out: Path, options: Options, console: Console) -> Summary:
    """Run it and write `summary.json`, `reward.png` and all logs to `out`.

    Raises:
        LaunchError: a part did not start, or `trinity run` trained fewer steps than asked for.
    """
    started = time.monotonic()
    out = make_room(out)
    config_path, config = configure(out, options)
    algorithm = config.algorithm.algorithm_type.removeprefix("trinity_rec.")
    steps, sync_interval = config.trainer.total_steps, config.synchronizer.sync_interval
    with signals_as_exit(), Session(out / "logs") as session:
        session.env |= {
            "TRINITY_REC_RUN_DIR": str(out),
            "TRINITY_REC_MODEL": str(ASSETS / "model"),
            "TRINITY_REC_TASKS": str(ASSETS / "tasks"),
        }
        with doing(console, "starting Ray and the local backend"):
            session.start_ray()
            session.start_server(ASSETS / "model", root=out / "weights")
            session.env["TRINITY_REC_BASE_URL"] = session.base_url
        with doing(console, "sampling the held-out problems"):
            from trinity_rec.quickstart.evaluation import Evaluator

            evaluator = Evaluator(
                session.base_url,
                session.env["TINKER_API_KEY"],
                ASSETS / "model",
                read_jsonl(ASSETS / "tasks" / "held_out.jsonl"),
                SAMPLES,
                options.seed,
            )
            before = evaluator.untrained()
        console.print(f"held-out accuracy before: {before:.1%}; now {steps} steps of {algorithm}")
        trained = session.run_trinity(config_path, job_root=out / "trinity", total_steps=steps)
        rewards = [step.reward for step in watch(trained, steps, console)]
        with doing(console, "sampling the held-out problems"):
            after = evaluator.trained(last_checkpoint(out / "trinity", steps))
    summary = Summary(
        algorithm=algorithm,
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
    path = example("rec_gsm8k/quickstart.yaml")
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


def last_checkpoint(job_root: Path, steps: int) -> str:
    """The `tinker://…` path of the checkpoint that Trinity saved after the last step."""
    found = list(job_root.glob(f"**/global_step_{steps}/remote_checkpoint_path.txt"))
    if not found:
        raise LaunchError(f"Trinity saved no checkpoint of step {steps} in {job_root}")
    return found[0].read_text(encoding="utf-8").strip()


@contextmanager
def doing(console: Console, what: str) -> Iterator[None]:
    """A spinner on a terminal, a line elsewhere."""
    if console.is_terminal:
        with console.status(f"{what} …"):
            yield
    else:
        console.print(f"{what} …")
        yield


def watch(trained: Iterator[TrainedStep], total: int, console: Console) -> Iterator[TrainedStep]:
    """Pass the steps on and show them: a bar on a terminal, elsewhere a line for each tenth of the run."""
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]step"),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn("{task.fields[news]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=total, news="Trinity is starting")
        first = None
        for step in trained:
            first = first or (step.number, time.monotonic())
            news = f"reward {step.reward:.2f}"
            if gone := step.number - first[0]:
                news += f", {(time.monotonic() - first[1]) / gone * (total - step.number):.0f} s left"
            bar.update(task, completed=step.number, news=news)
            if not console.is_terminal and (step.number % max(1, total // 10) == 0 or step.number == total):
                console.print(f"step {step.number}/{total}, {news}")
            yield step
