"""The README says what the code does: its table is the presets, its YAML passes the check, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from trinity.common.config import Config
from trinity.common.config_validator import AlgorithmConfigValidator

from trinity_rec.presets import PRESETS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "rec_gsm8k" / "README.md"]
README = PAGES[0].read_text(encoding="utf-8")


def test_the_table_is_the_preset_table():
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", README, flags=re.MULTILINE)
    rows = [(name, title, gradient.replace(r"\|", "|")) for name, title, gradient in rows]
    assert rows == [(preset.name, preset.title, preset.gradient) for preset in PRESETS.values()]


def test_the_yaml_means_what_the_text_says():
    (snippet,) = re.findall(r"```yaml\n(.*?)```", README, flags=re.DOTALL)
    config = Config()
    for key, value in yaml.safe_load(snippet)["algorithm"].items():
        setattr(config.algorithm, key, value)
    AlgorithmConfigValidator().validate(config)
    args = config.algorithm.policy_loss_fn_args
    assert (args["clip_mode"], args["weight"]) == ("one-side", "none")
    assert (args["epsilon_low"], args["epsilon_high"]) == (0.6, 2.0)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing
