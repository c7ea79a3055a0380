"""The gradient of any composition in the paper's notation, put together from its rules' formulas.

Plain ASCII: rho is the importance ratio of a token, s = exp(mean_t log rho) and W = prod_t rho are those of its
response, r is the reward, mean and std are those of the group, and A is the advantage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from trinity_rec.objective.average import usual_average
from trinity_rec.objective.rules import RULES, formula

_AVERAGES = {
    "seq-mean-token-mean": "mean over tokens in each response, then over responses",
    "seq-mean-token-sum": "sum over tokens in each response, mean over responses",
    "seq-mean-token-sum-norm": "sum over tokens in each response over loss_scale_factor, mean over responses",
}
_STATISTICS = {
    "s": "s = exp(mean_t log rho)",
    "W": "W = prod_t rho",
    "ESS": "ESS = (sum rho)^2 / (n sum rho^2) over the n tokens of the batch",
}


def gradient(policy_loss: Mapping[str, Any], advantage: Mapping[str, Any]) -> str:
    """The direction of ascent of one token, to be averaged over the batch.

    Args:
        policy_loss: arguments of `Objective`; what is left out has its default.
        advantage: arguments of `Shaping`; likewise.
    """
    clip, weight, pull = (formula(kind, policy_loss.get(kind, "none")) for kind in list(RULES)[:3])
    defined = [_advantage(advantage)]
    if clip:
        defined.append(f"M = {clip}")
    if weight and not _fits_in_place(weight):
        defined.append(f"w = {weight}")
        weight = "w"
    if advantage.get("reweight"):
        weight = f"{weight} exp(A / T)".strip()
    push = " ".join(filter(None, ("M" if clip else "", weight, "A")))
    if pull:
        push = f"({push} + {pull[1:]})" if pull.startswith("-") else f"({push} - {pull})"
    text = f"{push} grad log pi, {', '.join(defined)}"
    text += "".join(f", {said}" for name, said in _STATISTICS.items() if _mentions(text, name) and said not in text)
    average = policy_loss.get("loss_agg_mode") or usual_average(policy_loss.get("clip_mode"))
    later = [_AVERAGES.get(average), *_remarks(advantage)]
    return "; ".join(filter(None, (text, *later)))


def _advantage(advantage: Mapping[str, Any]) -> str:
    if pairwise := advantage.get("pairwise"):
        weights = {"uniform": "1", "reward-gap": "|r_i - r_j|", "product": "w_i w_j, w_i = exp((r_i - mean) / temp)"}
        return f"A_i = (1/K) sum_j w_ij (r_i - r_j), w_ij = {weights[pairwise]}"
    mean = "mean_S" if advantage.get("drop") else "mean"
    if advantage.get("std_normalize"):
        return f"A = (r - {mean}) / (std + {_short(advantage.get('epsilon', 1e-6))})"
    return f"A = r - {mean}"


def _remarks(advantage: Mapping[str, Any]) -> list[str]:
    remarks = []
    if advantage.get("drop"):
        zero = advantage.get("drop_form", "zero") == "zero"
        remarks.append(
            f"extra negatives of a group dropped at random{' (A = 0)' if zero else ''}, S are the kept responses"
        )
    if advantage.get("reweight"):
        remarks.append(f"T solves sum A exp(A / T) = 0, T >= {advantage.get('reweight_floor', 0.8):g}")
    return remarks


def _fits_in_place(weight: str) -> bool:
    return re.fullmatch(r"\w+(\([^,()]*\))?", weight) is not None


def _mentions(text: str, name: str) -> bool:
    return re.search(rf"(?<![\w'.]){name}(?![\w'])", text) is not None


def _short(number: float) -> str:
    return f"{number:g}".replace("e-0", "e-")
