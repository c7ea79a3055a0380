"""Whether a YAML is one that a preset can take over: group-relative RL on rollouts, in Trinity's own terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from trinity_rec.yaml.document import Document, Key

# Blocks of Trinity's that say what is trained, by the key that names them; the algorithm's class says the rest.
_OTHER_TRAINING = {
    "policy_loss_fn": {
        "sft": "imitates what is in the buffer, without rewards",
        "sft_is": "imitates what is in the buffer, without rewards",
        "sft_phi": "imitates what is in the buffer, without rewards",
        "dpo": "learns from pairs of answers, not from groups of rollouts",
        "mix": "imitates expert data beside the rollouts",
        "mix_chord": "imitates expert data beside the rollouts",
    },
    "sample_strategy": {"mix": "mixes expert data into each batch"},
    "advantage_fn": {
        "on_policy_distill": "distils a teacher: advantages are its log-probabilities, not rewards",
        "jsd": "distils a teacher: advantages are its log-probabilities, not rewards",
        "ppo": "trains a critic, which a preset would leave unused",
    },
}


@dataclasses.dataclass(frozen=True)
class Objection:
    """Why a preset must not take a YAML over: the key that shows it, and the reason."""

    keys: tuple[Key, ...]
    reason: str


def objections(document: Document) -> Iterator[Objection]:
    """All reasons against a preset in this YAML; none for group-relative RL."""
    if (foreign := _foreign(document.data)) is not None:
        yield foreign
        return
    yield from _training(_mapping(document.data.get("algorithm")))
    yield from _data(document.data)
    for index, stage in enumerate(document.data.get("stages") or ()):
        if isinstance(stage, Mapping) and stage.get("algorithm"):
            yield Objection(
                ("stages", index, "algorithm"), "this stage has an algorithm of its own, which would stay as it is"
            )


def _foreign(data: Mapping[str, Any]) -> Objection | None:
    from trinity.common.config import Config

    known = {field.name for field in dataclasses.fields(Config)}
    others = [key for key in data if key not in known]
    if "actor_rollout_ref" in data:
        reason = "these are verl's own settings; `trinity-rec translate` reads them"
    elif "process" in data and others:
        reason = "a recipe of Data-Juicer, not a configuration of Trinity"
    elif len(others) > len(data) / 2:
        reason = "most of its keys are not Trinity's: not a configuration of Trinity"
    else:
        return None
    return Objection((others[0],), reason)


def _training(section: Mapping[str, Any]) -> Iterator[Objection]:
    from trinity_rec.plugin.registries import ALGORITHMS

    name, defaults = section.get("algorithm_type"), {}
    if isinstance(name, str) and name in ALGORITHMS:
        algorithm = ALGORITHMS.get(name)
        defaults = algorithm.default_config()
        keys = ("algorithm", "algorithm_type")
        if algorithm.schema != "experience":
            yield Objection(keys, f"{name} trains on records of its own kind ({algorithm.schema}), not on rollouts")
            return
        if algorithm.use_critic:
            yield Objection(keys, f"{name} {_OTHER_TRAINING['advantage_fn']['ppo']}")
            return
    for key, kinds in _OTHER_TRAINING.items():
        block = section.get(key) or defaults.get(key)
        if block in kinds:
            shown = key if section.get(key) else "algorithm_type"
            yield Objection(("algorithm", shown), f"{block if section.get(key) else name} {kinds[block]}")
            return


def _data(data: Mapping[str, Any]) -> Iterator[Objection]:
    mode, trainer_input = data.get("mode", "both"), _mapping(_mapping(data.get("buffer")).get("trainer_input"))
    if mode in ("bench", "serve"):
        yield Objection(("mode",), f"mode {mode} trains nothing")
    buffer = _mapping(trainer_input.get("experience_buffer"))
    if mode == "train" and (reason := unreadable_buffer(buffer.get("storage_type"))):
        yield Objection(("buffer", "trainer_input", "experience_buffer", "storage_type"), reason)


def unreadable_buffer(storage_type: Any) -> str | None:
    """Why the trainer cannot read experiences from storage of this type."""
    if storage_type != "file":
        return None
    return "file: Trinity reads records of SFT and DPO from files, experiences with rewards from queue and sql alone"


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
