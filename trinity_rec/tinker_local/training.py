"""One training run: forward, backward and AdamW steps on all parameters of one model.

A client with a loss of its own asks twice for the same batch: forward, for the logprobs from which it computes its
loss, then forward_backward with weights = -d loss / d logprob. The graph of the first pass is kept, as far as it
fits a memory budget, and serves the second: one forward instead of two.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trinity_rec.tinker_local.errors import RequestError
from trinity_rec.tinker_local.logprobs import hidden_states, pad, token_logprobs
from trinity_rec.tinker_local.model import set_weights, weights_of
from trinity_rec.tinker_local.packing import Row, lay_out, passes, rows_of
from trinity_rec.tinker_local.stats import Stats

# Padded tokens in one forward pass: on a CPU what its caches hold (1,000 to 4,000 are equally fast, 8,000 is slower;
# few, so that a batch whose graphs do not all fit keeps some), elsewhere what keeps the device busy.
MICRO_BATCH_TOKENS = {"cpu": 1024}
MICRO_BATCH_TOKENS_ELSEWHERE = 16384


@dataclass(frozen=True)
class Datum:
    """One sequence: logprob t is that of `targets[t]` after `tokens[: t + 1]`. All are [length], on the CPU.

    For `losses` it has the logprobs of the policy that sampled the targets, and advantages; its weights are then
    nonzero where that loss wants logprobs.
    """

    tokens: Tensor
    targets: Tensor
    weights: Tensor
    old_logprobs: Tensor | None = None
    advantages: Tensor | None = None


@dataclass(frozen=True)
class AdamParams:
    """Settings of one AdamW step (as `torch.optim.AdamW`); `grad_clip_norm` 0 means no clipping."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    grad_clip_norm: float


@dataclass
class MicroBatch:
    """The forward pass of some sequences of a batch.

    Attributes:
        rows: how they are laid out.
        wanted: [members, longest], where logprobs were computed.
        logprobs: [wanted], with its graph if that is kept.
        graph_bytes: memory that the graph holds.
    """

    rows: list[Row]
    wanted: Tensor
    logprobs: Tensor
    graph_bytes: float = 0.0

    @property
    def members(self) -> list[int]:
        """Their indices in the batch."""
        return _members(self.rows)


