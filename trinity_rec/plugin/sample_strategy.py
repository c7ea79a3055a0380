"""Sample strategies: what the trainer makes of the experiences that it reads, always `train_batch_size` of them.

Under Trinity's fixed sync the explorer makes just the experiences of `sync_interval` steps and waits for new weights,
and verl's mini-batches have a fixed size. So a strategy never reads more than there is and never returns fewer: what it
leaves out stays in its place, masked (`leave_out`), and is counted under `sample/`. Their choices are drawn anew from
(seed, step), and what each step had read is entered in a ledger (`resume.py`), so a resumed run makes the choices of an
unbroken one on the same data.
"""

from __future__ import annotations

from importlib import import_module
from numbers import Real
from pathlib import Path
from typing import Any

import ray
import torch
from trinity.algorithm.sample_strategy.sample_strategy import DefaultSampleStrategy
from trinity.algorithm.sample_strategy.utils import representative_sample
from trinity.common.config import BufferConfig, Config
from trinity.common.constants import SyncStyle
from trinity.common.experience import CustomField, Experience
from trinity.utils.timer import Timer

from trinity_rec.plugin.advantage import leave_out
from trinity_rec.plugin.resume import LEDGER, Entry, Ledger, await_resumed_weights, write_atomically


class RECSampleStrategy(DefaultSampleStrategy):
    """Takes each batch as it comes; the default of every preset and the base of the other strategies.

    On Tinker, whose trainer calls the loss for one response at a time and divides by their number, it adds to each
    experience what the loss needs to be the mean over the batch, and the `ref_logprob` that Trinity reads even where no
    KL term uses it.

    Args:
        buffer_config: Trinity's `buffer` section.
        backend: "verl" or "tinker"; set by the configuration check.
    """

    def __init__(self, buffer_config: BufferConfig, backend: str = "verl", **kwargs: Any) -> None:
        super().__init__(buffer_config)
        self.backend = backend
        self.ledger = Ledger(Path(buffer_config.cache_dir) / LEDGER)
        self.explored = 0  # the newest batch of the explorer read so far

    async def sample(self, step: int, **kwargs: Any) -> tuple[list[Experience], dict[str, float], list[dict]]:
        """The batch of training step `step` (from 1), its metrics, and a few experiences for the log.

        Raises:
            FloatingPointError: a logprob or an advantage that counts in the loss is not finite; names the experience.
        """
        metrics: dict[str, float] = {}
        with Timer(metrics, "time/read_experience"):
            exps = await self.read(step)
        size = len(exps)
        exps = await self.select(exps, step, metrics)
        if len(exps) != size:
            raise RuntimeError(f"{type(self).__name__} returned {len(exps)} experiences in place of {size}")
        _refuse_not_finite(exps)
        self.set_model_version_metric(exps, metrics)
        if self.backend == "tinker":
            _add_columns(exps, _normalisers(exps) | {"ref_logprob": 0.0})
        self.explored = max(self.explored, *map(_explorer_batch, exps))
        self.ledger.append(Entry(step, self.explored, self.state_dict()))
        return exps, metrics, representative_sample(exps)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; `state_dict` is empty where there is none."""
        super().load_state_dict(state_dict)
        if state_dict:
            self.explored = max((entry.explored for entry in self.ledger.entries()), default=0)
            if ray.is_initialized():
                await_resumed_weights(ray.get_runtime_context().namespace)

    async def read(self, step: int) -> list[Experience]:
        """One batch from the buffer."""
        return await self.exp_buffer.read()

    async def select(self, exps: list[Experience], step: int, metrics: dict[str, float]) -> list[Experience]:
        """The experiences to train on, as many as were read; entries of `metrics` are logged."""
        return exps

    @classmethod
    def default_args(cls) -> dict[str, Any]:
        return {"backend": "verl"}

    @classmethod
    def check_arguments(cls, **args: Any) -> None:
        """Refuse values that are not allowed. Raises ValueError with the name, the value and what is allowed."""

    @classmethod
    def check_config(cls, config: Config, args: dict[str, Any]) -> None:
        """Refuse settings under which the strategy would starve or not be what its name says. Raises ValueError."""

    @classmethod
    def supplies_sample_weight(cls, args: dict[str, Any]) -> bool:
        """Whether every experience gets a `sample_weight` that the loss multiplies by."""
        return False


class InformativeSampleStrategy(RECSampleStrategy):
    """Leaves out groups without reward spread (as in DAPO): their advantages are all 0, they only dilute the mean.

    Args:
        refill: read as many more experiences as were left out, again and again until the batch is full or `max_reads`
            is reached. Needs a `sync_style` under which the explorer does not wait for the trainer.
        max_reads: how often to read in one step, the first included; what is still missing then is masked.
    """

    def __init__(self, buffer_config: BufferConfig, refill: bool = False, max_reads: int = 8, **kwargs: Any) -> None:
        super().__init__(buffer_config, **kwargs)
        self.refill, self.max_reads = refill, max_reads

    async def select(self, exps: list[Experience], step: int, metrics: dict[str, float]) -> list[Experience]:
        informative, idle = _by_information(exps)
        reads = 1
        left_out = len(idle)
        while self.refill and idle and reads < self.max_reads:
            try:
                more = await self.exp_buffer.read(batch_size=len(idle))
            except (StopAsyncIteration, TimeoutError):  # the explorer has ended: train on what there is
                break
            reads += 1
            fresh, idle_again = _by_information(more)
            left_out += len(idle_again)
            informative += fresh
            idle = idle_again
        for exp in idle:
            leave_out(exp)
        metrics["sample/uninformative"] = float(left_out)
        metrics["sample/masked"] = float(len(idle))
        metrics["sample/reads"] = float(reads)
        return informative + idle

    @classmethod
    def default_args(cls) -> dict[str, Any]:
        return {**super().default_args(), "refill": False, "max_reads": 8}

    @classmethod
    def check_arguments(cls, **args: Any) -> None:
        if not isinstance(args["refill"], bool):
            raise ValueError(f"refill={args['refill']!r} is not true or false")
        _require_count(args, "max_reads")

    @classmethod
    def check_config(cls, config: Config, args: dict[str, Any]) -> None:
        if args["refill"] and config.mode == "both":
            style = config.synchronizer.sync_style
            if style not in (SyncStyle.EXPLORER_DRIVEN, SyncStyle.FULLY_ASYNC):
                raise ValueError(
                    "algorithm.sample_strategy_args.refill=True would starve under synchronizer.sync_style="
                    f"{style.value}: the explorer waits for the trainer; use explorer_driven or fully_async"
                )


class BalancedSampleStrategy(RECSampleStrategy):
    """RED-Drop at the batch: drops random responses of the larger side until positives (A > 0) and negatives are equal.

    Baselines stay those of the whole groups, computed before; `red_drop` recomputes them on what it keeps. Responses
    with A = 0 belong to neither side and stay.

    Args:
        seed: of the choice; (seed, step) decides it.
    """

    def __init__(self, buffer_config: BufferConfig, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(buffer_config, **kwargs)
        self.seed = seed

    async def select(self, exps: list[Experience], step: int, metrics: dict[str, float]) -> list[Experience]:
        signs = [_sign(exp) for exp in exps]
        positive = [i for i, sign in enumerate(signs) if sign > 0]
        negative = [i for i, sign in enumerate(signs) if sign < 0]
        fewer, more = sorted((positive, negative), key=len)
        lots = torch.Generator().manual_seed(hash((self.seed, step)) % 2**63)
        surplus = torch.randperm(len(more), generator=lots)[len(fewer) :].tolist()
        for i in surplus:
            leave_out(exps[more[i]])
        metrics["sample/dropped_positive"] = float(len(surplus) if more is positive else 0)
        metrics["sample/dropped_negative"] = float(len(surplus) if more is negative else 0)
        return exps

    @classmethod
    def default_args(cls) -> dict[str, Any]:
        return {**super().default_args(), "seed": 0}

    @classmethod
    def check_arguments(cls, **args: Any) -> None:
        if not isinstance(args["seed"], int) or isinstance(args["seed"], bool):
            raise ValueError(f"seed={args['seed']!r} is not an integer")


class StalenessSampleStrategy(RECSampleStrategy):
    """Weights or drops experiences by their age: how many model versions the policy has moved on since they were
    sampled.

    Args:
        decay: an experience of age a counts decay ** a in the loss (policy term and regulariser); 1 weights nothing.
        max_staleness: older experiences are left out; None leaves none out.
    """

    def __init__(
        self, buffer_config: BufferConfig, decay: float = 1.0, max_staleness: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(buffer_config, **kwargs)
        self.decay, self.max_staleness = decay, max_staleness

    async def select(self, exps: list[Experience], step: int, metrics: dict[str, float]) -> list[Experience]:
        # The trainer enters step s with version s - 1; Trinity's Tinker explorer calls the initial version -1, not 0.
        current = step - 1
        ages = [max(current - max(exp.info.get("model_version", current), 0), 0) for exp in exps]
        weights = [self.decay**age for age in ages]
        stale = [self.max_staleness is not None and age > self.max_staleness for age in ages]
        for exp, is_stale in zip(exps, stale, strict=True):
            if is_stale:
                leave_out(exp)
        if self.decay != 1:
            for exp, weight in zip(exps, weights, strict=True):
                _add_columns([exp], {"sample_weight": weight})
        metrics["sample/staleness_mean"] = sum(ages) / len(ages)
        metrics["sample/staleness_max"] = float(max(ages))
        metrics["sample/staleness_weight_mean"] = sum(weights) / len(weights)
        metrics["sample/stale_dropped"] = float(sum(stale))
        return exps

    @classmethod
    def default_args(cls) -> dict[str, Any]:
        return {**super().default_args(), "decay": 1.0, "max_staleness": None}

    @classmethod
    def check_arguments(cls, **args: Any) -> None:
        decay, limit = args["decay"], args["max_staleness"]
        if not isinstance(decay, Real) or isinstance(decay, bool) or not 0 < float(decay) <= 1:
            raise ValueError(f"decay={decay!r} is not in (0, 1]")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise ValueError(f"max_staleness={limit!r} is not a whole number of at least 0, or null")

    @classmethod
    def supplies_sample_weight(cls, args: dict[str, Any]) -> bool:
        return args["decay"] != 1


class OfflineSampleStrategy(RECSampleStrategy):
    """The paper's offline stress test (section 5): the first `batches` batches are kept and cycled over, never fresh
    data.

    Step s trains on batch (s - 1) mod `batches`. Batches are written to the run's buffer folder as they come, so that a
    resumed run goes on with the same set.

    Args:
        batches: how many to keep. They must all come from the initial policy, so with `sync_style: fixed` it is at most
            sync_interval + sync_offset.
    """

    def __init__(self, buffer_config: BufferConfig, batches: int = 1, **kwargs: Any) -> None:
        super().__init__(buffer_config, **kwargs)
        self.batches = batches
        self.folder = Path(buffer_config.cache_dir) / "offline"
        self.kept: dict[int, bytes] = {}

    async def read(self, step: int) -> list[Experience]:
        number = (step - 1) % self.batches
        if number not in self.kept:
            path = self.folder / f"batch_{number}.experiences"
            if not path.exists():
                write_atomically(path, Experience.serialize_many(await self.exp_buffer.read()))
            self.kept[number] = path.read_bytes()
        return Experience.deserialize_many(self.kept[number])

    async def select(self, exps: list[Experience], step: int, metrics: dict[str, float]) -> list[Experience]:
        metrics["sample/offline_epoch"] = float((step - 1) // self.batches)
        return exps

    @classmethod
    def default_args(cls) -> dict[str, Any]:
        return {**super().default_args(), "batches": 1}

    @classmethod
    def check_arguments(cls, **args: Any) -> None:
        _require_count(args, "batches")

    @classmethod
    def check_config(cls, config: Config, args: dict[str, Any]) -> None:
        sync = config.synchronizer
        initial = sync.sync_interval + sync.sync_offset
        if config.mode == "both" and sync.sync_style == SyncStyle.FIXED and args["batches"] > initial:
            raise ValueError(
                f"algorithm.sample_strategy_args.batches={args['batches']} is more than the {initial} batches that the "
                "initial policy makes (synchronizer.sync_interval + sync_offset); raise sync_interval or keep fewer"
            )


def strategy_named(name: str | None) -> type[RECSampleStrategy] | None:
    """The strategy of this package that a YAML names by its dotted path; None for any other."""
    package, _, attribute = (name or "").rpartition(".")
    if package.split(".")[0] != "trinity_rec":
        return None
    found = getattr(import_module(package), attribute, None)
    return found if isinstance(found, type) and issubclass(found, RECSampleStrategy) else None


def _normalisers(exps: list[Experience]) -> dict[str, float]:
    """What makes the mean over calls of one response each the mean over the batch: see `Objective.__call__`."""
    tokens = sum(int(exp.action_mask.count_nonzero()) for exp in exps)
    return {"batch_num_tokens": float(tokens), "global_batch_size": float(len(exps)), "dp_size": float(len(exps))}


def _add_columns(exps: list[Experience], columns: dict[str, float]) -> None:
    """One scalar an experience under each name, shipped to the loss as a batch column."""
    for exp in exps:
        exp.info.update(columns)
        known = {field.destination_field for field in exp.custom_fields}
        exp.custom_fields += [CustomField(name, name, torch.float32) for name in columns if name not in known]


def _refuse_not_finite(exps: list[Experience]) -> None:
    """Raises FloatingPointError for the first number that would spoil the batch, while it is known whose it is."""
    masks = [exp.action_mask.bool() for exp in exps]
    left_out = ~torch.cat(masks)
    for name in ("logprobs", "advantages"):
        rows = [getattr(exp, name) for exp in exps]
        if any(row is None for row in rows):  # Trinity's own trainers say what is missing
            continue
        if (torch.cat(rows).isfinite() | left_out).all():
            continue
        for exp, mask, row in zip(exps, masks, rows, strict=True):
            for token in (mask & ~row.isfinite()).nonzero().flatten().tolist():
                raise FloatingPointError(f"{name}[{token}] of experience {exp.eid} is {float(row[token])}")


def _explorer_batch(exp: Experience) -> int:
    """The number of the explorer's batch that it is from, 0 for an experience from a file."""
    batch = str(exp.eid.batch)
    return int(batch) if batch.isdecimal() else 0


def _by_information(exps: list[Experience]) -> tuple[list[Experience], list[Experience]]:
    """Experiences of groups with and without a nonzero advantage, in order."""
    speaking = {exp.eid.tid for exp in exps if _sign(exp) != 0}
    informative = [exp for exp in exps if exp.eid.tid in speaking]
    return informative, [exp for exp in exps if exp.eid.tid not in speaking]


def _sign(exp: Experience) -> int:
    """The sign of an experience's advantage, one value for all its tokens; 0 without tokens in the loss."""
    total = float((exp.advantages * exp.action_mask).sum())
    return (total > 0) - (total < 0)


def _require_count(args: dict[str, Any], name: str) -> None:
    value = args[name]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}={value!r} is not a whole number of at least 1")
