"""One process that is verl's own worker, without Trinity: trains a step with each loss mode and prints gradient norms.

Run by tests/integration/test_verl_alone.py: `python -m tests.verl_alone MODEL_DIR BATCH LOSS_MODE...`.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
import verl
from hydra import compose, initialize_config_dir
from tensordict import TensorDict
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config import ActorConfig
from verl.workers.engine_workers import ActorRolloutRefWorker
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import left_right_2_no_padding

from tests.lone_worker import update

FLOAT32 = "{param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32}"


def config_of(model_dir: str, responses: int):
    with initialize_config_dir(str(Path(verl.__file__).parent / "trainer" / "config"), version_base=None):
        return compose(
            "ppo_trainer",
            overrides=[
                f"actor_rollout_ref.model.path={model_dir}",
                "actor_rollout_ref.model.use_remove_padding=false",
                "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
                "actor_rollout_ref.actor.strategy=fsdp2",
                "actor_rollout_ref.actor.use_dynamic_bsz=true",
                "actor_rollout_ref.actor.use_torch_compile=false",
                f"actor_rollout_ref.actor.ppo_mini_batch_size={responses}",
                "actor_rollout_ref.actor.optim.lr=0.0",
                "actor_rollout_ref.actor.fsdp_config.use_torch_compile=false",
                f"+actor_rollout_ref.actor.fsdp_config.mixed_precision={FLOAT32}",
                "actor_rollout_ref.rollout.name=vllm",
                "actor_rollout_ref.rollout.n=1",
            ],
        ).actor_rollout_ref


def main(model_dir: str, batch: str, *loss_modes: str) -> None:
    rollouts = torch.load(batch)
    size = len(rollouts["responses"])
    config = config_of(model_dir, size)
    actor = ActorRolloutRefWorker(config=config, role="actor")
    actor.init_model()
    norms = {}
    for mode in loss_modes:
        config.actor.policy_loss.loss_mode = mode
        actor_config: ActorConfig = omega_conf_to_dataclass(config.actor)
        actor.set_loss_fn(partial(ppo_loss, config=actor_config))
        data = left_right_2_no_padding(TensorDict(rollouts, batch_size=size))
        metrics = update(actor, data, size, use_dynamic_bsz=True, max_token_len_per_gpu=12)
        norm = metrics["grad_norm"]
        norms[mode] = float(norm[0] if isinstance(norm, list) else norm)
    assert "trinity" not in sys.modules
    print(json.dumps(norms))


if __name__ == "__main__":
    main(*sys.argv[1:])
