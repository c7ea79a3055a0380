"""TRL's GRPO loss, a turn for each line on standard input; run by an interpreter that has TRL.

    python trl_loss_worker.py '{"model": "DIR"}'

A line, `32x8192 token 0.2 0.2 5`, is a size, a level of importance sampling, the clip range, and how many calls count;
the answer is a JSON line with the CPU seconds of a call, forward and backward, its peak memory and the norm of its
gradient. The log-probabilities are those of benchmarks/objective.py.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

config = json.loads(sys.argv[1])
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what libraries print is not an answer

import torch  # noqa: E402
from side_by_side import cpu_seconds, responses  # noqa: E402
from trl_given import batch, trainer  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.counted import peak_bytes  # noqa: E402

torch.set_num_threads(1)

# "bnpo" is the token mean over the batch, "grpo" the mean over responses that goes with a sequence ratio.
LOSS_TYPES = {"token": "bnpo", "sequence": "grpo"}

with tempfile.TemporaryDirectory() as folder:
    trainers = {
        level: trainer(config["model"], folder, loss_type=loss_type, importance_sampling_level=level)
        for level, loss_type in LOSS_TYPES.items()
    }
    batches = {}
    for line in sys.stdin:
        size, level, epsilon_low, epsilon_high, calls = line.split()
        if size not in batches:
            data = responses(*map(int, size.split("x")))
            batches = {size: (data.pop("logprob"), batch(**data))}
        chosen = trainers[level]
        chosen.epsilon_low, chosen.epsilon_high = float(epsilon_low), float(epsilon_high)

        def step(chosen=chosen, given=batches[size]):
            return chosen.gradient(*given)

        seconds = cpu_seconds(step, int(calls))
        answer = {"seconds": seconds, "peak_bytes": peak_bytes(step), "gradient_norm": step().norm().item()}
        print(json.dumps(answer), file=answers)
