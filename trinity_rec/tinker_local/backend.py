"""What the server holds: client sessions, training runs, the sampler and the snapshots, and which of these are in use.

Training requests run one after another on one thread, in the order in which they arrived; sampling has a thread of
its own. The methods here are called from the event loop, except for the bodies handed to `_train`.
"""

import asyncio
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from trinity_rec.tinker_local import wire
from trinity_rec.tinker_local.errors import RequestError
from trinity_rec.tinker_local.futures import Answer, Futures
from trinity_rec.tinker_local.model import ServedModel
from trinity_rec.tinker_local.sampling import BatchSampler, SampleResult
from trinity_rec.tinker_local.stats import Stats
from trinity_rec.tinker_local.training import TrainingRun
from trinity_rec.tinker_local.weights import CHECKPOINT, SAMPLER, SnapshotPath, WeightStore

SESSION_TIMEOUT = 300.0  # seconds without a heartbeat (the SDK's comes every 10) after which a client is gone
SAMPLER_GRACE = 30.0  # seconds for which a sampling session counts as in use after its last request or answer
MAX_RUNS = 8
MAX_SESSIONS = 4096
MAX_SAMPLING_SESSIONS = 65536


@dataclass
class SamplingSession:
    """A client's handle on weights: a snapshot, or the base model (None)."""

    client: str
    path: SnapshotPath | None
    used: float = float("-inf")


@dataclass
class Run:
    """A training run and the client session that made it."""

    training: TrainingRun
    client: str


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
        self._seen: dict[str, float] = {}  # client sessions: time of the last sign of life
        self._sampling: dict[str, SamplingSession] = {}
        self._runs: dict[str, Run] = {}

    def close(self) -> None:
        """Finish the training request that runs; fail all that wait and what is being sampled."""
        self._stopping = True
        self._trainer.shutdown(wait=True, cancel_futures=True)
        self.sampler.close()

    # ---- sessions ----

    def create_session(self) -> str:
        self._forget_dead_sessions()
        if len(self._seen) >= MAX_SESSIONS:
            raise RequestError("too many sessions", 429)
        session = uuid.uuid4().hex[:16]
        self._seen[session] = time.monotonic()
        return session

    def heartbeat(self, session: str) -> None:
        if session not in self._seen:
            raise RequestError(f"no such session: {session}", 404)
        self._seen[session] = time.monotonic()

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
            raise RequestError(f"no such sampling session: {identifier}", 404)
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
        return time.monotonic() - self._seen.get(client, float("-inf")) < SESSION_TIMEOUT

    def _forget_dead_sessions(self) -> None:
        for client in [client for client in self._seen if not self._alive(client)]:
            del self._seen[client]
            self._sampling = {name: held for name, held in self._sampling.items() if held.client != client}
            self._runs = {name: run for name, run in self._runs.items() if run.client != client}

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

        self.sampler.submit(request, deliver)
        self.futures.add(request_id, future)
        return request_id

    # ---- training ----

    def create_model(self, body: wire.CreateModel) -> str:
        self.heartbeat(body.session_id)
        self._check_base_model(body.base_model)
        parts = body.lora_config or wire.LoraConfig()
        if not (parts.train_mlp and parts.train_attn and parts.train_unembed):
            raise RequestError("this server trains all parameters; train_mlp, train_attn, train_unembed must be true")
        request_id = f"{body.session_id}:train:{body.model_seq_id}"
        if request_id in self.futures:
            return request_id
        self._forget_dead_sessions()
        if len(self._runs) >= MAX_RUNS:
            raise RequestError(f"this server trains at most {MAX_RUNS} models at a time")

        def create() -> Answer:
            name = f"run-{uuid.uuid4().hex[:12]}"
            training = TrainingRun(self.served.copy(), self.graph_budget, self.stats)
            self._runs[name] = Run(training, body.session_id)
            return {"model_id": name, "type": "create_model"}

        return self._train(request_id, create)

    def unload_model(self, model_id: str) -> str:
        self.run(model_id)
        del self._runs[model_id]
        return self._train(uuid.uuid4().hex, lambda: {"model_id": model_id, "type": "unload_model"})

    def run(self, model_id: str) -> Run:
        if model_id not in self._runs:
            raise RequestError(f"no such model: {model_id[:200]!r}", 404)
        return self._runs[model_id]

    def forward_backward(self, body: bytes) -> str:
        message = wire.parse_forward_backward(body)
        training = self.run(message.model_id).training
        batch = wire.batch_of(message, self.served)

        def work() -> Answer:
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
        path = SnapshotPath(body.model_id, CHECKPOINT, body.path)

        def save() -> Answer:
            self._save(path, training, training.optimizer_state(), body.overwrite)
            return {"path": str(path), "type": "save_weights"}

        return self._train(_request_id(body.model_id, body.seq_id), save)

    def save_weights_for_sampler(self, body: wire.SaveWeightsForSampler) -> str:
        run = self.run(body.model_id)
        if body.path is None and body.sampling_session_seq_id is None:
            raise RequestError("path: a name for the weights is missing")
        name = f"unnamed-{body.sampling_session_seq_id}" if body.path is None else body.path
        path = SnapshotPath(body.model_id, SAMPLER, name)

        def save() -> Answer:
            self._save(path, run.training)
            if body.path is not None:
                return {"path": str(path), "type": "save_weights_for_sampler"}
            session = self._add_sampling_session(run.client, body.sampling_session_seq_id, path)
            return {"sampling_session_id": session, "type": "save_weights_for_sampler"}

        return self._train(_request_id(body.model_id, body.seq_id), save)

    def load_weights(self, body: wire.LoadWeights) -> str:
        training = self.run(body.model_id).training
        path = self._existing(body.path)

        def load() -> Answer:
            with self.stats.timed("load", loads=1):
                weights = self.store.load(path)
                training.load(weights, self.store.load_optimizer(path) if body.optimizer else None)
            return {"path": body.path, "model_id": body.model_id, "type": "load_weights"}

        return self._train(_request_id(body.model_id, body.seq_id), load)

    def delete_checkpoint(self, model_id: str, name: str) -> None:
        self.store.delete(self.store.find(model_id, name), self.in_use())

    def _existing(self, uri: str) -> SnapshotPath:
        path = SnapshotPath.parse(uri)
        if not self.store.exists(path):
            raise RequestError(f"no such weights: {path}", 404)
        return path

    def _save(self, path: SnapshotPath, training: TrainingRun, optimizer=None, overwrite: bool = False) -> None:
        with self.stats.timed("save", saves=1):
            self.store.save(path, training.weights(), optimizer, overwrite)
            self.store.sweep(path.run, self.in_use())

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
