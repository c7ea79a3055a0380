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
import functools
import inspect
import re
import tempfile
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trinity_rec.plugin import registries
from trinity_rec.presets import PRESETS
from trinity_rec.terminal import UsageError, closest, did_you_mean
from trinity_rec.yaml.document import Document, Key, dotted
from trinity_rec.yaml.effective import trinity_warnings
from trinity_rec.yaml.source import unreadable_buffer
from trinity_rec.yaml.summary import Summary, summarise
from trinity_rec.yaml.translate import BLOCKS, nearest

if typing.TYPE_CHECKING:
    from trinity.common.config import Config

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
    place, line = re.match(re.escape(path) + r"(?::(\d+))?: (.*)", str(error)), 1
    message = str(error) if place is None else place[2]
    if place is not None and place[1]:
        line = int(place[1])
    return Report(path, None, [Finding(ERROR, line, "", message)])


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
        from trinity_rec.plugin.arguments import shortened

        if level == ERROR and _is_number_in_quotes(value := _get(self.document.data, keys)):
            message, suggestion = f"{value!r} is text, not a number", "unquote it"
        texts = map(shortened, (dotted(keys), message, suggestion))
        finding = Finding(level, self.document.line(keys), *texts)
        if finding not in self.findings:
            self.findings.append(finding)

    def run(self) -> Report:
        data = self._typed_data()
        config = self._config(data)
        summary = None
        if config is not None:
            ours = self._resolve_algorithm(config)
            if ours is not None:
                self._plugin_check(config)
                buffer = config.buffer.trainer_input.experience_buffer
                if config.mode == "train" and buffer and (problem := unreadable_buffer(buffer.storage_type)):
                    self.add(ERROR, ("buffer", "trainer_input", "experience_buffer", "storage_type"), problem)
            else:
                _fill_in_defaults(config)
            self._bind_foreign_blocks(config)
            self._trinity_checks(config)
            summary = summarise(config)
            if ours is not None:
                from trinity_rec.yaml.doubts import doubts

                for doubt in doubts(config, self.document.data, summary):
                    self.add(DOUBT, doubt.keys, doubt.message, doubt.suggestion)
        order = {ERROR: 0, DOUBT: 1}
        self.findings.sort(key=lambda each: (order[each.level], each.line))
        return Report(self.document.path, summary, self.findings)

    # Types and names, by Trinity's configuration classes.

    def _typed_data(self) -> dict[str, Any]:
        from trinity.common.config import Config

        known = [field.name for field in dataclasses.fields(Config)]
        if not set(self.document.data) & set(known):
            raise UsageError(
                f"{self.document.path}:1: not a Trinity configuration: none of its keys is one of Trinity's "
                "(algorithm, model, buffer, …)"
            )
        return self._typed(self.document.data, Config, ())

    def _typed(self, value: Any, hint: Any, keys: tuple[Key, ...], owner: Any = None) -> Any:
        """`value` without what does not fit its type annotation; each misfit is an error."""
        hint = _without_none(hint, value)
        if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
            hints, kept = typing.get_type_hints(hint), {}
            for key, each in value.items():
                if key not in hints:
                    self.add(ERROR, (*keys, key), "unknown key", did_you_mean(str(key), hints))
                    continue
                fitting = self._typed(each, hints[key], (*keys, key), owner=hint)
                if fitting is not _MISFIT:
                    kept[key] = fitting
            return kept
        origin, inner = typing.get_origin(hint), typing.get_args(hint)
        if origin is list and inner and isinstance(value, list) and dataclasses.is_dataclass(inner[0]):
            fitting = [self._typed(each, inner[0], (*keys, i)) for i, each in enumerate(value)]
            return [each for each in fitting if each is not _MISFIT]
        if origin is dict and inner and isinstance(value, Mapping) and dataclasses.is_dataclass(inner[1]):
            fitting = {key: self._typed(each, inner[1], (*keys, key)) for key, each in value.items()}
            return {key: each for key, each in fitting.items() if each is not _MISFIT}
        return value if self._fits(value, keys, owner, hint) else _MISFIT

    def _fits(self, value: Any, keys: tuple[Key, ...], owner: Any, hint: Any) -> bool:
        from omegaconf.errors import OmegaConfBaseException

        try:
            if owner is None or dataclasses.is_dataclass(hint):
                if not isinstance(value, Mapping):
                    raise TypeError
            else:
                _schema(owner)[keys[-1]] = value
        except (OmegaConfBaseException, TypeError, ValueError, KeyError, AttributeError) as error:
            is_no_member = isinstance(error, KeyError) and isinstance(value, str)  # of an enumeration
            expected = str(error) if is_no_member else f"expected {_type_name(hint)}"
            self.add(ERROR, keys, f"{value!r} has the wrong type", expected)
            return False
        return True

    def _config(self, data: dict[str, Any]) -> Config | None:
        """The configuration as Trinity loads it; what depends on an environment that is not here keeps its default."""
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        try:
            merged = OmegaConf.merge(_blank(), data)
        except OmegaConfBaseException:  # an interpolation in place of a mapping is resolved at once
            merged = OmegaConf.create(data)
        for keys, value in list(_interpolations(data)):
            try:
                OmegaConf.select(merged, dotted(keys), throw_on_missing=True)
            except OmegaConfBaseException as error:
                environment = re.search(r"Environment variable '(\w+)' not found", str(error))
                if environment:
                    self.add(
                        DOUBT, keys, f"environment variable {environment[1]} is not set here", "set it for the run"
                    )
                    self.unset.append(keys)
                elif any(dotted(keys) in value for keys in self.unset):
                    self.unset.append(keys)  # it refers to what is not set here
                else:
                    self.add(ERROR, keys, f"{value}: {str(error).splitlines()[0]}")
                _drop(data, keys)
        try:
            return OmegaConf.to_object(OmegaConf.merge(_blank(), data))
        except OmegaConfBaseException as error:
            keys = tuple(parsed_key(error.full_key or ""))
            self.add(ERROR, keys, str(error).splitlines()[0])
            return None

    # The algorithm, by the plugin.

    def _resolve_algorithm(self, config: Config) -> str | None:
        """The preset's name; None where the YAML names another algorithm, which then is said."""
        from trinity_rec.plugin.arguments import shortened

        keys = ("algorithm", "algorithm_type")
        name = config.algorithm.algorithm_type
        plain = name.removeprefix("trinity_rec.")
        upstream = registries.ALGORITHMS.names()
        if plain in PRESETS and name != "rec":
            if plain == name:
                self.add(
                    DOUBT,
                    keys,
                    f"{name} is known by its plain name only with --plugin-dir",
                    f"trinity_rec.{name} works everywhere",
                )
                config.algorithm.algorithm_type = f"trinity_rec.{name}"
            return plain
        if name == "rec":
            given = {key: getattr(config.algorithm, key) for key in ("algorithm_type", *BLOCKS)}
            preset, args = nearest(given)
            differing = ", ".join(f"{key} {value}" for values in args.values() for key, value in values.items())
            self.add(
                DOUBT,
                keys,
                "upstream's rec, whose defaults load a reference model for a KL term of 0.001",
                f"`trinity-rec use nearest {self.document.path}` switches to {preset.name}"
                + (f" with {differing}" if differing else ""),
            )
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

    def _plugin_check(self, config: Config) -> None:
        """Run the plugin's check until it passes: each refused setting is noted and then left at its default."""
        algorithm = registries.ALGORITHMS.get(config.algorithm.algorithm_type)
        self._known_functions(config)
        defaults = type(config)()
        with trinity_warnings() as warnings:
            while True:
                attempt = copy.deepcopy(config)
                try:
                    algorithm.check_config(attempt)
                except (ValueError, TypeError, ImportError) as error:
                    keys, message, suggestion = self._placed(str(error))
                    self.add(ERROR, keys, message, suggestion)
                    if not any(_reset(config, defaults, keys[:depth]) for depth in range(len(keys), 1, -1)):
                        return
                else:
                    break
            algorithm.check_config(config)
        for warning in dict.fromkeys(warnings):
            keys, message, suggestion = self._placed(warning)
            self.add(DOUBT, keys, message, suggestion)

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
            parameters = dict(list(inspect.signature(block.__init__).parameters.items())[1:])
            named = [
                each.name for each in parameters.values() if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
            ]
            takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
            for argument in () if takes_any else passed:
                if argument not in named:
                    place = ("algorithm", f"{key}_args", argument) if argument in args else ("algorithm", key)
                    said = "" if argument in args else f" {argument}, which Trinity passes"
                    self.add(ERROR, place, f"{name} takes no such argument{said}", did_you_mean(argument, named))
            for argument in named:
                if parameters[argument].default is inspect.Parameter.empty and argument not in passed:
                    self.add(ERROR, ("algorithm", key), f"{name} needs {argument}", f"{key}_args: {{{argument}: …}}")

    def _known_functions(self, config: Config) -> None:
        """Names that Trinity's registries do not have, and classes that cannot be imported."""
        for key, registry in registries.BLOCKS.items():
            name = getattr(config.algorithm, key)
            if name is None or registry.knows(name):
                continue
            problem = _import_problem(name)
            if problem is not None:
                near = closest(name.removeprefix("trinity_rec."), registry.names())
                own = did_you_mean(name, _own_blocks()) if name.startswith("trinity_rec.") else None
                hint = own or (f"did you mean {near}?" if near else f"known: {', '.join(registry.names())}")
                self.add(ERROR, ("algorithm", key), problem, hint)
                setattr(config.algorithm, key, None)

    def _placed(self, message: str) -> tuple[tuple[Key, ...], str, str]:
        """A one-line message of the plugin's check as key, text and suggestion; it begins with the key it is about."""
        match = re.match(r"[a-z_]+(?:\.[\w-]+|\([^)]*\))+", message)
        key = match[0] if match else ""
        rest = message[len(key) :].removeprefix(":").strip()
        unknown = re.match(r"unknown argument '(\w+)'", rest)
        keys = self._with_taskset_index(tuple(parsed_key(key)), key)
        if unknown:
            keys = (*keys, unknown[1])
            rest = rest.replace(unknown[0], "unknown argument", 1)
        text, _, suggestion = rest.partition("; ")
        if text.startswith("="):
            text = text.removeprefix("=")
        return keys or ("algorithm",), text, suggestion

    def _with_taskset_index(self, keys: tuple[Key, ...], key: str) -> tuple[Key, ...]:
        """The plugin names a taskset by its name or path; in the YAML it may stand in a list."""
        named = re.search(r"taskset\(([^)]*)\)", key)
        tasksets = _get(self.document.data, ("buffer", "explorer_input", "tasksets"))
        if named is None or not isinstance(tasksets, list):
            return keys
        for index, taskset in enumerate(tasksets):
            if named[1] in (_get(taskset, ("name",)), _get(taskset, ("path",))):
                return (*keys[:2], "tasksets", index, *keys[3:])
        return keys

    # The rest, by those of Trinity's validators that need nothing but the configuration.

    def _trinity_checks(self, config: Config) -> None:
        if self.errors:
            return
        from trinity.common import config_validator as trinity

        attempt = copy.deepcopy(config)
        attempt.continue_from_checkpoint = True
        if attempt.model.lora_configs and attempt.model.lora_configs[0].path is None:
            attempt.model.lora_configs[0].path = "made by Trinity from the model"
        has_cluster = attempt.cluster.node_num and attempt.cluster.gpu_per_node
        validators: list[tuple[Any, str, Callable[..., None]]] = [
            (trinity.GlobalConfigValidator, "mode", lambda each: each.validate(attempt)),
            (trinity.MonitorConfigValidator, "monitor", lambda each: each.validate(attempt)),
            (trinity.AlgorithmConfigValidator, "algorithm", lambda each: each.validate(attempt)),
            (trinity.ModelConfigValidator, "model", lambda each: each._check_model_len(attempt)),
            (trinity.SynchronizerConfigValidator, "synchronizer", lambda each: each.validate(attempt)),
            (trinity.IntervalConfigValidator, "explorer", lambda each: each.validate(attempt)),
            (trinity.ExplorerConfigValidator, "explorer", lambda each: each.validate(attempt)),
            (trinity.BufferConfigValidator, "buffer", lambda each: each.validate(attempt)),
            (trinity.TrainerConfigValidator, "trainer", lambda each: each.validate(attempt)),
        ]
        if has_cluster and not attempt.model.tinker.enable:  # else it asks a Ray cluster
            validators.insert(4, (trinity.RayClusterConfigValidator, "cluster", lambda each: each.validate(attempt)))
        with tempfile.TemporaryDirectory() as checkpoints, trinity_warnings():
            attempt.checkpoint_root_dir = attempt.checkpoint_job_dir = checkpoints
            for validator, section, validate in validators:
                try:
                    validate(validator())
                except (ValueError, AssertionError, RuntimeError, ImportError, KeyError, TypeError, OSError) as error:
                    message = " ".join(str(error).split()) or type(error).__name__
                    if any(str(keys[-1]) in message or isinstance(error, TypeError) for keys in self.unset):
                        continue  # it comes from the environment, and is doubted already
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
def _schema(dataclass: type) -> Any:
    """Checks the type of what is assigned to its keys."""
    from omegaconf import OmegaConf

    return OmegaConf.structured(dataclass)


