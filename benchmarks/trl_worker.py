"""TRL's GRPOTrainer, one training step for each line on standard input; run by an interpreter that has TRL.

    python trl_worker.py '{"model": "DIR", "prompts": ["..."], "group": 8, "max_tokens": 24, "threads": 2, ...}'

Answers each line with a JSON line: the step's seconds, how many of them were spent in `generate`, and the tokens
generated and trained on. benchmarks/local_backend.py lets it take turns with our own server this way.
"""

import json
import os
import sys
import tempfile
import time

config = json.loads(sys.argv[1])
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(config["threads"])}
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)  # what libraries print is not an answer

import torch  # noqa: E402
from datasets import Dataset  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402
from trl import GRPOConfig, GRPOTrainer  # noqa: E402


class TimedTrainer(GRPOTrainer):
    """Notes what TRL spends in generation, by the narrowest measure: `generate` and what prepares its tensors."""

    generate_seconds = generate_cpu_seconds = 0.0
    generated_tokens = trained_tokens = 0

    def _generate_single_turn(self, *args, **kwargs):
        started, cpu = time.perf_counter(), time.process_time()
        try:
            return super()._generate_single_turn(*args, **kwargs)
        finally:
            self.generate_seconds += time.perf_counter() - started
            self.generate_cpu_seconds += time.process_time() - cpu

    def _compute_loss(self, model, inputs):
        self.generated_tokens += int(inputs["completion_mask"].sum())
        self.trained_tokens += int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
        return super()._compute_loss(model, inputs)


class OnCommand(TrainerCallback):
    """Waits before each step for a line, and answers it after."""

    def on_step_begin(self, args, state, control, **kwargs):
        if not sys.stdin.readline():
            os._exit(0)
        trainer.generate_seconds = trainer.generate_cpu_seconds = 0.0
        trainer.generated_tokens = trainer.trained_tokens = 0
        self.started, self.cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
        answer = {
            "step": seconds,
            "sample": trainer.generate_seconds,
            "train": seconds - trainer.generate_seconds,
            "step_cpu": cpu,
            "sample_cpu": trainer.generate_cpu_seconds,
            "train_cpu": cpu - trainer.generate_cpu_seconds,
            "generated_tokens": trainer.generated_tokens,
            "trained_tokens": trainer.trained_tokens,
        }
        print(json.dumps(answer), file=answers)


def reward(completion_ids, **_):
    """Differs within every group, so that there always is a gradient."""
    return [sum(ids) % 7 / 7 for ids in completion_ids]


torch.set_num_threads(config["threads"])
prompts = config["prompts"]
with tempfile.TemporaryDirectory() as folder:
    arguments = GRPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=config["bf16"],
        gradient_checkpointing=False,  # TRL's default is True, which is slower
        per_device_train_batch_size=len(prompts) * config["group"] // config["accumulate"],
        gradient_accumulation_steps=config["accumulate"],
        num_generations=config["group"],
        max_completion_length=config["max_tokens"],
        max_steps=1_000_000,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        shuffle_dataset=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(config["model"], dtype=torch.float32, attn_implementation="sdpa")
    trainer = TimedTrainer(
        model=model,
        reward_funcs=reward,
        args=arguments,
        train_dataset=Dataset.from_list([{"prompt": prompt} for prompt in prompts]),
        processing_class=AutoTokenizer.from_pretrained(config["model"]),
        callbacks=[OnCommand()],
    )
    trainer.train()
