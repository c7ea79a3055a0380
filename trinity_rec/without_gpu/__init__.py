"""What lets vLLM and verl proper run on a CPU, and Trinity without vLLM.

Each part undoes an assumption of a GPU, says which, and steps aside where the real thing is there. None is active
unless our launcher asks, by the environment of the processes that it starts.

    verl_workers    patches for verl's training workers, by verl's own hook
    vllm_workers    patches for vLLM's engine as Trinity starts it, by vLLM's own hook
    vllm_stand_in   a package `vllm` with the names that a text-only run imports
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ASKED = "TRINITY_REC_WITHOUT_GPU"  # vLLM's entry points are found wherever this package is installed


def environment(env: Mapping[str, str], scratch: Path, engine: bool = True) -> dict[str, str]:
    """The variables that a run with vLLM and verl on this machine's CPU needs.

    Args:
        env: of the run so far.
        scratch: a directory of the run for what it needs on its path.
        engine: whether vLLM takes part; else it need not be installed.
    """
    path = [*([str(describe_vllm(scratch))] if engine else []), *filter(None, [env.get("PYTHONPATH")])]
    modules = [*filter(None, [env.get("VERL_USE_EXTERNAL_MODULES")]), f"{__name__}.verl_workers"]
    return {
        ASKED: "1",
        "PYTHONPATH": os.pathsep.join(path),
        "VERL_USE_EXTERNAL_MODULES": ",".join(modules),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # else the engine claims every core for itself
        "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    }


def describe_vllm(scratch: Path) -> Path:
    """A directory that holds the metadata of a distribution `vllm`, or nothing where there is one.

    The CPU build's is called vllm-cpu, while verl and Trinity ask for the version of `vllm`, and vLLM reads off that
    version which platform it was built for.
    """
    place = scratch / "distributions"
    try:
        version("vllm")
    except PackageNotFoundError:
        cpu = version("vllm-cpu")
        info = place / f"vllm-{cpu}+cpu.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        metadata = f"Metadata-Version: 2.1\nName: vllm\nVersion: {cpu}+cpu\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
    return place
