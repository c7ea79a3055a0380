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
from numbers import Real
from typing import Any

import torch
from torch import Tensor

CLIP_MODES = ("none", "one-side", "two-side", "ring", "gspo-one-side")
WEIGHTS = ("none", "importance_sampling", "gspo_importance_sampling", "advantage")
REGULARIZERS = ("none", "k2", "k2-sequence", "forward-kl")
LOSS_AGG_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
METRICS = ("basic", "full")
_MAY_BE_INFINITE = ("epsilon_high", "epsilon_high_prime", "temp")

# Elements of a block of rows on the CPU: ten float32 blocks of this size fit in a core's second-level cache.
_BLOCK = 32_768

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
        with torch.no_grad():
            mask = mask.to(torch.bool)
            ascent, sums = _evaluate(self, logprob.detach(), old_logprob, mask, advantages, wanted)
            scale = self._scale(sums["tokens"], batch_num_tokens, global_batch_size, dp_size)
            if sample_weight is not None:
                scale = scale * sample_weight.to(scale).flatten()
            sums["policy"] *= -scale
            sums["regulariser"] *= scale
            loss = (sums["policy"] + sums["regulariser"]).sum().to(torch.promote_types(logprob.dtype, torch.float32))
            total = _totals(sums)
            if not _is_finite(total, loss.dtype):
                raise FloatingPointError(
                    _why_not_finite(logprob, old_logprob, mask, advantages, sums, scale, dimensions)
                )
        if wanted:
            loss = _WithGradient.apply(logprob, loss, ascent, -scale.to(loss.dtype).unsqueeze(-1))
        return loss, _metrics(self, total, len(logprob))

    def _scale(self, tokens, batch_num_tokens, global_batch_size, dp_size) -> Tensor:
        """n, [batch] or [1]: what a token of each response counts in the average; `tokens` is float64, [batch]."""
        if self.loss_agg_mode == "token-mean":
            count = tokens.sum() if batch_num_tokens is None else torch.as_tensor(batch_num_tokens)
        else:
            count = torch.as_tensor(len(tokens) if global_batch_size is None else global_batch_size)
        scale = dp_size / count.to(tokens).clamp(min=1).reshape(1)
        if self.loss_agg_mode == "seq-mean-token-sum-norm":
            scale = scale / self.loss_scale_factor
        if self.loss_agg_mode == "seq-mean-token-mean":
            scale = scale / tokens.clamp(min=1)
        return scale


# On a CPU a comparison that yields bool, and whatever reads bool, takes four to fifteen times as long as arithmetic on
# floats. So M is a float here, 1.0 or 0.0 (in-place comparisons keep the dtype), and padding is zeroed by its bits.


def clip_mask(objective: Objective, ratio: Tensor, advantages: Tensor) -> Tensor:
    """M (table of section 2): 1 where a token keeps its policy gradient, 0 where it is clipped.

    Args:
        ratio: rho, or the sequence ratio for "gspo-one-side"; broadcasts against `advantages`.
        advantages: A, any shape. Where it is 0, one-side clipping keeps the token.

    Returns:
        A tensor of the dtype of `ratio` and the broadcast shape.
    """
    low, high = 1 - objective.epsilon_low, 1 + objective.epsilon_high
    if objective.clip_mode == "none":
        return torch.ones_like(ratio * advantages)
    if objective.clip_mode in ("one-side", "gspo-one-side"):
        # rho <= high where A > 0, rho >= low where A < 0: PPO's minimum is the unclipped term.
        sign = advantages.sign()
        bound = sign * ratio.clamp(low, high)
        return sign.mul_(ratio).le_(bound)
    band = _within(ratio, low, high)
    if objective.clip_mode == "two-side":
        return band
    too_rare = _within(ratio, None, 1 - objective.epsilon_low_prime).mul_(_within(advantages, 0, None))
    too_likely = _within(ratio, 1 + objective.epsilon_high_prime, None).mul_(_within(advantages, None, 0))
    return torch.maximum(band, too_rare.add_(too_likely))


