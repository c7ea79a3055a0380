"""verl 0.8.0's trainer on a machine without a GPU, for tests and benchmarks; verl's own hook imports it into workers.

    VERL_USE_EXTERNAL_MODULES=tests.verl_cpu

verl registers its engines for accelerators only, asks torch for a device memory API that `torch.cpu` lacks, and starts
NCCL. Each patch below is one such assumption; nothing of the training itself is changed.
"""

from __future__ import annotations

import importlib.util
import socket
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch


def when_imported(name: str, patch: Callable[[ModuleType], None]) -> None:
    """Apply `patch` to a module now, or as soon as it has been imported: verl imports much of itself lazily."""
    if name in sys.modules:
        patch(sys.modules[name])
        return

    class Finder(MetaPathFinder):
        def find_spec(self, fullname, path, target=None):
            if fullname != name:
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(fullname)
            load = spec.loader.exec_module

            def load_and_patch(module: ModuleType) -> None:
                load(module)
                patch(module)

            spec.loader.exec_module = load_and_patch
            return spec

    sys.meta_path.insert(0, Finder())


def register_engines_for_cpu(module: ModuleType) -> None:
    registry = module.EngineRegistry
    register = registry.register.__func__

    def register_also_for_cpu(cls, model_type, backend, device="cuda"):
        devices = list(device) if isinstance(device, list) else [device]
        if {"fsdp", "fsdp2"} & set(backend if isinstance(backend, list) else [backend]):
            devices.append("cpu")
        return register(cls, model_type, backend, devices)

    registry.register = classmethod(register_also_for_cpu)


def start_gloo(module: ModuleType) -> None:
    start = module.initialize_global_process_group_ray
    module.initialize_global_process_group_ray = lambda timeout_second=None, backend=None: start(timeout_second, "gloo")


def unpad_without_flash_attention(module: ModuleType) -> None:
    def functions():
        from transformers import modeling_flash_attention_utils as pure_torch

        return pure_torch._index_first_axis, pure_torch._pad_input, None, pure_torch._unpad_input

    module._get_attention_functions = functions


def offload_without_pinned_memory(module: ModuleType) -> None:
    policy = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory=False: policy(pin_memory=False)


def give_cpu_a_memory_api() -> None:
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, lambda *args, **kwargs: 0)
    if not hasattr(torch.cpu, "empty_cache"):
        torch.cpu.empty_cache = lambda: None
    torch.cuda.get_device_capability = lambda *args, **kwargs: (0, 0)


def lone_worker_environment() -> dict[str, str]:
    """The variables with which a process is verl's only worker."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return world | {"VERL_USE_EXTERNAL_MODULES": __name__}


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


give_cpu_a_memory_api()
when_imported("verl.workers.engine.base", register_engines_for_cpu)
when_imported("verl.utils.distributed", start_gloo)
when_imported("verl.utils.attention_utils", unpad_without_flash_attention)
when_imported("verl.workers.engine.fsdp.transformer_impl", offload_without_pinned_memory)
