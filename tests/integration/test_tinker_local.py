"""The local backend as its users see it: the real `tinker` SDK against a real server process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
import zstandard
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.tiny_model import VOCABULARY, make_tiny_model

tinker = pytest.importorskip("tinker", reason="the Tinker SDK needs Python 3.11")

from tinker import types  # noqa: E402
from tinker.proto import tinker_public_pb2 as pb  # noqa: E402

from trinity_rec.tinker_local import ServeError, serve  # noqa: E402

KEY = os.environ.setdefault("TINKER_API_KEY", "tml-test")
ADAM = dict(learning_rate=2e-3, beta1=0.8, beta2=0.9, eps=1e-6, weight_decay=0.1, grad_clip_norm=0.7)


class Server:
    """A server process. `url` is where it listens, `root` where its snapshots lie."""

    def __init__(self, model_dir: Path, root: Path, **options):
        options = {"threads": 1} | options
        self.root = root
        program = (
            "from trinity_rec.tinker_local import serve\n"
            f"serve({str(model_dir)!r}, {str(root)!r}, ready=lambda url: print(url, flush=True), **{options!r})"
        )
        self.process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the server did not start"
        limits = httpx.Limits(max_connections=None)
        self.http = httpx.Client(base_url=self.url, headers={"X-API-Key": KEY}, timeout=60, limits=limits)

    def client(self) -> tinker.ServiceClient:
        return tinker.ServiceClient(base_url=self.url)

    def stats(self) -> dict[str, float]:
        return self.http.get("/stats").json()

    def post(self, route: str, **options) -> httpx.Response:
        return self.http.post(f"/api/v1/{route}", **options)

    def weights(self, path: str) -> dict[str, Tensor]:
        return load_file(self.root / path.removeprefix("tinker://") / "weights.safetensors")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@contextmanager
def running(model_dir: Path, root: Path, **options) -> Iterator[Server]:
    server = Server(model_dir, root, **options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model_dir, tmp_path_factory) -> Iterator[Server]:
    with running(model_dir, tmp_path_factory.mktemp("weights"), api_key=KEY) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def client(server) -> tinker.ServiceClient:
    return server.client()


@pytest.fixture(scope="module")
def sampler(client, model_dir) -> tinker.SamplingClient:
    return client.create_sampling_client(base_model=str(model_dir))


@pytest.fixture(scope="module")
def reference(model_dir) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(model_dir).eval()


def prompt(*tokens: int) -> types.ModelInput:
    return types.ModelInput.from_ints(list(tokens))


def sample(sampler, tokens, n=1, **params) -> types.SampleResponse:
    return sampler.sample(prompt(*tokens), n, types.SamplingParams(**params)).result()


def tokens_of(response: types.SampleResponse) -> list[list[int]]:
    return [list(sequence.tokens) for sequence in response.sequences]


def datum(tokens: list[int], weights: list[float] | Tensor) -> types.Datum:
    inputs = {"target_tokens": tokens[1:], "weights": torch.as_tensor(weights, dtype=torch.float32)}
    return types.Datum(model_input=prompt(*tokens[:-1]), loss_fn_inputs=inputs)


def random_batch(seed: int, size: int = 5) -> list[types.Datum]:
    """Ragged sequences whose first few tokens, the prompt, have no weight."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for _ in range(size):
        length = int(torch.randint(4, 40, (), generator=generator))
        tokens = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        weights = torch.randn(length - 1, generator=generator)
        weights[: length // 3] = 0
        batch.append(datum(tokens, weights))
    return batch


def logprobs_of(output: types.ForwardBackwardOutput) -> list[Tensor]:
    return [torch.tensor(row["logprobs"].data) for row in output.loss_fn_outputs]


# ---- sampling ----


def test_a_seed_repeats_and_samples_differ(sampler):
    first = sample(sampler, [5, 6, 7], n=4, max_tokens=16, seed=3)
    again = sample(sampler, [5, 6, 7], n=4, max_tokens=16, seed=3)
    other = sample(sampler, [5, 6, 7], n=4, max_tokens=16, seed=4)
    assert tokens_of(first) == tokens_of(again)
    assert tokens_of(first) != tokens_of(other)
    assert len({tuple(tokens) for tokens in tokens_of(first)}) == 4


def test_requests_without_a_seed_differ(sampler):
    first, second = (sample(sampler, [5, 6, 7], max_tokens=16) for _ in range(2))
    third = sample(sampler, [5, 6, 7], max_tokens=16, seed=-1)
    assert len({tuple(tokens_of(response)[0]) for response in (first, second, third)}) == 3


def test_a_response_does_not_depend_on_its_batch_mates(server, sampler):
    wanted = dict(n=3, max_tokens=24, seed=11, temperature=0.9, top_k=50, top_p=0.95)
    alone = sample(sampler, [9, 8, 7, 6], **wanted)
    before = server.stats()
    with ThreadPoolExecutor(12) as pool:
        mates = [
            pool.submit(sample, sampler, range(3, 10 + 3 * i), n=2, max_tokens=4 + 5 * i, seed=i) for i in range(11)
        ]
        together = pool.submit(sample, sampler, [9, 8, 7, 6], **wanted).result()
        rows = tokens_of(together) + [row for mate in mates for row in tokens_of(mate.result())]
    after = server.stats()
    decoded = sum(len(row) - 1 for row in rows)  # a first token comes from the prefill
    assert after["generate_tokens"] - before["generate_tokens"] == decoded, "finished samples did not leave"
    assert after["generate_steps"] - before["generate_steps"] < decoded / 3, "they did not run as a batch"
    assert tokens_of(together) == tokens_of(alone)
    for ours, theirs in zip(together.sequences, alone.sequences, strict=True):
        assert np.allclose(ours.logprobs, theirs.logprobs, atol=1e-5)


def test_the_samples_of_a_prompt_share_its_prefill(server, sampler):
    before = server.stats()["prefill_tokens"]
    sample(sampler, range(3, 103), n=16, max_tokens=3, seed=0)
    assert server.stats()["prefill_tokens"] - before == 100


def test_greedy_is_the_likeliest_token_each_time(sampler, reference):
    tokens = [4, 5, 6]
    for _ in range(8):
        tokens.append(int(reference(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert tokens_of(sample(sampler, [4, 5, 6], max_tokens=8, temperature=0))[0] == tokens[3:]


def test_stop_tokens_and_strings_end_a_response_and_stay_in_it(sampler):
    free = sample(sampler, [4, 5, 6], max_tokens=20, seed=1)
    tokens, tokenizer = tokens_of(free)[0], sampler.get_tokenizer()
    assert free.sequences[0].stop_reason == "length" and len(tokens) == 20

    by_token = sample(sampler, [4, 5, 6], max_tokens=20, seed=1, stop=[tokens[7]])
    assert by_token.sequences[0].stop_reason == "stop"
    assert tokens_of(by_token)[0] == tokens[: tokens.index(tokens[7]) + 1]

    pieces = [tokenizer.decode([token]) for token in tokens]
    start = next(i for i in range(3, 18) if pieces[i].isascii() and pieces[i + 1].isascii())
    stop = (pieces[start] + pieces[start + 1])[-2:]  # across a token border
    ends = next(i for i in range(1, 21) if stop in tokenizer.decode(tokens[:i]))
    by_string = sample(sampler, [4, 5, 6], max_tokens=20, seed=1, stop=["never said", stop])
    assert by_string.sequences[0].stop_reason == "stop"
    assert tokens_of(by_string)[0] == tokens[:ends]


@pytest.mark.parametrize(
    "cut", [{"top_k": 3}, {"top_p": 0.6}, {"top_k": 20, "top_p": 0.5, "temperature": 0.7}, {"temperature": 1.3}]
)
def test_samples_follow_the_cut_distribution(sampler, reference, cut):
    tokens = [40, 41, 42]
    logits = reference(torch.tensor([tokens])).logits[0, -1].detach()
    wanted = (logits / cut.get("temperature", 1.0)).softmax(0).double()
    ordered, order = wanted.sort(descending=True)
    kept = cut.get("top_k", VOCABULARY)
    ordered[kept:] = 0
    ordered /= ordered.sum()
    ordered[ordered.cumsum(0) - ordered >= cut.get("top_p", 1.0)] = 0
    wanted = torch.zeros_like(wanted).scatter(0, order, ordered / ordered.sum())

    draws = 10 * 250
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(sample, sampler, tokens, n=250, max_tokens=1, seed=seed, **cut) for seed in range(10)]
        drawn = [row[0] for answer in answers for row in tokens_of(answer.result())]
    counts = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY).double()
    assert counts[wanted == 0].sum() == 0
    # Pearson's statistic over the cells with enough expected counts: mean `cells`, variance twice that.
    expected = wanted * draws
    cells = expected >= 5
    statistic = ((counts - expected)[cells] ** 2 / expected[cells]).sum()
    assert statistic < cells.sum() + 5 * (2 * cells.sum()) ** 0.5


def test_prompt_logprobs_are_those_of_the_model(sampler, reference):
    tokens = list(range(10, 30))
    exact = reference(torch.tensor([tokens])).logits[0].detach().log_softmax(-1)
    request = sampler.sample(
        prompt(*tokens), 2, types.SamplingParams(max_tokens=1), include_prompt_logprobs=True, topk_prompt_logprobs=3
    )
    answer = request.result()
    assert answer.prompt_logprobs[0] is None
    chosen = exact[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
    assert np.allclose(answer.prompt_logprobs[1:], chosen, atol=1e-5)
    assert sampler.compute_logprobs(prompt(*tokens)).result() == answer.prompt_logprobs
    best = exact[:-1].topk(3)
    for position in range(1, 20):
        ids, scores = zip(*answer.topk_prompt_logprobs[position], strict=True)
        assert list(ids) == best.indices[position - 1].tolist()
        assert np.allclose(scores, best.values[position - 1], atol=1e-5)


def test_sampler_and_trainer_agree_on_ragged_batches(client, sampler, model_dir):
    prompts = [list(range(3, 4 + 7 * i)) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(sample, sampler, p, n=4, max_tokens=10 + 9 * i, seed=i) for i, p in enumerate(prompts)]
        rollouts = [(p, sequence) for p, job in zip(prompts, jobs, strict=True) for sequence in job.result().sequences]
    batch = []
    for p, sequence in rollouts:
        weights = [0.0] * (len(p) - 1) + [1.0] * len(sequence.tokens)
        batch.append(datum(p + list(sequence.tokens), weights))
    trainer = client.create_lora_training_client(base_model=str(model_dir))
    output = trainer.forward(batch, "cross_entropy").result()
    for (_, sequence), logprobs in zip(rollouts, logprobs_of(output), strict=True):
        assert torch.allclose(logprobs[-len(sequence.tokens) :], torch.tensor(sequence.logprobs), atol=1e-5)


# ---- training ----


def test_a_step_is_a_plain_adamw_step(server, client, model_dir):
    plain = AutoModelForCausalLM.from_pretrained(model_dir).eval()
    adam = dict(lr=ADAM["learning_rate"], betas=(ADAM["beta1"], ADAM["beta2"]), eps=ADAM["eps"])
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=ADAM["weight_decay"], **adam)
    trainer = client.create_lora_training_client(base_model=str(model_dir))
    for step in range(3):
        batch = random_batch(step)
        loss, exact = 0.0, []
        for row in batch:
            tokens, inputs = row.model_input.to_ints(), row.loss_fn_inputs
            scores = plain(torch.tensor([tokens])).logits[0].log_softmax(-1)
            exact.append(scores.gather(1, torch.tensor(inputs["target_tokens"].data)[:, None])[:, 0])
            loss = loss - (torch.tensor(inputs["weights"].data) * exact[-1]).sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), ADAM["grad_clip_norm"])
        optimizer.step()

        output = trainer.forward_backward(batch, "cross_entropy").result()
        metrics = trainer.optim_step(types.AdamParams(**ADAM)).result().metrics
        assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-4)
        assert metrics["actor/grad_norm"] == pytest.approx(norm.item(), rel=1e-4) and norm > ADAM["grad_clip_norm"]
        for ours, theirs, row in zip(logprobs_of(output), exact, batch, strict=True):
            weighted = torch.tensor(row.loss_fn_inputs["weights"].data) != 0
            assert torch.allclose(ours[weighted], theirs[weighted], atol=1e-5)
    saved = server.weights(trainer.save_weights_for_sampler("after").result().path)
    start = dict(AutoModelForCausalLM.from_pretrained(model_dir).named_parameters())
    for name, parameter in plain.named_parameters():
        assert (parameter - start[name]).abs().max() > 1e-3
        assert torch.allclose(saved[name], parameter, atol=2e-5), name


