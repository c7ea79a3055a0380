"""The policy objective of the REC, REP and RED-Weight algorithms, in pure torch.

Its gradient is its specification. For response i and token t, with the importance ratio
rho = pi_theta / pi_old, the clip mask M and the data weight w both held constant (arXiv 2509.24203, sections 2 to 4):

    dL / dlogprob[i, t] = n[i] * ( -M[i, t] * w[i, t] * A[i, t]  +  d regulariser / dlogprob[i, t] )

where n[i] averages over tokens or over responses. The gradient is in closed form (`_terms`), so the loss writes it down
while the inputs are in cache and hands it to autograd: one pass over memory, one stored tensor, no graph.

    objective = Objective(clip_mode="one-side", weight="importance_sampling")
    loss, metrics = objective(logprob, old_logprob, mask, advantages)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from itertools import repeat
from numbers import Real
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

CLIP_MODES = ("none", "one-side", "two-side", "ring", "gspo-one-side")
WEIGHTS = ("none", "importance_sampling", "gspo_importance_sampling", "advantage")
REGULARIZERS = ("none", "k2", "k2-sequence", "forward-kl")
LOSS_AGG_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
METRICS = ("basic", "full")
_MAY_BE_INFINITE = ("epsilon_high", "epsilon_high_prime", "temp")

# Elements of a block of rows on the CPU: `_Scratch` of float32 fits in a core's second-level cache, and each call of
# torch works long enough to be worth its overhead.
_BLOCK = 65_536

# exp(80) is far above any clip range and far below float32's largest number: a ratio that is clipped away must not
# overflow, since infinity times M = 0 is not a number.
_LARGEST_LOG_RATIO = 80.0

# The types of the arithmetic. A gradient is rounded to any other type, and float16 ends at 65,504.
_EXACT = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Objective:
    """A policy objective: one choice of clip mask, data weight, regulariser and average.

    Attributes:
        clip_mode: the mask M (section 2; "gspo-one-side" is one-side on the sequence ratio exp(mean_t log rho)).
        weight: the data weight w: "importance_sampling" is rho, "gspo_importance_sampling" the sequence ratio,
            "advantage" is exp(A / temp) (RED-Weight, section 4).
        regularizer: "k2" adds coef * (log rho)^2 to each token; "k2-sequence" adds coef * (sum_t log rho)^2 to each
            response, OPMD's square as the paper writes it; "forward-kl" adds -coef * logprob to each token (AsymRE).
        regularizer_coef: coef above; the 1/2 of OPMD's tau/2 is absorbed in it.
        temp: the temperature of weight "advantage".
        epsilon_low, epsilon_high: the clip range [1 - epsilon_low, 1 + epsilon_high] of the ratio.
        epsilon_low_prime, epsilon_high_prime: the outer bounds of "ring", at least as wide as the clip range.
        loss_agg_mode: the average n. None takes "seq-mean-token-mean" with "gspo-one-side" and "token-mean" otherwise,
            as upstream's `rec` does; "seq-mean-token-sum-norm" is verl's: "seq-mean-token-sum" over loss_scale_factor.
        loss_scale_factor: a count of tokens, the same for every response; "seq-mean-token-sum-norm" needs it (verl's
            own default, the padded length, differs between micro-batches and backends).
        metrics: "basic" (loss, clip fraction, KL) or "full"; see `_metrics`.
        compile: compile the loss by `torch.compile`, once for all shapes; the first call takes seconds.
            Where that cannot work (without a C++ compiler, say) there is one warning, and the loss runs as it is.

    The names and meanings are those of upstream's `trinity.algorithm.policy_loss_fn.rec_policy_loss.RECPolicyLossFn`.

    Raises:
        ValueError: an argument is not allowed; the message names it, its value and what is allowed.
    """

    clip_mode: str = "none"
    weight: str = "none"
    regularizer: str = "none"
    regularizer_coef: float = 0.0
    temp: float = 1.0
    epsilon_low: float = 0.2
    epsilon_high: float = 0.2
    epsilon_low_prime: float = 0.6
    epsilon_high_prime: float = 2.0
    loss_agg_mode: str | None = None
    loss_scale_factor: float | None = None
    metrics: str = "basic"
    compile: bool = False

    def __post_init__(self) -> None:
        if self.loss_agg_mode is None:
            by_sequence = self.clip_mode == "gspo-one-side"
            object.__setattr__(self, "loss_agg_mode", "seq-mean-token-mean" if by_sequence else "token-mean")
        for name, allowed in (
            ("clip_mode", CLIP_MODES),
            ("weight", WEIGHTS),
            ("regularizer", REGULARIZERS),
            ("loss_agg_mode", LOSS_AGG_MODES),
            ("metrics", METRICS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if not isinstance(self.compile, bool):
            raise ValueError(f"compile={self.compile!r} is not true or false")
        for field in fields(self):
            value = getattr(self, field.name)
            if not field.type.startswith("float") or (value is None and field.default is None):
                continue
            unbounded = field.name in _MAY_BE_INFINITE and value == math.inf
            if not isinstance(value, Real) or isinstance(value, bool) or not (unbounded or math.isfinite(value)):
                raise ValueError(f"{field.name}={value!r} is not a finite number")
        for name in ("epsilon_low", "epsilon_low_prime"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} is not in (0, 1]")
        for name in ("epsilon_high", "epsilon_high_prime", "temp", "loss_scale_factor"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)!r} is not greater than 0")
        if self.regularizer_coef < 0:
            raise ValueError(f"regularizer_coef={self.regularizer_coef!r} is negative")
        if self.loss_agg_mode == "seq-mean-token-sum-norm" and self.loss_scale_factor is None:
            raise ValueError(
                "loss_scale_factor=None: loss_agg_mode 'seq-mean-token-sum-norm' divides by it, so it must be a "
                "number, the longest response's tokens say"
            )
        if self.clip_mode == "ring":
            for inner, outer in (
                ("epsilon_low", "epsilon_low_prime"),
                ("epsilon_high", "epsilon_high_prime"),
            ):
                if getattr(self, outer) < getattr(self, inner):
                    raise ValueError(
                        f"{outer}={getattr(self, outer)!r} is smaller than {inner}={getattr(self, inner)!r}: "
                        "the outer bounds of clip_mode 'ring' must enclose the clip range"
                    )

    def __call__(
        self,
        logprob: Tensor,
        old_logprob: Tensor,
        mask: Tensor,
        advantages: Tensor,
        *,
        sample_weight: Tensor | None = None,
        batch_num_tokens: int | Tensor | None = None,
        global_batch_size: int | Tensor | None = None,
        dp_size: int | Tensor = 1,
    ) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch or a micro-batch, differentiable once with respect to `logprob`.

        Args:
            logprob: log pi_theta of the sampled tokens, [batch, response] or [response], floating point.
            old_logprob: log pi_old of the same tokens, from the policy that sampled them; the shape of `logprob`.
            mask: nonzero on the tokens that count; the shape of `logprob`. What is masked may hold anything, NaN too.
            advantages: A, the shape of `logprob` (usually one value a response, repeated).
            sample_weight: a factor on everything that a response adds to the loss, [batch] or a scalar.
            batch_num_tokens, global_batch_size: the tokens and responses of the whole mini-batch, where this call sees
                only a part of it; without them the call is the mini-batch.
            dp_size: how many such losses the caller averages afterwards (data-parallel ranks; on Tinker, responses).

        Returns:
            The loss, a scalar of at least float32, and metrics as floats. Without any token both are 0.

        Raises:
            ValueError: the shapes differ, or `logprob` is not a floating-point tensor of one or two dimensions.
            FloatingPointError: a token that counts has a logprob or an advantage that is not finite, or the loss
                overflows; names the first such token, or response. No gradient is handed out.
        """
        if logprob.dim() not in (1, 2) or not logprob.is_floating_point():
            raise ValueError(
                f"logprob must be a floating-point [batch, response] or [response] tensor, "
                f"got {logprob.dtype} {list(logprob.shape)}"
            )
        for name, tensor in (("old_logprob", old_logprob), ("mask", mask), ("advantages", advantages)):
            if tensor.shape != logprob.shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, logprob {list(logprob.shape)}")
        dimensions = logprob.dim()
        if dimensions == 1:
            logprob, old_logprob, mask, advantages = (x.unsqueeze(0) for x in (logprob, old_logprob, mask, advantages))
        wanted = logprob.requires_grad and torch.is_grad_enabled()
        inputs = logprob.detach(), old_logprob, mask.to(torch.bool), advantages
        count = batch_num_tokens
        if self.loss_agg_mode != "token-mean":
            count = len(inputs[0]) if global_batch_size is None else global_batch_size
        normalisers = sample_weight, count, dp_size
        with torch.no_grad():
            result = _compiled(self)(*inputs, *normalisers) if self.compile else None
            ascent, names, table, totals, loss, scale = result or _evaluate(self, *inputs, *normalisers, wanted=wanted)
        total = dict(zip(names, totals.tolist(), strict=True))  # the one transfer from the device of a call
        if not _is_finite(total, loss.dtype):
            raise FloatingPointError(_why_not_finite(*inputs, dict(zip(names, table, strict=True)), scale, dimensions))
        if wanted:
            loss = _WithGradient.apply(logprob, loss, ascent, scale)
        return loss, _metrics(self, total, len(logprob))


