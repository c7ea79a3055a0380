"""Time of the advantages of a batch of experiences, the write-back included: ours against upstream's `rec`.

python benchmarks/advantage.py --experiences 100000 --json runs/benchmarks/advantage.json
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import alternate, machine, ratio, write_json
from trinity.algorithm import ADVANTAGE_FN
from trinity.common.experience import EID, Experience

SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "std_normalize": ({"std_normalize": True}, {"std_normalize": True}),
    "drop: balance": ({"drop": "balance"}, {"drop": "balance"}),
    "pairwise: reward-gap": ({"pairwise": "reward-gap"}, {}),  # upstream has none: compared with its plain one
    "reweight: adaptive": ({"reweight": "adaptive"}, {}),  # likewise
}


def experiences(count: int, group: int, tokens: int) -> list[Experience]:
    """`count` experiences in groups of `group`, with binary rewards, a third of them right."""
    generator = torch.Generator().manual_seed(0)
    rewards = (torch.rand(count, generator=generator) < 1 / 3).double().tolist()
    tensor = torch.zeros(tokens + 4, dtype=torch.int32)
    return [
        Experience(
            eid=EID(batch=0, task=i // group, run=i % group, suffix=""),
            tokens=tensor,
            prompt_length=4,
            reward=rewards[i],
        )
        for i in range(count)
    ]


def measure(name: str, count: int, group: int, tokens: int, rounds: int) -> dict[str, Any]:
    """One row: seconds of both, and the ratio by round."""
    ours, theirs = SETTINGS[name]
    functions = {
        "upstream": ADVANTAGE_FN.get("rec")(**theirs),
        "ours": ADVANTAGE_FN.get("trinity_rec.RECAdvantage")(**ours),
    }
    # Each has experiences of its own: what one has written is not the other's to free.
    batches = {who: experiences(count, group, tokens) for who in functions}
    runs = {who: lambda who=who: functions[who].process(batches[who]) for who in functions}
    seconds = alternate(runs, rounds)
    return {
        "setting": name,
        "experiences": count,
        "group": group,
        "seconds": {who: statistics.median(values) for who, values in seconds.items()},
        "times_faster_than_upstream": ratio(seconds["upstream"], seconds["ours"]),
    }


def main(
    experiences: Annotated[list[int], typer.Option(help="How many; may be repeated.")] = [  # noqa: B006
        1_000,
        10_000,
        100_000,
    ],
    group: Annotated[int, typer.Option(help="Responses in a group.", min=1)] = 8,
    tokens: Annotated[int, typer.Option(help="Tokens of a response.", min=1)] = 128,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.", min=3)] = 5,
    json: Annotated[Path | None, typer.Option(help="Where to write the numbers.")] = None,
) -> None:
    """Time group advantages against upstream's on one thread, alternating in one run."""
    torch.set_num_threads(1)
    console = Console()
    console.print(f"{machine()}")
    cases = [(name, count) for name in SETTINGS for count in experiences]
    rows = [measure(name, count, group, tokens, rounds) for name, count in track(cases, "advantages", console=console)]
    table = Table(title=f"groups of {group}: microseconds an experience")
    for heading in ("setting", "experiences", "upstream", "ours", "times faster: median", "min-max"):
        table.add_column(heading, justify="left" if heading == "setting" else "right")
    for row in rows:
        faster = row["times_faster_than_upstream"]
        each = {who: 1e6 * seconds / row["experiences"] for who, seconds in row["seconds"].items()}
        table.add_row(
            row["setting"],
            f"{row['experiences']:,}",
            f"{each['upstream']:.2f}",
            f"{each['ours']:.2f}",
            f"{faster['median']:.2f}",
            f"{faster['min']:.2f}-{faster['max']:.2f}",
        )
    console.print(table)
    write_json(json, rows)


if __name__ == "__main__":
    typer.run(main)
