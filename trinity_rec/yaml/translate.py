"""What an old `algorithm:` section means in the arguments of the presets: what to carry over, and which is nearest."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trinity_rec.declared import Declared
from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS, Preset
from trinity_rec.shaping import Shaping
from trinity_rec.terminal import UsageError
from trinity_rec.yaml.upstream import ADVANTAGE_ARGS, LOSS_ARGS, Arguments, Meaning, meaning

if TYPE_CHECKING:
    from trinity.common.config import AlgorithmConfig

NEAREST = "nearest"
BLOCKS: dict[str, type[Declared]] = {LOSS_ARGS: Objective, ADVANTAGE_ARGS: Shaping}

# Trinity's algorithms that have a preset of the same kind.
COUNTERPARTS = {
    "grpo": "rec_grpo",
    "grpo_verl": "rec_grpo",
    "gspo": "rec_gspo_is",
    "opmd": "rep_opmd",
    "asymre": "rep_asymre",
    **{name: f"off_{name}" for name in ("cispo", "sapo", "topr")},
    "sppo": "rec_twoside_nois",
}


def arguments_of(section: Mapping[str, Any]) -> Arguments | None:
    """The arguments with which a YAML's `rec` or preset would run, defaults filled in; None for other algorithms."""
    given = {key: section.get(key) or {} for key in BLOCKS}
    name = str(section.get("algorithm_type"))
    preset = PRESETS.get(name.removeprefix("trinity_rec."))
    if name == "rec":
        return {key: {**_upstream_defaults()[key][not given[key]], **given[key]} for key in BLOCKS}
    if preset is None:
        return None
    own = _own_arguments(preset)
    return {key: {**own[key], **given[key]} for key in BLOCKS}


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
    old = arguments_of(section)
    if old is None:
        was = meaning(section)
        old = {} if was is None else was.args
    own = _own_arguments(preset)
    found: Arguments = {}
    for key, block in BLOCKS.items():
        args = old.get(key, {})
        found[key] = {
            name: value
            for name, value in args.items()
            if name in own[key]
            and value not in (own[key][name], block.default_args().get(name))  # restating a default asks for nothing
            and (block.read_under(name) or name == "metrics")
            and block.is_read(name, own[key])
            and _same_mode(name, args, own[key], block)
        }
    return found


def _same_mode(name: str, args: Mapping[str, Any], own: Mapping[str, Any], block: type[Declared]) -> bool:
    """Whether the modes by which the preset reads an argument are the same in both."""
    modes = [each.mode for each in block.read_under(name) if own.get(each.mode) in each.values]
    return all(_range_of(args.get(mode, own.get(mode))) == _range_of(own.get(mode)) for mode in modes)


def _range_of(mode: Any) -> Any:
    """Dual clip has the clip range of one-side, and a bound beside it."""
    return "one-side" if mode == "dual-clip" else mode


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
    for key, block in BLOCKS.items():
        counting = block.read_only({**own[key], **old[key]})
        needed[key] = {name: value for name, value in counting.items() if value != own[key].get(name)}
    return needed


def _distance(needed: Arguments, preset: Preset) -> tuple[int, int, bool]:
    """Modes weigh more than numbers, and the free composition `rec` comes last among equals."""
    modes = sum(not BLOCKS[key].read_under(name) for key, values in needed.items() for name in values)
    numbers = sum(map(len, needed.values())) - modes
    return modes, numbers, preset.name == "rec"


def kept_average(old: Mapping[str, Any], preset: Preset) -> dict[str, Any]:
    """The YAML's `loss_agg_mode`, which means the same here, where it counts and is not the preset's own."""
    was, own = meaning(old), _completed({"algorithm_type": f"trinity_rec.{preset.name}"})
    given = None if old.get("loss_agg_mode") is None else old["loss_agg_mode"] if was is None else was.average
    if given is None or own is None or given == own.loss_agg_mode:
        return {}
    kept = {"loss_agg_mode": given}
    # "seq-mean-token-sum-norm" needs a count of tokens, which Trinity takes from the padding.
    return kept if _completed({"algorithm_type": f"trinity_rec.{preset.name}", **kept}) is not None else {}


