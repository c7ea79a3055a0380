"""The `off_*` presets beside the losses of the same name elsewhere, and what the disagreements come to in numbers.

    python benchmarks/corrections.py --trl runs/trl/bin/python

First the greatest difference of each pair of gradients, over the greatest gradient, on one batch of stale responses,
for settings that should agree. Then the disagreements that docs/corrections.md names. With `--times` instead what each
loss costs beside that of rec_grpo, for one response, a small and a large batch.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from side_by_side import alternate, ratio, responses
from torch import Tensor
from trinity.algorithm import POLICY_LOSS_FN
from turns import Worker

from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.conformance.verl_losses import reinforce, verl_loss
from tests.tiny_model import make_tiny_model

# The gradient of the ascended objective with respect to logprob, of a batch as `responses` makes it.
Gradient = Callable[[dict[str, Tensor]], Tensor]

TRL_WORKER = Path(__file__).with_name("trl_gradient_worker.py")
SEQUENCE = {"importance_sampling_level": "sequence"}

# Which settings of TRL give the gradient of which preset.
IN_TRL: dict[str, dict[str, Any]] = {
    "off_dapo": {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28},
    "off_dual_clip": {"loss_type": "dapo", "epsilon": 0.2, "delta": 3.0},
    "off_cispo": {"loss_type": "cispo", "epsilon_high": 1.28},
    "off_sapo": {"loss_type": "sapo"},
    "off_luspo": {"loss_type": "luspo", "epsilon": 3e-4, "epsilon_high": 4e-4, **SEQUENCE},
    "off_opsm": {"loss_type": "dapo", "epsilon": 0.2, "off_policy_mask_threshold": 0.5},
    "off_vespo": {"loss_type": "vespo"},
    "rec_gspo_is": {"loss_type": "grpo", "epsilon": 3e-4, "epsilon_high": 4e-4, **SEQUENCE},
    "rec_oneside_is": {"loss_type": "bnpo", "epsilon": 0.2},
}

# The same of Liger.
IN_LIGER: dict[str, dict[str, Any]] = {
    "off_dapo": {"loss_type": "dapo", "epsilon_low": 0.2, "epsilon_high": 0.28},
    "off_dual_clip": {"loss_type": "dapo", "delta": 3.0},
    "off_cispo": {"loss_type": "cispo", "epsilon_high": 1.28},
    "off_sapo": {"loss_type": "sapo"},
    "off_luspo": {"loss_type": "luspo", "epsilon_low": 3e-4, "epsilon_high": 4e-4, **SEQUENCE},
    "off_vespo": {"loss_type": "vespo"},
}

# The same of the losses that come with Trinity.
IN_TRINITY: dict[str, tuple[str, dict[str, Any]]] = {
    "off_cispo": ("cispo", {}),
    "rec_gspo_is": ("gspo", {"clip_range_low": 3e-4, "clip_range_high": 4e-4}),
    "off_dual_clip": ("ppo", {"clip_range": 0.2}),
}


def of_loss(loss: Callable[..., Any]) -> Gradient:
    """Of a function of logprob, old_logprob, mask and advantages that returns a loss, or a loss and metrics."""

    def gradient(data: dict[str, Tensor]) -> Tensor:
        logprob = data["logprob"].detach().requires_grad_()
        result = loss(logprob, data["old_logprob"], data["action_mask"], data["advantages"])
        (result[0] if isinstance(result, tuple) else result).backward()
        return -logprob.grad

    return gradient


def preset(name: str) -> Gradient:
    return of_loss(Objective(**PRESETS[name].policy_loss))


def trinity(name: str, **arguments: Any) -> Gradient:
    loss = POLICY_LOSS_FN.get(name)
    return of_loss(loss(**{**loss.default_args(), **arguments}))


class Elsewhere:
    """The losses of TRL and Liger, computed by an interpreter that has them."""

    def __init__(self, python: Path, folder: Path) -> None:
        self._batch = folder / "batch.pt"
        model = make_tiny_model(folder / "model")
        self._worker = Worker([str(python), str(TRL_WORKER), json.dumps({"model": str(model)})], folder / "trl.log")

    def __call__(self, framework: str, **arguments: Any) -> Gradient:
        def gradient(data: dict[str, Tensor]) -> Tensor:
            torch.save(data, self._batch)
            order = {"framework": framework, "arguments": arguments, "batch": str(self._batch)}
            return -torch.tensor(self._worker.step(json.dumps(order))["gradient"], dtype=data["logprob"].dtype)

        return gradient

    def close(self) -> None:
        self._worker.close()


def weights(gradient: Gradient, ratios: list[float], advantage: float = 1.0, mu: float = 0.01) -> list[float]:
    """What each token of a lone response weighs, that is its gradient over A, before the average; their mu is given."""
    old_logprob = torch.full((1, len(ratios)), math.log(mu), dtype=torch.float64)
    data = {
        "logprob": old_logprob + torch.tensor([ratios], dtype=torch.float64).log(),
        "old_logprob": old_logprob,
        "action_mask": torch.ones(1, len(ratios), dtype=torch.bool),
        "advantages": torch.full((1, len(ratios)), advantage, dtype=torch.float64),
    }
    return (gradient(data)[0] * len(ratios) / advantage).tolist()


def agreements(elsewhere: Elsewhere | None) -> Table:
    """The greatest difference of gradients over the greatest gradient, on 64 responses of up to 256 tokens."""
    data = {name: x.double() if x.is_floating_point() else x for name, x in responses(64, 256).items()}
    # Responses that drift as a whole, by half a nat a token: what looks at a response has something to see.
    data["old_logprob"] += 0.5 * torch.randn(64, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs = [
        (name, "Trinity", {"name": loss} | given, trinity(loss, **given)) for name, (loss, given) in IN_TRINITY.items()
    ]
    if elsewhere is not None:
        pairs += [
            (name, framework, given, elsewhere(framework, **given))
            for framework, settings in (("TRL", IN_TRL), ("Liger", IN_LIGER))
            for name, given in settings.items()
        ]
    table = Table("preset", "framework", "its settings", "greatest difference", title="Gradients that should agree")
    for name, framework, given, theirs in pairs:
        ours = preset(name)(data)
        difference = ((theirs(data) - ours).abs().max() / ours.abs().max()).item()
        table.add_row(name, framework, ", ".join(f"{key}={given[key]}" for key in given), f"{difference:.1e}")
    return table


def disagreements(elsewhere: Elsewhere | None) -> Table:
    """What a token weighs, where a framework and the paper, or its own documentation, differ."""
    geometric = reinforce(rollout_is=None, rollout_rs="seq_mean_k1", rollout_rs_threshold="0.999_1.001")
    half = [0.5] * 10
    rows: list[tuple[str, str, Gradient, str, tuple]] = [
        ("Trinity sapo", "rho = 1, A > 0", trinity("sapo"), "off_sapo", ([1.0],)),
        ("Trinity sapo", "rho = 5, A > 0", trinity("sapo"), "off_sapo", ([5.0],)),
        ("Trinity topr", "A < 0, tokens of rho 4 and 1/4", trinity("topr"), "off_topr", ([4.0, 0.25], -1.0)),
        ("Trinity topr", "A < 0, ten tokens of rho 1/2", trinity("topr"), "off_topr", (half, -1.0)),
        ("Trinity ppo", "rho = 4, A < 0", trinity("ppo"), "rec_oneside_is", ([4.0], -1.0)),
        ("verl dppo_tv", "rho = 10, mu = 0.01, A > 0", of_loss(verl_loss("dppo_tv")), "off_dppo_tv", ([10.0],)),
        ("verl vanilla", "rho = 4, A < 0", of_loss(verl_loss("vanilla")), "off_dapo", ([4.0], -1.0)),
        ("verl seq_mean_k1", "s = 1.0010005", of_loss(geometric), "off_geo_rs", ([1.0010005],)),
    ]
    if elsewhere is not None:
        for framework in ("TRL", "Liger"):
            cispo = elsewhere(framework, loss_type="cispo")
            rows.append((f"{framework} cispo", "rho = 1", cispo, "off_cispo", ([1.0],)))
    table = Table("as it comes", "tokens", "their weight there", "preset", "and in it", title="Disagreements")
    for where, what, theirs, name, given in rows:
        there, here = weights(theirs, *given), weights(preset(name), *given)
        table.add_row(where, what, _shown(there), name, _shown(here))
    return table


def _shown(values: list[float]) -> str:
    """Each value, or the one that all have."""
    texts = [f"{value:.4g}" for value in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(texts)


def times() -> Table:
    """How many times as long as rec_grpo's each loss takes, forward and backward: median and range of the rounds."""
    names = [name for name in PRESETS if name == "rec_grpo" or name.startswith("off_")]
    columns = {}
    for rows, length in ((1, 1024), (8, 1024), (32, 8192)):
        data = responses(rows, length)
        near = {**data, "old_logprob": data["logprob"].lerp(data["old_logprob"], 1 / 3)}  # M2PO drops nothing of it
        runs = {name: partial(preset(name), data) for name in names}
        seconds = alternate({**runs, "off_m2po, near": partial(preset("off_m2po"), near)}, rounds=15, calls=5)
        columns[f"{rows} x {length}"] = [ratio(taken, seconds["rec_grpo"]) for taken in seconds.values()]
    table = Table("preset", *columns, title="CPU time of a call, in times that of rec_grpo")
    for name, *beside in zip(seconds, *columns.values(), strict=True):
        table.add_row(name, *(f"{x['median']:.2f} ({x['min']:.2f}-{x['max']:.2f})" for x in beside))
    return table


def main(
    trl: Annotated[
        Path | None, typer.Option(help="A Python that has TRL and Liger, to compare with these too.")
    ] = None,
    timed: Annotated[bool, typer.Option("--times", help="What each loss costs, instead.")] = False,
) -> None:
    """Print how far the presets are from the losses of the same name, and the disagreements in numbers."""
    torch.set_num_threads(1)
    console = Console(width=160)
    if timed:
        console.print(times())
        return
    with tempfile.TemporaryDirectory() as folder:
        elsewhere = Elsewhere(trl.absolute(), Path(folder)) if trl else None
        console.print(agreements(elsewhere))
        console.print(disagreements(elsewhere))
        if elsewhere:
            elsewhere.close()


if __name__ == "__main__":
    typer.run(main)
