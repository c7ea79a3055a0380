"""What CI runs: the tests of vLLM and verl too where their environment has room, else a loud word that it does not."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("free", "targets", "said"), [("14900000000", ["test"], True), ("15100000000", ["test", "test-vllm"], False)]
)
def test_the_main_road_is_left_out_only_where_disk_is_short(tmp_path, free, targets, said):
    for name, line in (("make", 'echo "made $*"'), ("df", f"printf 'Avail\\n{free}\\n'")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    result = subprocess.run([ROOT / ".ci" / "run"], env=env, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [f"made {target}" for target in targets]
    assert ("LEFT OUT: make test-vllm" in result.stderr) is said
