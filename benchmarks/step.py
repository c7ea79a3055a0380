"""A training step in verl's worker on the CPU: `trinity_rec.rec_oneside_nois` against upstream's `rec` as it comes.

    python benchmarks/step.py
    python benchmarks/step.py --model runs/smollm2/model --json runs/benchmarks/step.json

Upstream's `rec` has a KL term to a reference model by default (k2, coefficient 0.001), so that Trinity loads a second
model and runs it on every batch before the update. Each contestant has a process of its own, in which it drives the
real TrinityActorRolloutRefWorker (FSDP2, float32) as Trinity's VERLTrainer does; the processes take turns on the same
batch. Memory is the process's peak while it steps, not while it loads.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from side_by_side import machine, ratio, write_json
from turns import Worker, WorkerError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from tests.lone_worker import lone_worker_config, lone_worker_environment, update  # noqa: E402
from tests.tiny_model import make_tiny_model  # noqa: E402

CONTESTANTS = {"ours": "trinity_rec.rec_oneside_nois", "upstream": "rec"}


@dataclass(frozen=True)
class Setting:
    """A model directory and the size of a batch: `responses` of `prompt` and `response` tokens."""

    model: str
    responses: int
    prompt: int
    response: int
    threads: int


# ---- the process of a contestant ----


def work(setting: Setting, algorithm_type: str) -> None:
    """Make a step for each line on standard input, and answer it with a JSON line."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is not an answer

    os.environ |= lone_worker_environment()
    torch.set_num_threads(setting.threads)
    from trinity.algorithm import ALGORITHM_TYPE
    from trinity.trainer.verl.config import build_verl_config
    from trinity.trainer.verl.workers import TrinityActorRolloutRefWorker

    sizes = (setting.responses, setting.prompt, setting.response)
    config = lone_worker_config(setting.model, *sizes, learning_rate=1e-6, algorithm_type=algorithm_type)
    reference = ALGORITHM_TYPE.get(config.algorithm.algorithm_type).use_reference
    worker = TrinityActorRolloutRefWorker(
        config=build_verl_config(config), role="actor_rollout_ref" if reference else "actor"
    )
    worker.init_model()
    worker.set_trinity_config(config.algorithm, "vllm", "benchmark")
    batch = rollouts(setting)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    while sys.stdin.readline():
        print(json.dumps(step(worker, batch, reference) | {"peak_bytes": peak_rss()}), file=answers)


def rollouts(setting: Setting) -> dict[str, torch.Tensor]:
    """Random tokens, all responses at full length, one advantage each."""
    generator = torch.Generator().manual_seed(0)
    size, length = setting.responses, setting.prompt + setting.response
    ids = torch.randint(5, 250, (size, length), generator=generator)
    mask = torch.ones(size, setting.response, dtype=torch.bool)
    return {
        "input_ids": ids,
        "prompts": ids[:, : setting.prompt],
        "responses": ids[:, setting.prompt :],
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(length).expand(size, -1).clone(),
        "response_mask": mask,
        "old_log_probs": -3 * torch.rand(mask.shape, generator=generator),
        "advantages": torch.randn(size, 1, generator=generator) * mask,
    }


def step(worker: Any, batch: dict[str, torch.Tensor], reference: bool) -> dict[str, float]:
    """What VERLTrainer.train_step asks of the worker: the reference's logprobs if there is one, and the update."""
    from tensordict import TensorDict
    from trinity.trainer.verl.monkey_patch import left_right_2_no_padding
    from verl.utils import tensordict_utils
    from verl.workers.utils.padding import no_padding_2_padding

    def padded(**more: torch.Tensor) -> TensorDict:
        columns = {name: column.clone() for name, column in (batch | more).items()}
        return left_right_2_no_padding(TensorDict(columns, batch_size=len(batch["input_ids"])))

    started, cpu, more = time.perf_counter(), time.process_time(), {}
    if reference:
        data = padded()
        tensordict_utils.assign_non_tensor(data, calculate_entropy=False, compute_loss=False, temperature=1.0)
        output = worker.compute_ref_log_prob(data)
        more["ref_log_prob"] = no_padding_2_padding(tensordict_utils.get(output, "log_probs"), data).float()
    middle, middle_cpu = time.perf_counter(), time.process_time()
    data = padded(**more)
    size = len(batch["input_ids"])
    metrics = update(worker, data, size)
    assert reference == any("kl_loss" in name for name in metrics), sorted(metrics)
    ended, ended_cpu = time.perf_counter(), time.process_time()
    return {
        "step": ended - started,
        "step_cpu": ended_cpu - cpu,
        "reference": middle - started,
        "reference_cpu": middle_cpu - cpu,
    }


