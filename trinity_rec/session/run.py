"""A YAML of the user's own, on this machine: `trinity-rec run`.

Starts what the YAML needs (Ray, and the local Tinker server or the patches for vLLM and verl on a CPU), runs unmodified
`trinity run`, follows it, and stops all of it. Trinity exits 0 whatever happened; this does not.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from trinity_rec import without_gpu
from trinity_rec.session.bench import evaluated_steps
from trinity_rec.session.logs import last_error
from trinity_rec.session.machine import needs, refusals
from trinity_rec.session.processes import LOOPBACK, LaunchError, Session, signals_as_exit
from trinity_rec.session.progress import doing, watch

if TYPE_CHECKING:
    from trinity.common.config import Config

SERVER = "TRINITY_REC_BASE_URL"  # what our examples read the Tinker server's address from
ANY_PORT = f"http://{LOOPBACK}:0"


def run(path: Path, console: Console, patience: float = 1800) -> Path:
    """Run a YAML to its last step; returns the run's directory.

    Args:
        path: the YAML.
        patience: seconds without a new step after which the run counts as stuck.

    Raises:
        LaunchError: the YAML is refused (nothing was started), a part did not start, or a step is missing.
    """
    os.environ.setdefault(SERVER, ANY_PORT)
    config = load(path)
    require(config)
    need, job = needs(config), Path(config.get_checkpoint_job_dir()).absolute()
    if need.steps and config.continue_from_checkpoint and (done := trained(config, job)) >= need.steps:
        console.print(f"all {done} steps are trained already, see {job}")
        return job
    with signals_as_exit(), Session(logs_of(job)) as session:
        with doing(console, "starting " + ("Ray and the local backend" if need.tinker else "Ray")):
            prepare(session, config, job / "weights")
        if config.mode == "bench":
            bench(session, path, job)
        else:
            # a run that must not go on in its directory gets another one beside it
            root = job if config.continue_from_checkpoint else job.parent
            role = "explorer" if config.mode == "explore" else "trainer"
            steps = session.run_trinity(path, root, total_steps=need.steps, patience=patience, role=role)
            for _ in watch(steps, need.steps, console):
                pass
    return job


def load(path: Path) -> Config:
    """The configuration as Trinity will see it, its defaults included.

    Raises:
        LaunchError: it cannot be read; one line.
    """
    from trinity.common.config import load_config

    try:
        return load_config(str(path))
    except FileNotFoundError as error:
        raise LaunchError(f"{path} is not there") from error
    except (ValueError, OmegaConfBaseException) as error:
        first = str(error).strip().splitlines()[0].removeprefix("Invalid configuration: ")
        raise LaunchError(f"{path}: {first} (trinity-rec check {path} says more)") from error


def require(config: Config) -> None:
    """Raises LaunchError, one line with every reason, if the run cannot be started on this machine."""
    import torch

    if reasons := list(refusals(config, torch.cuda.is_available())):
        raise LaunchError("cannot run here: " + "; ".join(reasons))


def prepare(session: Session, config: Config, weights: Path, **server: int | bool) -> None:
    """Start what a run needs beside `trinity run`; a Tinker server, with options of `serve`, saves to `weights`."""
    import torch

    need = needs(config)
    if (need.engine or need.trainer) and not torch.cuda.is_available():
        session.env |= without_gpu.environment(session.env, session.scratch, engine=need.engine)
    session.start_ray(gpus=need.gpus)
    if need.tinker:
        port = urlsplit(config.model.tinker.base_url).port or 0
        session.start_server(Path(config.model.model_path), root=weights, port=port, **server)
        session.env[SERVER] = session.base_url


def bench(session: Session, path: Path, job: Path) -> None:
    """`mode: bench`: the initial model if the YAML says so, and every checkpoint.

    Raises:
        LaunchError: a checkpoint was left out.
    """
    before = evaluated_steps(job)
    for _ in session.run_trinity(path, job, total_steps=0, patience=float("inf")):
        pass
    checkpoints = {int(each.name.removeprefix("global_step_")) for each in job.glob("global_step_*")}
    evaluated = evaluated_steps(job)
    if missing := sorted(checkpoints - evaluated) or (not evaluated - before and not checkpoints and [0]):
        reason = last_error(session.log("trinity")) or f"see {session.logs}/trinity.log"
        raise LaunchError(f"mode: bench left steps {', '.join(map(str, missing))} out: {reason}")


def trained(config: Config, job: Path) -> int:
    """The step of the run's last checkpoint, 0 without one or in a mode that does not train."""
    from trinity_rec.plugin.resume import last_checkpoint

    trains = config.mode in ("both", "train") and job.is_dir()
    return last_checkpoint(job, remote=config.model.tinker.enable) if trains else 0


def logs_of(job: Path) -> Path:
    """A directory of this start's own."""
    launches = job / "launch"
    return launches / f"run-{1 + len(list(launches.glob('run-*')))}"
