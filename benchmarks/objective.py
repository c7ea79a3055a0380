"""Time and peak memory of the policy loss, forward and backward: ours, upstream's `rec` with the same arguments, and
the losses of verl and TRL where they have the same gradient.

    python benchmarks/objective.py --size 32x8192 --trl runs/trl/bin/python --json runs/benchmarks/objective.json

`floor` is a plain copy of as many bytes as any implementation must move: it reads logprob, old_logprob, advantages and
mask, and writes the gradient.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from side_by_side import alternate, machine, ratio, responses, write_json
from torch import Tensor
from trinity.algorithm import POLICY_LOSS_FN
from turns import Worker

from trinity_rec.presets import PRESETS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.counted import peak_bytes
from tests.tiny_model import make_tiny_model

SIZES = ("1x256", "1x1024", "8x1024", "32x8192", "64x16384")
CALLS = 5  # a turn
TRL_WORKER = Path(__file__).with_name("trl_loss_worker.py")


def step(loss_fn: Any, data: dict[str, Tensor]) -> Tensor:
    """What a trainer does with a loss; its gradient. The leaf is made anew by `detach`, which copies nothing."""
    logprob = data["logprob"].detach().requires_grad_()
    loss, _ = loss_fn(**{**data, "logprob": logprob})
    loss.backward()
    return logprob.grad


def verl_vanilla() -> Any:
    """verl's PPO loss: the gradient of REC-OneSide-IS at the same clip range (and a third clip at 3 where A < 0)."""
    from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
    from verl.workers.config import ActorConfig

    config = ActorConfig(
        strategy="fsdp", rollout_n=1, clip_ratio_low=0.2, clip_ratio_high=0.2, ppo_micro_batch_size_per_gpu=1
    )

    def loss(logprob: Tensor, old_logprob: Tensor, action_mask: Tensor, advantages: Tensor) -> tuple[Tensor, dict]:
        return compute_policy_loss_vanilla(old_logprob, logprob, advantages, action_mask, "token-mean", config)

    return loss


def distinct_losses() -> dict[str, dict[str, Any]]:
    """The presets' loss arguments; presets that differ only in their advantage share a loss and a row."""
    rows: dict[tuple, tuple[list[str], dict[str, Any]]] = {}
    for preset in PRESETS.values():
        names, _ = rows.setdefault(tuple(sorted(preset.policy_loss.items())), ([], preset.policy_loss))
        names.append(preset.name)
    return {", ".join(names): arguments for names, arguments in rows.values()}


GRPO = PRESETS["rec_grpo"].policy_loss


def upstream_has(arguments: dict[str, Any]) -> bool:
    """Whether upstream's `rec` takes these arguments of a loss."""
    try:
        POLICY_LOSS_FN.get("rec")(**arguments)
    except (AssertionError, TypeError):
        return False
    return True


