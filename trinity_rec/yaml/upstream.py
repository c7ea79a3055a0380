"""What an `algorithm:` section of Trinity's own algorithms means in the arguments of the presets.

Trinity says what its algorithms are made of (`default_config`, its validator, the constructors of its blocks); the
tables here say which of these blocks' arguments are ours under another name, and what has no equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from trinity_rec.objective import Objective
from trinity_rec.plugin import registries

if TYPE_CHECKING:
    from trinity.common.config import AlgorithmConfig

LOSS_ARGS, ADVANTAGE_ARGS = "policy_loss_fn_args", "advantage_fn_args"

Arguments = dict[str, dict[str, Any]]  # what is under LOSS_ARGS and under ADVANTAGE_ARGS


@dataclass(frozen=True)
class Block:
    """A loss or an advantage of Trinity's.

    Attributes:
        is_ours: the arguments that say it here.
        means: its argument -> the arguments of ours that a value of it is.
        differs: how its gradient differs all the same, for every value of its arguments.
    """

    is_ours: Mapping[str, Any]
    means: Mapping[str, Callable[[Any], dict[str, Any]]] = field(default_factory=dict)
    differs: str = ""


_NEUTRAL = dict.fromkeys(("clip_mode", "weight", "regularizer"), "none")


def _called(**names: str) -> dict[str, Callable[[Any], dict[str, Any]]]:
    """Arguments of theirs that have another name here, or the same."""
    return {theirs: lambda value, ours=ours: {ours: value} for theirs, ours in names.items()}  # type: ignore[misc]


_RANGE = _called(clip_range_low="epsilon_low", clip_range_high="epsilon_high")
# `clip_range` is both, unless these are given.
_RANGES = {"clip_range": lambda value: {"epsilon_low": value, "epsilon_high": value}, **_RANGE}
_REC = (
    *("clip_mode", "weight", "regularizer", "regularizer_coef", "temp"),
    *("epsilon_low", "epsilon_high", "epsilon_low_prime", "epsilon_high_prime"),
)
LOSSES = {
    "rec": Block({}, _called(**{name: name for name in _REC})),
    "ppo": Block(
        {"clip_mode": "dual-clip", "weight": "importance_sampling"}, _RANGES | _called(clip_ratio_c="dual_clip")
    ),
    "gspo": Block({"clip_mode": "gspo-one-side", "weight": "gspo_importance_sampling"}, _RANGES),
    "cispo": Block({"weight": "clipped_importance_sampling"}, _RANGE),
    "sapo": Block(
        {"weight": "sapo"},
        _called(tau_pos="tau_positive", tau_neg="tau_negative"),
        "it weighs by the value of its gate, SAPO by the gate's derivative (docs/corrections.md)",
    ),
    "topr": Block({"weight": "topr"}, {}, "it clips the ratio of each token, TOPR that of the response"),
    "sppo": Block(
        {"clip_mode": "two-side"}, {"epsilon": lambda eps: {"epsilon_low": eps / (1 + eps), "epsilon_high": eps}}
    ),
    "importance_sampling": Block({"weight": "importance_sampling"}),
    # Its tau is the paper's: the pull towards the rollout policy is tau / 2 (log rho)^2.
    "opmd": Block({}, {"tau": lambda tau: {"regularizer": "k2", "regularizer_coef": tau / 2}}),
}
_ASYMRE = Block({}, {"baseline_shift": lambda shift: {"regularizer": "forward-kl", "regularizer_coef": -shift}})
ADVANTAGES = {
    "rec": Block({}, _called(epsilon="epsilon", std_normalize="std_normalize", drop="drop")),
    "grpo": Block({"std_normalize": True}, _called(epsilon="epsilon")),
    "grpo_verl": Block({"std_normalize": True}, _called(epsilon="epsilon")),
    "opmd": Block({}),
    "opmd_verl": Block({}),
    "asymre": _ASYMRE,
    "asymre_verl": _ASYMRE,
    "rloo": Block(
        {}, differs="the mean of the other responses is its baseline, so steps were n / (n - 1) times as large"
    ),
}
# Trinity's blocks that name an advantage of theirs which no preset has.
_OTHER_ADVANTAGES = {
    "reinforceplusplus": "rewards were normalised over the whole batch",
    "reinforce": "rewards were taken without a baseline",
    "remax": "the baseline was a greedy response's reward",
    "step_wise_grpo": "each step of a run had its own advantage",
    "gigpo": "steps in the same state were compared with each other",
    "clipb": "tokens were kept by their entropy",
    "clipv": "tokens were kept by their entropy",
}


@dataclass
class Meaning:
    """An old section in our words.

    Attributes:
        args: our arguments that say what it trains, defaults of Trinity's filled in.
        origin: (group, our argument) -> the old one's dotted key, for each that the YAML gives.
        average: the loss_agg_mode that counts; None where the loss chooses it as ours does.
        divides_by_std: whether advantages are divided by the group's standard deviation.
        differs: what of the old objective our arguments cannot say, a line each.
        algorithm: the section as Trinity completes it.
    """

    args: Arguments
    origin: dict[tuple[str, str], str]
    average: str | None
    divides_by_std: bool
    differs: list[str]
    algorithm: AlgorithmConfig


def meaning(section: Mapping[str, Any]) -> Meaning | None:
    """What a section of one of Trinity's algorithms trains; None for others, and where Trinity refuses it."""
    from trinity_rec.yaml.effective import effective

    if section.get("algorithm_type") not in registries.ALGORITHMS:
        return None
    try:
        algorithm = effective(section)
    except Exception:  # whatever Trinity's checks raise: what it cannot run has no meaning to carry over
        return None
    args: Arguments = {LOSS_ARGS: {}, ADVANTAGE_ARGS: {}}
    origin: dict[tuple[str, str], str] = {}
    differs: list[str] = []
    for key, name, blocks, registry in (
        (LOSS_ARGS, algorithm.policy_loss_fn, LOSSES, registries.POLICY_LOSSES),
        (ADVANTAGE_ARGS, algorithm.advantage_fn, ADVANTAGES, registries.ADVANTAGES),
    ):
        block = blocks.get(name)
        if block is None:
            said = _OTHER_ADVANTAGES.get(name, "no preset has it")
            differs.append(f"{key.removesuffix('_args')} {name} goes: {said}")
            continue
        if block.differs:
            differs.append(f"{key.removesuffix('_args')} {name} goes: {block.differs}")
        given = section.get(key) or {}
        old = {**_constructor_defaults(registry.get(name)), **(getattr(algorithm, key) or {})}
        args[key] |= {**(_NEUTRAL if key == LOSS_ARGS else {}), **block.is_ours}
        for theirs, translated in block.means.items():
            value = old.get(theirs)
            if (value is None and theirs != "drop") or _is_off(name, theirs, given):
                continue
            for ours, meant in translated(value).items():
                group = LOSS_ARGS if ours in Objective.model_fields else ADVANTAGE_ARGS
                args[group][ours] = meant
                origin.pop((group, ours), None)
                if theirs in given and ours not in _NEUTRAL:
                    origin[group, ours] = f"{key}.{theirs}"
        if name == "opmd" and key == LOSS_ARGS and old["tau"]:
            differs.append(f"policy_loss_fn opmd divides its loss by 1 + tau = {1 + old['tau']:g}; steps grow by that")
        if name == "cispo" and old["enable_mask_clip"]:
            differs.append("policy_loss_fn cispo goes: enable_mask_clip drops tokens besides, which no preset does")
    # The key beside the arguments is written into them where they have it; else the constructor's default counts.
    loss = _constructor_defaults(registries.POLICY_LOSSES.get(algorithm.policy_loss_fn))
    is_read = "loss_agg_mode" in (algorithm.policy_loss_fn_args or {})
    average = algorithm.loss_agg_mode if is_read else loss.get("loss_agg_mode")
    return Meaning(args, origin, average, bool(args[ADVANTAGE_ARGS].get("std_normalize")), differs, algorithm)


def _is_off(name: str, argument: str, given: Mapping[str, Any]) -> bool:
    """OPMD without a tau in the YAML is OPMD as it comes: the default is no choice of the user's to carry."""
    return name == "opmd" and argument not in given


@cache
def _constructor_defaults(block: type) -> dict[str, Any]:
    """Of arguments that the YAML leaves out where it gives any: Trinity's `default_args` count only as a whole."""
    parameters = inspect.signature(block.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
