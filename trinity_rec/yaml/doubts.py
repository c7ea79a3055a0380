"""Settings that run but are probably not meant: the second half of what `trinity-rec check` says.

Each rule looks at the completed configuration and at what the YAML itself gives, and yields its doubts. A new one is a
function under `RULES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trinity_rec.declared import Declared
from trinity_rec.objective import Objective
from trinity_rec.shaping import Shaping
from trinity_rec.yaml.document import Key
from trinity_rec.yaml.summary import ROLLOUT_MODES, TRAINING_MODES, Summary

if TYPE_CHECKING:
    from trinity.common.config import Config


@dataclass(frozen=True)
class Doubt:
    """One doubtful setting: the path of the key, what may go wrong, and what to do."""

    keys: tuple[Key, ...]
    message: str
    suggestion: str = ""


@dataclass(frozen=True)
class Case:
    """What a rule looks at.

    Attributes:
        config: completed by the plugin's check.
        given: the `algorithm` section as the YAML has it.
        loss, advantage: the arguments after merging; empty where another loss or advantage function is in their place.
        summary: for how far off-policy the run is.
    """

    config: Config
    given: Mapping[str, Any]
    loss: Mapping[str, Any]
    advantage: Mapping[str, Any]
    summary: Summary

    @property
    def off_policy(self) -> str:
        """What makes the run off-policy; empty where it is on-policy."""
        if self.config.mode not in TRAINING_MODES or (self.summary.staleness or (0, 1))[1] == 0:
            return ""
        if self.summary.staleness is None:
            return "rollouts of unbounded age"
        return f"rollouts up to {self.summary.staleness[1]} updates old"


def doubts(config: Config, data: Mapping[str, Any], summary: Summary) -> Iterator[Doubt]:
    """All doubts about a configuration on one of this package's presets; `data` is the YAML's own content."""
    from trinity_rec.plugin.algorithm import ADVANTAGE, POLICY_LOSS

    algorithm = config.algorithm
    section = data.get("algorithm")
    case = Case(
        config,
        section if isinstance(section, Mapping) else {},
        (algorithm.policy_loss_fn_args or {}) if algorithm.policy_loss_fn == POLICY_LOSS else {},
        (algorithm.advantage_fn_args or {}) if algorithm.advantage_fn == ADVANTAGE else {},
        summary,
    )
    for rule in RULES:
        yield from rule(case)


def _unbounded_importance_weights(case: Case) -> Iterator[Doubt]:
    if case.off_policy and case.loss and case.loss["clip_mode"] == "none" and "sampling" in case.loss["weight"]:
        yield Doubt(
            ("algorithm", "policy_loss_fn_args", "weight"),
            f"importance weights without clipping have unbounded variance on {case.off_policy}",
            "clip_mode: one-side bounds them (rec_oneside_is)",
        )


def _unbounded_update(case: Case) -> Iterator[Doubt]:
    loss = case.loss
    if not (case.off_policy and loss and loss["clip_mode"] == "none" and loss["weight"] == "none"):
        return
    if loss["regularizer"] == "none" or loss["regularizer_coef"] == 0:
        yield Doubt(
            ("algorithm", "algorithm_type"),
            f"neither clipping nor a regulariser bounds the update on {case.off_policy}: REINFORCE collapses there",
            "rec_oneside_nois clips, rep_opmd regularises; or synchronizer.sync_interval: 1",
        )


def _groups(case: Case) -> Iterator[Doubt]:
    if case.config.mode not in ROLLOUT_MODES or not case.advantage:
        return
    keys, size = ("algorithm", "repeat_times"), case.config.algorithm.repeat_times
    if size == 1:
        yield Doubt(
            keys,
            "1: a group of one response has nothing to compare, so every advantage is 0",
            "repeat_times: 8, as in the paper",
        )
    elif size == 2 and case.advantage["drop"] == "balance":
        yield Doubt(
            keys,
            "2: a group of two never has more negatives than positives, so drop: balance drops nothing",
            "repeat_times: 8, as in the paper",
        )


def _kl_without_term(case: Case) -> Iterator[Doubt]:
    given, section = case.given, "algorithm"
    named = given.get("kl_loss_fn")
    coefficient = _mapping(given.get("kl_loss_fn_args")).get("kl_coef")
    if coefficient and named == "none":
        yield Doubt(
            (section, "kl_loss_fn_args", "kl_coef"),
            f"{coefficient} has no effect: kl_loss_fn is none",
            "kl_loss_fn: k2 adds the term and loads a reference model",
        )
    elif named not in (None, "none") and coefficient == 0:
        yield Doubt(
            (section, "kl_loss_fn"),
            f"{named} with coefficient 0 adds no KL term; no reference model is loaded for it",
            "kl_loss_fn: none says the same",
        )
    if given.get("kl_penalty_fn") not in (None, "none"):
        yield Doubt(
            (section, "kl_penalty_fn"),
            "has no effect: rewards become advantages before the trainer sees them",
            "kl_loss_fn adds a KL term to the loss",
        )
    if given.get("entropy_loss_fn_args") and case.config.algorithm.entropy_loss_fn == "none":
        yield Doubt(
            (section, "entropy_loss_fn_args"),
            "has no effect: entropy_loss_fn is none",
            "entropy_loss_fn: default adds the term",
        )


def _ignored_arguments(case: Case) -> Iterator[Doubt]:
    from trinity_rec.plugin.sample_strategy import strategy_named

    algorithm = case.config.algorithm
    strategy = strategy_named(algorithm.sample_strategy)
    blocks: list[tuple[str, Mapping[str, Any], type[Declared]]] = [
        ("policy_loss_fn_args", case.loss, Objective),
        ("advantage_fn_args", case.advantage, Shaping),
    ]
    if strategy is not None:
        blocks.append(("sample_strategy_args", algorithm.sample_strategy_args or {}, strategy.Arguments))
    for key, effective, block in blocks:
        for name in _mapping(case.given.get(key)):
            if name in effective and not block.is_read(name, effective):
                mode, values = (first := block.read_under(name)[0]).mode, first.values
                setting = f"{mode}: {_yaml(effective.get(mode))}"
                yield Doubt(
                    ("algorithm", key, name),
                    f"ignored under {setting}",
                    f"remove it, or set {mode}: {' or '.join(map(_yaml, values))}",
                )
    if case.loss and case.loss["regularizer"] != "none" and case.loss["regularizer_coef"] == 0:
        yield Doubt(
            ("algorithm", "policy_loss_fn_args", "regularizer_coef"),
            f"regularizer: {case.loss['regularizer']} has no effect with a coefficient of 0",
            "regularizer_coef: 0.1",
        )


def _replaced_parts(case: Case) -> Iterator[Doubt]:
    for key, part in (("policy_loss_fn", case.loss), ("advantage_fn", case.advantage)):
        if not part:
            name = getattr(case.config.algorithm, key)
            yield Doubt(
                ("algorithm", key),
                f"{name} stands in place of the preset's own",
                f"without {key} the preset is whole",
            )


def _sequence_clip_range(case: Case) -> Iterator[Doubt]:
    if not case.loss or case.loss["clip_mode"] != "gspo-one-side":
        return
    for name in ("epsilon_low", "epsilon_high"):
        if case.loss[name] >= 0.05:
            yield Doubt(
                ("algorithm", "policy_loss_fn_args", name),
                f"{case.loss[name]} hardly ever clips a sequence ratio, which is a mean over tokens",
                "3e-4 and 4e-4 are rec_gspo_nois's",
            )


def _truncated_sampling(case: Case) -> Iterator[Doubt]:
    if case.config.mode not in TRAINING_MODES:
        return
    for name, neutral in (("top_p", (1.0,)), ("top_k", (-1, 0)), ("repetition_penalty", (1.0,))):
        value = getattr(case.config.model, name)
        if value not in neutral:
            yield Doubt(
                ("model", name),
                f"{value}: rollouts do not come from the policy whose logprobs the trainer computes",
                f"{name}: {neutral[0]}",
            )


def _recomputed_logprobs(case: Case) -> Iterator[Doubt]:
    if not case.config.algorithm.bypass_old_logprobs and not case.config.model.tinker.enable:
        yield Doubt(
            ("algorithm", "bypass_old_logprobs"),
            "false: the ratio then compares with the trainer's weights at the start of the step, not with the policy "
            "that sampled, and nothing corrects for stale rollouts",
            "bypass_old_logprobs: true",
        )
    if case.given.get("rollout_correction"):
        yield Doubt(
            ("algorithm", "rollout_correction"),
            "is verl's own correction, which Trinity's trainer does not apply to this loss",
            "clip_mode and weight correct for off-policy rollouts",
        )


def _rounded_weights(case: Case) -> Iterator[Doubt]:
    from trinity.common.constants import SyncMethod

    config, model = case.config, case.config.explorer.rollout_model
    sent = config.synchronizer.sync_method in (SyncMethod.NCCL, SyncMethod.CHECKPOINT)
    if config.mode == "both" and config.trainer.trainer_type == "verl" and sent and model.dtype == "float32":
        method = config.synchronizer.sync_method.value
        yield Doubt(
            ("synchronizer", "sync_method"),
            f"{method}: verl rounds the weights to bfloat16 as it sends them, so float32 rollouts come from a policy "
            "that is not quite the trainer's: kl_k1 is about 1e-4 on fresh rollouts (docs/main_road.md)",
            "sync_method: memory sends them as they are",
        )


def _balance_of_rollouts(case: Case) -> Iterator[Doubt]:
    from trinity.common.constants import SyncStyle

    config = case.config
    if config.mode not in ("both", "colocate") or config.synchronizer.sync_style != SyncStyle.FIXED:
        return
    sync = config.synchronizer
    made = case.summary.responses_per_step * (sync.explorer_sync_interval or sync.sync_interval)
    read = case.summary.train_batch_size * (sync.trainer_sync_interval or sync.sync_interval)
    numbers = f"between two syncs the explorer makes {made} responses and the trainer reads {read}"
    if read > made:
        yield Doubt(
            ("buffer", "train_batch_size"),
            f"the trainer starves: {numbers}",
            "train_batch_size: batch_size * repeat_times",
        )
    elif read < made:
        yield Doubt(
            ("buffer", "train_batch_size"),
            f"rollouts pile up and grow older: {numbers}",
            "train_batch_size: batch_size * repeat_times",
        )


def _strategies(case: Case) -> Iterator[Doubt]:
    algorithm = case.config.algorithm
    args, section = algorithm.sample_strategy_args or {}, ("algorithm", "sample_strategy_args")
    limit, ages = args.get("max_staleness"), case.summary.staleness
    if limit is not None and ages is not None and limit < ages[1]:
        trained = max(limit - ages[0] + 1, 0)
        yield Doubt(
            (*section, "max_staleness"),
            f"{limit} leaves out all but {trained} of every {ages[1] - ages[0] + 1} batches: rollouts "
            f"are {ages[0]} to {ages[1]} updates old",
            f"max_staleness: {ages[1]}, or a smaller sync_interval",
        )
    if algorithm.sample_strategy == "trinity_rec.InformativeSampleStrategy" and args.get("refill"):
        yield Doubt(
            (*section, "refill"),
            "true reads more than a batch a step: the explorer must make that much more",
            "a larger buffer.batch_size, or refill: false",
        )


def _data_that_nobody_reads(case: Case) -> Iterator[Doubt]:
    trainer, strategy = case.config.buffer.trainer_input, case.config.algorithm.sample_strategy or ""
    if trainer.auxiliary_buffers and strategy.startswith("trinity_rec."):
        yield Doubt(
            ("buffer", "trainer_input", "auxiliary_buffers"),
            f"{', '.join(trainer.auxiliary_buffers)}: {strategy} reads the experience buffer alone",
            "remove them, or name a sample_strategy that mixes them in",
        )
    explorer = case.config.buffer.explorer_input
    places = [(("default_workflow_type",), explorer.default_workflow_type)]
    if explorer.taskset is not None:
        places.append((("taskset", "default_workflow_type"), explorer.taskset.default_workflow_type))
    places += [
        (("tasksets", index, "default_workflow_type"), each.default_workflow_type)
        for index, each in enumerate(explorer.tasksets)
    ]
    for keys, workflow in places:
        if workflow and "distill" in workflow:
            yield Doubt(
                ("buffer", "explorer_input", *keys),
                f"{workflow} asks a teacher for log-probabilities, which this objective does not read",
                "a workflow that gives rewards",
            )


def _several_stages(case: Case) -> Iterator[Doubt]:
    for number, stage in enumerate(case.config.stages):
        if stage.algorithm is not None:
            yield Doubt(
                ("stages", number, "algorithm"),
                f"the algorithm of stage {stage.stage_name!r} is not judged here, only the file's own",
            )


RULES: tuple[Callable[[Case], Iterator[Doubt]], ...] = (
    _unbounded_importance_weights,
    _unbounded_update,
    _groups,
    _kl_without_term,
    _ignored_arguments,
    _replaced_parts,
    _sequence_clip_range,
    _truncated_sampling,
    _recomputed_logprobs,
    _rounded_weights,
    _balance_of_rollouts,
    _strategies,
    _data_that_nobody_reads,
    _several_stages,
)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _yaml(value: Any) -> str:
    return {True: "true", False: "false", None: "null"}.get(value, str(value))
