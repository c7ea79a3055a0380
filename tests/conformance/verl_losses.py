"""The policy losses of the installed verl, as functions of the tensors that ours takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from verl.trainer.config.algorithm import RolloutCorrectionConfig
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.config import ActorConfig, PolicyLossConfig


def verl_loss(mode: str, correction: dict[str, Any] | None = None, **config: Any) -> Callable[..., Tensor]:
    """The loss registered as `mode`, with the arguments of verl's actor; a token mean where the loss leaves it free."""

    def loss(logprob: Tensor, old_logprob: Tensor, mask: Tensor, advantages: Tensor) -> Tensor:
        actor = ActorConfig(
            strategy="fsdp",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            policy_loss=PolicyLossConfig(rollout_correction=RolloutCorrectionConfig(**(correction or {}))),
            global_batch_info={"dp_size": 1, "batch_num_tokens": int(mask.sum()), "global_batch_size": len(mask)},
            **config,
        )
        compute = get_policy_loss_fn(mode)
        return compute(old_logprob, logprob, advantages, mask.to(logprob.dtype), "token-mean", actor)[0]

    return loss


def reinforce(**correction: Any) -> Callable[..., Tensor]:
    """verl's REINFORCE with a rollout correction, where `old_logprob` is the sampler's."""
    return verl_loss("bypass_mode", {"bypass_mode": True, "loss_type": "reinforce", **correction})
