"""The bandit against dynamics written down by hand in numpy, and the masses on which the paper's figure ends."""

import numpy as np
import pytest

from trinity_rec.lab.bandit import BANDIT_VARIANTS, BEHAVIOUR, RATE, REWARDS, exact, sampled

DATA, REWARD = np.array(BEHAVIOUR), np.array(REWARDS)
ADVANTAGE = REWARD - DATA @ REWARD


def ascend(direction, steps):
    """Softmax policies under gradient ascent; `direction(policy)` [3] weighs grad log pi of each arm."""
    logits = np.log(DATA)
    for _ in range(steps):
        policy = np.exp(logits) / np.exp(logits).sum()
        weights = DATA * direction(policy)
        logits = logits + RATE * (weights - policy * weights.sum())
    return np.exp(logits) / np.exp(logits).sum()


def clipped(policy):
    ratio = policy / DATA
    return ADVANTAGE * np.where(ADVANTAGE >= 0, ratio <= 1.2, ratio >= 0.8)


@pytest.mark.parametrize(
    "name, direction",
    [
        ("rec_reinforce", lambda policy: ADVANTAGE),
        ("rec_oneside_nois", clipped),
        ("rep_opmd", lambda policy: ADVANTAGE - 2 * 0.1 * np.log(policy / DATA)),
        ("rep_asymre", lambda policy: ADVANTAGE + 0.1),
        ("red_weight", lambda policy: np.exp(ADVANTAGE) * ADVANTAGE),
        ("red_weight_cold", lambda policy: np.exp(ADVANTAGE / 0.1) * ADVANTAGE),
    ],
)
def test_the_exact_gradient_is_the_expectation_under_the_behaviour_policy(name, direction):
    np.testing.assert_allclose(exact(BANDIT_VARIANTS[name], 300)[-1].numpy(), ascend(direction, 300), atol=1e-6)


def test_reinforce_moves_to_the_arm_that_is_seen_often():
    """Arm 3 is the best; its data are rare."""
    for path in (exact(BANDIT_VARIANTS["rec_reinforce"], 400), sampled(BANDIT_VARIANTS["rec_reinforce"], 0, 400)):
        assert path[0].numpy() == pytest.approx(DATA)
        assert path[-1, 1] > 0.95 and path[-1, 2] < 0.05


def test_a_sampled_run_repeats_with_its_seed():
    first, again, other = (sampled(BANDIT_VARIANTS["rec_grpo"], seed, 20) for seed in (0, 0, 1))
    assert (first == again).all() and not (first == other).all()
    assert first.sum(1).numpy() == pytest.approx(1)
