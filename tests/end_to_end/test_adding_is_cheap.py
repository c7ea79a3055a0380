"""A preset of existing arguments is one row and `make generate`; a clip rule is one function, one row, one test: tried
in a copy of the repository.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRESET = """    Preset(
        "rec_medium",
        "REC",
        "REC-OneSide-NoIS with a medium range",
        "section 2",
        "Between the narrow and the wide clip range.",
        {**ONE_SIDE, "epsilon_low": 0.4, "epsilon_high": 0.8},
    ),
"""
RULE = '''

def far_only(x: "Tokens", epsilon_high: EpsilonHigh) -> "Tensor":
    """1{rho <= 1+eps_high}

    An example.
    """
    return _inside(x.log_ratio, -math.inf, math.log(1 + epsilon_high))
'''
TEST = """
import torch

from trinity_rec.objective import Objective


def test_far_only():
    logprob = torch.tensor([[0.0, 1.0]], requires_grad=True)
    loss, metrics = Objective(clip_mode="far-only", epsilon_high=0.5)(
        logprob, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2)
    )
    loss.backward()
    assert logprob.grad.tolist() == [[-0.5, 0.0]] and metrics["pg_clipfrac"] == 0.5
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_row_and_a_rule_leave_the_tests_green(tmp_path):
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", ".*_cache", ".hypothesis")
    shutil.copytree(ROOT, copy, ignore=ignored)
    presets, clip = copy / "trinity_rec/presets.py", copy / "trinity_rec/objective/clip.py"
    presets.write_text(
        presets.read_text().replace(
            '    Preset(\n        "rec_oneside_is"', PRESET + '    Preset(\n        "rec_oneside_is"', 1
        )
    )
    rules = clip.read_text().replace("\n\ndef _one_side(", f"{RULE}\n\ndef _one_side(", 1)
    row = '    "ring": ring,\n'
    clip.write_text(rules.replace(row, f'{row}    "far-only": far_only,\n', 1))
    (copy / "tests/unit/test_far_only.py").write_text(TEST)
    env = {**os.environ, "PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}

    def run(*command):
        done = subprocess.run(
            [sys.executable, *command], cwd=copy, env=env, capture_output=True, text=True, timeout=800
        )
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    run("scripts/generate.py")
    assert (copy / "configs/algorithms/rec_medium.yaml").exists()
    assert "rec_medium" in (copy / "docs/presets.md").read_text()
    # The tests that go through every preset, every rule, every page.
    names = (
        "far_only",
        "commands_catalogue",
        "commands_schema",
        "commands_arguments",
        "docs_tables",
        "docs_reproduction",
    )
    names += ("paper_experiments", "objective_arguments", "objective_memory", "readme")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *(f"tests/unit/test_{name}.py" for name in names))
    assert "passed" in done
