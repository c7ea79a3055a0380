"""The algorithms as a table: one row a preset, named as users type it in `algorithm_type: trinity_rec.<name>`.

A preset is a choice of the arguments of `trinity_rec.RECPolicyLoss` (see `objective.Objective`) and of
`trinity_rec.RECAdvantage` (see `plugin.advantage`); what a row leaves out keeps its default there. Sections are those
of "Group-Relative REINFORCE Is Secretly an Off-Policy Algorithm" (arXiv 2509.24203) where no other source is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

FAMILIES = {
    "REC": "clipping",
    "REP": "a regulariser",
    "RED": "data weighting",
    "OFF": "other published off-policy corrections",
}


@dataclass(frozen=True)
class Preset:
    """One algorithm.

    Attributes:
        name: what users type.
        family: one of `FAMILIES`.
        title: its name in its paper.
        source: paper, section and what differs from it.
        when: when to use it, one sentence.
        policy_loss: arguments of RECPolicyLoss.
        advantage: arguments of RECAdvantage.
    """

    name: str
    family: str
    title: str
    source: str
    when: str
    policy_loss: dict[str, Any] = field(default_factory=dict)
    advantage: dict[str, Any] = field(default_factory=dict)

    @property
    def gradient(self) -> str:
        """The direction of ascent of one token, to be averaged over the batch, in the notation of `formula`."""
        from trinity_rec.formula import gradient  # it reads all rules; a command that lists names answers at once

        return gradient(self.policy_loss, self.advantage)

    @property
    def needs_old_logprobs(self) -> bool:
        """Whether the gradient depends on rho; where not, the rollout's logprobs serve the metrics alone."""
        said = self.policy_loss.get
        return (
            said("clip_mode", "none") != "none"
            or said("weight", "none") not in ("none", "advantage")
            or said("regularizer", "none") not in ("none", "forward-kl")
        )


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

