"""Stand-in for vLLM in text-only runs; see `trinity_rec.without_gpu.vllm_stand_in`. A real vLLM takes its place."""

import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec
from pathlib import Path

_here = Path(__file__).resolve().parent.parent
_real = PathFinder.find_spec("vllm", [p for p in sys.path if Path(p or ".").resolve() != _here])

if _real is not None and _real.loader is not None:
    # `import vllm` returns what sys.modules holds when this file is done
    _module = sys.modules["vllm"] = module_from_spec(_real)
    _real.loader.exec_module(_module)


def needs_vllm(name: str) -> type:
    """A class to name in annotations and imports; to use it is an error that says what is missing."""

    def refuse(cls, *args, **kwargs):
        raise ImportError(f"{name} is part of vLLM, which is not installed; text-only runs on Tinker do without it")

    return type(name, (), {"__new__": refuse})
