"""TRL's GRPO loss, a turn for each line on standard input; run by an interpreter that has TRL.

    python trl_loss_worker.py '{"model": "DIR"}'

A line, `32x8192 token 0.2 0.2 5`, is a size, a level of importance sampling, the clip range, and how many calls count;
the answer is a JSON line with the CPU seconds of a call, forward and backward, its peak memory and the norm of its
gradient. The loss is `GRPOTrainer._compute_loss` with its metrics; the model's pass is left out by handing it the
log-probabilities of benchmarks/objective.py.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

config = json.loads(sys.argv[1])
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what libraries print is not an answer

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from side_by_side import cpu_seconds, responses  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.counted import peak_bytes  # noqa: E402

torch.set_num_threads(1)


class GivenLogprobs(GRPOTrainer):
    """Takes the policy's log-probabilities from the inputs, with entropies of zero."""

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        return self.given, self.entropies, None


def trainer(level: str, folder: str) -> GivenLogprobs:
    """ "bnpo" is the token mean over the batch, "grpo" the mean over responses that goes with a sequence ratio."""
    made = GivenLogprobs(
        model=AutoModelForCausalLM.from_pretrained(config["model"]),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(
            output_dir=folder,
            use_cpu=True,
            bf16=False,
            report_to="none",
            loss_type="bnpo" if level == "token" else "grpo",
            importance_sampling_level=level,
        ),
        train_dataset=Dataset.from_list([{"prompt": "1"}] * 8),
        processing_class=AutoTokenizer.from_pretrained(config["model"]),
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made


with tempfile.TemporaryDirectory() as folder:
    trainers = {level: trainer(level, folder) for level in ("token", "sequence")}
    batches = {}
    for line in sys.stdin:
        size, level, epsilon_low, epsilon_high, calls = line.split()
        rows, length = map(int, size.split("x"))
        if size not in batches:
            batches = {size: responses(rows, length)}
        data, chosen = batches[size], trainers[level]
        prompt = torch.ones(rows, 1, dtype=torch.long)
        inputs = {
            "prompt_ids": prompt,
            "prompt_mask": prompt,
            "completion_ids": torch.ones(rows, length, dtype=torch.long),
            "completion_mask": data["action_mask"].int(),
            "advantages": data["advantages"].amax(1) + data["advantages"].amin(1),
            "old_per_token_logps": data["old_logprob"],
        }
        chosen.epsilon_low, chosen.epsilon_high = float(epsilon_low), float(epsilon_high)
        chosen.entropies = torch.zeros(rows, length)

        def step(chosen=chosen, data=data, inputs=inputs):
            chosen.given = data["logprob"].detach().requires_grad_()
            chosen._compute_loss(chosen.model, inputs).backward()
            return chosen.given.grad

        seconds = cpu_seconds(step, int(calls))
        answer = {"seconds": seconds, "peak_bytes": peak_bytes(step), "gradient_norm": step().norm().item()}
        print(json.dumps(answer), file=answers)
