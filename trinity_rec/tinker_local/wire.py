"""The wire: request bodies to our own types, results to protobuf. Everything a client sends is checked here.

The formats are those of the `tinker` SDK 0.25 (`tinker/proto`, `tinker/types`): JSON, but protobuf for
forward_backward, its answer, and the answer to a sampling request.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from functools import partial
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import torch
import zstandard
from google.protobuf.message import DecodeError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError
from tinker.proto import tinker_public_pb2 as pb
from torch import Tensor

from trinity_rec.tinker_local.errors import RequestError
from trinity_rec.tinker_local.losses import LOSSES
from trinity_rec.tinker_local.model import ServedModel
from trinity_rec.tinker_local.sampling import SampleRequest, SampleResult
from trinity_rec.tinker_local.training import AdamParams, Datum
from trinity_rec.tinker_local.weights import SAMPLER, Snapshot, SnapshotPath

MAX_BODY = 64 * 2**20  # bytes of a request, also once it is unpacked
MAX_JSON = 8 * 2**20  # bytes of any but a training request: parsing it holds up everybody else
MAX_BATCH = 16384  # sequences in one request
MAX_TOP_LOGPROBS = 4 * 2**20  # in one answer
LEAST_TEMPERATURE = 1e-4  # but for 0, which is greedy
_NO_TOKEN_LOGPROB = -99999.0  # of empty cells in a matrix of top prompt logprobs

_DTYPES = {pb.DTYPE_FLOAT32: np.dtype("<f4"), pb.DTYPE_INT64: np.dtype("<i8")}


def _encodable(text: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON can name half a surrogate pair
            raise PydanticCustomError("text", "not valid Unicode text") from error
    return text


Text = Annotated[str, AfterValidator(_encodable)]
Identifier = Annotated[Text, Field(min_length=1, max_length=200)]
SequenceNumber = Annotated[int, Field(ge=0, lt=2**63)]
Metadata = dict[Text, Any]
Seconds = Annotated[int, Field(ge=1, le=315_360_000)]  # to ten years
Token = Annotated[int, Field(ge=0, lt=2**31)]
Positive = Annotated[float, Field(ge=0, le=1e6)]
Parsed = TypeVar("Parsed", bound=BaseModel)


class Page(BaseModel):
    """Which part of a list."""

    limit: int = Field(100, ge=0, le=1000)
    offset: int = Field(0, ge=0, lt=2**63)


class Body(BaseModel):
    """A JSON request. Fields without a meaning here are left out; those that ask for what this server cannot do are
    there with the one value that asks for nothing. Wrong types are an error.
    """

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())


class CreateSession(Body):
    sdk_version: str = ""
    user_metadata: Metadata | None = None
    display_name: Text | None = None
    project_id: Text | None = None


class FinishSession(Body):
    reason: dict[Text, Any] = {}
    detail: Text | None = None


class SearchSessions(Body):
    class Cursor(Body):
        last_session_id: Text

    session_id: Text | None = None
    user_metadata: Metadata = {}
    display_name: Text | None = None
    limit: int = Field(50, ge=1, le=200)
    cursor: Cursor | None = None


class Telemetry(Body):
    class Event(Body):
        event: str = ""

    session_id: str
    events: list[Event] = []


class SessionHeartbeat(Body):
    session_id: Identifier


class CreateSamplingSession(Body):
    session_id: Identifier
    sampling_session_seq_id: SequenceNumber
    base_model: Text | None = None
    model_path: Text | None = None


class LoraConfig(Body):
    """The rank has no meaning for full-parameter training; which parts are trained has."""

    train_mlp: bool = True
    train_attn: bool = True
    train_unembed: bool = True


class Optimizer(Body):
    type: Literal["adamw"] = "adamw"


class CreateModel(Body):
    session_id: Identifier
    model_seq_id: SequenceNumber
    base_model: Text
    lora_config: LoraConfig | None = None
    optimizer_config: Optimizer | None = None
    user_metadata: Metadata | None = None


class OfModel(Body):
    model_id: Identifier


class OptimStep(OfModel):
    class Adam(Body):
        learning_rate: Positive = 1e-4
        beta1: float = Field(0.9, ge=0, lt=1)
        beta2: float = Field(0.95, ge=0, lt=1)
        eps: Positive = 1e-12
        weight_decay: Positive = 0.0
        grad_clip_norm: float = Field(0.0, ge=0, le=1e30)

    adam_params: Adam
    seq_id: SequenceNumber | None = None

    def adam(self) -> AdamParams:
        return AdamParams(**self.adam_params.model_dump())


class Save(OfModel):
    """`path` is the snapshot's name."""

    path: Text | None = None
    seq_id: SequenceNumber | None = None
    ttl_seconds: Seconds | None = None
    user_metadata: dict[Text, Text] | None = None


