"""What was measured, as Markdown: the verdicts, and for each claim its parts with effects and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trinity_rec.lab.bandit import BANDIT_VARIANTS
from trinity_rec.lab.claims import HOLDS
from trinity_rec.lab.real_tasks import task_named
from trinity_rec.variants import SETTINGS, VARIANTS


def summary_table(judged: Sequence[dict[str, Any]]) -> str:
    """One row a claim."""
    rows = ["| claim | verdict | effect | 95 % interval | decided by |", "|---|---|---|---|---|"]
    for each in judged:
        effect, interval = _numbers(each)
        rows.append(f"| {each['claim']} | **{each['verdict']}** | {effect} | {interval} | {each['decided_by']} |")
    return "\n".join(rows)


def parts_table(claim: dict[str, Any]) -> str:
    """One row a part of a claim; of its cells, a task under a setting each, those that say something else."""
    rows = ["| part | effect | 95 % interval | verdict | cells |", "|---|---|---|---|---|"]
    for part in claim["parts"]:
        effect, interval = _numbers(part)
        cells = _cells(part["cells"])
        rows.append(f"| {part['statement']} | {effect} | {interval} | {part['verdict']} | {cells} |")
    return "\n".join(rows)


def _cells(cells: Sequence[dict[str, Any]]) -> str:
    """How many cells hold, and which do not, with their effects."""
    if len(cells) < 2:
        return ""
    holding = sum(cell["verdict"] == HOLDS for cell in cells)
    others = [
        f"{task_named(cell['task']).title}, {SETTINGS[cell['setting']].title}: "
        f"{cell['verdict']} ({cell['effect']:+.3f})"
        for cell in cells
        if cell["verdict"] != HOLDS
    ]
    return "; ".join([f"{holding} of {len(cells)} hold", *others])


def mass_table(final_mass: dict[str, dict[str, list[float]]]) -> str:
    """One row a variant of the bandit: the mass on each arm at the end."""
    rows = ["| variant | exact gradient: arms 1, 2, 3 | sampled: arms 1, 2, 3 |", "|---|---|---|"]
    for name, variant in BANDIT_VARIANTS.items():
        masses = (", ".join(f"{mass:.2f}" for mass in final_mass[source][name]) for source in ("exact", "sampled"))
        rows.append(f"| {variant.title} | {' | '.join(masses)} |")
    return "\n".join(rows)


def rewards_table(rewards: Sequence[Mapping[str, str]]) -> str:
    """The rows of `rewards.csv` as one row a variant and one column a setting: the final reward on each task."""
    ends = {(row["variant"], row["setting"], row["task"]): float(row["final_reward"]) for row in rewards}
    tasks = dict.fromkeys(row["task"] for row in rewards)
    settings = [setting for setting in SETTINGS if any(setting == row["setting"] for row in rewards)]
    rows = [
        f"| algorithm | {' | '.join(SETTINGS[setting].title for setting in settings)} |",
        "|---" * (1 + len(settings)) + "|",
    ]
    for name, variant in VARIANTS.items():
        cells = [
            " / ".join(f"{ends[name, setting, task]:.2f}" for task in tasks if (name, setting, task) in ends)
            for setting in settings
        ]
        if any(cells):
            rows.append(f"| {variant.title} | {' | '.join(cells)} |")
    return "\n".join(rows)


def trinity_table(side_by_side: Sequence[dict[str, Any]]) -> str:
    """One row an algorithm: the reward of the last rollouts in the lab and through `trinity run`, and its seconds; the
    same with vLLM and verl, where it was run."""
    sides = {"lab, by seed": "lab_final", "`trinity run`": "trinity_final"}
    if any(each.get("vllm_final") for each in side_by_side):
        sides["with vLLM and verl"] = "vllm_final"
    header = ["algorithm", *sides, "seconds"]
    rows = [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    for each in side_by_side:
        cells = [", ".join(f"{reward:.2f}" for reward in each.get(name, [])) for name in sides.values()]
        seconds = ", ".join(f"{spent:.0f}" for spent in each["seconds"])
        rows.append(f"| {' | '.join([VARIANTS[each['variant']].title, *cells, seconds])} |")
    return "\n".join(rows)


def report(judged: Sequence[dict[str, Any]], side_by_side: Sequence[dict[str, Any]] | None) -> str:
    """The whole of it, beside its figures; `side_by_side` is what `through_trinity` gave, if it was run."""
    pieces = ["# The claims, measured", summary_table(judged)]
    for each in judged:
        pieces += [
            f"## {each['claim']}: {each['verdict']}",
            each["statement"],
            f"![{each['claim']}]({each['claim']}.png)",
            parts_table(each),
            f"Rule: {each['rule']}",
        ]
        if "final_mass" in each:
            pieces.append(mass_table(each["final_mass"]))
    if side_by_side is not None:
        pieces += [
            "## Through Trinity",
            "Addition at sync_interval 20: the mean reward of the last 20 steps' rollouts, in the lab and through the "
            "real `trinity run` on the local backend.",
            "![The lab and trinity run](trinity/trinity.png)",
            trinity_table(side_by_side),
        ]
    return "\n\n".join(pieces) + "\n"


def _numbers(each: dict[str, Any]) -> tuple[str, str]:
    low, high = each["interval"]
    return f"{each['effect']:+.3f}", f"{low:+.3f} to {high:+.3f}"
