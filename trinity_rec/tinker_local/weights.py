"""Snapshots of weights on disk: `tinker://<run>/<kind>/<name>` is the directory `<root>/<run>/<kind>/<name>`.

A snapshot is written next to its place and renamed into it, so it is there whole or not at all, and what is read is
checked against the sizes and checksums in its manifest.

What a client named stays until the client deletes it or its time is over. Of what has no name the newest few stay, and
whatever is still in use. A save that the disk budget has no room for fails; nothing is deleted for it.
"""

import contextlib
import fcntl
import json
import re
import shutil
import threading
import time
import uuid
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trinity_rec.tinker_local.errors import RequestError, ServeError

SAMPLER, CHECKPOINT = "sampler_weights", "weights"
_PART = re.compile(r"[^/\\\x00-\x1f.][^/\\\x00-\x1f]{0,199}")  # a file name: no separator, no leading dot
_TEMPORARY = ".writing-"
_DELETED = ".deleted"  # marks a snapshot that its client has deleted, for as long as somebody may still ask for it
_REPLACED = ".replaced-"  # a snapshot on its way out, put back if its successor did not make it


def is_name(part: str) -> bool:
    """Whether it is a plain file name."""
    return _PART.fullmatch(part) is not None and len(part.encode()) <= 200


@dataclass(frozen=True)
class SnapshotPath:
    """A snapshot's name. Every part is a plain file name, so that no path leaves the root."""

    run: str
    kind: str
    name: str

    def __post_init__(self) -> None:
        if self.kind not in (SAMPLER, CHECKPOINT):
            raise RequestError(f"unknown kind of weights: {self.kind[:80]!r}")
        for part in (self.run, self.name):
            if not is_name(part):
                raise RequestError(f"not a valid name for weights: {part[:80]!r}")

    @classmethod
    def parse(cls, uri: str) -> "SnapshotPath":
        parts = uri.removeprefix("tinker://").split("/")
        if not uri.startswith("tinker://") or len(parts) != 3:
            raise RequestError(f"not a path of the form tinker://<run>/<kind>/<name>: {uri[:200]!r}")
        return cls(*parts)

    def __str__(self) -> str:
        return f"tinker://{self.run}/{self.kind}/{self.name}"


@dataclass(frozen=True)
class Snapshot:
    """What is known of a snapshot on disk; times are seconds since the epoch.

    Attributes:
        named: whether its name is a client's.
        expires: when it may go; None for never.
    """

    path: SnapshotPath
    bytes: int
    created: float
    named: bool
    expires: float | None
    user_metadata: dict[str, str] | None


