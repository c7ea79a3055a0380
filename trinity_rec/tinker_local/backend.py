"""What the server holds: client sessions, training runs, the sampler and the snapshots, and which of these are in use.

Training requests run one after another on one thread, in the order in which they arrived; sampling has a thread of
its own. The methods here are called from the event loop, except for the bodies handed to `_train`.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from trinity_rec.tinker_local import losses, wire
from trinity_rec.tinker_local.errors import RequestError
from trinity_rec.tinker_local.futures import Answer, Futures
from trinity_rec.tinker_local.model import ServedModel
from trinity_rec.tinker_local.sampling import BatchSampler, Job, SampleResult
from trinity_rec.tinker_local.stats import Stats
from trinity_rec.tinker_local.training import TrainingRun
from trinity_rec.tinker_local.weights import CHECKPOINT, SAMPLER, SnapshotPath, WeightStore, is_name

SESSION_TIMEOUT = 300.0  # seconds without a heartbeat (the SDK's comes every 10) after which a client is gone,
LEAVING_TIMEOUT = 25.0  # and after it has said that it ends (one of its processes may, while another goes on)
SWEEP_SECONDS = 60.0  # between looks for weights whose time is over
SAMPLER_GRACE = 30.0  # seconds for which a sampling session counts as in use after its last request or answer
OWNER = "local"  # of every session and training run
MAX_RUNS = 8
MAX_SESSIONS = 4096
MAX_SAMPLING_SESSIONS = 65536


@dataclass
class Client:
    """A client session; times are seconds since the epoch, but for `seen`, by the monotonic clock.

    Attributes:
        seen: the last sign of life.
        leaving: it has announced its end, and nothing was heard since.
        finished: what it gave as its reason when it closed; None while it has not.
    """

    wish: wire.CreateSession
    created: float = field(default_factory=time.time)
    seen: float = field(default_factory=time.monotonic)
    leaving: bool = False
    finished: wire.FinishSession | None = None

    @property
    def silent(self) -> float:
        """Seconds since the last sign of life."""
        return time.monotonic() - self.seen

    @property
    def alive(self) -> bool:
        return self.finished is None and self.silent < (LEAVING_TIMEOUT if self.leaving else SESSION_TIMEOUT)


@dataclass
class SamplingSession:
    """A client's handle on weights: a snapshot, or the base model (None)."""

    client: str
    path: SnapshotPath | None
    used: float = float("-inf")


@dataclass
class Run:
    """A training run and the client session that made it; `used` is the time of the last request, since the epoch."""

    training: TrainingRun
    client: str
    user_metadata: wire.Metadata | None
    used: float = field(default_factory=time.time)


