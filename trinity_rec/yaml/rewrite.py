"""`trinity-rec use`: switch a Trinity YAML to a preset, by its `algorithm:` section alone.

What makes up the objective goes (policy loss, advantage, KL, entropy and their arguments, loss_agg_mode, and a sample
strategy of Trinity's own): the preset says it all. What says how to run it stays, text and comments (repeat_times,
optimizer, a sample strategy of this package, ...). Arguments of upstream's `rec`, or of another preset, stay where they
mean the same in the new preset and differ from its own: a clip range for the same clip mode, say. Every byte outside
the section, and every kept entry in it, stays as it is.
"""

from __future__ import annotations

import copy
import io
import os
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, ScalarNode
from trinity.common.config import AlgorithmConfig

from trinity_rec.plugin.advantage import RECAdvantage
from trinity_rec.plugin.policy_loss import RECPolicyLoss
from trinity_rec.plugin.registries import SAMPLE_STRATEGIES
from trinity_rec.terminal import UsageError, did_you_mean, preset_named
from trinity_rec.yaml.catalogue import scalar
from trinity_rec.yaml.document import Document, Extent, extents
from trinity_rec.yaml.effective import OBJECTIVE_KEYS, STRATEGY_KEYS, effective
from trinity_rec.yaml.translate import ADVANTAGE_ARGS, LOSS_ARGS, NEAREST, announcements, carried, kept_average, nearest


@dataclass(frozen=True)
class Switched:
    """A YAML on a preset: its text, and what to tell the user about it."""

    text: str
    notes: list[str]


def switch(document: Document, preset_name: str, settings: Mapping[tuple[str, ...], Any] | None = None) -> Switched:
    """The document with the `algorithm` section of a preset.

    Args:
        document: a Trinity YAML.
        preset_name: a preset, or `nearest`.
        settings: key path in the section -> value, on top; a path of one argument of the preset is that argument's.

    Raises:
        UsageError: no such preset, or a setting that the preset does not allow.
    """
    old = document.data.get("algorithm") or {}
    if not isinstance(old, dict):
        raise UsageError(f"{document.path}:{document.line(['algorithm'])}: algorithm: not a mapping of keys to values")
    _refuse_misfits(document, old)
    notes = []
    if preset_name == NEAREST:
        preset, args = nearest(old, document.path)
        notes.append(f"nearest preset: {preset.name} ({preset.title})")
    else:
        preset = preset_named(preset_name)
        args = carried(old, preset)
    new: dict[str, Any] = {"algorithm_type": f"trinity_rec.{preset.name}"}
    new |= {key: values for key, values in args.items() if values} | kept_average(old, preset)
    kept = {key: value for key, value in old.items() if key not in new and not _is_replaced(key, old)}
    section = copy.deepcopy({**new, **kept})
    edits = [(full_path(path, tuple(section)), value) for path, value in (settings or {}).items()]
    for path, value in edits:
        _set(section, path, value)
    _refuse_wrong_arguments(section)
    notes += announcements(old, section, preset)
    new = {key: value for key, value in section.items() if key not in kept}
    text = _splice(document, new, list(kept), [(path, value) for path, value in edits if path[0] in kept])
    _verify(document, text, section)
    return Switched(text, notes)


def _refuse_misfits(document: Document, old: Mapping[str, Any]) -> None:
    """What is read of the old section must be of its type; the rest is carried along unread."""
    for key in ("algorithm_type", *OBJECTIVE_KEYS, *STRATEGY_KEYS):
        expected, name = (dict, "a mapping of arguments") if key.endswith("_args") else (str, "a name")
        if old.get(key) is not None and not isinstance(old[key], expected):
            line = document.line(["algorithm", key])
            raise UsageError(f"{document.path}:{line}: algorithm.{key}: {old[key]!r} is not {name}")


def _is_replaced(key: str, old: Mapping[str, Any]) -> bool:
    if key in STRATEGY_KEYS:
        return (old.get("sample_strategy") or "default") in SAMPLE_STRATEGIES
    return key == "algorithm_type" or key in OBJECTIVE_KEYS