class SaveWeights(Save):
    overwrite: bool = False


class SaveWeightsForSampler(Save):
    sampling_session_seq_id: SequenceNumber | None = None
    kind: Literal["snapshot"] = "snapshot"


class SetTtl(Body):
    ttl_seconds: Seconds | None = None


class LoadWeights(Body):
    """Into a model, or into a new one of a session, which is then named as `CreateModel`'s."""

    model_id: Identifier | None = None
    session_id: Identifier | None = None
    model_seq_id: SequenceNumber | None = None
    base_model: Text | None = None
    path: Text
    optimizer: bool
    optimizer_config: Optimizer | None = None
    seq_id: SequenceNumber | None = None
    user_metadata: Metadata | None = None
    weights_access_token: None = None


class WeightsInfo(Body):
    tinker_path: Text


class OfRequest(Body):
    request_id: Identifier


class Asample(Body):
    class Chunk(Body):
        type: str = "encoded_text"
        tokens: list[int] | None = None

    class Prompt(Body):
        chunks: "list[Asample.Chunk]"

    class Params(Body):
        max_tokens: int | None = Field(None, ge=1, lt=2**63)
        seed: int | None = Field(None, ge=-(2**63), lt=2**64)
        stop: Text | list[Token] | list[Text] | None = None
        temperature: float = Field(1.0, ge=0, le=100)
        top_k: int = Field(-1, ge=-1, lt=2**63)
        top_p: float = Field(1.0, ge=1e-6, le=1)

        @field_validator("temperature")
        @classmethod
        def _greedy_or_warm(cls, value: float) -> float:
            if 0 < value < LEAST_TEMPERATURE:  # the logits divided by it must stay finite
                raise PydanticCustomError("temperature", f"0, or {LEAST_TEMPERATURE:g} to 100")
            return value

    sampling_session_id: Identifier
    seq_id: SequenceNumber | None = None
    prompt: Prompt
    sampling_params: Params = Params()
    num_samples: int = Field(1, ge=1, lt=2**31)
    prompt_logprobs: bool | None = None
    topk_prompt_logprobs: int | None = Field(0, ge=0, le=1000)
    prompt_logprobs_last_n: None = None
    topk_sample_logprobs: Literal[0] | None = None
    target_prompt_logprobs: None = None
    prompt_alt_tokens_k: Literal[0] | None = None
    record_stability_info: Literal[False] | None = None

    def request(self, weights: SnapshotPath | None, served: ServedModel) -> SampleRequest:
        """Raises RequestError for a prompt or a length that the model cannot take."""
        for chunk in self.prompt.chunks:
            if chunk.type != "encoded_text" or chunk.tokens is None:
                raise RequestError(f"only text can be sampled from; the prompt has a chunk of type {chunk.type[:40]!r}")
        prompt = tuple(token for chunk in self.prompt.chunks for token in chunk.tokens)
        _check_length(len(prompt), served.context_length - 1, "the prompt")
        if min(prompt) < 0 or max(prompt) >= served.vocabulary:
            raise RequestError(f"the prompt has a token id outside the vocabulary of {served.vocabulary}")
        if len(prompt) * (self.topk_prompt_logprobs or 0) > MAX_TOP_LOGPROBS:
            raise RequestError(f"topk_prompt_logprobs: an answer holds at most {MAX_TOP_LOGPROBS} of them")
        params, room = self.sampling_params, served.context_length - len(prompt)
        stop = params.stop if isinstance(params.stop, list) else [params.stop] if params.stop else []
        if len(stop) > 64 or any(isinstance(entry, str) and not 0 < len(entry) <= 1000 for entry in stop):
            raise RequestError("stop takes at most 64 entries, strings of 1 to 1000 characters")
        return SampleRequest(
            weights=weights,
            prompt=prompt,
            samples=self.num_samples,
            max_tokens=min(params.max_tokens or room, room),
            temperature=params.temperature,
            top_k=min(max(params.top_k, 0), served.vocabulary),
            top_p=params.top_p,
            ends=params.stop != [],
            stop_tokens=tuple(entry for entry in stop if isinstance(entry, int)),
            stop_strings=tuple(entry for entry in stop if isinstance(entry, str)),
            # As in vLLM, a negative seed is none.
            seed=params.seed if params.seed is not None and params.seed >= 0 else None,
            prompt_logprobs=bool(self.prompt_logprobs),
            top_prompt_logprobs=min(self.topk_prompt_logprobs or 0, served.vocabulary),
        )


