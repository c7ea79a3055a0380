"""Trinity's TensorBoard logs as plain series.

Trinity's monitor (`monitor_type: tensorboard`) writes a directory a role, `trainer` and `explorer` (in `mode: bench`
`benchmark`), each with one event file for every start of the run:

    <checkpoint_root_dir>/<project>/<group>/<name>/monitor/tensorboard/<role>/events.out.tfevents.*

The writer puts its records on disk every two minutes and at the end, so a run that was killed ends in the middle of a
record, and one that has just begun holds none.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub import errors
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import PyRecordReader_New

LOGS = Path("monitor", "tensorboard")
EVENT_FILES = "events.out.tfevents.*"


class LogsError(ValueError):
    """There are no logs to read, or they are damaged; the message is one line that names what is available."""


@dataclass(frozen=True)
class Series:
    """A metric over the steps of a run: `steps` [points], ascending, and `values` [points], which may be NaN."""

    steps: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Run:
    """What a run logged: `roles[role][tag]` is a series; `warnings` says, a line each, what could not be read."""

    directory: Path
    roles: dict[str, dict[str, Series]]
    warnings: tuple[str, ...] = ()

    def get(self, role: str, tag: str) -> Series | None:
        return self.roles.get(role, {}).get(tag)


def find_runs(directory: Path) -> list[Path]:
    """The job directories at or below `directory`, those that hold `monitor/tensorboard`; sorted.

    Raises:
        LogsError: there is no such directory, or no logs in it.
    """
    if not directory.is_dir():
        if directory.exists():
            raise LogsError(f"{directory} is a file; give the directory of a run")
        raise LogsError(f"no directory {directory}; {_contents(directory.parent)}")
    runs = sorted(
        logs.parents[1]
        for logs in directory.rglob(LOGS.name)
        if logs.parts[-2:] == LOGS.parts and any(logs.glob(f"*/{EVENT_FILES}"))
    )
    if not runs:
        raise LogsError(
            f"{directory} holds no TensorBoard logs ({LOGS}/<role>/{EVENT_FILES}); {_contents(directory)}. "
            "Trinity writes them with monitor.monitor_type: tensorboard"
        )
    return runs


def _contents(directory: Path) -> str:
    names = sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []
    return f"in {directory}: {', '.join(names[:12]) or 'nothing'}{', …' if len(names) > 12 else ''}"


def read_run(directory: Path) -> Run:
    """Read all roles of the run whose job directory this is (`find_runs` finds them).

    Where a resumed run repeats steps, those of its later start count. What a killed run left of its last record is
    passed over with a warning.

    Raises:
        LogsError: no logs, no metric in any of them, or a damaged file; says what is there.
    """
    logs = directory / LOGS
    files = {role: sorted(role.glob(EVENT_FILES), key=_start) for role in sorted(logs.glob("*")) if role.is_dir()}
    if not any(files.values()):
        raise LogsError(f"{directory} holds no TensorBoard logs ({LOGS}/<role>/{EVENT_FILES}); {_contents(directory)}")
    roles: dict[str, dict[str, Series]] = {}
    warnings: list[str] = []
    for role, starts in files.items():
        points: dict[str, tuple[list[int], list[float]]] = {}
        for path in starts:
            _add(list(_read(path, warnings)), points)
        if points:
            roles[role.name] = {
                tag: Series(np.array(steps), np.array(values)) for tag, (steps, values) in points.items()
            }
    if not roles:
        raise LogsError(
            f"the logs of {directory} hold no metric yet ({', '.join(role.name for role in files)}); "
            "the writer puts them on disk every two minutes and at the end of the run"
        )
    return Run(directory, roles, tuple(warnings))


def _start(path: Path) -> tuple[int, str]:
    """Event files are named by the second they were opened in: `events.out.tfevents.<second>.<host>.…`."""
    second = path.name.split(".")[3]
    return int(second) if second.isdecimal() else 0, path.name


Scalar = tuple[int, str, float]
"""Step, tag, value."""


def _read(path: Path, warnings: list[str]) -> Iterator[Scalar]:
    reader = PyRecordReader_New(str(path))
    last, records = 0, 0
    while True:
        try:
            reader.GetNext()
        except errors.OutOfRangeError:
            return
        except errors.DataLossError as error:
            # The reader tells a record that is cut off from one that is damaged by its message alone.
            cut_off, read = "truncated record" in str(error), f"{records} records up to step {last} are readable"
            if cut_off and records:
                warnings.append(f"{path}: its last record is cut off; {read}")
                return
            reason = "cut off" if cut_off else "damaged (its checksum is wrong)"
            others = [other.name for other in sorted(path.parent.glob(EVENT_FILES)) if other != path]
            raise LogsError(
                f"{path} is no event file or broken: record {records + 1} is {reason}; {read}"
                + (f"; beside it: {', '.join(others)}" if others else "")
            ) from error
        event = Event.FromString(reader.record())
        records += 1
        for value in event.summary.value:
            if value.HasField("simple_value"):  # what torch's SummaryWriter makes of a scalar
                last = max(last, event.step)
                yield event.step, value.tag, value.simple_value


def _add(scalars: list[Scalar], points: dict[str, tuple[list[int], list[float]]]) -> None:
    """Append what a start of the run logged; steps of an earlier start that lie beyond its first step are void."""
    if not scalars:
        return
    first = min(step for step, _, _ in scalars)
    for steps, values in points.values():
        kept = bisect.bisect_left(steps, first)
        del steps[kept:], values[kept:]
    for step, tag, value in sorted(scalars, key=lambda scalar: scalar[0]):
        steps, values = points.setdefault(tag, ([], []))
        if steps and steps[-1] == step:  # logged twice: the later one counts
            values[-1] = value
        else:
            steps.append(step)
            values.append(value)
