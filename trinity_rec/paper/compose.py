"""One YAML of many parts: the example run, the task, the setting, the algorithm, and what the user sets on top.

Later parts win. The parts are few and each says only what it changes, so that a fact stands in one place: the run on
eight GPUs in examples/rec_gsm8k/gsm8k.yaml, a task in configs/paper/<task>.yaml, the rest in `experiments`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, InterpolationResolutionError, OmegaConfBaseException

from trinity_rec.paper.experiments import Experiment
from trinity_rec.shipped import example, shipped
from trinity_rec.terminal import UsageError, did_you_mean
from trinity_rec.yaml.document import Document, Key

BENCH_RUNNERS = 128  # the authors' number


@dataclass(frozen=True)
class Run:
    """An experiment with one seed: what one `trinity run` trains.

    Attributes:
        root: Trinity's `checkpoint_root_dir`; each run has a directory of its own below it. None leaves it to the
            environment, as the example does.
        overrides: dotted key -> value, set last.
    """

    experiment: Experiment
    seed: int
    root: Path | None = None
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return f"{self.experiment.name}-seed{self.seed}"

    @property
    def directory(self) -> Path:
        """Where Trinity puts checkpoints, logs and metrics: `checkpoint_root_dir/project/group/name`."""
        if self.root is None:
            raise ValueError("a run without a root has no directory")
        return self.root / self.name

    def training(self) -> DictConfig:
        """The YAML that trains, in `mode: both`."""
        return compose(self)

    def bench(self) -> DictConfig:
        """The YAML that evaluates the initial model and every checkpoint afterwards, in `mode: bench`.

        As the authors did it: all GPUs for rollouts, 128 runners, weights by checkpoint.
        """
        config = compose(self)
        model = config.explorer.rollout_model
        engines = max(1, config.cluster.node_num * config.cluster.gpu_per_node // model.tensor_parallel_size)
        changes = {
            "mode": "bench",
            "synchronizer.sync_method": "checkpoint",
            "explorer.rollout_model.engine_num": engines,
            "explorer.runner_per_model": max(1, BENCH_RUNNERS // engines),
        }
        overridden = dict(self.overrides)
        for key, value in changes.items():
            if key not in overridden or key in ("mode", "synchronizer.sync_method"):
                OmegaConf.update(config, key, value)
        return config


def compose(run: Run) -> DictConfig:
    """The training YAML of a run, interpolations unresolved.

    Raises:
        UsageError: an override's key is not one of Trinity's, or its value does not fit.
    """
    experiment, algorithm = run.experiment, run.experiment.algorithm
    section: dict[str, Any] = {"algorithm_type": f"trinity_rec.{algorithm.preset}"}
    if algorithm.policy_loss:
        section["policy_loss_fn_args"] = dict(algorithm.policy_loss)
    config = OmegaConf.merge(
        dict.fromkeys(("mode", "project", "group", "name")),  # these first, as in Trinity's own examples
        *(OmegaConf.load(path) for path in bases(experiment)),
        {
            "project": experiment.task.name,
            "group": experiment.setting.name,
            "name": f"{algorithm.name}-seed{run.seed}",
            **({} if run.root is None else {"checkpoint_root_dir": str(run.root)}),
            "continue_from_checkpoint": True,
            "synchronizer": experiment.setting.synchronizer(),
            "algorithm": section,
            "explorer": {"rollout_model": {"seed": run.seed}},
        },
    )
    assert isinstance(config, DictConfig)
    if algorithm.rate_factor != 1:
        config.algorithm.optimizer.lr = algorithm.rate_factor * float(config.algorithm.optimizer.lr)
    for key, value in run.overrides:
        try:
            OmegaConf.update(config, key, value, merge=False)
        except (OmegaConfBaseException, ValueError, TypeError) as error:
            raise UsageError(f"--set {key}: {str(error).splitlines()[0]}") from error
    return config


def bases(experiment: Experiment) -> list[Path]:
    """The files that an experiment's YAML is merged of, the first one the most general."""
    own = [shipped("configs") / "paper" / f"{name}.yaml" for name in dict.fromkeys(["gsm8k", experiment.task.name])]
    return [example("rec_gsm8k/gsm8k.yaml"), *own]


def ours(experiment: Experiment) -> list[str]:
    """The dotted keys that the task's file marks as our choice, the paper not telling them."""
    path = bases(experiment)[-1]
    document = Document.read(path)
    lines = document.text.splitlines()
    marked = (keys for keys, _ in _leaves(document.data) if "# ours" in lines[document.line(keys) - 1])
    return [".".join(map(str, keys)) for keys in marked]


def parsed(settings: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    """`key=value` as dotted key and value, read as YAML: `trainer.total_steps=3`.

    Raises:
        UsageError: there is no `=`, or the value is not YAML.
    """
    found = []
    for setting in settings:
        key, sign, value = setting.partition("=")
        if not sign or not key:
            raise UsageError(f"--set {setting}: write key=value, as trainer.save_interval=10")
        try:
            found.append((key.strip(), OmegaConf.create(f"value: {value}").value))
        except Exception as error:
            raise UsageError(f"--set {setting}: the value is not YAML: {str(error).splitlines()[0]}") from error
    return tuple(found)


def typed(config: DictConfig, name: str) -> DictConfig:
    """The configuration with the types of Trinity's own; variables of the environment stay open.

    Raises:
        UsageError: an unknown key or a value of another type; names the key, and the nearest that there is.
    """
    from trinity.common.config import Config

    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), config)
    except ConfigKeyError as error:
        known = list(error.parent_node or ())
        raise UsageError(
            f"{name}: Trinity has no setting {error.full_key}; {did_you_mean(str(error.key), known)}"
        ) from error
    except OmegaConfBaseException as error:
        place = f"{name}: {error.full_key}" if error.full_key else name
        raise UsageError(f"{place}: {str(error).splitlines()[0]}") from error
    assert isinstance(merged, DictConfig)
    return merged


def validated(config: DictConfig, name: str) -> Any:
    """Trinity's `Config`, with every variable of the environment filled in.

    Raises:
        UsageError: as `typed` does, or a variable that is not set; says which.
    """
    try:
        return OmegaConf.to_object(typed(config, name))
    except InterpolationResolutionError as error:
        variable = str(error).partition("Environment variable '")[2].partition("'")[0]
        if not variable:
            raise UsageError(f"{name}: {error.full_key}: {str(error).splitlines()[0]}") from error
        hint = " (configs/paper/README.md says what it holds)" if variable == "TRINITY_TASKSET_PATH" else ""
        raise UsageError(
            f"{name}: set the environment variable {variable}{hint}, or --set {error.full_key}=…"
        ) from error


def header(run: Run) -> str:
    """What a written YAML says of itself."""
    experiment = run.experiment
    lines = [
        f"# {run.name}: {experiment.task.model} on {experiment.task.title}, {experiment.setting.title},",
        f"# {experiment.algorithm.title}; figure {' and '.join(experiment.figures)} of arXiv 2509.24203.",
        f"# Composed by `trinity-rec paper write {experiment.name} --seed {run.seed}`.",
    ]
    chosen = ours(experiment)
    if chosen:
        lines.append("# Our choice, since the paper does not tell it:")
        lines += [f"#   {key}" for key in chosen]
    return "\n".join(lines) + "\n"


def _leaves(value: Any, keys: tuple[Key, ...] = ()) -> Iterator[tuple[tuple[Key, ...], Any]]:
    if isinstance(value, Mapping):
        for key, each in value.items():
            yield from _leaves(each, (*keys, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _leaves(each, (*keys, index))
    else:
        yield keys, value