def test_a_custom_loss_costs_one_forward_and_has_the_gradient_of_the_plain_request(server, client, model_dir):
    batch = random_batch(7)
    weights = [torch.tensor(row.loss_fn_inputs["weights"].data) for row in batch]

    def loss(_, logprobs):
        terms = [(w * lp).exp().where(w != 0, 0.0).sum() for w, lp in zip(weights, logprobs, strict=True)]
        return sum(terms), {"x": 1.0}

    custom = client.create_lora_training_client(base_model=str(model_dir))
    before = server.stats()
    assert custom.forward_backward_custom(batch, loss).result().metrics["x"] == 1.0
    after = server.stats()
    assert after["forward_passes"] - before["forward_passes"] == 1
    assert after["graph_hits"] - before.get("graph_hits", 0) == 1

    plain = client.create_lora_training_client(base_model=str(model_dir))
    logprobs = logprobs_of(plain.forward(random_batch(8) + batch, "cross_entropy").result())[-len(batch) :]
    gradients = [
        torch.where(w != 0, w * (w * lp).exp(), torch.zeros(())) for w, lp in zip(weights, logprobs, strict=True)
    ]
    again = [
        datum([*row.model_input.to_ints(), row.loss_fn_inputs["target_tokens"].data[-1]], -g)
        for row, g in zip(batch, gradients, strict=True)
    ]
    plain.forward_backward(again, "cross_entropy").result()
    assert server.stats()["graph_hits"] == after["graph_hits"], "this batch had no graph to use"
    for trainer in (custom, plain):
        trainer.optim_step(types.AdamParams(learning_rate=1e-3)).result()
    ours, theirs = (server.weights(t.save_weights_for_sampler("w").result().path) for t in (custom, plain))
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], atol=1e-5), name


