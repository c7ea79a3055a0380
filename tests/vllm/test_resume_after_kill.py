"""A run of the main road whose trainer, explorer and engine are killed in turn ends at its last step, nothing twice."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from pathlib import Path

import psutil
import pytest

from tests.vllm.small_run import PATIENCE, write_config
from trinity_rec.plugin.resume import LEDGER, Ledger, last_checkpoint
from trinity_rec.session import LaunchError, Session, marked_processes, trained_steps

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]
STEPS = 8
# As Ray titles the processes.
VICTIMS = {"trainer": r"ray::(trainer:)?Trainer\b", "explorer": r"ray::(explorer:)?Explorer\b", "engine": r"VLLM::"}


def processes(session: Session, title: str, since: float) -> list[psutil.Process]:
    found = []
    for process in marked_processes(session.mark):
        with contextlib.suppress(psutil.Error):
            if re.match(title, " ".join(process.cmdline())) and process.create_time() > since:
                found.append(process)
    return found


def kill_after(session: Session, title: str, folder: Path, step: int) -> None:
    """SIGKILL as soon as that step is trained."""
    began = time.time()
    while not any(trained.number >= step for trained in trained_steps(folder)) or not processes(session, title, began):
        time.sleep(0.1)
    for process in processes(session, title, began):
        process.kill()


def test_every_part_is_killed_once_and_the_run_ends_at_its_last_step(session, tmp_path):
    folder = tmp_path / "killed"
    path = write_config(folder, STEPS, trainer__save_interval=2)
    job, resumed_at = folder / "trinity" / folder.name, 0
    for victim, title in VICTIMS.items():
        killer = threading.Thread(target=kill_after, args=(session, title, folder, resumed_at + 2), daemon=True)
        killer.start()
        seen = []
        with pytest.raises(LaunchError, match=rf"stopped after \d+ of {STEPS} steps") as failure:
            for step in session.run_trinity(path, folder, total_steps=STEPS, patience=PATIENCE):
                seen.append(step.number)
        killer.join()
        print(f"{victim} killed: {failure.value}")
        assert f"{victim} died" in str(failure.value).lower()
        assert seen == list(range(resumed_at + 1, resumed_at + 1 + len(seen)))
        resumed_at = last_checkpoint(job, remote=False)
    last = [step.number for step in session.run_trinity(path, folder, total_steps=STEPS, patience=PATIENCE)]
    assert last == list(range(resumed_at + 1, STEPS + 1))
    entries = Ledger(job / "buffer" / LEDGER).entries()
    assert [(entry.step, entry.explored) for entry in entries] == [(step, step) for step in range(1, STEPS + 1)]
