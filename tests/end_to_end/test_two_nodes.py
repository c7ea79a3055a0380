"""Explorer and trainer on two Ray nodes: names resolve on both, a run completes, and a lost node is told and survived.

Two raylets on this machine, each a node to Ray. Trinity has no option for the node of an actor, and Ray draws one at
random; so the driver is Trinity's own command with a node added to the options of these two actors.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.tiny_run import NAME, actor, largest_difference, start_backend, train, weights_after, write_config
from trinity_rec.plugin.resume import last_checkpoint
from trinity_rec.session import LOOPBACK, LaunchError, Session, TrainedStep, processes, script

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

STEPS = 8
PATIENCE = 60  # seconds from the loss of a node to its report; Ray itself takes up to 15 to be sure
# As Ray says it: the actor is dead for certain, or it or another of its node cannot be reached.
EXPLORER_LOST = (
    r"Trinity's (Explorer died|\w+ cannot be reached \(.*node was lost: 127.0.0.1, \w{8}, with .*\bExplorer\b)"
)

PLACED_TRINITY = """
from ray.actor import ActorClass
from trinity.cli.launcher import main

NODES = {"trainer": "node:__internal_head__", "explorer": "second_node"}
options = ActorClass.options

def placed(self, **wanted):
    if wanted.get("name") in NODES:
        wanted["resources"] = {NODES[wanted["name"]]: 0.01}
    return options(self, **wanted)

ActorClass.options = placed
main()
"""

SECOND_NODE = f"""
import os
import time
from ray._private.node import Node
from ray._private.parameter import RayParams

# `ray start --address` would turn loopback into an address that other machines reach.
params = RayParams(
    gcs_address=os.environ["RAY_ADDRESS"],
    node_ip_address="{LOOPBACK}",
    num_cpus=8,
    resources={{"second_node": 1}},
    object_store_memory={128 << 20},
    min_worker_port=0,
    max_worker_port=0,
    include_log_monitor=False,  # the head's reads the same directory
)
Node(params, head=False, shutdown_at_exit=True, spawn_reaper=False)
print("ready")
while True:
    time.sleep(60)
"""

NODES = """
import json
import ray
ray.init(log_to_driver=False)
answer = nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
"""

RESOLVE = """
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On

@ray.remote(num_cpus=0)
def resolve():
    import trinity_rec
    from trinity.algorithm import ADVANTAGE_FN, ALGORITHM_TYPE, POLICY_LOSS_FN, SAMPLE_STRATEGY
    from trinity.common.rewards import REWARD_FUNCTIONS
    from trinity.common.workflows import WORKFLOWS
    from trinity_rec.presets import PRESETS

    names = {
        ALGORITHM_TYPE: [*PRESETS, *(f"{name}_with_reference" for name in PRESETS)],
        POLICY_LOSS_FN: ["RECPolicyLoss"],
        ADVANTAGE_FN: ["RECAdvantage"],
        SAMPLE_STRATEGY: [name for name in trinity_rec.__all__ if name.endswith("SampleStrategy")],
        REWARD_FUNCTIONS: ["quickstart.reward.GSM8KReward", "lab.through_trinity.AdditionReward"],
        WORKFLOWS: ["tool_call.workflow.ToolCallWorkflow"],
    }
    found = {name: registry.get(f"trinity_rec.{name}").__name__ for registry in names for name in names[registry]}
    return ray.get_runtime_context().get_node_id(), found

answer = ray.get([resolve.options(scheduling_strategy=On(node, soft=False)).remote() for node in nodes])
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("two_nodes")


@pytest.fixture(scope="module")
def session(place):
    with Session(place / "logs") as session:
        session.start_ray()
        start_backend(session, place / "weights")
        start_second_node(session)
        yield session


def start_second_node(session: Session) -> None:
    node = session.spawn("second_node", [sys.executable, "-c", SECOND_NODE])
    session.wait_until(lambda: "ready" in session.log("second_node"), node, "second_node", 180)