def test_the_sampler_samples_from_what_was_trained(client, sampler, model_dir):
    trainer = client.create_lora_training_client(base_model=str(model_dir))
    wish = [7, 99, 98, 97, 96, 95]
    for _ in range(40):
        trainer.forward_backward([datum(wish, [1.0] * 5)], "cross_entropy").result()
        trainer.optim_step(types.AdamParams(learning_rate=1e-2)).result()
    trained = trainer.save_weights_and_get_sampling_client()
    assert tokens_of(sample(trained, [7], max_tokens=5, temperature=0))[0] == wish[1:]
    assert tokens_of(sample(sampler, [7], max_tokens=5, temperature=0))[0] != wish[1:]
    assert trained.get_tokenizer().decode([99]) == sampler.get_tokenizer().decode([99])


# ---- weights on disk ----


def test_what_was_named_stays_and_of_what_was_deleted_the_newest_and_what_is_sampled_from(server, client, model_dir):
    trainer = client.create_lora_training_client(base_model=str(model_dir))
    run = trainer.get_info().model_id
    other = server.client()  # an explorer that stays behind
    behind = other.create_sampling_client(model_path=trainer.save_weights_for_sampler("sampler-0").result().path)
    reply = tokens_of(sample(behind, [5], max_tokens=4, seed=0))
    for step in range(1, 6):
        train(trainer, [step])
        path = trainer.save_weights_for_sampler(f"sampler-{step}").result().path
        trainer.save_state(f"state-{step}").result()
        ahead = client.create_sampling_client(model_path=path)
        client.create_rest_client().delete_checkpoint(run, f"sampler-{step - 1}").result()  # as Trinity does
    folder = server.root / run
    assert {entry.name for entry in (folder / "weights").iterdir()} == {f"state-{step}" for step in range(1, 6)}
    assert sorted(entry.name for entry in (folder / "sampler_weights").iterdir()) == [
        "sampler-0",
        "sampler-4",
        "sampler-5",
    ]
    assert sample(ahead, [5], max_tokens=4, seed=0).sequences
    assert tokens_of(sample(behind, [5], max_tokens=4, seed=0)) == reply
    with pytest.raises(tinker.NotFoundError, match="no such weights"):
        client.create_sampling_client(model_path=f"tinker://{run}/sampler_weights/sampler-2")
    with pytest.raises(tinker.NotFoundError, match="no snapshot"):
        client.create_rest_client().delete_checkpoint(run, "sampler-2").result()


