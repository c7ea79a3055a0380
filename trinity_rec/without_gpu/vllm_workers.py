"""Trinity 0.6.0's vLLM rollout model on vLLM's CPU backend: assumptions of a GPU undone, for one engine of one worker.

vLLM's own hook, its entry points `vllm.general_plugins`, calls `register` in each process of an engine. Nothing of the
sampling is changed, and of the weight transfer only where tensors lie.
"""

from __future__ import annotations

import os
from functools import cache
from types import ModuleType

from trinity_rec.without_gpu import ASKED
from trinity_rec.without_gpu.patching import when_imported


@cache  # vLLM may call it more than once
def register() -> None:
    """Apply the patches where our launcher asked for them and there is no GPU."""
    if ASKED not in os.environ:
        return
    import torch

    if torch.cuda.is_available():
        return
    when_imported("trinity.common.models.vllm_worker", derive_worker_from_cpu_worker)
    when_imported("trinity.common.models.vllm_extension", receive_weights_on_cpu)


def derive_worker_from_cpu_worker(module: ModuleType) -> None:
    """Trinity names its subclass of vLLM's GPU worker, which knows no CPU. vLLM's CPU worker derives from the same
    class, so a class of both has Trinity's methods first and the CPU's next."""
    from vllm.v1.worker.cpu_worker import CPUWorker

    bases = (module.TrinityGPUWorker, CPUWorker)
    module.TrinityGPUWorker = type("TrinityGPUWorker", bases, {"__module__": module.__name__})


def receive_weights_on_cpu(module: ModuleType) -> None:
    """Trinity moves each received tensor to "cuda" and broadcasts it to other workers on a CUDA stream. Here it stays
    where it is; the stream is asked for but, with one worker, never used."""
    import torch

    pack = module.pack_tensors

    def pack_in_place(iterator, post_iter_func, buffer_size_bytes):
        return pack(iterator, lambda item: item[1], buffer_size_bytes)

    module.pack_tensors = pack_in_place
    torch.accelerator.current_device_index = lambda: 0
    torch.cuda.current_stream = lambda device=None: None
