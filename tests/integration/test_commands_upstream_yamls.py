"""YAMLs as people have them for GSM8K (GRPO, OPMD, AsymRE, rec), switched by `use`, pass Trinity's own checks."""

import json
import sys
from pathlib import Path

import pytest
from trinity.algorithm import ADVANTAGE_FN, ALGORITHM_TYPE, POLICY_LOSS_FN, SAMPLE_STRATEGY
from trinity.common.config import load_config

from tests.tiny_model import make_tiny_model
from trinity_rec.presets import PRESETS
from trinity_rec.yaml.check import check
from trinity_rec.yaml.document import Document
from trinity_rec.yaml.rewrite import switch

# What differs between the four, in the shape of Trinity's examples; the rest is REST.
ALGORITHMS = {
    "grpo": """\
algorithm:
  algorithm_type: grpo
  repeat_times: 8
  kl_loss_fn: k2
  kl_loss_fn_args:
    kl_coef: 0.001
  optimizer:
    lr: 1e-5  # high
""",
    "opmd": """\
algorithm:
  algorithm_type: opmd
  repeat_times: 8
  policy_loss_fn: opmd
  policy_loss_fn_args:
    tau: 4.0
  sample_strategy: warmup
  optimizer: {lr: 2e-6}
""",
    "asymre": """\
algorithm:
  algorithm_type: asymre
  policy_loss_fn_args:
    tau: 0
  advantage_fn_args:
    baseline_shift: -0.1
  repeat_times: 8
""",
    "rec": """\
algorithm:
  algorithm_type: rec
  repeat_times: 8
  optimizer:
    lr: 1e-6
  policy_loss_fn_args:
    epsilon_low: 0.6
    epsilon_high: 2.0
    clip_mode: "one-side"
    weight: "none"
    temp: 1.0
    regularizer: "none"
    regularizer_coef: 0.0
  advantage_fn_args:
    std_normalize: false
""",
}

REST = """\
# GSM8K with Trinity.
project: "Trinity-RFT-GSM8K"
name: {name}
checkpoint_root_dir: ${{oc.env:TRINITY_CHECKPOINT_ROOT_DIR,./checkpoints}}
mode: both
{algorithm}model:
  model_path: ${{oc.env:TRINITY_MODEL_PATH,Qwen/Qwen2.5-1.5B-Instruct}}
  max_response_tokens: 1024
  max_model_len: 1280
cluster:
  node_num: 1
  gpu_per_node: 8
buffer:
  total_steps: 100
  batch_size: 96
  explorer_input:
    taskset:
      name: gsm8k
      storage_type: file
      path: ${{oc.env:TRINITY_TASKSET_PATH}}
      split: train
      format:
        prompt_key: question
        response_key: answer
      rollout_args:
        temperature: 1.0
    eval_tasksets: []   # none here
    default_workflow_type: math_workflow
  trainer_input:
    experience_buffer:
      name: gsm8k_buffer
      storage_type: queue
explorer:
  eval_interval: 20
  runner_per_model: 16
  rollout_model:
    engine_num: 4
    tensor_parallel_size: 1
    enforce_eager: true
    dtype: bfloat16
    seed: 42
synchronizer:
  sync_method: nccl
  sync_interval: 20
  sync_timeout: 1200
trainer:
  save_interval: 100
  grad_clip: 1.0
  use_dynamic_bsz: true
  max_token_len_per_gpu: 16384
"""

