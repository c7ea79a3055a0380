"""The policy objective of the REC, REP and RED-Weight algorithms, in pure torch.

Its gradient is its specification. For response i and token t, with the importance ratio
rho = pi_theta / pi_old, the clip mask M and the data weight w both held constant (arXiv 2509.24203, sections 2 to 4):

    dL / dlogprob[i, t] = n[i] * ( -M[i, t] * w[i, t] * A[i, t]  +  d regulariser / dlogprob[i, t] )

where n[i] averages over tokens or over responses. The gradient is in closed form, so the loss writes it down while the
inputs are in cache and hands it to autograd: one pass over memory, one stored tensor, no graph.

    objective = Objective(clip_mode="one-side", weight="importance_sampling")
    loss, metrics = objective(logprob, old_logprob, mask, advantages)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from numbers import Real

import torch
from torch import Tensor

CLIP_MODES = ("none", "one-side", "two-side", "ring", "gspo-one-side")
WEIGHTS = ("none", "importance_sampling", "gspo_importance_sampling", "advantage")
REGULARIZERS = ("none", "k2", "k2-sequence", "forward-kl")
LOSS_AGG_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
METRICS = ("basic", "full")
_MAY_BE_INFINITE = ("epsilon_high", "epsilon_high_prime", "temp")

# Elements of a row block on the CPU: a handful of float32 blocks of this size fit in a core's second-level cache.
_BLOCK = 32_768


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
        loss_scale_factor: a count of tokens for "seq-mean-token-sum-norm", the same for every response. None takes the
            response dimension of each call, which on verl differs between micro-batches.
        metrics: "basic" (loss, clip fraction, KL) or "full".

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
        batch_num_tokens: int | None = None,
        global_batch_size: int | None = None,
        dp_size: int = 1,
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
        """
        if logprob.dim() not in (1, 2) or not logprob.is_floating_point():
            raise ValueError(
                f"logprob must be a floating-point [batch, response] or [response] tensor, "
                f"got {logprob.dtype} {list(logprob.shape)}"
            )
        for name, tensor in (("old_logprob", old_logprob), ("mask", mask), ("advantages", advantages)):
            if tensor.shape != logprob.shape:
                raise ValueError(f"{name} has shape {list(tensor.shape)}, logprob {list(logprob.shape)}")
        if logprob.dim() == 1:
            logprob, old_logprob, mask, advantages = (x.unsqueeze(0) for x in (logprob, old_logprob, mask, advantages))
        row_scale = self._row_scale(logprob, mask, batch_num_tokens, global_batch_size, dp_size)
        if sample_weight is not None:
            row_scale = row_scale * sample_weight.to(row_scale).reshape(-1, 1)
        loss, sums = _ClosedForm.apply(logprob, old_logprob, mask, advantages, row_scale, self)
        return loss, _metrics(self, sums, mask)

    def _row_scale(self, logprob, mask, batch_num_tokens, global_batch_size, dp_size) -> Tensor:
        """n, [batch, 1] or [1, 1]: what a token of each response counts in the average."""
        dtype = torch.promote_types(logprob.dtype, torch.float32)
        if self.loss_agg_mode == "token-mean":
            count = mask.count_nonzero() if batch_num_tokens is None else torch.as_tensor(batch_num_tokens)
        else:
            count = torch.as_tensor(len(logprob) if global_batch_size is None else global_batch_size)
        scale = dp_size / count.to(logprob.device, dtype).clamp(min=1).reshape(1, 1)
        if self.loss_agg_mode == "seq-mean-token-sum-norm":
            scale = scale / (self.loss_scale_factor or max(logprob.shape[-1], 1))
        if self.loss_agg_mode == "seq-mean-token-mean":
            scale = scale / mask.count_nonzero(dim=-1).to(dtype).clamp(min=1).unsqueeze(-1)
        return scale


def clip_mask(objective: Objective, ratio: Tensor, advantages: Tensor) -> Tensor:
    """M, where a token keeps its policy gradient (table of section 2). A token with A = 0 is kept by one-side clipping.

    Args:
        ratio: rho, or the sequence ratio for "gspo-one-side"; broadcasts against `advantages`.
        advantages: A, any shape.

    Returns:
        A boolean tensor of the broadcast shape.
    """
    low, high = 1 - objective.epsilon_low, 1 + objective.epsilon_high
    if objective.clip_mode in ("one-side", "gspo-one-side"):
        return ((ratio <= high) & (advantages >= 0)) | ((ratio >= low) & (advantages <= 0))
    inside = (ratio >= low) & (ratio <= high)
    if objective.clip_mode == "two-side":
        return inside
    if objective.clip_mode == "ring":
        too_rare = (ratio <= 1 - objective.epsilon_low_prime) & (advantages >= 0)
        too_likely = (ratio >= 1 + objective.epsilon_high_prime) & (advantages <= 0)
        return inside | too_rare | too_likely
    return torch.ones_like(inside)


