"""The algorithms as a table: one row a preset, named as users type it in `algorithm_type: trinity_rec.<name>`.

A preset is a choice of the arguments of `trinity_rec.RECPolicyLoss` (see `objective.Objective`) and of
`trinity_rec.RECAdvantage` (see `plugin.advantage`); what a row leaves out keeps its default there. Sections are those
of "Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm" (arXiv 2509.24203). Gradients are ascended and
averaged
over the tokens of a batch: rho is the importance ratio, r the reward, mean and std are those of the group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """One algorithm.

    Attributes:
        name: what users type.
        family: "REC" (clipping), "REP" (a regulariser) or "RED" (data shaping).
        title: its name in the paper.
        gradient: the direction of ascent of one token, to be averaged over the batch.
        source: paper, section and what differs from it.
        when: when to use it, one sentence.
        policy_loss: arguments of RECPolicyLoss.
        advantage: arguments of RECAdvantage.
    """

    name: str
    family: str
    title: str
    gradient: str
    source: str
    when: str
    policy_loss: dict[str, Any] = field(default_factory=dict)
    advantage: dict[str, Any] = field(default_factory=dict)


ONE_SIDE = {"clip_mode": "one-side", "epsilon_low": 0.2, "epsilon_high": 0.2}
TWO_SIDE = {"clip_mode": "two-side", "epsilon_low": 0.2, "epsilon_high": 0.2}
RING = {
    "clip_mode": "ring",
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "epsilon_low_prime": 0.6,
    "epsilon_high_prime": 2.0,
}
GSPO = {"clip_mode": "gspo-one-side", "epsilon_low": 3e-4, "epsilon_high": 4e-4}
IS = {"weight": "importance_sampling"}

_M_ONE_SIDE = "1{A>=0, rho<=1+eps_high or A<=0, rho>=1-eps_low}"
_M_TWO_SIDE = "1{1-eps_low <= rho <= 1+eps_high}"
_M_RING = f"{_M_TWO_SIDE} or A>=0, rho<=1-eps'_low or A<=0, rho>=1+eps'_high"
_M_GSPO = "1{A>=0, s<=1+eps_high or A<=0, s>=1-eps_low}, s = exp(mean_t log rho)"
_REINFORCE = "A grad log pi, A = r - mean"

_ROWS = (
    Preset(
        "rec",
        "REC",
        "free composition",
        "M w A grad log pi, each part by its argument; without arguments that of rec_reinforce",
        "upstream's `rec`: all knobs, at neutral",
        "To compose a variant of your own, or to run a YAML written for upstream's `rec`.",
    ),
    Preset(
        "rec_reinforce",
        "REC",
        "REINFORCE",
        _REINFORCE,
        "section 2",
        "The baseline without any correction; on off-policy data it collapses (claim C3).",
    ),
    Preset(
        "rec_grpo",
        "REC",
        "GRPO",
        f"M rho A grad log pi, A = (r - mean) / (std + 1e-6), M = {_M_ONE_SIDE}",
        "section 2; the population std, as upstream's `rec`",
        "To compare with the common choice.",
        {**ONE_SIDE, **IS},
        {"std_normalize": True},
    ),
    Preset(
        "rec_oneside_is",
        "REC",
        "REC-OneSide-IS",
        f"M rho A grad log pi, A = r - mean, M = {_M_ONE_SIDE}",
        "section 2",
        "GRPO without the division by the std.",
        {**ONE_SIDE, **IS},
    ),
    Preset(
        "rec_oneside_nois",
        "REC",
        "REC-OneSide-NoIS",
        f"M A grad log pi, A = r - mean, M = {_M_ONE_SIDE}",
        "section 2",
        "The first one to try off-policy; the wide clip range (0.6, 2.0) learns faster where data are not too stale.",
        ONE_SIDE,
    ),
    Preset(
        "rec_twoside_is",
        "REC",
        "REC-TwoSide-IS",
        f"M rho A grad log pi, A = r - mean, M = {_M_TWO_SIDE}",
        "section 2",
        "Also drops tokens that moved far in the wrong direction.",
        {**TWO_SIDE, **IS},
    ),
    Preset(
        "rec_twoside_nois",
        "REC",
        "REC-TwoSide-NoIS",
        f"M A grad log pi, A = r - mean, M = {_M_TWO_SIDE}",
        "section 2",
        "As rec_twoside_is, without the importance weight.",
        TWO_SIDE,
    ),
    Preset(
        "rec_ring_is",
        "REC",
        "REC-Ring-IS",
        f"M rho A grad log pi, A = r - mean, M = 1 where {_M_RING}",
        "section 2",
        "As rec_ring_nois, with the importance weight.",
        {**RING, **IS},
    ),
    Preset(
        "rec_ring_nois",
        "REC",
        "REC-Ring-NoIS",
        f"M A grad log pi, A = r - mean, M = 1 where {_M_RING}",
        "section 2",
        "Keeps the narrow band and lets the far outside pull back: between the narrow and the wide clip range.",
        RING,
    ),
    Preset(
        "rec_gspo_is",
        "REC",
        "REC-GSPO-IS",
        f"M s A grad log pi, A = r - mean, M = {_M_GSPO}; mean over tokens in each response, then over responses",
        "not in the paper; upstream's `rec` with gspo-one-side",
        "Clips whole responses; for models whose token ratios are noisy (mixtures of experts).",
        {**GSPO, "weight": "gspo_importance_sampling"},
    ),
    Preset(
        "rec_gspo_nois",
        "REC",
        "REC-GSPO-NoIS",
        f"M A grad log pi, A = r - mean, M = {_M_GSPO}; mean over tokens in each response, then over responses",
        "not in the paper; upstream's `rec` with gspo-one-side",
        "As rec_gspo_is, without the sequence's importance weight.",
        GSPO,
    ),
    Preset(
        "rep_opmd",
        "REP",
        "OPMD",
        "(A - 2 coef log rho) grad log pi, A = r - mean",
        "section 3 (Kimi k1.5); per token and with the 1/2 in coef, as upstream; `k2-sequence` is the paper's square",
        "Regularises instead of clipping: every token keeps its gradient and is pulled back to the rollout policy.",
        {"regularizer": "k2", "regularizer_coef": 0.1},
    ),
    Preset(
        "rep_asymre",
        "REP",
        "AsymRE",
        "(A + coef) grad log pi, A = r - mean",
        "section 3 (Arnal et al.): the baseline lowered by coef",
        "Leans to imitation of the rollouts, which steadies training on stale data.",
        {"regularizer": "forward-kl", "regularizer_coef": 0.1},
    ),
    Preset(
        "red_drop",
        "RED",
        "RED-Drop",
        "A grad log pi on the kept responses S, A = r - mean_S; extra negatives of a group dropped at random",
        "section 4: dropped responses are out of the mean and of any regulariser (`drop_form: exclude`)",
        "Few right answers a group: keeps the negatives from dominating; alone it does not bound the update.",
        {},
        {"drop": "balance", "drop_form": "exclude"},
    ),
    Preset(
        "red_weight",
        "RED",
        "RED-Weight",
        "exp(A / temp) A grad log pi, A = r - mean",
        "section 4, temp = 1",
        "Leans to the responses that did well: REINFORCE plus imitation of them.",
        {"weight": "advantage", "temp": 1.0},
    ),
    Preset(
        "red_weight_adaptive",
        "RED",
        "adaptive RED-Weight",
        f"M exp(A / T) A grad log pi, A = r - mean, M = {_M_ONE_SIDE}; T solves sum A exp(A / T) = 0, T >= 0.8",
        "section 4; Chen et al. 2026 (arXiv 2606.20002); T = infinity while the mean token advantage is not negative",
        "Long wrong responses that push the mean advantage below 0.",
        ONE_SIDE,
        {"reweight": "adaptive"},
    ),
    Preset(
        "red_pairwise",
        "RED",
        "pairwise-weighted REINFORCE",
        "A grad log pi, A_i = (1/K) sum_j w_ij (r_i - r_j), w_ij = |r_i - r_j|",
        "section 4; the paper leaves w open, `pairwise: product` is its w_i w_j",
        "Rewards on a scale: the clear comparisons count more than the close ones.",
        {},
        {"pairwise": "reward-gap"},
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ROWS}
