"""`use` on Trinity's own algorithms: what has an equal keeps its meaning under our name, all else is announced."""

import pytest
import torch
from trinity.algorithm import ALGORITHM_TYPE, POLICY_LOSS_FN

from trinity_rec import RECPolicyLoss
from trinity_rec.yaml.document import Document
from trinity_rec.yaml.effective import effective
from trinity_rec.yaml.rewrite import switch
from trinity_rec.yaml.source import objections
from trinity_rec.yaml.upstream import LOSSES, meaning


def document(algorithm: str) -> Document:
    return Document.parse("run.yaml", f"mode: both\nalgorithm: {{repeat_times: 8, {algorithm}}}\n")


def switched(algorithm: str, preset: str) -> tuple[dict, str]:
    result = switch(document(algorithm), preset)
    return Document.parse("run.yaml", result.text).data["algorithm"], "\n".join(result.notes)


GROUP_RELATIVE = [
    name for name in ALGORITHM_TYPE._default_mapping if not list(objections(document(f"algorithm_type: {name}")))
]


@pytest.mark.parametrize("name", GROUP_RELATIVE)
@pytest.mark.parametrize("preset", ["rec_grpo", "rec_oneside_nois", "rep_opmd"])
def test_every_algorithm_of_the_installed_trinity_is_translated_or_announced(name, preset):
    _, notes = switched(f"algorithm_type: {name}", preset)
    default = ALGORITHM_TYPE.get(name).default_config()
    term = default.get("kl_loss_fn", "k2")
    assert ("the KL term (k2, 0.001) is gone" in notes) == (term != "none")
    assert "averaged over the whole mini-batch" in notes
    algorithm = effective({"algorithm_type": name, "repeat_times": 8})
    assert (f"policy_loss_fn {name} goes" in notes) == (name in ("sapo", "topr"))
    assert algorithm.policy_loss_fn in LOSSES
    assert ("a ratio above 3 were clipped too" in notes) == (algorithm.policy_loss_fn == "ppo")
    if algorithm.advantage_fn == "grpo":
        assert ("no longer divided by their group's standard deviation" in notes) == (preset != "rec_grpo")
    new, _ = switched(f"algorithm_type: {name}, kl_loss_fn: k3, kl_loss_fn_args: {{kl_coef: 0.02}}", preset)
    assert set(new) <= {"algorithm_type", "repeat_times", "policy_loss_fn_args"}
    _, notes = switched(f"algorithm_type: {name}, kl_loss_fn: k3, kl_loss_fn_args: {{kl_coef: 0.02}}", preset)
    assert "--set kl_loss_fn=k3 --set kl_loss_fn_args.kl_coef=0.02" in notes


@pytest.mark.parametrize(
    ("algorithm", "preset", "args", "notes"),
    [
        ("algorithm_type: grpo, policy_loss_fn_args: {clip_range_low: 0.1, clip_range_high: 0.28}", "rec_oneside_nois",
         {"epsilon_low": 0.1, "epsilon_high": 0.28}, ["clip_range_high: 0.28 is epsilon_high: 0.28 from now on"]),
        ("algorithm_type: dapo, policy_loss_fn_args: {clip_range: 0.3}", "rec_grpo",
         {"epsilon_low": 0.3, "epsilon_high": 0.3}, ["clip_range: 0.3 is epsilon_low: 0.3 and epsilon_high: 0.3"]),
        ("algorithm_type: grpo, policy_loss_fn_args: {clip_range: 0.3, clip_ratio_c: 10}", "rec_ring_is",
         {}, ["clip_range: 0.3 goes; rec_ring_is has epsilon_low: 0.2", "clip_ratio_c: 10 goes"]),
        ("algorithm_type: gspo, policy_loss_fn_args: {clip_range_low: 0.001, clip_range_high: 0.002}", "rec_gspo_is",
         {"epsilon_low": 0.001, "epsilon_high": 0.002}, ["clip_range_low: 0.001 is epsilon_low: 0.001"]),
        ("algorithm_type: opmd, policy_loss_fn_args: {tau: 4.0}", "rep_opmd",
         {"regularizer_coef": 2.0}, ["tau: 4.0 is regularizer_coef: 2.0", "divides its loss by 1 + tau = 5"]),
        ("algorithm_type: asymre, advantage_fn_args: {baseline_shift: -0.2}", "rep_asymre",
         {"regularizer_coef": 0.2}, ["advantage_fn_args.baseline_shift: -0.2 is regularizer_coef: 0.2"]),
        ("algorithm_type: asymre, advantage_fn_args: {baseline_shift: -0.2}", "rec_grpo",
         {}, ["advantage_fn_args.baseline_shift: -0.2 goes"]),
        ("algorithm_type: grpo, policy_loss_fn_args: {clip_range: 0.1, clip_ratio_c: 5}", "off_dual_clip",
         {"epsilon_low": 0.1, "epsilon_high": 0.1, "dual_clip": 5}, ["clip_ratio_c: 5 is dual_clip: 5 from now on"]),
        ("algorithm_type: cispo, policy_loss_fn_args: {clip_range_low: 0.5, clip_range_high: 2.0}", "off_cispo",
         {"epsilon_low": 0.5, "epsilon_high": 2.0}, ["clip_range_high: 2.0 is epsilon_high: 2.0 from now on"]),
        ("algorithm_type: cispo, policy_loss_fn_args: {clip_range_high: 2.0, enable_mask_clip: true}", "rec_oneside_is",
         {}, ["clip_range_high: 2.0 goes; rec_oneside_is has epsilon_high: 0.2", "enable_mask_clip drops tokens"]),
        ("algorithm_type: sapo, policy_loss_fn_args: {tau_pos: 2.0, tau_neg: 3.0}", "off_sapo",
         {"tau_positive": 2.0, "tau_negative": 3.0}, ["tau_neg: 3.0 is tau_negative: 3.0", "the gate's derivative"]),
        ("algorithm_type: topr, policy_loss_fn_args: {advantage_threshold: 0.1}", "off_topr",
         {}, ["advantage_threshold: 0.1 goes; off_topr has no such argument", "it clips the ratio of each token"]),
        ("algorithm_type: sppo, policy_loss_fn_args: {epsilon: 0.25}", "rec_twoside_nois",
         {"epsilon_high": 0.25}, ["epsilon: 0.25 is epsilon_low: 0.2 and epsilon_high: 0.25"]),
        ("algorithm_type: grpo, policy_loss_fn: rec, policy_loss_fn_args: {clip_mode: one-side, epsilon_high: 2.0}",
         "rec_oneside_nois", {"epsilon_high": 2.0}, []),
    ],
)  # fmt: skip
def test_what_means_the_same_gets_its_new_name(algorithm, preset, args, notes):
    section, said = switched(algorithm, preset)
    assert section.get("policy_loss_fn_args", {}) == args
    for note in notes:
        assert note in said