def _within(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """1.0 where low <= x <= high, else 0.0."""
    return x.clamp(low, high).eq_(x)


def _bits(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """-1, which is all bits set, where the boolean mask is true, else 0: integers as wide as `dtype`."""
    if torch.compiler.is_compiling():
        return mask
    return mask.view(torch.uint8).to(torch.int64 if dtype == torch.float64 else torch.int32).neg_()


def _masked(x: Tensor, bits: Tensor, out: Tensor | None = None) -> Tensor:
    """x where the bits are set, 0 elsewhere, whatever x holds there."""
    if torch.compiler.is_compiling():
        return torch.where(bits != 0, x, 0.0)
    out = torch.empty_like(x) if out is None else out
    torch.bitwise_and(x.view(bits.dtype), bits, out=out.view(bits.dtype))
    return out


def _terms(
    objective: Objective,
    logprob: Tensor,
    old_logprob: Tensor,
    mask: Tensor,
    advantages: Tensor,
    *,
    out: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The gradient of some responses, and the sums over each response's tokens that loss and metrics are made of.

    Works in place on what it has made itself, so that a block's temporaries stay in cache.

    Args:
        logprob, old_logprob, mask, advantages: [rows, response]; the mask is boolean, or 0 and 1 when compiled.
        out: where the gradient goes, if it has the dtype of the arithmetic.

    Returns:
        M w A - d regulariser / d logprob, which is the gradient over -n, [rows, response]; and the sums, [rows] each.
    """
    dtype = torch.promote_types(logprob.dtype, torch.float32)
    bits = _bits(mask, dtype)
    log_ratio = logprob.to(dtype) - old_logprob.to(dtype)
    log_ratio = _masked(log_ratio, bits, out=log_ratio)
    logprob = _masked(logprob.to(dtype), bits)
    advantages = _masked(advantages.to(dtype), bits, out=out)
    tokens = bits.sum(-1, dtype=bits.dtype).abs().to(dtype)
    sums = {"tokens": tokens, "log_ratio": log_ratio.sum(-1)}

    full = objective.metrics == "full"
    by_sequence = objective.clip_mode == "gspo-one-side"
    keep = None
    ratio: Any = None  # a tensor, as the next, where it is read
    sequence_ratio: Any = None
    if full or objective.weight == "importance_sampling" or objective.clip_mode in ("one-side", "two-side", "ring"):
        ratio = log_ratio.clamp(max=_LARGEST_LOG_RATIO).exp_()
    if by_sequence or objective.weight == "gspo_importance_sampling":
        mean_log_ratio = sums["log_ratio"] / tokens.clamp(min=1)
        sequence_ratio = mean_log_ratio.clamp_(max=_LARGEST_LOG_RATIO).exp_().unsqueeze(-1)
    if objective.clip_mode != "none":
        keep = clip_mask(objective, sequence_ratio if by_sequence else ratio, advantages)
        # Under the mask log rho = 0 and A = 0, which every clip mode keeps.
        sums["clipped"] = keep.shape[-1] - keep.sum(-1)
    if full:
        sums |= _full_sums(log_ratio, ratio, advantages, keep, bits)

    ascent = advantages
    if objective.weight == "importance_sampling":
        ascent = ascent.mul_(ratio)
    elif objective.weight == "gspo_importance_sampling":
        ascent = ascent.mul_(sequence_ratio)
    elif objective.weight == "advantage":
        ascent = ascent.mul_((advantages / objective.temp).exp_())
    if keep is not None:
        ascent = ascent.mul_(keep)

    coef = objective.regularizer_coef
    if coef and objective.regularizer == "forward-kl":
        sums["regulariser"] = -coef * logprob.sum(-1)
    sums["policy"] = logprob.mul_(ascent).sum(-1)
    if coef and objective.regularizer == "k2":
        sums["regulariser"] = coef * log_ratio.square().sum(-1)
        ascent = ascent.sub_(log_ratio, alpha=2 * coef)
    elif coef and objective.regularizer == "k2-sequence":
        whole = sums["log_ratio"].unsqueeze(-1)
        sums["regulariser"] = coef * sums["log_ratio"].square()
        ascent = ascent.sub_(_masked((2 * coef * whole).expand_as(log_ratio), bits))
    elif coef and objective.regularizer == "forward-kl":
        ascent = ascent.add_(_masked(torch.full_like(log_ratio, coef), bits))
    return ascent, sums


def _full_sums(log_ratio, ratio, advantages, keep, bits) -> dict[str, Tensor]:
    """What `metrics: full` needs besides, [rows] each."""
    sign = advantages.sign()
    positive = sign.clamp(min=0)
    negative = positive - sign
    counted = _masked(ratio, bits)
    sums = {
        "advantage": advantages.sum(-1),
        "advantage+": positive.sum(-1),
        "advantage-": negative.sum(-1),
        "k3": (ratio - 1).sub_(log_ratio).sum(-1),
        "ratio": counted.sum(-1),
        "ratio_max": counted.amax(-1) if counted.shape[-1] else counted.sum(-1),
        "ratio^2": counted.square_().sum(-1),
    }
    if keep is not None:
        sums["clipped+"] = sums["advantage+"] - positive.mul_(keep).sum(-1)
        sums["clipped-"] = sums["advantage-"] - negative.mul_(keep).sum(-1)
    return sums


def _evaluate(
    objective: Objective, logprob: Tensor, old_logprob: Tensor, mask: Tensor, advantages: Tensor, wanted: bool
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """`_terms` of the whole batch: the gradient over -n, where it is wanted, and the sums in float64, [batch] each."""
    ascent: Any  # a tensor, or None where it is not wanted
    result = _compiled(objective)(logprob, old_logprob, mask, advantages) if objective.compile else None
    if result is not None:
        ascent, sums = result
        ascent = ascent.to(logprob.dtype)
        if logprob.dtype not in _EXACT:
            sums["gradient"] = ascent.sum(-1, dtype=torch.float32)
        table = torch.stack(list(sums.values()))
    else:
        batch, length = logprob.shape
        rows = max(1, _BLOCK // max(length, 1)) if logprob.device.type == "cpu" else max(batch, 1)
        ascent = torch.empty_like(logprob) if wanted else None
        in_place = wanted and logprob.dtype in _EXACT
        tables = []
        for start in range(0, max(batch, 1), rows):
            part = slice(start, start + rows)
            inputs = (x[part] for x in (logprob, old_logprob, mask, advantages))
            block, sums = _terms(objective, *inputs, out=ascent[part] if in_place else None)
            if wanted and not in_place:
                ascent[part] = block
                sums["gradient"] = ascent[part].sum(-1, dtype=torch.float32)
            tables.append(torch.stack(list(sums.values())))
        table = torch.cat(tables, dim=1)
    sums = dict(zip(sums, table.double(), strict=True))
    sums.setdefault("regulariser", torch.zeros_like(sums["policy"]))
    return ascent, sums


@cache
def _compiled(objective: Objective) -> Callable[..., tuple[Tensor, dict[str, Tensor]] | None]:
    """`_terms` compiled for an objective; it returns None where it cannot be compiled, and warns the first time."""

    def terms(logprob: Tensor, old_logprob: Tensor, mask: Tensor, advantages: Tensor, ones: Tensor):
        # One factor a row keeps the generated loops two-dimensional, so that the sums over rows are fused into them.
        return _terms(objective, logprob, old_logprob, mask, advantages * ones)

    run = torch.compile(terms, dynamic=True)
    broken = False

    def attempt(logprob: Tensor, old_logprob: Tensor, mask: Tensor, advantages: Tensor):
        nonlocal broken
        if broken:
            return None
        mask = mask.view(torch.uint8).to(torch.promote_types(logprob.dtype, torch.float32))  # vector loads, unlike bool
        try:
            return run(logprob, old_logprob, mask, advantages, mask.new_ones(len(mask), 1))
        except Exception as error:
            broken = True
            reason = next(iter(str(error).splitlines()), "")
            warnings.warn(f"compile=True has no effect here: {type(error).__name__}: {reason}", stacklevel=5)
            return None

    return attempt


class _WithGradient(torch.autograd.Function):
    """A loss with its gradient, scale * direction, where scale is [rows, 1] or [1, 1]; the backward pass multiplies."""

    @staticmethod
    def forward(ctx, logprob, loss, direction, scale):
        ctx.shape, ctx.direction, ctx.scale = logprob.shape, direction, scale
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_gradient):
        if ctx.direction is None:
            raise RuntimeError("the gradient of this loss was handed out already: call the objective again")
        direction, ctx.direction = ctx.direction, None
        return direction.mul_(loss_gradient * ctx.scale).view(ctx.shape), None, None, None


def _totals(sums: dict[str, Tensor]) -> dict[str, float]:
    """The sums over responses (of ratio_max, the largest): the one transfer from the device of a call."""
    sums = {**sums, "responses": sums["tokens"].clamp(max=1)}
    totals = [x.max() if name == "ratio_max" and len(x) else x.sum() for name, x in sums.items()]
    return dict(zip(sums, torch.stack(totals).tolist(), strict=True))


_WITNESSES = ("log_ratio", "advantage", "gradient")


def _is_finite(total: dict[str, float], dtype: torch.dtype) -> bool:
    """Whether loss and gradient are finite numbers of this type: whatever is not shows in one of these sums."""
    loss = abs(total["policy"] + total["regulariser"])
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
    by_row = torch.stack([sums[name] for name in ("policy", "regulariser", *_WITNESSES) if name in sums])
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

    metrics = {"pg_loss": total["policy"], "pg_clipfrac": share("clipped"), "kl_k1": -share("log_ratio")}
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
