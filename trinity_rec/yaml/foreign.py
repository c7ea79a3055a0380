"""verl's and TRL's settings as an `algorithm:` section: losses, clip ranges, averages, rollout correction.

What has no equal is refused by name; docs/coming_from.md holds the tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trinity_rec.presets import PRESETS
from trinity_rec.terminal import UsageError


@dataclass
class Translated:
    """An `algorithm:` section, and what to tell the user about it."""

    section: dict[str, Any]
    notes: list[str] = field(default_factory=list)


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
        found = _from_verl(_Settings(path, data))
    elif isinstance(data, Mapping) and {"num_generations", "loss_type", "epsilon", "beta"} & set(data):
        found = _from_trl(_Settings(path, data))
    else:
        raise UsageError(f"{path}: neither verl's settings (actor_rollout_ref: …) nor a GRPOConfig of TRL's")
    _complete(path, found)
    return found


@dataclass(frozen=True)
class _Settings:
    path: Path
    data: Mapping[str, Any]

    def get(self, key: str, default: Any = None) -> Any:
        value: Any = self.data
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return default if value is None else value

    def number(self, key: str, default: float) -> float:
        value = self.get(key, default)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise UsageError(f"{self.path}: {key}: {value!r} is not a number") from None

    def refuse(self, key: str, hint: str = "") -> UsageError:
        return UsageError(f"{self.path}: {key}: {self.get(key)} has no equal here{f'; {hint}' if hint else ''}")


def _from_verl(verl: _Settings) -> Translated:
    actor, correction = "actor_rollout_ref.actor", "algorithm.rollout_correction"
    if verl.get("algorithm.adv_estimator", "gae") != "grpo":
        raise (
            verl.refuse("algorithm.adv_estimator", "grpo is the only one with groups alone")
            if verl.get("algorithm.adv_estimator")
            else UsageError(f"{verl.path}: algorithm.adv_estimator: verl's default, gae, trains a critic")
        )
    if verl.get("algorithm.use_kl_in_reward"):
        raise verl.refuse("algorithm.use_kl_in_reward", "use_kl_loss has one")
    mode, low = verl.get(f"{actor}.policy_loss.loss_mode", "vanilla"), verl.number(f"{actor}.clip_ratio", 0.2)
    clip = {
        "epsilon_low": verl.number(f"{actor}.clip_ratio_low", low),
        "epsilon_high": verl.number(f"{actor}.clip_ratio_high", low),
    }
    notes = []
    bypasses = bool(verl.get(f"{correction}.bypass_mode"))
    weighs = verl.get(f"{correction}.rollout_is") if verl.get(correction) else None
    if verl.get(f"{correction}.rollout_rs"):
        raise verl.refuse(f"{correction}.rollout_rs", "off_seq_mis and off_geo_rs reject responses by bounds of theirs")
    average = verl.get(f"{actor}.loss_agg_mode", "token-mean")
    if bypasses and verl.get(f"{correction}.loss_type", "ppo_clip") == "reinforce":
        if verl.get(f"{correction}.rollout_is_batch_normalize"):
            raise verl.refuse(f"{correction}.rollout_is_batch_normalize")
        presets = {"token": "off_tis", "sequence": "off_seq_tis", None: "rec_reinforce"}
        if weighs not in presets:
            raise verl.refuse(f"{correction}.rollout_is")
        name = presets[weighs]
        args = {"weight_cap": verl.number(f"{correction}.rollout_is_threshold", 2.0)} if weighs else {}
    else:
        if weighs and not bypasses:
            raise verl.refuse(f"{correction}.rollout_is", "there are three policies in it; bypass_mode: true has two")
        if mode == "vanilla":
            name, args = "off_dual_clip", {**clip, "dual_clip": verl.number(f"{actor}.clip_ratio_c", 3.0)}
        elif mode == "gspo":
            name, args, average = "rec_gspo_is", clip, None
        elif mode == "cispo":
            name, args = "off_cispo", clip
        elif mode == "sapo":
            taus = {"tau_positive": "tau_pos", "tau_negative": "tau_neg"}
            name, average = "off_sapo", None
            args = {ours: verl.number(f"{actor}.{key}", {"tau_pos": 1.0}.get(key, 1.05)) for ours, key in taus.items()}
        elif mode == "gpg":
            name, args = "rec_reinforce", {}
        else:
            raise verl.refuse(f"{actor}.policy_loss.loss_mode", "vanilla, gspo, cispo, sapo and gpg have one")
        if not bypasses and mode != "gpg":
            notes.append(
                "verl's ratio is to its own weights at the start of the step; here it is to the policy that sampled"
            )
    advantage = {}
    if verl.get("algorithm.norm_adv_by_std_in_grpo", True):
        advantage["std_normalize"] = True
        notes.append("verl divides by the sample's standard deviation (n - 1), this by the population's (n)")
    section: dict[str, Any] = {"algorithm_type": f"trinity_rec.{name}"}
    section["repeat_times"] = int(verl.number("actor_rollout_ref.rollout.n", 1))
    section |= {"policy_loss_fn_args": args, "advantage_fn_args": advantage, "loss_agg_mode": average}
    if average == "seq-mean-token-sum-norm":
        if not verl.get(f"{actor}.loss_scale_factor"):
            raise UsageError(
                f"{verl.path}: {actor}.loss_scale_factor: verl's default, the padding's length, has no equal here"
            )
        args["loss_scale_factor"] = verl.number(f"{actor}.loss_scale_factor", 1)
    if verl.get(f"{actor}.use_kl_loss"):
        kind = verl.get(f"{actor}.kl_loss_type", "low_var_kl")
        names = {
            "kl": "k1",
            "k1": "k1",
            "mse": "k2",
            "k2": "k2",
            "low_var_kl": "low_var_kl",
            "k3": "low_var_kl",
            "abs": "abs",
        }
        if kind not in names:
            raise verl.refuse(f"{actor}.kl_loss_type")
        section |= {
            "kl_loss_fn": names[kind],
            "kl_loss_fn_args": {"kl_coef": verl.number(f"{actor}.kl_loss_coef", 0.001)},
        }
    if entropy := verl.number(f"{actor}.entropy_coeff", 0):
        section |= {"entropy_loss_fn": "default", "entropy_loss_fn_args": {"entropy_coef": entropy}}
    if rate := verl.get(f"{actor}.optim.lr"):
        section["optimizer"] = {"lr": float(rate)}
    return Translated(section, notes)


def _from_trl(trl: _Settings) -> Translated:
    kind, level = trl.get("loss_type", "dapo"), trl.get("importance_sampling_level", "token")
    averages = {
        "dapo": "token-mean",
        "bnpo": "token-mean",
        "grpo": "seq-mean-token-mean",
        "dr_grpo": "seq-mean-token-sum-norm",
    }
    if kind not in averages:
        raise trl.refuse("loss_type", f"{', '.join(averages)} have one")
    if level not in ("token", "sequence"):
        raise trl.refuse("importance_sampling_level")
    for key in ("top_entropy_quantile", "use_bias_correction_kl", "off_policy_mask_threshold"):
        if trl.get(key) not in (None, False, 1.0):
            raise trl.refuse(key)
    low = trl.number("epsilon", 0.2)
    args = {"epsilon_low": low, "epsilon_high": trl.number("epsilon_high", low)}
    name = "rec_grpo"
    if level == "sequence":
        name = "rec_gspo_is"
    elif trl.get("delta") is not None:
        name, args["dual_clip"] = "off_dual_clip", trl.number("delta", 0)
    if level == "sequence" and trl.get("delta") is not None:
        raise trl.refuse("delta", "importance_sampling_level: token has one")
    if kind == "dr_grpo":
        args["loss_scale_factor"] = trl.number("max_completion_length", 256)
    scaled = str(trl.get("scale_rewards", "group")).lower()
    if scaled not in ("group", "true", "none", "false"):
        raise trl.refuse("scale_rewards", "group and none have one")
    notes = []
    if scaled in ("group", "true"):
        notes.append("TRL divides by the sample's standard deviation (n - 1), this by the population's (n)")
    notes.append(
        "TRL takes the ratio to its own weights at the start of the generation; here it is to the policy that sampled"
    )
    section: dict[str, Any] = {
        "algorithm_type": f"trinity_rec.{name}",
        "repeat_times": int(trl.number("num_generations", 8)),
        "policy_loss_fn_args": args,
        "advantage_fn_args": {"std_normalize": scaled in ("group", "true")},
        "loss_agg_mode": averages[kind],
    }
    if beta := trl.number("beta", 0.0):
        section |= {"kl_loss_fn": "low_var_kl", "kl_loss_fn_args": {"kl_coef": beta}}
    if trl.get("learning_rate"):
        section["optimizer"] = {"lr": trl.number("learning_rate", 1e-6)}
    return Translated(section, notes)


def _complete(path: Path, found: Translated) -> None:
    """Leave out what the preset says by itself; refuse what it does not know."""
    from trinity_rec.yaml.effective import effective

    section = found.section
    name = section["algorithm_type"].removeprefix("trinity_rec.")
    if name not in PRESETS:
        raise UsageError(f"{path}: its loss is {name}'s, which is no preset of this version")
    preset = effective({"algorithm_type": section["algorithm_type"]})
    for key in ("policy_loss_fn_args", "advantage_fn_args"):
        own = getattr(preset, key)
        section[key] = {argument: value for argument, value in section[key].items() if own.get(argument) != value}
        if not section[key]:
            del section[key]
    if section["loss_agg_mode"] in (None, preset.loss_agg_mode):
        del section["loss_agg_mode"]
    try:
        effective(section)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{path}: {str(error).splitlines()[0]}") from error