_ROWS = (
    Preset(
        "rec",
        "REC",
        "free composition",
        "upstream's `rec`: all knobs, at neutral",
        "To compose a variant of your own, or to run a YAML written for upstream's `rec`.",
    ),
    Preset(
        "rec_reinforce",
        "REC",
        "REINFORCE",
        "section 2",
        "The baseline without any correction; on off-policy data it collapses (claim C3).",
    ),
    Preset(
        "rec_grpo",
        "REC",
        "GRPO",
        "section 2; the population std, as upstream's `rec`",
        "To compare with the common choice.",
        {**ONE_SIDE, **IS},
        {"std_normalize": True},
    ),
    Preset(
        "rec_oneside_is",
        "REC",
        "REC-OneSide-IS",
        "section 2",
        "GRPO without the division by the std.",
        {**ONE_SIDE, **IS},
    ),
    Preset(
        "rec_oneside_nois",
        "REC",
        "REC-OneSide-NoIS",
        "section 2",
        "The first one to try off-policy; the wide clip range (0.6, 2.0) learns faster where data are not too stale.",
        ONE_SIDE,
    ),
    Preset(
        "rec_twoside_is",
        "REC",
        "REC-TwoSide-IS",
        "section 2",
        "Also drops tokens that moved far in the wrong direction.",
        {**TWO_SIDE, **IS},
    ),
    Preset(
        "rec_twoside_nois",
        "REC",
        "REC-TwoSide-NoIS",
        "section 2",
        "As rec_twoside_is, without the importance weight.",
        TWO_SIDE,
    ),
    Preset(
        "rec_ring_is",
        "REC",
        "REC-Ring-IS",
        "section 2",
        "As rec_ring_nois, with the importance weight.",
        {**RING, **IS},
    ),
    Preset(
        "rec_ring_nois",
        "REC",
        "REC-Ring-NoIS",
        "section 2",
        "Keeps the narrow band and lets the far outside pull back: between the narrow and the wide clip range.",
        RING,
    ),
    Preset(
        "rec_gspo_is",
        "REC",
        "REC-GSPO-IS",
        "not in the paper; upstream's `rec` with gspo-one-side",
        "Clips whole responses; for models whose token ratios are noisy (mixtures of experts).",
        {**GSPO, "weight": "gspo_importance_sampling"},
    ),
    Preset(
        "rec_gspo_nois",
        "REC",
        "REC-GSPO-NoIS",
        "not in the paper; upstream's `rec` with gspo-one-side",
        "As rec_gspo_is, without the sequence's importance weight.",
        GSPO,
    ),
    Preset(
        "rep_opmd",
        "REP",
        "OPMD",
        "section 3 (Kimi k1.5); per token and with the 1/2 in coef, as upstream; `k2-sequence` is the paper's square",
        "Regularises instead of clipping: every token keeps its gradient and is pulled back to the rollout policy.",
        {"regularizer": "k2", "regularizer_coef": 0.1},
    ),
    Preset(
        "rep_asymre",
        "REP",
        "AsymRE",
        "section 3 (Arnal et al.): the baseline lowered by coef",
        "Leans to imitation of the rollouts, which steadies training on stale data.",
        {"regularizer": "forward-kl", "regularizer_coef": 0.1},
    ),
    Preset(
        "red_drop",
        "RED",
        "RED-Drop",
        "section 4: dropped responses are out of the mean and of any regulariser (`drop_form: exclude`)",
        "Few right answers a group: keeps the negatives from dominating; alone it does not bound the update.",
        {},
        {"drop": "balance", "drop_form": "exclude"},
    ),
    Preset(
        "red_weight",
        "RED",
        "RED-Weight",
        "section 4, temp = 1",
        "Leans to the responses that did well: REINFORCE plus imitation of them.",
        {"weight": "advantage", "temp": 1.0},
    ),
    Preset(
        "red_weight_adaptive",
        "RED",
        "adaptive RED-Weight",
        "section 4; Chen et al. 2026 (arXiv 2606.20002); T = infinity while the mean token advantage is not negative",
        "Long wrong responses that push the mean advantage below 0.",
        ONE_SIDE,
        {"reweight": "adaptive"},
    ),
    Preset(
        "red_pairwise",
        "RED",
        "pairwise-weighted REINFORCE",
        "section 4; the paper leaves w open, `pairwise: product` is its w_i w_j",
        "Rewards on a scale: the clear comparisons count more than the close ones.",
        {},
        {"pairwise": "reward-gap"},
    ),
    Preset(
        "off_dapo",
        "OFF",
        "DAPO's clip-higher",
        "arXiv 2503.14476; without its dynamic sampling, which is trinity_rec.InformativeSampleStrategy",
        "GRPO's clip range, wider above: unlikely right tokens may grow.",
        {**ONE_SIDE, "epsilon_high": 0.28, **IS},
    ),
    Preset(
        "off_dual_clip",
        "OFF",
        "dual-clip PPO",
        "arXiv 1912.09729; verl's default loss",
        "Ends what a token of a wrong response can push where its ratio has exploded.",
        {**ONE_SIDE, "clip_mode": "dual-clip", "dual_clip": 3.0, **IS},
    ),
    Preset(
        "off_tis",
        "OFF",
        "TIS",
        "truncated importance sampling of tokens; verl's rollout correction with threshold 2",
        "Corrects for stale or mismatched rollouts without dropping any token.",
        {"weight": "capped_importance_sampling", "weight_cap": 2.0},
    ),
    Preset(
        "off_icepop",
        "OFF",
        "IcePop",
        "arXiv 2510.18855; the bounds 0.5 and 5 of its code, prime-rl takes 0.2 and 5",
        "Drops the tokens on which sampler and trainer disagree, keeps the ratio on the rest.",
        {"clip_mode": "two-side", "epsilon_low": 0.5, "epsilon_high": 4.0, **IS},
    ),
    Preset(
        "off_cispo",
        "OFF",
        "CISPO",
        "arXiv 2506.13585: no lower bound; the upper one is not given there, 0.28 is upstream's `cispo`",
        "No token loses its gradient; its weight is bounded instead.",
        {"weight": "clipped_importance_sampling", "epsilon_low": 1.0, "epsilon_high": 0.28},
    ),
    Preset(
        "off_sapo",
        "OFF",
        "SAPO",
        "arXiv 2511.20347, and its average",
        "A soft gate in place of a clip range, steeper for wrong responses.",
        {"weight": "sapo", "tau_positive": 1.0, "tau_negative": 1.05, "loss_agg_mode": "seq-mean-token-mean"},
    ),
    Preset(
        "off_aspo",
        "OFF",
        "ASPO",
        "arXiv 2510.06062; one clip range for all tokens, where the authors' code widens it by entropy",
        "Turns the ratio over for right responses, so that their unlikely tokens learn most.",
        {**ONE_SIDE, "weight": "aspo", "weight_cap": 3.0},
    ),
    Preset(
        "off_dppo_tv",
        "OFF",
        "DPPO with binary TV",
        "arXiv 2602.04879; d = 0.15 as in its runs (0.2 in verl), ratios capped at 20 (at 3 by verl's settings)",
        "Clips by the difference of probabilities, so that rare tokens are not clipped for their ratio alone.",
        {
            "clip_mode": "dppo-tv",
            "divergence_low": 0.15,
            "divergence_high": 0.15,
            "weight": "capped_importance_sampling",
            "weight_cap": 20.0,
        },
    ),
    Preset(
        "off_ipo",
        "OFF",
        "IPO of prime-rl",
        "prime-rl's default loss of early 2026: d = 0.2, kl_tau = 0.001",
        "As off_dppo_tv whatever the sign of A, with a light pull back to the rollout policy.",
        {
            "clip_mode": "ipo",
            "divergence_low": 0.2,
            "divergence_high": 0.2,
            **IS,
            "regularizer": "k2",
            "regularizer_coef": 0.001,
        },
    ),
    Preset(
        "off_gmpo",
        "OFF",
        "GMPO",
        "arXiv 2507.20673: clipped where |log rho| > 0.4, and its average; verl's geo_mean",
        "The geometric mean of a response's clipped ratios: one outlier moves it little.",
        {
            "clip_mode": "one-side",
            "epsilon_low": 1 - math.exp(-0.4),
            "epsilon_high": math.exp(0.4) - 1,
            "weight": "gmpo",
            "loss_agg_mode": "seq-mean-token-mean",
        },
    ),
    Preset(
        "off_luspo",
        "OFF",
        "LUSPO",
        "arXiv 2602.05261: GSPO times the length of the response",
        "GSPO without its preference for short responses.",
        {**GSPO, "weight": "gspo_importance_sampling", "loss_agg_mode": "seq-mean-token-sum"},
    ),
    Preset(
        "off_seq_tis",
        "OFF",
        "Seq-TIS",
        "truncated importance sampling of responses; verl's rollout correction with threshold 2",
        "The exact correction of short responses, with its variance bounded.",
        {"weight": "sequence_importance_sampling", "weight_cap": 2.0},
    ),
    Preset(
        "off_seq_mis",
        "OFF",
        "Seq-MIS",
        "rejection of responses by their product of ratios; verl's seq_sum_k1, on mu / pi",
        "Trains on the responses that the policy would still give, and on nothing else.",
        {"clip_mode": "sequence-two-side", "epsilon_low": 0.5, "epsilon_high": 1.0},
    ),
    Preset(
        "off_geo_rs",
        "OFF",
        "Geo-RS",
        "rejection of responses by their mean log ratio; verl's seq_mean_k1, on mu / pi",
        "Near on-policy data from a mismatched sampler; stale data are rejected altogether.",
        {"clip_mode": "geometric-two-side", "epsilon_low": 0.001, "epsilon_high": 0.001},
    ),
    Preset(
        "off_opsm",
        "OFF",
        "OPSM",
        "off-policy sequence masking, arXiv 2512.02556, eq. 9; d = 0.5 as in TRL's documentation, the paper gives none",
        "GRPO that ignores wrong responses which the policy has left behind.",
        {**ONE_SIDE, "clip_mode": "opsm", "max_kl": 0.5, **IS},
    ),
    Preset(
        "off_topr",
        "OFF",
        "TOPR",
        "arXiv 2503.14286, section 3, eq. 8; averaged over tokens, where its runs divide each response by its length",
        "Imitates right responses in full, and forgets wrong ones only while they are likely.",
        {"weight": "topr"},
    ),
    Preset(
        "off_vespo",
        "OFF",
        "VESPO",
        "arXiv 2602.10693",
        "A smooth weight of the whole response in place of any threshold.",
        {"weight": "vespo"},
    ),
    Preset(
        "off_minpro",
        "OFF",
        "MinPRO",
        "arXiv 2601.22718, by its abstract: the equation itself was not seen",
        "The prefix's correction without its product: an early unlikely token holds the rest back.",
        {"weight": "minpro"},
    ),
    Preset(
        "off_m2po",
        "OFF",
        "M2PO",
        "arXiv 2510.01161, section 5.2 and algorithm 1; the batch is that of one call of the loss",
        "A budget for how far the batch may have moved: very stale data lose few tokens.",
        {"clip_mode": "m2po", "second_moment": 0.04, **IS},
    ),
    Preset(
        "off_bapo",
        "OFF",
        "BAPO",
        "arXiv 2510.18927, eq. 8 and algorithm 1, without the factor mu; the batch is that of one call of the loss",
        "Moves the clip range until right responses have their share of the gradient.",
        {"clip_mode": "bapo", "positive_share": 0.4, **IS},
    ),
    Preset(
        "off_p3o",
        "OFF",
        "P3O",
        "arXiv 1905.01756; the batch is that of one call of the loss",
        "Weighs the correction and a pull to the rollouts by how far off-policy the batch is.",
        {"weight": "ess_capped_importance_sampling", "regularizer": "ess-forward-kl"},
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ROWS}
