"""The paper's GPU run, examples/rec_gsm8k/gsm8k.yaml, passes the checks of Trinity itself; they need no GPU."""

import json
from pathlib import Path

import pytest
from trinity.algorithm import ADVANTAGE_FN, ALGORITHM_TYPE, POLICY_LOSS_FN
from trinity.common.config import load_config
from trinity.common.constants import SyncMethod

from tests.tiny_model import make_tiny_model

EXAMPLE = Path(__file__).parents[2] / "examples/rec_gsm8k/gsm8k.yaml"


@pytest.fixture
def config(tmp_path, monkeypatch):
    """The example as a user loads it, with a small model, two problems and a folder of its own."""
    model = make_tiny_model(tmp_path / "model")
    tasks = tmp_path / "gsm8k"
    tasks.mkdir()
    for split in ("train", "test"):
        rows = [{"question": f"What is {n} + 1?", "answer": f"One more than {n}.\n#### {n + 1}"} for n in (1, 2)]
        (tasks / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("TRINITY_MODEL_PATH", str(model))
    monkeypatch.setenv("TRINITY_TASKSET_PATH", str(tasks))
    monkeypatch.setenv("TRINITY_CHECKPOINT_ROOT_DIR", str(tmp_path / "checkpoints"))
    return load_config(str(EXAMPLE))


def test_it_is_the_papers_run_and_passes_trinitys_checks(config):
    config.check_and_update()

    assert config.buffer.batch_size == 96
    assert config.buffer.train_batch_size == 96 * 8
    assert config.buffer.total_steps == 160
    assert config.explorer.eval_interval == 20
    assert config.algorithm.optimizer.lr == 1e-6
    taskset, evaluation = config.buffer.explorer_input.tasksets[0], config.buffer.explorer_input.eval_tasksets[0]
    assert taskset.rollout_args.temperature == 1.0
    assert taskset.rollout_args.max_tokens == 1024
    assert (taskset.split, evaluation.split) == ("train", "test")
    assert config.model.max_model_len == 2048
    assert config.trainer.max_token_len_per_gpu == 16384
    assert config.synchronizer.sync_method == SyncMethod.NCCL
    assert config.synchronizer.sync_interval == 20

    # Eight GPUs, half of them vLLM's; each of verl's takes an equal share of a step's responses.
    assert (config.cluster.rollout_gpu_num, config.cluster.trainer_gpu_num) == (4, 4)
    assert config.buffer.train_batch_size % config.cluster.trainer_gpu_num == 0
    assert config.explorer.runner_per_model * config.explorer.rollout_model.engine_num == 64


def test_the_algorithm_resolves_to_this_package_without_a_reference_model(config):
    config.check_and_update()
    algorithm = config.algorithm
    assert algorithm.algorithm_type == "trinity_rec.rec_oneside_nois"
    for registry, key in (
        (ALGORITHM_TYPE, algorithm.algorithm_type),
        (POLICY_LOSS_FN, algorithm.policy_loss_fn),
        (ADVANTAGE_FN, algorithm.advantage_fn),
    ):
        assert registry.get(key).__module__.split(".")[0] == "trinity_rec"
    assert not ALGORITHM_TYPE.get(algorithm.algorithm_type).use_reference
    arguments = algorithm.policy_loss_fn_args
    assert (arguments["clip_mode"], arguments["weight"]) == ("one-side", "none")
    assert (arguments["epsilon_low"], arguments["epsilon_high"]) == (0.2, 0.2)


@pytest.mark.parametrize("gpus", [4, 2])
def test_a_cluster_too_small_for_it_is_refused(config, gpus):
    config.cluster.gpu_per_node = gpus
    with pytest.raises(ValueError, match="Not enough GPUs for trainer"):
        config.check_and_update()
