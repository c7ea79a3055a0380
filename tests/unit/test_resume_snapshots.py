"""A server that is killed while it saves leaves every snapshot whole: the one before or the new one, never a part."""

import random
import subprocess
import sys

import pytest

# One process forks a writer again and again and kills it; each starts from the files that the one before left.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from trinity_rec.tinker_local.weights import CHECKPOINT, SnapshotPath, WeightStore

torch.set_num_threads(1)
root, kills, draw = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
path = SnapshotPath("run-1", CHECKPOINT, "last")

def write(number, acknowledge):
    store = WeightStore(root, keep=2)
    while True:
        number += 1
        store.save(path, {"weight": torch.full((64, 64), number)}, {"step": number}, overwrite=True)
        os.write(acknowledge, number.to_bytes(4, "little"))

number, torn = 0, 0
for _ in range(kills):
    reading, writing = os.pipe()
    writer = os.fork()
    if not writer:
        write(number, writing)
    os.close(writing)
    first = os.read(reading, 4)  # it is at work
    time.sleep(draw.uniform(0, 0.01))
    os.kill(writer, signal.SIGKILL)
    os.waitpid(writer, 0)
    told = (first + os.fdopen(reading, "rb").read())[-4:]
    torn += any(entry.name.startswith(".") for entry in (root / "run-1" / CHECKPOINT).iterdir())
    store = WeightStore(root, keep=2)
    weight = store.load(path)["weight"]
    number = int(weight[0, 0])
    assert (weight == number).all() and store.load_optimizer(path) == {"step": number}
    assert number - int.from_bytes(told, "little") in (0, 1), "the client was told of a snapshot that is gone"
    assert [entry.name for entry in (root / "run-1" / CHECKPOINT).iterdir()] == ["last"]
    store.close()
print(number, torn)
"""


def kill_writers(root, kills, seed):
    print(f"seed {seed}")
    ended = subprocess.run(
        [sys.executable, "-c", KILLS, str(root), str(kills), str(seed)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    saved, torn = map(int, ended.stdout.split())
    print(f"{kills} writers killed, {torn} in the middle of a save, {saved} snapshots written")
    assert saved >= kills
    assert torn > kills // 10, "most kills hit nothing"


def test_a_killed_save_leaves_a_whole_snapshot(tmp_path):
    kill_writers(tmp_path, kills=60, seed=random.randrange(2**32))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_many_killed_saves(tmp_path):
    kill_writers(tmp_path, kills=5000, seed=random.randrange(2**32))
