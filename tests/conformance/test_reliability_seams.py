"""The seams: what of Trinity and verl this package relies on, each with a check that says what has moved.

docs/seams.md lists them for readers. An upgrade of either package starts here: these tests name what to look at before
hundreds of others fail.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version

from trinity_rec import versions
from trinity_rec.session.logs import STEP_LINE
from trinity_rec.yaml.check import check
from trinity_rec.yaml.document import Document

ROOT = Path(__file__).parents[2]


def source(module: str, name: str = "") -> str:
    """The text of a module, which is not imported, or of a class or function in one that is."""
    if not name:
        package, *path = module.split(".")
        return Path(importlib.import_module(package).__file__).parent.joinpath(*path).with_suffix(".py").read_text()
    found = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return inspect.getsource(found)


def dotted_names_are_imported():
    from trinity.algorithm import ADVANTAGE_FN, ALGORITHM_TYPE, POLICY_LOSS_FN, SAMPLE_STRATEGY

    for registry, name in (
        (ALGORITHM_TYPE, "rec_grpo"),
        (POLICY_LOSS_FN, "RECPolicyLoss"),
        (ADVANTAGE_FN, "RECAdvantage"),
        (SAMPLE_STRATEGY, "RECSampleStrategy"),
    ):
        assert registry.get(f"trinity_rec.{name}").__name__ == name


def check_config_comes_before_trinitys_defaults():
    text = source("trinity.common.config_validator", "AlgorithmConfigValidator.validate")
    assert 0 <= text.index("check_config(") < text.index("default_config()"), "the order has changed"


def every_validator_runs_before_ray_is_needed():
    from trinity.common.config_validator import validators

    names = [type(each).__name__ for each in validators]
    for name in ("Global", "Algorithm", "Model", "Synchronizer", "Interval", "Explorer", "Buffer", "Trainer"):
        assert f"{name}ConfigValidator" in names, f"{name}ConfigValidator is gone; there are {names}"


def the_loss_agg_mode_is_overwritten():
    text = source("trinity.common.config_validator", "AlgorithmConfigValidator")
    assert '"loss_agg_mode"' in text, "Trinity no longer writes loss_agg_mode into the loss's arguments"


def a_losss_parameters_are_the_batchs_columns():
    from trinity.algorithm import POLICY_LOSS_FN

    keys = POLICY_LOSS_FN.get("trinity_rec.RECPolicyLoss")(backend="verl").select_keys
    assert set(keys) == {
        "old_log_probs", "response_mask", "advantages", "batch_num_tokens", "global_batch_size", "dp_size"
    }, keys  # fmt: skip


def verls_worker_hands_the_loss_padded_columns():
    text = source("trinity.trainer.verl.losses", "TrinityPolicyLoss.__call__")
    assert "data.select(*fields).to_padded_tensor()" in text and "policy_loss_fn(logprob=log_prob, **" in text


def verl_ships_what_the_average_needs():
    text = source("verl.workers.engine.fsdp.transformer_impl")
    assert "batch_num_tokens" in text and "dp_size" in text
    assert "global_batch_size" in source("verl.workers.utils.losses") + source("verl.workers.engine_workers")


def verls_loss_is_not_scaled_after_ours():
    text = source("trinity.trainer.verl.losses", "TrinityPolicyLoss")
    assert "batch_num_tokens" not in text and "loss_scale" not in text, (
        "Trinity scales the loss on verl: it must hang on trainer.fix_actor_microbatch_loss_scale, which check_config "
        "switches off"
    )


def a_loss_declares_its_columns_alone():
    text = source("trinity.algorithm.policy_loss_fn.policy_loss_fn")
    assert "_runtime_keys" not in text, "normalisers come as keywords now: RECPolicyLoss asks for them as columns"


def plugin_losses_run_in_the_tinker_client():
    assert "server_loss_fn" not in source("trinity.common.config"), "a loss of the server's would replace the preset's"


def upstream_has_no_truncated_weight_and_no_adaptive_red():
    rec = source("trinity.algorithm.policy_loss_fn.rec_policy_loss")
    assert "truncated_importance_sampling" not in rec, "rec's new weight is clamp(rho): `diff` must know it"
    folder = Path(importlib.import_module("trinity.algorithm.advantage_fn").__file__).parent
    assert not any("fix_opd" in path.read_text() for path in folder.glob("*.py")), "compare red_weight_adaptive with it"


def vllms_worker_derives_from_the_gpus():
    text = source("trinity.common.models.vllm_worker")
    assert "class TrinityGPUWorker(VLLMGPUWorker)" in text
    assert "def receive_weights" in (text := source("trinity.common.models.vllm_extension"))
    assert text.count("chunk = pack_tensors(\n                iterator=iterator,") == 1
    assert text.count("torch.cuda.current_stream()") == 2 and 'device="cuda"' in text


def verl_casts_the_weights_that_it_sends_to_bfloat16():
    text = source("verl.workers.engine.fsdp.transformer_impl")
    assert "torch.bfloat16" in text[text.index("def get_per_tensor_param") :], (
        "`check` need not doubt this sync any more"
    )


def verl_skips_a_step_whose_gradient_is_not_finite():
    text = source("verl.workers.engine.fsdp.transformer_impl")
    assert re.search(r"if not torch\.isfinite\(grad_norm\)", text), "verl would step with a gradient that is no number"


def the_tinker_trainer_calls_the_loss_once_a_response():
    text = source("trinity.trainer.tinker.tinker_trainer", "TinkerTrainerWrapper._loss_func")
    assert "for model_inputs, logprob in zip(self.model_inputs_list, logprobs)" in text
    assert "loss_scale /= len(logprobs)" in text, "responses are averaged in another way"
    assert 'model_inputs["ref_logprob"]' in text, "the reference's logprobs are read only where needed: drop our zeros"


def custom_fields_become_columns():
    from trinity.common.experience import CustomField

    assert [field.name for field in dataclasses.fields(CustomField)][:3] == [
        "source_field", "destination_field", "data_type"
    ]  # fmt: skip
    assert "custom_fields" in source("trinity.trainer.tinker.utils", "to_tinker_input")
    assert "custom_fields" in source("trinity.trainer.verl.utils", "to_data_proto")


def an_experience_has_what_is_read():
    from trinity.common.experience import EID, Experience

    experience = Experience(eid=EID(batch=1, task=2, run=3), tokens=[1, 2, 3], prompt_length=1, logprobs=[-1.0, -1.0])
    assert experience.action_mask.shape == experience.logprobs.shape == torch.Size([2])
    assert {"reward", "token_level_reward", "advantages", "returns", "info", "custom_fields"} <= set(vars(experience))
    assert (experience.eid.tid, experience.eid.step) == ("1/2", 0)


def a_strategy_samples_and_keeps_its_state():
    from trinity.algorithm.sample_strategy.sample_strategy import DefaultSampleStrategy

    for name in ("sample", "default_args", "state_dict", "load_state_dict", "set_model_version_metric"):
        assert hasattr(DefaultSampleStrategy, name), f"{name} is gone"
    assert "exp_buffer" in source("trinity.algorithm.sample_strategy.sample_strategy", "DefaultSampleStrategy.__init__")
    assert "sample_strategy.sample(" in source("trinity.trainer.trainer", "Trainer._sample_data")


def use_reference_is_read_off_the_class():
    assert "algorithm.use_reference" in source("trinity.trainer.tinker.tinker_trainer")
    assert "algorithm.use_reference" in source("trinity.trainer.verl.trainer")


def advantages_are_computed_by_the_explorers_pipeline():
    from trinity.buffer.operators import ExperienceOperator

    assert "process" in vars(ExperienceOperator)
    assert "compute_in_trainer" in source("trinity.algorithm.advantage_fn.advantage_fn")


def a_step_that_fails_is_only_logged():
    text = source("trinity.trainer.trainer", "Trainer.train")
    assert "Error in Trainer:\\n{traceback.format_exc()}" in text, "trinity_rec/session looks for this headline"
    assert "Error in Explorer" in source("trinity.explorer.explorer"), "trinity_rec/session looks for this headline"


def a_driver_that_gave_up_says_so_and_waits():
    text = source("trinity.cli.launcher", "both")
    assert "Explorer or Trainer failed:\\n" in text, "trinity_rec/session looks for this headline"
    assert "[explorer.shutdown.remote(), trainer.shutdown.remote()]" in text, (
        "trinity_rec/session need not end the driver any more"
    )


def a_run_notes_its_place_in_these_files():
    notes = source("trinity.manager.state_manager", "StateManager")
    for text in ("{explorer_name}_meta.json", "{trainer_name}_meta.json", '"latest_iteration": current_step'):
        assert text in notes
    assert '"taskset_states"' in notes and '"sample_strategy_state"' in notes
    assert '"current_index"' in source("trinity.buffer.task_scheduler"), "where the explorer goes on reading"
    trainer = source("trinity.trainer.tinker.tinker_trainer")
    for name in ("latest_checkpointed_iteration", "latest_state_dict_iteration"):
        assert f"{name}.txt" in trainer
    for name in ("remote_checkpoint_path", "remote_sampler_path"):
        assert f"{name}.txt" in trainer


def an_explorer_without_weights_is_at_version_minus_1():
    from trinity.manager.synchronizer import Synchronizer

    assert "self.model_version = -1" in source("trinity.explorer.explorer")
    assert "self.model_version = 0" in source("trinity.manager.synchronizer", "Synchronizer.__init__")
    assert list(inspect.signature(Synchronizer.set_model_state_dict).parameters)[2] == "trainer_step"


def the_sync_offset_counts_from_step_0():
    assert "(self.explore_step_num - self.sync_offset) % self.sync_interval" in source("trinity.explorer.explorer")


def the_synchronizer_outlives_the_driver():
    text = source("trinity.manager.synchronizer", "Synchronizer.get_actor")
    assert 'lifetime="detached"' in text and "namespace=config.ray_namespace" in text


def the_monitor_logs_a_step_as_launch_reads_it():
    assert re.search(r'f"Step \{step\}: ', source("trinity.utils.monitor")), STEP_LINE.pattern


def text_runs_import_three_modules_of_vllm():
    wanted = set(re.findall(r"^\s*from (vllm[\w.]*) import", source("trinity.common.models.mm_utils"), re.MULTILINE))
    have = {"vllm.config", "vllm.entrypoints.chat_utils", "vllm.inputs"}
    assert wanted <= have, f"vllm_stand_in lacks {wanted - have}"


def plugins_are_copied_and_loaded_everywhere_but_in_verls_workers():
    assert "TRINITY_PLUGIN_DIRS" in source("trinity.common.constants")
    assert "def load_plugins" in source("trinity.utils.plugin_loader")


SEAMS = [value for name, value in list(globals().items()) if inspect.isfunction(value) and value.__module__ == __name__]
SEAMS = [seam for seam in SEAMS if seam is not source]


@pytest.mark.parametrize("seam", SEAMS, ids=lambda seam: seam.__name__)
def test_seam(seam):
    try:
        seam()
    except (AssertionError, ImportError, AttributeError, ValueError, OSError, TypeError) as error:
        installed = ", ".join(f"{each} {importlib.metadata.version(each)}" for each in ("trinity-rft", "verl"))
        pytest.fail(f"{seam.__name__.replace('_', ' ')}: not so in {installed}: {error}; see docs/seams.md")


def test_every_seam_is_listed():
    page = (ROOT / "docs" / "seams.md").read_text()
    listed = re.findall(r"^\| `(\w+)`", page, re.MULTILINE)
    assert listed == [seam.__name__ for seam in SEAMS]


# ---- versions ----


def test_what_is_pinned_is_what_is_supported():
    pins = dict(
        line.split("#")[0].strip().split("==")
        for file in ("constraints.txt", "requirements/gpu.txt")
        for line in (ROOT / file).read_text().splitlines()
        if re.match(rf"({'|'.join(versions.SUPPORTED)})==", line)
    )
    assert set(pins) == set(versions.SUPPORTED)
    for name, supported in versions.SUPPORTED.items():
        assert supported.contains(pins[name].partition("+")[0]), (name, pins[name])
    required = {each.name: each for each in map(Requirement, importlib.metadata.requires("trinity-rec"))}
    assert required["trinity-rft"].specifier == versions.SUPPORTED["trinity-rft"]
    assert required["tinker"].specifier == versions.SUPPORTED["tinker"]
    assert list(versions.unsupported()) == []


YAML = """\
mode: both
algorithm:
  algorithm_type: trinity_rec.rec_grpo
  repeat_times: 8
