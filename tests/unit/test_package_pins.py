"""Both pinned sets are complete and consistent: constraints.txt without exception, requirements/gpu.txt but for one.

No resolver can say so of the GPU set, which has no solution by the rules; the requirements that scripts/lock_gpu.py
recorded can. For the other set they are those of the packages installed here.
"""

import importlib.metadata
import json
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "requirements"
GPU_TARGET = {
    "implementation_name": "cpython",
    "implementation_version": "3.11.9",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": "3.11.9",
    "python_version": "3.11",
    "sys_platform": "linux",
}


def lines(path):
    return [line.split("#")[0].strip() for line in path.read_text().splitlines() if line.split("#")[0].strip()]


def pin_of(line):
    return line.split("==")


def roots():
    own = [line for line in importlib.metadata.requires("trinity-rec") if "extra ==" not in line]
    return [*own, *lines(REQUIREMENTS / "gpu.in")]


def walk(pins, recorded, start, target):
    """Follow requirements from `start`; returns the packages reached and the (package, requirement) pairs not met."""
    reached, unmet = {}, set()
    todo = [("trinity-rec", line) for line in start]
    while todo:
        source, line = todo.pop()
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name not in pins or not requirement.specifier.contains(pins[name], prereleases=True):
            unmet.add((source, line))
        if name not in pins:
            continue
        new = {"", *requirement.extras} - reached.setdefault(name, set())
        reached[name] |= new
        for child in recorded[name]["requires_dist"] if new else []:
            marker = Requirement(child).marker
            if marker is None or any(marker.evaluate({**target, "extra": extra}) for extra in reached[name]):
                todo.append((name, child))
    return reached, unmet


@pytest.fixture
def pins():
    return dict(map(pin_of, lines(REQUIREMENTS / "gpu.txt")))


@pytest.fixture
def recorded():
    return json.loads((REQUIREMENTS / "gpu-metadata.json").read_text())


def test_the_record_is_of_the_pinned_versions(pins, recorded):
    assert pins == {name: entry["version"] for name, entry in recorded.items()}


def test_every_requirement_but_the_overridden_pin_is_met(pins, recorded):
    reached, unmet = walk(pins, recorded, roots(), GPU_TARGET)
    assert unmet == {("verl", "numpy<2.0.0")}
    assert set(reached) == set(pins), "every pin is there because something asks for it"


def test_every_package_supports_the_python_it_is_pinned_for(recorded):
    wanted = {name: entry["requires_python"] for name, entry in recorded.items() if entry["requires_python"]}
    assert [name for name, spec in wanted.items() if not SpecifierSet(spec).contains("3.11.9")] == []


@pytest.mark.parametrize(
    ("package", "version", "complaint"),
    [
        ("transformers", "5.10.0", ("trinity-rft", "transformers>=5.12.1")),
        ("pyarrow", "26.0.1", ("trinity-rec", "pyarrow<26")),
        ("torch", "2.13.0", ("vllm", "torch==2.11.0")),
        ("greenlet", None, ("trinity-rec", "greenlet>=3")),
    ],
)
def test_a_wrong_or_missing_pin_would_be_seen(pins, recorded, package, version, complaint):
    del pins[package]
    if version:
        pins[package] = version
    assert complaint in walk(pins, recorded, roots(), GPU_TARGET)[1]


def test_the_set_agrees_with_the_tested_one_on_what_it_is_made_for(pins):
    tested = dict(map(pin_of, lines(ROOT / "constraints.txt")))
    for name in ("trinity-rft", "verl", "ray", "transformers", "tensordict", "pyarrow"):
        assert pins[name] == tested[name]
    assert int(pins["numpy"].split(".")[0]) >= 2


def test_constraints_pin_all_that_an_install_with_every_extra_brings():
    pins = {canonicalize_name(name): version for name, version in map(pin_of, lines(ROOT / "constraints.txt"))}
    installed = {canonicalize_name(each.name): each.requires or [] for each in importlib.metadata.distributions()}
    # gguf, which only examples/rec_gsm8k/smollm2.py needs, is not in the environment of the tests
    recorded = {name: {"requires_dist": installed.get(name, [])} for name in [*pins, "trinity-rec"]}
    pins["trinity-rec"] = importlib.metadata.version("trinity-rec")
    _, unmet = walk(pins, recorded, ["trinity-rec[local,lab,smollm2,dev]"], default_environment())
    assert unmet == set()