def announcements(old: Mapping[str, Any], section: Mapping[str, Any], preset: Preset) -> list[str]:
    """What changes for the user when `old` becomes `section`: a line for each value that goes, is called otherwise from
    now on, or counts for something else, and for each change of the step size."""
    was = meaning(old)
    new = {key: {**own, **(section.get(key) or {})} for key, own in _own_arguments(preset).items()}
    notes = list(_of_arguments(old, new, was, preset))
    if was is not None:
        notes += was.differs
        divides = bool(new[ADVANTAGE_ARGS]["std_normalize"])
        if was.divides_by_std != divides and ADVANTAGE_ARGS not in " ".join(was.differs):
            notes.append(
                "advantages are divided by their group's standard deviation: steps grow, at least twofold for rewards "
                "of 0 and 1"
                if divides
                else "advantages are no longer divided by their group's standard deviation: steps shrink, at least by "
                "half for rewards of 0 and 1"
            )
        dual_clip = was.args[LOSS_ARGS].get("clip_mode") == "dual-clip" != new[LOSS_ARGS]["clip_mode"]
        if dual_clip and (LOSS_ARGS, "dual_clip") not in was.origin:
            notes.append(
                f"policy_loss_fn {was.algorithm.policy_loss_fn}: tokens with A < 0 and a ratio above "
                f"{was.args[LOSS_ARGS]['dual_clip']:g} were clipped too; off_dual_clip does so"
            )
        notes.append(
            "the loss is averaged over the whole mini-batch; on verl Trinity's own adds up the averages of its pieces: "
            "steps were larger by their number"
        )
    notes += _of_terms(old, section, was)
    if section.get("repeat_times", 1) == 1:
        notes.append("repeat_times is 1: a group of one response has nothing to compare; --set repeat_times=8")
    return notes


def _of_arguments(old: Mapping[str, Any], new: Arguments, was: Meaning | None, preset: Preset) -> Iterator[str]:
    origin = {} if was is None else was.origin
    for key in BLOCKS:
        for name, value in (old.get(key) or {}).items():
            place = f"{key}.{name}"
            ours = [where for where, theirs in origin.items() if theirs == place] or [(key, name)]
            said = [(group, argument, _counting(group, argument, new, was)) for group, argument in ours]
            meant = (
                [was.args[group][argument] if origin.get((group, argument)) else value for group, argument, _ in said]
                if was
                else [value] * len(said)
            )
            if all(now == then for (_, _, now), then in zip(said, meant, strict=True)):
                if [argument for _, argument in ours] != [name]:
                    names = " and ".join(f"{argument}: {now}" for _, argument, now in said)
                    yield f"{place}: {value} is {names} from now on"
            else:
                others = [
                    f"{argument}: {now}" for group, argument, now in said if now is not None and argument in new[group]
                ]
                yield f"{place}: {value} goes; {preset.name} has {' and '.join(others) or 'no such argument'}"


def _counting(group: str, argument: str, new: Arguments, was: Meaning | None) -> Any:
    """The value of an argument; None where it counted and does no longer."""
    block = BLOCKS[group]
    counted = was is not None and block.is_read(argument, was.args[group])
    return None if counted and not block.is_read(argument, new[group]) else new[group].get(argument)


def _of_terms(old: Mapping[str, Any], section: Mapping[str, Any], was: Meaning | None) -> Iterator[str]:
    """The average, the terms beside the policy loss, and the sample strategy."""
    algorithm = was.algorithm if was else _completed(old)
    new = _completed(section)
    if algorithm is not None and new is not None:
        average = was.average if was else algorithm.loss_agg_mode
        if old.get("loss_agg_mode") not in (None, average):
            yield (
                f"loss_agg_mode: {old['loss_agg_mode']} goes; beside policy_loss_fn_args without it Trinity averaged "
                f"the policy loss by {average} all the same"
            )
        if average not in (None, new.loss_agg_mode):
            yield f"loss_agg_mode: the average is {new.loss_agg_mode}, was {average}"
        kl, coefficient = algorithm.kl_loss_fn, (algorithm.kl_loss_fn_args or {}).get("kl_coef", 0.001)
        if kl not in (None, "none") and coefficient and new.kl_loss_fn in (None, "none"):
            yield (
                f"the KL term ({kl}, {coefficient}) is gone and with it the reference model; to keep it: "
                f"--set kl_loss_fn={kl} --set kl_loss_fn_args.kl_coef={coefficient}"
            )
        entropy = (algorithm.entropy_loss_fn_args or {}).get("entropy_coef", 0)
        if algorithm.entropy_loss_fn not in (None, "none") and entropy and new.entropy_loss_fn in (None, "none"):
            yield (
                f"the entropy term ({entropy}) is gone; to keep it: --set entropy_loss_fn={algorithm.entropy_loss_fn} "
                f"--set entropy_loss_fn_args.entropy_coef={entropy}"
            )
    for key, plain in (("kl_penalty_fn", (None, "none")), ("sample_strategy", (None, "default", "warmup"))):
        if old.get(key) not in plain and key not in section:
            yield f"{key}: {old[key]} goes"
    for name, value in (old.get("sample_strategy_args") or {}).items():
        if "sample_strategy_args" not in section:
            yield f"sample_strategy_args.{name}: {value} goes"


def _completed(section: Mapping[str, Any]) -> AlgorithmConfig | None:
    from trinity_rec.yaml.effective import OBJECTIVE_KEYS, effective

    kept = {key: section[key] for key in ("algorithm_type", *OBJECTIVE_KEYS) if key in section}
    try:
        return effective(kept)
    except Exception:  # what Trinity's checks refuse is told by them
        return None
