"""Counted work, which is the same on any machine and at any load: bytes held at once, and calls of torch's kernels."""

import pytest
import torch

from tests.counted import Kernels, peak_bytes
from trinity_rec.objective import Objective
from trinity_rec.objective.rows import BLOCK
from trinity_rec.presets import PRESETS

# A name for each distinct loss, and those that go through a batch more than once, since they take a statistic of it.
LOSSES = {tuple(sorted(preset.policy_loss.items())): name for name, preset in reversed(PRESETS.items())}.values()
OF_THE_BATCH = ("off_m2po", "off_bapo", "off_p3o")
ROW_BY_ROW = [name for name in LOSSES if name not in OF_THE_BATCH]

BLOCKS = 10  # float32 blocks that the widest rule holds at once
INPUT_BYTES = 13  # of a token: logprob, old_logprob and advantages in float32, and a mask of bool
MULTIPLE = 2.5  # of the inputs, for any batch (docs/performance.md)


def batch(rows, length):
    generator = torch.Generator().manual_seed(0)
    logprob = -torch.rand(rows, length, generator=generator)
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, length).contiguous()
    return logprob, logprob + 0.1, torch.ones(rows, length, dtype=torch.bool), advantages


def step(objective, data):
    logprob = data[0].detach().requires_grad_()
    objective(logprob, *data[1:])[0].backward()


@pytest.mark.parametrize("metrics", ["basic", "full"])
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_a_step_holds_its_gradient_once_and_a_fixed_number_of_blocks(name, metrics):
    objective = Objective(**PRESETS[name].policy_loss, metrics=metrics)
    for rows, length in ((16, 8192), (64, 8192)):
        data = batch(rows, length)
        step(objective, data)
        fixed = BLOCKS * 4 * BLOCK + 1000 * rows  # and some sums a row
        assert peak_bytes(lambda data=data: step(objective, data)) <= data[0].nbytes + fixed
        with torch.no_grad():
            assert peak_bytes(lambda data=data: objective(*data)) <= fixed


SHAPES = ((1, 1024), (8, 1024), (512, 1024), (1, 65_536), (8, 65_536), (3, 100_000), (4096, 3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", LOSSES)
def test_no_batch_takes_more_than_a_fixed_multiple_of_its_inputs(shape, name):
    objective = Objective(**PRESETS[name].policy_loss, metrics="full")
    data = batch(*shape)
    data[1][:, ::2] -= 0.5  # far enough off that M2PO drops tokens
    per_response = 500 * shape[0]  # sums in float64
    assert peak_bytes(lambda: step(objective, data)) <= MULTIPLE * INPUT_BYTES * data[0].numel() + per_response + 10_000


@pytest.mark.parametrize("metrics, each_block, besides", [("basic", 29, 8), ("full", 52, 8)])
@pytest.mark.parametrize("name", ROW_BY_ROW)
def test_a_step_calls_so_many_kernels(name, metrics, each_block, besides):
    """Per block, and once a call: an operation more is a tenth of a small batch's time."""
    objective = Objective(**PRESETS[name].policy_loss, metrics=metrics)
    calls = []
    for blocks in (1, 2, 3):
        data = batch(blocks, BLOCK)
        with Kernels() as kernels:
            step(objective, data)
        calls.append(kernels.calls)
    assert calls[2] - calls[1] <= each_block
    assert calls[0] - (calls[2] - calls[1]) <= besides, calls
