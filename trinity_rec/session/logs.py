"""What Trinity's logs tell: the steps it trained, and what made it give up, of which its exit code says nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STEP_LINE = re.compile(r"\bStep (\d+): \{(.*)\}\s*$")  # how Trinity's monitor logs the metrics of a step
METRIC = re.compile(r"'([^']+)': (-?(?:nan|inf|[\d.]+(?:e[+-]?\d+)?))(?=[,\s]|$)")
LOG_PREFIX = re.compile(r"^(?:\x1b\[\d+m|\(\w+ pid=[^)]*\)|\s|[A-Z]+ [\d-]+ [\d:]+ \[[^\]]+\])*")  # Ray's, Trinity's
# Ray's ActorDiedError, of the two actors without which Trinity cannot go on; it restarts workflow runners itself.
DEAD_ACTOR = re.compile(r"Error: The actor died.*\n(?:.*\n)??.*class_name: (Trainer|Explorer)\b")
UNREACHED_ACTOR = re.compile(r"Error: The actor ([0-9a-f]+) is unavailable")  # Ray's error, with an id and no name
ERROR_LINE = re.compile(r"^(?:\w+\.)*[A-Z]\w*(?:Error|Exception|Exit|Interrupt)(?:: .*|$)")


@dataclass(frozen=True)
class TrainedStep:
    """One training step as Trinity's trainer reported it."""

    number: int
    metrics: dict[str, float]

    @property
    def reward(self) -> float:
        """Mean reward of the batch's responses; NaN where the trainer reports none."""
        return float(self.metrics.get("critic/rewards/mean", "nan"))


def trained_steps(
    job_root: Path, earlier: Mapping[Path, int] | None = None, role: str = "trainer"
) -> list[TrainedStep]:
    """The steps in the trainer's own log, or the explorer's, in order; `earlier` as in `since`."""
    steps: list[TrainedStep] = []
    for log in job_root.glob(f"**/log/{role}.log"):
        for line in since(log, earlier).splitlines():
            if found := STEP_LINE.search(line):
                step = TrainedStep(int(found[1]), {name: float(value) for name, value in METRIC.findall(found[2])})
                if role == "explorer" and steps and steps[-1].number == step.number:  # it logs a step in pieces
                    step = TrainedStep(step.number, steps.pop().metrics | step.metrics)
                steps.append(step)
    return steps


def since(log: Path, earlier: Mapping[Path, int] | None) -> str:
    """What was added to a log after it had the size noted in `earlier`: a resumed run writes on in the same files."""
    with log.open("rb") as file:
        file.seek((earlier or {}).get(log, 0))
        return file.read().decode("utf-8", errors="replace")


def dead_actor(text: str) -> str | None:
    """Which of Trinity's actors died without an error of its own, from what the driver logs about it."""
    found = DEAD_ACTOR.findall(text)
    return f"Trinity's {found[0]} died (killed, or its node was lost)" if found else None


def unreached_actor(ray_address: str, actor_id: str) -> str | None:
    """Which actor it is that Ray cannot reach, and what else was on its node; None if Ray does not know either."""
    from ray._private.state import GlobalState  # reads Ray's tables without being a driver
    from ray._raylet import GcsClientOptions

    ray = GlobalState()
    ray._initialize_global_state(
        GcsClientOptions.create(ray_address, None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
    )
    try:
        actors = ray.actor_table(None)
        lost = actors[actor_id]
    except Exception:  # Ray is gone too, and its errors are of many types
        return None
    run, node = lost["JobID"], lost["Address"]
    there = {
        actor["ActorClassName"]
        for actor in actors.values()
        if (actor["JobID"], actor["Address"]["NodeID"]) == (run, node["NodeID"])
    }
    return (
        f"Trinity's {lost['ActorClassName']} cannot be reached (killed, or its node was lost: "
        f"{node['IPAddress']}, {node['NodeID'][:8]}, with {', '.join(sorted(there))})"
    )


def actor_failure(job_root: Path, earlier: Mapping[Path, int] | None = None) -> str | None:
    """The error that ended Trinity's trainer or explorer, which only their logs tell; `earlier` as in `since`."""
    for log in [*job_root.glob("**/log/trainer.log"), *job_root.glob("**/log/explorer.log")]:
        text = since(log, earlier)
        for headline in ("Error in Trainer:", "Error in Explorer:"):
            if headline in text and (reason := last_error(text.rpartition(headline)[2])):
                return reason
    return None


def dead_engine(job_root: Path, earlier: Mapping[Path, int] | None = None) -> str | None:
    """Whether vLLM's engine died: every rollout fails then, and Trinity waits for them. `earlier` as in `since`."""
    for log in job_root.glob("**/log/explorer_rollout_coordinator.log"):
        if "vllm.v1.engine.exceptions.EngineDeadError" in since(log, earlier):
            return "vLLM's engine died (killed, or an error of its own)"
    return None


def driver_failure(text: str) -> str | None:
    """The error on which the driver gave its actors up, from its log; it waits for them to end then."""
    _, headline, error = text.rpartition("Explorer or Trainer failed:")
    return last_error(error) if headline else None


def last_error(text: str) -> str | None:
    """The last `SomeError: …` line of a log, without what Ray and Trinity put before it."""
    lines = (LOG_PREFIX.sub("", line).rstrip() for line in text.splitlines())
    found = [line for line in lines if ERROR_LINE.match(line)]
    return found[-1] if found else None
