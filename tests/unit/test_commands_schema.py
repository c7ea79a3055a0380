"""The JSON schema of the algorithm section: as strict as the code, no stricter."""

import dataclasses
import io
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf
from trinity.common.config import AlgorithmConfig

from trinity_rec.commands.schema import RANGES, algorithm_schema, choices, sample_strategies
from trinity_rec.objective import Objective
from trinity_rec.plugin.advantage import RECAdvantage
from trinity_rec.presets import PRESETS
from trinity_rec.yaml.effective import effective

CONFIGS = Path(__file__).parents[2] / "configs/algorithms"


@pytest.fixture(scope="module")
def schema():
    return algorithm_schema()


def accepts(schema: dict, section: dict) -> bool:
    return Draft202012Validator(schema).is_valid(section)


def test_it_is_a_schema_with_the_names_of_the_code(schema):
    Draft202012Validator.check_schema(schema)
    properties = schema["properties"]
    assert set(properties) == {field.name for field in dataclasses.fields(AlgorithmConfig)}
    assert properties["algorithm_type"]["enum"] == [f"trinity_rec.{name}" for name in PRESETS]
    for key, block in (("policy_loss_fn_args", Objective), ("advantage_fn_args", RECAdvantage)):
        arguments = properties[key]["properties"]
        assert set(arguments) == {field.name for field in dataclasses.fields(block)}
        for field in dataclasses.fields(block):
            assert arguments[field.name]["default"] == field.default
            assert arguments[field.name]["description"]
            if field.name in choices():
                assert arguments[field.name]["enum"] == list(choices()[field.name])
    assert set(RANGES) <= {
        *properties["policy_loss_fn_args"]["properties"],
        *properties["advantage_fn_args"]["properties"],
        *(name for strategy in sample_strategies().values() for name in strategy.default_args()),
    }


# Without 1.0, which is a whole number in JSON and none in Python.
PROBES = (None, True, False, -1, -0.1, 0, 1e-12, 1e-9, 0.2, 1, 1.5, 2, 3, 7, "x", "none", "balance", "ring", "full")


@pytest.mark.parametrize("key, block", [("policy_loss_fn_args", Objective), ("advantage_fn_args", RECAdvantage)])
def test_it_allows_the_values_that_the_code_allows(schema, key, block):
    for field in dataclasses.fields(block):
        for value in PROBES:
            if value in (0, 1) and not isinstance(value, bool) and True in choices().get(field.name, ()):
                continue  # equal to False and True in Python
            section = {"algorithm_type": "trinity_rec.rec", key: {field.name: value}}
            assert accepts(schema, section) is _runs(lambda: block(**{field.name: value})), (field.name, value)  # noqa: B023


@pytest.mark.parametrize("name, strategy", sample_strategies().items())
def test_it_allows_the_strategy_arguments_that_the_code_allows(schema, name, strategy):
    for argument in set(strategy.default_args()) - {"backend"}:
        for value in PROBES:
            section = {
                "algorithm_type": "trinity_rec.rec",
                "sample_strategy": name,
                "sample_strategy_args": {argument: value},
            }
            allowed = _runs(lambda: strategy.check_arguments(**{**strategy.default_args(), argument: value}))  # noqa: B023
            assert accepts(schema, section) is allowed, (argument, value)


def _runs(call) -> bool:
    try:
        call()
    except (ValueError, TypeError):
        return False
    return True


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_it_accepts_every_shipped_config(schema, path):
    section = OmegaConf.to_container(OmegaConf.load(io.StringIO(path.read_text(encoding="utf-8"))))["algorithm"]
    Draft202012Validator(schema).validate(section)


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithm_type": "trinity_rec.rec_gpro"},
        {"algorithm_type": "trinity_rec.rec", "optiimzer": {"lr": 1e-6}},
        {"algorithm_type": "trinity_rec.rec", "optimizer": {"lr": "fast"}},
        {"algorithm_type": "trinity_rec.rec", "repeat_times": "eight"},
        {"algorithm_type": "trinity_rec.rec", "policy_loss_fn_args": {"epsilon_hihg": 0.2}},
        {"algorithm_type": "trinity_rec.rec", "policy_loss_fn": "trinity_rec.RECPolicyLos"},
        {"algorithm_type": "trinity_rec.rec", "kl_loss_fn": "k9"},
        {"algorithm_type": "trinity_rec.rec", "sample_strategy_args": 3},
        {},
    ],
)
def test_it_refuses_what_check_refuses(schema, wrong):
    assert not accepts(schema, wrong)


@pytest.mark.parametrize(
    "right",
    [
        {"kl_loss_fn": "k2", "kl_loss_fn_args": {"kl_coef": 0.01}},
        {"advantage_fn": "my_package.MyAdvantage"},
        {"sample_strategy": "trinity_rec.StalenessSampleStrategy", "sample_strategy_args": {"decay": 0.9}},
        {"optimizer": {"lr": 1e-6, "betas": [0.9, 0.95]}},
        {"sample_strategy": "default", "loss_agg_mode": "token-mean"},
    ],
)
def test_it_accepts_what_runs(schema, right):
    section = {"algorithm_type": "trinity_rec.rec_oneside_nois", **right}
    assert accepts(schema, section)
    if "advantage_fn" not in right:
        effective(section)