def test_place_is_free_as_soon_as_a_client_closes_and_until_then_it_is_named(model_dir, tmp_path):
    with running(model_dir, tmp_path / "weights") as server:
        holder = server.post("create_session", json={"display_name": "hog", "sdk_version": "9.9"}).json()["session_id"]
        for number in range(8):
            body = {"session_id": holder, "model_seq_id": number, "base_model": str(model_dir)}
            assert server.post("create_model", json=body).status_code == 200
        other = server.post("create_session", json={}).json()["session_id"]
        wanted = {"session_id": other, "model_seq_id": 0, "base_model": str(model_dir)}
        assert_refused(
            server.post("create_model", json=wanted),
            422,
            f"at most 8 models at a time: 8 by session {holder} (hog), SDK 9.9",
        )
        reason = {"reason": {"type": "errored"}, "detail": "done"}
        for _ in range(2):
            assert server.post(f"sessions/{holder}/finish", json=reason).status_code == 204
            reason = {"reason": {"type": "success"}}  # the first counts
        assert_refused(server.post("session_heartbeat", json={"session_id": holder}), 410, "closed")
        request = server.post("create_model", json=wanted).json()
        assert server.post("retrieve_future", json=request).json()["model_id"] == f"{other}:train:0"
        found = server.post("sessions/search", json={"display_name": "HO"}).json()["sessions"]
        assert [session["session_id"] for session in found] == [holder]
        assert found[0]["status"] == {"type": "client_finished", "reason": {"type": "errored"}, "detail": "done"}
        assert_refused(server.post("get_info", json={"model_id": f"{holder}:train:0"}), 404, "no such model")


