"""The local backend against TRL's GRPOTrainer: sampling, training, and the whole loop, on the same model and prompts.

    python3.11 -m venv runs/trl && runs/trl/bin/pip install -r benchmarks/trl_requirements.txt
    python benchmarks/local_backend.py --trl runs/trl/bin/python --json runs/benchmarks/local_backend.json
    python benchmarks/local_backend.py --trl runs/trl/bin/python --model runs/smollm2/model --loop

TRL runs in a process of its own environment and our server in another; they take turns, step by step. A step of ours
is what Trinity asks of the backend, by the Tinker SDK: sample every prompt, forward, the loss in the client, backward,
AdamW, and the new weights for the sampler. `--loop` then times the real `trinity run` on the same prompts between
turns of TRL.

Both are given in seconds of wall clock and of CPU (server and client together): on a machine that others use too, only
the second says what a step costs. Ratios are taken turn by turn and summarised by their median.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import tinker
import torch
import typer
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table
from side_by_side import machine, ratio, write_json
from tinker import types
from transformers import AutoTokenizer
from trinity.common.rewards.reward_fn import RewardFn
from turns import Worker, WorkerError

import trinity_rec
from trinity_rec.session import LaunchError, Session, signals_as_exit
from trinity_rec.shipped import example

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.tiny_model import make_tiny_model

WORKER = Path(__file__).with_name("trl_worker.py")
LEARNING_RATE = 1e-6
PHASES = ("prefill", "generate", "forward", "backward", "optim")
Step = dict[str, float]  # seconds by phase, `<phase>_cpu` in CPU seconds, and tokens


@dataclass(frozen=True)
class Setting:
    """A model directory and the size of a step: `problems` prompts, `group` responses of up to `max_tokens` each."""

    model: str
    problems: int
    group: int
    max_tokens: int
    threads: int

    def questions(self) -> list[str]:
        return [f"{3 * index + 12} apples and {index + 11} more: how many are there?" for index in range(self.problems)]

    def prompts(self) -> list[str]:
        """The questions as the model's chat template puts them, which is what Trinity's workflow sends."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        return [
            tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
            for q in self.questions()
        ]


def start_trl(interpreter: Path, setting: Setting, bf16: bool, accumulate: int, log: Path) -> Worker:
    """GRPOTrainer in its own interpreter."""
    order = asdict(setting) | {"prompts": setting.prompts(), "bf16": bf16, "accumulate": accumulate}
    return Worker([str(interpreter), str(WORKER), json.dumps(order)], log)


