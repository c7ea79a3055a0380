"""verl's and TRL's settings as an `algorithm:` section: losses, clip ranges, averages, rollout correction.

A loss of theirs is put into the arguments of ours, and the preset is the one that needs the fewest of them. What has no
equal is refused by name; docs/coming_from.md holds the tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS
from trinity_rec.shaping import Shaping
from trinity_rec.terminal import UsageError
from trinity_rec.yaml.effective import effective
from trinity_rec.yaml.translate import nearest_preset
from trinity_rec.yaml.upstream import ADVANTAGE_ARGS, LOSS_ARGS

TOKEN_IS, SEQUENCE_IS, GSPO_IS = "importance_sampling", "sequence_importance_sampling", "gspo_importance_sampling"
TOKEN_MEANS = "seq-mean-token-mean"  # the average of losses that have their own


@dataclass
class Translated:
    """An `algorithm:` section, and what to tell the user about it."""

    section: dict[str, Any]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Loss:
    """A loss of theirs: arguments of `Objective`, and the average; `preset` is taken among equals."""

    args: dict[str, Any]
    average: str
    preset: str | None = None
    notes: tuple[str, ...] = ()


def translate(path: Path) -> Translated:
    """The section of a file of settings: verl's YAML, or TRL's `GRPOConfig` as JSON or YAML.

    Raises:
        UsageError: it is neither, or a setting has no equal; one line that names it.
    """
    import yaml

    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: not readable as YAML or JSON: {str(error).splitlines()[0]}") from error
    if isinstance(data, Mapping) and "actor_rollout_ref" in data:
        return _from_verl(_Settings(path, data))
    if isinstance(data, Mapping) and {"num_generations", "loss_type", "epsilon", "beta"} & set(data):
        return _from_trl(_Settings(path, data))
    raise UsageError(f"{path}: neither verl's settings (actor_rollout_ref: …) nor a GRPOConfig of TRL's")


@dataclass(frozen=True)
class _Settings:
    path: Path
    data: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        value: Any = self.data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value

    def is_null(self, key: str) -> bool:
        """Whether it is given as null, which may mean something else than its default."""
        parent, _, name = key.rpartition(".")
        within = self.get(parent, {}) if parent else self.data
        return isinstance(within, Mapping) and within.get(name, 0) is None

    def number(self, key: str, default: float) -> float:
        return self.as_number(key, self.get(key, default))

    def as_number(self, key: str, value: Any) -> float:
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UsageError(f"{self.path}: {key}: {value!r} is not a number") from None

    def refuse(self, key: str, hint: str = "") -> UsageError:
        return UsageError(f"{self.path}: {key}: {self.get(key)} has no equal here{f'; {hint}' if hint else ''}")

    def refuse_unless(self, key: str, *neutral: Any, hint: str = "") -> None:
        if self.get(key) not in (None, *neutral):
            raise self.refuse(key, hint)


ACTOR, CORRECTION = "actor_rollout_ref.actor", "algorithm.rollout_correction"
# verl's rejection of whole responses, or tokens, by log(mu / pi): as clip masks of ours.
REJECTIONS = {"token_k1": "two-side", "seq_sum_k1": "sequence-two-side", "seq_mean_k1": "geometric-two-side"}
KL_TERMS = {
    "kl": "k1",
    "mse": "k2",
    "low_var_kl": "low_var_kl",
    "k3": "low_var_kl",
    "abs": "abs",
    "k1": "k1",
    "k2": "k2",
}


def _from_verl(verl: _Settings) -> Translated:
    if verl.get("algorithm.adv_estimator") is None:
        raise UsageError(f"{verl.path}: algorithm.adv_estimator: verl's default, gae, trains a critic")
    verl.refuse_unless("algorithm.adv_estimator", "grpo", "grpo_vectorized", hint="grpo has groups alone")
    verl.refuse_unless("algorithm.use_kl_in_reward", False, hint="use_kl_loss has one")
    loss = _verl_loss(verl)
    args, notes = dict(loss.args), list(loss.notes)
    if loss.average == "seq-mean-token-sum-norm":
        if not verl.get(f"{ACTOR}.loss_scale_factor"):
            default = "verl's default, the padding's length, has no equal here"
            raise UsageError(f"{verl.path}: {ACTOR}.loss_scale_factor: {default}")
        args["loss_scale_factor"] = verl.number(f"{ACTOR}.loss_scale_factor", 1)
    divides = bool(verl.get("algorithm.norm_adv_by_std_in_grpo", True))
    if divides:
        notes.append("verl divides by the sample's standard deviation (n - 1), this by the population's (n)")
    if verl.number(f"{ACTOR}.ppo_epochs", 1) > 1:
        notes.append("ppo_epochs stays verl's own: trainer.trainer_config.actor_rollout_ref.actor.ppo_epochs")
    more: dict[str, Any] = {}
    if verl.get(f"{ACTOR}.use_kl_loss"):
        if (kind := verl.get(f"{ACTOR}.kl_loss_type", "low_var_kl")) not in KL_TERMS:
            raise verl.refuse(f"{ACTOR}.kl_loss_type")
        more |= _kl(KL_TERMS[kind], verl.number(f"{ACTOR}.kl_loss_coef", 0.001))
    more |= _entropy(verl.number(f"{ACTOR}.entropy_coeff", 0))
    more |= _rate(verl, f"{ACTOR}.optim.lr")
    notes += _sampling(verl, "actor_rollout_ref.rollout.")
    group = int(verl.number("actor_rollout_ref.rollout.n", 1))
    return _translated(verl, loss, args, {"std_normalize": divides}, group, more, notes)


def _verl_loss(verl: _Settings) -> Loss:
    average, mode = (
        verl.get(f"{ACTOR}.loss_agg_mode", "token-mean"),
        verl.get(f"{ACTOR}.policy_loss.loss_mode", "vanilla"),
    )
    bypasses, notes = bool(verl.get(f"{CORRECTION}.bypass_mode")), []
    if bypasses:
        if mode not in ("vanilla", "bypass_mode"):
            notes.append(f"policy_loss.loss_mode: {mode} is not read by verl in bypass mode")
        if verl.get(f"{CORRECTION}.loss_type", "ppo_clip") == "reinforce":
            return Loss(_corrected_reinforce(verl), average, notes=tuple(notes))
        verl.refuse_unless(f"{CORRECTION}.rollout_rs", hint="loss_type: reinforce has one")
        mode = "vanilla"
    else:
        for key in ("rollout_is", "rollout_rs"):
            hint = "there are three policies in it; bypass_mode: true has two"
            verl.refuse_unless(f"{CORRECTION}.{key}", hint=hint)
    low, high = _verl_range(verl)
    cap = verl.number(f"{ACTOR}.clip_ratio_c", 3.0)
    clip = {"epsilon_low": low, "epsilon_high": high}
    taus = {f"tau_{ours}": verl.number(f"{ACTOR}.tau_{theirs}", default) for ours, theirs, default in _TAUS}
    losses: dict[str, tuple[dict[str, Any], str]] = {
        "vanilla": ({"clip_mode": "dual-clip", "dual_clip": cap, "weight": TOKEN_IS, **clip}, average),
        "gspo": ({"clip_mode": "gspo-one-side", "weight": GSPO_IS, **clip}, TOKEN_MEANS),
        "cispo": ({"weight": "clipped_importance_sampling", **clip}, average),
        "sapo": ({"weight": "sapo", **taus}, TOKEN_MEANS),
        "gpg": ({}, average),
        "dppo_tv": (
            {"clip_mode": "dppo-tv", "divergence_low": low, "divergence_high": high, **_capped(TOKEN_IS, cap)},
            average,
        ),
        # Its clip ratios are bounds of log rho.
        "geo_mean": (
            {"clip_mode": "one-side", "weight": "gmpo"}
            | {"epsilon_low": 1 - math.exp(-low), "epsilon_high": math.exp(high) - 1},
            TOKEN_MEANS,
        ),
    }
    if mode not in losses:
        raise verl.refuse(f"{ACTOR}.policy_loss.loss_mode", f"{', '.join(losses)} have one")
    if not bypasses and mode != "gpg":
        notes.append(
            "verl's ratio is to its own weights at the start of the step; here it is to the policy that sampled"
        )
    return Loss(*losses[mode], "off_dual_clip" if mode == "vanilla" else None, tuple(notes))


_TAUS = (("positive", "pos", 1.0), ("negative", "neg", 1.05))


def _verl_range(verl: _Settings) -> tuple[float, float]:
    """`clip_ratio` counts only where one of the others is null: by itself each is 0.2."""
    both = verl.number(f"{ACTOR}.clip_ratio", 0.2)
    keys = (f"{ACTOR}.clip_ratio_low", f"{ACTOR}.clip_ratio_high")
    low, high = (verl.number(key, both if verl.is_null(key) else 0.2) for key in keys)
    return low, high


def _corrected_reinforce(verl: _Settings) -> dict[str, Any]:
    """verl's REINFORCE on two policies: weights, or a mask by them (IcePop), or a rejection beside them."""
    verl.refuse_unless(f"{CORRECTION}.rollout_is_batch_normalize", False)
    weighs, rejects = verl.get(f"{CORRECTION}.rollout_is"), verl.get(f"{CORRECTION}.rollout_rs")
    weights = {"token": (TOKEN_IS, "two-side"), "sequence": (SEQUENCE_IS, "sequence-two-side")}
    args: dict[str, Any] = {}
    if weighs:
        if weighs not in weights:
            raise verl.refuse(f"{CORRECTION}.rollout_is")
        weight, mask = weights[weighs]
        lower, upper = _bounds(verl, f"{CORRECTION}.rollout_is_threshold", 2.0)
        args = _capped(weight, upper) if lower is None else _masked(weight, mask, lower, upper)
    if rejects:
        if rejects not in REJECTIONS or "clip_mode" in args:
            raise verl.refuse(f"{CORRECTION}.rollout_rs", f"one of {', '.join(REJECTIONS)} has one, without IcePop")
        lower, upper = _bounds(verl, f"{CORRECTION}.rollout_rs_threshold", None)
        lower = 1 / upper if lower is None else lower
        # Its bounds are those of mu / pi.
        args |= {"clip_mode": REJECTIONS[rejects], "epsilon_low": 1 - 1 / upper, "epsilon_high": 1 / lower - 1}
    return args


