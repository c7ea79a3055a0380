"""Counted work of the advantages: what an experience costs does not depend on how many there are."""

import sys
from itertools import pairwise

import pytest
import torch
from trinity.common.experience import EID, Experience

from tests.counted import Kernels
from trinity_rec.plugin.advantage import RECAdvantage

GROUP = 8


def batch(count):
    generator = torch.Generator().manual_seed(0)
    rewards = (torch.rand(count, generator=generator) < 0.4).double().tolist()
    return [
        Experience(
            eid=EID(batch=0, task=i // GROUP, run=i % GROUP, suffix=""),
            tokens=torch.zeros(20, dtype=torch.int32),
            prompt_length=4,
            reward=reward,
            logprobs=torch.full((16,), -0.5),
        )
        for i, reward in enumerate(rewards)
    ]


def work(advantage, count):
    """Calls of torch's kernels, and of functions of Python or C, over `count` experiences."""
    experiences = batch(count)
    with Kernels() as kernels:
        advantage.process(experiences)
    functions = 0

    def note(frame, event, argument):
        nonlocal functions
        functions += event in ("call", "c_call")

    experiences = batch(count)
    sys.setprofile(note)
    try:
        advantage.process(experiences)
    finally:
        sys.setprofile(None)
    return kernels.calls, functions


@pytest.mark.parametrize(
    "arguments",
    [{}, {"std_normalize": True}, {"drop": "balance"}, {"pairwise": "reward-gap"}, {"reweight": "adaptive"}],
    ids=str,
)
def test_the_work_is_linear_in_the_number_of_experiences(arguments):
    advantage = RECAdvantage(**arguments)
    work(advantage, 64)  # what is made once
    counts = (2048, 4096, 8192)
    done = [work(advantage, count) for count in counts]
    for kind, at_most in ((0, 2.05), (1, 21)):
        each = [(b[kind] - a[kind]) / 2048 for a, b in pairwise(done)]
        each[1] /= 2
        assert each[1] <= each[0] * 1.05 + 0.05, f"more for each experience, the more there are: {each}"
        assert each[1] <= at_most, f"an experience costs {each[1]} calls"
