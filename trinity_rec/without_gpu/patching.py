"""A patch waits for the module that it is for, since verl and vLLM import much of themselves lazily."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from types import ModuleType


def when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
    """Apply `patch` to a module now, or as soon as it has been imported."""
    if name in sys.modules:
        patch(sys.modules[name])
        return

    class Finder(MetaPathFinder):
        def find_spec(self, fullname, path, target=None):
            if fullname != name:
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(fullname)
            load = spec.loader.exec_module

            def load_and_patch(module: ModuleType) -> None:
                load(module)
                patch(module)

            spec.loader.exec_module = load_and_patch
            return spec

    sys.meta_path.insert(0, Finder())