# ---- what is refused ----


def forward_backward_body(**changes) -> bytes:
    """A valid request but for the changes."""
    message = pb.ForwardBackwardRequest(model_id=changes.get("model_id", "MODEL"), loss_fn="cross_entropy", seq_id=0)
    message.loss_fn = changes.get("loss_fn", "cross_entropy")
    for _ in range(changes.get("size", 1)):
        row = message.data.add()
        if changes.get("image"):
            row.model_input.add().image.data = b"png"
        row.model_input.add().encoded_text.tokens = changes.get("tokens", np.array([1, 2, 3], np.int32).tobytes())
        for name, values in {
            "target_tokens": np.array(changes.get("targets", [2, 3, 4]), np.int64),
            "weights": np.array(changes.get("weights", [1, 1, 1]), np.float32),
        }.items():
            if name != changes.get("without"):
                row.loss_fn_inputs[name].dense = values.tobytes()
                row.loss_fn_inputs[name].dtype = pb.DTYPE_INT64 if values.dtype == np.int64 else pb.DTYPE_FLOAT32
        if extra := changes.get("extra"):
            row.loss_fn_inputs[extra].dense = b""
        if changes.get("sparse"):
            row.loss_fn_inputs["weights"].sparse_csr.values = b""
    return message.SerializeToString()


def int32(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


FORWARD_BACKWARD = [
    (422, "loss_fn 'gspo' is not supported", dict(loss_fn="gspo")),
    (422, "importance_sampling takes target_tokens, logprobs and advantages", dict(loss_fn="importance_sampling")),
    (404, "no such model", dict(model_id="another")),
    (422, "1 to", dict(size=0)),
    (422, "only text", dict(image=True)),
    (422, "outside the vocabulary", dict(tokens=int32(1, 2, VOCABULARY))),
    (422, "outside the vocabulary", dict(tokens=int32(1, -2, 3))),
    (422, "outside the vocabulary", dict(targets=[2, 3, 10**12])),
    (422, "outside the vocabulary", dict(targets=[2, -1, 3])),
    (422, "whole number", dict(tokens=b"12345")),
    (422, "0 tokens", dict(tokens=b"", targets=[], weights=[])),
    (422, "513 tokens", dict(tokens=int32(*[1] * 513), targets=[1] * 513, weights=[1] * 513)),
    (422, "differ in length", dict(targets=[2, 3])),
    (422, "not finite", dict(weights=[1, float("nan"), 1])),
    (422, "weights is missing", dict(without="weights")),
    (422, "target_tokens is missing", dict(without="target_tokens")),
    (422, "advantages", dict(extra="advantages")),
    (422, "one value a token", dict(sparse=True)),
]

BODIES = [
    (400, "not a valid ForwardBackwardRequest", b"\xff\xff\xff", {}),
    (400, "not valid zstd", b"no zstd", {"content-encoding": "zstd"}),
    (400, "not valid zstd", zstandard.compress(b"x" * 1000)[:-3], {"content-encoding": "zstd"}),
    (413, "larger than", zstandard.compress(bytes(2**27)), {"content-encoding": "zstd"}),
    (415, "not supported", b"", {"content-encoding": "br"}),
    (413, "larger than", bytes(2**26 + 1), {}),
]

SAMPLE = {
    "sampling_session_id": "SESSION",
    "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2]}]},
    "sampling_params": {"max_tokens": 2},
    "num_samples": 1,
}


def text(*tokens) -> dict:
    return {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]}


