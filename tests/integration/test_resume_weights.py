"""Trinity's synchronizer when a run is resumed: which weights an explorer gets that asks before they are there."""

import asyncio
from collections import defaultdict
from types import SimpleNamespace

from trinity.common.constants import RunningStatus
from trinity.manager.synchronizer import Synchronizer
from trinity.utils.log import get_logger

from trinity_rec.plugin import resume

NO_WEIGHTS_YET, INITIAL, CHECKPOINT = -1, 0, 4


def synchronizer() -> Synchronizer:
    """Trinity's own, as it is when explorer and trainer have prepared, without Ray around it."""
    made = Synchronizer.__new__(Synchronizer)
    made.config = SimpleNamespace(checkpoint_job_dir="", synchronizer=SimpleNamespace(sync_timeout=20))
    made.logger = get_logger("synchronizer")
    made.trainer_status = RunningStatus.RUNNING
    made.explorer_status_counts = defaultdict(int, {RunningStatus.RUNNING: 1})
    made._ready_condition = asyncio.Condition()
    made.model_state_dict, made.model_version = None, INITIAL
    return made


async def first_weights(made: Synchronizer) -> int:
    """The version that the explorer starts from, when it asks before the trainer has sent the checkpoint's weights."""
    asking = asyncio.create_task(made.wait_new_model_state_dict(current_version=NO_WEIGHTS_YET))
    await asyncio.sleep(0.1)
    await made.set_model_state_dict("tinker://run/sampler_weights/step-4", CHECKPOINT)
    return await asking


def test_trinity_itself_hands_out_the_initial_model():
    async def run():
        return await first_weights(synchronizer())

    assert asyncio.run(run()) == INITIAL  # else `await_resumed_weights` is needed no longer


def test_the_explorer_waits_for_the_checkpoints_weights(monkeypatch):
    async def run():
        made = synchronizer()
        called = []
        remote = SimpleNamespace(
            remote=lambda *args: called.append(asyncio.ensure_future(made.set_model_state_dict(*args)))
        )
        monkeypatch.setattr(
            Synchronizer, "get_actor", lambda config=None, namespace=None: SimpleNamespace(set_model_state_dict=remote)
        )
        resume.await_resumed_weights("a namespace")
        await asyncio.gather(*called)
        return await first_weights(made)

    assert asyncio.run(run()) == CHECKPOINT
