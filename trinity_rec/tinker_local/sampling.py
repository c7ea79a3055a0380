"""The batch sampler: one model, one thread, one running batch that requests join and finished samples leave.

Each turn of the loop prefills the requests that have arrived (each distinct prompt once), then decodes one token for
every running sample. All requests in a batch want the same weights; when the batch has run empty the model takes the
weights of the next request in line.

What a sample draws depends on its own stream alone, so a request can begin anew and is answered the same. That is how
a failure finds its way to who caused it: both halves of the batch run again, each by itself, down to the one request
that fails alone.
"""

import hashlib
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from trinity_rec.tinker_local.errors import RequestError
from trinity_rec.tinker_local.kv_cache import RaggedCache
from trinity_rec.tinker_local.logprobs import LOGITS_SLICE, logits_of, pad, token_logprobs
from trinity_rec.tinker_local.model import ServedModel, set_weights, weights_of
from trinity_rec.tinker_local.stats import Stats
from trinity_rec.tinker_local.streams import stream_keys, uniform
from trinity_rec.tinker_local.weights import SnapshotPath, WeightStore

PREFILL_TOKENS = 8192  # padded tokens in one prefill pass
CACHE_BYTES = 4 * 2**30  # keys and values of a running batch, if all its samples run to their limits
QUEUE_LIMIT = 8192  # requests that wait,
QUEUE_TOKENS = 8 * 2**20  # and the tokens of their prompts
GATHER_SECONDS = 0.03  # an idle sampler waits so long for companions of a request whose answer is not yet awaited,
GATHER_AT_MOST = 0.1  # and for theirs
PICK_AT_ONCE = 2048  # tokens of a vocabulary that is not cut into
PICK_BLOCK = 256  # tokens
SERVER_SEED = 0  # of requests without a seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SampleRequest:
    """What a client wants sampled.

    Attributes:
        weights: the snapshot to sample from; None for the base model.
        prompt: token ids, at least one.
        samples: how many responses.
        max_tokens: tokens of a response at most, at least one.
        temperature: 0 is greedy. Logprobs are those of the distribution at this temperature (at 1 if greedy), before
            top-k and top-p cut it.
        top_k: only the k most likely tokens; 0 for all.
        top_p: only the fewest most likely tokens that together have this probability.
        ends: whether the model's own end tokens end a response.
        stop_tokens, stop_strings: end it too; they stay in the response.
        seed: same seed, prompt and weights, same responses. None: responses differ from one request to the next, but
            a fresh server that gets the same requests answers the same.
        prompt_logprobs: also return the logprob of each prompt token.
        top_prompt_logprobs: also return so many most likely tokens at each prompt position.
    """

    weights: SnapshotPath | None
    prompt: tuple[int, ...]
    samples: int = 1
    max_tokens: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    ends: bool = True
    stop_tokens: tuple[int, ...] = ()
    stop_strings: tuple[str, ...] = ()
    seed: int | None = None
    prompt_logprobs: bool = False
    top_prompt_logprobs: int = 0


@dataclass(frozen=True)
class Response:
    """One sample: token ids and their logprobs, int64 and float32 [tokens]; whether it stopped by itself."""

    tokens: Tensor
    logprobs: Tensor
    stopped: bool


@dataclass
class SampleResult:
    """The answer to a request.

    Attributes:
        responses: one a sample, in order.
        prompt_logprobs: [prompt], NaN for the first token.
        top_prompt_logprobs: token ids and logprobs, each [prompt - 1, k], of the positions after the first.
    """

    responses: list[Response | None]
    prompt_logprobs: Tensor | None = None
    top_prompt_logprobs: tuple[Tensor, Tensor] | None = None


