"""Snapshots of weights on disk: `tinker://<run>/<kind>/<name>` is the directory `<root>/<run>/<kind>/<name>`.

A snapshot is written next to its place and renamed into it, so it is there whole or not at all, and what is read is
checked against the sizes and checksums in its manifest. Retention is a sweep after each save: of each run and kind
the newest few stay, and whatever is still in use; the rest goes.
"""

import fcntl
import json
import re
import shutil
import threading
import uuid
import zlib
from collections.abc import Collection
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
_REPLACED = ".replaced-"  # a snapshot on its way out, put back if its successor did not make it


@dataclass(frozen=True)
class SnapshotPath:
    """A snapshot's name. Every part is a plain file name, so that no path leaves the root."""

    run: str
    kind: str
    name: str

    def __post_init__(self) -> None:
        if self.kind not in (SAMPLER, CHECKPOINT):
            raise RequestError(f"unknown kind of weights: {self.kind!r}")
        for part in (self.run, self.name):
            if not _PART.fullmatch(part) or len(part.encode()) > 200:
                raise RequestError(f"not a valid name for weights: {part[:80]!r}")

    @classmethod
    def parse(cls, uri: str) -> "SnapshotPath":
        parts = uri.removeprefix("tinker://").split("/")
        if not uri.startswith("tinker://") or len(parts) != 3:
            raise RequestError(f"not a path of the form tinker://<run>/<kind>/<name>: {uri[:200]!r}")
        return cls(*parts)

    def __str__(self) -> str:
        return f"tinker://{self.run}/{self.kind}/{self.name}"


class WeightStore:
    """All snapshots under one root directory, which belongs to one server at a time.

    Args:
        root: made if it is not there.
        keep: how many of the newest samplers, and of the newest checkpoints, stay for each training run; at least 2,
            because a client that dies between saving and noting the new path still points to the one before.

    Raises:
        ServeError: `root` cannot be used, or another server uses it.
    """

    def __init__(self, root: Path, keep: int):
        if keep < 2:
            raise ServeError(f"keep must be at least 2 snapshots, got {keep}")
        self.root, self.keep = Path(root).expanduser().resolve(), keep
        self._condemned: set[SnapshotPath] = set()
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

    def close(self) -> None:
        self._owner.close()

    def directory(self, path: SnapshotPath) -> Path:
        directory = self.root / path.run / path.kind / path.name
        if directory.resolve() != directory:  # a symbolic link on the way
            raise RequestError(f"not inside the weights directory: {path}")
        return directory

    def exists(self, path: SnapshotPath) -> bool:
        return (self.directory(path) / "manifest.json").is_file()

    def save(
        self,
        path: SnapshotPath,
        weights: dict[str, Tensor],
        optimizer: dict[str, Any] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Write a snapshot, all of it or nothing.

        Raises:
            RequestError: the name is taken and `overwrite` is not set, or the disk does not take it (507).
        """
        place = self.directory(path)
        if place.exists() and not overwrite and path not in self._condemned:
            raise RequestError(f"{path} exists already")
        writing = place.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            writing.mkdir(parents=True)
            weights = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in weights.items()}
            save_file(weights, writing / "weights.safetensors")
            if optimizer is not None:
                torch.save(optimizer, writing / "optimizer.pt")
            files = {file.name: _fingerprint(file) for file in sorted(writing.iterdir())}
            (writing / "manifest.json").write_text(json.dumps({"version": 1, "files": files}))
            with self._lock:
                replaced = place.with_name(f"{_REPLACED}{path.name}")
                if place.exists():
                    place.rename(replaced)
                writing.rename(place)
                shutil.rmtree(replaced, ignore_errors=True)
                self._condemned.discard(path)
                if path.kind == SAMPLER:
                    self._newest = (path, weights)  # most likely what is sampled from next
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
            if self.exists(path) and path not in self._condemned:
                return path
        raise RequestError(f"no snapshot {name[:200]!r} of run {run[:80]!r}", 404)

    def delete(self, path: SnapshotPath, in_use: Collection[SnapshotPath]) -> None:
        """Delete a snapshot, or see that it goes as soon as it is out of use.

        Trinity deletes a sampler before its explorers have learnt of the next one: one that is in use, or that may
        still be asked for because it is among the newest, must outlive that.
        """
        with self._lock:
            self._condemned.add(path)
            self.sweep(path.run, in_use)

    def sweep(self, run: str, in_use: Collection[SnapshotPath]) -> None:
        """Remove what is neither among the newest `keep` of its kind in this run nor in use."""
        with self._lock:
            for kind in (SAMPLER, CHECKPOINT):
                folder = self.root / run / kind
                if not folder.is_dir():
                    continue
                finished = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
                finished.sort(key=lambda entry: entry.stat().st_mtime_ns, reverse=True)
                for entry in finished[self.keep :]:
                    path = SnapshotPath(run, kind, entry.name)
                    if path not in in_use:
                        shutil.rmtree(entry)
                        self._condemned.discard(path)

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
