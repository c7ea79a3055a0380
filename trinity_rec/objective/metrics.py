"""What a call of the loss reports, from sums over each response's tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from trinity_rec.objective.tokens import Tokens, total

if TYPE_CHECKING:
    from trinity_rec.objective.rules import Parts


def full_sums(x: Tokens, keep: Tensor | None) -> dict[str, Tensor]:
    """What `metrics: full` needs besides, [rows, 1] each; `keep` is M, if there is a clip mode."""
    sign = x.advantages.sign()
    sums = {"advantage": total(x.advantages), "advantage+": total(sign.clamp(min=0))}
    sums["advantage-"] = sums["advantage+"] - total(sign)
    if keep is not None:
        sign *= keep
        kept = total(sign.clamp(min=0))
        sums["clipped+"] = sums["advantage+"] - kept
        sums["clipped-"] = sums["advantage-"] - (kept - total(sign))
    del sign
    ratio = x.ratio * x.mask
    sums["ratio"] = total(ratio)
    sums["k3"] = sums["ratio"] - x.count - x.sum_log_ratio
    sums["ratio_max"] = ratio.amax(-1, keepdim=True) if ratio.shape[-1] else sums["ratio"]
    sums["ratio^2"] = total(ratio.square_())
    sums["responses"] = x.count.clamp(max=1)
    return sums


def summary(parts: Parts, totals: dict[str, float], batch: int, length: int) -> dict[str, float]:
    """The metrics of a call on `batch` responses of `length`, from the totals of its sums.

    basic: pg_loss (the policy term, without the regulariser), regularizer_loss (where there is one), pg_clipfrac (share
    of the tokens whose gradient is clipped away), pg_capfrac (share of those whose weight is capped, where the weight
    has a cap) and kl_k1 (mean of log mu - log pi_theta, which estimates KL(mu || pi_theta)). full adds kl_k3 (mean of
    rho - 1 - log rho: the same KL with less variance), pg_clipfrac_positive and _negative (of the tokens with A > 0, A
    < 0), ratio_mean, ratio_max, effective_sample_size ((sum rho)^2 / sum rho^2, as a share of the tokens),
    advantage_mean, regularizer_share (of |policy| + |regulariser|) and masked_fraction (share of the responses without
    any token in the loss).
    """

    def share(part: str, whole: str = "tokens") -> float:
        return totals.get(part, 0.0) / totals[whole] if totals[whole] else 0.0

    if "kept" in totals:
        totals["clipped"] = batch * length - totals["kept"]
    metrics = {"pg_loss": -totals["policy"], "pg_clipfrac": share("clipped"), "kl_k1": -share("log_ratio")}
    if "capped" in totals:
        metrics["pg_capfrac"] = share("capped")
    if parts.regularizer is not None:
        metrics["regularizer_loss"] = totals["regulariser"]
    if parts.full:
        policy, regulariser = abs(totals["policy"]), abs(totals.get("regulariser", 0.0))
        metrics |= {
            "kl_k3": share("k3"),
            "pg_clipfrac_positive": share("clipped+", "advantage+"),
            "pg_clipfrac_negative": share("clipped-", "advantage-"),
            "ratio_mean": share("ratio"),
            "ratio_max": totals["ratio_max"],
            "effective_sample_size": share("ratio") ** 2 / share("ratio^2") if totals["ratio^2"] else 0.0,
            "advantage_mean": share("advantage"),
            "regularizer_share": regulariser / (policy + regulariser) if policy + regulariser else 0.0,
            "masked_fraction": 1 - totals["responses"] / batch if batch else 0.0,
        }
    return metrics
