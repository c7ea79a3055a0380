"""tinker-cookbook's training loops, unpatched, against the local backend, with tokenizer and data sets from folders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.overlay import environment_with
from trinity_rec.quickstart import tiny_model

pytest.importorskip("tinker", reason="the Tinker SDK needs Python 3.11")

pytestmark = [pytest.mark.soak, pytest.mark.timeout(3600)]

COOKBOOK = "tinker-cookbook==0.5.8"
NAME = "Qwen/Qwen3-8B"  # whose renderer the cookbook knows
RECIPES = {  # the last is `rl.train`
    "sl_loop": ["batch_size=4"],
    "rl_loop": ["batch_size=4", "group_size=4", "max_tokens=8"],
    "math_rl.train": ["env=gsm8k", "groups_per_batch=4", "group_size=4", "max_tokens=8", "eval_every=0", "loss_fn=ppo"],
}


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> str:
    """An interpreter that has the cookbook."""
    return environment_with(tmp_path_factory.mktemp("cookbook") / "env", COOKBOOK, "sympy", "pylatexenc", "math-verify")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where model and data sets are under the names by which the recipes load them."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(Path(tiny_model.__file__).parent / "assets" / "model", folder / NAME)
    write(folder / "HuggingFaceH4/no_robots", [{"messages": turns(f"{n} + {n}?", f"{2 * n}")} for n in range(16)])
    write(folder / "openai/gsm8k/main", [{"question": f"{n} + {n}?", "answer": f"So. #### {2 * n}"} for n in range(16)])
    parts = "".join(f"  - split: {split}\n    path: main/{split}.jsonl\n" for split in ("train", "test"))
    card = f"---\nconfigs:\n- config_name: main\n  data_files:\n{parts}---\n"
    (folder / "openai/gsm8k/README.md").write_text(card)
    return folder


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def write(folder: Path, rows: list[dict]) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_to_its_end_and_its_weights_are_there(python, folder, tmp_path, recipe):
    root = tmp_path / "weights"
    command = [sys.executable, "-m", "trinity_rec.cli", "serve", f"--model={folder / NAME}", f"--name={NAME}"]
    server = subprocess.Popen([*command, f"--root={root}", "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        arguments = [f"base_url={server.stdout.readline().strip()}", f"log_path={tmp_path / 'log'}"]
        arguments += [f"model_name={NAME}", "max_steps=2", *RECIPES[recipe]]
        run = subprocess.run(
            [python, "-m", f"tinker_cookbook.recipes.{recipe}", *arguments],
            cwd=folder,
            env=os.environ | {"TINKER_API_KEY": "tml-cookbook", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert run.returncode == 0, run.stderr[-3000:]
    finally:
        server.terminate()
        server.wait(timeout=60)
    saved = json.loads((tmp_path / "log" / "checkpoints.jsonl").read_text().splitlines()[-1])
    for path in (saved["state_path"], saved["sampler_path"]):
        assert (root / path.removeprefix("tinker://") / "weights.safetensors").is_file()
    metrics = [json.loads(line) for line in (tmp_path / "log" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) >= 2
