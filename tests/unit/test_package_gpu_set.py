"""requirements/gpu.txt is complete and consistent: each requirement of each package is met, but for the one overridden.

No resolver can say so, as the set has no solution by the rules; the requirements that scripts/lock_gpu.py recorded can.
"""

import importlib.metadata
import json
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).parents[2] / "requirements"
TARGET = {
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


def roots():
    own = [line for line in importlib.metadata.requires("trinity-rec") if "extra ==" not in line]
    return [*own, *lines(REQUIREMENTS / "gpu.in")]


def walk(pins, recorded, start):
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
            if marker is None or any(marker.evaluate({**TARGET, "extra": extra}) for extra in reached[name]):
                todo.append((name, child))
    return reached, unmet


@pytest.fixture
def pins():
    return dict(line.split("==") for line in lines(REQUIREMENTS / "gpu.txt"))


@pytest.fixture
def recorded():
    return json.loads((REQUIREMENTS / "gpu-metadata.json").read_text())


def test_the_record_is_of_the_pinned_versions(pins, recorded):
    assert pins == {name: entry["version"] for name, entry in recorded.items()}


def test_every_requirement_but_the_overridden_pin_is_met(pins, recorded):
    reached, unmet = walk(pins, recorded, roots())
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
    assert complaint in walk(pins, recorded, roots())[1]


def test_the_set_agrees_with_the_tested_one_on_what_it_is_made_for(pins):
    tested = dict(line.split("==") for line in lines(REQUIREMENTS.parent / "constraints.txt"))
    for name in ("trinity-rft", "verl", "ray", "transformers", "tensordict", "pyarrow"):
        assert pins[name] == tested[name]
    assert int(pins["numpy"].split(".")[0]) >= 2
