"""Each preset as an `algorithm_type`: it fills in what the YAML leaves open and refuses what cannot be meant.

Trinity's configuration check calls `check_config` in the driver, before any worker starts and before it fills in
defaults of its own; what is decided here reaches every process with the configuration.
"""

from __future__ import annotations

import math
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from importlib import import_module
from numbers import Real
from typing import Any, ClassVar

from trinity.algorithm.algorithm import AlgorithmType
from trinity.common.config import Config
from trinity.utils.log import get_logger

import trinity_rec
from trinity_rec.objective import Objective
from trinity_rec.plugin.advantage import RECAdvantage
from trinity_rec.plugin.arguments import build, shortened
from trinity_rec.plugin.policy_loss import RECPolicyLoss
from trinity_rec.plugin.resume import settle
from trinity_rec.plugin.sample_strategy import strategy_named
from trinity_rec.presets import PRESETS, Preset
from trinity_rec.versions import unsupported

POLICY_LOSS = "trinity_rec.RECPolicyLoss"
ADVANTAGE = "trinity_rec.RECAdvantage"
SAMPLE_STRATEGY = "trinity_rec.RECSampleStrategy"

# Upstream's KL functions take this coefficient when the YAML names a function alone (trinity.algorithm.kl_fn).
_DEFAULT_KL_COEF = 0.001
_PLAIN_SAMPLE_STRATEGIES = (None, "default", "warmup")


class PresetAlgorithm(AlgorithmType):
    """The algorithm of one row of the preset table; made by `algorithm_class`."""

    use_critic: bool = False
    use_reference: bool = False
    compute_advantage_in_trainer: bool = False
    can_balance_batch: bool = True
    schema: str = "experience"
    preset: ClassVar[Preset]

    @classmethod
    def default_config(cls) -> dict[str, Any]:
        """What Trinity fills in where the YAML and `check_config` left a key open."""
        return {
            "policy_loss_fn": POLICY_LOSS,
            "advantage_fn": ADVANTAGE,
            "sample_strategy": SAMPLE_STRATEGY,
            "kl_loss_fn": "none",
            "kl_penalty_fn": "none",
            "entropy_loss_fn": "none",
        }

    @classmethod
    def check_config(cls, config: Config) -> None:
        """Complete `config.algorithm` in place, and bring the files of a run that is resumed to its last checkpoint;
        doing it twice changes nothing.

        Raises:
            ValueError: an argument or a combination that cannot be trained with; one line that names the key.
        """
        for line in unsupported():
            get_logger(__name__).warning(line)
        algorithm = config.algorithm
        for key, value in cls.default_config().items():
            if key != "kl_loss_fn" and getattr(algorithm, key) is None:
                setattr(algorithm, key, value)
        _refuse_what_cannot_be(config)
        if config.model.tinker.enable:
            _refuse_tempered_rollouts(config)
        _let_loss_normalise(config)
        strategy_args = _complete_sample_strategy(config)
        _complete_policy_loss(config, cls.preset, strategy_args)
        _complete_advantage(config, cls.preset)
        needs_reference = _complete_kl(config)
        if config.model.tinker.enable and strategy_named(algorithm.sample_strategy) is None:
            # Trinity's Tinker trainer reads `ref_logprob` in every step; else only a reference pass supplies it.
            get_logger(__name__).warning(
                f"algorithm.sample_strategy: {algorithm.sample_strategy} is not one of trinity_rec's, so on Tinker "
                "every step runs a reference pass, and the token mean is a mean over responses of their token means"
            )
            needs_reference = True
        algorithm.algorithm_type = f"trinity_rec.{cls.preset.name}" + ("_with_reference" if needs_reference else "")
        settle(config)


def _refuse_what_cannot_be(config: Config) -> None:
    """Counts below one, which Trinity lets pass, and blocks of this package that are not there, which it imports."""
    for key, count in (
        ("algorithm.repeat_times", config.algorithm.repeat_times),
        ("buffer.batch_size", config.buffer.batch_size),
        ("buffer.train_batch_size", config.buffer.train_batch_size or 1),  # 0: Trinity fills it in
        ("model.max_model_len", 1 if config.model.max_model_len is None else config.model.max_model_len),
    ):
        if count < 1:
            raise ValueError(f"{key}={count!r} is not a whole number of at least 1")
    for key in ("policy_loss_fn", "advantage_fn", "sample_strategy"):
        name = getattr(config.algorithm, key)
        package, _, block = name.rpartition(".")
        if package.split(".")[0] != "trinity_rec":
            continue
        try:
            getattr(import_module(package), block)
        except (ImportError, AttributeError):
            near = get_close_matches(block[:100], trinity_rec.__all__, n=1)
            hint = f"; did you mean trinity_rec.{near[0]}?" if near else ""
            message = f"algorithm.{key}={shortened(repr(name), 100)}: trinity_rec has no such block{hint}"
            raise ValueError(message) from None


