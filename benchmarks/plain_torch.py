"""The local backend's sampler and trainer against plain torch, in one process, in turns on the same batch.

    python benchmarks/plain_torch.py --rounds 15
    python benchmarks/plain_torch.py --rounds 5 --model runs/smollm2/model --max-tokens 32

Plain sampling is the model's own `generate` on left-padded prompts; plain training a padded forward pass, log_softmax,
backward, clipping and torch's fused AdamW. Each round runs both, one right after the other, in changing order. What
counts is the median of the rounds' ratios plain / ours: of CPU seconds (of the server too, where there is one), and of
the wall clock, which other work on the machine blurs. `--profile` shows instead where the sampler's time goes.
"""

import cProfile
import pstats
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Annotated

import psutil
import tinker
import torch
import typer
from side_by_side import machine, write_json
from tinker import types
from transformers import AutoTokenizer

from trinity_rec.quickstart import tiny_model
from trinity_rec.tinker_local.model import load
from trinity_rec.tinker_local.sampling import BatchSampler, SampleRequest
from trinity_rec.tinker_local.stats import Stats
from trinity_rec.tinker_local.training import AdamParams, Datum, TrainingRun
from trinity_rec.tinker_local.weights import WeightStore

ADAM = AdamParams(1e-6, 0.9, 0.95, 1e-8, 0.0, 1.0)
Contest = tuple[Callable[[], object], Callable[[], object]]  # ours, plain


def prompts_of(model: str, problems: int) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(model)
    questions = [f"{3 * index + 12} apples and {index + 11} more: how many are there?" for index in range(problems)]
    return [
        tokenizer(f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
        for question in questions
    ]


def sampling(served, sampler: BatchSampler, prompts: list[list[int]], group: int, max_tokens: int) -> Contest:
    plain, width = served.copy(frozen=True), max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])

    def ours() -> None:
        answers: Queue = Queue()
        requests = [SampleRequest(None, tuple(prompt), group, max_tokens, ends=False) for prompt in prompts]
        for job in [sampler.submit(request, answers.put) for request in requests]:
            sampler.await_answer(job)
        for _ in prompts:
            result = answers.get()
            assert all(len(response.tokens) == max_tokens for response in result.responses)

    def generate() -> None:
        with torch.inference_mode():
            out = plain.generate(
                input_ids=ids, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                num_return_sequences=group, max_new_tokens=max_tokens, eos_token_id=None, pad_token_id=0,
                output_logits=True, return_dict_in_generate=True,
            )  # fmt: skip
        # What a trainer needs, and the server answers: the logprob of each token.
        chosen = out.sequences[:, width:]
        for step, logits in enumerate(out.logits):
            logits.float().log_softmax(-1).gather(1, chosen[:, step : step + 1])

    return ours, generate


