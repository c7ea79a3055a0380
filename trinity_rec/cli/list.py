"""`trinity-rec list`."""

from __future__ import annotations

import textwrap
from typing import Annotated, Any

from rich.console import Console

from trinity_rec.cli.arguments import JSON
from trinity_rec.presets import FAMILIES, PRESETS, Preset
from trinity_rec.terminal import colours, print_json

EXAMPLE = "trinity-rec list"


def command(as_json: Annotated[bool, JSON] = False) -> None:
    """List the presets by family, and when to use each; piped or as JSON, what each clips, weights and needs too."""
    rows = [overview(preset) for preset in PRESETS.values()]
    console = Console(highlight=False, color_system=colours())
    if as_json:
        print_json(rows)
    elif console.is_terminal:
        print_families(console, rows)
    else:
        for row in (dict(zip(rows[0], rows[0], strict=True)), *rows):
            print("\t".join({True: "yes", False: "no"}.get(cell, cell) for cell in row.values()))


def overview(preset: Preset) -> dict[str, Any]:
    """One row."""
    loss, advantage = preset.policy_loss, preset.advantage
    weight = loss.get("weight", "none")
    sampling = {"importance_sampling": "token", "gspo_importance_sampling": "sequence"}
    shaping = [
        "exp(A / temp)" if weight == "advantage" else None,
        "exp(A / T)" if advantage.get("reweight") else None,
        "1 / std" if advantage.get("std_normalize") else None,
        "drop" if advantage.get("drop") else None,
        f"pairs: {advantage['pairwise']}" if advantage.get("pairwise") else None,
    ]
    return {
        "preset": preset.name,
        "family": preset.family,
        "clip": loss.get("clip_mode", "none"),
        "IS": sampling.get(weight, "none" if weight in ("none", "advantage") else weight),
        "data_weight": ", ".join(filter(None, shaping)) or "none",
        "regulariser": loss.get("regularizer", "none"),
        "needs_old_logprobs": preset.needs_old_logprobs,
        "needs_reference": False,
        "source": preset.source,
        "when": preset.when,
    }


def print_families(console: Console, rows: list[dict[str, Any]]) -> None:
    """Names in a column of their own, never folded."""
    name_width = max(len(row["preset"]) for row in rows) + 2
    for family in dict.fromkeys(row["family"] for row in rows):
        console.print(f"[bold]{family}[/] {FAMILIES[family]}")
        for row in rows:
            if row["family"] == family:
                first, *others = textwrap.wrap(row["when"], max(console.width - name_width - 2, 20))
                console.print(f"  [cyan]{row['preset']:<{name_width}}[/]{first}", markup=True, soft_wrap=True)
                for line in others:
                    console.print(" " * (name_width + 2) + line, markup=False, soft_wrap=True)
