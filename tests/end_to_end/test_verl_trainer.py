"""Trinity's own VERLTrainer on the CPU, by `trinity run` in `mode: train`: with a reference model, and without.

With the Tinker set's versions; tests/vllm has the same in each CI run, with those of the main road.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
import yaml
from trinity.buffer import get_buffer_writer
from trinity.common.config import StorageConfig
from trinity.common.experience import EID, Experience

import trinity_rec
from tests.tiny_model import make_tiny_model
from trinity_rec.session import Session

BATCH, STEPS = 8, 2


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def experiences(tmp_path) -> str:
    """A database of rollouts as an explorer leaves them, enough for every step; a run consumes them."""
    generator = torch.Generator().manual_seed(0)
    exps = []
    for task in range(BATCH * STEPS // 4):
        for run in range(4):
            length = 2 + (task + run) % 5
            exps.append(
                Experience(
                    eid=EID(batch=0, task=task, run=run),
                    tokens=torch.randint(5, 200, (6 + length,), generator=generator),
                    prompt_length=6,
                    logprobs=-3 - torch.rand(length, generator=generator),
                    reward=float(run == 0),
                    info={"model_version": 0},
                )
            )
    exps, _ = trinity_rec.RECAdvantage().process(exps)
    path = f"sqlite:///{tmp_path}/experiences.db"

    async def write() -> None:
        writer = get_buffer_writer(
            StorageConfig(
                name="experiences", storage_type="sql", path=path, schema_type="experience", wrap_in_ray=False
            )
        )
        await writer.write(exps)

    asyncio.run(write())
    return path


def config(model_dir: Path, experiences: str, root: Path, algorithm: dict) -> dict:
    float32 = {"use_torch_compile": False} | {
        "mixed_precision": dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32")
    }
    return {
        "mode": "train",
        "project": "tests",
        "name": "verl",
        "checkpoint_root_dir": str(root),
        "algorithm": {"optimizer": {"lr": 1e-3}, **algorithm},
        "model": {
            "model_path": str(model_dir),
            "max_prompt_tokens": 16,
            "max_response_tokens": 16,
            "max_model_len": 32,
        },
        "cluster": {"node_num": 1, "gpu_per_node": 2},
        "explorer": {"rollout_model": {"engine_num": 1}},
        "buffer": {
            "batch_size": BATCH,
            "train_batch_size": BATCH,
            "total_epochs": 1,
            "trainer_input": {
                "experience_buffer": {
                    "name": "experiences",
                    "storage_type": "sql",
                    "path": experiences,
                    "schema_type": "experience",
                }
            },
        },
        "trainer": {
            "trainer_type": "verl",
            "trainer_strategy": "fsdp2",
            "use_remove_padding": False,
            "max_token_len_per_gpu": 256,
            "total_steps": STEPS,
            "save_interval": 100,
            "trainer_config": {
                "model": {"override_config": {"attn_implementation": "sdpa"}},
                "actor": {"fsdp_config": float32},
                "ref": {"fsdp_config": float32},
            },
        },
        "synchronizer": {"sync_method": "checkpoint", "sync_interval": 100},
        "monitor": {"monitor_type": "tensorboard"},
        "ignore_validator_suggestions": True,
    }


@pytest.mark.soak
@pytest.mark.parametrize(
    "algorithm, reference",
    [
        ({"algorithm_type": "trinity_rec.rec_grpo", "kl_loss_fn": "k2", "kl_loss_fn_args": {"kl_coef": 0.0}}, False),
        ({"algorithm_type": "trinity_rec.rec_grpo", "kl_loss_fn_args": {"kl_coef": 0.01}}, True),
    ],
)
def test_a_reference_model_runs_only_for_a_kl_term(model_dir, experiences, tmp_path, algorithm, reference):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config(model_dir, experiences, tmp_path / "runs", algorithm)))
    with Session(tmp_path / "logs") as session:
        session.env["VERL_USE_EXTERNAL_MODULES"] = "trinity_rec.without_gpu.verl_workers"
        session.start_ray(gpus=2)
        steps = list(session.run_trinity(path, job_root=tmp_path / "runs", total_steps=STEPS))
    assert [step.number for step in steps] == list(range(1, STEPS + 1))
    for step in steps:
        assert step.metrics["actor/grad_norm"] > 0
        assert ("actor/kl_loss" in step.metrics) is reference
        assert ("time/ref" in step.metrics) is reference
