"""The JSON schema of the algorithm section: as strict as the code, no stricter."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from omegaconf import OmegaConf
from trinity.common.config import AlgorithmConfig

from trinity_rec.declared import choices_of
from trinity_rec.presets import PRESETS
from trinity_rec.yaml.catalogue import BLOCKS
from trinity_rec.yaml.effective import effective
from trinity_rec.yaml.schema import SHIPPED, algorithm_schema, sample_strategies

CONFIGS = Path(__file__).parents[2] / "configs/algorithms"


@pytest.fixture(scope="module")
def schema():
    return algorithm_schema()


def test_what_is_shipped_is_the_schema(schema):
    assert json.loads(SHIPPED.read_text(encoding="utf-8")) == schema, "run make generate"


def accepts(schema: dict, section: dict) -> bool:
    return Draft202012Validator(schema).is_valid(section)


def test_it_is_a_schema_with_the_names_of_the_code(schema):
    Draft202012Validator.check_schema(schema)
    properties = schema["properties"]
    assert set(properties) == {field.name for field in dataclasses.fields(AlgorithmConfig)}
    assert properties["algorithm_type"]["enum"] == [f"trinity_rec.{name}" for name in PRESETS]
    for key, block in BLOCKS.items():
        (arguments,) = [
            rule["then"]["properties"][key]["properties"]
            for rule in schema["allOf"]
            if key in rule["then"]["properties"] and key != "sample_strategy_args"
        ]
        assert set(arguments) == set(block.model_fields)
        for name, field in block.model_fields.items():
            assert arguments[name]["default"] == field.default
            assert arguments[name]["description"]
            if choices := choices_of(field):
                assert arguments[name]["anyOf"][0]["enum"] == list(choices)


# Without 1.0, which is a whole number in JSON and none in Python.
PROBES = (None, True, False, -1, -0.1, 0, 1e-12, 1e-9, 0.2, 1, 1.5, 2, 3, 7, "x", "none", "balance", "ring", "full")


@pytest.mark.parametrize("key, block", BLOCKS.items())
def test_it_allows_the_values_that_the_code_allows(schema, key, block):
    for name in block.model_fields:
        for value in PROBES:
            section = {"algorithm_type": "trinity_rec.rec", key: {name: value}}
            assert accepts(schema, section) is _runs(lambda: block(**{name: value})), (name, value)  # noqa: B023


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
        {"algorithm_type": "trinity_rec.rec", "policy_loss_fn_args": "wide"},
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
        {"policy_loss_fn": "my_package.MyLoss", "policy_loss_fn_args": {"beta": 0.5}},
        {"repeat_times": "${oc.env:GROUP}", "optimizer": {"lr": "${oc.env:LR,1e-6}"}},
        {"policy_loss_fn_args": {"epsilon_high": "${oc.env:HIGH}"}},
        {"loss_agg_mode": "${oc.env:AVERAGE}", "policy_loss_fn": "${mine}", "kl_loss_fn": "${oc.env:KL,none}"},
        {"policy_loss_fn_args": "${mine}", "advantage_fn_args": "${mine}"},
        {"policy_loss_fn_args": {"clip_mode": "tests.own_rules.soft_clip", "softness": 2.0}},
    ],
)
def test_it_accepts_what_runs(schema, right):
    section = {"algorithm_type": "trinity_rec.rec_oneside_nois", **right}
    assert accepts(schema, section)
    if "my_package" not in str(right) and "${" not in str(right):
        effective(section)
