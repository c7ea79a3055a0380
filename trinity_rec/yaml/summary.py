"""What a configuration will train: the first half of what `trinity-rec check` says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trinity_rec.formula import gradient
from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS, Preset
from trinity_rec.shaping import Shaping
from trinity_rec.yaml.catalogue import scalar
from trinity_rec.yaml.notation import readable

if TYPE_CHECKING:
    from trinity.common.config import AlgorithmConfig, Config

TRAINING_MODES = ("both", "colocate", "train")
ROLLOUT_MODES = ("both", "colocate", "explore")


@dataclass(frozen=True)
class Summary:
    """What is optimised, on which data, and what it takes.

    Attributes:
        algorithm_type: after merging, so with the suffix that loads a reference model where one is needed.
        policy_loss_fn_args, advantage_fn_args: after merging, without what the chosen modes do not read.
        staleness: the least and the most updates between sampling a rollout and training on it; None where the
            configuration does not bound it.
        responses_per_step: what the explorer makes in one of its steps.
        train_batch_size: what the trainer reads in one of its.
    """

    mode: str
    algorithm_type: str
    title: str
    gradient: str
    policy_loss_fn: str | None
    policy_loss_fn_args: dict[str, Any]
    advantage_fn: str | None
    advantage_fn_args: dict[str, Any]
    loss_agg_mode: str | None
    sample_strategy: str | None
    sample_strategy_args: dict[str, Any]
    kl_loss: str
    reference_model: bool
    off_policy: str
    staleness: tuple[int, int] | None
    prompts_per_step: int
    responses_per_prompt: int
    responses_per_step: int
    train_batch_size: int
    memory: str

    def lines(self) -> Iterator[tuple[str, str]]:
        """As label and text."""
        yield "algorithm", f"{self.algorithm_type} ({self.title})" if self.title else self.algorithm_type
        if self.gradient:
            yield "gradient", self.gradient
        yield "policy loss", _call(self.policy_loss_fn, self.policy_loss_fn_args)
        yield "advantage", _call(self.advantage_fn, self.advantage_fn_args)
        yield "average", self.loss_agg_mode or "Trinity's default"
        yield "sampling", _call(self.sample_strategy, self.sample_strategy_args)
        yield "KL term", self.kl_loss
        yield "reference", "loaded, and run every step" if self.reference_model else "no reference model"
        yield "off-policy", self.off_policy
        rollouts = f"{self.prompts_per_step} prompts x {self.responses_per_prompt} responses"
        made, read = f"{rollouts} = {self.responses_per_step} a step", f"trains on {self.train_batch_size} a step"
        if self.mode not in ROLLOUT_MODES:
            made = "none are made: they come from the experience buffer"
        yield "rollouts", f"{made}; {read}" if self.mode in TRAINING_MODES else made
        yield "memory", self.memory


def summarise(config: Config) -> Summary:
    """Sum up a configuration whose algorithm section is complete (`PresetAlgorithm.check_config`) or not ours."""
    from trinity_rec.plugin.registries import ALGORITHMS

    algorithm, buffer = config.algorithm, config.buffer
    name = algorithm.algorithm_type
    preset = PRESETS.get(name.removeprefix("trinity_rec.").removesuffix("_with_reference"))
    preset = preset if name.startswith("trinity_rec.") else None
    known = preset is not None or name in ALGORITHMS
    reference = bool(known and ALGORITHMS.get(name).use_reference)
    loss_args, advantage_args = dict(algorithm.policy_loss_fn_args or {}), dict(algorithm.advantage_fn_args or {})
    if algorithm.policy_loss_fn == "trinity_rec.RECPolicyLoss":
        loss_args = Objective.read_only(loss_args)
    if algorithm.advantage_fn == "trinity_rec.RECAdvantage":
        advantage_args = Shaping.read_only(advantage_args)
    loss_args.pop("loss_agg_mode", None)
    strategy_args = dict(algorithm.sample_strategy_args or {})
    strategy_args.pop("backend", None)
    responses = buffer.batch_size * algorithm.repeat_times
    bounds = staleness(config)
    return Summary(
        mode=config.mode,
        algorithm_type=name,
        title="" if preset is None else preset.title,
        gradient=_gradient_of(algorithm, preset, loss_args, advantage_args),
        policy_loss_fn=algorithm.policy_loss_fn,
        policy_loss_fn_args=loss_args,
        advantage_fn=algorithm.advantage_fn,
        advantage_fn_args=advantage_args,
        loss_agg_mode=algorithm.loss_agg_mode,
        sample_strategy=algorithm.sample_strategy,
        sample_strategy_args=strategy_args,
        kl_loss=_kl(config),
        reference_model=reference,
        off_policy=_off_policy(config, bounds),
        staleness=bounds,
        prompts_per_step=buffer.batch_size,
        responses_per_prompt=algorithm.repeat_times,
        responses_per_step=responses,
        train_batch_size=buffer.train_batch_size or responses,
        memory=_memory(config, reference),
    )


def _gradient_of(
    algorithm: AlgorithmConfig, preset: Preset | None, loss_args: Mapping[str, Any], advantage_args: Mapping[str, Any]
) -> str:
    from trinity_rec.plugin.algorithm import ADVANTAGE, POLICY_LOSS

    loss, advantage = algorithm.policy_loss_fn, algorithm.advantage_fn
    if preset is None:
        return f"that of {loss}, which is not this package's" if "." in (loss or "") else ""
    if loss != POLICY_LOSS:
        return f"that of {loss}, not the preset's"
    text = readable(_gradient(preset, loss_args, advantage_args if advantage == ADVANTAGE else preset.advantage))
    return text if advantage == ADVANTAGE else f"{text}, with A by {advantage}"


def _gradient(preset: Preset, policy_loss: Mapping[str, Any], advantage: Mapping[str, Any]) -> str:
    """Of the arguments as they are, which may have made another algorithm of the preset; and the numbers that differ
    from the preset's.
    """
    beside = [
        f"{name}={scalar(value)}"
        for block, args, row in ((Objective, policy_loss, preset.policy_loss), (Shaping, advantage, preset.advantage))
        for name, value in args.items()
        if name in block.model_fields and block.read_under(name) and value != {**block.default_args(), **row}[name]
    ]
    text = gradient(policy_loss, advantage)
    return f"{text}; and {', '.join(beside)}" if beside else text


def staleness(config: Config) -> tuple[int, int] | None:
    """How many updates old rollouts are when they are trained on, least and most, where the configuration fixes it.

    Under `sync_style: fixed` the explorer makes the batches of steps 1 to offset + m from the initial weights, and the
    next m from the weights after each further m steps (m = sync_interval): from offset to offset + m - 1 updates.
    """
    from trinity.common.constants import SyncStyle

    sync = config.synchronizer
    if config.mode not in ("both", "colocate") or sync.sync_style != SyncStyle.FIXED:
        return None
    replay = getattr(config.buffer.trainer_input.experience_buffer, "replay_buffer", None)
    if replay is not None and replay.enable:
        return None
    if config.algorithm.sample_strategy == "trinity_rec.OfflineSampleStrategy":
        return None
    most = sync.sync_offset + (sync.explorer_sync_interval or sync.sync_interval) - 1
    steps = config.trainer.total_steps or config.buffer.total_steps
    if steps:
        most = min(most, steps - 1)
    return min(sync.sync_offset, most), most


def _off_policy(config: Config, bounds: tuple[int, int] | None) -> str:
    from trinity.common.constants import SyncStyle

    sync = config.synchronizer
    setting = f"sync_style {sync.sync_style.value}, sync_interval {sync.sync_interval}, sync_offset {sync.sync_offset}"
    if config.mode not in TRAINING_MODES:
        return f"mode {config.mode} trains nothing"
    if config.mode == "train":
        return "offline: trains on what is in the experience buffer, however old"
    if config.algorithm.sample_strategy == "trinity_rec.OfflineSampleStrategy":
        return "offline: the first batches, over and over"
    if bounds is None and sync.sync_style == SyncStyle.FIXED:
        return f"not bounded: a replay buffer reuses rollouts ({setting})"
    if bounds is None:
        return f"depends on how fast explorer and trainer are ({setting})"
    least, most = bounds
    if most == 0:
        return f"on-policy ({setting})"
    steps = config.trainer.total_steps or config.buffer.total_steps
    ever = sync.sync_offset + (sync.explorer_sync_interval or sync.sync_interval)
    if steps and steps <= ever:
        return f"offline: all {steps} steps train on rollouts of the initial weights ({setting})"
    return f"each rollout is {least} to {most} updates old when it is trained on ({setting})"


def _kl(config: Config) -> str:
    algorithm = config.algorithm
    if algorithm.kl_loss_fn == "none":
        return "none"
    if algorithm.kl_loss_fn is None:
        return "Trinity's default for this algorithm"
    return f"{algorithm.kl_loss_fn}, coefficient {(algorithm.kl_loss_fn_args or {}).get('kl_coef', 0.001)}"


def _memory(config: Config, reference: bool) -> str:
    if config.model.tinker.enable:
        return "none here: the model lies with the Tinker service"
    if config.mode not in TRAINING_MODES:
        return "no trainer"
    parameters, source = _parameters(config.model.model_path)
    adapters = bool(config.model.lora_configs)
    a_parameter = 2 if adapters else 16
    what = "frozen weights in bfloat16, the adapters come on top" if adapters else "weights, gradients and Adam"
    extra = "; the reference model adds its weights and a forward pass a step" if reference else ""
    if parameters is None:
        size = f"{a_parameter} bytes a parameter"
    else:
        size = f"about {a_parameter * parameters / 1e9:.3g} GB ({parameters / 1e9:.3g}B parameters by {source})"
    return f"trainer: {size} over its GPUs for {what}, without activations{extra}"


def _parameters(model_path: str) -> tuple[float | None, str]:
    """How many parameters a model has, from its files where they are on this machine, else from its name."""
    weights = [path.stat().st_size for path in Path(model_path).glob("*.safetensors")] if model_path else []
    if weights:
        return sum(weights) / 2, "its files, at two bytes each"
    size = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z0-9])", Path(model_path).name)
    if size is None:
        return None, ""
    return float(size[1]) * {"b": 1e9, "m": 1e6}[size[2].lower()], "its name"


def _call(name: str | None, args: dict[str, Any]) -> str:
    given = ", ".join(f"{key}={scalar(value)}" for key, value in args.items())
    return f"{name or 'Trinity default'}({given})"