# On a CPU a comparison that yields bool, and whatever reads bool, takes four to fifteen times as long as arithmetic on
# floats. So M is a float here, 1.0 or 0.0 (in-place comparisons keep the dtype), and padding is zeroed by its bits.


def clip_mask(
    objective: Objective,
    log_ratio: Tensor,
    advantages: Tensor,
    *,
    out: Tensor | None = None,
    work: Tensor | None = None,
    more_work: Tensor | None = None,
) -> Tensor:
    """M (table of section 2): 1 where a token keeps its policy gradient, 0 where it is clipped.

    The bounds of the ratio are compared as logarithms: without importance sampling nobody pays for an exp.

    Args:
        log_ratio: log rho, [rows, response], or the sequence's, [rows, 1], for "gspo-one-side".
        advantages: A, [rows, response]. Where it is 0, one-side clipping keeps the token.
        out, work, more_work: tensors of the shape of `advantages` to write to, if any.

    Returns:
        A tensor of the dtype and shape of `advantages`; it is `out`, if that is given.
    """
    low, high = _log_range(objective.epsilon_low, objective.epsilon_high)
    if objective.clip_mode == "none":
        return torch.ones_like(advantages)
    if objective.clip_mode == "gspo-one-side":
        return torch.mul(log_ratio - log_ratio.clamp(low, high), advantages, out=out).le_(0)
    inside = torch.clamp(log_ratio, low, high, out=out)
    if objective.clip_mode == "one-side":
        # What exceeds the range is clipped where it has the sign of A: there PPO's minimum is the clipped term.
        return torch.sub(log_ratio, inside, out=out).mul_(advantages).le_(0)
    if objective.clip_mode == "two-side":
        return inside.eq_(log_ratio)
    # Beyond the outer bounds a token is kept where A pulls it back, or is 0.
    low, high = _log_range(objective.epsilon_low_prime, objective.epsilon_high_prime)
    if torch.compiler.is_compiling():
        back = ((log_ratio <= low) & (advantages >= 0)) | ((log_ratio >= high) & (advantages <= 0))
        return ((inside == log_ratio) | back).to(advantages.dtype)
    low, high = _inwards(low, high, log_ratio.dtype)
    beyond = torch.sub(log_ratio, torch.clamp(log_ratio, low, high, out=work), out=work)
    back = torch.mul(beyond, advantages, out=more_work).le_(0).mul_(beyond.ne_(0))
    return torch.maximum(inside.eq_(log_ratio), back, out=out)