def parse_settings(settings: list[str]) -> dict[tuple[str, ...], Any]:
    """`--set` options as key path -> value; values are YAML.

    Raises:
        UsageError: one is not KEY=VALUE.
    """
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise UsageError(f"--set {setting!r} is not KEY=VALUE")
        try:
            loaded = OmegaConf.to_container(OmegaConf.load(io.StringIO(f"value: {value}\n")), resolve=False)
        except Exception as error:
            raise UsageError(f"--set {setting!r}: {value!r} is not a YAML value") from error
        parsed[tuple(key.removeprefix("algorithm.").split("."))] = loaded["value"]
    return parsed


def full_path(path: tuple[str, ...], present: tuple[str, ...]) -> tuple[str, ...]:
    """Where a setting belongs in the section: a bare argument of the loss or the advantage goes under its `_args`.

    Raises:
        UsageError: there is no such key; names the nearest.
    """
    keys = [field.name for field in fields(AlgorithmConfig)]
    if path[0] in keys or (path[0] in present and len(path) > 1):
        return path
    under = {**dict.fromkeys(RECAdvantage.default_args(), ADVANTAGE_ARGS)}
    under |= dict.fromkeys(RECPolicyLoss.default_args(), LOSS_ARGS)
    if len(path) == 1 and path[0] in under:
        return (under[path[0]], path[0])
    raise UsageError(f"--set {'.'.join(path)}: no such key; {did_you_mean(path[0], [*keys, *under])}")


