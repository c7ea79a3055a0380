"""A Trinity YAML as text and as data: where each key stands, for errors that name lines and edits in place."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.error import YAMLError as RuamelYAMLError
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from trinity_rec.terminal import UsageError

Key = str | int

# Far above any configuration; what is larger would keep a reader busy for minutes, or for ever.
_LARGEST_FILE = 2**20  # bytes
_LARGEST_TREE = 100_000  # values, with what aliases repeat


def dotted(keys: Sequence[Key]) -> str:
    """As OmegaConf writes a path: buffer.explorer_input.eval_tasksets[0].path."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys).removeprefix(".")


@dataclass(frozen=True)
class Document:
    """One YAML file.

    Attributes:
        path: as the user gave it.
        text: its content; line ends as in the file.
        data: what Trinity loads from it (by OmegaConf), interpolations unresolved.
        root: the syntax tree, with positions in `text`.
    """

    path: str
    text: str
    data: dict[str, Any]
    root: MappingNode

    @classmethod
    def read(cls, path: Path) -> Document:
        """Raises UsageError, with file and line, for what is not a readable YAML mapping."""
        try:
            text = path.read_bytes().decode("utf-8")
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path}: not a text file in UTF-8 (byte {error.start})") from error
        return cls.parse(str(path), text)

    @classmethod
    def parse(cls, path: str, text: str) -> Document:
        """Raises UsageError as `read` does."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException
        from yaml import MarkedYAMLError as TrinityMarkedYAMLError
        from yaml import YAMLError as TrinityYAMLError

        if len(text) > _LARGEST_FILE:
            raise UsageError(f"{path}: larger than {_LARGEST_FILE} bytes: not a Trinity configuration")
        try:
            root = YAML(typ="rt", pure=True).compose(io.StringIO(text.removeprefix("\ufeff")))
            if root is not None and _size(root, {}) > _LARGEST_TREE:
                raise ValueError(f"more than {_LARGEST_TREE} values, or an alias that contains itself")
            if not isinstance(root, MappingNode):
                raise UsageError(f"{path}:1: not a Trinity configuration: not a mapping of keys to values")
            data = OmegaConf.to_container(OmegaConf.load(io.StringIO(text.removeprefix("\ufeff"))), resolve=False)
        except UsageError:
            raise
        except (MarkedYAMLError, TrinityMarkedYAMLError) as error:
            mark = error.problem_mark or error.context_mark
            problem = " ".join(str(error.problem or error.context).split())
            raise UsageError(f"{path}:{mark.line + 1 if mark else 1}: not readable as YAML: {problem}") from error
        except RecursionError as error:
            raise UsageError(f"{path}: not readable as YAML: nested too deeply") from error
        except (OmegaConfBaseException, RuamelYAMLError, TrinityYAMLError, OSError, ValueError) as error:
            raise UsageError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from error
        return cls(path, text, data, root)

    def line(self, keys: Sequence[Key]) -> int:
        """The line, from 1, of the key at this path; where it is not written, of the nearest one above that is."""
        node: Node = self.root
        line = 0
        for key in keys:
            found = _child(node, key)
            if found is None:
                break
            line, node = found
        return line + 1


def _size(node: Node, known: dict[int, float]) -> float:
    """How many values the tree has once every alias is written out; infinite where an alias contains itself."""
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is known
        inner = node.value if isinstance(node, SequenceNode) else []
        if isinstance(node, MappingNode):
            inner = [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_size(each, known) for each in inner)
    return known[id(node)]


def _child(node: Node, key: Key) -> tuple[int, Node] | None:
    if isinstance(node, MappingNode):
        for key_node, value_node in node.value:
            if key_node.value == str(key):
                return key_node.start_mark.line, value_node
    elif isinstance(node, SequenceNode) and isinstance(key, int) and key < len(node.value):
        return node.value[key].start_mark.line, node.value[key]
    return None


@dataclass(frozen=True)
class Extent:
    """The whole lines of one key and its value in `Document.text`, from `start` up to `end`; `indent` is the key's."""

    key: str
    start: int
    end: int
    indent: int


def extents(text: str, mapping: MappingNode, end: int | None = None) -> Iterator[Extent]:
    """The extents of a block mapping's keys, in order, up to `end` of the text.

    Comments and blank lines between two keys belong to neither, unless they are indented deeper than the keys: then
    they are the upper one's.
    """
    shift = len(text) - len(text.removeprefix("\ufeff"))
    starts = []
    for key_node, _ in mapping.value:
        mark = key_node.start_mark
        starts.append((key_node.value, mark.index + shift - mark.column, mark.column))
    ends = [start for _, start, _ in starts[1:]] + [len(text) if end is None else end]
    for (key, start, indent), stop in zip(starts, ends, strict=True):
        lines = text[start:stop].splitlines(keepends=True)
        while lines[1:] and _is_between(lines[-1], indent):
            stop -= len(lines.pop())
        yield Extent(key, start, stop, indent)


def _is_between(line: str, indent: int) -> bool:
    content = line.strip()
    if content in ("---", "..."):
        return True
    return not content or (content.startswith("#") and len(line) - len(line.lstrip()) <= indent)
