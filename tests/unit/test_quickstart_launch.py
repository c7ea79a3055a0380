"""The launcher: nothing that it started stays, and a failure is told by its reason."""

import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from trinity_rec.session import LaunchError, Session, last_error, marked_processes, processes, trained_steps
from trinity_rec.session.logs import (
    UNREACHED_ACTOR,
    actor_failure,
    dead_actor,
    dead_engine,
    driver_failure,
    unreached_actor,
)
from trinity_rec.session.processes import ending
from trinity_rec.without_gpu import vllm_stand_in

# its child has no parent, a session of its own, and does not hear SIGTERM
ORPHAN = """
import subprocess, sys
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True)
"""


def test_a_session_ends_even_orphans_that_ignore_sigterm(tmp_path):
    with Session(tmp_path) as session:
        parent = session.spawn("orphan", [sys.executable, "-c", ORPHAN])
        parent.wait(timeout=20)
        assert len(marked_processes(session.mark)) == 1
        scratch = session.scratch
    assert marked_processes(session.mark) == []
    assert not scratch.exists()


def test_a_session_ends_its_processes_when_the_block_fails(tmp_path):
    with pytest.raises(KeyError), Session(tmp_path) as session:
        child = session.spawn("sleeper", [sys.executable, "-c", "import time; time.sleep(99)"])
        raise KeyError
    assert marked_processes(session.mark) == []
    assert child.poll() is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_the_launcher_ends_what_it_started(tmp_path, number):
    program = f"""
import sys, time
from pathlib import Path
from trinity_rec.session import Session, signals_as_exit
with signals_as_exit(), Session(Path({str(tmp_path)!r})) as session:
    session.spawn("sleeper", [sys.executable, "-c", "import time; time.sleep(99)"])
    print(session.mark, flush=True)
    time.sleep(99)
"""
    # on a shell's background job SIGINT is ignored, which children inherit
    launcher = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    mark = launcher.stdout.readline().strip()
    assert len(marked_processes(mark)) == 1
    launcher.send_signal(number)
    assert launcher.wait(timeout=20) != 0
    assert marked_processes(mark) == []


def test_a_process_that_ends_before_it_is_ready_is_an_error_with_its_reason(tmp_path):
    with Session(tmp_path) as session:
        bad = session.spawn("bad", [sys.executable, "-c", "raise OSError('no room')"])
        with pytest.raises(LaunchError, match=r"^bad did not start: OSError: no room$"):
            session.wait_until(lambda: False, bad, "bad", timeout=20)


def test_a_process_that_is_never_ready_is_given_up(tmp_path):
    with Session(tmp_path) as session:
        slow = session.spawn("slow", [sys.executable, "-c", "import time; time.sleep(99)"])
        started = time.monotonic()
        with pytest.raises(LaunchError, match="slow did not start in"):
            session.wait_until(lambda: False, slow, "slow", timeout=0.5)
        assert time.monotonic() - started < 10


def test_a_ray_that_was_too_slow_to_start_is_started_again(tmp_path, monkeypatch):
    starts = tmp_path / "starts"
    program = f"""
from pathlib import Path
starts = Path({str(starts)!r})
starts.touch()
starts.write_text(starts.read_text() + "x")
if starts.read_text() == "x":
    raise RuntimeError("The current node timed out during startup.")
print("Ray runtime started", flush=True)
import time; time.sleep(99)
"""
    monkeypatch.setattr(processes, "script", lambda name: [sys.executable, "-c", program])
    with Session(tmp_path / "logs") as session:
        session.start_ray()
        assert starts.read_text() == "xx"
    program = "raise RuntimeError('no such option')"
    with (
        Session(tmp_path / "logs") as session,
        pytest.raises(LaunchError, match=r"ray did not start: .*no such option"),
    ):
        session.start_ray()


def test_a_model_directory_that_is_not_there_is_one_line(tmp_path):
    with Session(tmp_path / "logs") as session, pytest.raises(LaunchError, match="server did not start") as failure:
        session.start_server(tmp_path / "nowhere", root=tmp_path / "weights")
    assert "nowhere" in str(failure.value)
    assert "\n" not in str(failure.value)


