"""What a run costs, on steps and processes whose cost is known."""

import math
import subprocess
import sys
import time

import pytest

from trinity_rec.session import Session, TrainedStep
from trinity_rec.session import cost as costs
from trinity_rec.session.cost import TOKENS, Cost
from trinity_rec.session.machine import GIB


def test_seconds_and_tokens_are_those_after_the_first_step(monkeypatch):
    clock = iter([100.0, 102.0, 105.0])
    monkeypatch.setattr(costs.time, "monotonic", lambda: next(clock))
    cost = Cost()
    given = [TrainedStep(number, {TOKENS: 1000.0 * number}) for number in (1, 2, 3)]
    assert list(cost.steps(given)) == given
    assert cost.seconds_a_step == 2.5 and cost.tokens_a_second == (2000 + 3000) / 5


@pytest.mark.parametrize("steps", [0, 1])
def test_before_a_second_step_nothing_is_known(steps):
    cost = Cost()
    list(cost.steps([TrainedStep(1, {TOKENS: 10.0})] * steps))
    assert math.isnan(cost.seconds_a_step) and math.isnan(cost.tokens_a_second)


def test_steps_without_a_count_of_tokens_have_no_tokens_a_second():
    cost = Cost()
    list(cost.steps([TrainedStep(1, {}), TrainedStep(2, {})]))
    assert cost.seconds_a_step >= 0 and math.isnan(cost.tokens_a_second)


def test_memory_is_that_of_the_session_s_processes_at_its_height(tmp_path, monkeypatch):
    """300 MiB held for a moment by a process of the session, not by this one."""
    monkeypatch.setattr(costs, "LOOK_EVERY", 0.05)
    mine = bytearray(700 << 20)
    program = "import time; held = bytearray(b'x') * (300 << 20); print('held', flush=True); time.sleep(1); del held"
    with Session(tmp_path) as session:
        cost = Cost()
        with cost.watched(session):
            child = session.spawn("child", [sys.executable, "-c", program])
            deadline = time.monotonic() + 60
            while "held" not in session.log("child") and time.monotonic() < deadline:
                time.sleep(0.05)
            child.wait(60)
    assert 0.29 * GIB < cost.memory < 0.6 * GIB and mine


def test_a_process_that_has_ended_holds_nothing():
    import psutil

    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process = psutil.Process(child.pid)
    child.kill()
    child.wait()
    assert costs.own_memory(process) == 0