JSON_REQUESTS = [
    ("asample", 404, "no such sampling session", SAMPLE | {"sampling_session_id": "another"}),
    ("asample", 422, "outside the vocabulary", SAMPLE | {"prompt": text(1, VOCABULARY)}),
    ("asample", 422, "outside the vocabulary", SAMPLE | {"prompt": text(-1)}),
    ("asample", 422, "0 tokens", SAMPLE | {"prompt": text()}),
    ("asample", 422, "512 tokens", SAMPLE | {"prompt": text(*[1] * 512)}),
    ("asample", 422, "valid integer", SAMPLE | {"prompt": text("one")}),
    ("asample", 422, "only text", SAMPLE | {"prompt": {"chunks": [{"type": "image", "data": "", "format": "png"}]}}),
    ("asample", 422, "Field required", {k: v for k, v in SAMPLE.items() if k != "prompt"}),
    ("asample", 422, "limit is", SAMPLE | {"num_samples": 100_000}),
    ("asample", 422, "num_samples", SAMPLE | {"num_samples": 0}),
    ("asample", 422, "num_samples", SAMPLE | {"num_samples": "3"}),
    ("asample", 422, "max_tokens", SAMPLE | {"sampling_params": {"max_tokens": -1}}),
    ("asample", 422, "temperature", SAMPLE | {"sampling_params": {"temperature": -0.1}}),
    ("asample", 422, "top_p", SAMPLE | {"sampling_params": {"top_p": 0}}),
    ("asample", 422, "top_k", SAMPLE | {"sampling_params": {"top_k": -2}}),
    ("asample", 422, "stop", SAMPLE | {"sampling_params": {"stop": [""]}}),
    ("asample", 422, "topk_prompt_logprobs", SAMPLE | {"topk_prompt_logprobs": 10**6}),
    ("create_session", 422, "sdk_version", {"sdk_version": 1}),
    ("session_heartbeat", 404, "no such session", {"session_id": "another"}),
    ("create_sampling_session", 404, "no such session", {"session_id": "x", "sampling_session_seq_id": 0}),
    ("create_model", 404, "no such session", {"session_id": "x", "model_seq_id": 0, "base_model": "m"}),
    ("create_model", 404, "this server serves", {"session_id": "CLIENT", "model_seq_id": 90, "base_model": "gpt"}),
    ("get_info", 404, "no such model", {"model_id": "../x"}),
    ("unload_model", 404, "no such model", {"model_id": "x"}),
    ("optim_step", 422, "Field required", {"model_id": "MODEL"}),
    ("optim_step", 422, "learning_rate", {"model_id": "MODEL", "adam_params": {"learning_rate": -1}}),
    ("optim_step", 422, "learning_rate", {"model_id": "MODEL", "adam_params": {"learning_rate": "fast"}}),
    ("optim_step", 422, "beta1", {"model_id": "MODEL", "adam_params": {"beta1": 1}}),
    ("save_weights", 422, "not a valid name", {"model_id": "MODEL", "path": "../../x"}),
    ("save_weights", 422, "not a valid name", {"model_id": "MODEL", "path": ".."}),
    ("save_weights", 422, "not a valid name", {"model_id": "MODEL", "path": ""}),
    ("save_weights", 422, "not a valid name", {"model_id": "MODEL", "path": "x" * 300}),
    ("save_weights_for_sampler", 422, "not a valid name", {"model_id": "MODEL", "path": "a/b"}),
    ("save_weights_for_sampler", 422, "is missing", {"model_id": "MODEL"}),
    ("load_weights", 422, "not a path", {"model_id": "MODEL", "path": "/etc/passwd", "optimizer": False}),
    ("load_weights", 422, "not a path", {"model_id": "MODEL", "path": "tinker://a/../../b", "optimizer": False}),
    ("load_weights", 422, "not a valid", {"model_id": "MODEL", "path": "tinker://../weights/x", "optimizer": False}),
    ("weights_info", 404, "no such weights", {"tinker_path": "tinker://a/weights/b"}),
    ("weights_info", 422, "unknown kind", {"tinker_path": "tinker://a/secrets/b"}),
    ("retrieve_future", 410, "no such request", {"request_id": "x"}),
]


