"""A process that is verl's only training worker, on the CPU: its environment and Trinity's config of it."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from trinity_rec.without_gpu import verl_workers


def lone_worker_environment() -> dict[str, str]:
    """The variables with which a process is verl's only worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return world | {"VERL_USE_EXTERNAL_MODULES": verl_workers.__name__}


def lone_worker_config(
    model_dir: Path | str, responses: int, prompt: int, response: int, learning_rate: float, **algorithm: Any
) -> Any:
    """Trinity's config of such a worker, in float32, with the defaults of what `algorithm` does not say."""
    from trinity.common.config import Config
    from trinity.common.config_validator import AlgorithmConfigValidator

    config = Config()
    config.mode = "train"
    for key, value in algorithm.items():
        setattr(config.algorithm, key, value)
    config.algorithm.optimizer.lr = learning_rate
    AlgorithmConfigValidator().validate(config)
    model, cluster, trainer = config.model, config.cluster, config.trainer
    model.model_path = model.critic_model_path = str(model_dir)
    model.max_prompt_tokens, model.max_response_tokens = prompt, response
    model.max_model_len = prompt + response
    config.buffer.train_batch_size = config.buffer.batch_size = responses
    cluster.trainer_gpu_num = cluster.trainer_gpu_num_per_node = cluster.trainer_node_num = 1
    trainer.trainer_strategy, trainer.use_remove_padding, trainer.total_steps = "fsdp2", False, 100
    trainer.max_token_len_per_gpu = responses * (prompt + response)
    float32 = dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
    engine = {"use_torch_compile": False, "mixed_precision": float32}
    trainer.trainer_config = {
        "model": {"override_config": {"attn_implementation": "sdpa"}},
        "actor": {"fsdp_config": dict(engine)},
        "ref": {"fsdp_config": dict(engine)},
    }
    return config


def update(worker: Any, data: Any, responses: int, **more: Any) -> dict[str, Any]:
    """One update by all of `data`, a TensorDict without padding, as VERLTrainer.train_step asks for it; its metrics."""
    from verl.utils import tensordict_utils

    tensordict_utils.assign_non_tensor(
        data,
        calculate_entropy=False,
        global_batch_size=responses,
        mini_batch_size=responses,
        epochs=1,
        seed=1,
        dataloader_kwargs={"shuffle": False},
        temperature=1.0,
        compute_loss=True,
        **more,
    )
    return tensordict_utils.get(worker.update_actor(data), "metrics")
