"""Real runs that are killed at random moments and resumed end where an unbroken run ends; and two runs are the same.

Processes are killed by SIGKILL, in turn and in random order, on one Ray cluster that goes on: the two that hold weights
in `make test`, all four in `make soak`. Each resumed run must say which part died, go on from the last checkpoint, and
repeat the unbroken run's rewards step by step: it would not if it read other problems, sampled with other weights or
had lost the optimizer's state. Seeds are printed.
"""

from __future__ import annotations

import random
import re
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.tiny_run import NAME, actor, largest_difference, start_backend, train, weights_after, write_config
from trinity_rec.plugin.resume import LEDGER, Ledger, last_checkpoint
from trinity_rec.session import LaunchError, Session, trained_steps

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

STEPS = 10
VICTIMS = {  # and how the user is told
    "driver": r"killed by SIGKILL",
    "trainer": r"Trinity's Trainer died",
    "explorer": r"Trinity's Explorer died",
    "backend": r"the local backend ended \(killed by SIGKILL\)",
}
PATIENCE = 60  # seconds from a kill to its report, on a machine that is busy


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def session(place):
    with Session(place / "logs") as session:
        session.start_ray()
        start_backend(session, place / "weights")
        yield session


@pytest.fixture(scope="module")
def unbroken(session, place):
    """The rewards of each step of a run that nothing happened to, and its final weights."""
    return whole_run(session, place, "unbroken")


def whole_run(session, place, name):
    write_config(place / name, STEPS)
    steps = list(train(session, place / name, STEPS))
    assert [step.number for step in steps] == list(range(1, STEPS + 1))
    return [step.reward for step in steps], weights_after(place / name, place / "weights", STEPS)


@pytest.mark.soak
def test_two_runs_are_the_same(session, place, unbroken):
    rewards, weights = whole_run(session, place, "again")
    assert rewards == unbroken[0]
    assert largest_difference(weights, unbroken[1]) == 0


def test_a_run_that_was_killed_equals_an_unbroken_one(session, place, unbroken):
    survive_kills(session, place, unbroken, seed=2, victims=("trainer", "backend"))


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("seed", range(100, 106))
def test_many_kills(session, place, unbroken, seed):
    survive_kills(session, place, unbroken, seed)


def survive_kills(session, place, unbroken, seed, victims=tuple(VICTIMS)):
    """One run, in which each of the victims is killed once, in random order."""
    draw = random.Random(seed)
    folder = place / f"killed-{seed}"
    write_config(folder, STEPS)
    job = folder / "trinity" / NAME
    rewards, weights = unbroken
    resumed_at, began = 0, time.monotonic()
    for victim in draw.sample(victims, len(victims)):
        after = min(draw.randrange(4), max(0, STEPS - 3 - resumed_at))  # never so late that the run is over
        delay = draw.uniform(0, 1.5)
        print(f"seed {seed}: at {resumed_at}, {victim} dies {delay:.2f} s after {after} more steps")
        seen, killed = [], []
        details = (session, victim, folder, after, delay, killed)
        killer = threading.Thread(target=kill, args=details, daemon=True)  # it must not outlive a test that fails
        killer.start()
        with pytest.raises(LaunchError, match=VICTIMS[victim]) as failure:
            for step in train(session, folder, STEPS):
                seen.append(step)
        took = time.monotonic() - killed[0]
        killer.join()
        print(f"seed {seed}: {took:.1f} s later: {failure.value}")
        assert took < PATIENCE
        assert re.search(rf"stopped after \d+ of {STEPS} steps", str(failure.value))
        check_steps(seen, resumed_at, rewards)
        if victim == "backend":
            start_backend(session, place / "weights")
        resumed_at = last_checkpoint(job, remote=True)
        # What goes on while a death is told is trained, too; and a checkpoint is written before its step is logged.
        assert resumed_at <= max((step.number for step in trained_steps(folder)), default=0) + 1
    last = list(train(session, folder, STEPS))
    check_steps(last, resumed_at, rewards)
    assert last[-1].number == STEPS
    assert largest_difference(weights_after(folder, place / "weights", STEPS), weights) <= 1e-6
    entries = Ledger(job / "buffer" / LEDGER).entries()
    assert [(entry.step, entry.explored) for entry in entries] == [(step, step) for step in range(1, STEPS + 1)]
    print(f"seed {seed}: {len(victims)} kills survived in {time.monotonic() - began:.0f} s")


def check_steps(steps, resumed_at, rewards):
    """They go on from the checkpoint, one by one, each with the reward that it has in the unbroken run."""
    assert [step.number for step in steps] == [resumed_at + 1 + i for i in range(len(steps))]
    assert [step.reward for step in steps] == [rewards[step.number - 1] for step in steps]


def kill(session: Session, victim: str, folder: Path, after: int, delay: float, killed: list[float]) -> None:
    """SIGKILL the victim `delay` seconds after so many more steps, or after the trainer's process is there."""
    began, before = time.time(), len(trained_steps(folder))
    while not actor(session, "trainer", began) or len(trained_steps(folder)) < before + after:
        time.sleep(0.2)
    time.sleep(delay)
    parts = {"driver": "trinity", "backend": "server"}
    if victim in parts:
        found = psutil.Process(session.parts[parts[victim]].pid)
    else:
        while (found := actor(session, victim, began)) is None:
            time.sleep(0.2)
    killed.append(time.monotonic())
    found.kill()