def _bounds(verl: _Settings, key: str, default: float | None) -> tuple[float | None, float]:
    """Of a threshold: "lower_upper", or the upper alone."""
    text = verl.get(key, default)
    lower, _, upper = str(text).rpartition("_")
    found = verl.as_number(key, lower) if lower else None, verl.as_number(key, upper)
    if any(each is not None and each <= 0 for each in found):
        raise UsageError(f"{verl.path}: {key}: {text} is not greater than 0")
    return found


def _capped(weight: str, cap: float) -> dict[str, Any]:
    return {"weight": {TOKEN_IS: "capped_importance_sampling"}.get(weight, weight), "weight_cap": cap}


def _masked(weight: str, mask: str, lower: float, upper: float) -> dict[str, Any]:
    """A weight that is 0 outside of its bounds."""
    args = {"weight": weight} if weight == TOKEN_IS else _capped(weight, upper)
    return {**args, "clip_mode": mask, "epsilon_low": 1 - lower, "epsilon_high": upper - 1}


AVERAGES = {
    **dict.fromkeys(("dapo", "bnpo", "cispo", "vespo"), "token-mean"),
    **dict.fromkeys(("grpo", "sapo"), TOKEN_MEANS),
    "dr_grpo": "seq-mean-token-sum-norm",
    "luspo": "seq-mean-token-sum",
}