def parse(kind: type[Parsed], content: bytes, headers: Mapping[str, str]) -> Parsed:
    """A JSON body. It must be called JSON, which a web page cannot do to a stranger's server without asking it first.

    Raises:
        RequestError: what is wrong with it, the first thing.
    """
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise RequestError(f"the content type must be application/json, not {content_type[:40]!r}", 415)
    return _checked(partial(kind.model_validate_json, content))


def parse_query(kind: type[Parsed], query: Mapping[str, str]) -> Parsed:
    """The part of a URL after the question mark. Raises like `parse`."""
    return _checked(partial(kind.model_validate, dict(query)))


def _checked(validate: Callable[[], Parsed]) -> Parsed:
    try:
        return validate()
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "body"
        raise RequestError(f"{place[:200]}: {first['msg'][:300]}") from error


def unpack(body: bytes, encoding: str | None) -> bytes:
    """Undo the body's content encoding, never to more than MAX_BODY bytes."""
    if encoding in (None, "", "identity"):
        return body
    if encoding != "zstd":
        raise RequestError(f"content encoding {encoding[:40]!r} is not supported", 415)
    try:
        if zstandard.frame_content_size(body) > MAX_BODY:
            raise RequestError(f"the body is larger than {MAX_BODY} bytes", 413)
        return zstandard.ZstdDecompressor().decompress(body, max_output_size=MAX_BODY)
    except zstandard.ZstdError as error:
        raise RequestError(f"the body is not valid zstd of at most {MAX_BODY} bytes", 400) from error


def parse_forward_backward(body: bytes) -> pb.ForwardBackwardRequest:
    try:
        return pb.ForwardBackwardRequest.FromString(body)
    except DecodeError as error:
        raise RequestError("the body is not a valid ForwardBackwardRequest", 400) from error


def batch_of(message: pb.ForwardBackwardRequest, served: ServedModel) -> list[Datum]:
    """The sequences of a training request; raises RequestError for what cannot be trained on."""
    if message.loss_fn != "cross_entropy" and message.loss_fn not in LOSSES:
        supported = ", ".join(("cross_entropy", *LOSSES))
        raise RequestError(
            f"loss_fn {message.loss_fn[:40]!r} is not supported: use one of {supported}, or forward_backward_custom"
        )
    if message.loss_fn == "cross_entropy" and message.loss_fn_config:
        raise RequestError("cross_entropy takes no loss_fn_config")
    if not 0 < len(message.data) <= MAX_BATCH:
        raise RequestError(f"a batch has 1 to {MAX_BATCH} sequences, not {len(message.data)}")
    return [_datum(datum, message.loss_fn, served, f"data[{index}]") for index, datum in enumerate(message.data)]


def _datum(datum: pb.Datum, loss: str, served: ServedModel, where: str) -> Datum:
    chunks = []
    for chunk in datum.model_input:
        kind = chunk.WhichOneof(chunk.DESCRIPTOR.oneofs[0].name)
        if kind != "encoded_text":
            raise RequestError(f"{where}: only text can be trained on, not {kind}")
        chunks.append(_array(chunk.encoded_text.tokens, np.dtype("<i4"), f"{where} tokens"))
    tokens = torch.from_numpy(np.concatenate(chunks or [np.empty(0)]).astype(np.int64))
    _check_length(len(tokens), served.context_length, where)
    names = ("target_tokens", "weights") if loss == "cross_entropy" else ("target_tokens", "logprobs", "advantages")
    unknown = sorted(set(datum.loss_fn_inputs) - set(names))
    if unknown:
        raise RequestError(f"{where}: {loss} takes {', '.join(names[:-1])} and {names[-1]}, not {unknown[0][:40]!r}")
    targets = _tensor(datum, "target_tokens", torch.int64, where)
    numbers = [_tensor(datum, name, torch.float32, where) for name in names[1:]]
    lengths = [len(part) for part in (tokens, targets, *numbers)]
    if len(set(lengths)) > 1:
        text = ", ".join(map(str, lengths[:-1])) + f" and {lengths[-1]}"
        raise RequestError(f"{where}: tokens, {', '.join(names[:-1])} and {names[-1]} differ in length: {text}")
    served.check_tokens(tokens, f"{where} tokens")
    served.check_tokens(targets, f"{where} target_tokens")
    for name, part in zip(names[1:], numbers, strict=True):
        if not part.isfinite().all():
            raise RequestError(f"{where}: {name} are not finite")
    if loss == "cross_entropy":
        return Datum(tokens, targets, numbers[0])
    old_logprobs, advantages = numbers
    wanted = torch.ones_like(advantages) if LOSSES[loss].everywhere else (advantages != 0).float()
    return Datum(tokens, targets, wanted, old_logprobs, advantages)


