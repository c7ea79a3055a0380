"""What an `algorithm:` section of Trinity's own algorithms means in the arguments of the presets.

Trinity says what its algorithms are made of (`default_config`, its validator, the constructors of its blocks); the
tables here say which of these blocks' arguments are ours under another name, and what has no equal.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from trinity_rec.plugin import registries
from trinity_rec.presets import PRESETS

if TYPE_CHECKING:
    from trinity.common.config import AlgorithmConfig

LOSS_ARGS, ADVANTAGE_ARGS = "policy_loss_fn_args", "advantage_fn_args"

Arguments = dict[str, dict[str, Any]]  # what is under LOSS_ARGS and under ADVANTAGE_ARGS


@dataclass(frozen=True)
class Block:
    """A loss or an advantage of Trinity's.

    Attributes:
        is_ours: the arguments that say it here; None: it has no equal.
        renamed: its argument -> ours of the same meaning.
        differs: how its gradient differs all the same, for every value of its arguments.
    """

    is_ours: Mapping[str, Any] | None
    renamed: Mapping[str, str] = field(default_factory=dict)
    differs: str = ""


_RANGE = {"clip_range_low": "epsilon_low", "clip_range_high": "epsilon_high"}
_REC = (
    *("clip_mode", "weight", "regularizer", "regularizer_coef", "temp"),
    *("epsilon_low", "epsilon_high", "epsilon_low_prime", "epsilon_high_prime"),
)
LOSSES = {
    "rec": Block({}, {name: name for name in _REC}),
    "ppo": Block({"clip_mode": "one-side", "weight": "importance_sampling"}, _RANGE),
    "gspo": Block({"clip_mode": "gspo-one-side", "weight": "gspo_importance_sampling"}, _RANGE),
    "importance_sampling": Block({"weight": "importance_sampling"}),
    # Its tau is the paper's: the pull towards the rollout policy is tau / 2 (log rho)^2, here regularizer_coef.
    "opmd": Block({}),
}
ADVANTAGES = {
    "rec": Block({}, {name: name for name in ("epsilon", "std_normalize", "drop")}),
    "grpo": Block({"std_normalize": True}, {"epsilon": "epsilon"}),
    "grpo_verl": Block({"std_normalize": True}, {"epsilon": "epsilon"}),
    "opmd": Block({}),
    "opmd_verl": Block({}),
    "asymre": Block({}),
    "asymre_verl": Block({}),
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
        if block is None or block.is_ours is None:
            said = _OTHER_ADVANTAGES.get(name, "no preset has it")
            if f"off_{name}" in PRESETS:
                said = f"off_{name} is its preset"
            differs.append(f"{key.removesuffix('_args')} {name} goes: {said}")
            continue
        if block.differs:
            differs.append(f"{key.removesuffix('_args')} {name} goes: {block.differs}")
        given = section.get(key) or {}
        old = {**_constructor_defaults(registry.get(name)), **(getattr(algorithm, key) or {})}
        args[key] |= block.is_ours
        if name in ("ppo", "gspo") and old.get("clip_range") is not None:
            args[key] |= dict.fromkeys(_RANGE.values(), old["clip_range"])
            origin |= {(key, ours): f"{key}.clip_range" for ours in _RANGE.values() if "clip_range" in given}
        for theirs, ours in block.renamed.items():
            if old.get(theirs) is not None or theirs == "drop":
                args[key][ours] = old.get(theirs)
                if theirs in given:
                    origin[key, ours] = f"{key}.{theirs}"
        if name == "opmd" and key == LOSS_ARGS:
            differs.append(f"policy_loss_fn opmd divides its loss by 1 + tau = {1 + old['tau']:g}; steps grow by that")
            if "tau" in given:
                args[key] |= {"regularizer": "k2", "regularizer_coef": old["tau"] / 2}
                origin[key, "regularizer_coef"] = f"{key}.tau"
        if name.startswith("asymre"):
            args[LOSS_ARGS] |= {"regularizer": "forward-kl", "regularizer_coef": -old["baseline_shift"]}
            if "baseline_shift" in given:
                origin[LOSS_ARGS, "regularizer_coef"] = f"{key}.baseline_shift"
    # The key beside the arguments is written into them where they have it; else the constructor's default counts.
    loss = _constructor_defaults(registries.POLICY_LOSSES.get(algorithm.policy_loss_fn))
    is_read = "loss_agg_mode" in (algorithm.policy_loss_fn_args or {})
    average = algorithm.loss_agg_mode if is_read else loss.get("loss_agg_mode")
    return Meaning(args, origin, average, bool(args[ADVANTAGE_ARGS].get("std_normalize")), differs, algorithm)


@cache
def _constructor_defaults(block: type) -> dict[str, Any]:
    """Of arguments that the YAML leaves out where it gives any: Trinity's `default_args` count only as a whole."""
    parameters = inspect.signature(block.__init__).parameters.values()
    return {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
