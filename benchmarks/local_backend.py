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
import subprocess
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

import trinity_rec
from trinity_rec.launch import LaunchError, Session, signals_as_exit
from trinity_rec.shipped import example

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.tiny_model import make_tiny_model  # noqa: E402

WORKER = Path(__file__).with_name("trl_worker.py")
LEARNING_RATE = 1e-6
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
        return [
            f"Tom has {3 * index + 4} apples and buys {index + 2} more each day. How many does he have after a week?"
            for index in range(self.problems)
        ]

    def prompts(self) -> list[str]:
        """The questions as the model's chat template puts them, which is what Trinity's workflow sends."""
        tokenizer = AutoTokenizer.from_pretrained(self.model)
        return [
            tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
            for q in self.questions()
        ]


class Trl:
    """GRPOTrainer in its own interpreter; makes a step when asked."""

    def __init__(self, interpreter: Path, setting: Setting, bf16: bool, accumulate: int, log: Path) -> None:
        config = asdict(setting) | {"prompts": setting.prompts(), "bf16": bf16, "accumulate": accumulate}
        self._log = log
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [str(interpreter), str(WORKER), json.dumps(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                bufsize=1,
            )

    def step(self) -> Step:
        try:
            self._process.stdin.write("step\n")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            lines = self._log.read_text().strip().splitlines() or ["no output"]
            raise LaunchError(f"TRL stopped: {lines[-1]}")
        return json.loads(line)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


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
