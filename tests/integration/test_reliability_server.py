"""The local backend against clients that are wrong, slow, many or gone, a full disk, and weights that are none."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
import torch
import zstandard

from tests.tiny_model import VOCABULARY, make_tiny_model

tinker = pytest.importorskip("tinker", reason="the Tinker SDK needs Python 3.11")

from tinker.proto import tinker_public_pb2 as pb  # noqa: E402

KEY = "tml-reliability"
CONTEXT = 512  # tokens, of the tiny model


class Server:
    """A server process, with one session, sampling session and model made by hand."""

    def __init__(self, model_dir: Path, root: Path, descriptors: int | None = None, log: Path | None = None, **options):
        self.root = root
        if options:  # of the Python function alone
            options |= {"model_dir": str(model_dir), "root": str(root), "threads": 1, "api_key": KEY}
            start = f"serve(ready=lambda url: print(url, flush=True), **{options!r})"
            command = [sys.executable, "-c", f"from trinity_rec.tinker_local import serve; {start}"]
        else:
            command = [sys.executable, "-m", "trinity_rec.cli", "serve", f"--model={model_dir}", f"--root={root}"]
            command += ["--port=0", "--threads=1", f"--api-key={KEY}"]
        if descriptors is not None:
            command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
        with contextlib.nullcontext() if log is None else log.open("w") as stderr:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the server did not start"
        limits = httpx.Limits(max_connections=None)
        self.http = httpx.Client(base_url=self.url, headers={"X-API-Key": KEY}, timeout=60, limits=limits)
        self.session = self.post("create_session", json={}).json()["session_id"]
        base = {"session_id": self.session, "base_model": str(model_dir)}
        self.sampling = self.post("create_sampling_session", json=base | {"sampling_session_seq_id": 0}).json()[
            "sampling_session_id"
        ]
        self.model = self.answer("create_model", base | {"model_seq_id": 0})["model_id"]

    def post(self, route: str, **options) -> httpx.Response:
        return self.http.post(f"/api/v1/{route}", **options)

    def answer(self, route: str, body: dict) -> dict:
        """The answer to a request that answers later; an `error` in it included."""
        return self.fetch(self.post(route, json=body).json())

    def fetch(self, request: dict) -> dict:
        answer = self.post("retrieve_future", json={"request_id": request["request_id"]})
        assert answer.status_code == 200, answer.text
        is_json = answer.headers["content-type"] == "application/json"
        return answer.json() if is_json else {"protobuf": answer.content}

    def sample(self, **changes) -> dict:
        """A sampling request's own answer, with the id to come back with."""
        body = {"sampling_session_id": self.sampling, "prompt": text(5, 6), "sampling_params": {"max_tokens": 3}}
        answer = self.post("asample", json=body | changes)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def serves(self, seconds: float = 30) -> None:
        """It samples and trains, within that time."""
        start = time.monotonic()
        assert "protobuf" in self.fetch(self.sample())
        request = self.post("forward_backward", content=training(self.model)).json()
        assert "protobuf" in self.fetch(request)
        assert time.monotonic() - start < seconds

    def memory(self) -> int:
        return psutil.Process(self.process.pid).memory_info().rss

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model_dir, tmp_path_factory) -> Iterator[Server]:
    server = Server(model_dir, tmp_path_factory.mktemp("weights"))
    yield server
    assert server.stop() == 0


def text(*tokens) -> dict:
    return {"chunks": [{"type": "encoded_text", "tokens": list(tokens)}]}


def ints(*values: int) -> bytes:
    return np.array(values, np.int32).tobytes()


