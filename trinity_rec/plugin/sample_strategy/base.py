"""What every sample strategy does: what the trainer makes of the experiences that it reads, always `train_batch_size`
of them.

Under Trinity's fixed sync the explorer makes just the experiences of `sync_interval` steps and waits for new weights,
and verl's mini-batches have a fixed size. So a strategy never reads more than there is and never returns fewer: what it
leaves out stays in its place, masked (`leave_out`), and is counted under `sample/`. Their choices are drawn anew from
(seed, step), and what each step had read is entered in a ledger (`resume.py`), so a resumed run makes the choices of an
unbroken one on the same data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import torch
from trinity.algorithm.sample_strategy.sample_strategy import DefaultSampleStrategy
from trinity.algorithm.sample_strategy.utils import representative_sample
from trinity.common.config import BufferConfig, Config
from trinity.common.experience import CustomField, Experience
from trinity.utils.timer import Timer

from trinity_rec.declared import Declared
from trinity_rec.plugin.resume import LEDGER, Entry, Ledger, await_resumed_weights


class RECSampleStrategy(DefaultSampleStrategy):
    """Takes each batch as it comes; the default of every preset and the base of the other strategies.

    On Tinker, whose trainer calls the loss for one response at a time and divides by their number, it adds to each
    experience what the loss needs to be the mean over the batch, and the `ref_logprob` that Trinity reads even where no
    KL term uses it.

    Args:
        buffer_config: Trinity's `buffer` section.
        backend: "verl" or "tinker"; set by the configuration check.
        args: those of `Arguments`.

    Raises:
        ValueError: an argument is not allowed; one line with its name, its value and what is allowed.
    """

    class Arguments(Declared):
        """The arguments in `sample_strategy_args`, each declared once."""

    def __init__(self, buffer_config: BufferConfig, backend: str = "verl", **args: Any) -> None:
        super().__init__(buffer_config)
        self.backend = backend
        self.args: Any = self.Arguments(**args)
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
            add_columns(exps, _normalisers(exps) | {"ref_logprob": 0.0})
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
        return {"backend": "verl", **cls.Arguments.default_args()}

    @classmethod
    def check_arguments(cls, backend: str, **args: Any) -> None:
        """Refuse values that are not allowed. Raises ValueError with the name, the value and what is allowed."""
        cls.Arguments(**args)

    @classmethod
    def check_config(cls, config: Config, args: dict[str, Any]) -> None:
        """Refuse settings under which the strategy would starve or not be what its name says. Raises ValueError."""

    @classmethod
    def supplies_sample_weight(cls, args: dict[str, Any]) -> bool:
        """Whether every experience gets a `sample_weight` that the loss multiplies by."""
        return False


def _normalisers(exps: list[Experience]) -> dict[str, float]:
    """What makes the mean over calls of one response each the mean over the batch: see `Objective.__call__`."""
    tokens = sum(int(exp.action_mask.count_nonzero()) for exp in exps)
    return {"batch_num_tokens": float(tokens), "global_batch_size": float(len(exps)), "dp_size": float(len(exps))}


def add_columns(exps: list[Experience], columns: dict[str, float]) -> None:
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


def sign(exp: Experience) -> int:
    """The sign of an experience's advantage, one value for all its tokens; 0 without tokens in the loss."""
    total = float((exp.advantages * exp.action_mask).sum())
    return (total > 0) - (total < 0)
