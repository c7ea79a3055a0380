"""verl 0.8.0's training workers without a GPU: five assumptions of one undone, nothing of the training itself changed.

verl's own hook imports this module into every worker, and importing it applies the patches where there is no GPU:

    VERL_USE_EXTERNAL_MODULES=trinity_rec.without_gpu.verl_workers
"""

from __future__ import annotations

from types import ModuleType

import torch

from trinity_rec.without_gpu.patching import when_imported


def register_engines_for_cpu(module: ModuleType) -> None:
    """verl registers its training engines for accelerators only; FSDP2 itself runs on the CPU."""
    registry = module.EngineRegistry
    register = registry.register.__func__

    def register_also_for_cpu(cls, model_type, backend, device="cuda"):
        devices = list(device) if isinstance(device, list) else [device]
        if {"fsdp", "fsdp2"} & set(backend if isinstance(backend, list) else [backend]):
            devices.append("cpu")
        return register(cls, model_type, backend, devices)

    registry.register = classmethod(register_also_for_cpu)


def start_gloo(module: ModuleType) -> None:
    """verl asks for NCCL beside gloo."""
    start = module.initialize_global_process_group_ray
    module.initialize_global_process_group_ray = lambda timeout_second=None, backend=None: start(timeout_second, "gloo")


def unpad_without_flash_attention(module: ModuleType) -> None:
    """verl takes four functions that move padding from flash-attn; transformers has them in plain torch."""

    def functions():
        from transformers import modeling_flash_attention_utils as pure_torch

        return pure_torch._index_first_axis, pure_torch._pad_input, None, pure_torch._unpad_input

    module._get_attention_functions = functions


def offload_without_pinned_memory(module: ModuleType) -> None:
    """The reference model is offloaded to pinned memory, which torch allocates through CUDA."""
    policy = module.CPUOffloadPolicy
    module.CPUOffloadPolicy = lambda pin_memory=False: policy(pin_memory=False)


def give_cpu_a_memory_api() -> None:
    """verl asks the device for memory figures that `torch.cpu` does not keep, and CUDA for its compute capability."""
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, lambda *args, **kwargs: 0)
    if not hasattr(torch.cpu, "empty_cache"):
        torch.cpu.empty_cache = lambda: None
    torch.cuda.get_device_capability = lambda *args, **kwargs: (0, 0)


if not torch.cuda.is_available():
    give_cpu_a_memory_api()
    when_imported("verl.workers.engine.base", register_engines_for_cpu)
    when_imported("verl.utils.distributed", start_gloo)
    when_imported("verl.utils.attention_utils", unpad_without_flash_attention)
    when_imported("verl.workers.engine.fsdp.transformer_impl", offload_without_pinned_memory)