def measure(names: str, arguments: dict[str, Any], size: str, rounds: int, trl: Worker | None) -> dict[str, Any]:
    """One row: medians in milliseconds, ratios by round, peak extra memory in bytes."""
    rows, length = map(int, size.split("x"))
    data = responses(rows, length)
    ours, upstream = POLICY_LOSS_FN.get("trinity_rec.RECPolicyLoss"), POLICY_LOSS_FN.get("rec")
    # What upstream's `rec` does not have is compared with the common choice there, GRPO's loss.
    theirs = arguments if upstream_has(arguments) else GRPO
    losses = {
        "upstream": upstream(**theirs),
        "basic": ours(**arguments),
        "full": ours(**arguments, metrics="full"),
    }
    # The other frameworks' losses have one gradient among those of the presets, TRL's two.
    same_as = {"one-side": "token", "gspo-one-side": "sequence"}.get(str(arguments.get("clip_mode")))
    by_ratio = arguments.get("weight") in ("importance_sampling", "gspo_importance_sampling")
    if arguments == GRPO:  # verl's at the same clip range
        losses["verl"] = verl_vanilla()
    elsewhere = {}
    if trl is not None and same_as and by_ratio:
        objective = losses["basic"].objective
        order = f"{size} {same_as} {objective.epsilon_low} {objective.epsilon_high}"
        elsewhere["trl"] = lambda: trl.step(f"{order} {CALLS}")["seconds"]
    contestants = {name: lambda loss=loss: step(loss, data) for name, loss in losses.items()}
    source = torch.rand(rows * length * 17 // 8)  # 17 bytes a token (4 * 4 + 1); a copy reads and writes 4 each
    target = torch.empty_like(source)
    seconds = alternate({**contestants, "floor": lambda: target.copy_(source)}, rounds, CALLS, elsewhere)
    floor = seconds.pop("floor")
    peaks = {name: peak_bytes(run) for name, run in contestants.items()}
    norms = {name: run().norm().item() for name, run in contestants.items()}
    if elsewhere:
        answer = trl.step(f"{order} 1")
        peaks["trl"], norms["trl"] = int(answer["peak_bytes"]), answer["gradient_norm"]
    for name, norm in (
        norms.items() if theirs is arguments else ()
    ):  # verl's third clip takes its part, at a ratio of 3, of one token in a thousand
        if not math.isclose(norm, norms["upstream"], rel_tol=0.01):
            raise ArithmeticError(f"{names}: the gradient of {name} has norm {norm}, upstream's {norms['upstream']}")
    return {
        "presets": names,
        "size": size,
        "milliseconds": {name: 1e3 * statistics.median(values) for name, values in seconds.items()},
        "times_faster_than_upstream": {
            name: ratio(seconds["upstream"], values) for name, values in seconds.items() if name != "upstream"
        },
        "times_the_floor": {name: ratio(values, floor) for name, values in seconds.items()},
        "floor_milliseconds": 1e3 * statistics.median(floor),
        "peak_bytes": peaks,
        "input_bytes": 13 * rows * length,
    }


def show(results: list[dict[str, Any]], size: str) -> Table:
    """Upstream's time over that of each, ours over the floor's, and peak memory over upstream's."""
    table = Table(title=f"{size}: times faster than upstream: median, and min-max of the rounds")
    others = list(dict.fromkeys(name for row in results for name in row["milliseconds"] if name != "upstream"))
    for heading in ("presets", "upstream ms", *others, "floor ms", "ours/floor", "memory"):
        table.add_column(heading, justify="left" if heading == "presets" else "right", no_wrap=True)
    for row in results:
        faster = [row["times_faster_than_upstream"].get(name) for name in others]
        table.add_row(
            row["presets"].replace(", ", "\n"),
            f"{row['milliseconds']['upstream']:.2f}",
            *(f"{x['median']:.2f}\n{x['min']:.1f}-{x['max']:.1f}" if x else "" for x in faster),
            f"{row['floor_milliseconds']:.3f}",
            f"{row['times_the_floor']['basic']['median']:.1f}",
            f"{row['peak_bytes']['basic'] / row['peak_bytes']['upstream']:.2f}",
        )
    return table


def main(
    size: Annotated[list[str], typer.Option(help="Responses x tokens; may be repeated.")] = list(SIZES),  # noqa: B006
    preset: Annotated[list[str] | None, typer.Option(help="Only these presets; may be repeated.")] = None,
    rounds: Annotated[int, typer.Option(help="Turns of each contestant, of five calls each.", min=3)] = 11,
    trl: Annotated[Path | None, typer.Option(help="A Python that has TRL, to compare with its loss too.")] = None,
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
    with tempfile.TemporaryDirectory() as folder:
        worker = None
        if trl is not None:
            model = make_tiny_model(Path(folder) / "model")
            worker = Worker([str(trl), str(TRL_WORKER), dumps({"model": str(model)})], Path(folder) / "trl.log")
        for each in size:
            console.print(f"{machine()}")
            results = [
                measure(names, arguments, each, rounds, worker)
                for names, arguments in track(chosen.items(), each, console=console)
            ]
            console.print(show(results, each))
            rows += results
        if worker is not None:
            worker.close()
    write_json(json, rows)


if __name__ == "__main__":
    typer.run(main)