def test_steps_are_read_from_the_trainers_log(tmp_path):
    log = tmp_path / "project" / "run" / "log" / "trainer.log"
    log.parent.mkdir(parents=True)
    log.write_text(
        "INFO 11-22 20:32:17 [trainer.py:185] Training at step 1 started.\n"
        "INFO 11-22 20:32:20 [monitor.py:113] Step 1: {'critic/rewards/mean': 0.25, 'actor/x': nan, 'n': 3}\n"
        "INFO 11-22 20:32:22 [monitor.py:113] Step 2: {'critic/rewards/mean': 0.5, 'actor/x': -inf}\n"
        "INFO 11-22 20:32:24 [monitor.py:113] Step 3: {'critic/rewards/mean': 0.5, 'act"  # being written
    )
    first, second = trained_steps(tmp_path)
    assert (first.number, first.reward, second.number, second.reward) == (1, 0.25, 2, 0.5)
    assert math.isnan(first.metrics["actor/x"])
    assert second.metrics["actor/x"] == -math.inf


def test_an_explorers_step_is_put_together_from_its_lines(tmp_path):
    log = tmp_path / "log" / "explorer.log"
    log.parent.mkdir()
    lines = (
        "Step 1: {'rollout/accuracy/mean': 0.25}",
        "Step 1: {'explore/time': 2.0}",
        "Step 2: {'explore/time': 3.0}",
    )
    log.write_text("".join(f"INFO 11-22 20:32:20 [monitor.py:113] {line}\n" for line in lines))
    first, second = trained_steps(tmp_path, role="explorer")
    assert (first.number, first.metrics) == (1, {"rollout/accuracy/mean": 0.25, "explore/time": 2.0})
    assert (second.number, second.metrics) == (2, {"explore/time": 3.0})


def test_a_trainers_error_is_found_under_the_loggers_prefix(tmp_path):
    log = tmp_path / "log" / "trainer.log"
    log.parent.mkdir()
    log.write_text(
        "INFO 11-22 20:32:17 [trainer.py:185] Training at step 1 started.\n"
        "ERROR 11-22 20:32:18 [trainer.py:154] Error in Trainer:\n"
        "ERROR 11-22 20:32:18 [trainer.py:154] Traceback (most recent call last):\n"
        "ERROR 11-22 20:32:18 [trainer.py:154] KeyError: 'ref_logprob'\n"
        "INFO 11-22 20:32:19 [trainer.py:154] Saving checkpoint at step 1...\n"
    )
    assert actor_failure(tmp_path) == "KeyError: 'ref_logprob'"
    log.write_text("INFO 11-22 20:32:17 [trainer.py:185] fine\n")
    assert actor_failure(tmp_path) is None


def test_of_a_resumed_runs_logs_only_what_it_wrote_itself_counts(tmp_path):
    log = tmp_path / "log" / "trainer.log"
    log.parent.mkdir()
    log.write_text(
        "INFO [monitor.py:113] Step 1: {'a': 1}\nERROR [trainer.py:154] Error in Trainer:\nKeyError: 'old'\n"
    )
    earlier = {log: log.stat().st_size}
    with log.open("a") as file:
        file.write("INFO [monitor.py:113] Step 2: {'a': 2}\n")
    assert [step.number for step in trained_steps(tmp_path, earlier)] == [2]
    assert actor_failure(tmp_path, earlier) is None
    assert actor_failure(tmp_path) == "KeyError: 'old'"


def test_an_engine_that_died_is_named_by_this_runs_log_alone(tmp_path):
    log = tmp_path / "log" / "explorer_rollout_coordinator.log"
    log.parent.mkdir()
    assert dead_engine(tmp_path) is None
    log.write_text(
        "ERROR 11-28 11:27:12 [scheduler.py:165] vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an "
        "issue. See stack trace (above) for the root cause.\n"
    )
    assert dead_engine(tmp_path) == "vLLM's engine died (killed, or an error of its own)"
    assert dead_engine(tmp_path, {log: log.stat().st_size}) is None


def test_a_part_that_dies_is_named(tmp_path):
    with Session(tmp_path) as session:
        session.spawn("server", [sys.executable, "-c", ""]).wait()
        session.spawn("server", [sys.executable, "-c", "import time; time.sleep(99)"])  # only the newest is needed
        assert session.dead_part() is None
        session.parts["server"].kill()
        session.parts["server"].wait()
        assert session.dead_part() == f"the local backend ended (killed by SIGKILL), see {tmp_path}/server.log"


def test_a_driver_that_is_followed_no_more_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "script", lambda name: [sys.executable, "-c", "import time; time.sleep(99)"])
    with Session(tmp_path) as session:
        with pytest.raises(LaunchError, match="trinity run was stuck: no step in 0 s, 0 of 3 done"):
            list(session.run_trinity(tmp_path / "config.yaml", tmp_path, total_steps=3, patience=0.1))
        assert session.parts["trinity"].returncode == -signal.SIGKILL