def _from_trl(trl: _Settings) -> Translated:
    trl.refuse_unless("top_entropy_quantile", 1.0)
    trl.refuse_unless("use_adaptive_entropy", False, hint="entropy_coef alone has one")
    trl.refuse_unless("multi_objective_aggregation", "sum_then_normalize", hint="add rewards up in the workflow")
    trl.refuse_unless("reward_weights", hint="weigh rewards in the workflow")
    trl.refuse_unless("mask_truncated_completions", False, hint="mask them in the workflow")
    for key in ("min_p", "generation_kwargs"):
        trl.refuse_unless(key, {}, hint="rollouts have to come from the policy alone")
    trl.refuse_unless("scale_rewards", "group", "none", True, False, hint="group and none have one")
    loss = _trl_loss(trl)
    args, notes = dict(loss.args), list(loss.notes)
    if loss.average == "seq-mean-token-sum-norm":
        args["loss_scale_factor"] = trl.number("max_completion_length", 512)
    advantage: dict[str, Any] = {"std_normalize": trl.get("scale_rewards", True) in ("group", True)}
    if advantage["std_normalize"]:
        advantage["epsilon"] = 1e-4
        notes.append("TRL divides by the sample's standard deviation (n - 1), this by the population's (n)")
    more: dict[str, Any] = {}
    if beta := trl.number("beta", 0.0):
        trl.refuse_unless("use_bias_correction_kl", False, hint="false has one, the plain k3")
        trl.refuse_unless("sync_ref_model", False, hint="the reference model stays as it is")
        if trl.get("use_bias_correction_kl") is None:
            notes.append("TRL weighs its KL term by the ratio unless use_bias_correction_kl is false; here it is plain")
        more |= _kl("low_var_kl", beta)
    more |= _entropy(trl.number("entropy_coef", 0.0))
    more |= _rate(trl, "learning_rate")
    if trl.number("num_iterations", 1) > 1:
        notes.append("num_iterations is verl's ppo_epochs, under trainer.trainer_config")
    if trl.number("steps_per_generation", 1) > 1:
        notes.append("steps_per_generation: rollouts grow older by synchronizer.sync_interval here")
    notes += _sampling(trl, "")
    return _translated(trl, loss, args, advantage, int(trl.number("num_generations", 8)), more, notes)


