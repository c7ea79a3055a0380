"""An algorithm of one's own in the arena, from the `algorithm:` section of a YAML."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from trinity_rec.lab.training import objective_of, shaping_of
from trinity_rec.objective.rules import own_rules
from trinity_rec.presets import PRESETS
from trinity_rec.terminal import UsageError, preset_named
from trinity_rec.variants import VARIANTS, Variant
from trinity_rec.yaml.document import Document

READ = ("algorithm_type", "policy_loss_fn_args", "advantage_fn_args")
GIVEN_BY_THE_ARENA = ("repeat_times", "optimizer")


def variant_of(path: Path) -> Variant:
    """The algorithm of a YAML, named as the file.

    Raises:
        UsageError: it is not readable, has no `algorithm:` section of this package's, or an argument is not allowed;
            one line that names the key.
    """
    document = Document.read(path)
    section = document.data.get("algorithm")
    if not isinstance(section, Mapping) or not isinstance(section.get("algorithm_type"), str):
        raise UsageError(f"{path}: no `algorithm:` section with an algorithm_type: trinity_rec.<preset>")
    if unread := [key for key in section if key not in (*READ, *GIVEN_BY_THE_ARENA)]:
        where = document.line(("algorithm", unread[0]))
        raise UsageError(f"{path}:{where}: the arena does not read algorithm.{unread[0]}; it reads {', '.join(READ)}")
    arguments = {}
    for key in READ[1:]:
        arguments[key] = section.get(key) or {}
        if not isinstance(arguments[key], Mapping):
            raise UsageError(f"{path}:{document.line(('algorithm', key))}: algorithm.{key} is not a mapping")
    preset = preset_named(section["algorithm_type"]).name
    loss, advantage = (dict(arguments[key]) for key in READ[1:])
    if path.stem in VARIANTS or path.stem in PRESETS:
        raise UsageError(f"{path}: {path.stem} is the name of an algorithm that is there; name the file otherwise")
    variant = Variant(path.stem, path.stem, preset, loss, advantage=advantage)
    for key, check in ((READ[1], objective_of), (READ[2], shaping_of)):
        try:
            check(variant)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}:{document.line(('algorithm', key))}: algorithm.{key}: {error}") from error
    return variant


def digest(variant: Variant) -> str:
    """Of what a variant does: its arguments, and the source of the modules of its own rules, since a rule may call what
    stands beside it. Another one gets curves of its own.
    """
    arguments: dict[str, Any] = {**PRESETS[variant.preset].policy_loss, **variant.policy_loss}
    sources = [inspect.getsource(sys.modules[rule.__module__]) for rule in own_rules(arguments)]
    said = json.dumps([variant.preset, variant.policy_loss, variant.advantage, sources], sort_keys=True, default=str)
    return blake2b(said.encode(), digest_size=4).hexdigest()