@contextmanager
def by_sdk(directory: Path, prompts: list[list[int]], group: int, max_tokens: int) -> Iterator[Callable[[], None]]:
    """The same batch, asked of a server in a process of its own by the Tinker SDK; responses may end by themselves."""
    with tempfile.TemporaryDirectory() as root:
        command = [
            sys.executable,
            "-m",
            "trinity_rec.cli",
            "serve",
            f"--model={directory}",
            f"--root={root}",
            "--port=0",
        ]
        command += [f"--threads={torch.get_num_threads()}"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            service = tinker.ServiceClient(base_url=server.stdout.readline().strip(), api_key="tml-bench")
            client = service.create_sampling_client(base_model=str(directory))
            params = types.SamplingParams(max_tokens=max_tokens, stop=[])

            def ours() -> None:
                futures = [client.sample(types.ModelInput.from_ints(prompt), group, params) for prompt in prompts]
                for future in futures:
                    assert all(len(sequence.tokens) == max_tokens for sequence in future.result().sequences)

            yield ours
        finally:
            server.terminate()
            server.wait()


def training(served, prompts: list[list[int]], group: int, max_tokens: int) -> Contest:
    generator = torch.Generator().manual_seed(0)
    batch = []
    for prompt in prompts:
        for _ in range(group):
            size = int(torch.randint(max_tokens // 2, max_tokens + 1, (), generator=generator))
            tokens = torch.cat(
                [torch.tensor(prompt), torch.randint(3, served.vocabulary, (size,), generator=generator)]
            )
            weights = torch.cat([torch.zeros(len(prompt) - 1), torch.randn(size, generator=generator)])
            batch.append(Datum(tokens[:-1], tokens[1:], weights))
    run, plain = TrainingRun(served.copy(), 1e12, Stats()), served.copy()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=ADAM.learning_rate, fused=True)
    ids, targets, weights = (
        torch.nn.utils.rnn.pad_sequence([getattr(datum, name) for datum in batch], batch_first=True)
        for name in ("tokens", "targets", "weights")
    )

    def ours() -> None:
        run.forward_backward(batch)
        run.optim_step(ADAM)

    def torch_alone() -> None:
        logprobs = plain(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
        loss = -(weights * logprobs.gather(-1, targets[..., None])[..., 0]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), ADAM.grad_clip_norm)
        optimizer.step()

    return ours, torch_alone


def compare(contest: Contest, rounds: int) -> dict[str, float]:
    """Medians over the rounds: seconds of wall clock and CPU, and the ratios plain / ours with their quartiles."""
    spent: list[list[float]] = []
    for number in range(rounds + 2):
        took = [0.0] * 5  # ours, plain by the clock; ours, plain of the CPU; of ours, in the server
        for which in (0, 1) if number % 2 else (1, 0):
            server = server_seconds()  # looks through all processes, which is not to be counted
            started, own = time.perf_counter(), time.process_time()
            contest[which]()
            took[which], own = time.perf_counter() - started, time.process_time() - own
            server = server_seconds() - server
            took[2 + which] = own + server
            took[4] += server
        spent.append(took)
    rows = spent[2:]  # the first warm up
    row = dict(
        zip(
            ("ours", "plain", "ours_cpu", "plain_cpu", "server_cpu"),
            map(statistics.median, zip(*rows, strict=True)),
            strict=True,
        )
    )
    for clock, place in (("", 0), ("_cpu", 2)):
        quartiles = statistics.quantiles([took[place + 1] / took[place] for took in rows], n=4)
        row |= dict(zip((f"low{clock}", f"ratio{clock}", f"high{clock}"), quartiles, strict=True))
    return row


def server_seconds() -> float:
    """CPU time of the server that this process has started."""
    servers = [process.cpu_times() for process in psutil.Process().children()]
    return sum(times.user + times.system for times in servers)


def main(
    model: Annotated[Path | None, typer.Option(help="A model directory; the quickstart's by default.")] = None,
    problems: int = 8,
    group: int = 8,
    max_tokens: int = 32,
    rounds: int = 15,
    threads: int = 1,
    profile: bool = False,
    json_file: Annotated[Path | None, typer.Option("--json")] = None,
) -> None:
    torch.set_num_threads(threads)
    directory = model or Path(tiny_model.__file__).parent / "assets" / "model"
    served = load(directory, "cpu")
    prompts = prompts_of(str(directory), problems)
    with tempfile.TemporaryDirectory() as root:
        sampler = BatchSampler(served, WeightStore(Path(root), 2), 256, Stats())
        contests = {
            "sampling": sampling(served, sampler, prompts, group, max_tokens),
            "training": training(served, prompts, group, max_tokens),
        }
        if profile:
            for _ in range(3):
                contests["sampling"][0]()
            with torch.profiler.profile() as traced:
                for _ in range(5):
                    contests["sampling"][0]()
            print(traced.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=40))
            profiler = cProfile.Profile()
            sampler._turn = lambda turn=sampler._turn: profiler.runcall(turn)
            for _ in range(5):
                contests["sampling"][0]()
            pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
            return
        with by_sdk(directory, prompts, group, max_tokens) as asked:
            contests["sampling by the SDK"] = (asked, contests["sampling"][1])
            rows = {name: compare(contest, rounds) for name, contest in contests.items()}
        sampler.close()
    write_json(json_file, [rows])
    print(machine())
    print(
        f"{directory.name}: {problems} x {group} responses of {max_tokens} tokens, {threads} thread(s), {rounds} rounds"
    )
    for name, row in rows.items():
        for clock, place in (("CPU", "_cpu"), ("wall clock", "")):
            print(
                f"{name}, {clock}: ours {row['ours' + place]:.4f} s, plain {row['plain' + place]:.4f} s, "
                f"plain / ours {row['ratio' + place]:.2f} ({row['low' + place]:.2f}-{row['high' + place]:.2f})"
            )
        if row["server_cpu"]:
            print(f"{name}: {row['server_cpu']:.4f} s of ours in the server, the rest in the client")


if __name__ == "__main__":
    typer.run(main)
