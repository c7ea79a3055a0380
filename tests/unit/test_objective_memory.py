"""Counted work: how much memory a call holds at once by the allocator's own events, on any machine and at any load."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from trinity_rec.objective import _BLOCK, Objective
from trinity_rec.presets import PRESETS

BLOCKS = 14  # float32 blocks that the widest objective holds at once


def peak_bytes(run):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert events
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def batch(rows, length):
    generator = torch.Generator().manual_seed(0)
    logprob = -torch.rand(rows, length, generator=generator)
    advantages = torch.randn(rows, 1, generator=generator).expand(rows, length).contiguous()
    return logprob, logprob + 0.1, torch.ones(rows, length, dtype=torch.bool), advantages


@pytest.mark.parametrize("metrics", ["basic", "full"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_step_holds_its_gradient_once_and_a_fixed_number_of_blocks(name, metrics):
    objective = Objective(**PRESETS[name].policy_loss, metrics=metrics)
    for rows, length in ((16, 8192), (64, 8192)):
        data = batch(rows, length)

        def step(data=data):
            logprob = data[0].detach().requires_grad_()
            objective(logprob, *data[1:])[0].backward()

        step()
        fixed = BLOCKS * 4 * _BLOCK + 1000 * rows  # and some sums a row
        assert peak_bytes(step) <= data[0].nbytes + fixed
        with torch.no_grad():
            assert peak_bytes(lambda data=data: objective(*data)) <= fixed


def test_a_long_response_is_a_block_of_its_own():
    objective = Objective(clip_mode="ring", weight="importance_sampling", metrics="full")
    data = batch(4, 4 * _BLOCK)
    with torch.no_grad():
        assert peak_bytes(lambda: objective(*data)) <= BLOCKS * data[0][0].nbytes + 10_000