@pytest.fixture(scope="module")
def names(server, model_dir) -> dict[str, str]:
    """A client session, a sampling session and a model, made by hand."""
    session = server.post("create_session", json={"sdk_version": "test"}).json()["session_id"]
    sampling = {"session_id": session, "sampling_session_seq_id": 0, "base_model": str(model_dir)}
    model = {"session_id": session, "model_seq_id": 0, "base_model": str(model_dir)}
    request = server.post("create_model", json=model).json()
    return {
        "CLIENT": session,
        "SESSION": server.post("create_sampling_session", json=sampling).json()["sampling_session_id"],
        "MODEL": server.post("retrieve_future", json=request).json()["model_id"],
    }


def assert_refused(answer: httpx.Response, status: int, reason: str) -> None:
    assert answer.status_code == status, answer.text
    assert reason in answer.json()["detail"] and "\n" not in answer.json()["detail"]


def test_malformed_requests_get_a_reason_and_the_server_goes_on(server, sampler, names):
    for route, status, reason, body in JSON_REQUESTS:
        body = {key: names.get(value, value) if isinstance(value, str) else value for key, value in body.items()}
        assert_refused(server.post(route, json=body), status, reason)
    for status, reason, changes in FORWARD_BACKWARD:
        body = forward_backward_body(**{"model_id": names["MODEL"]} | changes)
        assert_refused(server.post("forward_backward", content=body), status, reason)
    for status, reason, body, headers in BODIES:
        assert_refused(server.post("forward_backward", content=body, headers=headers), status, reason)
    for content in (b"{", b"[]", b'"x"', b"\x00"):
        answer = server.post("asample", content=content, headers={"content-type": "application/json"})
        assert 400 <= answer.status_code < 500 and answer.json()["detail"]
    for name in ("..%2F..%2Fx", "weights/../x", "nothing"):
        answer = server.http.delete(f"/api/v1/training_runs/{names['MODEL']}/checkpoints/{name}")
        assert 400 <= answer.status_code < 500
    assert server.http.get("/api/v1/samplers/x").status_code == 404
    # What was right in the tables is served.
    good = forward_backward_body(model_id=names["MODEL"])
    answer = server.post("forward_backward", content=zstandard.compress(good), headers={"content-encoding": "zstd"})
    assert server.post("retrieve_future", json=answer.json()).headers["content-type"] == "application/x-protobuf"
    assert sample(sampler, [5, 6], max_tokens=3, seed=0).sequences
    assert server.http.get("/healthz").json() == {"status": "ok"}


def test_errors_while_a_request_runs_reach_the_client(client, model_dir):
    trainer = client.create_lora_training_client(base_model=str(model_dir))
    path = trainer.save_weights_for_sampler("s").result().path
    with pytest.raises(tinker.RequestFailedError, match="no optimizer state"):
        trainer.load_state_with_optimizer(path).result()
    with pytest.raises(tinker.RequestFailedError, match="exists already"):
        trainer.save_weights_for_sampler("s").result()
    overflow = datum([5, 6, 7], [3e38, 3e38])
    trainer.forward_backward([overflow], "cross_entropy").result()
    with pytest.raises(tinker.RequestFailedError, match="gradient norm"):
        trainer.optim_step(types.AdamParams()).result()
    again = trainer.save_weights_for_sampler("t").result().path
    assert path != again


