"""The documentation's tables say what the code does: metrics by the names that are logged, defaults as installed."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import trinity
import yaml
from trinity.algorithm import ENTROPY_LOSS_FN, KL_FN
from trinity.algorithm.advantage_fn.rec_advantage import RECGroupedAdvantage
from trinity.algorithm.policy_loss_fn.rec_policy_loss import RECPolicyLossFn
from trinity.common.experience import EID, Experience
from verl.trainer.config.algorithm import AlgoConfig
from verl.workers.config import ActorConfig, PolicyLossConfig, RolloutConfig

import trinity_rec
from trinity_rec import RECAdvantage, RECPolicyLoss
from trinity_rec import __all__ as public_names
from trinity_rec.objective import Objective
from trinity_rec.objective.average import LOSS_AGG_MODES
from trinity_rec.presets import PRESETS

DOCS = Path(__file__).parents[2] / "docs"


def tables(page: str, section: str) -> list[list[list[str]]]:
    """The tables under a heading of the second level: rows of cells, without the head."""
    text = (DOCS / page).read_text(encoding="utf-8")
    body = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)[1]
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", body, flags=re.MULTILINE):
        rows = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in block.splitlines()]
        found.append([[cell.strip() for cell in row] for row in rows[2:]])
    return found


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def first_names(table: list[list[str]]) -> set[str]:
    return {name for row in table for name in names(row[0])}


# metrics.md


def test_the_losses_metrics():
    logprob, old, advantages = torch.randn(3, 4, 6)
    basic, full = tables("metrics.md", "The loss: `actor/…`")
    for metrics, documented in (("basic", first_names(basic)), ("full", first_names(basic) | first_names(full))):
        weight = "capped_importance_sampling"
        objective = Objective(clip_mode="ring", weight=weight, regularizer="k2", regularizer_coef=0.1, metrics=metrics)
        _, logged = objective(logprob, old, torch.ones(4, 6), advantages)
        assert set(logged) == documented


def test_the_groups_metrics():
    (table,) = tables("metrics.md", "The groups: `experience_pipeline/group_advantages/…`")
    said = {"tokens": torch.arange(5), "prompt_length": 2, "logprobs": torch.zeros(3)}
    exps = [
        Experience(eid=EID(batch=0, task=0, run=run), reward=reward, **said)
        for run, reward in enumerate([0.0, 0.0, 1.0])
    ]
    _, logged = RECAdvantage(drop="balance", reweight="adaptive").process(exps)
    logged = {re.sub("/(mean|max|min|std)$", "/…", name.removeprefix("group_advantages/")) for name in logged}
    assert logged == first_names(table)


def test_the_batchs_metrics():
    (table,) = tables("metrics.md", "The batch: `sample/…`")
    own = {
        (strategy, name)
        for strategy in public_names
        if strategy.endswith("SampleStrategy")
        for name in re.findall(r'metrics\["sample/(\w+)"\]', inspect.getsource(getattr(trinity_rec, strategy)))
    }
    documented = {(names(row[1])[0], name) for row in table if row[1] != "Trinity" for name in names(row[0])}
    assert own and documented == own
    (overview,) = tables("algorithms.md", "Sample strategies")
    assert {(names(row[0])[0], name) for row in overview for name in names(row[3])} == own


def test_trinitys_metrics_are_in_its_sources():
    (table,) = tables("metrics.md", "What Trinity adds")
    package = Path(trinity.__file__).parent
    sources = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    logged = {name for name in first_names(table) if not name.startswith("/")}
    dynamic = {"rollout/accuracy/mean": '"accuracy"', "eval/…": 'f"eval/', "time/step": '"step"'}
    assert [name for name in logged if dynamic.get(name, f'"{name}"') not in sources] == []


# coming_from.md


def shown(value) -> str:
    """As the tables write a value: `null` and `true` as YAML does."""
    return str(value) if isinstance(value, float) else yaml.safe_dump(value).splitlines()[0]


def own_defaults() -> dict[str, object]:
    return {**RECPolicyLoss.default_args(), "loss_agg_mode": None, **RECAdvantage.default_args()}


def test_upstreams_arguments_and_both_defaults():
    loss, advantage = tables("coming_from.md", "Trinity's built-in `rec`")
    for table, upstream, ours in (
        (loss, RECPolicyLossFn, RECPolicyLoss),
        (advantage, RECGroupedAdvantage, RECAdvantage),
    ):
        parameters = inspect.signature(upstream.__init__).parameters
        theirs = {name: each.default for name, each in parameters.items() if name not in ("self", "backend")}
        assert first_names(table) == set(theirs) <= set(ours.default_args())
        for (name,), there, here in ((names(row[0]), row[1].strip("`"), row[2].strip("`")) for row in table):
            assert (there, here) == (shown(theirs[name]), shown(ours.default_args()[name])), name


def test_the_arguments_that_are_new():
    text = (DOCS / "coming_from.md").read_text(encoding="utf-8")
    sentence = re.search(r"^New here: (.*?)\.\n", text, flags=re.MULTILINE | re.DOTALL)[1]
    upstream = {*inspect.signature(RECPolicyLossFn.__init__).parameters}
    upstream |= {*inspect.signature(RECGroupedAdvantage.__init__).parameters}
    assert set(names(sentence)) == set(own_defaults()) - upstream


def verl_default(key: str):
    section, *path = key.split(".")
    sections = {
        "actor": ActorConfig,
        "algorithm": AlgoConfig,
        "rollout": RolloutConfig,
        "policy_loss": PolicyLossConfig,
    }
    if len(path) == 2:
        section, path = path[0], path[1:]
    (field,) = (field for field in dataclasses.fields(sections[section]) if field.name == path[0])
    return field.default


def other_libraries() -> Iterator[tuple[str, list[str]]]:
    for section in ("verl", "TRL"):
        for row in tables("coming_from.md", section)[0]:
            yield section, row


def test_verls_keys_and_defaults_are_those_installed():
    rows = [row for section, row in other_libraries() if section == "verl"]
    assert rows
    for row in rows:
        (key,) = names(row[0])
        assert row[1].strip("`") == shown(verl_default(key)), key


@pytest.mark.parametrize("section", ["verl", "TRL"])
def test_the_counterparts_exist(section):
    kl, entropy = KL_FN.get("k3").default_args(), ENTROPY_LOSS_FN.get("default").default_args()
    elsewhere = {"repeat_times", "kl_loss_fn", "entropy_loss_fn"}
    elsewhere |= {"model.temperature", "trainer.trainer_config", "synchronizer.sync_interval"}
    known = {*own_defaults(), *elsewhere, *(f"kl_loss_fn_args.{name}" for name in kl)}
    known |= {f"entropy_loss_fn_args.{name}" for name in entropy}
    for _, row in (each for each in other_libraries() if each[0] == section):
        assert set(names(row[2])) <= known and (names(row[2]) or row[2] in ("none", "the preset")), row


def test_what_the_remarks_name_is_taken():
    assert "low_var_kl" in KL_FN._default_mapping and "k3" in KL_FN._default_mapping
    text = (DOCS / "coming_from.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(re[cpd]_\w+)`", text)) <= set(PRESETS)
    averages = tables("coming_from.md", "TRL")[1]
    assert {names(row[1])[0] for row in averages} <= set(LOSS_AGG_MODES)
    for setting in re.findall(r"`(clip_mode|weight): (\S+)`", text):
        Objective(**dict([setting]))