@functools.cache
def _blank() -> Any:
    """Trinity's configuration without any content, to merge with."""
    from omegaconf import OmegaConf
    from trinity.common.config import Config

    return OmegaConf.structured(Config)


def parsed_key(key: str) -> Iterator[Key]:
    """The other way round."""
    for part in re.findall(r"[^.\[\]()]+(?:\([^)]*\))?", key):
        name = part.split("(")[0]
        yield int(name) if name.isdigit() else name


def _without_none(hint: Any, value: Any) -> Any:
    options = [each for each in typing.get_args(hint) if each is not type(None)]
    is_optional = len(options) == 1 and type(None) in typing.get_args(hint)
    return options[0] if is_optional and value is not None else hint


def _type_name(hint: Any) -> str:
    import enum

    if dataclasses.is_dataclass(hint) or typing.get_origin(hint) is dict or hint is dict:
        return "a mapping of keys to values"
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return f"one of {', '.join(each.value for each in hint)}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    options = [each for each in typing.get_args(hint) if each is not type(None)]
    if typing.get_origin(hint) is list:
        return f"a list, each {_type_name(options[0])}"
    if options:
        return " or ".join(map(_type_name, options))
    return names.get(hint, str(hint))


def _fill_in_defaults(config: Config) -> None:
    """Complete another algorithm's section for the summary; what is wrong with it, Trinity's validators say."""
    from trinity.common.config_validator import AlgorithmConfigValidator

    attempt = copy.deepcopy(config)
    with trinity_warnings(), contextlib.suppress(Exception):
        AlgorithmConfigValidator().validate(attempt)
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


