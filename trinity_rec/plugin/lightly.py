"""Trinity for commands that read a configuration and train nothing: without torch, Ray, verl and their like.

Trinity's modules import these at their top, five to twenty seconds of CPU, for classes of which a check makes none.
After `lightly()` Trinity's modules, and ours that derive from them, import stand-ins: names that serve as base classes,
decorators and annotations while a module is imported, and are the real thing as soon as one is used. Nobody else sees
them: a user's own loss that imports torch gets torch.
"""

from __future__ import annotations

import builtins
import sys
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from importlib.metadata import version
from importlib.util import find_spec
from pkgutil import resolve_name
from types import ModuleType
from typing import Any

HEAVY = frozenset(
    {
        *("datasets", "mlflow", "numpy", "pandas", "ray", "safetensors", "sqlalchemy", "swanlab", "tensordict"),
        *("tinker", "torch", "transformers", "verl", "wandb"),
    }
)
_LIGHT = ("trinity", "trinity_rec.plugin", "trinity_rec.shaping")  # whose imports are replaced


def lightly() -> None:
    """Have Trinity imported so from now on; changes nothing where it has been imported already."""
    if "trinity" not in sys.modules:
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if not any(name == each or name.startswith(f"{each}.") for each in _LIGHT):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Runs a module with an `__import__` of its own, which its functions keep."""

    running = 0  # modules, one within another

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__builtins__"] = {**vars(builtins), "__import__": _import}
        _Loader.running += 1
        try:
            super().exec_module(module)
        finally:
            _Loader.running -= 1


def _import(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    package = name.partition(".")[0]
    if level or package not in HEAVY or package in sys.modules or not _is_installed(package):
        return __import__(name, globals, locals, fromlist, level)
    return _StandIn(name if fromlist else package)


@cache
def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


class _StandIn:
    """What is at this dotted path."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name == "__version__" and "." not in self._path:
            return version(self._path)
        if not _Loader.running:
            return getattr(resolve_name(self._path), name)
        if name.startswith("__"):
            raise AttributeError(name)
        return _StandIn(f"{self._path}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not _Loader.running:
            return resolve_name(self._path)(*args, **kwargs)
        decorates = len(args) == 1 and callable(args[0]) and not kwargs
        return args[0] if decorates else self

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, resolve_name(self._path))

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return ()

    def __getitem__(self, _: Any) -> _StandIn:
        return self

    __or__ = __ror__ = __getitem__