def training(model: str, rows: int = 1, **changes) -> bytes:
    """A valid training request but for the changes."""
    message = pb.ForwardBackwardRequest(model_id=model, loss_fn=changes.get("loss_fn", "cross_entropy"))
    for name, value in changes.get("config", {}).items():
        message.loss_fn_config[name] = value
    for _ in range(rows):
        row = message.data.add()
        if changes.get("image"):
            row.model_input.add().image.data = b"png"
        row.model_input.add().encoded_text.tokens = changes.get("tokens", ints(1, 2, 3))
        for name, dtype in (("target_tokens", np.int64), ("weights", np.float32)):
            values = np.array(changes.get(name, [2, 3, 4] if dtype == np.int64 else [1, 1, 1]), dtype)
            if name != changes.get("without"):
                row.loss_fn_inputs[name].dense = values.tobytes() + changes.get("tail", b"")
                row.loss_fn_inputs[name].dtype = changes.get(
                    "dtype", pb.DTYPE_INT64 if dtype == np.int64 else pb.DTYPE_FLOAT32
                )
                row.loss_fn_inputs[name].shape.extend(changes.get("shape", []))
        for extra in changes.get("extra", ()):
            row.loss_fn_inputs[extra].dense = b""
        if changes.get("sparse"):
            row.loss_fn_inputs["weights"].sparse_csr.values = b""
    return message.SerializeToString()


# ---- malformed requests ----

NAMES = ("../x", "..", ".", "", "a/b", "/etc/passwd", "a\\b", "a\x00b", "a\nb", ".hidden", "x" * 300, "é" * 150)
URIS = (
    "/etc/passwd",
    "",
    "tinker://",
    "tinker://a",
    "tinker://a/weights",
    "tinker://a/weights/b/c",
    "tinker://../weights/x",
    "tinker://a/weights/..",
    "tinker://a/../x",
    "tinker://a/secrets/x",
    "tinker://a%2f../weights/x",
    "tinker:/a/weights/x",
    "file:///etc/passwd",
    "tinker://a/weights/\x00",
    "tinker://" + "x" * 100_000,
    "tinker://☃/weights/☃",
)
NOT_COUNTS = (0, -1, 1.5, "3", True, None, [], {}, float("nan"), 10**400)
JSON = "application/json"