@dataclass(eq=False)
class Job:
    """A request in the sampler, what its random streams are made of, the tokens that end its samples, its answer so far
    with the samples that miss, whom to tell, and whether they wait for it already.
    """

    request: SampleRequest
    done: Callable[[SampleResult | Exception], None]
    identity: tuple[object, ...]
    ends: frozenset[int]
    awaited: bool = False
    result: SampleResult | None = None
    missing: int = 0

    def begin(self) -> None:
        """No token is drawn yet."""
        self.result, self.missing = SampleResult([None] * self.request.samples), self.request.samples

    def keys(self) -> Tensor:
        """Of the random streams of its samples."""
        return stream_keys(self.request.samples, *self.identity)

    @property
    def length_limit(self) -> int:
        """Prompt and response of one of its samples at most."""
        return len(self.request.prompt) + self.request.max_tokens


@dataclass
class Sample:
    """One response in the making."""

    job: Job
    index: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class Rows:
    """The running samples, and what the next draw of each needs as tensors [rows].

    Attributes:
        state: `key` and `count` of the random stream, `length` of prompt and response so far, the `token` last drawn
            (not yet in the cache), `temperature`, `top_k`, `top_p`.
        greedy, drawn, cut: whether any row is greedy, is drawn at random, has a top-k or top-p.
    """

    samples: list[Sample]
    state: dict[str, Tensor]

    def __post_init__(self) -> None:
        requests = [sample.job.request for sample in self.samples]
        self.greedy = any(request.temperature == 0 for request in requests)
        self.drawn = any(request.temperature > 0 for request in requests)
        self.cut = any(request.top_k > 0 or request.top_p < 1 for request in requests)

    def __len__(self) -> int:
        return len(self.samples)

    @classmethod
    def of(cls, jobs: list[Job], device: torch.device) -> "Rows":
        samples = [Sample(job, index) for job in jobs for index in range(job.request.samples)]
        requests = [sample.job.request for sample in samples]
        state = {
            "key": torch.cat([torch.empty(0, dtype=torch.long), *(job.keys() for job in jobs)]),
            "count": torch.zeros(len(samples), dtype=torch.long),
            "length": torch.tensor([len(request.prompt) for request in requests], dtype=torch.long),
            "token": torch.zeros(len(samples), dtype=torch.long),
            "temperature": torch.tensor([request.temperature for request in requests], dtype=torch.float32),
            "top_k": torch.tensor([request.top_k for request in requests], dtype=torch.long),
            "top_p": torch.tensor([request.top_p for request in requests], dtype=torch.float32),
        }
        return cls(samples, {name: tensor.to(device) for name, tensor in state.items()})

    def select(self, rows: list[int]) -> "Rows":
        index = torch.tensor(rows, dtype=torch.long, device=self.state["key"].device)
        return Rows([self.samples[row] for row in rows], {name: t[index] for name, t in self.state.items()})

    def append(self, other: "Rows") -> "Rows":
        state = {name: torch.cat([tensor, other.state[name]]) for name, tensor in self.state.items()}
        return Rows(self.samples + other.samples, state)


