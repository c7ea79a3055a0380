"""`compile: true` changes the speed and nothing else, once for all lengths, and steps back where it cannot work."""

import os
import subprocess
import sys

import pytest
import torch
from torch._dynamo.utils import counters

from trinity_rec.objective import Objective


def batch(rows, length, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logprob = -3 * torch.rand(rows, length, generator=generator, dtype=dtype)
    old_logprob = logprob + 0.3 * torch.randn(rows, length, generator=generator, dtype=dtype)
    mask = torch.rand(rows, length, generator=generator) < 0.8
    advantages = torch.randn(rows, 1, generator=generator, dtype=dtype).expand(rows, length)
    # What is masked may hold anything.
    return logprob, old_logprob.masked_fill(~mask, float("nan")), mask, advantages


def differentiate(objective, logprob, *rest):
    logprob = logprob.clone().requires_grad_()
    loss, metrics = objective(logprob, *rest)
    loss.backward()
    return loss.detach(), logprob.grad, metrics


@pytest.mark.parametrize(
    "arguments",
    [
        {"clip_mode": "ring", "weight": "importance_sampling", "metrics": "full"},
        {"clip_mode": "gspo-one-side", "weight": "gspo_importance_sampling", "regularizer": "k2-sequence"},
        {"clip_mode": "one-side", "weight": "advantage", "regularizer": "forward-kl"},
    ],
    ids=lambda arguments: arguments["clip_mode"],
)
def test_compiled_and_eager_agree_at_every_length_without_compiling_again(arguments):
    torch.compiler.reset()
    objective = Objective(**arguments, regularizer_coef=0.1)
    compiled = Objective(**arguments, regularizer_coef=0.1, compile=True)
    graphs = []
    for rows, length in ((4, 96), (6, 100), (3, 7), (8, 1023), (5, 64), (3, 4097), (2, 8192), (5, 10_000), (4, 128)):
        data = batch(rows, length, seed=length)
        expected, actual = differentiate(objective, *data), differentiate(compiled, *data)
        torch.testing.assert_close(actual[1], expected[1], rtol=1e-6, atol=1e-6 * expected[1].abs().max().item())
        torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-6)
        assert actual[2] == pytest.approx(expected[2], rel=1e-4, abs=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0, "nothing was compiled"
    # Inductor sums more than 4096 tokens otherwise, so that is compiled for itself.
    assert len(set(graphs[:5])) == 1 and len(set(graphs[5:])) == 1, f"compiled again for another length: {graphs}"
    assert graphs[-1] <= graphs[0] + 1
    torch.compiler.reset()


def test_many_objectives_are_compiled_in_one_process():
    """Dynamo gives up on a function that it has compiled eight times; seventeen presets are not one function."""
    torch.compiler.reset()
    data = batch(3, 20)
    before = counters["stats"]["unique_graphs"]
    for coef in range(1, 12):
        differentiate(Objective(regularizer="k2", regularizer_coef=coef / 10, compile=True), *data)
    assert counters["stats"]["unique_graphs"] == before + 11
    torch.compiler.reset()


def test_without_a_compiler_there_is_one_warning_and_the_same_gradient(tmp_path):
    script = """
import torch, warnings
from trinity_rec.objective import Objective
torch.manual_seed(0)
data = -torch.rand(3, 5), -torch.rand(3, 5), torch.ones(3, 5, dtype=torch.bool), torch.randn(3, 5)
gradients = []
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for compile in (False, True, True):
        logprob = data[0].clone().requires_grad_()
        Objective(clip_mode="one-side", compile=compile)(logprob, *data[1:])[0].backward()
        gradients.append(logprob.grad)
assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
print(*(warning.message for warning in caught if "compile=True" in str(warning.message)), sep="\\n")
"""
    environment = {**os.environ, "CXX": str(tmp_path / "no-compiler"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr
    warned = run.stdout.strip().splitlines()
    assert len(warned) == 1 and warned[0].startswith("compile=True has no effect here"), run.stdout