def peak_rss() -> int:
    """Bytes that this process held at most since the peak was reset."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


# ---- the process that compares ----


def start(setting: Setting, algorithm_type: str, log: Path) -> Worker:
    order = json.dumps(asdict(setting) | {"algorithm_type": algorithm_type})
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(setting.threads)}
    return Worker([sys.executable, __file__, order], log, env)


def measure(setting: Setting, rounds: int, folder: Path) -> dict[str, Any]:
    """Medians of each contestant after a step that warms up, and ratios round by round."""
    workers = {name: start(setting, kind, folder / f"{name}.log") for name, kind in CONTESTANTS.items()}
    try:
        made: dict[str, list[dict[str, float]]] = {name: [] for name in workers}
        for _ in range(rounds + 1):
            for name, worker in workers.items():
                made[name].append(worker.step())
    finally:
        for worker in workers.values():
            worker.close()
    row: dict[str, Any] = {"setting": asdict(setting) | {"model": Path(setting.model).name}}
    counted = {name: steps[1:] for name, steps in made.items()}
    for name, steps in counted.items():
        row[name] = {key: statistics.median(step[key] for step in steps) for key in steps[0]}
        row[name]["peak_bytes"] = max(step["peak_bytes"] for step in steps)
    upstream = counted["upstream"]
    for clock in ("", "_cpu"):
        whole = [step[f"step{clock}"] for step in upstream]
        row[f"step_over_upstream{clock}"] = ratio([step[f"step{clock}"] for step in counted["ours"]], whole)
        row[f"reference_share{clock}"] = ratio([step[f"reference{clock}"] for step in upstream], whole)
    weights = sum(file.stat().st_size for file in Path(setting.model).glob("*.safetensors"))
    row["model_bytes"] = weights
    row["peak_bytes_saved"] = row["upstream"]["peak_bytes"] - row["ours"]["peak_bytes"]
    return row


def show(row: dict[str, Any]) -> Table:
    setting = row["setting"]
    table = Table(
        title=f"{setting['model']}: {setting['responses']} responses of {setting['prompt']} + {setting['response']} "
        f"tokens, {setting['threads']} thread(s); medians"
    )
    for heading in ("", "ours", "upstream", "ours / upstream", "reference"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    for clock, label in (("", "step, s of wall clock"), ("_cpu", "step, s of CPU")):
        found, share = row[f"step_over_upstream{clock}"], row[f"reference_share{clock}"]
        table.add_row(
            label,
            f"{row['ours']['step' + clock]:.4g}",
            f"{row['upstream']['step' + clock]:.4g}",
            f"{found['median']:.2f} ({found['min']:.2f}-{found['max']:.2f})",
            f"{share['median']:.0%}",
        )
    saved = f"{row['peak_bytes_saved'] / 2**20:.0f} less, model {row['model_bytes'] / 2**20:.0f}"
    peaks = [f"{row[name]['peak_bytes'] / 2**20:.0f}" for name in CONTESTANTS]
    table.add_row("peak memory, MB", *peaks, saved, "")
    return table


def main(
    model: Annotated[Path | None, typer.Option(help="A model directory; by default a random 0.8M Qwen2.")] = None,
    responses: Annotated[int, typer.Option(help="In a batch.", min=2)] = 16,
    prompt: Annotated[int, typer.Option(help="Tokens of a prompt.", min=1)] = 64,
    response: Annotated[int, typer.Option(help="Tokens of a response.", min=1)] = 64,
    threads: Annotated[int, typer.Option(help="Of each worker.", min=1)] = 2,
    rounds: Annotated[int, typer.Option(help="Turns of each that count.", min=1)] = 11,
    quick: Annotated[bool, typer.Option(help="Seconds: two rounds of a small batch.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the numbers.")] = None,
) -> None:
    """Time a training step in verl's worker, ours without a reference model against upstream's default with one."""
    if quick:
        responses, prompt, response, threads, rounds = 2, 4, 4, 1, 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if model is None:
            model = make_tiny_model(folder / "qwen2-0.8M", width=128, layers=5)
        try:
            row = measure(Setting(str(model.resolve()), responses, prompt, response, threads), rounds, folder)
        except WorkerError as error:
            sys.exit(f"error: a worker stopped: {error}")
    console = Console()
    console.print(f"{machine()}")
    console.print(show(row))
    write_json(json_file, [row])


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        settings = json.loads(sys.argv[1])
        work(algorithm_type=settings.pop("algorithm_type"), setting=Setting(**settings))
    else:
        typer.run(main)