def ask_ray(session: Session, code: str) -> list:
    """What the code leaves in `answer`; Ray itself prints too, of nodes that it lost for one."""
    command = [sys.executable, "-c", f"{code}\nprint('answer:', json.dumps(answer))"]
    ran = subprocess.run(command, env=session.env, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return json.loads(re.search(r"^answer: (.*)$", ran.stdout, re.MULTILINE)[1])


def raylet(session: Session, part: str) -> psutil.Process:
    """The process that is a Ray node: the parent of the workers there."""
    (found,) = [p for p in psutil.Process(session.parts[part].pid).children(recursive=True) if p.name() == "raylet"]
    return found


@pytest.fixture
def placed(monkeypatch):
    start = {"trinity": [sys.executable, "-c", PLACED_TRINITY]}
    monkeypatch.setattr(processes, "script", lambda name: start.get(name) or script(name))
    return monkeypatch


def test_every_name_resolves_on_both_nodes(session):
    (one, there), (other, here) = ask_ray(session, NODES + RESOLVE)
    assert one != other
    assert there == here and len(there) > 30
    assert all(name.rpartition(".")[2] == found or found.endswith(name) for name, found in there.items())


@pytest.mark.soak
def test_a_run_loses_the_explorers_node_and_completes_on_a_new_one(session, place, placed):
    steps, checkpoint = lose_second_node(session, place / "new")
    start_second_node(session)
    resumed = run_on_both(session, place / "new")
    assert [step.number for step in steps[:checkpoint] + resumed] == list(range(1, STEPS + 1))


@pytest.mark.soak
def test_a_run_that_goes_on_with_one_node_equals_an_unbroken_one(session, place, placed):
    write_config(place / "whole", STEPS)
    unbroken = run_on_both(session, place / "whole")
    weights = weights_after(place / "whole", place / "weights", STEPS)
    steps, checkpoint = lose_second_node(session, place / "one")
    placed.undo()  # what is left takes both actors
    steps = steps[:checkpoint] + list(train(session, place / "one", STEPS))
    assert [(step.number, step.reward) for step in steps] == [(step.number, step.reward) for step in unbroken]
    assert largest_difference(weights_after(place / "one", place / "weights", STEPS), weights) <= 1e-6


def lose_second_node(session: Session, folder: Path) -> tuple[list[TrainedStep], int]:
    """The steps of a run until its explorer's node is killed, and the checkpoint that it left."""
    write_config(folder, STEPS)
    began, steps, node = time.time(), [], raylet(session, "second_node")
    with pytest.raises(LaunchError, match=EXPLORER_LOST) as failure:
        for step in train(session, folder, STEPS):
            steps.append(step)
            if step.number == 2:
                assert nodes_of_actors(session, began)["explorer"] == node.pid
                killed = time.monotonic()
                for process in (node, *node.children(recursive=True)):  # all that a machine takes with it
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
    print(f"{time.monotonic() - killed:.1f} s later: {failure.value}")
    assert time.monotonic() - killed < PATIENCE
    assert re.search(rf"stopped after \d+ of {STEPS} steps", str(failure.value))
    checkpoint = last_checkpoint(folder / "trinity" / NAME, remote=True)
    assert 2 <= checkpoint <= len(steps)
    while len(ask_ray(session, NODES)) > 1:  # a run that starts before Ray is sure ends as this one did
        assert time.monotonic() - killed < PATIENCE
    print(f"{time.monotonic() - killed:.0f} s later Ray is sure of it")
    return steps, checkpoint


def run_on_both(session: Session, folder: Path) -> list[TrainedStep]:
    """A run to its end, with the trainer on the first node and the explorer on the second."""
    began, steps, nodes = time.time(), [], {}
    for step in train(session, folder, STEPS):
        steps.append(step)
        nodes = nodes or nodes_of_actors(session, began)
    assert nodes == {"trainer": raylet(session, "ray").pid, "explorer": raylet(session, "second_node").pid}
    assert steps[-1].number == STEPS
    return steps


def nodes_of_actors(session: Session, began: float) -> dict[str, int]:
    return {name: actor(session, name, began).ppid() for name in ("trainer", "explorer")}
