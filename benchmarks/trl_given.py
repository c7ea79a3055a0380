"""TRL's GRPO loss on log-probabilities that are given, for the workers that an interpreter with TRL runs."""

from __future__ import annotations

import os
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer


class GivenLogprobs(GRPOTrainer):
    """`GRPOTrainer._compute_loss` with its metrics; the model's pass is left out."""

    def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
        return self.given, self.entropies, None

    def gradient(self, logprob: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Of the loss with respect to `logprob`, [batch, response]."""
        self.given, self.entropies = logprob.detach().requires_grad_(), inputs["entropies"]
        self._compute_loss(self.model, inputs).backward()
        return self.given.grad


def batch(old_logprob: torch.Tensor, action_mask: torch.Tensor, advantages: torch.Tensor) -> dict[str, torch.Tensor]:
    """What `gradient` takes; [batch, response] each, one advantage a response, entropies of zero."""
    rows, length = old_logprob.shape
    prompt = torch.ones(rows, 1, dtype=torch.long)
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt,
        "completion_ids": torch.ones(rows, length, dtype=torch.long),
        "completion_mask": action_mask.int(),
        "advantages": (advantages * action_mask).sum(1) / action_mask.sum(1).clamp(min=1),
        "old_per_token_logps": old_logprob,
        "num_items_in_batch": action_mask.sum(),
        "entropies": torch.zeros_like(old_logprob),
    }


def trainer(model: str, folder: str, **arguments: Any) -> GivenLogprobs:
    """TRL's trainer on a CPU; `arguments` are GRPOConfig's."""
    made = GivenLogprobs(
        model=AutoModelForCausalLM.from_pretrained(model),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=GRPOConfig(output_dir=folder, use_cpu=True, bf16=False, report_to="none", **arguments),
        train_dataset=Dataset.from_list([{"prompt": "1"}] * 8),
        processing_class=AutoTokenizer.from_pretrained(model),
    )
    made.current_gradient_accumulation_steps = 1
    made.model.train()
    return made
