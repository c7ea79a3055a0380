"""Every feature with every version of the Tinker SDK, each in an environment of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_model import make_tiny_model

pytest.importorskip("tinker", reason="the Tinker SDK needs Python 3.11")

PROGRAM = Path(__file__).parents[1] / "tinker_sdk_features.py"
VERSIONS = ("0.25.0", "0.28.0", "0.31.0", "0.34.0", "0.38.0")


@pytest.fixture
def server(tmp_path_factory) -> Iterator[tuple[str, str]]:
    """Its URL, and the name of its model."""
    model = make_tiny_model(tmp_path_factory.mktemp("model"))
    root = tmp_path_factory.mktemp("weights")
    command = [sys.executable, "-m", "trinity_rec.cli", "serve", f"--model={model}", f"--root={root}", "--port=0"]
    process = subprocess.Popen([*command, "--threads=1"], stdout=subprocess.PIPE, text=True)
    yield process.stdout.readline().strip(), str(model)
    process.terminate()
    assert process.wait(timeout=30) == 0


def features(python: str, server: tuple[str, str]) -> dict[str, str]:
    run = subprocess.run([python, PROGRAM, *server], capture_output=True, text=True, timeout=240)
    assert run.stdout, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


def assert_all_work(found: dict[str, str]) -> None:
    version = found.pop("version")
    assert len(found) >= 16
    allowed = {"ok"} if version >= "0.38" else {"ok", "absent: close"}
    assert found.pop("close") in allowed
    assert {feature: outcome for feature, outcome in found.items() if outcome != "ok"} == {}


def test_every_feature_works_with_the_installed_sdk(server):
    assert_all_work(features(sys.executable, server))


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("version", VERSIONS)
def test_every_feature_works_with_every_sdk(server, tmp_path, version):
    python = str(tmp_path / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", tmp_path], check=True)
    wanted = [f"tinker=={version}", "torch"]  # torch: for losses in Python
    subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
    found = features(python, server)
    assert found["version"] == version
    assert_all_work(found)
