"""Settings every test runs under: one thread a process, and nothing that reaches past this machine.

They are set before torch, transformers or Ray are imported, and in `os.environ`, so that the processes which
tests start inherit them.
"""

import os

os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="disabled",
    RAY_USAGE_STATS_ENABLED="0",
    RAY_DISABLE_DOCKER_CPU_WARNING="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Before any test imports verl: its modules copy the functions of each other that the CPU needs replaced.
from trinity_rec.without_gpu import verl_workers  # noqa: F401


def pytest_collection_modifyitems(config, items):
    """Leaves the tests marked `soak` out of every run that does not ask for them by name."""
    if "soak" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("soak")]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