def malformed(server: Server) -> Iterator[tuple[str, dict]]:
    """Routes, and what is sent there."""
    sample = {"sampling_session_id": server.sampling, "prompt": text(1, 2), "sampling_params": {"max_tokens": 2}}
    model = {"model_id": server.model}

    def requests() -> Iterator[tuple[str, object]]:
        for prompt in (
            *(text(token) for token in (VOCABULARY, -1, 2**31, 10**30, 1.5, "1", None, True, [1])),
            text(),
            text(*[1] * CONTEXT),
            text(*[1] * 200_000),
            {"chunks": []},
            {"chunks": [{"type": "image", "data": "", "format": "png"}]},
            {"chunks": [{"type": "encoded_text"}]},
            {"chunks": [1]},
            {"chunks": {"0": 1}},
            {},
            [],
            "hello",
            None,
        ):
            yield "asample", sample | {"prompt": prompt}
        for count in NOT_COUNTS[:-2]:
            yield "asample", sample | {"num_samples": count}
            if count is not None:
                yield "asample", sample | {"sampling_params": {"max_tokens": count}}
        yield "asample", sample | {"num_samples": 10**9}
        yield "asample", sample | {"num_samples": 10**400}
        for name, values in {
            "temperature": (-0.1, 101, "hot", None, []),
            "top_p": (0, -1, 1.1, "all"),
            "top_k": (-2, 1.5, "all"),
            "seed": (1.5, "lucky", []),
            "stop": ([""], ["x" * 1001], ["a"] * 65, [1.5], {}, [[1]]),
        }.items():
            for value in values:
                yield "asample", sample | {"sampling_params": {"max_tokens": 2, name: value}}
        yield "asample", sample | {"sampling_params": 3}
        for value in (-1, 1001, "3"):
            yield "asample", sample | {"topk_prompt_logprobs": value}
        for value in ("another", "", "x" * 201, 7, None, "\ud800", f"{server.sampling}\x00"):
            yield "asample", sample | {"sampling_session_id": value}
        yield "asample", {}
        for value in (-1, 0.5, "1"):
            yield "asample", sample | {"seq_id": value}

        yield "create_session", {"sdk_version": 1}
        for session in ("another", "", None, 3, ["x"]):
            yield "session_heartbeat", {"session_id": session}
            yield "create_sampling_session", {"session_id": session, "sampling_session_seq_id": 0}
            yield "create_model", {"session_id": session, "model_seq_id": 0, "base_model": "m"}
        yield "create_model", {"session_id": server.session, "model_seq_id": 9, "base_model": "gpt-4"}
        yield "create_model", {"session_id": server.session, "model_seq_id": 9, "base_model": "x" * 10**6}
        yield (
            "create_model",
            {"session_id": server.session, "model_seq_id": 9, "base_model": "x", "lora_config": {"train_mlp": 0}},
        )
        for uri in URIS:
            yield "weights_info", {"tinker_path": uri}
            yield "load_weights", model | {"path": uri, "optimizer": False}
            yield (
                "create_sampling_session",
                {"session_id": server.session, "sampling_session_seq_id": 1, "model_path": uri},
            )
        for name in NAMES:
            yield "save_weights", model | {"path": name}
            yield "save_weights_for_sampler", model | {"path": name}
        yield "save_weights_for_sampler", model
        yield "save_weights", model | {"path": "good", "overwrite": "yes"}
        for other in ("x", "", "../x", None, 1, "run-" + "0" * 12):
            yield "get_info", {"model_id": other}
            yield "unload_model", {"model_id": other}
            yield "save_weights", {"model_id": other, "path": "x"}
            yield "optim_step", {"model_id": other, "adam_params": {}}
        yield "optim_step", model
        for name, values in {
            "learning_rate": (-1, "fast", None, []),
            "beta1": (1, -0.1, "x"),
            "beta2": (1.0, 2),
            "eps": (-1,),
            "weight_decay": (-1, "x"),
            "grad_clip_norm": (-1,),
        }.items():
            for value in values:
                yield "optim_step", model | {"adam_params": {name: value}}
        for request in ("x", "", None, 1, "x" * 201, f"{server.model}:99999"):
            yield "retrieve_future", {"request_id": request}

    for route, body in requests():
        yield route, {"content": json.dumps(body).encode(), "headers": {"content-type": JSON}}

    # What JSON is not, though Python reads and writes some of it.
    for content in (b"", b"{", b"[]", b'"x"', b"\x00", b"\xff\xfe", b"null", b"NaN", b"[" * 100_000, b'{"a":' * 50_000):
        yield "asample", {"content": content, "headers": {"content-type": JSON}}
    for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"9" * 5000):
        for name in ("learning_rate", "eps"):
            body = b'{"model_id": "%s", "adam_params": {"%s": %s}}' % (server.model.encode(), name.encode(), number)
            yield "optim_step", {"content": body, "headers": {"content-type": JSON}}
        body = json.dumps(sample | {"sampling_params": {"temperature": 12345}}).encode().replace(b"12345", number)
        yield "asample", {"content": body, "headers": {"content-type": JSON}}
    yield "asample", {"content": json.dumps(sample).encode(), "headers": {"content-type": "text/plain"}}
    yield "asample", {"content": b" " * (8 * 2**20 + 1), "headers": {"content-type": JSON}}

    good = training(server.model)
    for body in (
        *(good[:length] for length in (1, len(good) // 2, len(good) - 1)),
        b"",
        b"\xff" * 100,
        b"{}",
        good + b"\x0a\xff\xff\xff\xff\x0f",
        training("another"),
        training(""),
        training(server.model, rows=0),
        training(server.model, rows=16385),
        *(training(server.model, loss_fn=name) for name in ("", "importance_sampling", "ppo", "x" * 1000)),
        training(server.model, config={"a": 1.0}),
        training(server.model, image=True),
        *(training(server.model, tokens=ints(1, 2, token)) for token in (-1, -(2**31), VOCABULARY, 2**31 - 1)),
        *(training(server.model, target_tokens=[2, 3, token]) for token in (-1, VOCABULARY, 10**12, -(2**63))),
        *(training(server.model, weights=[1, 1, weight]) for weight in (np.nan, np.inf, -np.inf)),
        training(server.model, tokens=b"12345"),
        training(server.model, tail=b"x"),
        training(server.model, tokens=b"", target_tokens=[], weights=[]),
        training(server.model, tokens=ints(*[1] * 513), target_tokens=[1] * 513, weights=[1] * 513),
        training(server.model, target_tokens=[2, 3]),
        training(server.model, weights=[1] * 1000),
        training(server.model, dtype=0),
        training(server.model, dtype=99),
        training(server.model, shape=[1, 3]),
        training(server.model, without="weights"),
        training(server.model, without="target_tokens"),
        training(server.model, extra=["advantages", "x" * 1000]),
        training(server.model, sparse=True),
    ):
        yield "forward_backward", {"content": body}
    for encoding in ("br", "gzip", "zstd, zstd", "x" * 1000):
        yield "forward_backward", {"content": good, "headers": {"content-encoding": encoding}}
    packed = zstandard.compress(good)
    for body in (
        good,
        b"",
        packed[:4],
        packed[:-3],
        packed[:8] + b"\xff" * 8 + packed[16:],
        zstandard.compress(b"x" * 2**27),
        zstandard.ZstdCompressor(write_content_size=False).compress(b"\x00" * 2**27),
        zstandard.compress(b"no protobuf"),
    ):
        yield "forward_backward", {"content": body, "headers": {"content-encoding": "zstd"}}
    yield "forward_backward", {"content": bytes(2**26 + 1)}


def test_each_malformed_request_gets_a_reason_and_the_server_goes_on(server):
    seen, wrong = set(), []
    before = sorted(server.root.rglob("*"))
    for number, (route, options) in enumerate(malformed(server)):
        answer = server.post(route, **options)
        reason = answer.json().get("detail") if answer.headers.get("content-type") == JSON else None
        is_refused = 400 <= answer.status_code < 500 and answer.status_code not in (408, 409)  # which the SDK repeats
        if not (is_refused and isinstance(reason, str) and reason and "\n" not in reason and len(reason) < 1000):
            wrong.append((route, options.get("content", b"")[:200], answer.status_code, answer.text[:200]))
        seen.add((route, options.get("content"), str(options.get("headers"))))
        if number % 50 == 0:
            server.serves()
    for path in ("training_runs/x/checkpoints/..%2F..%2Fx", "training_runs/../checkpoints/x", "samplers/x", "nothing"):
        assert 400 <= server.http.delete(f"/api/v1/{path}").status_code < 500
        assert 400 <= server.http.get(f"/api/v1/{path}").status_code < 500
    assert not wrong
    assert len(seen) >= 250
    server.serves()
    assert sorted(server.root.rglob("*")) == before, "something was written"


# ---- who may come in ----


def test_without_the_key_nothing_but_health_is_told(server):
    wrong = (None, "", "tml-", KEY[:-1], KEY + "x", KEY.upper(), "x" * 60_000, "tml-\xe9")
    client = httpx.Client()
    for key in wrong:
        headers = {} if key is None else {"X-API-Key": key.encode("latin-1")}
        for method, path in (("POST", "/api/v1/asample"), ("GET", "/stats"), ("GET", "/api/v1/healthz"), ("GET", "/x")):
            answer = client.request(method, server.url + path, headers=headers)
            assert answer.status_code in (401, 400), answer.text  # 400: the headers are too long
        assert client.get(f"{server.url}/healthz").json() == {"status": "ok"}


def test_it_listens_on_loopback_unless_it_is_told_otherwise(server):
    listening = [c for c in psutil.Process(server.process.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [connection.laddr.ip for connection in listening] == ["127.0.0.1"]


# ---- clients that are slow, gone, or many ----


def raw(server: Server, head: str, body: bytes = b"", key: bool = True) -> socket.socket:
    """A connection on which a request has begun, and no more."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    connection = socket.create_connection((host, int(port)))
    keys = f"X-API-Key: {KEY}\r\n" if key else ""
    connection.sendall(f"{head}\r\nHost: {host}\r\n{keys}".encode() + body)
    return connection


def test_slow_and_vanished_clients_block_nobody(server):
    post = "POST /api/v1/asample HTTP/1.1"
    slow = [raw(server, post) for _ in range(50)]  # no end of the headers
    slow += [raw(server, post, b"Content-Length: 1000\r\n\r\n{") for _ in range(50)]  # no end of the body
    slow += [raw(server, post, b"Transfer-Encoding: chunked\r\n\r\n5\r\n{") for _ in range(20)]
    pending = [server.sample(num_samples=16, sampling_params={"max_tokens": 200}, seq_id=10_000 + i) for i in range(20)]
    for request in pending:  # polls, and is gone
        body = json.dumps({"request_id": request["request_id"]}).encode()
        gone = raw(server, "POST /api/v1/retrieve_future HTTP/1.1", b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
        gone.close()
    server.serves(seconds=60)
    for connection in slow:
        connection.close()
    assert all("protobuf" in server.fetch(request) for request in pending), "the answer stays for who asks again"
    server.serves()


def test_a_body_that_takes_too_long_is_refused(model_dir, tmp_path):
    server = Server(model_dir, tmp_path / "weights", body_seconds=2)
    post, start = "POST /api/v1/asample HTTP/1.1", time.monotonic()
    silent = raw(server, post, b"Content-Length: 1000\r\n\r\n{")
    chunked = raw(server, post, b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
    dripping = raw(server, post, b"Content-Length: 1000\r\n\r\n{")
    while time.monotonic() - start < 1.8:  # each byte comes soon after the one before: it is the whole that counts
        time.sleep(0.1)
        dripping.sendall(b" ")
    for connection in (silent, chunked, dripping):
        connection.settimeout(30)
        answer = ""
        while "}" not in answer:
            answer += connection.recv(1000).decode()
        assert answer.startswith("HTTP/1.1 400 ") and answer.endswith('{"detail":"the body did not arrive in 2 s"}')
        assert 2 <= time.monotonic() - start < 10
        connection.close()
    server.serves()
    assert server.stop() == 0


HALF = {
    "headers": b"",
    "headers, no key": b"X-Nothing: \r\n",
    "body": b"Content-Length: 1000\r\n\r\n{",
    "body, no key": b"Content-Length: 1000\r\n\r\n{",
}


def test_1100_half_sent_requests_at_a_time_stop_nobody_at_1024_descriptors(model_dir, tmp_path):
    server = Server(model_dir, tmp_path / "weights", 1024, tmp_path / "log", header_seconds=5, body_seconds=20)
    slow = raw(server, "POST /api/v1/asample HTTP/1.1", b"Content-Length: 1000\r\n\r\n{")
    pending = server.sample(num_samples=16, sampling_params={"max_tokens": 200}, seq_id=1)
    for kind, body in HALF.items():
        half = [raw(server, "POST /api/v1/asample HTTP/1.1", body, key="no key" not in kind) for _ in range(1100)]
        with contextlib.suppress(OSError):  # in the loop: another byte each time, until it has to go
            slow.sendall(b" ")
        started = time.monotonic()
        for _ in range(3):
            with httpx.Client(base_url=server.url, headers={"X-API-Key": KEY}, timeout=10) as newcomer:
                assert newcomer.post("/api/v1/create_session", json={}).status_code == 200
        server.serves(seconds=10)
        assert time.monotonic() - started < 15
        for connection in half:
            connection.close()
    assert "protobuf" in server.fetch(pending)
    assert psutil.Process(server.process.pid).num_fds() < 1024
    assert server.stop() == 0
    assert (tmp_path / "log").stat().st_size < 2000


def test_headers_that_take_too_long_end_the_connection(model_dir, tmp_path):
    server = Server(model_dir, tmp_path / "weights", header_seconds=1)
    start = time.monotonic()
    silent = socket.create_connection(httpx.URL(server.url).netloc.decode().split(":"))
    half = raw(server, "POST /api/v1/asample HTTP/1.1")
    second = socket.create_connection(httpx.URL(server.url).netloc.decode().split(":"))  # after a whole request
    second.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    answer = b""
    while b"ok" not in answer:  # head and body may come apart
        answer += second.recv(1000)
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b'{"status":"ok"}')
    second.sendall(b"GET /healthz HTTP/1.1\r\nX-Slow: ")
    for connection in (silent, half, second):
        connection.settimeout(15)
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(1000) == b""
    assert 0.9 < time.monotonic() - start < 15
    server.serves()
    assert server.stop() == 0


def test_when_nothing_can_be_accepted_the_log_says_so_once(model_dir, tmp_path):
    server = Server(model_dir, tmp_path / "weights", log=tmp_path / "log")
    used = psutil.Process(server.process.pid).num_fds()
    _, most = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (used + 20, most))
    half = [raw(server, "POST /api/v1/asample HTTP/1.1") for _ in range(60)]
    time.sleep(3)  # asyncio tries again every second
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (most, most))
    for connection in half:
        connection.close()
    server.serves()
    assert server.stop() == 0
    assert (tmp_path / "log").read_text().count("no connection can be accepted") == 1
    assert len((tmp_path / "log").read_text().splitlines()) < 5


def test_on_loopback_it_answers_to_loopback_names_only(server):
    port = httpx.URL(server.url).port
    for host, wanted in {
        **dict.fromkeys(
            ("localhost", f"localhost:{port}", "127.0.0.1", f"127.0.0.1:{port}", "[::1]:80", "LocalHost"), 200
        ),
        **dict.fromkeys(
            ("example.com", f"evil.example:{port}", "127.0.0.1.evil.example", "192.168.0.1", "", "[", "x" * 300), 403
        ),
    }.items():
        answer = httpx.get(f"{server.url}/healthz", headers={"Host": host})
        assert answer.status_code == wanted, host
        assert wanted == 200 or "loopback" in answer.json()["detail"]


def test_memory_is_bounded_under_500_requests_at_a_time(server):
    def request(seed: int) -> bytes:
        prompt = text(*(3 + (seed + i) % 200 for i in range(200)))
        wanted = {"max_tokens": 8, "seed": seed}
        return server.fetch(server.sample(prompt=prompt, num_samples=4, sampling_params=wanted))["protobuf"]

    def round_of(pool: ThreadPoolExecutor) -> int:
        answers = list(pool.map(request, range(500)))
        assert all(len(pb.SampleResponse.FromString(answer).sequences) == 4 for answer in answers)
        return server.memory()

    with ThreadPoolExecutor(500) as pool:
        first, *later = [round_of(pool) for _ in range(3)]
    assert max(later) < first + 64 * 2**20, "every round of requests leaves something behind"
    server.serves()


# ---- the end of it, and what is on the disk ----


def test_a_full_disk_leaves_what_was_saved_and_says_so(model_dir, tmp_path):
    server = Server(model_dir, tmp_path / "weights")
    weights = server.answer("save_weights_for_sampler", {"model_id": server.model, "path": "whole"})["path"]
    state = server.answer("save_weights", {"model_id": server.model, "path": "state"})["path"]
    process = psutil.Process(server.process.pid)
    size = (server.root / weights.removeprefix("tinker://") / "weights.safetensors").stat().st_size
    # The largest file that the disk takes: half of the weights, or the weights but not the optimizer's state.
    for most, route, name in (
        (size // 2, "save_weights_for_sampler", "cut"),
        (size // 2, "save_weights", "cut"),
        (size + 1000, "save_weights", "state"),
    ):
        train(server)
        process.rlimit(psutil.RLIMIT_FSIZE, (most, process.rlimit(psutil.RLIMIT_FSIZE)[1]))
        answer = server.answer(route, {"model_id": server.model, "path": name, "overwrite": True})
        assert "could not be written, earlier snapshots are untouched" in answer["error"], answer
        assert answer["category"] == "server" and "\n" not in answer["error"]
        server.serves()
    assert not list(server.root.rglob(".writing-*"))
    process.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
    for uri, optimizer in ((weights, False), (state, False)):
        body = {"model_id": server.model, "path": uri, "optimizer": optimizer}
        assert server.answer("load_weights", body)["type"] == "load_weights"
    assert server.answer("save_weights", {"model_id": server.model, "path": "next"})["path"]
    assert server.stop() == 0


def train(server: Server) -> None:
    """One step, so that there is an optimizer state to save."""
    server.fetch(server.post("forward_backward", content=training(server.model)).json())
    assert "metrics" in server.answer("optim_step", {"model_id": server.model, "adam_params": {}})


class Evil:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def test_pickled_code_is_never_run(server, tmp_path):
    train(server)
    path = server.answer("save_weights", {"model_id": server.model, "path": "pickled"})["path"]
    folder = server.root / path.removeprefix("tinker://")
    manifest = json.loads((folder / "manifest.json").read_text())
    harm = tmp_path / "harm"
    torch.save({"state": Evil(harm)}, tmp_path / "evil.pt")
    for name, content, optimizer in (
        ("optimizer.pt", (tmp_path / "evil.pt").read_bytes(), True),
        ("optimizer.pt", pickle.dumps(Evil(harm)), True),
        ("optimizer.pt", b"", True),
        ("weights.safetensors", pickle.dumps(Evil(harm)), False),
        ("weights.safetensors", b"", False),
    ):
        (folder / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "crc32": zlib.crc32(content)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        answer = server.answer("load_weights", {"model_id": server.model, "path": path, "optimizer": optimizer})
        assert answer["category"] == "user" and "holds no" in answer["error"], answer
        whole = server.answer("save_weights", {"model_id": server.model, "path": "pickled", "overwrite": True})
        assert whole["path"] == path
        manifest = json.loads((folder / "manifest.json").read_text())
    assert not harm.exists()
    server.serves()


def test_what_lies_outside_the_root_stays_outside(server, tmp_path):
    (tmp_path / "outside").mkdir()
    run = server.root / server.model / "weights"
    run.mkdir(parents=True, exist_ok=True)
    (run / "link").symlink_to(tmp_path / "outside", target_is_directory=True)
    for route, body in (
        ("load_weights", {"path": f"tinker://{server.model}/weights/link", "optimizer": False}),
        ("weights_info", {"tinker_path": f"tinker://{server.model}/weights/link"}),
    ):
        answer = server.post(route, json={"model_id": server.model} | body)
        assert answer.status_code == 422 and "not inside" in answer.json()["detail"]
    answer = server.answer("save_weights", {"model_id": server.model, "path": "link", "overwrite": True})
    assert "not inside" in answer["error"]
    assert not list((tmp_path / "outside").iterdir())
    (run / "link").unlink()


def test_sigterm_with_work_in_flight_ends_in_time_with_an_answer_for_everybody(model_dir, tmp_path):
    server = Server(model_dir, tmp_path / "weights")
    long = {"num_samples": 64, "sampling_params": {"max_tokens": 500, "top_k": 50}}
    requests = [server.sample(seq_id=i, **long) for i in range(30)]
    requests += [server.post("forward_backward", content=training(server.model, rows=200)).json() for _ in range(20)]
    idle = raw(server, "POST /api/v1/asample HTTP/1.1", b"Content-Length: 1000\r\n\r\n{")
    with ThreadPoolExecutor(len(requests)) as pool:
        polls = [pool.submit(server.post, "retrieve_future", json=request) for request in requests]
        time.sleep(0.5)
        start = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - start < 20
        answers = [poll.result() for poll in polls if not poll.exception()]
    idle.close()
    assert len(answers) == len(requests)
    assert any("stopping" in answer.text for answer in answers)