def test_a_repeated_request_is_not_run_twice(server, names):
    body = {"model_id": names["MODEL"], "adam_params": {}, "seq_id": 7001}
    steps = server.stats().get("optim_steps", 0)
    first, second = (server.post("optim_step", json=body).json() for _ in range(2))
    assert first == second
    answers = [server.post("retrieve_future", json=first).json() for _ in range(2)]
    assert answers[0] == answers[1] and "metrics" in answers[0]
    assert server.stats()["optim_steps"] - steps == 1


# ---- the process ----


def test_a_wrong_key_is_refused(server):
    for key in ("", "tml-wrong", "x" * 1000):
        assert_refused(httpx.post(f"{server.url}/api/v1/create_session", headers={"X-API-Key": key}), 401, "API key")


def train(trainer, seeds) -> None:
    for seed in seeds:
        trainer.forward_backward(random_batch(seed), "cross_entropy").result()
        trainer.optim_step(types.AdamParams(**ADAM)).result()


def test_stopped_in_the_midst_of_work_and_resumed_a_run_is_as_unbroken(model_dir, tmp_path):
    root = tmp_path / "weights"
    with running(model_dir, root) as server:
        service = server.client()
        sampler = service.create_sampling_client(base_model=str(model_dir))
        trainer = service.create_lora_training_client(base_model=str(model_dir))
        train(trainer, [0, 1])
        checkpoint = trainer.save_state("half").result().path
        train(trainer, [2, 3])
        unbroken = server.weights(trainer.save_weights_for_sampler("end").result().path)

        body = {"sampling_session_id": sampler._sampling_session_id, "sampling_params": {"max_tokens": 500}}
        requests = [server.post("asample", json=SAMPLE | body | {"num_samples": 200}).json() for _ in range(20)]
        save = {"model_id": service.create_lora_training_client(base_model=str(model_dir)).model_id}
        requests += [server.post("save_weights", json=save | {"path": f"{i}"}).json() for i in range(20)]
        with ThreadPoolExecutor(len(requests)) as pool:
            polls = [pool.submit(server.post, "retrieve_future", json=request) for request in requests]
            time.sleep(0.3)
            assert server.stop() == 0
            answers = [poll.result() for poll in polls if not poll.exception()]
        assert any("stopping" in answer.text for answer in answers)
    snapshots = list(root.glob("*/*/*"))
    assert snapshots and all((snapshot / "manifest.json").is_file() for snapshot in snapshots)
    assert not any(snapshot.name.startswith(".") for snapshot in snapshots)

    with running(model_dir, root) as server:
        service = server.client()
        trainer = service.create_training_client_from_state_with_optimizer(checkpoint)
        train(trainer, [2, 3])
        resumed = server.weights(trainer.save_weights_for_sampler("end").result().path)
        forgetful = service.create_training_client_from_state(checkpoint)
        train(forgetful, [2, 3])
        without_moments = server.weights(forgetful.save_weights_for_sampler("end").result().path)
    assert all(torch.equal(resumed[name], unbroken[name]) for name in unbroken)
    assert any(not torch.allclose(without_moments[name], unbroken[name], atol=1e-5) for name in unbroken)


def test_what_keeps_the_server_from_starting_is_said_in_one_line(model_dir, tmp_path, server):
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text("{}")
    (tmp_path / "file").write_text("")
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    good = {"model_dir": model_dir, "root": tmp_path / "root"}
    for message, options in {
        "no such model directory": {"model_dir": tmp_path / "nothing"},
        "no config.json": {"model_dir": tmp_path / "empty"},
        "cannot load": {"model_dir": tmp_path / "odd"},
        "cannot listen": {"port": taken.getsockname()[1]},
        "device 'tpu9'": {"device": "tpu9"},
        "device 'cuda:77'": {"device": "cuda:77"},
        "API key": {"host": "0.0.0.0"},
        "another server uses": {"root": server.root},
        "cannot use the weights directory": {"root": tmp_path / "file" / "below"},
        "keep must": {"keep": 1},
        "threads must": {"threads": -1},
        "max_rows must": {"max_rows": 0},
        "graph_budget_mb must": {"graph_budget_mb": -1},
        "cannot listen on no-such-host": {"host": "no-such-host", "api_key": "tml-x"},
    }.items():
        with pytest.raises(ServeError, match=message) as caught:
            serve(**good | options)
        assert "\n" not in str(caught.value)
    taken.close()