def _drop(data: Any, keys: tuple[Key, ...]) -> None:
    parent = _get(data, keys[:-1]) if len(keys) > 1 else data
    if isinstance(parent, dict):
        parent.pop(keys[-1], None)
    elif isinstance(parent, list):
        parent[keys[-1]] = None


def _reset(config: Any, defaults: Any, keys: tuple[Key, ...]) -> bool:
    """Give a setting of the configuration its default; False where there is no such setting."""
    for key in keys[:-1]:
        if isinstance(key, int):
            config, defaults = config[key], type(config[key])()
        else:
            config, defaults = getattr(config, key, None), getattr(defaults, key, None)
    last = str(keys[-1])
    if isinstance(config, dict):
        return config.pop(last, _MISFIT) is not _MISFIT
    if getattr(config, last, None) in (None, getattr(defaults, last, None)):
        return False
    setattr(config, last, getattr(defaults, last, None))
    return True


def _import_problem(name: str, kind: type = object) -> str | None:
    """Why this dotted path is not that of an instance of `kind`; None if it is."""
    from importlib import import_module

    module, _, attribute = name.rpartition(".")
    if not module:
        return f"no {name!r}"
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        return f"{name} cannot be imported: {next(iter(str(error).splitlines()), type(error).__name__)}"
    return None if isinstance(found, kind) else f"{name} is {type(found).__name__}, not an algorithm"


def _own_blocks() -> list[str]:
    import trinity_rec

    return [f"trinity_rec.{name}" for name in trinity_rec.__all__ if name[0].isupper()]