def test_the_average_keeps_its_name_and_other_terms_are_announced():
    section, notes = switched(
        "algorithm_type: rloo, loss_agg_mode: seq-mean-token-sum, entropy_loss_fn_args: {entropy_coef: 0.01}, "
        "kl_penalty_fn: k1, sample_strategy: staleness_control, sample_strategy_args: {max_staleness: 3}",
        "rec_grpo",
    )
    assert section["loss_agg_mode"] == "seq-mean-token-sum"
    for note in (
        "advantage_fn rloo goes: the mean of the other responses is its baseline",
        "--set entropy_loss_fn=default --set entropy_loss_fn_args.entropy_coef=0.01",
        "kl_penalty_fn: k1 goes",
        "sample_strategy: staleness_control goes",
        "sample_strategy_args.max_staleness: 3 goes",
    ):
        assert note in notes
    section, notes = switched("algorithm_type: grpo, loss_agg_mode: seq-mean-token-sum-norm", "rec_grpo")
    assert "loss_agg_mode" not in section
    assert "loss_agg_mode: the average is token-mean, was seq-mean-token-sum-norm" in notes


def test_an_average_that_trinity_did_not_read_is_not_carried():
    """Trinity writes the key into the loss's arguments only where they name it, or where the YAML gives none."""
    given = "algorithm_type: gspo, loss_agg_mode: seq-mean-token-sum, policy_loss_fn_args: {clip_range_low: 0.1}"
    section, notes = switched(given, "rec_grpo")
    assert section["loss_agg_mode"] == "seq-mean-token-mean"
    assert "loss_agg_mode: seq-mean-token-sum goes" in notes and "by seq-mean-token-mean all the same" in notes


def test_a_loss_that_was_divided_by_one_has_no_other_step_size():
    _, notes = switched("algorithm_type: asymre, policy_loss_fn_args: {tau: 0}", "rep_asymre")
    assert "policy_loss_fn_args.tau: 0 goes" in notes and "divides its loss" not in notes


def test_nothing_is_announced_where_nothing_changes():
    assert (
        switched("algorithm_type: trinity_rec.rec_grpo, policy_loss_fn_args: {epsilon_high: 0.3}", "rec_grpo")[1] == ""
    )


def test_what_goes_between_presets_is_announced_too():
    _, notes = switched("algorithm_type: trinity_rec.rec_ring_is, policy_loss_fn_args: {epsilon_high: 0.3}", "red_drop")
    assert "policy_loss_fn_args.epsilon_high: 0.3 goes; red_drop has epsilon_high: 0.2" in notes


@pytest.mark.parametrize(
    "algorithm",
    [
        "algorithm_type: grpo, policy_loss_fn_args: {clip_range: 0.3, clip_ratio_c: 1.5}",
        "algorithm_type: cispo, policy_loss_fn_args: {clip_range_low: 0.4, clip_range_high: 0.3}",
        "algorithm_type: sppo, policy_loss_fn_args: {epsilon: 0.3}",
        "algorithm_type: gspo, policy_loss_fn_args: {clip_range_low: 0.1, clip_range_high: 0.2}",
        "algorithm_type: grpo, policy_loss_fn: importance_sampling",
        "algorithm_type: opmd",
    ],
)
def test_the_gradient_of_what_is_called_the_same_is_the_same(algorithm):
    """Trinity's own loss against ours with the arguments of the table, on a batch in one piece."""
    torch.manual_seed(0)
    old = document(algorithm).data["algorithm"]
    was = meaning(old)
    theirs = POLICY_LOSS_FN.get(was.algorithm.policy_loss_fn)(**was.algorithm.policy_loss_fn_args)
    ours = RECPolicyLoss(**was.args["policy_loss_fn_args"], loss_agg_mode=was.average)
    start, mask = -torch.rand(4, 6), torch.ones(4, 6)
    mask[2, 4:] = 0
    batch = {
        "old_logprob": start - 0.4 * torch.randn(4, 6),
        "action_mask": mask,
        "advantages": torch.randn(4, 1) * mask,
    }
    gradients = []
    for loss in (theirs, ours):
        logprob = start.clone().requires_grad_()
        loss(logprob, **batch)[0].backward()
        gradients.append(logprob.grad)
    scale = 1 + was.algorithm.policy_loss_fn_args["tau"] if "opmd" in algorithm else 1
    torch.testing.assert_close(gradients[0] * scale, gradients[1], rtol=1e-5, atol=1e-7)
