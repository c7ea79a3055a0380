"""The built wheel carries all that it needs: presets, plug-in directory, vLLM stand-in, and the YAML files users run.

It is installed into an environment of its own, which borrows the dependencies, but not this checkout, from the
environment of the tests.
"""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

import trinity_rec
from trinity_rec.presets import PRESETS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def run(wheel, tmp_path_factory):
    """A function that runs a command of the wheel's environment, outside the checkout, and returns what it printed."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False)
    scripts = folder / "env" / "bin"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", scripts / "python", "install", "--no-index", "--no-deps", wheel],
        check=True,
        capture_output=True,
    )
    # A .pth file adds a folder but not that folder's own .pth files, so an editable install there stays unseen.
    (site_packages,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    env = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}

    def run(program, *arguments):
        done = subprocess.run([scripts / program, *arguments], cwd=folder, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    run.folder = folder
    return run


def test_it_is_the_installed_package_that_is_tested(run):
    where = Path(run("python", "-c", "import trinity_rec; print(trinity_rec.__file__)"))
    assert run.folder in where.parents


def test_every_preset_resolves_in_trinitys_registry(run):
    program = """
from trinity.algorithm import ALGORITHM_TYPE
from trinity_rec.presets import PRESETS
print(*(name for name in PRESETS if ALGORITHM_TYPE.get(f"trinity_rec.{name}") is not None))
"""
    assert run("python", "-c", program).splitlines()[-1].split() == list(PRESETS)


def test_version(run):
    assert trinity_rec.__version__ in run("trinity-rec", "--version")


def test_plugin_directory(run):
    folder = Path(run("trinity-rec", "plugin-dir"))
    assert run.folder in folder.parents
    assert list(folder.glob("*.py"))


def test_every_example_is_listed_and_found(run):
    examples = sorted(path.relative_to(ROOT / "examples").as_posix() for path in ROOT.glob("examples/*/*.yaml"))
    assert run("trinity-rec", "examples").split() == examples
    for name in examples:
        path = Path(run("trinity-rec", "examples", name))
        assert run.folder in path.parents
        assert path.read_text() == (ROOT / "examples" / name).read_text()


def test_vllm_stand_in_and_configs_are_inside_and_tests_are_not(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "trinity_rec/without_gpu/vllm_stand_in/vllm/__init__.py" in names
    for config in ROOT.glob("configs/**/*.yaml"):
        assert f"trinity_rec/{config.relative_to(ROOT)}" in names
    assert all(name.startswith(("trinity_rec/", "trinity_rec-")) for name in names)