@pytest.mark.parametrize(("code", "text"), [(-9, "killed by SIGKILL"), (-15, "killed by SIGTERM"), (3, "exit code 3")])
def test_how_a_process_ended(code, text):
    assert ending(code) == text


class Trainer:
    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_an_actor_that_died_is_named_as_ray_names_it():
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        trainer = ray.remote(Trainer).remote()
        with pytest.raises(ray.exceptions.RayActorError):
            ray.get(trainer.die.remote())
        with pytest.raises(ray.exceptions.RayActorError) as failure:
            ray.get(trainer.die.remote())
        unreached = unreached_actor(ray.get_runtime_context().gcs_address, trainer._actor_id.hex())
        assert unreached_actor(ray.get_runtime_context().gcs_address, "00" * 16) is None
    finally:
        ray.shutdown()
    text = f"Explorer or Trainer failed:\nray.exceptions.{failure.typename}: {failure.value}\n"
    prefixed = text.replace("\n", "\r\nERROR 11-22 20:32:18 [launcher.py:268] ")  # as Trinity's logger writes it
    for each in (text, prefixed):
        assert dead_actor(each) == "Trinity's Trainer died (killed, or its node was lost)"
    assert dead_actor("ValueError: The actor died of shame\n") is None
    pattern = r"Trinity's Trainer cannot be reached \(killed, or its node was lost: [\d.]+, \w{8}, with Trainer\)"
    assert re.fullmatch(pattern, unreached)


def test_the_driver_gives_up_before_it_ends():
    unavailable = ray.exceptions.ActorUnavailableError("no connection", b"\xab" * 16)
    error = f"ray.exceptions.ActorUnavailableError: {unavailable}"
    log = f"KeyError: 'earlier'\nERROR 11-22 20:32:18 [launcher.py:1] Explorer or Trainer failed:\n{error}\nINFO\n"
    assert driver_failure(log) == error
    assert driver_failure("KeyError: 'earlier'\n") is None
    assert UNREACHED_ACTOR.search(error)[1] == "ab" * 16


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("ValueError: epsilon_low must not be negative", "ValueError: epsilon_low must not be negative"),
        ("\x1b[36m(Trainer pid=12)\x1b[0m RuntimeError: no", "RuntimeError: no"),
        ("(Trainer pid=12) ERROR 11-22 20:32:18 [a.py:1] torch.OutOfMemoryError: x", "torch.OutOfMemoryError: x"),
        ("AssertionError", "AssertionError"),
        ("Errors are listed above", "KeyError: 'earlier'"),
        ("nothing to see", "KeyError: 'earlier'"),
    ],
)
def test_the_reason_is_the_last_line_that_names_an_error(line, reason):
    assert last_error(f"Traceback (most recent call last):\nKeyError: 'earlier'\n{line}\n") == reason


def test_a_log_without_an_error_has_no_reason():
    assert last_error("INFO all is well\n") is None


def test_ports_are_free_and_different():
    assert len(set(processes.free_ports(5))) == 5


def run_with_stand_in(code: str, *others: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, [vllm_stand_in.DIRECTORY, *others]))
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120
    )


def test_trinitys_multi_modal_helpers_import_with_the_stand_in():
    result = run_with_stand_in("import trinity.common.models.mm_utils as m; m.ModelConfig()")
    assert "ImportError: ModelConfig is part of vLLM" in result.stderr


def test_the_stand_in_steps_aside_for_a_real_vllm(tmp_path):
    real = tmp_path / "vllm"
    real.mkdir()
    (real / "__init__.py").write_text("__version__ = '9.9'\nfrom vllm.config import ModelConfig\n")
    (real / "config.py").write_text("class ModelConfig: real = True\n")
    code = "import vllm, vllm.config; print(vllm.__version__, vllm.ModelConfig.real, vllm.config.__file__)"
    result = run_with_stand_in(code, tmp_path)
    assert result.stdout.split() == ["9.9", "True", str(real / "config.py")], result.stderr


def test_only_where_vllm_is_missing_is_the_stand_in_put_on_the_path(tmp_path, monkeypatch):
    assert vllm_stand_in.python_path() == [str(vllm_stand_in.DIRECTORY)]
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert vllm_stand_in.python_path() == []
