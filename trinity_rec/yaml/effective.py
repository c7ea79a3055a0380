"""What Trinity and the plugin make of an `algorithm:` section, without Ray, a GPU, a model or the network."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from trinity.common.config import AlgorithmConfig

# The paper's group size, in place of Trinity's default of 1, with which there is nothing to compare.
GROUP_SIZE = 8

# What makes up the objective. The rest of the section says how it is run: repeat_times, optimizer, ...
OBJECTIVE_KEYS = (
    "policy_loss_fn",
    "policy_loss_fn_args",
    "loss_agg_mode",
    "advantage_fn",
    "advantage_fn_args",
    "kl_loss_fn",
    "kl_loss_fn_args",
    "kl_penalty_fn",
    "kl_penalty_fn_args",
    "entropy_loss_fn",
    "entropy_loss_fn_args",
)
STRATEGY_KEYS = ("sample_strategy", "sample_strategy_args")


def effective(section: Mapping[str, Any]) -> AlgorithmConfig:
    """The section after Trinity's own check of it, with every default filled in.

    Raises:
        ValueError: the check refuses it; one line that names the key.
    """
    from omegaconf import OmegaConf
    from trinity.common.config import Config
    from trinity.common.config_validator import AlgorithmConfigValidator

    config = Config(algorithm=OmegaConf.to_object(OmegaConf.merge(_schema(), {"algorithm": dict(section)})).algorithm)
    with trinity_warnings():
        AlgorithmConfigValidator().validate(config)
    return config.algorithm


@cache
def _schema() -> DictConfig:
    """Of a file that has this section only: that of a whole one takes thirty times as long."""
    from omegaconf import OmegaConf
    from trinity.common.config import AlgorithmConfig

    section = ("algorithm", AlgorithmConfig, field(default_factory=AlgorithmConfig))
    return OmegaConf.structured(make_dataclass("Config", [section]))


@contextmanager
def trinity_warnings() -> Iterator[list[str]]:
    """Collect what Trinity's loggers would print to stdout, which belongs to a command's result."""
    import trinity.common.config_validator  # noqa: F401  its loggers are made when it is imported

    collected: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            collected.append(record.getMessage())
        return False

    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "trinity"]
    loggers = [logging.getLogger(name) for name in {*names, "trinity", "trinity.trinity_rec.plugin.algorithm"}]
    for logger in loggers:
        logger.addFilter(collect)
    try:
        yield collected
    finally:
        for logger in loggers:
            logger.removeFilter(collect)