class _ClosedForm(torch.autograd.Function):
    """Loss, sums and gradient in one pass over blocks of rows; the backward pass only scales the stored gradient."""

    @staticmethod
    def forward(ctx, logprob, old_logprob, mask, advantages, row_scale, objective):
        dtype = torch.promote_types(logprob.dtype, torch.float32)
        gradient = torch.empty_like(logprob) if ctx.needs_input_grad[0] else None
        batch, length = logprob.shape
        rows = max(1, _BLOCK // max(length, 1) if logprob.device.type == "cpu" else batch)
        sums = []
        for start in range(0, max(batch, 1), rows):
            block = slice(start, start + rows)
            block_gradient, block_sums = _block(
                objective,
                logprob[block].to(dtype),
                old_logprob[block].to(dtype),
                mask[block].to(torch.bool),
                advantages[block].to(dtype),
                row_scale[block] if len(row_scale) > 1 else row_scale,
            )
            sums.append(block_sums)
            if gradient is not None:
                gradient[block] = block_gradient
        sums = torch.stack(sums)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(sums)
        return sums[:, :2].sum(dtype=torch.float64).to(dtype), sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, loss_gradient, _):
        if ctx.gradient is None:
            raise RuntimeError("the gradient of this loss was handed out already: call the objective again")
        gradient, ctx.gradient = ctx.gradient, None
        return gradient.mul_(loss_gradient), None, None, None, None, None


# What a block reports: sums over its tokens, and the largest ratio; the second line for "full" metrics only.
_BASIC = ("policy", "regulariser", "clipped", "log_ratio")
_FULL = (
    "clipped+",
    "clipped-",
    "advantage+",
    "advantage-",
    "advantage",
    "ratio",
    "ratio^2",
    "k3",
    "ratio_max",
)


def _block(objective, logprob, old_logprob, mask, advantages, scale) -> tuple[Tensor, Tensor]:
    """The gradient of a block of rows, [rows, response], and its sums; mask is boolean, scale is n."""
    log_ratio = (logprob - old_logprob).masked_fill_(~mask, 0)
    logprob = logprob.masked_fill(~mask, 0)
    advantages = advantages.masked_fill(~mask, 0)
    full = objective.metrics == "full"

    clip_sequence = objective.clip_mode == "gspo-one-side"
    ratio = sequence_ratio = None
    if full or objective.weight == "importance_sampling" or objective.clip_mode in ("one-side", "two-side", "ring"):
        ratio = log_ratio.exp()
    if clip_sequence or objective.weight == "gspo_importance_sampling":
        sequence_ratio = (log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)).exp()

    weighted = advantages
    if objective.weight == "importance_sampling":
        weighted = advantages * ratio
    elif objective.weight == "gspo_importance_sampling":
        weighted = advantages * sequence_ratio
    elif objective.weight == "advantage":
        weighted = advantages * (advantages / objective.temp).exp()
    clipped = None
    if objective.clip_mode != "none":
        keep = clip_mask(objective, sequence_ratio if clip_sequence else ratio, advantages)
        weighted = weighted.masked_fill(~keep, 0)
        clipped = mask & ~keep
    gradient = weighted * -scale
    policy = (gradient * logprob).sum()

    regulariser = logprob.new_zeros(())
    if objective.regularizer != "none" and objective.regularizer_coef > 0:
        pull = objective.regularizer_coef * scale
        if objective.regularizer == "k2":
            pull = 2 * pull * log_ratio
            regulariser = (pull * log_ratio).sum() / 2
        elif objective.regularizer == "k2-sequence":
            pull = 2 * pull * log_ratio.sum(-1, keepdim=True) * mask
            regulariser = (pull * log_ratio).sum() / 2
        else:
            pull = -pull * mask
            regulariser = (pull * logprob).sum()
        gradient += pull

    zero = logprob.new_zeros(())
    sums = [policy, regulariser, zero if clipped is None else clipped.sum(), log_ratio.sum()]
    if full:
        positive, negative = advantages > 0, advantages < 0
        sums += [zero, zero] if clipped is None else [(clipped & positive).sum(), (clipped & negative).sum()]
        ratio = ratio.masked_fill(~mask, 0)
        sums += [positive.sum(), negative.sum(), advantages.sum(), ratio.sum(), ratio.square().sum()]
        sums += [(ratio - 1 - log_ratio).masked_fill(~mask, 0).sum(), ratio.max() if ratio.numel() else zero]
    return gradient, torch.stack([x.to(torch.float64) for x in sums])


def _metrics(objective: Objective, sums: Tensor, mask: Tensor) -> dict[str, float]:
    """The metrics of a call, with one transfer from the device.

    basic: pg_loss (the policy term, without the regulariser), regularizer_loss (where there is one), pg_clipfrac (share
    of the tokens whose gradient is clipped away) and kl_k1 (mean of log pi_old - log pi_theta, which estimates
    KL(pi_old || pi_theta)). full adds kl_k3 (mean of rho - 1 - log rho: the same KL with less variance),
    pg_clipfrac_positive and _negative (of the tokens with A > 0, A < 0), ratio_mean, ratio_max, effective_sample_size
    ((sum rho)^2 / sum rho^2, as a share of the tokens), advantage_mean, regularizer_share (of |policy| + |regulariser|)
    and masked_fraction (share of the responses without any token in the loss).
    """
    full = objective.metrics == "full"
    totals = sums.sum(0)
    if full:
        totals[-1] = sums[:, -1].max()
    names = [*_BASIC, *(_FULL if full else ()), "tokens", "responses"]
    counts = torch.stack([mask.count_nonzero(), mask.any(-1).count_nonzero()])
    total = dict(zip(names, torch.cat([totals, counts.to(totals)]).tolist(), strict=True))

    def share(part: str, whole: str = "tokens") -> float:
        return total[part] / total[whole] if total[whole] else 0.0

    metrics = {"pg_loss": total["policy"], "pg_clipfrac": share("clipped"), "kl_k1": -share("log_ratio")}
    if objective.regularizer != "none":
        metrics["regularizer_loss"] = total["regulariser"]
    if full:
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
            "masked_fraction": 1 - total["responses"] / len(mask) if len(mask) else 0.0,
        }
    return metrics
