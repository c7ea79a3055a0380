"""How the cost of losses and advantages grows with the size of the batch, next to upstream's `rec`.

    python benchmarks/scale.py --figure runs/benchmarks/scale.png --json runs/benchmarks/scale.json

Four sweeps multiply one size, by two, four or ten, and keep the others. A growth of 1 is linear: doubling the size
doubles the time. A million experiences (`--largest 1000000`) take most of the memory of 24 GB and several minutes.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from advantage import experiences
from objective import step
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import Run, alternate, machine, responses, write_json
from trinity.algorithm import ADVANTAGE_FN, POLICY_LOSS_FN

from trinity_rec.plot.draw import COLOURS, FAINT, INK, dress, new_figure, save, shared_legend
from trinity_rec.presets import PRESETS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.counted import peak_bytes

LOSS = PRESETS["rec_oneside_is"].policy_loss
CONTESTANTS = ("upstream", "ours", "ours, full metrics", "ours, pairwise")
COLOUR = dict(zip(CONTESTANTS, COLOURS, strict=False))


def losses(rows: int, length: int) -> dict[str, Run]:
    """A step of the loss of REC-OneSide-IS on a batch of [rows, length]."""
    data = responses(rows, length)
    ours = POLICY_LOSS_FN.get("trinity_rec.RECPolicyLoss")
    contestants = {
        "upstream": POLICY_LOSS_FN.get("rec")(**LOSS),
        "ours": ours(**LOSS),
        "ours, full metrics": ours(**LOSS, metrics="full"),
    }
    return {name: lambda loss=loss: step(loss, data) for name, loss in contestants.items()}


def advantages(count: int, group: int) -> dict[str, Run]:
    """The advantages of `count` experiences of 128 tokens, the write-back included."""
    ours = ADVANTAGE_FN.get("trinity_rec.RECAdvantage")
    contestants = {
        "upstream": ADVANTAGE_FN.get("rec")(),
        "ours": ours(),
        "ours, pairwise": ours(pairwise="reward-gap"),
    }
    # Each has experiences of its own: what one has written is not the other's to free.
    batches = {name: experiences(count, group, tokens=128) for name in contestants}
    return {name: lambda name=name: contestants[name].process(batches[name]) for name in contestants}


@dataclass(frozen=True)
class Sweep:
    """One size that grows: the contestants at each of its values, and what they work on in the meantime."""

    title: str
    axis: str
    sizes: tuple[int, ...]
    contestants: Callable[[int], dict[str, Run]]
    memory: bool


def powers(base: int, first: int, last: int) -> tuple[int, ...]:
    return tuple(base**exponent for exponent in range(first, last + 1))


SWEEPS = (
    Sweep("Loss: 8 responses", "tokens of a response", powers(4, 5, 8), lambda n: losses(8, n), memory=True),
    Sweep("Loss: 1024 tokens", "responses", powers(2, 0, 9)[::3], lambda n: losses(n, 1024), memory=True),
    Sweep(
        "Advantages: 16,384 experiences", "group size", powers(4, 1, 4), lambda n: advantages(16_384, n), memory=False
    ),
    Sweep("Advantages: groups of 8", "experiences", powers(10, 3, 6), lambda n: advantages(n, 8), memory=False),
)


def measure(sweep: Sweep, size: int, rounds: int) -> dict[str, Any]:
    """Median CPU seconds of each contestant at one size, and what it held at most besides its inputs."""
    contestants = sweep.contestants(size)
    # A turn of a small batch is many calls, so that the clock's resolution does not matter.
    calls = max(1, 2_000_000 // (size * 8192)) if sweep.memory else 1
    seconds = alternate(contestants, rounds, calls)
    row = {
        "sweep": sweep.title,
        "axis": sweep.axis,
        "size": size,
        "seconds": {name: statistics.median(values) for name, values in seconds.items()},
    }
    if sweep.memory:
        row["peak_bytes"] = {name: peak_bytes(run) for name, run in contestants.items()}
    return row


def growth(rows: list[dict[str, Any]], name: str) -> list[float]:
    """How much more than in proportion the time of a contestant grew, from each size to the next."""
    return [b["seconds"][name] / a["seconds"][name] / (b["size"] / a["size"]) for a, b in pairwise(rows)]


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """A panel a sweep, both axes logarithmic; the dotted line is proportional to the size."""
    figure = new_figure(6.8, 6.2)
    for axes, sweep in zip(map(dress, figure.subplots(2, 2).flat), SWEEPS, strict=True):
        of_sweep = [row for row in rows if row["sweep"] == sweep.title]
        sizes = [row["size"] for row in of_sweep]
        for name in of_sweep[0]["seconds"]:
            axes.plot(sizes, [row["seconds"][name] for row in of_sweep], color=COLOUR[name], marker=".", label=name)
        last = of_sweep[-1]["seconds"]["ours"]
        axes.plot(sizes, [last * size / sizes[-1] for size in sizes], color=FAINT, linestyle=":", label="in proportion")
        axes.set(xscale="log", yscale="log", xlabel=sweep.axis, ylabel="CPU seconds")
        axes.tick_params(which="minor", length=0, labelleft=False, labelbottom=False)
        axes.set_title(sweep.title, loc="left", fontsize=10, color=INK)
    shared_legend(figure)
    return save(figure, path)


def show(rows: list[dict[str, Any]]) -> Iterable[Table]:
    """For each sweep the time a size, and how it grew from the size before."""
    for sweep in SWEEPS:
        of_sweep = [row for row in rows if row["sweep"] == sweep.title]
        names = list(of_sweep[0]["seconds"])
        table = Table(title=f"{sweep.title}: milliseconds (growth over the size before; 1 is linear)")
        table.add_column(sweep.axis, justify="right")
        for name in names:
            table.add_column(name, justify="right")
        grown = {name: ["", *(f" ({g:.2f})" for g in growth(of_sweep, name))] for name in names}
        for at, row in enumerate(of_sweep):
            table.add_row(f"{row['size']:,}", *(f"{1e3 * row['seconds'][name]:.3g}{grown[name][at]}" for name in names))
        yield table


def main(
    rounds: Annotated[int, typer.Option(help="Turns of each contestant.", min=1)] = 5,
    largest: Annotated[int, typer.Option(help="Leave larger sizes out.", min=1_024)] = 100_000,
    figure: Annotated[Path | None, typer.Option(help="Where to draw the four sweeps.")] = None,
    json: Annotated[Path | None, typer.Option(help="Where to write the numbers.")] = None,
) -> None:
    """Time losses and advantages over growing sizes on one thread, alternating in one run."""
    torch.set_num_threads(1)
    console = Console()
    console.print(f"{machine()}")
    cases = [(sweep, size) for sweep in SWEEPS for size in sweep.sizes if size <= largest]
    rows = [measure(sweep, size, rounds) for sweep, size in track(cases, "sizes", console=console)]
    for table in show(rows):
        console.print(table)
    if figure is not None:
        figure.parent.mkdir(parents=True, exist_ok=True)
        console.print(f"drawn: {draw(rows, figure)}")
    write_json(json, rows)


if __name__ == "__main__":
    typer.run(main)