MONITORS = {
    "tensorboard": "monitor:\n  monitor_type: tensorboard\n",
    "wandb": "monitor:\n  monitor_type: wandb\n  monitor_args: {base_url: null}\n",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def environment(model, tmp_path, monkeypatch):
    tasks = tmp_path / "gsm8k"
    tasks.mkdir()
    rows = [{"question": f"What is {n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in (1, 2)]
    (tasks / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("TRINITY_MODEL_PATH", str(model))
    monkeypatch.setenv("TRINITY_TASKSET_PATH", str(tasks))
    monkeypatch.setenv("TRINITY_CHECKPOINT_ROOT_DIR", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("WANDB_MODE", "offline")


def document(name: str, more: str = "") -> Document:
    return Document.parse(f"{name}.yaml", REST.format(name=name, algorithm=ALGORITHMS[name]) + more)


def accepted(text: str, folder: Path):
    """The configuration after all of Trinity's checks."""
    path = folder / "run.yaml"
    path.write_text(text)
    return load_config(str(path)).check_and_update()


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("preset", ["rec_oneside_nois", "rep_opmd", "rep_asymre", "red_drop", "rec_gspo_is"])
def test_a_switched_yaml_passes_trinitys_checks(name, preset, tmp_path):
    before = document(name)
    after = switch(before, preset).text
    algorithm = ALGORITHMS[name]
    assert before.text.split(algorithm)[0] == after.split("algorithm:\n")[0]
    assert after.endswith(before.text.split(algorithm)[1])

    config = accepted(after, tmp_path)
    assert config.algorithm.algorithm_type == f"trinity_rec.{preset}"
    assert config.algorithm.repeat_times == 8
    for registry, key in (
        (ALGORITHM_TYPE, "algorithm_type"),
        (POLICY_LOSS_FN, "policy_loss_fn"),
        (ADVANTAGE_FN, "advantage_fn"),
        (SAMPLE_STRATEGY, "sample_strategy"),
    ):
        assert registry.get(getattr(config.algorithm, key)).__module__.split(".")[0] == "trinity_rec"
    assert not ALGORITHM_TYPE.get(config.algorithm.algorithm_type).use_reference
    carried = {"epsilon_low", "epsilon_high"} if (name, preset) == ("rec", "rec_oneside_nois") else set()
    carried |= {"regularizer_coef"} if (name, preset) == ("opmd", "rep_opmd") else set()  # upstream's tau
    own = {key: value for key, value in PRESETS[preset].policy_loss.items() if key not in carried}
    assert own.items() <= config.algorithm.policy_loss_fn_args.items()

    report = check(Document.parse("run.yaml", after))
    assert report.errors == []
    assert report.summary.policy_loss_fn_args.items() <= config.algorithm.policy_loss_fn_args.items()
    assert (report.summary.staleness, report.summary.train_batch_size) == ((0, 19), config.buffer.train_batch_size)


def test_rec_keeps_its_objective(tmp_path):
    config = accepted(switch(document("rec"), "nearest").text, tmp_path)
    assert config.algorithm.algorithm_type == "trinity_rec.rec_oneside_nois"
    args = config.algorithm.policy_loss_fn_args
    assert (args["clip_mode"], args["epsilon_low"], args["epsilon_high"]) == ("one-side", 0.6, 2.0)
    assert config.algorithm.optimizer.lr == 1e-6


@pytest.mark.parametrize("monitor", MONITORS.values(), ids=list(MONITORS))
def test_monitors_stay_as_they_are(monitor, tmp_path):
    config = accepted(switch(document("grpo", monitor), "rec_ring_nois").text, tmp_path)
    assert config.monitor.monitor_type in monitor
    assert check(Document.parse("run.yaml", switch(document("grpo", monitor), "rec_ring_nois").text)).findings == []


def test_lora_stays_as_it_is(tmp_path):
    text = switch(document("grpo"), "rec_oneside_nois").text
    text = text.replace("  max_model_len: 1280\n", "  max_model_len: 1280\n  lora_configs:\n    - lora_rank: 8\n")
    report = check(Document.parse("run.yaml", text))
    assert report.errors == [] and "adapters" in report.summary.memory
    config = accepted(text, tmp_path)
    assert config.explorer.rollout_model.enable_lora
    assert config.algorithm.algorithm_type == "trinity_rec.rec_oneside_nois"


def test_trinitys_config_page_shows_our_algorithms(monkeypatch):
    """Trinity 0.6.0's `studio` page fails by itself: it looks up checks that do not exist, and lists only algorithms
    that were used before in the process. With the first mended here, it works with the presets, chosen or not."""
    testing = pytest.importorskip("streamlit.testing.v1")
    from trinity.manager.config_registry.config_registry import ConfigRegistry

    def page():
        from trinity.manager.config_manager import ConfigManager

        ConfigManager()

    for name in ("rec_oneside_nois", "red_drop"):
        ALGORITHM_TYPE.get(f"trinity_rec.{name}")
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # AppTest leaves its script there
    monkeypatch.setattr(ConfigRegistry, "get_check_func", lambda self, name: self.modules.get(f"check_{name}"))
    app = testing.AppTest.from_function(page, default_timeout=60).run()
    assert not app.exception
    algorithm = next(box for box in app.selectbox if box.label == "Algorithm Type")
    algorithm.set_value("trinity_rec.red_drop").run()
    assert not app.exception
    assert app.session_state["algorithm_type"] == "trinity_rec.red_drop"
    assert app.session_state["policy_loss_fn"] == "trinity_rec.RECPolicyLoss"