def _trl_loss(trl: _Settings) -> Loss:
    kind, by_response = trl.get("loss_type", "dapo"), trl.get("importance_sampling_level", "token") == "sequence"
    if kind not in AVERAGES:
        raise trl.refuse("loss_type", f"{', '.join(AVERAGES)} have one")
    trl.refuse_unless("importance_sampling_level", "token", "sequence")
    average, is_ppo = AVERAGES[kind], kind not in ("cispo", "sapo", "vespo")
    low = trl.number("epsilon", 0.2)
    high = trl.number("epsilon_high", low)
    if not is_ppo or by_response:
        trl.refuse_unless(
            "off_policy_mask_threshold", hint="a clipped loss at importance_sampling_level: token has one"
        )
    if by_response and not is_ppo and kind != "vespo":
        raise trl.refuse("importance_sampling_level", f"token has one with loss_type: {kind}")
    if trl.get("use_vllm") and trl.get("vllm_importance_sampling_correction", True):
        trl.refuse_unless("off_policy_mask_threshold", hint="vllm_importance_sampling_correction: false has one")
        unread = [f"{key}: {trl.get(key)}" for key in ("epsilon", "epsilon_high", "delta") if trl.get(key) is not None]
        said = "count for nothing: TRL's own ratio is 1 in the one step after each generation"
        return Loss(_corrected_by_trl(trl, is_ppo), average, notes=(f"{', '.join(unread)} {said}",) if unread else ())
    notes = ["bnpo counts the tokens of each local batch, this those of the whole mini-batch"] if kind == "bnpo" else []
    if trl.get("use_vllm"):
        notes.append("TRL's ratio is to its own weights at the start of the generation; here it is to the sampler's")
    if kind == "cispo":
        # Its bound is the ratio itself.
        clipped = {"weight": "clipped_importance_sampling", "epsilon_low": 1.0, "epsilon_high": high - 1}
        return Loss(clipped if high > 1 else _capped(TOKEN_IS, high), average, notes=tuple(notes))
    if kind == "sapo":
        names = (("positive", "pos", 1.0), ("negative", "neg", 1.05))
        taus = {f"tau_{ours}": trl.number(f"sapo_temperature_{theirs}", default) for ours, theirs, default in names}
        return Loss({"weight": "sapo", **taus}, average, notes=tuple(notes))
    if kind == "vespo":
        names = (("k", "k_pos", 2.0), ("lambda", "lambda_pos", 3.0), ("k_negative", "k_neg", 3.0))
        names += (("lambda_negative", "lambda_neg", 2.0),)
        shape = {f"vespo_{ours}": trl.number(f"vespo_{theirs}", default) for ours, theirs, default in names}
        return Loss({"weight": "vespo", **shape}, average, notes=tuple(notes))
    args: dict[str, Any] = {"epsilon_low": low, "epsilon_high": high}
    args |= (
        {"clip_mode": "gspo-one-side", "weight": GSPO_IS}
        if by_response
        else {"clip_mode": "one-side", "weight": TOKEN_IS}
    )
    if (threshold := trl.get("off_policy_mask_threshold")) is not None:
        args |= {"clip_mode": "opsm", "max_kl": trl.as_number("off_policy_mask_threshold", threshold)}
    if trl.get("delta") is not None:
        delta = trl.number("delta", 0)
        if by_response or args["clip_mode"] == "opsm" or delta <= 1 + high:
            raise trl.refuse("delta", "one above 1 + epsilon_high has one, at importance_sampling_level: token")
        args |= {"clip_mode": "dual-clip", "dual_clip": delta}
    return Loss(args, average, "off_luspo" if kind == "luspo" and by_response else None, tuple(notes))


