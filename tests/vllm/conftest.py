"""One Ray for all runs of this folder, with GPUs that are not there, and what vLLM and verl need to do without them.

These tests need the environment of `make test-vllm`; nothing is skipped where it is missing.
"""

import pytest

from trinity_rec import without_gpu
from trinity_rec.quickstart.subject import ASSETS
from trinity_rec.session import Session


@pytest.fixture(scope="session")
def session(tmp_path_factory):
    with Session(tmp_path_factory.mktemp("session") / "logs") as session:
        session.env |= without_gpu.environment(session.env, session.scratch)
        session.env |= {"TRINITY_REC_MODEL": str(ASSETS / "model"), "TRINITY_REC_TASKS": str(ASSETS / "tasks")}
        session.start_ray(gpus=2)
        yield session
