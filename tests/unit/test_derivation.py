"""The paper's derivation (arXiv 2509.24203, sections 1, 3 and 4), each step as an identity of gradients.

Policies are tables of logits over a handful of responses, in float64, and nothing is assumed about how the K responses
of a group were sampled: that is the point of section 1.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trinity_rec.objective import Objective
from trinity_rec.shaping.groups import group_advantage, pairwise_advantage

seeds = st.integers(0, 2**31 - 1)


def policy(seed, responses=6, spread=2.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(responses, generator=generator, dtype=torch.float64) * spread


def group(seed, responses=6):
    """K of the responses, drawn by some distribution that has nothing to do with the policy, and their rewards."""
    generator = torch.Generator().manual_seed(seed + 1)
    size = int(torch.randint(1, 9, (), generator=generator))
    anything = torch.rand(responses, generator=generator, dtype=torch.float64) ** 4 + 1e-6
    drawn = torch.multinomial(anything, size, replacement=True, generator=generator)
    rewards = torch.randn(size, generator=generator, dtype=torch.float64)
    return drawn, rewards


def gradient(logits, loss):
    """d loss(log pi) / d logits at `logits`, where log pi is the log-softmax."""
    logits = logits.clone().requires_grad_()
    loss(torch.log_softmax(logits, -1)).backward()
    return logits.grad


def as_group(rewards):
    return rewards, torch.zeros(len(rewards), dtype=torch.int64), torch.ones(len(rewards), dtype=torch.bool)


def surrogate(log_policy, log_anchor, drawn, rewards, tau, weights):
    """Section 1: sum over pairs of w_ij (a_i - a_j)^2 with a = r - tau (log pi - log pi_t)."""
    a = rewards - tau * (log_policy[drawn] - log_anchor[drawn])
    return (weights * (a[:, None] - a[None]).square()).triu(1).sum()


def pair_weights(name, rewards):
    """w_ij as the text has them, [K, K]."""
    if name == "uniform":
        return torch.ones(len(rewards), len(rewards), dtype=torch.float64)
    if name == "reward-gap":
        return (rewards[:, None] - rewards[None]).abs()
    w = (rewards - rewards.mean()).exp()
    return w[:, None] * w[None]


def responses_of_one_token(log_policy, log_anchor, drawn, advantages, **arguments):
    """The objective on the group, [K, 1]; the token mean is then (1 / K) times the sum over responses."""
    loss, _ = Objective(**arguments)(
        log_policy[drawn][:, None],
        log_anchor[drawn][:, None],
        torch.ones(len(drawn), 1, dtype=torch.bool),
        advantages[:, None],
    )
    return loss


@settings(deadline=None)
@given(seeds, st.floats(0.1, 5))
def test_the_optimum_of_the_regularised_objective_is_consistent(seed, tau):
    """max E[r] - tau KL(pi | pi_t) is solved by pi_t exp(r / tau), where r - tau log(pi / pi_t) is equal for all y."""
    log_anchor = torch.log_softmax(policy(seed), -1)
    rewards = torch.randn(6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    optimum = log_anchor + rewards / tau

    def objective(log_policy):
        return -(log_policy.exp() * (rewards - tau * (log_policy - log_anchor))).sum()

    torch.testing.assert_close(gradient(optimum, objective), torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0)
    a = rewards - tau * (torch.log_softmax(optimum, -1) - log_anchor)
    torch.testing.assert_close(a, a[:1].expand(6), atol=1e-12, rtol=1e-12)
    # It is a maximum: a step in any direction is worse.
    step = 0.1 * torch.randn(6, generator=torch.Generator().manual_seed(seed + 7), dtype=torch.float64)
    assert objective(torch.log_softmax(optimum + step, -1)) >= objective(torch.log_softmax(optimum, -1)) - 1e-12


@pytest.mark.parametrize("weights", ["uniform", "reward-gap", "product"])
@settings(deadline=None)
@given(seed=seeds, tau=st.floats(0.1, 5))
def test_the_surrogate_at_the_anchor_is_group_relative_reinforce(weights, seed, tau):
    """Its gradient is -2 tau sum_i (sum_j w_ij (r_i - r_j)) grad log pi(y_i): REINFORCE on `pairwise_advantage`."""
    logits = policy(seed)
    drawn, rewards = group(seed)
    log_anchor = torch.log_softmax(logits, -1)
    w = pair_weights(weights, rewards)
    of_surrogate = gradient(logits, lambda log_policy: surrogate(log_policy, log_anchor, drawn, rewards, tau, w))
    advantages = pairwise_advantage(*as_group(rewards), weights=weights)
    size = len(rewards)
    of_reinforce = gradient(
        logits, lambda log_policy: responses_of_one_token(log_policy, log_anchor, drawn, advantages)
    )
    torch.testing.assert_close(of_surrogate, 2 * tau * size**2 * of_reinforce, rtol=1e-9, atol=1e-10)
    if weights == "uniform":
        torch.testing.assert_close(advantages, rewards - rewards.mean(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(advantages, group_advantage(*as_group(rewards)))


@settings(deadline=None)
@given(seeds, st.floats(0.1, 5))
def test_any_pair_weights_give_their_weighted_advantage(seed, tau):
    """The identity of section 4 for weights of no special form, only symmetric."""
    logits = policy(seed)
    drawn, rewards = group(seed)
    log_anchor = torch.log_softmax(logits, -1)
    w = torch.rand(len(rewards), len(rewards), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = w + w.T
    of_surrogate = gradient(logits, lambda log_policy: surrogate(log_policy, log_anchor, drawn, rewards, tau, w))
    advantages = (w * (rewards[:, None] - rewards[None])).sum(1)
    of_reinforce = gradient(logits, lambda log_policy: -(advantages * log_policy[drawn]).sum())
    torch.testing.assert_close(of_surrogate, 2 * tau * of_reinforce, rtol=1e-9, atol=1e-10)


@settings(deadline=None)
@given(seeds)
def test_product_weights_centre_on_the_weighted_mean(seed):
    """Section 4: with w_ij = w_i w_j the advantage is w_i (r_i - weighted mean), up to a factor of the group."""
    _, rewards = group(seed)
    w = (rewards - rewards.mean()).exp()
    weighted_mean = (w * rewards).sum() / w.sum()
    advantages = pairwise_advantage(*as_group(rewards), weights="product")
    torch.testing.assert_close(advantages, w * (rewards - weighted_mean) * w.sum() / len(rewards))


@settings(deadline=None)
@given(seeds, st.floats(0.01, 2))
def test_asymre_by_its_baseline_is_reinforce_with_the_forward_kl_term(seed, beta):
    """Section 3: a baseline lowered by beta, or `regularizer: forward-kl` with coefficient beta."""
    logits, log_anchor = policy(seed), torch.log_softmax(policy(seed + 3), -1)
    drawn, rewards = group(seed)
    advantages = group_advantage(*as_group(rewards))
    by_baseline = gradient(
        logits, lambda log_policy: responses_of_one_token(log_policy, log_anchor, drawn, advantages + beta)
    )
    by_regulariser = gradient(
        logits,
        lambda log_policy: responses_of_one_token(
            log_policy, log_anchor, drawn, advantages, regularizer="forward-kl", regularizer_coef=beta
        ),
    )
    torch.testing.assert_close(by_regulariser, by_baseline, rtol=1e-10, atol=1e-12)


@settings(deadline=None)
@given(seeds, st.floats(0.01, 2))
def test_the_forward_kl_term_is_the_kl_to_the_rollout_policy_in_expectation(seed, beta):
    """Averaged over y ~ pi_old, its gradient is that of beta KL(pi_old | pi)."""
    logits, log_old = policy(seed), torch.log_softmax(policy(seed + 3), -1)
    every_response = torch.arange(len(logits))
    expected = gradient(logits, lambda log_policy: beta * (log_old.exp() * (log_old - log_policy)).sum())
    # Without advantages the loss is the term alone; sample_weight turns the mean over responses into pi_old's.
    term = Objective(regularizer="forward-kl", regularizer_coef=beta)

    def in_expectation(log_policy):
        ones = torch.ones(len(every_response), 1, dtype=torch.bool)
        weight = log_old.exp() * len(every_response)
        return term(log_policy[:, None], log_old[:, None], ones, torch.zeros(6, 1).double(), sample_weight=weight)[0]

    torch.testing.assert_close(gradient(logits, in_expectation), expected, rtol=1e-10, atol=1e-12)


@settings(deadline=None)
@given(seeds, st.floats(0.01, 2))
def test_opmd_is_reinforce_plus_a_square(seed, tau):
    """Section 3: REINFORCE plus (tau / 2K) sum (log rho)^2; `regularizer_coef` holds the 1/2."""
    logits, log_old = policy(seed), torch.log_softmax(policy(seed + 3), -1)
    drawn, rewards = group(seed)
    advantages = group_advantage(*as_group(rewards))
    reinforce = gradient(logits, lambda log_policy: -(advantages * log_policy[drawn]).mean())
    square = gradient(logits, lambda log_policy: tau / 2 * (log_policy - log_old)[drawn].square().mean())
    for regularizer in ("k2", "k2-sequence"):  # the same thing for responses of one token
        opmd = gradient(
            logits,
            lambda log_policy, regularizer=regularizer: responses_of_one_token(
                log_policy, log_old, drawn, advantages, regularizer=regularizer, regularizer_coef=tau / 2
            ),
        )
        torch.testing.assert_close(opmd, reinforce + square, rtol=1e-10, atol=1e-12)


@settings(deadline=None)
@given(seeds, st.floats(0.01, 2))
def test_k2_sequence_is_the_square_of_the_whole_response(seed, tau):
    """The paper's (tau / 2K) sum_i (log pi(y_i) - log pi_old(y_i))^2 over responses of several tokens."""
    generator = torch.Generator().manual_seed(seed)
    logprob = torch.rand(5, 7, generator=generator, dtype=torch.float64).neg().requires_grad_()
    old = -torch.rand(5, 7, generator=generator, dtype=torch.float64)
    mask = torch.rand(5, 7, generator=generator) < 0.7
    square = tau / 2 * ((logprob - old) * mask).sum(-1).square().mean()
    (expected,) = torch.autograd.grad(square, logprob)
    objective = Objective(regularizer="k2-sequence", regularizer_coef=tau / 2, loss_agg_mode="seq-mean-token-sum")
    loss, _ = objective(logprob, old, mask, torch.zeros_like(old))
    assert loss.item() == pytest.approx(square.item(), rel=1e-12)
    (actual,) = torch.autograd.grad(loss, logprob)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-14)


