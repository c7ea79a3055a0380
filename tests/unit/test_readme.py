"""The README says what the code does: its YAML passes the check, its verdicts are those measured, its links lead on."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from trinity.common.config import Config
from trinity.common.config_validator import AlgorithmConfigValidator

from trinity_rec.presets import PRESETS
from trinity_rec.yaml.catalogue import markdown_table

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "rec_gsm8k" / "README.md"]
README = PAGES[0].read_text(encoding="utf-8")


def test_it_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 90


def test_the_verdicts_are_those_of_the_reproduction():
    claims = json.loads((ROOT / "docs" / "reproduction" / "claims.json").read_text(encoding="utf-8"))
    counts = Counter(claim["verdict"] for claim in claims)
    said = re.search(r"(\d+) holds?, (\d+) (?:are|is) inconclusive and (\d+)\s+do(?:es)? not hold", README)
    assert said and list(map(int, said.groups())) == [
        counts[verdict] for verdict in ("holds", "inconclusive", "does not hold")
    ]


def test_the_corrections_are_counted():
    assert f"{sum(preset.family == 'OFF' for preset in PRESETS.values())} published corrections" in README


def test_the_docs_table_is_the_preset_table():
    page = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    assert markdown_table() in page, "run make generate"
    assert re.findall(r"^\| `(\w+)` ", page, flags=re.MULTILINE) == list(PRESETS)


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
