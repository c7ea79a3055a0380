"""What an old `algorithm:` section means in the arguments of the presets: what to carry over, and which is nearest."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from trinity_rec.commands import arguments
from trinity_rec.presets import PRESETS, Preset
from trinity_rec.terminal import UsageError

NEAREST = "nearest"
LOSS_ARGS, ADVANTAGE_ARGS = "policy_loss_fn_args", "advantage_fn_args"
MODES = {LOSS_ARGS: arguments.POLICY_LOSS, ADVANTAGE_ARGS: arguments.ADVANTAGE}

Arguments = dict[str, dict[str, Any]]  # what is under LOSS_ARGS and under ADVANTAGE_ARGS

# Trinity's algorithms that have a preset of the same kind.
COUNTERPARTS = {
    "grpo": "rec_grpo",
    "grpo_verl": "rec_grpo",
    "gspo": "rec_gspo_is",
    "opmd": "rep_opmd",
    "asymre": "rep_asymre",
}


def arguments_of(section: Mapping[str, Any]) -> Arguments | None:
    """The arguments with which a YAML's `rec` or preset would run, defaults filled in; None for other algorithms."""
    given = {key: section.get(key) or {} for key in MODES}
    name = str(section.get("algorithm_type"))
    preset = PRESETS.get(name.removeprefix("trinity_rec."))
    if name == "rec":
        return {key: {**_upstream_defaults()[key][not given[key]], **given[key]} for key in MODES}
    if preset is None:
        return None
    own = _own_arguments(preset)
    return {key: {**own[key], **given[key]} for key in MODES}


def _own_arguments(preset: Preset) -> Arguments:
    from trinity_rec.plugin.advantage import RECAdvantage
    from trinity_rec.plugin.policy_loss import RECPolicyLoss

    return {
        LOSS_ARGS: {**RECPolicyLoss.default_args(), **preset.policy_loss},
        ADVANTAGE_ARGS: {**RECAdvantage.default_args(), **preset.advantage},
    }


def _upstream_defaults() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Upstream's defaults where the YAML gives arguments, and where it gives none: they differ (ring's bounds)."""
    from trinity.algorithm.advantage_fn.rec_advantage import RECGroupedAdvantage
    from trinity.algorithm.policy_loss_fn.rec_policy_loss import RECPolicyLossFn

    both = {}
    for key, upstream in ((LOSS_ARGS, RECPolicyLossFn), (ADVANTAGE_ARGS, RECGroupedAdvantage)):
        parameters = inspect.signature(upstream.__init__).parameters.values()
        constructor = {each.name: each.default for each in parameters if each.name not in ("self", "backend")}
        both[key] = (constructor, upstream.default_args())
    # Upstream's only way to drop, by the name that it has here.
    both[ADVANTAGE_ARGS] = tuple({**defaults, "drop_form": "zero"} for defaults in both[ADVANTAGE_ARGS])
    return both


def carried(section: Mapping[str, Any], preset: Preset) -> Arguments:
    """The arguments of an old section that mean the same under `preset` and differ from its own."""
    old = arguments_of(section) or {}
    own = _own_arguments(preset)
    found: Arguments = {}
    for key, modes in MODES.items():
        args = old.get(key, {})
        found[key] = {
            name: value
            for name, value in args.items()
            if name in own[key]
            and value != own[key][name]
            and (name in modes or name in arguments.RUNTIME)
            and arguments.is_read(name, own[key], modes)
            and _same_mode(name, args, own[key], modes)
        }
    return found


def _same_mode(name: str, args: Mapping[str, Any], own: Mapping[str, Any], modes: arguments.Modes) -> bool:
    mode = modes.get(name, (None,))[0]
    return mode is None or args.get(mode, own.get(mode)) == own.get(mode)


def nearest(section: Mapping[str, Any], path: str = "") -> tuple[Preset, Arguments]:
    """The preset that needs the fewest arguments to have the objective of this section, and those arguments.

    Raises:
        UsageError: the section is not of the `rec` family.
    """
    old = arguments_of(section)
    if old is None:
        name = section.get("algorithm_type")
        counterpart = COUNTERPARTS.get(str(name))
        hint = f"the nearest of {name} is {counterpart}" if counterpart else "name a preset (`trinity-rec list`)"
        raise UsageError(f"{path}: `{NEAREST}` reads the arguments of upstream's rec, not of {name!r}; {hint}")
    return nearest_preset(old)


def nearest_preset(old: Arguments, first: Preset | None = None) -> tuple[Preset, Arguments]:
    """The preset that needs the fewest arguments to become `old`, `first` among equals, and those arguments."""
    candidates = [*([first] if first else []), *PRESETS.values()]
    best = min(candidates, key=lambda preset: _distance(_needed(old, preset), preset))
    return best, _needed(old, best)


def _needed(old: Arguments, preset: Preset) -> Arguments:
    own = _own_arguments(preset)
    needed: Arguments = {}
    for key, modes in MODES.items():
        counting = arguments.read_only({**own[key], **old[key]}, modes)
        needed[key] = {name: value for name, value in counting.items() if value != own[key].get(name)}
    return needed


def _distance(needed: Arguments, preset: Preset) -> tuple[int, int, bool]:
    """Modes weigh more than numbers, and the free composition `rec` comes last among equals."""
    modes = sum(name not in MODES[key] for key, values in needed.items() for name in values)
    numbers = sum(map(len, needed.values())) - modes
    return modes, numbers, preset.name == "rec"