class BatchSampler:
    """Samples from the base model and from snapshots, on a thread of its own.

    Args:
        max_rows: samples in one batch at most.
    """

    def __init__(self, served: ServedModel, store: WeightStore, max_rows: int, stats: Stats):
        self.served, self.store, self.max_rows, self.stats = served, store, max_rows, stats
        self._model = served.copy(frozen=True)
        self._weights: SnapshotPath | None = None
        self._token_limit = CACHE_BYTES // served.cache_bytes_per_token
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._cancelled: list[Job] = []
        self._stopping = False
        self._unseeded: Counter[bytes] = Counter()
        self._joining: list[Job] = []
        self._suspects: list[list[Job]] = []  # parts of a batch that failed: each runs again without the others
        self._apart = False  # whether what runs is such a part
        self._rows, self._cache = self._empty_batch()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def submit(self, request: SampleRequest, done: Callable[[SampleResult | Exception], None]) -> Job:
        """Queue a request; `done` is called from the sampler's thread with the result or what went wrong.

        Returns:
            What `cancel` takes.

        Raises:
            RequestError: more samples than fit a batch, or the queue is full (429: try again).
        """
        if request.samples > self.max_rows:
            raise RequestError(f"{request.samples} samples of one prompt; this server's limit is {self.max_rows}")
        if request.samples * len(request.prompt) >= self._token_limit:
            raise RequestError(f"num_samples: {request.samples} copies of the prompt alone fill the cache's memory")
        with self._changed:
            if self._stopping:
                raise RequestError("the server is stopping", 410)
            waiting = sum(len(job.request.prompt) for job in self._waiting)
            if len(self._waiting) >= QUEUE_LIMIT or waiting > QUEUE_TOKENS:
                raise RequestError("too many requests wait for the sampler", 429)
            job = Job(request, done, self._identity(request), self._ends(request))
            self._waiting.append(job)
            self._changed.notify()
        return job

    def await_answer(self, job: Job) -> None:
        """Its client waits for the answer. Who waits for all that they have asked for asks no more for now."""
        with self._changed:
            job.awaited = True
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Nobody wants the answer any more: leave the queue, or the batch at its next token."""
        with self._changed:
            self._cancelled.append(job)
            self._changed.notify()

    def in_use(self) -> set[SnapshotPath]:
        """Snapshots that waiting requests want."""
        with self._changed:
            return {job.request.weights for job in self._waiting if job.request.weights is not None}

    def close(self) -> None:
        """Stop after the current step; requests without an answer fail."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    # ---- the thread ----

    def _run(self) -> None:
        while self._wait_for_work():
            try:
                with torch.inference_mode():
                    self._turn()
            except Exception as error:  # whatever went wrong with a request, the others are served
                self._part(error)
        with self._changed:
            left = [*self._present(), *(job for part in self._suspects for job in part), *self._waiting]
        for job in left:
            self._refuse(job, RequestError("the server is stopping", 410))

    def _wait_for_work(self) -> bool:
        with self._changed:
            if not self._rows and not self._waiting and not self._suspects:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                self._gather(time.monotonic() + GATHER_AT_MOST)
            return not self._stopping

    def _gather(self, until: float) -> None:
        """Let a batch become whole: a client that asks for many responses sends its requests one by one, then waits."""
        while not self._stopping and not all(job.awaited for job in self._waiting):
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(min(left, GATHER_SECONDS)):
                return

    def _turn(self) -> None:
        self._dismiss_cancelled()
        self._joining = self._admit()
        if self._joining and self._take_weights():
            for jobs in _prefill_groups(self._joining):
                self._prefill(jobs)
        self._joining = []
        if self._rows:
            self._decode()

    def _dismiss_cancelled(self) -> None:
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
            self._waiting = deque(job for job in self._waiting if job not in cancelled) if cancelled else self._waiting
        for job in cancelled:
            self.stats.add(sample_cancelled=1)
            self._refuse(job, RequestError("cancelled by its client"))

    def _admit(self) -> list[Job]:
        """Waiting requests that may join now, first come first served.

        A running batch admits only while the head of the queue wants the same weights, so that nobody waits for ever;
        a new batch takes all that want the weights of the head, wherever they stand. Nobody joins suspects.
        """
        admitted: list[Job] = []
        if self._rows and self._apart:
            return admitted
        if not self._rows:
            self._apart = bool(self._suspects)
        if self._apart:
            return [job for job in self._suspects.pop() if job.missing]
        with self._changed:
            if not self._waiting:
                return admitted
            rows = len(self._rows)
            longest = max((sample.job.length_limit for sample in self._rows.samples), default=0)
            weights = self._weights if rows else self._waiting[0].request.weights
            passed_over: list[Job] = []
            while self._waiting:
                job = self._waiting[0]
                if job.request.weights != weights:
                    if self._rows:
                        break
                    passed_over.append(self._waiting.popleft())
                    continue
                longest = max(longest, job.length_limit)
                rows += job.request.samples
                too_many = rows > self.max_rows or rows * longest > self._token_limit
                if too_many and rows > job.request.samples:  # alone it may run; in company it waits
                    break
                admitted.append(self._waiting.popleft())
                job.begin()
            self._waiting.extendleft(reversed(passed_over))
        return admitted

    def _take_weights(self) -> bool:
        """The weights that those who join want; refuses them all where these cannot be had."""
        weights = self._joining[0].request.weights
        if weights == self._weights:
            return True
        try:
            with self.stats.timed("load", loads=1):
                source = weights_of(self.served.base) if weights is None else self.store.load(weights)
                set_weights(self._model, source)
        except Exception as error:
            for job in self._joining:
                self._refuse(job, error)
            return False
        self._weights = weights
        return True

    def _empty_batch(self) -> tuple[Rows, RaggedCache]:
        return Rows.of([], self.served.device), RaggedCache(self.served.attention_dtype)

    def _prefill(self, jobs: list[Job]) -> None:
        """One pass over the distinct prompts of these jobs; their samples draw their first token and join."""
        place: dict[tuple[int, ...], int] = {}
        for job in jobs:
            place.setdefault(job.request.prompt, len(place))
        ids = pad([torch.tensor(prompt) for prompt in place]).to(self.served.device)
        with self.stats.timed("prefill", prefill_tokens=sum(map(len, place)), prefill_passes=1):
            cache = DynamicCache()
            output = self._model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
            hidden = output.last_hidden_state
            for job in jobs:
                self._score_prompt(job, hidden[place[job.request.prompt]])
            rows = Rows.of(jobs, self.served.device)
            sources = torch.tensor([place[sample.job.request.prompt] for sample in rows.samples], device=ids.device)
            logits = logits_of(self._model, hidden[sources, rows.state["length"] - 1])
            going_on = self._draw(rows, logits)
            if going_on:
                self._cache.join(cache, sources[torch.tensor(going_on, device=sources.device)])
                self._rows = self._rows.append(rows.select(going_on))

    def _decode(self) -> None:
        """One more token for every running sample; those that end leave."""
        state = self._rows.state
        with self.stats.timed("generate", generate_tokens=len(self._rows), generate_steps=1):
            # `token` is not yet in the cache; it goes to the column before the one that is drawn now.
            columns = state["length"] - 1
            if len(self._rows) * int(columns.max()) >= self._token_limit:  # only a request that is alone gets so far
                raise RequestError("the samples fill the cache's memory: fewer num_samples, or fewer max_tokens")
            mask = self._cache.write_at(columns, int(columns.max()) + 1)
            hidden = self._model.base_model(
                input_ids=state["token"][:, None],
                attention_mask=mask,
                position_ids=columns[:, None],
                past_key_values=self._cache,
                use_cache=True,
            ).last_hidden_state
            going_on = self._draw(self._rows, logits_of(self._model, hidden[:, 0]))
            if not going_on:
                self._rows, self._cache = self._empty_batch()
            elif len(going_on) < len(self._rows):
                self._rows = self._rows.select(self._cache.keep(going_on))

    def _draw(self, rows: Rows, logits: Tensor) -> list[int]:
        """Draw a token a row and note it; returns the rows that go on, in order."""
        token, logprob = draw(rows, logits)
        rows.state["token"] = token
        rows.state["count"] += 1
        rows.state["length"] += 1
        going_on = []
        for row, (sample, drawn, score) in enumerate(zip(rows.samples, token.tolist(), logprob.tolist(), strict=True)):
            job = sample.job
            sample.tokens.append(drawn)
            sample.logprobs.append(score)
            if not math.isfinite(score):
                self._refuse(job, RequestError("the model's logits are not finite"))
            elif drawn in job.ends or (job.request.stop_strings and self._says_stop(sample)):
                self._finish(sample, stopped=True)
            elif len(sample.tokens) >= job.request.max_tokens:
                self._finish(sample, stopped=False)
            else:
                going_on.append(row)
        return [row for row in going_on if rows.samples[row].job.missing]  # without those of who was refused

    def _ends(self, request: SampleRequest) -> frozenset[int]:
        return frozenset(request.stop_tokens).union(self.served.stop_ids if request.ends else ())

    def _says_stop(self, sample: Sample) -> bool:
        stops = sample.job.request.stop_strings
        # A token is at least a byte of text, so a stop string that ends here began at most so many tokens ago.
        tail = max(len(stop.encode()) for stop in stops) + 4
        text = self.served.tokenizer.decode(sample.tokens[-tail:])
        return any(stop in text for stop in stops)

    def _finish(self, sample: Sample, stopped: bool) -> None:
        job = sample.job
        if not job.missing:  # refused
            return
        response = Response(torch.tensor(sample.tokens), torch.tensor(sample.logprobs), stopped)
        job.result.responses[sample.index] = response
        job.missing -= 1
        if job.missing == 0:
            self.stats.add(sample_requests=1)
            job.done(job.result)

    def _score_prompt(self, job: Job, hidden: Tensor) -> None:
        """Logprobs of the prompt's own tokens, where the request wants them."""
        request, result = job.request, job.result
        if not (request.prompt_logprobs or request.top_prompt_logprobs):
            return
        hidden = hidden[: len(request.prompt) - 1]
        if request.prompt_logprobs:
            targets = torch.tensor(request.prompt[1:], dtype=torch.long, device=hidden.device)
            scores = token_logprobs(self._model, hidden, targets).cpu()
            result.prompt_logprobs = torch.cat([torch.tensor([torch.nan]), scores])
        if request.top_prompt_logprobs:
            best = [
                logits_of(self._model, part).log_softmax(-1).topk(request.top_prompt_logprobs)
                for part in hidden.split(max(1, LOGITS_SLICE // self.served.vocabulary))
            ]
            empty = torch.empty(0, request.top_prompt_logprobs)
            result.top_prompt_logprobs = (
                torch.cat([empty.long(), *(part.indices.cpu() for part in best)]),
                torch.cat([empty, *(part.values.cpu() for part in best)]),
            )

    def _identity(self, request: SampleRequest) -> tuple[object, ...]:
        """Of random streams: the seed, the prompt and the snapshot's name, and without a seed how often that was.

        The prompt and the snapshot take part because Trinity sends one seed with every request of a run.
        """
        identity = (request.seed, request.weights and request.weights.name, request.prompt)
        if request.seed is not None:
            return identity
        if len(self._unseeded) >= 2**17:
            self._unseeded.clear()
        key = hashlib.blake2b(repr(identity).encode(), digest_size=16).digest()  # prompts themselves would pile up
        self._unseeded[key] += 1
        return SERVER_SEED, self._unseeded[key], *identity

    def _present(self) -> list[Job]:
        """The requests in the batch; some may have been answered just now."""
        return list(dict.fromkeys([*self._joining, *(sample.job for sample in self._rows.samples)]))

    def _part(self, error: Exception) -> None:
        """The batch failed: one that is alone is told so, halves of more begin anew apart from each other."""
        jobs = self._present()
        self.stats.add(sample_parts=1)
        self._joining, (self._rows, self._cache) = [], self._empty_batch()
        if len(jobs) == 1:
            if not isinstance(error, RequestError):
                log.error("sampling failed", exc_info=error)
            self._refuse(jobs[0], error)
            return
        jobs = [job for job in jobs if job.missing]
        for job in jobs:
            job.begin()
        self._suspects += [half for half in (jobs[len(jobs) // 2 :], jobs[: len(jobs) // 2]) if half]

    def _refuse(self, job: Job, error: Exception) -> None:
        """Answer with what is wrong; the samples that run leave at their next token."""
        if job.missing or job.result is None:
            job.missing, job.result = 0, SampleResult([])
            job.done(error)


def draw(rows: Rows, logits: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row.

    Args:
        logits: float32 [rows, vocabulary].

    Returns:
        Tokens [rows] and their logprobs [rows] at the row's temperature, before top-k and top-p.
    """
    state = rows.state
    temperature = state["temperature"]
    greedy = temperature == 0
    logprobs = (logits / temperature.masked_fill(greedy, 1.0)[:, None]).log_softmax(-1)
    token = logprobs.argmax(-1) if rows.greedy else state["token"]
    if rows.drawn:
        mass = logprobs.exp()
        if rows.cut:
            cut = ((state["top_k"] > 0) | (state["top_p"] < 1)).nonzero()[:, 0]
            mass[cut] = truncate(mass[cut], state["top_k"][cut], state["top_p"][cut])
        token = torch.where(greedy, token, pick(mass, uniform(state["key"], state["count"])))
    return token, logprobs.gather(1, token[:, None])[:, 0]


def pick(mass: Tensor, uniforms: Tensor) -> Tensor:
    """The first token of each row at which the mass so far exceeds that share of the whole: never one without mass.

    Looks for its block first and then within the block: a running sum over a whole large vocabulary, exact enough, is
    slow.

    Args:
        mass: [rows, vocabulary], not negative; need not add up to 1.
        uniforms: [rows] in [0, 1), in the type to add up in.
    """
    if mass.shape[1] <= PICK_AT_ONCE:
        exact = mass.to(uniforms.dtype)
        return _first_above(exact.cumsum(-1), uniforms * exact.sum(-1))
    blocks = nn.functional.pad(mass, (0, -mass.shape[1] % PICK_BLOCK)).unflatten(1, (-1, PICK_BLOCK))
    sums = blocks.sum(-1, dtype=uniforms.dtype)
    threshold, cumulated, rows = uniforms * sums.sum(-1), sums.cumsum(-1), torch.arange(len(mass), device=mass.device)
    block = _first_above(cumulated, threshold)
    before = (cumulated - sums)[rows, block]
    within = _first_above(blocks[rows, block].to(uniforms.dtype).cumsum(-1), threshold - before)
    return (block * PICK_BLOCK + within).clamp_(max=mass.shape[1] - 1)  # past the end only of NaN, found out later


def _first_above(cumulated: Tensor, threshold: Tensor) -> Tensor:
    """Where the running sum [rows, n] first exceeds the threshold [rows]."""
    # Rounding must not lift the threshold to the whole sum, which nothing exceeds.
    below = torch.nextafter(cumulated[:, -1], torch.zeros_like(threshold))
    place = torch.searchsorted(cumulated, torch.minimum(threshold, below)[:, None], right=True)
    return place.clamp_(max=cumulated.shape[1] - 1)[:, 0]


def truncate(probabilities: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    """Zero what top-k and top-p leave out of each row's distribution; not normalised again.

    Args:
        probabilities: [rows, vocabulary].
        top_k: [rows]; 0 for all.
        top_p: [rows]; the fewest most likely tokens that together reach it stay, at least one.
    """
    ordered, order = probabilities.sort(-1, descending=True)
    rank = torch.arange(ordered.shape[1], device=ordered.device)
    stays = (rank < top_k[:, None]) | (top_k[:, None] == 0)
    before = torch.where(stays, ordered, 0.0).cumsum(-1) - ordered
    # As in vLLM, top-p is of what top-k has left.
    kept_mass = torch.where(stays, ordered, 0.0).sum(-1, keepdim=True)
    stays &= (before < top_p[:, None] * kept_mass) | (top_p[:, None] >= 1)
    stays[:, 0] = True
    return torch.zeros_like(probabilities).scatter_(1, order, torch.where(stays, ordered, 0.0))


def _prefill_groups(jobs: list[Job]) -> Iterator[list[Job]]:
    """Jobs of like prompt length together, as many as one pass takes."""
    group: list[Job] = []
    for job in sorted(jobs, key=lambda job: len(job.request.prompt)):
        if group and (len(group) + 1) * len(job.request.prompt) > PREFILL_TOKENS:
            yield group
            group = []
        group.append(job)
    yield group