class WeightStore:
    """All snapshots under one root directory, which belongs to one server at a time.

    Args:
        root: made if it is not there.
        keep: how many of the newest samplers of each training run stay though they have no name or were deleted; at
            least 2, because a client that dies between saving and noting the new path still points to the one before.
        budget: bytes that all snapshots together may take; by default nine tenths of what the disk has free, and
            what is there already.

    Raises:
        ServeError: `root` cannot be used, or another server uses it.
    """

    def __init__(self, root: Path, keep: int, budget: float | None = None):
        if keep < 2:
            raise ServeError(f"keep must be at least 2 snapshots, got {keep}")
        self.root, self.keep = Path(root).expanduser().resolve(), keep
        self._newest: tuple[SnapshotPath, dict[str, Tensor]] | None = None
        self._lock = threading.RLock()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._owner = (self.root / ".lock").open("w")
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ServeError(f"another server uses the weights directory {root}") from error
        except OSError as error:
            raise ServeError(f"cannot use the weights directory {root}: {error.strerror}") from error
        for leftover in self.root.glob(f"*/*/{_TEMPORARY}*"):  # of a server that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.root.glob(f"*/*/{_REPLACED}*"):
            place = leftover.with_name(leftover.name.removeprefix(_REPLACED))
            if place.exists():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.rename(place)
        for run in self._runs():
            self.sweep(run, ())
        self.budget = self.bytes_used() + 0.9 * shutil.disk_usage(self.root).free if budget is None else budget

    def close(self) -> None:
        self._owner.close()

    def directory(self, path: SnapshotPath) -> Path:
        directory = self.root / path.run / path.kind / path.name
        if directory.resolve() != directory:  # a symbolic link on the way
            raise RequestError(f"not inside the weights directory: {path}")
        return directory

    def exists(self, path: SnapshotPath) -> bool:
        try:
            snapshot = self._look(path)
        except FileNotFoundError:
            return False
        return not _is_over(snapshot)

    def snapshots(self, run: str | None = None) -> list[Snapshot]:
        """What clients have saved and not deleted, the newest first; of one training run, or of all."""
        found = [
            snapshot
            for name in (self._runs() if run is None else [run])
            for snapshot in self._entries(name)
            if not _is_over(snapshot) and not self._is_deleted(snapshot.path)
        ]
        return sorted(found, key=lambda snapshot: snapshot.created, reverse=True)

    def bytes_used(self) -> int:
        return sum(snapshot.bytes for run in self._runs() for snapshot in self._entries(run))

    def save(
        self,
        path: SnapshotPath,
        weights: dict[str, Tensor],
        optimizer: dict[str, Any] | None = None,
        overwrite: bool = False,
        named: bool = True,
        ttl_seconds: float | None = None,
        user_metadata: dict[str, str] | None = None,
        in_use: Collection[SnapshotPath] = (),
    ) -> None:
        """Write a snapshot, all of it or nothing; then the run's old ones without a name go, but for those `in_use`.

        Raises:
            RequestError: the name is taken and `overwrite` is not set, or neither the budget nor the disk has room
                for it (507).
        """
        place = self.directory(path)
        if self.exists(path) and not overwrite and not self._is_deleted(path):
            raise RequestError(f"{path} exists already")
        self._make_room(path, weights, optimizer, in_use)
        writing = place.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            writing.mkdir(parents=True)
            weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
            save_file(weights, writing / "weights.safetensors")
            if optimizer is not None:
                torch.save(optimizer, writing / "optimizer.pt")
            files = {file.name: _fingerprint(file) for file in sorted(writing.iterdir())}
            now = time.time()
            manifest = {
                "version": 1,
                "files": files,
                "created": now,
                "named": named,
                "expires": None if ttl_seconds is None else now + ttl_seconds,
                "user_metadata": user_metadata,
            }
            (writing / "manifest.json").write_text(json.dumps(manifest))
            with self._lock:
                replaced = place.with_name(f"{_REPLACED}{path.name}")
                if place.exists():
                    place.rename(replaced)
                writing.rename(place)
                shutil.rmtree(replaced, ignore_errors=True)
                if path.kind == SAMPLER:
                    self._newest = (path, weights)  # most likely what is sampled from next
            self.sweep(path.run, in_use)
        except (OSError, SafetensorError, RuntimeError) as error:  # torch and safetensors have errors of their own
            reason = " ".join(str(error).split())[:300]
            raise RequestError(
                f"{path} could not be written, earlier snapshots are untouched: {reason}", 507
            ) from error
        finally:
            shutil.rmtree(writing, ignore_errors=True)

    def load(self, path: SnapshotPath) -> dict[str, Tensor]:
        """The weights of a snapshot, on the CPU.

        Raises:
            RequestError: it is not there (404), or damaged.
        """
        newest = self._newest
        if newest is not None and newest[0] == path:
            return newest[1]
        file = self._checked(path, "weights.safetensors")
        try:
            return load_file(file)
        except SafetensorError as error:
            raise RequestError(f"{path} holds no weights: {error}") from error

    def load_optimizer(self, path: SnapshotPath) -> dict[str, Any]:
        """The optimizer's state dict of a checkpoint. Raises like `load`."""
        if path.kind != CHECKPOINT:
            raise RequestError(f"{path} holds no optimizer state")
        file = self._checked(path, "optimizer.pt")
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError) as error:
            raise RequestError(f"{path} holds no optimizer state, or more than one: it is not loaded") from error

    def find(self, run: str, name: str) -> SnapshotPath:
        """The snapshot that `name` means: `<kind>/<name>`, or a bare name of any kind.

        Raises:
            RequestError: there is none (404).
        """
        kinds = (SAMPLER, CHECKPOINT)
        prefix, _, rest = name.partition("/")
        candidates = [SnapshotPath(run, prefix, rest)] if rest else [SnapshotPath(run, kind, name) for kind in kinds]
        for path in candidates:
            if self.exists(path) and not self._is_deleted(path):
                return path
        raise RequestError(f"no snapshot {name[:200]!r} of run {run[:80]!r}", 404)

    def delete(self, path: SnapshotPath, in_use: Collection[SnapshotPath]) -> None:
        """Delete a snapshot, or see that it goes as soon as it is out of use.

        Trinity deletes a sampler before its explorers have learnt of the next one: one that is in use, or that may
        still be asked for because it is among the newest, must outlive that.
        """
        with self._lock:
            (self.directory(path) / _DELETED).touch()
            self.sweep(path.run, in_use)

    def set_ttl(self, path: SnapshotPath, ttl_seconds: float | None) -> None:
        """Let a snapshot go after so many seconds from now, or never."""
        with self._lock:
            file = self.directory(path) / "manifest.json"
            expires = None if ttl_seconds is None else time.time() + ttl_seconds
            manifest = json.loads(file.read_text()) | {"expires": expires}
            changed = file.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
            changed.write_text(json.dumps(manifest))
            changed.rename(file)

    def sweep(self, run: str, in_use: Collection[SnapshotPath], spare_deleted: bool = True) -> None:
        """Remove what is over, deleted or without a name, unless it is in use; of samplers that are deleted, and of all
        that has no name, the newest few stay.
        """
        with self._lock:
            entries = sorted(self._entries(run), key=lambda snapshot: snapshot.created, reverse=True)
            spared = {
                snapshot.path
                for kind in (SAMPLER, CHECKPOINT)
                for snapshot in [entry for entry in entries if entry.path.kind == kind][: self.keep]
            }
            for snapshot in entries:
                path, deleted = snapshot.path, self._is_deleted(snapshot.path)
                at_once = _is_over(snapshot) or (deleted and (path.kind == CHECKPOINT or not spare_deleted))
                in_time = (deleted or not snapshot.named) and path not in spared
                if (at_once or in_time) and path not in in_use:
                    shutil.rmtree(self.directory(path), ignore_errors=True)

    def sweep_all(self, in_use: Collection[SnapshotPath]) -> None:
        for run in self._runs():
            self.sweep(run, in_use)

    def _make_room(
        self,
        path: SnapshotPath,
        weights: dict[str, Tensor],
        optimizer: dict[str, Any] | None,
        in_use: Collection[SnapshotPath],
    ) -> None:
        """Raise RequestError (507) if the budget has no room; what is deleted and only spared goes first."""
        tensors = [*weights.values()]
        for state in (optimizer or {}).get("state", {}).values():
            tensors += [value for value in state.values() if isinstance(value, Tensor)]
        needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if self.bytes_used() + needed <= self.budget:
            return
        for run in self._runs():
            self.sweep(run, in_use, spare_deleted=False)
        if (used := self.bytes_used()) + needed > self.budget:
            raise RequestError(
                f"{path} was not saved: it takes {_gigabytes(needed)}, and {self.root} holds {_gigabytes(used)} of the "
                f"{_gigabytes(self.budget)} that it may: delete weights, give them ttl_seconds, or start the server "
                "with more by --disk-budget-gb",
                507,
            )

    def _runs(self) -> list[str]:
        return [entry.name for entry in self.root.iterdir() if is_name(entry.name) and entry.is_dir()]

    def _entries(self, run: str) -> Iterator[Snapshot]:
        """What is on disk of a training run, whoever may still want it."""
        for kind in (SAMPLER, CHECKPOINT):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for entry in (self.root / run / kind).iterdir():
                    if not entry.name.startswith("."):
                        with contextlib.suppress(
                            FileNotFoundError, RequestError
                        ):  # it has just gone, or is no snapshot
                            yield self._look(SnapshotPath(run, kind, entry.name))

    def _look(self, path: SnapshotPath) -> Snapshot:
        """Raises FileNotFoundError if there is no such snapshot. One of an unknown age and purpose counts as named."""
        directory = self.directory(path)
        file = directory / "manifest.json"
        created = file.stat().st_mtime
        try:
            manifest = json.loads(file.read_text())
            known = manifest if isinstance(manifest, dict) else {}
        except ValueError:
            known = {}
        size = sum(each.stat().st_size for each in directory.iterdir())
        return Snapshot(
            path,
            size,
            known.get("created", created),
            known.get("named", True),
            known.get("expires"),
            known.get("user_metadata"),
        )

    def _is_deleted(self, path: SnapshotPath) -> bool:
        return (self.directory(path) / _DELETED).exists()

    def _checked(self, path: SnapshotPath, name: str) -> Path:
        """A file of a snapshot, after a look at whether it is what was written."""
        directory = self.directory(path)
        try:
            manifest = json.loads((directory / "manifest.json").read_text())
            intact = manifest["files"][name] == _fingerprint(directory / name)
        except FileNotFoundError:
            raise RequestError(f"no such weights: {path}", 404) from None
        except (ValueError, KeyError, TypeError):
            intact = False
        if not intact:
            raise RequestError(f"{path} is damaged: {name} is not what was written")
        return directory / name


def _fingerprint(file: Path) -> dict[str, int]:
    size, checksum = 0, 0
    with file.open("rb") as stream:
        while chunk := stream.read(2**20):
            size, checksum = size + len(chunk), zlib.crc32(chunk, checksum)
    return {"bytes": size, "crc32": checksum}


def _is_over(snapshot: Snapshot) -> bool:
    return snapshot.expires is not None and time.time() >= snapshot.expires


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