def _complete_policy_loss(config: Config, preset: Preset, strategy_args: dict[str, Any]) -> None:
    algorithm = config.algorithm
    if algorithm.policy_loss_fn != POLICY_LOSS:
        return
    args = {**RECPolicyLoss.default_args(), **preset.policy_loss, **(algorithm.policy_loss_fn_args or {})}
    if algorithm.loss_agg_mode is not None:
        args["loss_agg_mode"] = algorithm.loss_agg_mode
    strategy = strategy_named(algorithm.sample_strategy)
    if strategy is not None and strategy.supplies_sample_weight(strategy_args):
        args["sample_weight"] = True
    known = [*RECPolicyLoss.default_args(), "loss_agg_mode", "sample_weight"]
    with suppress(ValueError):  # a rule that cannot be imported, which the loss refuses with its reason
        known += Objective.own_arguments(args)
    loss = build(RECPolicyLoss, "algorithm.policy_loss_fn_args", known, args)
    # Trinity averages KL and entropy terms by the same key, and overwrites the loss's argument with it.
    algorithm.loss_agg_mode = args["loss_agg_mode"] = loss.objective.loss_agg_mode
    algorithm.policy_loss_fn_args = args


def _complete_advantage(config: Config, preset: Preset) -> None:
    algorithm = config.algorithm
    if algorithm.advantage_fn != ADVANTAGE:
        return
    args = {**RECAdvantage.default_args(), **preset.advantage, **(algorithm.advantage_fn_args or {})}
    build(RECAdvantage, "algorithm.advantage_fn_args", RECAdvantage.default_args(), args)
    algorithm.advantage_fn_args = args


def _complete_sample_strategy(config: Config) -> dict[str, Any]:
    algorithm = config.algorithm
    if algorithm.sample_strategy in _PLAIN_SAMPLE_STRATEGIES:
        algorithm.sample_strategy = SAMPLE_STRATEGY
    strategy = strategy_named(algorithm.sample_strategy)
    if strategy is None:
        return algorithm.sample_strategy_args or {}
    args = {**strategy.default_args(), **(algorithm.sample_strategy_args or {})}
    args["backend"] = "tinker" if config.model.tinker.enable else "verl"
    known = strategy.default_args()
    build(strategy.check_arguments, "algorithm.sample_strategy_args", known, args)
    strategy.check_config(config, args)
    algorithm.sample_strategy_args = args
    return args


def _complete_kl(config: Config) -> bool:
    """Whether a KL term is asked for: only a coefficient other than 0 loads a reference model and runs it."""
    algorithm = config.algorithm
    args = algorithm.kl_loss_fn_args or {}
    named = algorithm.kl_loss_fn not in (None, "none")
    coefficient = args.get("kl_coef", _DEFAULT_KL_COEF if named else 0.0)
    if not isinstance(coefficient, Real) or isinstance(coefficient, bool) or not 0 <= float(coefficient) < math.inf:
        raise ValueError(f"algorithm.kl_loss_fn_args.kl_coef={coefficient!r} is not a number of at least 0")
    if algorithm.kl_loss_fn == "none" or not coefficient:
        algorithm.kl_loss_fn = "none"
        return False
    algorithm.kl_loss_fn = algorithm.kl_loss_fn or "k2"
    return True


def _refuse_tempered_rollouts(config: Config) -> None:
    """On Tinker the sampler's logprobs are those of the tempered policy, the trainer's are not: rho would be wrong."""
    key, explorer_input = "buffer.explorer_input.taskset", config.buffer.explorer_input
    tasksets = {key: explorer_input.taskset} if explorer_input.taskset is not None else {}
    tasksets |= {f"{key}s[{index}]": taskset for index, taskset in enumerate(explorer_input.tasksets)}
    places = [("model.temperature", config.model.temperature)] if not tasksets else []
    for key, taskset in tasksets.items():
        own = taskset.rollout_args.temperature
        name = f"{key}.rollout_args.temperature"
        places.append(("model.temperature", config.model.temperature) if own is None else (name, own))
    for key, temperature in places:
        if temperature is not None and temperature != 1:
            raise ValueError(
                f"{key}={temperature!r}: with model.tinker the rollouts must be sampled at temperature 1, since the "
                "trainer's logprobs are at 1 and the importance ratio compares the two"
            )


def _let_loss_normalise(config: Config) -> None:
    """The flag makes Trinity's Tinker trainer add responses up instead of averaging, and a coming Trinity's verl worker
    scale a micro-batch's loss by its share of the tokens; this package's loss has done both already."""
    if config.trainer.fix_actor_microbatch_loss_scale:
        config.trainer.fix_actor_microbatch_loss_scale = False
        get_logger(__name__).warning(
            "trainer.fix_actor_microbatch_loss_scale is switched off: trinity_rec's loss is normalised over the batch"
        )


# Typed as what makes classes: a metaclass of Trinity's, which says nothing of what it returns.
_METACLASS: Any = type(PresetAlgorithm)


@cache
def algorithm_class(name: str, *, use_reference: bool) -> type[PresetAlgorithm]:
    """The `AlgorithmType` of a preset, or its twin for which Trinity loads and runs a reference model.

    `use_reference` is an attribute of the class that Trinity's trainers read, so a KL term asked for in the YAML needs
    a class of its own.

    Raises:
        KeyError: there is no preset of that name.
    """
    preset = PRESETS[name]
    class_name = f"{name}_with_reference" if use_reference else name
    return _METACLASS(
        class_name,
        (PresetAlgorithm,),
        {
            "__doc__": f"{preset.title}: {preset.gradient} ({preset.source}).",
            "__module__": "trinity_rec",
            "preset": preset,
            "use_reference": use_reference,
        },
    )


def plain_class(name: str) -> type[PresetAlgorithm]:
    """A preset's class for registration by its plain name; its own class, as Trinity names a class only once."""
    return _METACLASS(name, (algorithm_class(name, use_reference=False),), {"__module__": "trinity_rec"})