@settings(deadline=None)
@given(seeds, st.floats(0.3, 5))
def test_red_weight_is_reinforce_plus_imitation(seed, temp):
    """Section 4: exp(A / T) A = A + (exp(A / T) - 1) A, and the second factor is never negative: imitation."""
    logits, log_old = policy(seed), torch.log_softmax(policy(seed + 3), -1)
    drawn, rewards = group(seed)
    advantages = group_advantage(*as_group(rewards))
    imitation_weight = ((advantages / temp).exp() - 1) * advantages
    assert (imitation_weight >= 0).all()
    weighted = gradient(
        logits,
        lambda log_policy: responses_of_one_token(
            log_policy, log_old, drawn, advantages, weight="advantage", temp=temp
        ),
    )
    reinforce = gradient(logits, lambda log_policy: -(advantages * log_policy[drawn]).mean())
    imitation = gradient(logits, lambda log_policy: -(imitation_weight * log_policy[drawn]).mean())
    torch.testing.assert_close(weighted, reinforce + imitation, rtol=1e-10, atol=1e-12)


@settings(deadline=None)
@given(seeds)
def test_clipping_is_inactive_at_the_anchor(seed):
    """At pi = pi_old every ratio is 1: all clip modes and the importance weight give REINFORCE."""
    logits = policy(seed)
    log_old = torch.log_softmax(logits, -1)
    drawn, rewards = group(seed)
    advantages = group_advantage(*as_group(rewards))
    reinforce = gradient(logits, lambda log_policy: responses_of_one_token(log_policy, log_old, drawn, advantages))
    for clip_mode in ("one-side", "two-side", "ring", "gspo-one-side"):
        for weight in ("none", "importance_sampling", "gspo_importance_sampling"):
            clipped = gradient(
                logits,
                lambda log_policy, clip_mode=clip_mode, weight=weight: responses_of_one_token(
                    log_policy, log_old, drawn, advantages, clip_mode=clip_mode, weight=weight
                ),
            )
            torch.testing.assert_close(clipped, reinforce, rtol=1e-10, atol=1e-12)
