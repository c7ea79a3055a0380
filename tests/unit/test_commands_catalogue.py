"""`list`, `show`, `diff` and configs/algorithms: what they say of a preset is what Trinity would run."""

import io
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from trinity_rec.objective import Objective
from trinity_rec.presets import PRESETS
from trinity_rec.terminal import UsageError, preset_named
from trinity_rec.yaml.catalogue import (
    counting_section,
    details,
    differences,
    readable,
    section,
    section_text,
)
from trinity_rec.yaml.effective import effective

CONFIGS = Path(__file__).parents[2] / "configs/algorithms"
every_preset = pytest.mark.parametrize("preset", PRESETS.values(), ids=list(PRESETS))


def loaded(text: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)))["algorithm"]


def merged(section: dict) -> dict:
    return vars(effective(section))


@every_preset
def test_the_shown_section_is_the_preset_and_nothing_else(preset):
    bare = merged({"algorithm_type": f"trinity_rec.{preset.name}", "repeat_times": 8})
    assert merged(section(preset)) == bare
    assert merged(counting_section(preset)) == bare
    assert merged(loaded(section_text(preset))) == bare
    assert bare["policy_loss_fn_args"].items() >= preset.policy_loss.items()
    assert bare["advantage_fn_args"].items() >= preset.advantage.items()


@every_preset
def test_the_shipped_config_is_the_shown_section(preset):
    text = (CONFIGS / f"{preset.name}.yaml").read_text(encoding="utf-8")
    assert text == section_text(preset), "run make generate"


def test_there_is_a_shipped_config_for_each_preset_and_no_other():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(PRESETS)


@every_preset
def test_old_logprobs_are_needed_just_where_the_gradient_depends_on_them(preset):
    current = torch.linspace(-3, -0.1, 12).reshape(3, 4)

    def gradient(old):
        logprob = current.clone().requires_grad_()
        advantage = torch.tensor([[1.0], [-0.5], [-0.5]]).expand(3, 4)
        Objective(**preset.policy_loss)(logprob, old, torch.ones(3, 4), advantage)[0].backward()
        return logprob.grad

    stale = torch.linspace(-0.1, -6, 12).reshape(3, 4)
    depends = any(not torch.equal(gradient(current), gradient(old)) for old in (torch.full((3, 4), -1.0), stale))
    assert preset.needs_old_logprobs is depends
    assert details(preset)["needs_old_logprobs"] is depends


def test_differences_leave_out_what_neither_reads():
    found = differences(PRESETS["rec_grpo"], PRESETS["rec_oneside_nois"])
    assert found.keys() == {
        "gradient",
        "policy_loss_fn_args.weight",
        "advantage_fn_args.std_normalize",
        "advantage_fn_args.epsilon",
    }
    assert found["policy_loss_fn_args.weight"] == ("importance_sampling", "none")
    assert found["advantage_fn_args.epsilon"] == (1e-6, None)
    assert differences(PRESETS["rec_grpo"], PRESETS["rec_grpo"]) == {}


@every_preset
def test_the_readable_gradient_has_no_word_left_for_a_symbol(preset):
    words = readable(preset.gradient).replace(",", " ").split()
    assert not {"rho", "grad", "pi", "sum", ">=", "<="} & set(words)


def test_a_typo_names_the_nearest():
    with pytest.raises(UsageError, match=r"^no preset 'rec_onside_nois'; did you mean rec_oneside_nois\?$"):
        preset_named("rec_onside_nois")
    assert preset_named("trinity_rec.rec_grpo").name == "rec_grpo"
