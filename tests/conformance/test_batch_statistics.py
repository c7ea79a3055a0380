"""M2PO's and BAPO's masks, token by token, against readable forms that sort all tokens and try all bounds.

Log ratios are multiples of 1/64 here, so that many are equal, or the logarithms of BAPO's own bounds, and a batch has
fewer or many more tokens than the rules sort at once.
"""

import math

import numpy as np
import pytest
import torch

from trinity_rec.objective.clip import bapo, m2po
from trinity_rec.objective.tokens import Batch

HIGHS = [1.2 + 0.05 * step for step in range(37)]
LOWS = [0.6 + 0.02 * step for step in range(16)]
BOUNDS = [math.log(bound) for bound in (LOWS[0], LOWS[-1], *HIGHS)]
SHAPES = ((1, 1), (3, 20), (7, 130), (5, 2_000), (90, 2_000))


def by_sorting(log_ratio, advantages, budget):
    """M2PO: the longest run of the smallest squares whose mean is within the budget; of equal ones the first."""
    pushed = np.flatnonzero(log_ratio * advantages > 0)
    squares = log_ratio.flat[pushed] ** 2
    ordered = np.argsort(squares, kind="stable")
    means = squares[ordered].cumsum() / np.arange(1, len(pushed) + 1)
    keep = np.ones(log_ratio.shape)
    keep.flat[pushed[ordered[(means <= budget).sum() :]]] = 0
    return keep


def share_of_positive(log_ratio, advantages, low, high):
    """What tokens with A > 0 make up of BAPO's objective."""
    ratio = np.exp(log_ratio.astype(np.float64))
    gain = (np.minimum(ratio, high) * advantages.clip(min=0)).sum()
    loss = (np.maximum(ratio, low) * -advantages.clip(max=0)).sum()
    return gain / (gain + loss) if gain + loss else 1.0


def by_trying_all_bounds(log_ratio, advantages, share):
    """BAPO: the first pair of bounds, the upper one raised first, for which A > 0 has its share, or the last."""
    for low, high in [(LOWS[0], high) for high in HIGHS] + [(low, HIGHS[-1]) for low in LOWS[1:]]:
        if share_of_positive(log_ratio, advantages, low, high) >= share:
            break
    clipped = (advantages > 0) & (log_ratio > math.log(high)) | (advantages < 0) & (log_ratio < math.log(low))
    return 1.0 - clipped


def tokens(seed, shape, spread, dtype, on_bounds=False):
    """log rho and A, which differs from token to token and is 0 at times, with padding; as numbers and as a batch."""
    generator = np.random.default_rng(seed)
    log_ratio = np.round(generator.standard_t(4, shape) * spread * 64) / 64
    if on_bounds:
        log_ratio = np.where(generator.random(shape) < 0.5, generator.choice(BOUNDS, shape), log_ratio)
    advantages = generator.choice([-1.0, 0.0, 0.5, 1.0], shape) * generator.integers(1, 4, shape)
    mask = generator.random(shape) < 0.9
    # So the differences of the log-probabilities are the log ratios, without rounding.
    logprob, old = torch.from_numpy(log_ratio).to(dtype), torch.zeros(shape, dtype=dtype)
    inputs = [logprob, old, torch.from_numpy(mask), torch.from_numpy(advantages).to(dtype)]
    return log_ratio * mask, advantages * mask, inputs


def mask_of(rule, inputs, rows):
    """What the rule keeps, block by block of so many responses."""
    batch = Batch(inputs, rows)
    of_block = rule(batch)
    return torch.cat([of_block(x).expand(x.mask.shape) for x in batch]).numpy()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("budget", [1e-6, 1 / 64, 0.04, 0.2, 10.0])  # with 1/64 means can be at the budget exactly
def test_m2po_keeps_what_sorting_all_tokens_would(shape, budget):
    clipped = []
    for seed in range(4):
        for spread in (0.02, 0.3):
            log_ratio, advantages, inputs = tokens(seed, shape, spread, torch.float64)
            expected = by_sorting(log_ratio, advantages, budget)
            for rows in (1, 4, shape[0]):
                np.testing.assert_array_equal(mask_of(lambda x: m2po(x, budget), inputs, rows), expected)
            clipped.append(1 - expected.mean())
    assert max(clipped) > 0 or budget > 0.1 or shape[1] < 100


def test_m2po_sorts_equal_squares_by_their_place():
    """All of them equal, and more than are sorted at once: none fits; half of them with room for a few: the first."""
    inputs = [torch.full((2, 4_000), 0.5), torch.zeros(2, 4_000), torch.ones(2, 4_000) > 0, torch.ones(2, 4_000)]
    assert not mask_of(lambda x: m2po(x, 0.04), inputs, 1).any()
    inputs[0][0] = 0.125  # 4,000 squares of 1/64, each below 1/32 by 1/64; one of 1/4 is above it by 14/64
    keep = mask_of(lambda x: m2po(x, 1 / 32), inputs, 1)
    assert keep[0].all() and keep[1, : 4_000 // 14].all() and not keep[1, 4_000 // 14 :].any()


@pytest.mark.parametrize("sampled, others", [(0.25, 0.5), (0.5, 0.25)])
def test_m2po_is_not_misled_by_its_sample(sampled, others):
    """Every 16th square is another than the rest, and those are what an estimate from every 16th sees."""
    values = np.full((1, 16_384), others)
    values[0, ::16] = sampled
    values += np.arange(16_384) / 2**20
    for lacking in (1, 300, 2_000, 20_000):
        log_ratio = np.concatenate([values, np.full((1, lacking), 1e-3)], 1)
        inputs = [torch.from_numpy(log_ratio), torch.zeros(log_ratio.shape, dtype=torch.float64)]
        inputs += [torch.ones(log_ratio.shape, dtype=torch.bool), torch.ones(log_ratio.shape, dtype=torch.float64)]
        expected = by_sorting(log_ratio, np.ones(log_ratio.shape), 0.04)
        np.testing.assert_array_equal(mask_of(lambda x: m2po(x, 0.04), inputs, 1), expected)


def test_m2po_in_float32_differs_by_rounding_only():
    for seed in range(4):
        log_ratio, advantages, inputs = tokens(seed, (90, 2_000), 0.3, torch.float32)
        keep = mask_of(lambda x: m2po(x, 0.04), inputs, 32)
        assert np.abs(keep - by_sorting(log_ratio, advantages, 0.04)).sum() <= 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", SHAPES)
def test_bapo_clips_as_trying_all_bounds_would(shape, dtype):
    clipped = set()
    for seed in range(4 if math.prod(shape) < 10_000 else 1):
        _, advantages, inputs = tokens(seed, shape, 0.8, dtype, on_bounds=True)
        log_ratio = (inputs[0] * inputs[2]).numpy()  # in float32 a bound's logarithm is another number
        # Shares that the first bounds have, that none has, and that others have first: the 1st, 7th ... c_high.
        shares = [0.01, 0.99]
        for step in (1, 7, 18, 30, 36):
            around = [share_of_positive(log_ratio, advantages, LOWS[0], HIGHS[at]) for at in (step - 1, step)]
            shares += [sum(around) / 2] if around[0] < around[1] else []
        for share in shares:
            expected = by_trying_all_bounds(log_ratio, advantages, share)
            clipped.add(expected.mean())
            for rows in (2, shape[0]):
                np.testing.assert_array_equal(mask_of(lambda x: bapo(x, share), inputs, rows), expected)  # noqa: B023
    assert len(clipped) >= 6 or math.prod(shape) < 100
