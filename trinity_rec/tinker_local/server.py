"""The HTTP side: routes of the Tinker API, one line each where that is enough, and the life of the server process."""

import asyncio
import contextlib
import gc
import hmac
import inspect
import ipaddress
import math
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trinity_rec.tinker_local import wire
from trinity_rec.tinker_local.backend import Backend
from trinity_rec.tinker_local.connections import ACCEPTED_AT_A_TIME, Connection, Door, quiet_about_accept
from trinity_rec.tinker_local.errors import RequestError, ServeError
from trinity_rec.tinker_local.model import device_memory, load
from trinity_rec.tinker_local.weights import WeightStore

LONG_POLL_SECONDS = 30.0  # the SDK's own timeout is 45
BACKLOG = 2048  # connections that wait for being accepted
CLOSE_SECONDS = 10  # for clients to fetch what they wait for, when the server stops
KEEP_ALIVE_SECONDS = 60  # well above the SDK's 5: who reuses a connection just as it is closed gets an error
HEADER_SECONDS = 20.0  # for a request's headers to arrive
BODY_SECONDS = 120.0  # for a request's body to arrive
RECEIVING = 8 * wire.MAX_BODY  # bytes of the bodies that are arriving or being read


def serve(
    model_dir: Path,
    root: Path,
    host: str = "127.0.0.1",
    port: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    keep: int = 2,
    disk_budget_gb: float | None = None,
    max_rows: int = 256,
    graph_budget_mb: int | None = None,
    bf16: bool = False,
    api_key: str | None = None,
    name: str | None = None,
    header_seconds: float = HEADER_SECONDS,
    body_seconds: float = BODY_SECONDS,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a model until SIGTERM or SIGINT; blocks.

    Args:
        model_dir: a Hugging Face directory of a causal language model with its tokenizer.
        root: where snapshots are kept, by one server at a time.
        host: the interface to listen on; other machines may ask only with an API key.
        port: 0 for any free one.
        device: any torch device.
        threads: of torch on the CPU; by default as many as torch takes.
        keep: newest samplers that stay on disk for each training run though nobody named them, or though they were
            deleted; at least 2. What a client still samples from stays besides. What a client named stays until the
            client deletes it, or its `ttl_seconds` are over.
        disk_budget_gb: what all weights in `root` may take; a save for which there is no room fails. By default nine
            tenths of what the disk has free, and what is there.
        max_rows: samples in one batch.
        graph_budget_mb: memory for graphs kept between a forward and its backward, for each training run; by default
            a quarter of the device's. What does not fit is computed twice.
        bf16: compute the model's layers in bfloat16, which rounds logprobs by about a hundredth.
        api_key: what clients must send as X-API-Key (the SDK's TINKER_API_KEY; it insists on a leading `tml-`).
        name: another name that clients may use for the model, as `ORG/MODEL`, for those that look theirs up by it.
        header_seconds, body_seconds: how long a request's headers and its body may take to arrive.
        ready: called with the base URL once requests are accepted.

    Raises:
        ServeError: the server cannot start, in one line.
    """
    for option, value in {"threads": threads or 1, "max_rows": max_rows}.items():
        if value < 1:
            raise ServeError(f"{option} must be at least 1, got {value}")
    if graph_budget_mb is not None and graph_budget_mb < 0:
        raise ServeError(f"graph_budget_mb must not be negative, got {graph_budget_mb}")
    if disk_budget_gb is not None and not 0 < disk_budget_gb < math.inf:
        raise ServeError(f"disk_budget_gb must be a positive number, got {disk_budget_gb}")
    if not _is_loopback(host) and not api_key:
        raise ServeError(f"listening on {host} lets other machines in: set an API key")
    with (
        _stop_on_signals(),
        contextlib.closing(_listen(host, port)) as listener,
        contextlib.closing(WeightStore(root, keep, disk_budget_gb and disk_budget_gb * 1e9)) as store,
    ):
        if threads is not None:
            torch.set_num_threads(threads)
        served = load(model_dir, device, bf16, name)
        budget = device_memory(served.device) / 4 if graph_budget_mb is None else graph_budget_mb * 2**20
        backend = Backend(served, store, max_rows, budget)
        address = f"[{host}]" if ":" in host else host
        app = make_app(backend, api_key, body_seconds, _is_loopback(host))
        door = Door(header_seconds, read_seconds=body_seconds)
        server = _Server(backend, app, door, lambda: ready and ready(f"http://{address}:{listener.getsockname()[1]}"))
        asyncio.run(server.serve(sockets=[listener]))


class _Server(uvicorn.Server):
    """Uvicorn, which announces itself, lets running work end before it closes, and exits with 0 on a signal."""

    def __init__(self, backend: Backend, app: Starlette, door: Door, announce: Callable[[], None]):
        self._backend, self._announce = backend, announce
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, door),
                ws="none",
                backlog=ACCEPTED_AT_A_TIME,
                log_level="error",  # uvicorn warns of every malformed request
                access_log=False,
                lifespan="off",
                proxy_headers=False,
                timeout_graceful_shutdown=CLOSE_SECONDS,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(quiet_about_accept())
        await super().startup(sockets)
        for listener in sockets or ():
            listener.listen(BACKLOG)  # in the kernel; uvicorn's backlog is also what is accepted at a time
        gc.freeze()  # the libraries' million objects: no collection need look at them, not even the one at exit
        self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await asyncio.to_thread(self._backend.close)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Unlike uvicorn's own, does not raise the signal again once the server has stopped."""
        with _handle_signals(self.handle_exit):
            yield


@contextlib.contextmanager
def _handle_signals(handler: Callable) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which is the one that signals reach
        before = {}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def _stop_on_signals() -> contextlib.AbstractContextManager[None]:
    """Until the server runs and handles signals itself, they end the process at once, as quietly."""
    return _handle_signals(lambda *_: sys.exit(0))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _without_port(host: str) -> str:
    """`127.0.0.1:80` and `[::1]:80` without what follows."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0].lower()


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ServeError(f"cannot listen on {host}, port {port}: {reason}") from error
    return listener


def make_app(backend: Backend, api_key: str | None, body_seconds: float, loopback: bool) -> Starlette:
    """The application: routes, limits and errors."""

    async def refuse(_: Request, error: RequestError) -> JSONResponse:
        return JSONResponse({"detail": error.reason}, error.status)

    async def refuse_route(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"detail": error.detail}, error.status_code, error.headers)

    async def nobody(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=400)  # who would read it has gone

    routes = _Routes()
    _add_api(routes, backend)
    outside = _Routes()
    outside.add("GET", "/healthz")(lambda: {"status": "ok"})
    outside.add("GET", "/stats")(lambda: backend.stats.snapshot() | {"pending_requests": len(backend.futures)})
    return Starlette(
        routes=[Mount("/api/v1", routes=routes), *outside],
        middleware=[Middleware(_Gate, api_key=api_key, body_seconds=body_seconds, loopback=loopback)],
        exception_handlers={RequestError: refuse, HTTPException: refuse_route, ClientDisconnect: nobody},
    )


class _Gate:
    """Nobody without the key comes in, nothing larger than the limit, and nobody who keeps the door open: bodies must
    arrive in time and may not take more than `RECEIVING` bytes together. A server on `loopback` answers only who asks
    for it by a loopback name: a web page, whose own name a browser can be told to look up as 127.0.0.1, does not.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, body_seconds: float, loopback: bool):
        self._app, self._key, self._body_seconds, self._loopback = app, api_key, body_seconds, loopback
        self._received = 0  # bytes of all requests that are not answered yet

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        limit = wire.MAX_BODY if scope["path"].endswith("/forward_backward") else wire.MAX_JSON
        too_large = f"the body is larger than {limit} bytes"
        sent_key, length = headers.get(b"x-api-key", b""), headers.get(b"content-length", b"")
        host = headers.get(b"host", b"").decode("latin-1")
        refusal = None
        if self._loopback and not _is_loopback(_without_port(host)):
            refusal = JSONResponse({"detail": f"Host {host[:200]!r} is not a name of this machine's loopback"}, 403)
        elif self._key and scope["path"] != "/healthz" and not hmac.compare_digest(sent_key, self._key.encode()):
            refusal = JSONResponse({"detail": "wrong or missing API key"}, 401)
        elif length.isdigit() and int(length) > limit:
            refusal = JSONResponse({"detail": too_large}, 413)
        if refusal is not None:
            return await refusal(scope, receive, send)
        received, arrived = 0, False
        deadline = asyncio.get_running_loop().time() + self._body_seconds

        async def limited() -> Message:
            nonlocal received, arrived
            if arrived:  # what comes now is that the client has gone
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise RequestError(f"the body did not arrive in {self._body_seconds:g} s", 400) from None
            arrived = not message.get("more_body", False)
            size = len(message.get("body", b""))
            received += size
            self._received += size
            if received > limit:  # sent in chunks, without a length
                raise RequestError(too_large, 413)
            if self._received > RECEIVING:
                raise RequestError("too many large requests at a time", 429)
            return message

        try:
            await self._app(scope, limited, send)
        finally:
            self._received -= received


class _Routes(list[Route]):
    """Routes, each to a function that says by its parameters what it takes: a `body` and a `page` of the type that they
    are annotated with, the `request` itself, and parts of the path. It answers with JSON, with nothing (204), or with
    a response of its own.
    """

    def add(self, method: str, path: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def register(answer: Callable[..., Any]) -> Callable[..., Any]:
            wanted = inspect.get_annotations(answer)

            async def endpoint(request: Request) -> Response:
                given: dict[str, Any] = dict(request.path_params)
                if "body" in wanted:
                    given["body"] = wire.parse(wanted["body"], await request.body(), request.headers)
                if "page" in wanted:
                    given["page"] = wire.parse_query(wanted["page"], request.query_params)
                if "request" in wanted:
                    given["request"] = request
                found = answer(**given)
                if inspect.isawaitable(found):
                    found = await found
                if found is None:
                    return Response(status_code=204)
                return found if isinstance(found, Response) else JSONResponse(found)

            self.append(Route(path, endpoint, methods=[method]))
            return answer

        return register


def _add_api(routes: _Routes, backend: Backend) -> None:
    """The routes of the Tinker API."""
    served = backend.served
    get, post, put, delete = (partial(routes.add, method) for method in ("GET", "POST", "PUT", "DELETE"))

    # ---- sampling, and the answers to everything: first, since routes are tried in order ----

    @post("/asample")
    def asample(body: wire.Asample) -> dict:
        request_id = backend.sample(body)
        # Newer SDKs want a name for each sample.
        names = [f"{request_id}:{index}" for index in range(body.num_samples)]
        return {"request_id": request_id, "sample_sequence_ids": names}

    @post("/retrieve_future")
    async def retrieve_future(body: wire.OfRequest) -> Response:
        answer = await backend.answer(body.request_id, LONG_POLL_SECONDS)
        if answer is None:
            return JSONResponse({"type": "try_again", "request_id": body.request_id, "queue_state": "active"}, 408)
        if isinstance(answer, bytes):
            return Response(answer, media_type="application/x-protobuf")
        return JSONResponse(answer)

    @post("/cancel_future")
    def cancel_future(body: wire.OfRequest) -> None:
        backend.cancel(body.request_id)

    # ---- what the SDK asks before anything else ----

    @post("/client/config")
    def client_config() -> dict:
        # One request a batch, so that a forward's graph meets its backward; no transport of the SDK's own on loopback.
        return {
            "parallel_fwdbwd_chunks": False,
            "fwdbwd_max_chunk_len": wire.MAX_BATCH,
            "fwdbwd_max_chunk_bytes_count": wire.MAX_BODY // 2,
            "use_pyqwest_transport": False,
            "sample_enable_stuck_detection": False,
        }

    @post("/client/dynamic_config")
    def client_dynamic_config() -> dict:
        return {"sample_cancel_enabled": True}

    @get("/healthz")
    def healthz() -> dict:
        return {"status": "ok"}

    @get("/get_server_capabilities")
    def get_server_capabilities() -> dict:
        names = (served.name, *served.aliases)
        models = [{"model_name": name, "max_context_length": served.context_length} for name in names]
        return {"supported_models": models}

    @post("/telemetry")
    def telemetry(body: wire.Telemetry) -> dict:
        backend.note_telemetry(body)
        return {"status": "accepted"}  # and forgotten

    # ---- sessions ----

    @post("/create_session")
    def create_session(body: wire.CreateSession) -> dict:
        return {"session_id": backend.create_session(body), "type": "create_session"}

    @post("/session_heartbeat")
    def session_heartbeat(body: wire.SessionHeartbeat) -> dict:
        backend.heartbeat(body.session_id)
        return {"type": "session_heartbeat"}

    @post("/create_sampling_session")
    def create_sampling_session(body: wire.CreateSamplingSession) -> dict:
        session = backend.create_sampling_session(body)
        return {"sampling_session_id": session, "type": "create_sampling_session"}

    @get("/samplers/{identifier}")
    def get_sampler(identifier: str) -> dict:
        path = backend.sampling_session(identifier).path
        return {"sampler_id": identifier, "base_model": served.name, "model_path": path and str(path)}

    @get("/sessions")
    def list_sessions(page: wire.Page) -> dict:
        return {"sessions": wire.page(backend.sessions(), page)[0]}

    @post("/sessions/search")
    def search_sessions(body: wire.SearchSessions) -> dict:
        return backend.search_sessions(body)

    @get("/sessions/{session_id}")
    def get_session(session_id: str) -> dict:
        return backend.session(session_id)

    @post("/sessions/{session_id}/finish")
    def finish_session(session_id: str, body: wire.FinishSession) -> None:
        backend.finish_session(session_id, body)

    # ---- training ----

    @post("/create_model")
    def create_model(body: wire.CreateModel) -> dict:
        return {"request_id": backend.create_model(body)}

    @post("/unload_model")
    def unload_model(body: wire.OfModel) -> dict:
        return {"request_id": backend.unload_model(body.model_id)}

    @post("/get_info")
    def get_info(body: wire.OfModel) -> dict:
        backend.run(body.model_id)
        return {
            "type": "get_info",
            "model_id": body.model_id,
            "model_name": served.name,
            "model_data": {"model_name": served.name, "tokenizer_id": served.name},
            "is_lora": False,
        }

    @get("/training_runs")
    def list_training_runs(page: wire.Page) -> dict:
        names, cursor = wire.page(backend.training_runs(), page)
        return {"training_runs": [backend.training_run(name) for name in names], "cursor": cursor}

    @get("/training_runs/{model_id}")
    def get_training_run(model_id: str) -> dict:
        return backend.training_run(model_id)

    @post("/forward_backward")
    async def forward_backward(request: Request) -> dict:
        body = wire.unpack(await request.body(), request.headers.get("content-encoding"))
        return {"request_id": backend.forward_backward(body)}

    @post("/optim_step")
    def optim_step(body: wire.OptimStep) -> dict:
        return {"request_id": backend.optim_step(body)}

    # ---- weights ----

    @post("/save_weights")
    def save_weights(body: wire.SaveWeights) -> dict:
        return {"request_id": backend.save_weights(body)}

    @post("/save_weights_for_sampler")
    def save_weights_for_sampler(body: wire.SaveWeightsForSampler) -> dict:
        return {"request_id": backend.save_weights_for_sampler(body)}

    @post("/load_weights")
    def load_weights(body: wire.LoadWeights) -> dict:
        return {"request_id": backend.load_weights(body)}

    @post("/weights_info")
    def weights_info(body: wire.WeightsInfo) -> dict:
        path = wire.SnapshotPath.parse(body.tinker_path)
        if not backend.store.exists(path):
            raise RequestError(f"no such weights: {path}", 404)
        # All parameters are trained, but the SDK resumes only what calls itself a LoRA.
        return {"base_model": served.name, "is_lora": True, "lora_rank": 1}

    @get("/training_runs/{model_id}/checkpoints")
    def list_checkpoints(model_id: str) -> dict:
        backend.training_run(model_id)  # there is one
        return {"checkpoints": [wire.checkpoint(each) for each in backend.store.snapshots(model_id)]}

    @get("/checkpoints")
    def list_user_checkpoints(page: wire.Page) -> dict:
        found, cursor = wire.page(backend.store.snapshots(), page)
        return {"checkpoints": [wire.checkpoint(each) for each in found], "cursor": cursor}

    @put("/training_runs/{model_id}/checkpoints/{name:path}/ttl")
    def set_ttl(model_id: str, name: str, body: wire.SetTtl) -> None:
        backend.set_ttl(model_id, name, body.ttl_seconds)

    @delete("/training_runs/{model_id}/checkpoints/{name:path}")
    def delete_checkpoint(model_id: str, name: str) -> None:
        backend.delete_checkpoint(model_id, name)
