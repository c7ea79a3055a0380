"""The tasks of the lab's own models: every module here with a `TASK` is one.

A new one is a file, and its model in `lab/assets`, which `python -m trinity_rec.lab.warm_up OUT --task NAME` makes.
"""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from trinity_rec.lab.tasks.problems import Problem, Task, TaughtTask, Vocabulary

__all__ = ["TASKS", "Problem", "Task", "TaughtTask", "Vocabulary"]


def found() -> dict[str, TaughtTask]:
    """Name -> task, in the order of the files' names."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return {module.TASK.name: module.TASK for module in modules if hasattr(module, "TASK")}


TASKS = found()