def _set(section: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *parents, last = path
    for depth, key in enumerate(parents, 1):
        section = section.setdefault(key, {})
        if not isinstance(section, dict):
            raise UsageError(f"--set {'.'.join(path)}: {'.'.join(parents[:depth])} is not a mapping")
    section[last] = value


def _refuse_wrong_arguments(section: Mapping[str, Any]) -> None:
    """What the plugin would refuse is refused before anything is written; keys that were wrong before are `check`'s."""
    objective = {key: section[key] for key in (*OBJECTIVE_KEYS, *STRATEGY_KEYS) if key in section}
    try:
        effective({"algorithm_type": section["algorithm_type"], **objective})
    except (ValueError, ImportError) as error:
        raise UsageError(str(error).splitlines()[0]) from error


def _splice(document: Document, new: dict[str, Any], kept: list[str], edits: list[tuple[tuple[str, ...], Any]]) -> str:
    """The text with its algorithm section rewritten in place: kept entries verbatim, new ones where the old were."""
    text = document.text
    newline = "\r\n" if "\r\n" in text else "\n"
    if document.root.flow_style:
        raise UsageError(f"{document.path}:1: the file is one {{…}} mapping; write it as a block to switch it")
    top = {
        extent.key: (extent, node)
        for extent, (_, node) in zip(extents(text, document.root), document.root.value, strict=True)
    }
    if "algorithm" not in top:
        block = _block(new, "  ", newline)
        before = text if not text or text.endswith(("\n", "\r")) else text + newline
        return f"{before}algorithm:{newline}{block}"
    extent, node = top["algorithm"]
    entries, head, tail, indent = _entries(document, extent, node)
    at_first = [key for key in new if key not in entries and key != "algorithm_type"]
    out = [head] if head.endswith(("\n", "\r")) else [head + newline]
    if "algorithm_type" not in entries:
        out.append(_block({key: new[key] for key in ("algorithm_type", *at_first)}, indent, newline))
    for key, (gap, entry) in entries.items():
        out.append(gap)
        if isinstance(new.get(key), dict):
            out.append(_block({key: new[key]}, indent, newline))
        elif key in new or key in kept:  # a scalar keeps the comment behind it
            own = [((key,), new[key])] if key in new else [(path, value) for path, value in edits if path[0] == key]
            out.append(_edited(entry, own, indent, newline) if own else _ended(entry, newline))
        if key == "algorithm_type":
            out.append(_block({key: new[key] for key in at_first}, indent, newline))
    section = "".join(out) + tail
    rest = text[extent.end :]
    if not rest and not text.endswith(("\n", "\r")):
        section = section.removesuffix(newline)
    return text[: extent.start] + section + rest


def _entries(document: Document, extent: Extent, node: Any) -> tuple[dict[str, tuple[str, str]], str, str, str]:
    """The section's entries, each with the comments above it; what stands before and after them; their indent."""
    text = document.text
    if not isinstance(node, MappingNode) or not node.value or node.flow_style:
        # Empty, or in braces: written anew, as a block, with its comments on top.
        data = document.data.get("algorithm") or {}
        newline = "\r\n" if "\r\n" in text else "\n"
        behind, above = _comments(text[extent.start : extent.end])
        head = f"algorithm:{behind}" + "".join(f"{newline}  {comment}" for comment in above)
        return {key: ("", _block({key: value}, "  ", newline)) for key, value in data.items()}, head, "", "  "
    found, parts = {}, list(extents(text, node, extent.end))
    position = parts[0].start
    for entry in parts:
        found[entry.key] = (text[position : entry.start], text[entry.start : entry.end])
        position = entry.end
    return found, text[extent.start : parts[0].start], text[position : extent.end], " " * parts[0].indent


def _comments(section: str) -> tuple[str, list[str]]:
    """The comments of a section in braces: the one behind its end, with the space before it, and those within."""
    behind, within = "", []
    for token in _round_trip().scan(section):
        after, before = getattr(token, "_comment", None) or (None, None)
        within += [each.value.strip() for each in before or ()]
        if after is not None:
            behind = "  " + after.value.strip().splitlines()[0]
    return behind, within


def _ended(entry: str, newline: str) -> str:
    return entry if entry.endswith(("\n", "\r")) else entry + newline


def _block(values: Mapping[str, Any], indent: str, newline: str) -> str:
    """New entries as YAML, indented."""
    if not values:
        return ""
    return _indented(_dumped(dict(values)), indent, newline)


def _edited(entry: str, edits: list[tuple[tuple[str, ...], Any]], indent: str, newline: str) -> str:
    """An entry with values set in it; its comments and order stay."""
    text = textwrap.dedent(entry).replace("\r\n", "\n")
    for path, value in edits:
        try:
            old = _scalar_at(_round_trip().compose(text), path)
            tree = _round_trip().load(text)
        except MarkedYAMLError as error:
            raise UsageError(f"--set {'.'.join(path)}: {path[0]} uses an anchor; edit it in the file") from error
        if old is not None and not isinstance(value, dict | list):
            text = text[: old.start_mark.index] + scalar(value) + text[old.end_mark.index :]
        else:
            _set(tree, path, value)
            text = _dumped(tree)
    return _indented(text, indent, newline)


def _scalar_at(node: Any, path: tuple[str, ...]) -> ScalarNode | None:
    for key in path:
        values = [value for name, value in node.value if name.value == key] if isinstance(node, MappingNode) else []
        if not values:
            return None
        node = values[0]
    # An anchor stands before the scalar, a block scalar ends after its last line: neither is one token.
    return node if isinstance(node, ScalarNode) and not node.anchor and node.style in (None, "'", '"') else None


def _round_trip() -> YAML:
    yaml = YAML(typ="rt", pure=True)
    yaml.preserve_quotes = True
    yaml.width = 10_000
    return yaml


def _dumped(tree: Any) -> str:
    stream = io.StringIO()
    _round_trip().dump(tree, stream)
    return stream.getvalue()


def _indented(block: str, indent: str, newline: str) -> str:
    return "".join(f"{indent}{line}{newline}" if line else newline for line in block.splitlines())


def _verify(document: Document, text: str, section: Mapping[str, Any]) -> None:
    """Text was cut and pasted; what Trinity loads from it must be what was meant, and the rest what it was."""
    try:
        data = Document.parse(document.path, text).data
    except UsageError as error:
        data = {"algorithm": error}
    if data != {**document.data, "algorithm": dict(section)}:
        raise UsageError(
            f"{document.path}:{document.line(['algorithm'])}: the algorithm section shares anchors or merges with the "
            "rest of the file; write it out to switch it"
        )


def write(target: Path, text: str) -> None:
    """Replace the file as a whole, so that a failure leaves the old one; its permissions and a link to it stay."""
    target = target.resolve()
    scrap = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        scrap.write_bytes(text.encode())
        if target.exists():
            shutil.copymode(target, scrap)
        os.replace(scrap, target)
    except OSError as error:
        raise UsageError(f"{target}: {error.strerror or error}") from error
