"""Time and peak memory of the policy loss, forward and backward: ours, upstream's `rec` with the same arguments, and
verl's PPO loss.

    python benchmarks/objective.py --size 32x8192 --json runs/benchmarks/objective.json

`floor` is a plain copy of as many bytes as any implementation must move: it reads logprob, old_logprob, advantages and
mask, and writes the gradient.
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
from side_by_side import alternate, machine, peak_bytes, ratio, write_json
from torch import Tensor
from trinity.algorithm import POLICY_LOSS_FN

from trinity_rec.presets import PRESETS

SIZES = ("8x1024", "32x8192", "64x16384")


def batch(rows: int, length: int) -> dict[str, Tensor]:
    """Responses of half to full length, ratios around 1 with a spread of 0.3, one advantage a response."""
    generator = torch.Generator().manual_seed(0)
    logprob = -3 * torch.rand(rows, length, generator=generator)
    old_logprob = logprob + 0.3 * torch.randn(rows, length, generator=generator)
    lengths = torch.randint(length // 2, length + 1, (rows, 1), generator=generator)
    mask = torch.arange(length) < lengths
    advantages = torch.randn(rows, 1, generator=generator) * mask
    return {"logprob": logprob, "old_logprob": old_logprob, "action_mask": mask, "advantages": advantages}


def step(loss_fn: Any, data: dict[str, Tensor]) -> None:
    """What a trainer does with a loss. The leaf is made anew by `detach`, which copies nothing."""
    logprob = data["logprob"].detach().requires_grad_()
    loss, _ = loss_fn(**{**data, "logprob": logprob})
    loss.backward()


def verl_vanilla(logprob: Tensor, old_logprob: Tensor, action_mask: Tensor, advantages: Tensor) -> tuple[Tensor, dict]:
    """verl's PPO loss: the gradient of REC-OneSide-IS at the same clip range (and a third clip at 3 where A < 0)."""
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import ActorConfig

    config = ActorConfig(
        strategy="fsdp", rollout_n=1, clip_ratio_low=0.2, clip_ratio_high=0.2, ppo_micro_batch_size_per_gpu=1
    )
    return compute_policy_loss_vanilla(old_logprob, logprob, advantages, action_mask, "token-mean", config)


def distinct_losses() -> dict[str, dict[str, Any]]:
    """The presets' loss arguments; presets that differ only in their advantage share a loss and a row."""
    rows: dict[tuple, tuple[list[str], dict[str, Any]]] = {}
    for preset in PRESETS.values():
        names, _ = rows.setdefault(tuple(sorted(preset.policy_loss.items())), ([], preset.policy_loss))
        names.append(preset.name)
    return {", ".join(names): arguments for names, arguments in rows.values()}


def measure(names: str, arguments: dict[str, Any], size: str, rounds: int, compiled: bool) -> dict[str, Any]:
    """One row: medians in milliseconds, ratios by round, peak extra memory in bytes."""
    rows, length = map(int, size.split("x"))
    data = batch(rows, length)
    ours, upstream = POLICY_LOSS_FN.get("trinity_rec.RECPolicyLoss"), POLICY_LOSS_FN.get("rec")
    losses = {
        "upstream": upstream(**arguments),
        "basic": ours(**arguments),
        "full": ours(**arguments, metrics="full"),
    }
    if compiled:
        torch.compiler.reset()  # one loss a process is the rule; here dozens would meet the limit on recompilation
        losses["compiled"] = ours(**arguments, compile=True)
    if arguments.get("clip_mode") == "one-side" and arguments.get("weight") == "importance_sampling":
        losses["verl"] = verl_vanilla
    contestants = {name: lambda loss=loss: step(loss, data) for name, loss in losses.items()}
    source = torch.rand(rows * length * 17 // 8)  # 17 bytes a token (4 * 4 + 1); a copy reads and writes 4 each
    target = torch.empty_like(source)
    seconds = alternate({**contestants, "floor": lambda: target.copy_(source)}, rounds, calls=5)
    floor = seconds.pop("floor")
    return {
        "presets": names,
        "size": size,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "times_faster_than_upstream": {
            name: ratio(seconds["upstream"], values) for name, values in seconds.items() if name != "upstream"
        },
        "times_the_floor": {name: ratio(values, floor) for name, values in seconds.items()},
        "floor_milliseconds": 1e3 * statistics.median(floor),
        "peak_bytes": {name: peak_bytes(run) for name, run in contestants.items()},
        "input_bytes": 13 * rows * length,
    }


def show(results: list[dict[str, Any]], size: str) -> Table:
    table = Table(title=f"{size}: times faster than upstream: median, and min-max of the rounds")
    others = [name for name in results[0]["milliseconds"] if name != "upstream"]
    for heading in ("presets", "upstream ms", *others, "floor ms", "ours/floor", "memory"):
        table.add_column(heading, justify="left" if heading == "presets" else "right", no_wrap=True)
    for row in results:
        faster = [row["times_faster_than_upstream"].get(name) for name in others]
        best = "compiled" if "compiled" in others else "basic"
        table.add_row(
            row["presets"].replace(", ", "\n"),
            f"{row['milliseconds']['upstream']:.2f}",
            *(f"{x['median']:.2f}\n{x['min']:.1f}-{x['max']:.1f}" if x else "" for x in faster),
            f"{row['floor_milliseconds']:.3f}",
            f"{row['times_the_floor'][best]['median']:.1f}",
            f"{row['peak_bytes']['basic'] / row['peak_bytes']['upstream']:.2f}",
        )
    return table


def main(
    size: Annotated[list[str], typer.Option(help="Responses x tokens; may be repeated.")] = list(SIZES),  # noqa: B006
    preset: Annotated[list[str] | None, typer.Option(help="Only these presets; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant, of five calls each.", min=3)] = 11,
    compiled: Annotated[bool, typer.Option(help="Also with `compile: true`.")] = True,
    json: Annotated[Path | None, typer.Option(help="Where to write the numbers.")] = None,
) -> None:
    """Time the policy loss of every preset against upstream's on one thread, alternating in one run."""
    torch.set_num_threads(1)
    for name in preset or ():
        if name not in PRESETS:
            raise typer.BadParameter(f"{name!r} is not one of {', '.join(PRESETS)}", param_hint="--preset")
    chosen = {
        names: arguments
        for names, arguments in distinct_losses().items()
        if not preset or set(names.split(", ")) & set(preset)
    }
    console = Console()
    rows: list[dict[str, Any]] = []
    for each in size:
        console.print(f"{machine()}")
        results = [
            measure(names, arguments, each, rounds, compiled)
            for names, arguments in track(chosen.items(), each, console=console)
        ]
        console.print(show(results, each))
        rows += results
    write_json(json, rows)


if __name__ == "__main__":
    typer.run(main)