class TrainingRun:
    """A model under training. Not thread-safe: one thread drives it.

    Args:
        model: becomes this run's own.
        graph_budget: bytes of activations that may be kept between a forward and its backward.
    """

    def __init__(self, model: nn.Module, graph_budget: float, stats: Stats):
        self.model, self.stats = model, stats
        self.graph_budget = graph_budget
        self.device = next(model.parameters()).device
        # Betas, learning rate and the rest come with each step.
        self.optimizer = torch.optim.AdamW(model.parameters(), fused=self.device.type in ("cpu", "cuda"))
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)  # no gradient is a zero gradient: moments still decay
        self._kept: OrderedDict[bytes, list[MicroBatch]] = OrderedDict()
        self._bytes_per_token, self._measured_length = 0.0, 0

    def forward(self, batch: list[Datum]) -> list[Tensor]:
        """Logprobs [length] of each sequence's targets.

        They are computed from the first position with a weight on, everywhere if no position has one; before that
        (the prompt) they are 0.
        """
        key = _identity(batch)
        self._kept.pop(key, None)
        passes = self._kept[key] = []
        for rows in self._micro_batches(batch):
            passes.append(self._pass(batch, rows, keep=True))
        return _by_sequence(batch, passes)

    def forward_backward(self, batch: list[Datum]) -> tuple[list[Tensor], float]:
        """Add the gradient of -sum(weights * logprobs) to the gradients held for the next step.

        Returns:
            The logprobs as in `forward`, and the loss.
        """
        passes = self._kept.pop(_identity(batch), None) or [
            MicroBatch(rows, torch.empty(0), torch.empty(0)) for rows in self._micro_batches(batch)
        ]
        try:
            loss = self._backward(batch, passes)
        except BaseException:
            self.optimizer.zero_grad(set_to_none=False)  # part of a gradient is worse than none
            raise
        return _by_sequence(batch, passes), loss

    def optim_step(self, adam: AdamParams) -> dict[str, float]:
        """One AdamW step with the gradients held, which are then zero again.

        Raises:
            RequestError: the gradient is not finite; the weights stay and the gradients are dropped.
        """
        self.forget_graphs()
        with self.stats.timed("optim", optim_steps=1):
            limit = adam.grad_clip_norm or math.inf
            norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), limit))
            for group in self.optimizer.param_groups:
                group.update(
                    lr=adam.learning_rate,
                    betas=(adam.beta1, adam.beta2),
                    eps=adam.eps,
                    weight_decay=adam.weight_decay,
                )
            if math.isfinite(norm):
                self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=False)
        if not math.isfinite(norm):
            raise RequestError(f"the gradient norm is {norm}; the step was not made")
        return {"actor/grad_norm": norm, "actor/lr": adam.learning_rate}  # as verl calls them

    def weights(self) -> dict[str, Tensor]:
        return weights_of(self.model)

    def optimizer_state(self) -> dict[str, Any]:
        return self.optimizer.state_dict()

    def load(self, weights: dict[str, Tensor], optimizer: dict[str, Any] | None) -> None:
        """Take over weights, and the optimizer's state or a fresh one.

        Raises:
            RequestError: they do not fit the model.
        """
        self.forget_graphs()
        set_weights(self.model, weights)
        self.optimizer.zero_grad(set_to_none=False)
        self.optimizer.state.clear()
        if optimizer is not None:
            try:
                self.optimizer.load_state_dict(optimizer)
            except (ValueError, KeyError) as error:
                raise RequestError("the saved optimizer state does not fit the served model") from error

    def forget_graphs(self) -> None:
        """A graph is worth nothing once the weights have changed."""
        self._kept.clear()

    def _micro_batches(self, batch: list[Datum]) -> list[list[Row]]:
        prompts = [_prompt_length(datum.weights) for datum in batch]
        limit = MICRO_BATCH_TOKENS.get(self.device.type, MICRO_BATCH_TOKENS_ELSEWHERE)
        return passes(rows_of([datum.tokens for datum in batch], prompts), limit)

    def _backward(self, batch: list[Datum], passes: list[MicroBatch]) -> float:
        """Differentiate, by a kept graph or a new pass; leaves passes without graphs and returns the loss."""
        loss = 0.0
        for index, kept in enumerate(passes):
            weights = pad([batch[member].weights for member in kept.members])
            needed = weights != 0
            if kept.graph_bytes and not (needed & ~kept.wanted).any():
                step = kept
                self.stats.add(graph_hits=1)
            else:
                step = self._pass(batch, kept.rows, keep=False, differentiate=bool(needed.any()))
                self.stats.add(graph_misses=1)
            grad = -weights[step.wanted].to(self.device)
            loss += float(grad @ step.logprobs.detach())
            if needed.any():
                with self.stats.timed("backward", backward_tokens=_tokens(batch, step.members)):
                    step.logprobs.backward(grad)
            passes[index] = MicroBatch(step.rows, step.wanted, step.logprobs.detach())  # lets the graph go
        return loss

    def _pass(self, batch: list[Datum], rows: list[Row], keep: bool, differentiate: bool = True) -> MicroBatch:
        """Forward some sequences; with `keep`, with a graph only as far as the budget goes."""
        members = _members(rows)
        layout = lay_out([datum.tokens for datum in batch], rows)
        targets = pad([batch[member].targets for member in members])
        wanted = pad([_wanted(batch[member].weights) for member in members]).bool()
        places = pad(layout.places)[wanted]
        measure = nullcontext()
        if keep:
            differentiate = self._make_room(self._bytes_per_token * layout.ids.numel())
            if differentiate and layout.ids.shape[1] > self._measured_length:
                measure = self._measure_graph(layout.ids)
        work = {"forward_tokens": _tokens(batch, members), "forward_positions": layout.ids.numel(), "forward_passes": 1}
        with self.stats.timed("forward", **work), torch.set_grad_enabled(differentiate), measure:
            inputs = (part if part is None else part.to(self.device) for part in layout.inputs)
            hidden = hidden_states(self.model, *inputs).flatten(0, 1)
            logprobs = token_logprobs(self.model, hidden[places.to(self.device)], targets[wanted].to(self.device))
        graph_bytes = self._bytes_per_token * layout.ids.numel() if keep and differentiate else 0.0
        if graph_bytes > self.graph_budget:  # only known after the first measurement
            return MicroBatch(rows, wanted, logprobs.detach())
        return MicroBatch(rows, wanted, logprobs, graph_bytes)

    def _make_room(self, graph_bytes: float) -> bool:
        """Whether another graph of the newest batch fits, once those of older batches had to go."""
        held = [sum(step.graph_bytes for step in passes) for passes in self._kept.values()]
        while len(held) > 1 and sum(held) + graph_bytes > self.graph_budget:
            held.pop(0)
            self._kept.popitem(last=False)
        return sum(held) + graph_bytes <= self.graph_budget

    @contextmanager
    def _measure_graph(self, tokens: Tensor) -> Iterator[None]:
        """Learn how many bytes a token's graph takes, from the tensors that autograd saves."""
        weights = {parameter.data_ptr() for parameter in self.model.parameters()}
        saved: dict[int, int] = {}

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()  # the tensor itself would keep its own graph alive for ever

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            yield
        self._measured_length = tokens.shape[1]
        self._bytes_per_token = max(self._bytes_per_token, sum(saved.values()) / tokens.numel())


def _identity(batch: list[Datum]) -> bytes:
    """The same for batches that have the same logprobs: tokens and targets count, weights do not."""
    digest = hashlib.blake2b(digest_size=16)
    for datum in batch:
        digest.update(len(datum.tokens).to_bytes(8, "little"))
        digest.update(datum.tokens.numpy().tobytes())
        digest.update(datum.targets.numpy().tobytes())
    return digest.digest()


def _wanted(weights: Tensor) -> Tensor:
    """From the first weight on; everywhere if there is none."""
    weighted = weights != 0
    return weighted.cumsum(0) > 0 if weighted.any() else torch.ones_like(weighted)


def _prompt_length(weights: Tensor) -> int:
    """Tokens up to and with the one that predicts the first target with a weight; 0 if none has one."""
    weighted = (weights != 0).nonzero()
    return int(weighted[0]) + 1 if len(weighted) else 0


def _members(rows: list[Row]) -> list[int]:
    return [member for row in rows for member in row.members]


def _tokens(batch: list[Datum], members: list[int]) -> int:
    return sum(len(batch[member].tokens) for member in members)


def _by_sequence(batch: list[Datum], passes: list[MicroBatch]) -> list[Tensor]:
    logprobs: list[Tensor] = [torch.empty(0)] * len(batch)
    for step in passes:
        padded = torch.zeros(step.wanted.shape).masked_scatter_(step.wanted, step.logprobs.detach().cpu())
        for row, member in zip(padded, step.members, strict=True):
            logprobs[member] = row[: len(batch[member].tokens)]
    return logprobs