def _tensor(datum: pb.Datum, name: str, dtype: torch.dtype, where: str) -> Tensor:
    if name not in datum.loss_fn_inputs:
        raise RequestError(f"{where}: {name} is missing")
    message = datum.loss_fn_inputs[name]
    if message.HasField("sparse_csr") or len(message.shape) > 1:
        raise RequestError(f"{where}: {name} must be one value a token")
    if message.dtype not in _DTYPES:
        raise RequestError(f"{where}: {name} has an unknown dtype")
    return torch.from_numpy(_array(message.dense, _DTYPES[message.dtype], f"{where} {name}").copy()).to(dtype)


def _array(content: bytes, dtype: np.dtype, what: str) -> np.ndarray:
    if len(content) % dtype.itemsize:
        raise RequestError(f"{what}: {len(content)} bytes are not a whole number of values")
    return np.frombuffer(content, dtype)


def _check_length(length: int, limit: int, what: str) -> None:
    if not 0 < length <= limit:
        raise RequestError(f"{what} has {length} tokens; it may have 1 to {limit}")


def forward_backward_output(logprobs: list[Tensor], metrics: dict[str, float]) -> bytes:
    """The answer to forward and forward_backward; a metric is named `<name>:<how chunks are reduced>`."""
    message = pb.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord", metrics=metrics)
    record = message.loss_fn_outputs.add(num_datums=len(logprobs), type_tag="ArrayRecord")
    field = record.fields["logprobs"]
    field.dtype = pb.DTYPE_FLOAT32
    field.data = b"".join(_bytes(row, "<f4") for row in logprobs)
    field.offsets = np.cumsum([0, *(4 * len(row) for row in logprobs)]).astype("<i8").tobytes()
    return message.SerializeToString()


def sample_response(result: SampleResult) -> bytes:
    """The answer to a sampling request."""
    message = pb.SampleResponse()
    for response in result.responses:
        message.sequences.add(
            stop_reason=pb.STOP_REASON_STOP if response.stopped else pb.STOP_REASON_LENGTH,
            tokens=_bytes(response.tokens, "<i4"),
            logprobs=_bytes(response.logprobs, "<f4"),
        )
    if result.prompt_logprobs is not None:
        message.prompt_logprobs = _bytes(result.prompt_logprobs, "<f4")
    if result.top_prompt_logprobs is not None:
        tokens, logprobs = result.top_prompt_logprobs
        first = torch.zeros_like(tokens[:1]), torch.full_like(logprobs[:1], _NO_TOKEN_LOGPROB)
        top = message.topk_prompt_logprobs
        top.prompt_length, top.k = len(tokens) + 1, tokens.shape[1]
        top.token_ids = _bytes(torch.cat([first[0], tokens]), "<i4")
        top.logprobs = _bytes(torch.cat([first[1], logprobs]), "<f4")
    return message.SerializeToString()


def _bytes(tensor: Tensor, dtype: str) -> bytes:
    return tensor.numpy().astype(dtype).tobytes()


def timestamp(seconds: float) -> str:
    """Seconds since the epoch as the SDK reads times."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def checkpoint(snapshot: Snapshot) -> dict[str, Any]:
    path = snapshot.path
    return {
        "checkpoint_id": f"{path.kind}/{path.name}",
        "checkpoint_type": "sampler" if path.kind == SAMPLER else "training",
        "time": timestamp(snapshot.created),
        "tinker_path": str(path),
        "size_bytes": snapshot.bytes,
        "public": False,
        "user_metadata": snapshot.user_metadata,
        "expires_at": None if snapshot.expires is None else timestamp(snapshot.expires),
    }


def page(items: list[Any], wanted: Page) -> tuple[list[Any], dict[str, int]]:
    """A part of a list, and where it is in the whole."""
    cursor = {"offset": wanted.offset, "limit": wanted.limit, "total_count": len(items)}
    return items[wanted.offset : wanted.offset + wanted.limit], cursor
