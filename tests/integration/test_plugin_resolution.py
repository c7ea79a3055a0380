"""Names that users type resolve in every process: dotted anywhere, plain with the plugin directory, both together."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

import trinity_rec
from trinity_rec.presets import PRESETS

PLUGIN_DIR = Path(trinity_rec.__file__).parent / "plugin" / "register"
STRATEGIES = [name for name in trinity_rec.__all__ if name.endswith("SampleStrategy")]


def python(code: str, plugin_dirs: str | None) -> str:
    environment = {**os.environ, "TRINITY_PLUGIN_DIRS": plugin_dirs or ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


RESOLVE = """
from trinity.utils.plugin_loader import load_plugins
from trinity.algorithm import ALGORITHM_TYPE
from trinity.common.config import Config
from trinity.common.config_validator import AlgorithmConfigValidator
from trinity_rec.presets import PRESETS

load_plugins()
load_plugins()  # the explorer and its pipeline share a process
dotted_first = ALGORITHM_TYPE.get("trinity_rec.rec_grpo")
for name in PRESETS:
    plain, dotted = ALGORITHM_TYPE.get(name), ALGORITHM_TYPE.get("trinity_rec." + name)
    assert issubclass(plain, dotted) and plain is not dotted, name
    assert (plain.name(), dotted.name()) == (name, "trinity_rec." + name)
    config = Config()
    config.algorithm.algorithm_type = name
    AlgorithmConfigValidator().validate(config)
    # From here on the dotted name is used, which verl's workers can resolve too.
    assert config.algorithm.algorithm_type == "trinity_rec." + name
assert ALGORITHM_TYPE.get("trinity_rec.rec_grpo") is dotted_first
print("resolved", len(PRESETS))
"""


def test_plain_and_dotted_names_side_by_side_with_the_plugin_directory():
    assert f"resolved {len(PRESETS)}" in python(RESOLVE, str(PLUGIN_DIR))


def test_upstreams_rec_stays_upstreams_without_the_plugin_directory():
    """Trinity copies a plugin file into itself and loads the copy in later runs; that copy must be without effect."""
    python(RESOLVE, str(PLUGIN_DIR))
    later = python(
        "from trinity.utils.plugin_loader import load_plugins; load_plugins()\n"
        "from trinity.algorithm import ALGORITHM_TYPE; print(ALGORITHM_TYPE.get('rec').__module__)",
        None,
    )
    assert later.strip().endswith("trinity.algorithm.algorithm")


@pytest.fixture(scope="module")
def local_ray(tmp_path_factory):
    folder = str(tmp_path_factory.getbasetemp() / "ray")
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
    yield
    ray.shutdown()


def test_dotted_names_resolve_in_a_ray_worker_that_loaded_no_plugin(local_ray):
    @ray.remote
    def resolve(presets, strategies):
        from trinity.algorithm import ADVANTAGE_FN, ALGORITHM_TYPE, POLICY_LOSS_FN, SAMPLE_STRATEGY

        loss = POLICY_LOSS_FN.get("trinity_rec.RECPolicyLoss")(backend="verl", clip_mode="ring")
        advantage = ADVANTAGE_FN.get("trinity_rec.RECAdvantage")(drop="balance")
        found = [ALGORITHM_TYPE.get(f"trinity_rec.{name}").preset.name for name in presets]
        found += [ALGORITHM_TYPE.get(f"trinity_rec.{name}_with_reference").use_reference for name in presets]
        return found, [SAMPLE_STRATEGY.get(f"trinity_rec.{name}").__name__ for name in strategies], loss, advantage

    found, strategies, loss, advantage = ray.get(resolve.remote(list(PRESETS), STRATEGIES))
    assert found == [*PRESETS, *[True] * len(PRESETS)]
    assert strategies == STRATEGIES
    assert loss.objective.clip_mode == "ring"
    assert advantage.drop == "balance"


def test_an_unknown_preset_is_an_attribute_error():
    with pytest.raises(AttributeError, match="rec_gpro"):
        getattr(trinity_rec, "rec_gpro")  # noqa: B009
    with pytest.raises(AttributeError):
        getattr(trinity_rec, "rec_grpo_with_reference_with_reference")  # noqa: B009