def _log_range(epsilon_low: float, epsilon_high: float) -> tuple[float, float]:
    """The bounds [1 - epsilon_low, 1 + epsilon_high] of a ratio as logarithms."""
    return (math.log(1 - epsilon_low) if epsilon_low < 1 else -math.inf), math.log(1 + epsilon_high)


@cache
def _inwards(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """The next numbers of a type between two: what lies outside of these is at the two, or beyond."""
    bounds = numpy.array((low, high), numpy.float64 if dtype == torch.float64 else numpy.float32)
    low, high = numpy.nextafter(bounds, bounds[::-1]).tolist()
    return low, high


class _Scratch(NamedTuple):
    """Blocks that `_terms` works in, [rows, response] each: written again for each block, they never leave the cache.

    Without tensors (when compiled) torch makes what it needs.
    """

    bits: Tensor | None = None
    log_ratio: Tensor | None = None
    ratio: Tensor | None = None
    keep: Tensor | None = None
    ascent: Tensor | None = None
    work: Tensor | None = None
    more_work: Tensor | None = None

    @classmethod
    def empty(cls, objective: Objective, rows: int, length: int, like: Tensor, in_place: bool) -> _Scratch:
        """The blocks that the objective needs, in the type of its arithmetic; `in_place`: the ascent has its place."""
        full = objective.metrics == "full"
        needed = {
            "bits": True,
            "log_ratio": True,
            "ratio": full or objective.clip_mode == "ring" or objective.regularizer == "k2",
            "keep": objective.clip_mode != "none",
            "ascent": not in_place,
            "work": True,
            "more_work": full,
        }
        names = [name for name in cls._fields if needed[name]]
        dtype = torch.promote_types(like.dtype, torch.float32)
        blocks = torch.empty(len(names), rows, length, dtype=dtype, device=like.device)
        return cls(**dict(zip(names, blocks, strict=True)))


def _bits(mask: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    """-1, which is all bits set, where the boolean mask is true, else 0: integers as wide as `dtype`."""
    if out is None:
        return mask
    return out.view(torch.int64 if dtype == torch.float64 else torch.int32).copy_(mask.view(torch.int8).neg())


def _masked(x: Tensor, bits: Tensor, out: Tensor | None) -> Tensor:
    """x where the bits are set, 0 elsewhere, whatever x holds there; in `out`, if that is given."""
    if out is None:
        return torch.where(bits != 0, x, 0.0)
    torch.bitwise_and(x.view(bits.dtype), bits, out=out.view(bits.dtype))
    return out


def _terms(
    objective: Objective,
    logprob: Tensor,
    old_logprob: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *,
    scratch: _Scratch,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient of some responses, and the sums over each response's tokens that loss and metrics are made of.

    Args:
        logprob, old_logprob, mask, advantages: [rows, response]; the mask is boolean, or 0 and 1 without scratch.

    Returns:
        M w A - d regulariser / d logprob, which is the gradient over -n, [rows, response]; and the sums, [rows] each.
    """
    dtype = torch.promote_types(logprob.dtype, torch.float32)
    work = scratch.work
    bits = _bits(mask, dtype, scratch.bits)
    log_ratio = torch.sub(logprob.to(dtype), old_logprob.to(dtype), out=scratch.log_ratio)
    log_ratio = _masked(log_ratio, bits, scratch.log_ratio)
    advantages = _masked(advantages.to(dtype), bits, scratch.ascent)
    tokens = bits.sum(-1, dtype=bits.dtype).abs().to(dtype)
    # Those that the average weighs come first, so that it takes one multiplication.
    sums: dict[str, Any] = dict.fromkeys(_WEIGHTED)
    sums |= {"tokens": tokens, "log_ratio": log_ratio.sum(-1)}

    full = objective.metrics == "full"
    by_sequence = objective.clip_mode == "gspo-one-side"
    ratio: Any = None  # a tensor, as the next, where it is read
    mean_log_ratio: Any = None
    keep = None
    if by_sequence or objective.weight == "gspo_importance_sampling":
        mean_log_ratio = (sums["log_ratio"] / tokens.clamp(min=1)).unsqueeze(-1)
    if objective.clip_mode != "none":
        compared = mean_log_ratio if by_sequence else log_ratio
        keep = clip_mask(objective, compared, advantages, out=scratch.keep, work=work, more_work=scratch.ratio)
        # Under the mask log rho = 0 and A = 0, which every clip mode keeps.
        sums["clipped"] = keep.shape[-1] - keep.sum(-1)
    if full or objective.weight == "importance_sampling":
        # In the place of log rho, where nobody reads that again.
        place = scratch.log_ratio if scratch.ratio is None else scratch.ratio
        ratio = torch.clamp(log_ratio, max=_LARGEST_LOG_RATIO, out=place).exp_()
    if full:
        sums |= _full_sums(log_ratio, ratio, advantages, keep, bits, scratch)
        sums["responses"] = tokens.clamp(max=1)

    ascent = advantages
    if objective.weight == "importance_sampling":
        ascent = ascent.mul_(ratio)
    elif objective.weight == "gspo_importance_sampling":
        ascent = ascent.mul_(mean_log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp())
    elif objective.weight == "advantage":
        ascent = ascent.mul_(torch.div(advantages, objective.temp, out=work).exp_())
    if keep is not None:
        ascent = ascent.mul_(keep)

    coef = objective.regularizer_coef
    logprob = _masked(logprob.to(dtype), bits, work)
    if coef and objective.regularizer == "forward-kl":
        sums["regulariser"] = -coef * logprob.sum(-1)
    sums["policy"] = logprob.mul_(ascent).sum(-1)
    if coef and objective.regularizer == "k2":
        sums["regulariser"] = coef * torch.square(log_ratio, out=work).sum(-1)
        ascent = ascent.sub_(log_ratio, alpha=2 * coef)
    elif coef and objective.regularizer == "k2-sequence":
        whole = sums["log_ratio"].unsqueeze(-1)
        sums["regulariser"] = coef * sums["log_ratio"].square()
        ascent = ascent.sub_(_masked((2 * coef * whole).expand_as(log_ratio), bits, work))
    elif coef and objective.regularizer == "forward-kl":
        ascent = ascent.add_(_masked(torch.full_like(log_ratio, coef), bits, work))
    else:
        sums["regulariser"] = torch.zeros_like(tokens)
    return ascent, sums


def _full_sums(log_ratio, ratio, advantages, keep, bits, scratch: _Scratch) -> dict[str, Tensor]:
    """What `metrics: full` needs besides, [rows] each."""
    sums = {"advantage": advantages.sum(-1)}
    sign = torch.sign(advantages, out=scratch.work)
    positive = torch.clamp(sign, min=0, out=scratch.more_work)
    sums["advantage+"] = positive.sum(-1)
    sums["advantage-"] = sums["advantage+"] - sign.sum(-1)
    if keep is not None:
        kept = positive.mul_(keep).sum(-1)
        sums["clipped+"] = sums["advantage+"] - kept
        sums["clipped-"] = sums["advantage-"] - (kept - sign.mul_(keep).sum(-1))
    sums["k3"] = torch.sub(ratio, 1, out=scratch.work).sub_(log_ratio).sum(-1)
    counted = _masked(ratio, bits, scratch.work)
    sums["ratio"] = counted.sum(-1)
    sums["ratio_max"] = counted.amax(-1) if counted.shape[-1] else sums["ratio"]
    sums["ratio^2"] = counted.square_().sum(-1)
    return sums


def _evaluate(
    objective: Objective,
    logprob: Tensor,
    old_logprob: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *normalisers: Any,
    wanted: bool,
) -> tuple[Tensor | None, list[str], Tensor, Tensor, Tensor, Tensor]:
    """`_terms` of the whole batch, block by block.

    Returns:
        The gradient over -n, [batch, response], where it is wanted; the names of the sums; and what `_weigh` returns.
    """
    batch, length = logprob.shape
    rows = min(max(1, _BLOCK // max(length, 1)), batch) if logprob.device.type == "cpu" else batch
    in_place = wanted and logprob.dtype in _EXACT
    scratch = _Scratch.empty(objective, rows, length, logprob, in_place)
    ascent = torch.empty_like(logprob) if wanted else None
    blocks = zip(
        *(x.split(rows) for x in (logprob, old_logprob, mask, advantages)),
        repeat(None) if ascent is None else ascent.split(rows),
        strict=False,
    )
    tables = []
    for *inputs, out in blocks:
        if len(inputs[0]) < rows:
            scratch = _Scratch(*(x if x is None else x[: len(inputs[0])] for x in scratch))
        if in_place:
            scratch = scratch._replace(ascent=out)
        block, sums = _terms(objective, *inputs, scratch=scratch)
        if wanted and not in_place:
            sums["gradient"] = out.copy_(block).sum(-1, dtype=torch.float32)
        tables.append(torch.stack(list(sums.values())))
    table = torch.cat(tables, dim=1) if len(tables) > 1 else tables[0]
    return ascent, list(sums), *_weigh(objective, list(sums), table, *normalisers)


def _weigh(
    objective: Objective,
    names: list[str],
    table: Tensor,
    sample_weight: Tensor | None,
    count: int | Tensor | None,
    dp_size: int | Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The average.

    Args:
        names, table: the sums over each response's tokens, [names, batch].
        count: what the average is over, tokens or responses; None counts the tokens of the table.

    Returns:
        The table in float64, its policy and regulariser times n; its totals over the batch, [names]; the loss; and n,
        what a token of each response counts, [batch] or [1].
    """
    dtype = table.dtype
    table = table.double()
    tokens = table[names.index("tokens")]
    count = tokens.sum() if count is None else torch.as_tensor(count)
    scale = dp_size / count.to(tokens).clamp(min=1).reshape(1)
    if objective.loss_agg_mode == "seq-mean-token-sum-norm" and objective.loss_scale_factor is not None:
        scale = scale / objective.loss_scale_factor
    if objective.loss_agg_mode == "seq-mean-token-mean":
        scale = scale / tokens.clamp(min=1)
    if sample_weight is not None:
        scale = scale * sample_weight.to(scale).flatten()
    table[: len(_WEIGHTED)].mul_(scale)
    totals = table.sum(-1)
    if "ratio_max" in names and len(tokens):
        largest = names.index("ratio_max")
        totals[largest] = table[largest].max()
    return table, totals, (totals[1] - totals[0]).to(dtype), scale.to(dtype)


@cache
def _compiled(objective: Objective) -> Callable[..., tuple | None]:
    """`_evaluate` compiled for an objective; it returns None where it cannot be compiled, and warns the first time."""

    def evaluate(logprob, old_logprob, mask, advantages, ones, *normalisers):
        # One factor a row keeps the generated loops two-dimensional, so that the sums over rows are fused into them.
        ascent, sums = _terms(objective, logprob, old_logprob, mask.to(ones), advantages * ones, scratch=_Scratch())
        if logprob.dtype not in _EXACT:
            ascent = ascent.to(logprob.dtype)
            sums["gradient"] = ascent.sum(-1, dtype=torch.float32)
        table = torch.stack(list(sums.values()))
        return ascent, list(sums), *_weigh(objective, list(sums), table, *normalisers)

    # Dynamo keeps a few compilations for each code object: every objective has its own.
    evaluate.__code__ = evaluate.__code__.replace()
    # Everything in one loop: nothing here is worth a tensor of its own for being read twice, or for being long.
    options: dict[str, Any] = {"realize_reads_threshold": 1000, "realize_opcount_threshold": 1000}
    run = torch.compile(evaluate, dynamic=True, fullgraph=True, options=options)
    broken = False

    def attempt(logprob, old_logprob, mask, advantages, sample_weight, count, dp_size):
        nonlocal broken
        if broken:
            return None
        ones = torch.ones(len(mask), 1, dtype=torch.promote_types(logprob.dtype, torch.float32), device=mask.device)
        if count is not None:  # as a number it would be compiled in
            count = torch.as_tensor(count, dtype=torch.float64, device=mask.device)
        mask = mask.view(torch.uint8)  # has vector loads, unlike bool
        try:
            return run(logprob, old_logprob, mask, advantages, ones, sample_weight, count, dp_size)
        except Exception as error:
            broken = True
            reason = next(iter(str(error).splitlines()), "")
            warnings.warn(f"compile=True has no effect here: {type(error).__name__}: {reason}", stacklevel=5)
            return None

    return attempt


class _WithGradient(torch.autograd.Function):
    """A loss with its gradient, -scale * ascent, where scale is [rows] or a scalar; the backward pass multiplies."""

    @staticmethod
    def forward(ctx, logprob, loss, ascent, scale):
        ctx.shape, ctx.ascent, ctx.scale = logprob.shape, ascent, scale
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_gradient):
        if ctx.ascent is None:
            raise RuntimeError("the gradient of this loss was handed out already: call the objective again")
        ascent, ctx.ascent = ctx.ascent, None
        return ascent.mul_((loss_gradient * ctx.scale).neg_().unsqueeze(-1)).view(ctx.shape), None, None, None


_WEIGHTED = ("policy", "regulariser")
_WITNESSES = ("log_ratio", "advantage", "gradient")


def _is_finite(total: dict[str, float], dtype: torch.dtype) -> bool:
    """Whether loss and gradient are finite numbers of this type: whatever is not shows in one of these sums."""
    loss = abs(total["regulariser"] - total["policy"])
    return loss <= torch.finfo(dtype).max and all(math.isfinite(total[name]) for name in _WITNESSES if name in total)


def _why_not_finite(
    logprob: Tensor,
    old_logprob: Tensor,
    mask: Tensor,
    advantages: Tensor,
    sums: dict[str, Tensor],
    scale: Tensor,
    dimensions: int,
) -> str:
    """The first token, or response, that keeps a loss from being finite, in one line; here transfers may cost."""
    found = []
    for name, x in (("logprob", logprob), ("old_logprob", old_logprob), ("advantages", advantages)):
        for row, token in (mask & ~x.isfinite()).nonzero()[:1].tolist():
            found.append((row, token, name, float(x[row, token])))
    if found:
        row, token, name, value = min(found)
        place = f"{row}, {token}" if dimensions == 2 else f"{token}"
        return f"{name}[{place}] is {value}: the loss of a token that counts needs a finite number"
    if not scale.isfinite().all():
        return "sample_weight, batch_num_tokens, global_batch_size or dp_size is not a finite number"
    by_row = torch.stack([sums[name] for name in (*_WEIGHTED, *_WITNESSES) if name in sums])
    for row in (~by_row.sum(0).isfinite()).nonzero()[:1].flatten().tolist():
        log_ratio = (logprob[row].double() - old_logprob[row].double())[mask[row]]
        largest = float(advantages[row][mask[row]].abs().max())
        return (
            f"the loss of response {row} overflows: log ratios from {float(log_ratio.min()):.3g} to "
            f"{float(log_ratio.max()):.3g}, advantages up to {largest:.3g}"
        )
    return "the loss overflows, although that of each response does not"


def _metrics(objective: Objective, total: dict[str, float], batch: int) -> dict[str, float]:
    """The metrics of a call on `batch` responses, from the totals of its sums.

    basic: pg_loss (the policy term, without the regulariser), regularizer_loss (where there is one), pg_clipfrac (share
    of the tokens whose gradient is clipped away) and kl_k1 (mean of log pi_old - log pi_theta, which estimates
    KL(pi_old || pi_theta)). full adds kl_k3 (mean of rho - 1 - log rho: the same KL with less variance),
    pg_clipfrac_positive and _negative (of the tokens with A > 0, A < 0), ratio_mean, ratio_max, effective_sample_size
    ((sum rho)^2 / sum rho^2, as a share of the tokens), advantage_mean, regularizer_share (of |policy| + |regulariser|)
    and masked_fraction (share of the responses without any token in the loss).
    """

    def share(part: str, whole: str = "tokens") -> float:
        return total.get(part, 0.0) / total[whole] if total[whole] else 0.0

    metrics = {"pg_loss": -total["policy"], "pg_clipfrac": share("clipped"), "kl_k1": -share("log_ratio")}
    if objective.regularizer != "none":
        metrics["regularizer_loss"] = total["regulariser"]
    if objective.metrics == "full":
        policy, regulariser = abs(total["policy"]), abs(total["regulariser"])
        metrics |= {
            "kl_k3": share("k3"),
            "pg_clipfrac_positive": share("clipped+", "advantage+"),
            "pg_clipfrac_negative": share("clipped-", "advantage-"),
            "ratio_mean": share("ratio"),
            "ratio_max": total["ratio_max"],
            "effective_sample_size": share("ratio") ** 2 / share("ratio^2") if total["ratio^2"] else 0.0,
            "advantage_mean": share("advantage"),
            "regularizer_share": regulariser / (policy + regulariser) if policy + regulariser else 0.0,
            "masked_fraction": 1 - total["responses"] / batch if batch else 0.0,
        }
    return metrics
