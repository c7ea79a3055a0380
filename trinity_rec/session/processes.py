"""Start what a Trinity run on this machine needs, follow it, and stop all of it.

A run is three things that must end together: a Ray head, the local Tinker server, and `trinity run`. Every process
started here carries the session's mark in its environment, and so does everything that it starts in turn (Ray's
workers, detached actors); the end of the `with` block, however it comes, ends every process that carries the mark.

    with Session(out / "logs") as session:
        session.start_ray()
        session.start_server(model_dir, root=out / "weights")
        for step in session.run_trinity(config, job_root=out / "trinity", total_steps=60):
            print(step.number, step.reward)
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from trinity_rec.session.logs import (
    UNREACHED_ACTOR,
    TrainedStep,
    actor_failure,
    dead_actor,
    dead_engine,
    driver_failure,
    last_error,
    trained_steps,
    unreached_actor,
)
from trinity_rec.without_gpu import vllm_stand_in

LOOPBACK = "127.0.0.1"
MARK = "TRINITY_REC_SESSION"
SERVER_URL = re.compile(rf"^http://{LOOPBACK}:\d+$", re.MULTILINE)  # what `trinity-rec serve` prints when it is ready


class LaunchError(RuntimeError):
    """Something that had to run did not; the message is one line for the user."""


@dataclass
class Session:
    """The processes of one run; a context manager that leaves none of them behind.

    Attributes:
        logs: directory for the output of each process, `<name>.log`.
        env: environment of the processes, this process's own with the session's additions.
        base_url: of the Tinker server, once it is started.
    """

    logs: Path
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))
    base_url: str = ""
    children: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)
    parts: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict, repr=False)  # the newest of each name

    def __enter__(self) -> Session:
        self.mark = secrets.token_hex(8)
        self.logs.mkdir(parents=True, exist_ok=True)
        # short, since Ray puts Unix sockets inside, whose paths end at 107 bytes
        self.scratch = Path(tempfile.mkdtemp(prefix="trinity-rec-"))
        path = [*vllm_stand_in.python_path(), *filter(None, [self.env.get("PYTHONPATH")])]
        self.env |= {
            MARK: self.mark,
            "PYTHONPATH": os.pathsep.join(path),
            "PYTHONUNBUFFERED": "1",
            # the SDK insists on the prefix; Ray hands it to the workers, so it must be there before Ray starts
            "TINKER_API_KEY": f"tml-{secrets.token_hex(16)}",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(self.scratch / "datasets"),
            "OMP_NUM_THREADS": self.env.get("OMP_NUM_THREADS", "1"),
        }
        return self

    def __exit__(self, *_: object) -> None:
        with on_signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a second Ctrl-C included
            for child in self.children:  # one that has only just begun does not show its mark yet
                child.terminate()
            end_marked_processes(self.mark)
            for child in self.children:
                child.kill()
                child.wait()
            shutil.rmtree(self.scratch, ignore_errors=True)

    def spawn(self, name: str, command: list[str]) -> subprocess.Popen[bytes]:
        """Start `command` with its output in `<logs>/<name>.log`, out of reach of the terminal's Ctrl-C."""
        with (self.logs / f"{name}.log").open("wb") as log:
            child = subprocess.Popen(
                command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.children.append(child)
        self.parts[name] = child
        return child

    def start_ray(self, gpus: int = 0, timeout: float = 180) -> None:
        """A Ray head of this session's own: on loopback, on free ports, in the scratch directory."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._start_head(gpus, deadline - time.monotonic())
            except LaunchError as error:
                # Ray gives its own parts half a minute, too little on a machine that is busy.
                if "timed out during startup" not in str(error) or time.monotonic() > deadline:
                    raise

    def _start_head(self, gpus: int, timeout: float) -> None:
        port, *others = free_ports(5)
        named = ["ray-client-server-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port"]
        self.env |= {
            "RAY_ADDRESS": f"{LOOPBACK}:{port}",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # else Ray turns loopback into an address that others can reach
            "RAY_AUTH_MODE": "disabled",  # else a token file in the home directory switches authentication on
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        head = self.spawn(
            "ray",
            [
                *script("ray"),
                *["start", "--head", "--block", f"--node-ip-address={LOOPBACK}", f"--port={port}"],
                *[f"--{name}={other}" for name, other in zip([*named, "metrics-export-port"], others, strict=True)],
                *["--min-worker-port=0", "--max-worker-port=0", "--include-dashboard=false"],
                *["--num-cpus=8", f"--num-gpus={gpus}"],  # Trinity's actors claim CPUs; on two cores they share
                f"--object-store-memory={256 << 20}",
                f"--temp-dir={self.scratch}",
            ],
        )
        self.wait_until(lambda: "Ray runtime started" in self.log("ray"), head, "ray", timeout)

    def start_server(
        self, model_dir: Path, root: Path, port: int = 0, timeout: float = 180, **options: str | int | bool
    ) -> None:
        """The local Tinker backend for `model_dir`, with its weights under `root`; sets `base_url`.

        `options` are those of `trinity-rec serve`, `max_rows=64` for `--max-rows=64` and `bf16=True` for `--bf16`; port
        0 takes a free one.
        """
        self.env["TRINITY_REC_API_KEY"] = self.env["TINKER_API_KEY"]
        given = {f"--{name.replace('_', '-')}": value for name, value in options.items() if value is not False}
        flags = [name if value is True else f"{name}={value}" for name, value in given.items()]
        server = self.spawn(
            "server",
            [
                *[sys.executable, "-m", "trinity_rec.cli", "serve", f"--model={model_dir}", f"--root={root}"],
                *[f"--host={LOOPBACK}", f"--port={port}", *flags],
            ],
        )
        self.wait_until(lambda: SERVER_URL.search(self.log("server")), server, "server", timeout)
        self.base_url = SERVER_URL.search(self.log("server"))[0]

    def run_trinity(
        self, config: Path, job_root: Path, total_steps: int, patience: float = 300, role: str = "trainer"
    ) -> Iterator[TrainedStep]:
        """Run `trinity run --config` and yield each training step as it is reported, a resumed run's own steps only.

        Trinity exits 0 also when its trainer or explorer failed, so the steps are counted. The run ends at once when
        any process of this session or an actor of Trinity's dies.

        Args:
            config: Trinity's YAML; it may read this session's `env` by `${oc.env:NAME}`.
            job_root: where the YAML's `checkpoint_root_dir` points; Trinity's own logs are looked for below it.
            total_steps: the last step that the YAML asks for.
            patience: seconds without a new step after which the run counts as stuck.
            role: whose steps are counted; `explorer` in a run that does not train.

        Raises:
            LaunchError: the last step that was trained is not `total_steps`; says why, from Trinity's logs.
        """
        earlier = {log: log.stat().st_size for log in job_root.glob("**/log/*.log")}
        process = self.spawn("trinity", [*script("trinity"), "run", "--config", str(config)])
        try:
            yield from self._follow(process, job_root, earlier, total_steps, patience, role)
        finally:
            if process.poll() is None:  # Ray ends the actors of a driver that has died
                process.kill()
                process.wait()

    def _follow(
        self,
        process: subprocess.Popen[bytes],
        job_root: Path,
        earlier: Mapping[Path, int],
        total_steps: int,
        patience: float,
        role: str,
    ) -> Iterator[TrainedStep]:
        seen, done, last = 0, 0, time.monotonic()
        while True:
            ended = process.poll() is not None
            steps = trained_steps(job_root, earlier, role)
            for step in steps[seen:]:
                seen, done, last = seen + 1, step.number, time.monotonic()
                yield step
            if ended:
                break
            if failure := self.dead_part() or self.failure(job_root, earlier):
                raise LaunchError(f"trinity run stopped after {done} of {total_steps} steps: {failure}")
            if time.monotonic() - last > patience:
                raise LaunchError(f"trinity run was stuck: no step in {patience:.0f} s, {done} of {total_steps} done")
            time.sleep(0.5)
        if done < total_steps or process.returncode:
            reason = dead_actor(self.log("trinity")) or self.named(last_error(self.log("trinity")))
            if process.returncode < 0 or not reason:
                reason = f"{ending(process.returncode)}, see {self.logs}/trinity.log"
            raise LaunchError(f"trinity run stopped after {done} of {total_steps} steps: {reason}")

    def dead_part(self) -> str | None:
        """Which process that a run needs has ended, and how."""
        for name, what in (("ray", "Ray"), ("server", "the local backend")):
            if name in self.parts and (code := self.parts[name].poll()) is not None:
                return f"{what} ended ({ending(code)}), see {self.logs}/{name}.log"
        return None

    def failure(self, job_root: Path, earlier: Mapping[Path, int]) -> str | None:
        """What made Trinity's trainer, explorer, engine or driver give up; the processes may live on for long."""
        driver = self.log("trinity")
        lost = dead_actor(driver) or dead_engine(job_root, earlier)
        return lost or self.named(actor_failure(job_root, earlier) or driver_failure(driver))

    def named(self, error: str | None) -> str | None:
        """The error; where it is Ray's that an actor cannot be reached, with the actor's name instead of its id."""
        unreached = UNREACHED_ACTOR.search(error or "")
        return (unreached and unreached_actor(self.env["RAY_ADDRESS"], unreached[1])) or error

    def log(self, name: str) -> str:
        return (self.logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def wait_until(
        self, ready: Callable[[], object], process: subprocess.Popen[bytes], name: str, timeout: float
    ) -> None:
        deadline = time.monotonic() + timeout
        while not ready():
            if process.poll() is not None:
                lines = self.log(name).strip().splitlines() or [f"exit code {process.returncode}"]
                raise LaunchError(f"{name} did not start: {last_error(self.log(name)) or lines[-1]}")
            if time.monotonic() > deadline:
                raise LaunchError(f"{name} did not start in {timeout:.0f} s, see {self.logs / name}.log")
            time.sleep(0.2)


@contextlib.contextmanager
def on_signals(handler: Callable | signal.Handlers, *numbers: signal.Signals) -> Iterator[None]:
    """`handler` for these signals while the block runs; in the main thread, the only one that may set it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def signals_as_exit() -> contextlib.AbstractContextManager[None]:
    """Within it SIGTERM and SIGHUP unwind the stack as Ctrl-C does, so that `with` blocks clean up."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    return on_signals(leave, signal.SIGTERM, signal.SIGHUP)


def end_marked_processes(mark: str, grace: float = 5) -> None:
    """Ask every process that carries `mark` in its environment to end, and kill what is left after `grace` seconds."""
    targets = marked_processes(mark)
    for process in targets:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    psutil.wait_procs(targets, timeout=grace)
    while left := marked_processes(mark):  # children born meanwhile included
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=1)


def marked_processes(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get(MARK) == mark:
                found.append(process)
    return [process for process in found if process.pid != os.getpid()]


def script(name: str) -> list[str]:
    """The console script `name` of this very environment, whether or not it is activated."""
    return [sys.executable, str(Path(sys.executable).parent / name)]


def free_ports(n: int) -> list[int]:
    """`n` different TCP ports of the loopback interface that nothing listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind((LOOPBACK, 0))
        return [each.getsockname()[1] for each in sockets]


def ending(code: int) -> str:
    """How a process ended, by its exit code; below 0 it is the signal that killed it."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