class Backend:
    """See the module's docstring.

    Args:
        graph_budget: bytes of activations that a run may keep between a forward and its backward.
    """

    def __init__(self, served: ServedModel, store: WeightStore, max_rows: int, graph_budget: float):
        self.served, self.store, self.graph_budget = served, store, graph_budget
        self.stats, self.futures = Stats(), Futures()
        self.sampler = BatchSampler(served, store, max_rows, self.stats)
        self._stopping = False
        self._trainer = ThreadPoolExecutor(1, thread_name_prefix="trainer")
        self._clients: dict[str, Client] = {}
        self._sampling: dict[str, SamplingSession] = {}
        self._runs: dict[str, Run] = {}
        self._sampled: dict[str, Job] = {}  # sampling requests without an answer
        self._in_making: dict[str, str] = {}  # runs that are waiting to be made, and their client sessions
        self._swept = time.monotonic()

    def close(self) -> None:
        """Finish the training request that runs; fail all that wait and what is being sampled."""
        self._stopping = True
        self._trainer.shutdown(wait=True, cancel_futures=True)
        self.sampler.close()

    # ---- sessions ----

    def create_session(self, body: wire.CreateSession) -> str:
        self._forget_dead_sessions()
        if len(self._clients) >= MAX_SESSIONS:
            raise RequestError("too many sessions", 429)
        session = uuid.uuid4().hex[:16]
        self._clients[session] = Client(body)
        return session

    def heartbeat(self, session: str) -> None:
        client = self._client(session)
        if client.finished is not None:
            raise RequestError(f"session {session} is closed", 410)
        client.seen, client.leaving = time.monotonic(), False
        if client.seen - self._swept > SWEEP_SECONDS:
            self._swept = client.seen
            asyncio.get_running_loop().run_in_executor(None, self.store.sweep_all, self.in_use())

    def finish_session(self, session: str, body: wire.FinishSession) -> None:
        """The client is done: what it held is free. The first reason counts."""
        client = self._client(session)
        if client.finished is None:
            client.finished = body
            self._let_go(session)

    def note_telemetry(self, body: wire.Telemetry) -> None:
        """SDKs that cannot close a session still report its end."""
        client = self._clients.get(body.session_id)
        if client is not None and any(event.event == "SESSION_END" for event in body.events):
            client.seen, client.leaving = time.monotonic(), True

    def session(self, session: str) -> dict[str, Any]:
        client = self._client(session)
        return {
            "training_run_ids": [name for name, run in self._runs.items() if run.client == session],
            "sampler_ids": [name for name, sampling in self._sampling.items() if sampling.client == session],
            "user_metadata": client.wish.user_metadata,
            "display_name": client.wish.display_name,
        }

    def sessions(self) -> list[str]:
        """The newest first."""
        return list(reversed(self._clients))

    def search_sessions(self, body: wire.SearchSessions) -> dict[str, Any]:
        """A page of sessions, the newest first."""
        names = self.sessions()
        if body.cursor is not None:
            names = (
                names[names.index(body.cursor.last_session_id) + 1 :] if body.cursor.last_session_id in names else []
            )
        words = (body.display_name or "").lower().split()
        found = []
        for name in names:
            wish = self._clients[name].wish
            by_label = all(word in (wish.display_name or "").lower() for word in words)
            matches = by_label if body.session_id is None else name == body.session_id or (bool(words) and by_label)
            if matches and body.user_metadata.items() <= (wish.user_metadata or {}).items():
                found.append(name)
        page = [self._summary(name) for name in found[: body.limit]]
        more = len(found) > body.limit
        cursor = (
            {"last_created_at": page[-1]["created_at"], "last_session_id": page[-1]["session_id"]} if more else None
        )
        return {"sessions": page, "next_cursor": cursor}

    def _summary(self, session: str) -> dict[str, Any]:
        client = self._clients[session]
        status: dict[str, Any] | None = {"type": "active"} if client.alive else None
        if client.finished is not None:
            reason = client.finished.reason or {"type": "success"}
            status = {"type": "client_finished", "reason": reason, "detail": client.finished.detail}
        saved = [each for each in self.store.snapshots() if each.path.run.startswith(f"{session}:")]
        return {
            "session_id": session,
            "created_at": wire.timestamp(client.created),
            "owner": OWNER,
            "project_id": client.wish.project_id or "",
            "status": status,
            "checkpoints_count": len(saved),
            "display_name": client.wish.display_name,
            "user_metadata": client.wish.user_metadata,
            "checkpoint_storage_bytes": sum(each.bytes for each in saved),
        }

    def _client(self, session: str) -> Client:
        if session not in self._clients:
            raise RequestError(f"no such session: {session[:200]!r}", 404)
        return self._clients[session]

    def create_sampling_session(self, body: wire.CreateSamplingSession) -> str:
        self.heartbeat(body.session_id)
        path = None
        if body.model_path is not None:
            path = self._existing(body.model_path)
        else:
            self._check_base_model(body.base_model)
        return self._add_sampling_session(body.session_id, body.sampling_session_seq_id, path)

    def sampling_session(self, identifier: str) -> SamplingSession:
        if identifier not in self._sampling:
            raise RequestError(f"no such sampling session: {identifier[:200]!r}", 404)
        return self._sampling[identifier]

    def in_use(self) -> set[SnapshotPath]:
        """Snapshots that a client may still sample from: those of its newest sampling session, or recently used."""
        now = time.monotonic()
        newest = {session.client: session for session in list(self._sampling.values())}
        paths = {
            session.path
            for session in list(self._sampling.values())
            if (newest[session.client] is session and self._alive(session.client)) or now - session.used < SAMPLER_GRACE
        }
        return (paths - {None}) | self.sampler.in_use()

    def _add_sampling_session(self, client: str, number: int, path: SnapshotPath | None) -> str:
        identifier = f"{client}:sample:{number}"
        if identifier not in self._sampling and len(self._sampling) >= MAX_SAMPLING_SESSIONS:
            self._sampling.pop(next(iter(self._sampling)))
        self._sampling.setdefault(identifier, SamplingSession(client, path))
        return identifier

    def _alive(self, client: str) -> bool:
        return client in self._clients and self._clients[client].alive

    def _forget_dead_sessions(self) -> None:
        """Those that closed are remembered for as long as those that fell silent, but hold nothing."""
        for name, client in list(self._clients.items()):
            if not client.alive and (client.finished is None or client.silent > SESSION_TIMEOUT):
                del self._clients[name]
                self._let_go(name)

    def _let_go(self, client: str) -> None:
        for held in (self._sampling, self._runs):
            for name in [name for name, one in list(held.items()) if one.client == client]:
                del held[name]

    def _check_base_model(self, name: str | None) -> None:
        if name not in (self.served.name, *self.served.aliases):
            raise RequestError(f"this server serves {self.served.name}, not {str(name)[:200]!r}", 404)

    # ---- sampling ----

    def sample(self, body: wire.Asample) -> str:
        session = self.sampling_session(body.sampling_session_id)
        session.used = time.monotonic()
        request = body.request(session.path, self.served)
        number = uuid.uuid4().hex if body.seq_id is None else body.seq_id
        request_id = f"{body.sampling_session_id}:{number}"
        if request_id in self.futures:  # the SDK repeats a request whose answer it did not get
            return request_id
        self.futures.check_room()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def deliver(outcome: SampleResult | Exception) -> None:
            session.used = time.monotonic()
            if isinstance(outcome, Exception):
                loop.call_soon_threadsafe(future.set_exception, outcome)
            else:
                loop.call_soon_threadsafe(future.set_result, wire.sample_response(outcome))

        self._sampled[request_id] = self.sampler.submit(request, deliver)
        future.add_done_callback(lambda _: self._sampled.pop(request_id))
        self.futures.add(request_id, future)
        return request_id

    def cancel(self, request_id: str) -> None:
        """Nobody waits for this answer any more. What trains is not broken off, and what has its answer keeps it."""
        if request_id not in self.futures:
            raise RequestError(f"no such request: {request_id}", 404)
        if request_id in self._sampled:
            self.sampler.cancel(self._sampled[request_id])

    async def answer(self, request_id: str, timeout: float) -> Answer | None:
        """As `Futures.answer`."""
        if request_id in self._sampled:
            self.sampler.await_answer(self._sampled[request_id])
        return await self.futures.answer(request_id, timeout)

    # ---- training ----

    def create_model(self, body: wire.CreateModel) -> str:
        self.heartbeat(body.session_id)
        self._check_base_model(body.base_model)
        parts = body.lora_config or wire.LoraConfig()
        if not (parts.train_mlp and parts.train_attn and parts.train_unembed):
            raise RequestError("this server trains all parameters; train_mlp, train_attn, train_unembed must be true")

        def created(name: str) -> Answer:
            return {"model_id": name, "type": "create_model"}

        return self._new_run(body.session_id, body.model_seq_id, body.user_metadata, created)

    def _new_run(
        self, client: str, number: int, metadata: wire.Metadata | None, answer: Callable[[str], Answer]
    ) -> str:
        """Make a training run; `answer` may change it, given its name. The SDK knows how runs are named."""
        self.heartbeat(client)
        name = f"{client}:train:{number}"
        if name in self.futures:
            return name
        self._forget_dead_sessions()
        if len(self._runs) + len(self._in_making) >= MAX_RUNS:
            raise RequestError(f"this server trains at most {MAX_RUNS} models at a time: {self._holders()}")
        if name in self._runs or self.store.snapshots(name):
            raise RequestError(f"model_seq_id {number} is taken in this session")

        def create() -> Answer:
            try:
                training = TrainingRun(self.served.copy(), self.graph_budget, self.stats)
                self._runs[name] = Run(training, client, metadata)
                return answer(name)
            except BaseException:
                self._runs.pop(name, None)
                raise
            finally:
                self._in_making.pop(name, None)

        self._in_making[name] = client
        try:
            return self._train(name, create)
        except RequestError:
            del self._in_making[name]
            raise

    def _holders(self) -> str:
        """Which sessions train, for who finds no place."""
        numbers = Counter([*(run.client for run in self._runs.values()), *self._in_making.values()])
        descriptions = []
        for name, number in numbers.items():
            client = self._clients.get(name)
            if client is None:  # it has just gone, with a run in the making
                continue
            label = f" ({client.wish.display_name[:40]})" if client.wish.display_name else ""
            sdk = f", SDK {client.wish.sdk_version[:20]}" if client.wish.sdk_version else ""
            descriptions.append(f"{number} by session {name}{label}{sdk}, last heard of {client.silent:.0f} s ago")
        return "; ".join(descriptions)

    def unload_model(self, model_id: str) -> str:
        self.run(model_id)
        del self._runs[model_id]
        return self._train(uuid.uuid4().hex, lambda: {"model_id": model_id, "type": "unload_model"})

    def run(self, model_id: str) -> Run:
        if model_id not in self._runs:
            raise RequestError(f"no such model: {model_id[:200]!r}", 404)
        run = self._runs[model_id]
        run.used = time.time()
        return run

    def forward_backward(self, body: bytes) -> str:
        message = wire.parse_forward_backward(body)
        training = self.run(message.model_id).training
        batch = wire.batch_of(message, self.served)
        own = message.loss_fn != "cross_entropy"
        config = losses.settings(message.loss_fn, message.loss_fn_config) if own else {}

        def work() -> Answer:
            if own:
                logprobs = training.forward(batch)
                weighted, loss = losses.weighted(message.loss_fn, config, batch, logprobs)
                if not message.forward_only:
                    training.forward_backward(weighted)
                return wire.forward_backward_output(logprobs, {"loss:sum": loss})
            if message.forward_only:
                return wire.forward_backward_output(training.forward(batch), {})
            logprobs, loss = training.forward_backward(batch)
            return wire.forward_backward_output(logprobs, {"loss:sum": loss})

        return self._train(_request_id(message.model_id, message.seq_id or None), work, size=len(body))

    def optim_step(self, body: wire.OptimStep) -> str:
        training = self.run(body.model_id).training
        adam = body.adam()
        return self._train(
            _request_id(body.model_id, body.seq_id),
            lambda: {"metrics": training.optim_step(adam), "type": "optim_step"},
        )

    def save_weights(self, body: wire.SaveWeights) -> str:
        training = self.run(body.model_id).training
        path = _path_of(body, CHECKPOINT)

        def save() -> Answer:
            self._save(path, body, training, training.optimizer_state(), body.overwrite)
            return {"path": str(path), "type": "save_weights"}

        return self._train(_request_id(body.model_id, body.seq_id), save)

    def save_weights_for_sampler(self, body: wire.SaveWeightsForSampler) -> str:
        run = self.run(body.model_id)
        if body.path is None and body.sampling_session_seq_id is None:
            raise RequestError("path: a name for the weights is missing")
        path = _path_of(body, SAMPLER)

        def save() -> Answer:
            self._save(path, body, run.training)
            if body.path is not None:
                return {"path": str(path), "type": "save_weights_for_sampler"}
            session = self._add_sampling_session(run.client, body.sampling_session_seq_id, path)
            return {"sampling_session_id": session, "type": "save_weights_for_sampler"}

        return self._train(_request_id(body.model_id, body.seq_id), save)

    def load_weights(self, body: wire.LoadWeights) -> str:
        path = self._existing(body.path)
        if body.base_model is not None:
            self._check_base_model(body.base_model)

        def load(model_id: str) -> Answer:
            training = self._runs[model_id].training
            with self.stats.timed("load", loads=1):
                weights = self.store.load(path)
                training.load(weights, self.store.load_optimizer(path) if body.optimizer else None)
            return {"path": body.path, "model_id": model_id, "type": "load_weights"}

        if body.model_id is not None:
            self.run(body.model_id)
            return self._train(_request_id(body.model_id, body.seq_id), partial(load, body.model_id))
        if body.session_id is None or body.model_seq_id is None:
            raise RequestError("load_weights takes a model_id, or a session_id and a model_seq_id")
        return self._new_run(body.session_id, body.model_seq_id, body.user_metadata, load)

    def training_run(self, name: str) -> dict[str, Any]:
        """What is known of a run in training, or of one whose snapshots are on disk."""
        saved = self.store.snapshots(name) if is_name(name) else []
        run = self._runs.get(name)
        if run is None and not saved:
            raise RequestError(f"no such training run: {name[:200]!r}", 404)
        newest = {each.path.kind: wire.checkpoint(each) for each in reversed(saved)}
        return {
            "training_run_id": name,
            "base_model": self.served.name,
            "model_owner": OWNER,
            "is_lora": True,  # all parameters are trained, but the SDK resumes only what calls itself a LoRA
            "lora_rank": 1,
            "corrupted": False,
            "last_request_time": wire.timestamp(saved[0].created if run is None else run.used),
            "last_checkpoint": newest.get(CHECKPOINT),
            "last_sampler_checkpoint": newest.get(SAMPLER),
            "user_metadata": run and run.user_metadata,
        }

    def training_runs(self) -> list[str]:
        """Runs in training, then those that only have snapshots, the newest first."""
        saved = [each.path.run for each in self.store.snapshots()]
        return list(dict.fromkeys([*reversed(self._runs), *saved]))

    def set_ttl(self, model_id: str, name: str, ttl_seconds: float | None) -> None:
        self.store.set_ttl(self.store.find(model_id, name), ttl_seconds)

    def delete_checkpoint(self, model_id: str, name: str) -> None:
        self.store.delete(self.store.find(model_id, name), self.in_use())

    def _existing(self, uri: str) -> SnapshotPath:
        path = SnapshotPath.parse(uri)
        if not self.store.exists(path):
            raise RequestError(f"no such weights: {path}", 404)
        return path

    def _save(
        self, path: SnapshotPath, body: wire.Save, training: TrainingRun, optimizer=None, overwrite: bool = False
    ) -> None:
        with self.stats.timed("save", saves=1):
            self.store.save(
                path,
                training.weights(),
                optimizer,
                overwrite,
                named=body.path is not None,
                ttl_seconds=body.ttl_seconds,
                user_metadata=body.user_metadata,
                in_use=self.in_use(),
            )

    def _train(self, request_id: str, work: Callable[[], Answer], size: int = 0) -> str:
        """Queue work on `size` bytes for the training thread, unless this is a request repeated by the SDK."""
        if request_id not in self.futures:
            if self._stopping:
                raise RequestError("the server is stopping", 410)
            self.futures.check_room(size)
            self.futures.add(request_id, asyncio.get_running_loop().run_in_executor(self._trainer, work), size)
        return request_id


def _request_id(model_id: str, number: int | None) -> str:
    """The SDK numbers a model's requests; the same number is the same request."""
    return f"{model_id}:{uuid.uuid4().hex if number is None else number}"


def _path_of(body: wire.Save, kind: str) -> SnapshotPath:
    """Where to save; under a name of our own if the client gave none."""
    return SnapshotPath(body.model_id, kind, f"unnamed-{uuid.uuid4().hex[:12]}" if body.path is None else body.path)
