"""Every feature with every version of the Tinker SDK, each in an environment of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.overlay import environment_with
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
    assert len(found) >= 18
    came_later = {"close": "0.28", "cancel": "0.28"}
    for feature, outcome in found.items():
        absent = version < came_later.get(feature, "") and outcome.startswith("absent")
        assert outcome == "ok" or absent, f"{feature} with {version}: {outcome}"


def test_every_feature_works_with_the_installed_sdk(server):
    assert_all_work(features(sys.executable, server))


# The newest with every run of the tests, those between in `make soak`.
@pytest.mark.parametrize(
    "version", [pytest.param(version, marks=pytest.mark.soak) for version in VERSIONS[:-1]] + [VERSIONS[-1]]
)
def test_every_feature_works_with_every_sdk(server, tmp_path, version):
    found = features(environment_with(tmp_path / "sdk", f"tinker=={version}"), server)
    assert found["version"] == version
    assert_all_work(found)
