"""`trinity-rec check`: what a Trinity YAML will train, and what is wrong or doubtful in it, before anything starts.

No Ray, GPU, model or network is touched. What is an error is decided by others: the types of Trinity's configuration
(by OmegaConf), the plugin's own check (`PresetAlgorithm.check_config`) and those of Trinity's validators that need none
of the above. Doubts, settings that run but are probably not meant, are judged in `doubts.py`. The exit code is 1 with
any error, 0 with doubts alone.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import enum
import functools
import inspect
import re
import tempfile
import typing
from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from trinity.common import config_validator
from trinity.common.config import Config

from trinity_rec.plugin import registries
from trinity_rec.plugin.arguments import shortened
from trinity_rec.presets import PRESETS
from trinity_rec.terminal import UsageError, closest, did_you_mean
from trinity_rec.yaml.document import Document, Key, dotted
from trinity_rec.yaml.doubts import doubts
from trinity_rec.yaml.effective import trinity_warnings
from trinity_rec.yaml.source import unreadable_buffer
from trinity_rec.yaml.summary import Summary, summarise
from trinity_rec.yaml.translate import BLOCKS, nearest

ERROR, DOUBT = "error", "doubt"


@dataclasses.dataclass(frozen=True)
class Finding:
    """One error or doubt.

    Attributes:
        level: "error" or "doubt".
        line: where, from 1.
        key: the dotted key that it is about.
        message: what is wrong.
        suggestion: what to do.
    """

    level: str
    line: int
    key: str
    message: str
    suggestion: str = ""

    def __str__(self) -> str:
        text = f"{self.key}: {self.message}" if self.key else self.message
        return f"{text}; {self.suggestion}" if self.suggestion else text


@dataclasses.dataclass
class Report:
    """What `check` found; `summary` is None where errors leave nothing to sum up."""

    file: str
    summary: Summary | None
    findings: list[Finding]

    @property
    def errors(self) -> list[Finding]:
        return [each for each in self.findings if each.level == ERROR]

    @property
    def doubts(self) -> list[Finding]:
        return [each for each in self.findings if each.level == DOUBT]

    def as_json(self) -> dict[str, Any]:
        return {
            "file": self.file,
            "ok": not self.errors,
            "summary": None if self.summary is None else dataclasses.asdict(self.summary),
            "errors": [dataclasses.asdict(each) for each in self.errors],
            "doubts": [dataclasses.asdict(each) for each in self.doubts],
        }


def unreadable(path: str, error: UsageError) -> Report:
    place = re.match(re.escape(path) + r"(?::(\d+))?: (.*)", str(error))
    line, message = place.groups() if place else (None, str(error))
    return Report(path, None, [Finding(ERROR, int(line or 1), "", message)])


def check(document: Document) -> Report:
    """Everything `trinity-rec check` knows about a YAML.

    Raises:
        UsageError: it is not a Trinity configuration at all.
    """
    return _Check(document).run()


class _Check:
    """One run over a document; findings gather as it goes."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.findings: list[Finding] = []
        self.unset: list[tuple[Key, ...]] = []  # keys whose environment variable is not set here

    def add(self, level: str, keys: tuple[Key, ...], message: str, suggestion: str = "") -> None:
        if level == ERROR and _is_number_in_quotes(value := _get(self.document.data, keys)):
            message, suggestion = f"{value!r} is text, not a number", "unquote it"
        texts = map(shortened, (dotted(keys), message, suggestion))
        finding = Finding(level, self.document.line(keys), *texts)
        if finding not in self.findings:
            self.findings.append(finding)

    def run(self) -> Report:
        data = self._readable_data()
        self._resolve(data)
        config, summary = self._loaded(data), None
        ours = None if config is None else self._resolve_algorithm(config)
        if ours is not None:
            data.setdefault("algorithm", {})["algorithm_type"] = ours
            config = self._plugin_check(data)
        elif config is not None:
            _fill_in_defaults(config)
        if config is not None:
            self._bind_foreign_blocks(config)
            self._trinity_checks(config)
            summary = summarise(config)
            if ours is not None:
                for doubt in doubts(config, self.document.data, summary):
                    self.add(DOUBT, doubt.keys, doubt.message, doubt.suggestion)
        order = {ERROR: 0, DOUBT: 1}
        self.findings.sort(key=lambda each: (order[each.level], each.line))
        return Report(self.document.path, summary, self.findings)

    # Types and names, by Trinity's configuration classes.

    def _readable_data(self) -> dict[str, Any]:
        if not set(self.document.data) & {field.name for field in dataclasses.fields(Config)}:
            raise UsageError(
                f"{self.document.path}:1: not a Trinity configuration: none of its keys is one of Trinity's "
                "(algorithm, model, buffer, …)"
            )
        return self._readable(copy.deepcopy(self.document.data), Config)

    def _readable(self, value: Any, hint: Any, keys: tuple[Key, ...] = ()) -> Any:
        """`value` without what OmegaConf cannot read as `hint`. Each of these is an error; OmegaConf itself often names
        no key (of a list, of a mapping that is none), so its parts are tried one by one."""
        hint, parts, hints = hint if value is None else _without_none(hint), value, {}
        is_interpolation = isinstance(value, str) and "${" in value and not dataclasses.is_dataclass(hint)
        if is_interpolation or _is_readable(value, hint):
            return value
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            hints = typing.get_type_hints(hint)
            for key in set(value) - set(hints):
                self.add(ERROR, (*keys, key), "unknown key", did_you_mean(str(key), hints))
        elif isinstance(value, typing.get_origin(hint) or ()) and typing.get_args(hint):
            parts = dict(enumerate(value)) if isinstance(value, list) else value
            hints = dict.fromkeys(parts, typing.get_args(hint)[-1])
        else:
            self.add(ERROR, keys, f"{value!r} has the wrong type", f"expected {_in_words(hint)}")
            return _MISFIT
        fitting = {key: self._readable(parts[key], hints[key], (*keys, key)) for key in parts if key in hints}
        kept = {key: each for key, each in fitting.items() if each is not _MISFIT}
        return list(kept.values()) if isinstance(value, list) else kept

    def _resolve(self, data: dict[str, Any]) -> None:
        """Interpolations become values; what depends on an environment that is not here gets its default."""
        try:
            merged = OmegaConf.merge(_blank(), data)
        except OmegaConfBaseException:  # an interpolation in place of a mapping is resolved at once
            merged = OmegaConf.create(data)
        for keys, value in reversed(list(_interpolations(data))):
            try:
                resolved = OmegaConf.select(merged, dotted(keys), throw_on_missing=True)
            except OmegaConfBaseException as error:
                reason = str(error).splitlines()[0]
                if unset := re.search(r"Environment variable '(\w+)' not found", reason):
                    self.add(DOUBT, keys, f"environment variable {unset[1]} is not set here", "set it for the run")
                    self.unset.append(keys)
                else:
                    self.add(ERROR, keys, f"{value}: {reason}")
                _drop(data, keys)
            else:
                if not OmegaConf.is_config(resolved):
                    _get(data, keys[:-1])[keys[-1]] = resolved

    def _loaded(self, data: dict[str, Any]) -> Config | None:
        """The configuration as Trinity loads it."""
        try:
            return OmegaConf.to_object(OmegaConf.merge(_blank(), data))
        except OmegaConfBaseException as error:
            self.add(ERROR, tuple(parsed_key(error.full_key or "")), str(error).splitlines()[0])
            return None

    # The algorithm, by the plugin.

    def _resolve_algorithm(self, config: Config) -> str | None:
        """The preset's full name; None where the YAML names another algorithm, which then is said."""
        keys, name = ("algorithm", "algorithm_type"), config.algorithm.algorithm_type
        plain, upstream = name.removeprefix("trinity_rec."), registries.ALGORITHMS.names()
        if name == "rec":
            preset, args = nearest({key: getattr(config.algorithm, key) for key in ("algorithm_type", *BLOCKS)})
            differing = ", ".join(f"{key} {value}" for values in args.values() for key, value in values.items())
            said = "upstream's rec, whose defaults load a reference model for a KL term of 0.001"
            hint = f"`trinity-rec use nearest {self.document.path}` switches to {preset.name}"
            self.add(DOUBT, keys, said, f"{hint} with {differing}" if differing else hint)
        elif plain in PRESETS:
            if plain == name:
                said = f"{name} is known by its plain name only with --plugin-dir"
                self.add(DOUBT, keys, said, f"trinity_rec.{name} works everywhere")
            return f"trinity_rec.{plain}"
        elif name in upstream:
            pass  # Trinity's own: its blocks' arguments are held against their constructors
        elif "." in name and not name.startswith("trinity_rec."):
            problem = _import_problem(name, type(registries.ALGORITHMS.get("grpo")))
            if problem is not None:
                self.add(ERROR, keys, problem, "the dotted path of an AlgorithmType, or see `trinity-rec list`")
                config.algorithm.algorithm_type = type(config.algorithm)().algorithm_type
        else:
            near = closest(plain, PRESETS)
            known = [*(f"trinity_rec.{preset}" for preset in PRESETS), *upstream]
            hint = f"did you mean trinity_rec.{near}?" if near else did_you_mean(name, known)
            self.add(ERROR, keys, f"no algorithm {shortened(repr(name), 100)}", hint)
        return None

    def _plugin_check(self, data: dict[str, Any]) -> Config | None:
        """Run the plugin's check until it passes: each refused setting is noted, then dropped from `data`."""
        self._known_functions(data["algorithm"])
        algorithm = registries.ALGORITHMS.get(data["algorithm"]["algorithm_type"])
        with trinity_warnings() as warnings:
            while (config := self._loaded(data)) is not None:
                try:
                    algorithm.check_config(config)
                    break
                except (ValueError, TypeError, ImportError) as error:
                    keys, message, suggestion = self._placed(str(error))
                    self.add(ERROR, keys, message, suggestion)
                    if not any(_drop(data, keys[:depth]) for depth in range(len(keys), 1, -1)):
                        return self._loaded(data)
        for warning in dict.fromkeys(warnings):
            keys, message, suggestion = self._placed(warning)
            self.add(DOUBT, keys, message, suggestion)
        buffer = config and config.buffer.trainer_input.experience_buffer
        if config and config.mode == "train" and buffer and (problem := unreadable_buffer(buffer.storage_type)):
            self.add(ERROR, ("buffer", "trainer_input", "experience_buffer", "storage_type"), problem)
        return config

    def _bind_foreign_blocks(self, config: Config) -> None:
        """Hold the arguments that Trinity will pass to a block that is not ours against its constructor."""
        algorithm = config.algorithm
        for key, registry in registries.BLOCKS.items():
            name = getattr(algorithm, key)
            if name is None or name.startswith("trinity_rec."):
                continue
            try:
                block = registry.get(name)
            except (ValueError, ImportError, AttributeError):  # Trinity's own check says so in its place
                continue
            if block is None:
                continue
            if getattr(algorithm, f"{key}_args") is None:  # then Trinity passes the block's own
                setattr(algorithm, f"{key}_args", block.default_args())
            args = getattr(algorithm, f"{key}_args")
            passed = [*args, *_PASSED_BY_TRINITY.get(key, ())]
            parameters = inspect.signature(block).parameters
            stars = [each.name for each in parameters.values() if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
            takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
            for argument in () if takes_any else [each for each in passed if each not in parameters]:
                place = (f"{key}_args", argument) if argument in args else (key,)
                said = "" if argument in args else f" {argument}, which Trinity passes"
                hint = did_you_mean(argument, parameters)
                self.add(ERROR, ("algorithm", *place), f"{name} takes no such argument{said}", hint)
            for argument in [each for each in parameters if each not in (*passed, *stars)]:
                if parameters[argument].default is inspect.Parameter.empty:
                    self.add(ERROR, ("algorithm", key), f"{name} needs {argument}", f"{key}_args: {{{argument}: …}}")

    def _known_functions(self, section: dict[str, Any]) -> None:
        """Names that Trinity's registries do not have, and classes that cannot be imported but ours: see the plugin."""
        for key, registry in registries.BLOCKS.items():
            name = str(section.get(key) or "")
            is_plugins = name.startswith("trinity_rec.") and key in (
                "policy_loss_fn",
                "advantage_fn",
                "sample_strategy",
            )
            if not name or is_plugins or registry.knows(name):
                continue
            if (problem := _import_problem(name)) is not None:
                self.add(ERROR, ("algorithm", key), problem, did_you_mean(name, registry.names()))
                del section[key]

    def _placed(self, message: str) -> tuple[tuple[Key, ...], str, str]:
        """A one-line message of the plugin's check as key, text and suggestion; it begins with the key it is about."""
        key = "".join(re.findall(r"^[a-z_]+(?:\.[\w-]+|\[\d+\])+", message))
        rest = message[len(key) :].removeprefix(":").strip()
        keys = tuple(parsed_key(key)) or ("algorithm",)
        if unknown := re.match(r"unknown argument '(\w+)'", rest):
            keys = (*keys, unknown[1])
            rest = rest.replace(unknown[0], "unknown argument", 1)
        text, _, suggestion = rest.removeprefix("=").partition("; ")
        return keys, text, suggestion

    # The rest, by those of Trinity's validators that need nothing but the configuration.

    def _trinity_checks(self, config: Config) -> None:
        if self.errors:
            return
        attempt = copy.deepcopy(config)
        attempt.continue_from_checkpoint = True
        if attempt.model.lora_configs and attempt.model.lora_configs[0].path is None:
            attempt.model.lora_configs[0].path = "made by Trinity from the model"
        is_asked = attempt.cluster.node_num and attempt.cluster.gpu_per_node and not attempt.model.tinker.enable
        with tempfile.TemporaryDirectory() as checkpoints, trinity_warnings():
            attempt.checkpoint_root_dir = attempt.checkpoint_job_dir = checkpoints
            for kind, section in _VALIDATORS.items():
                if kind == "RayCluster" and not is_asked:  # else it asks a Ray cluster
                    continue
                validator = getattr(config_validator, f"{kind}ConfigValidator")()
                try:
                    # The rest of the model's check reads its files.
                    (validator._check_model_len if kind == "Model" else validator.validate)(attempt)
                except (ValueError, AssertionError, RuntimeError, ImportError, KeyError, TypeError, OSError) as error:
                    message = " ".join(str(error).split()) or type(error).__name__
                    if isinstance(error, TypeError) and (self.errors or self.unset):
                        continue  # Trinity stumbles over what is missing, which is said already
                    if any(str(keys[-1]) in message for keys in self.unset):
                        continue
                    if "path is not configured" in message:
                        kind = "eval taskset" if message.startswith("Eval") else "taskset"
                        message, keys = f"this {kind} has no path", self._without_path(kind)
                    else:
                        keys = self._mentioned(message, section)
                    self.add(ERROR, keys, message)

    @property
    def errors(self) -> list[Finding]:
        return [each for each in self.findings if each.level == ERROR]

    def _without_path(self, kind: str) -> tuple[Key, ...]:
        """The first taskset of the file that Trinity misses a path in."""
        place = ("buffer", "explorer_input")
        several = "eval_tasksets" if kind == "eval taskset" else "tasksets"
        listed = _get(self.document.data, (*place, several)) or []
        for index, taskset in enumerate(listed if isinstance(listed, list) else ()):
            if not _get(taskset, ("path",)):
                return (*place, several, index)
        return (*place, "taskset")

    def _mentioned(self, message: str, section: str) -> tuple[Key, ...]:
        """The key that one of Trinity's messages names, as far as it is written in the file; else the section."""
        for name in re.findall(r"`?([a-z_]+(?:\.[a-z_]+)*)`?", message):
            parts = tuple(name.split("."))
            for keys in (parts, (section, *parts)):
                if len(keys) > 1 and _get(self.document.data, keys) is not None:
                    return keys
        return (section,)


_MISFIT = object()
# Those of Trinity's validators that need nothing but the configuration, and the section that each is about.
_VALIDATORS = {
    "Global": "mode",
    "Monitor": "monitor",
    "Algorithm": "algorithm",
    "Model": "model",
    "RayCluster": "cluster",
    "Synchronizer": "synchronizer",
    "Interval": "explorer",
    "Explorer": "explorer",
    "Buffer": "buffer",
    "Trainer": "trainer",
}
# What Trinity passes to the constructors of blocks beside their arguments.
_PASSED_BY_TRINITY = {"policy_loss_fn": ("backend",), "sample_strategy": ("buffer_config",)}


def _is_number_in_quotes(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


@functools.cache
def _slot(hint: Any) -> Any:
    """A configuration of one key, `it`, of this type."""
    return OmegaConf.structured(dataclasses.make_dataclass("Slot", [("it", hint)]))


def _is_readable(value: Any, hint: Any) -> bool:
    try:
        OmegaConf.merge(_slot(hint), {"it": value})
    except (OmegaConfBaseException, AttributeError):  # the latter for a number in place of one of an enumeration
        return False
    return True


@functools.cache
def _blank() -> Any:
    """Trinity's configuration without any content, to merge with."""
    return OmegaConf.structured(Config)


def parsed_key(key: str) -> Iterator[Key]:
    """The other way round."""
    for part in re.findall(r"[^.\[\]]+", key):
        yield int(part) if part.isdigit() else part


def _without_none(hint: Any) -> Any:
    options = [each for each in typing.get_args(hint) if each is not type(None)]
    return options[0] if len(options) == 1 and type(None) in typing.get_args(hint) else hint


def _in_words(hint: Any) -> str:
    """A type of Trinity's configuration."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if hint in words:
        return words[hint]
    if isinstance(hint, enum.EnumMeta):
        return f"one of {', '.join(each.value for each in hint)}"
    if dataclasses.is_dataclass(hint) or dict in (hint, typing.get_origin(hint)):
        return "a mapping of keys to values"
    parts = " or ".join(map(_in_words, typing.get_args(hint)))
    return f"a list, each {parts}" if typing.get_origin(hint) is list else parts or str(hint)


def _fill_in_defaults(config: Config) -> None:
    """Complete another algorithm's section for the summary; what is wrong with it, Trinity's validators say."""
    attempt = copy.deepcopy(config)
    with trinity_warnings(), contextlib.suppress(Exception):
        config_validator.AlgorithmConfigValidator().validate(attempt)
        config.algorithm = attempt.algorithm


def _interpolations(value: Any, keys: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], str]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _interpolations(each, (*keys, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _interpolations(each, (*keys, index))
    elif isinstance(value, str) and "${" in value:
        yield keys, value


def _get(value: Any, keys: tuple[Key, ...]) -> Any:
    for key in keys:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and isinstance(key, int) and key < len(value):
            value = value[key]
        else:
            return None
    return value


def _drop(data: Any, keys: tuple[Key, ...]) -> bool:
    """Remove a setting; False where it is not given."""
    parent = _get(data, keys[:-1])
    given = range(len(parent)) if isinstance(parent, list) else parent if isinstance(parent, dict) else ()
    if keys[-1] not in given:
        return False
    del parent[keys[-1]]
    return True


def _import_problem(name: str, kind: type = object) -> str | None:
    """Why this dotted path is not that of an instance of `kind`; None if it is."""
    module, _, attribute = name.rpartition(".")
    if not module:
        return f"no {name!r}"
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        return f"{name} cannot be imported: {next(iter(str(error).splitlines()), type(error).__name__)}"
    return None if isinstance(found, kind) else f"{name} is {type(found).__name__}, not an algorithm"
