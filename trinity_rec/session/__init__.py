"""One `trinity run` on this machine: its processes, its logs, its progress; whatever comes, nothing is left behind."""

from trinity_rec.session.logs import TrainedStep, last_error, trained_steps
from trinity_rec.session.processes import (
    LOOPBACK,
    MARK,
    LaunchError,
    Session,
    marked_processes,
    script,
    signals_as_exit,
)
from trinity_rec.session.progress import doing, watch

__all__ = [
    "LOOPBACK",
    "MARK",
    "LaunchError",
    "Session",
    "TrainedStep",
    "doing",
    "last_error",
    "marked_processes",
    "script",
    "signals_as_exit",
    "trained_steps",
    "watch",
]
