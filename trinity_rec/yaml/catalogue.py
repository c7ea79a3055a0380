"""The presets as a table, as a section to paste, and against each other."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from trinity_rec.declared import Declared, choices_of
from trinity_rec.objective import Objective
from trinity_rec.objective.rules import RULES
from trinity_rec.presets import FAMILIES, PRESETS, Preset
from trinity_rec.shaping import Shaping
from trinity_rec.yaml.effective import GROUP_SIZE
from trinity_rec.yaml.notation import readable

BLOCKS: dict[str, type[Declared]] = {"policy_loss_fn_args": Objective, "advantage_fn_args": Shaping}


def details(preset: Preset) -> dict[str, Any]:
    """What `trinity-rec show --json` prints."""
    return {
        "name": preset.name,
        "title": preset.title,
        "family": preset.family,
        "gradient": preset.gradient,
        "when": preset.when,
        "source": preset.source,
        "needs_old_logprobs": preset.needs_old_logprobs,
        "needs_reference": False,
        "algorithm": section(preset),
    }


def section(preset: Preset) -> dict[str, Any]:
    """The effective `algorithm:` section, every default filled in, in groups of `GROUP_SIZE`."""
    loss = {**Objective.default_args(), **preset.policy_loss}
    average = loss.pop("loss_agg_mode")
    return {
        "algorithm_type": f"trinity_rec.{preset.name}",
        "repeat_times": GROUP_SIZE,
        "policy_loss_fn": "trinity_rec.RECPolicyLoss",
        "policy_loss_fn_args": loss,
        "loss_agg_mode": average or Objective(**preset.policy_loss).loss_agg_mode,
        "advantage_fn": "trinity_rec.RECAdvantage",
        "advantage_fn_args": {**Shaping.default_args(), **preset.advantage},
        **dict.fromkeys(("kl_loss_fn", "kl_penalty_fn", "entropy_loss_fn"), "none"),
        "sample_strategy": "trinity_rec.RECSampleStrategy",
    }


def counting_section(preset: Preset) -> dict[str, Any]:
    """`section` without the arguments that the preset does not read; it means the same."""
    whole = section(preset)
    return {key: BLOCKS[key].read_only(value) if key in BLOCKS else value for key, value in whole.items()}


def differences(left: Preset, right: Preset) -> dict[str, tuple[Any, Any]]:
    """Where two presets differ, as dotted key -> both values; None where one does not read the argument."""
    both = [{"gradient": readable(each.gradient), **_flat(counting_section(each))} for each in (left, right)]
    keys = dict.fromkeys([*both[0], *both[1]])
    found = {key: (both[0].get(key), both[1].get(key)) for key in keys if key != "algorithm_type"}
    return {key: values for key, values in found.items() if values[0] != values[1]}


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in section.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def comment_on(field: FieldInfo, name: str) -> str:
    """What a commented section says of an argument: what it may be, where that is one of a few, and its meaning."""
    choices = choices_of(field) or tuple(RULES.get(name, ()))
    listed = f"{', '.join(map(scalar, choices))}: " if choices else ""
    return f"{listed}{field.description}"


def section_text(preset: Preset, unicode: bool = True) -> str:
    """The section as YAML to paste, commented; what configs/algorithms/<preset>.yaml holds."""
    needs = "the rollout's logprobs" if preset.needs_old_logprobs else "nothing but rewards"
    lines = [
        *_comment(f"{preset.title} ({preset.family}). {preset.when}"),
        *_comment(f"Gradient: {readable(preset.gradient) if unicode else preset.gradient}"),
        *_comment(f"Source: {preset.source}."),
        *_comment(f"Needs {needs}; no reference model (a KL term asked for by kl_loss_fn loads one)."),
        "algorithm:",
    ]
    for key, value in counting_section(preset).items():
        if not isinstance(value, Mapping):
            lines.append(f"  {key}: {scalar(value)}{_KEY_NOTES.get(key, '')}")
            continue
        lines.append(f"  {key}:")
        said = None
        for name, argument in value.items():
            text = comment_on(BLOCKS[key].model_fields[name], name)
            if text != said:
                lines += _comment(text, "    ")
            said = text
            lines.append(f"    {name}: {scalar(argument)}")
    return "\n".join(lines) + "\n"


_KEY_NOTES = {
    "repeat_times": "  # responses a prompt: the group that the baseline is taken over",
    "loss_agg_mode": "  # the average over the batch",
    "kl_loss_fn": "  # k2 with kl_loss_fn_args: {kl_coef: ...} adds a KL term and loads a reference model",
}


def _comment(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, 118, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def scalar(value: Any) -> str:
    """A scalar as YAML writes it."""
    import yaml

    return yaml.safe_dump(value, width=10_000).removesuffix("...\n").rstrip("\n")


def markdown_table() -> str:
    """The presets as docs/presets.md shows them, a table a family."""
    lines = []
    for family in dict.fromkeys(preset.family for preset in PRESETS.values()):
        lines += [
            f"## {family}: {FAMILIES[family]}",
            "",
            "| preset | name | gradient of a token | when |",
            "|---|---|---|---|",
        ]
        lines += [
            "| `{}` | {} | {} | {} |".format(
                each.name, each.title, readable(each.gradient).replace("|", r"\|"), each.when.replace("|", r"\|")
            )
            for each in PRESETS.values()
            if each.family == family
        ]
        lines.append("")
    return "\n".join(lines[:-1])