def _corrected_by_trl(trl: _Settings, is_ppo: bool) -> dict[str, Any]:
    """TRL's weights between vLLM and its own: all of the ratio, where its own is 1, in the first step after each
    generation."""
    fresh = trl.number("num_iterations", 1) == 1
    fresh &= trl.number("steps_per_generation", 1) <= trl.number("gradient_accumulation_steps", 1)
    mode, upper = trl.get("vllm_importance_sampling_mode", "sequence_mask"), "vllm_importance_sampling_clip_max"
    lower = trl.number("vllm_importance_sampling_clip_min", 0.0)
    level, _, how = mode.partition("_")
    if not is_ppo or not fresh or how not in ("mask", "truncate") or (how == "truncate" and lower):
        hint = "it has three policies unless each generation is one step of a clipped loss"
        if trl.get("vllm_importance_sampling_correction") is None:
            raise UsageError(
                f"{trl.path}: vllm_importance_sampling_correction: true, TRL's default, has no equal here; {hint}"
            )
        raise trl.refuse("vllm_importance_sampling_correction", hint)
    weight, mask = (SEQUENCE_IS, "sequence-two-side") if level == "sequence" else (TOKEN_IS, "two-side")
    cap = trl.number(upper, 3.0)
    return _masked(weight, mask, lower, cap) if how == "mask" else _capped(weight, cap)


def _kl(name: str, coefficient: float) -> dict[str, Any]:
    return {"kl_loss_fn": name, "kl_loss_fn_args": {"kl_coef": coefficient}}


def _entropy(coefficient: float) -> dict[str, Any]:
    args = {"entropy_loss_fn": "default", "entropy_loss_fn_args": {"entropy_coef": coefficient}}
    return args if coefficient else {}


def _rate(settings: _Settings, key: str) -> dict[str, Any]:
    return {"optimizer": {"lr": settings.number(key, 1e-6)}} if settings.get(key) else {}


def _sampling(settings: _Settings, prefix: str) -> list[str]:
    """What stands in another section of Trinity's YAML."""
    neutral = {"temperature": (1.0,), "top_p": (1.0,), "top_k": (-1, 0), "repetition_penalty": (1.0,)}
    given = {name: settings.get(prefix + name) for name in neutral}
    return [
        f"{name}: {value} goes under model"
        for name, value in given.items()
        if value is not None and value not in neutral[name]
    ]


def _translated(
    settings: _Settings,
    loss: Loss,
    args: dict[str, Any],
    advantage: dict[str, Any],
    group: int,
    more: dict[str, Any],
    notes: list[str],
) -> Translated:
    """With the preset that says it in the fewest arguments; refuses what it does not allow."""
    whole = {
        LOSS_ARGS: {**Objective.default_args(), **args},
        ADVANTAGE_ARGS: {**Shaping.default_args(), **advantage},
    }
    del whole[LOSS_ARGS]["loss_agg_mode"]
    preset, needed = nearest_preset(whole, loss.preset and PRESETS[loss.preset])
    name = f"trinity_rec.{preset.name}"
    if "loss_scale_factor" in args:
        needed[LOSS_ARGS]["loss_scale_factor"] = args["loss_scale_factor"]
    section: dict[str, Any] = {"algorithm_type": name, "repeat_times": group}
    section |= {key: values for key, values in needed.items() if values}
    if effective({"algorithm_type": name}).loss_agg_mode != loss.average:
        section["loss_agg_mode"] = loss.average
    section |= more
    try:
        effective(section)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{settings.path}: {str(error).splitlines()[0]}") from error
    return Translated(section, notes)