class Ours:
    """A training run on our server, driven as Trinity's trainer and explorer drive it."""

    def __init__(self, session: Session, setting: Setting) -> None:
        self.setting = setting
        self.http = httpx.Client(base_url=session.base_url, headers={"X-API-Key": session.env["TINKER_API_KEY"]})
        self.server = next(p for p in psutil.process_iter() if f":{self.http.base_url.port}" in str(_listening(p)))
        self.service = tinker.ServiceClient(base_url=session.base_url, api_key=session.env["TINKER_API_KEY"])
        self.trainer = self.service.create_lora_training_client(base_model=setting.model, rank=1)
        tokenizer = AutoTokenizer.from_pretrained(setting.model)
        self.prompts = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in setting.prompts()]
        self.loss = trinity_rec.RECPolicyLoss(backend="tinker")
        self.steps = 0
        self.sampler = self._new_weights()

    def step(self) -> Step:
        seconds: Step = {}
        before = self.stats()
        with self._timed("step", seconds):
            with self._timed("sample", seconds):
                sequences = self._sample()
            with self._timed("train", seconds):
                self._train(sequences, seconds)
            with self._timed("sync", seconds):
                self.sampler = self._new_weights()
        server = {name: total - before.get(name, 0) for name, total in self.stats().items()}
        return seconds | {f"server_{name}": amount for name, amount in server.items()}

    def stats(self) -> dict[str, float]:
        return self.http.get("/stats").json()

    def _sample(self) -> list[tuple[list[int], types.SampledSequence]]:
        params = types.SamplingParams(max_tokens=self.setting.max_tokens, temperature=1.0)
        futures = [
            self.sampler.sample(types.ModelInput.from_ints(prompt), self.setting.group, params)
            for prompt in self.prompts
        ]
        answers = zip(self.prompts, futures, strict=True)
        return [(prompt, sequence) for prompt, future in answers for sequence in future.result().sequences]

    def _train(self, sequences: list[tuple[list[int], types.SampledSequence]], seconds: Step) -> None:
        """One step on responses whose advantages differ within each group, as a reward's would."""
        batch, inputs = [], []
        for prompt, sequence in sequences:
            tokens = [*prompt, *sequence.tokens]
            mask = torch.ones(len(sequence.tokens))
            weights = torch.cat([torch.zeros(len(prompt) - 1), mask])
            batch.append(
                types.Datum(
                    model_input=types.ModelInput.from_ints(tokens[:-1]),
                    loss_fn_inputs={"target_tokens": tokens[1:], "weights": weights},
                )
            )
            advantage = sum(sequence.tokens) % 7 / 7 - 0.5
            inputs.append(
                {
                    "old_logprob": torch.tensor(sequence.logprobs),
                    "action_mask": mask.bool(),
                    "advantages": advantage * mask,
                }
            )

        def loss(_: list[types.Datum], logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
            with self._timed("loss", seconds):
                parts = [
                    self.loss(logprob=row[-len(given["action_mask"]) :], **given)[0] / len(logprobs)
                    for row, given in zip(logprobs, inputs, strict=True)
                ]
                return sum(parts), {}

        gradients = self.trainer.forward_backward_custom(batch, loss)
        update = self.trainer.optim_step(types.AdamParams(learning_rate=LEARNING_RATE, grad_clip_norm=1.0))
        gradients.result(), update.result()
        seconds["generated_tokens"] = sum(len(sequence.tokens) for _, sequence in sequences)
        seconds["trained_tokens"] = sum(len(prompt) + len(sequence.tokens) for prompt, sequence in sequences)

    def _new_weights(self) -> tinker.SamplingClient:
        self.steps += 1
        path = self.trainer.save_weights_for_sampler(f"sampler-{self.steps}").result().path
        return self.service.create_sampling_client(model_path=path)

    @contextmanager
    def _timed(self, phase: str, seconds: Step) -> Iterator[None]:
        started, cpu = time.perf_counter(), self._cpu()
        yield
        seconds[phase] = time.perf_counter() - started
        seconds[f"{phase}_cpu"] = self._cpu() - cpu

    def _cpu(self) -> float:
        server = self.server.cpu_times()
        return time.process_time() + server.user + server.system


def _listening(process: psutil.Process) -> list[str]:
    try:
        return [f":{c.laddr.port}" for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    except psutil.Error:
        return []


class SpreadReward(RewardFn):
    """Differs within nearly every group, so that there always is a gradient; as the TRL worker's does."""

    def __init__(self, **_: object) -> None:
        """Trinity passes the YAML's `reward_fn_args`; there are none."""

    def __call__(self, response: str, **_: object) -> dict[str, float]:
        return {"spread": len(response) % 7 / 7}


def side_by_side_steps(ours: Ours, trl: Worker | None, rounds: int, console: Console) -> dict[str, list[Step]]:
    """Steps of each in turn, after one that warms both up."""
    steps: dict[str, list[Step]] = defaultdict(list)
    with console.status("warming up") as status:
        for turn in range(rounds + 1):
            for name, contestant in (("ours", ours), ("trl", trl)):
                if contestant is not None:
                    steps[name].append(contestant.step())
            status.update(f"round {turn} of {rounds} done")
    return {name: made[1:] for name, made in steps.items()}


def summarise(steps: dict[str, list[Step]]) -> dict[str, Any]:
    """Medians of every quantity, tokens a second, and the ratios ours / TRL of the seconds a token and a step."""
    summary: dict[str, Any] = {}
    for made in steps.values():
        for step in made:
            for phase, tokens in (("sample", "generated_tokens"), ("train", "trained_tokens")):
                for clock in ("", "_cpu"):
                    step[f"{phase}_tokens_a_second{clock}"] = step[tokens] / step[f"{phase}{clock}"]
    for name, made in steps.items():
        keys = {key for step in made for key in step}
        summary[name] = {key: statistics.median(step.get(key, 0.0) for step in made) for key in sorted(keys)}
    if "trl" in steps:
        for clock in ("", "_cpu"):
            for phase in ("sample", "train"):
                speeds = [[step[f"{phase}_tokens_a_second{clock}"] for step in steps[who]] for who in ("ours", "trl")]
                summary[f"{phase}_speed_over_trl{clock}"] = ratio(*speeds)
            whole = [[step[f"step{clock}"] for step in steps[who]] for who in ("ours", "trl")]
            summary[f"step_over_trl{clock}"] = ratio(*whole)
    return summary


def loop(session: Session, setting: Setting, steps: int, runners: int, sync_offset: int, folder: Path) -> Step:
    """`trinity run` on the same prompts: seconds a step from the first reported to the last, and where they went.

    The server's own phases come from its GET /stats, the trainer's from Trinity's `time/` metrics; what neither
    accounts for is Trinity's: its workers, its queue, its waits.
    """
    (folder / "tasks").mkdir()
    rows = [json.dumps({"question": q, "answer": "#### 0"}) for q in setting.questions()]
    (folder / "tasks" / "train.jsonl").write_text("\n".join(rows * steps) + "\n")
    config = OmegaConf.load(example("rec_gsm8k/smollm2.yaml"))
    room = max(len(prompt) for prompt in setting.prompts())
    for key, value in {
        "algorithm.repeat_times": setting.group,
        "algorithm.optimizer.lr": LEARNING_RATE,
        "model.max_prompt_tokens": room,
        "model.max_response_tokens": setting.max_tokens,
        "model.max_model_len": room + setting.max_tokens,
        "buffer.batch_size": setting.problems,
        "buffer.total_steps": steps,
        "trainer.total_steps": steps,
        "trainer.save_interval": 0,
        "explorer.runner_per_model": runners,
        "synchronizer.sync_offset": sync_offset,
        "buffer.explorer_input.taskset.format.system_prompt": None,
        "buffer.explorer_input.default_reward_fn_type": "local_backend.SpreadReward",
    }.items():
        OmegaConf.update(config, key, value)
    OmegaConf.save(config, folder / "config.yaml")
    session.env |= {
        "PYTHONPATH": f"{Path(__file__).parent}:{session.env['PYTHONPATH']}",  # for SpreadReward
        "TRINITY_REC_RUN_DIR": str(folder),
        "TRINITY_REC_MODEL": setting.model,
        "TRINITY_REC_TASKS": str(folder / "tasks"),
        "TRINITY_REC_BASE_URL": session.base_url,
    }
    session.start_ray()
    headers = {"X-API-Key": session.env["TINKER_API_KEY"]}
    seen: list[tuple[float, dict[str, float], dict[str, float]]] = []
    for step in session.run_trinity(folder / "config.yaml", folder / "trinity", steps, patience=1800):
        stats = httpx.get(f"{session.base_url}/stats", headers=headers).json()
        seen.append((time.perf_counter(), stats, step.metrics))
    (first, before, _), (last, after, _) = seen[0], seen[-1]
    counted = len(seen) - 1

    def server(*phases: str) -> float:
        return sum(after.get(f"{p}_seconds", 0) - before.get(f"{p}_seconds", 0) for p in phases) / counted

    times = {name for _, _, metrics in seen for name in metrics if name.startswith("time/")}
    trinity = {name: statistics.mean(m.get(name, 0.0) for _, _, m in seen[1:]) for name in sorted(times)}
    whole = (last - first) / counted
    trained = server("forward", "backward", "optim")
    parts = {
        "sampling, model": server("prefill", "generate"),
        "training, model": trained,
        "weights, save and load": server("save", "load"),
        "training, HTTP and loss": trinity.get("time/update_actor", trained) - trained,
    }
    parts["Trinity: workers, queue, waits"] = whole - sum(parts.values())
    return {"step": whole, "steps": counted, **parts, **trinity}


def show(setting: Setting, summary: dict[str, Any]) -> Table:
    table = Table(
        title=f"{Path(setting.model).name}: {setting.problems} x {setting.group} responses of up to "
        f"{setting.max_tokens} tokens, {setting.threads} thread(s); medians"
    )
    for heading in ("", "ours", "TRL", "ours / TRL"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    trl = summary.get("trl", {})
    for clock, of in (("", "wall clock"), ("_cpu", "CPU time")):
        for label, key, compared in (
            ("sampling, tokens/s", "sample_tokens_a_second", "sample_speed_over_trl"),
            ("training, tokens/s", "train_tokens_a_second", "train_speed_over_trl"),
            ("step, seconds", "step", "step_over_trl"),
        ):
            found = summary.get(compared + clock)
            table.add_row(
                f"{label}, {of}",
                f"{summary['ours'][key + clock]:.4g}",
                f"{trl[key + clock]:.4g}" if trl else "",
                f"{found['median']:.2f} ({found['min']:.2f}-{found['max']:.2f})" if found else "",
            )
    return table


def show_parts(ours: Step) -> Table:
    """Where the median step of ours goes."""
    model = {f"model: {p}": ours.get(f"server_{p}_seconds", 0.0) for p in PHASES}
    weights = {f"weights: {p}": ours.get(f"server_{p}_seconds", 0.0) for p in ("save", "load")}
    parts = model | weights | {"loss": ours["loss"]}
    parts["HTTP, wire, waiting"] = ours["step"] - sum(parts.values())
    return _shares("A step of ours, wall clock", parts, ours["step"])


def show_loop(found: Step, trl: float | None) -> Table:
    parts = {name: value for name, value in found.items() if "," in name or ":" in name}
    title = f"trinity run: {found['step']:.2f} s a step"
    if trl:
        title += f", {found['step'] / trl:.2f} times TRL's {trl:.2f} s"
    return _shares(title, parts, found["step"])


def _shares(title: str, parts: dict[str, float], whole: float) -> Table:
    table = Table("", "seconds", "share", title=title)
    for name, seconds in parts.items():
        table.add_row(name, f"{seconds:.3f}", f"{seconds / whole:.0%}")
    return table


def main(
    trl: Annotated[Path | None, typer.Option(help="Python of an environment with TRL; without it only ours.")] = None,
    model: Annotated[Path | None, typer.Option(help="A model directory; by default a random 0.8M Qwen2.")] = None,
    problems: Annotated[int | None, typer.Option(help="Prompts a step: 16, or 4 with --model.", min=1)] = None,
    group: Annotated[int | None, typer.Option(help="Responses a prompt: 8, or 4 with --model.", min=2)] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Of a response: 24, or 64 with --model.", min=1)] = None,
    threads: Annotated[int, typer.Option(help="Of the server, and of TRL.", min=1)] = 2,
    rounds: Annotated[int, typer.Option(help="Turns of each that count.", min=1)] = 7,
    bf16: Annotated[bool, typer.Option(help="Both with bf16 autocast; by default both in float32.")] = False,
    accumulate: Annotated[int, typer.Option(help="Micro-batches of TRL's step.", min=1)] = 1,
    whole: Annotated[bool, typer.Option("--loop", help="Also the real `trinity run`.")] = False,
    loop_steps: Annotated[int, typer.Option(help="Its steps.", min=2)] = 8,
    runners: Annotated[int, typer.Option(help="Its workflow runners, a process each.", min=1)] = 4,
    sync_offset: Annotated[int, typer.Option(help="Steps by which its rollouts may run ahead.", min=0)] = 0,
    quick: Annotated[bool, typer.Option(help="Seconds: two rounds of a small step.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the numbers.")] = None,
) -> None:
    """Time the local backend against TRL's GRPOTrainer, taking turns on the same model, prompts and threads."""
    console = Console()
    torch.set_num_threads(1)  # the client computes a loss over a few thousand numbers
    if quick:
        problems, group, max_tokens, rounds, threads = 2, 2, 4, 2, 1
    default = (4, 4, 64) if model else (16, 8, 24)
    chosen = [own or usual for own, usual in zip((problems, group, max_tokens), default, strict=True)]
    try:
        with tempfile.TemporaryDirectory() as name, signals_as_exit():
            folder = Path(name)
            if model is None:
                model = make_tiny_model(folder / "qwen2-0.8M", width=128, layers=5)
            setting = Setting(str(model.resolve()), *chosen, threads=threads)
            with Session(folder / "logs") as session:
                session.start_server(model.resolve(), root=folder / "weights", threads=threads, bf16=bf16)
                contestant = start_trl(trl, setting, bf16, accumulate, folder / "trl.log") if trl else None
                try:
                    row: dict[str, Any] = {"setting": asdict(replace(setting, model=model.name)), "bf16": bf16}
                    row |= summarise(side_by_side_steps(Ours(session, setting), contestant, rounds, console))
                    console.print(f"{machine()}")
                    console.print(show(setting, row), show_parts(row["ours"]))
                    if whole:
                        around = [contestant.step() for _ in range(2)] if contestant else []
                        row["loop"] = loop(session, setting, loop_steps, runners, sync_offset, folder)
                        around += [contestant.step() for _ in range(2)] if contestant else []
                        beside = statistics.median(step["step"] for step in around) if around else None
                        row["loop"]["trl_step"] = beside
                        console.print(show_loop(row["loop"], beside))
                finally:
                    if contestant is not None:
                        contestant.close()
        write_json(json_file, [row])
    except WorkerError as error:
        sys.exit(f"error: TRL stopped: {error}")
    except LaunchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    typer.run(main)