model: {model_path: m, max_model_len: 2048}
cluster: {node_num: 1, gpu_per_node: 8}
buffer: {batch_size: 96, total_steps: 9, explorer_input: {taskset: {path: t}}}
synchronizer: {sync_interval: 1}
"""


@pytest.mark.parametrize("package, other", [("verl", "0.9.1"), ("trinity-rft", "0.5.2"), ("tinker", "0.38.0")])
def test_another_version_is_named_with_what_is_supported(package, other, monkeypatch):
    real = versions.version
    monkeypatch.setattr(versions, "version", lambda name: other if name == package else real(name))
    line = f"{package} {other} is installed, with which trinity-rec is not tested; supported: "
    assert [each.startswith(line) for each in versions.unsupported()] == [True]
    doubts = check(Document.parse("run.yaml", YAML)).doubts
    assert [(each.line, str(each).removeprefix("algorithm: ")[: len(line)]) for each in doubts] == [(2, line)]


def test_a_package_that_is_not_there_is_not_needed(monkeypatch):
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(versions, "version", absent)
    assert list(versions.unsupported()) == []


def test_the_look_at_versions_imports_nothing_heavy():
    program = "import sys, trinity_rec.versions as v; list(v.unsupported()); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ, check=True)
    assert not {"torch", "trinity", "verl", "tinker", "ray"} & set(loaded.stdout.split())
    assert Version(importlib.metadata.version("packaging")) >= Version("20")
