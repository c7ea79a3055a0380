"""The documentation builds to a site without a warning: no dead link or anchor, no page left out, no unknown object."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from trinity_rec import __all__ as public_names
from trinity_rec.presets import PRESETS

ROOT = Path(__file__).parents[2]


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", site],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},  # advertises other generators
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    result = build(ROOT / "mkdocs.yml", folder)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_front_page_is_the_readme_and_its_links_lead_to_pages(site):
    front = (site / "index.html").read_text(encoding="utf-8")
    presets = (site / "presets.html").read_text(encoding="utf-8")
    assert all(f"<code>{name}</code>" in presets for name in PRESETS)
    for target in ("conformance.html", "presets.html", "examples/rec_gsm8k/gsm8k.yaml", "CITATION.cff"):
        assert f'href="{target}"' in front and (site / target).exists()


def test_the_reference_has_every_building_block_with_its_docstring(site):
    text = re.sub(r"<[^>]+>", "", (site / "api.html").read_text(encoding="utf-8"))
    for name in (
        *public_names,
        "Objective",
        "one_side",
        "capped_importance_sampling",
        "k2_sequence",
        "group_advantage",
        "balanced_keep",
        "adaptive_temperature",
    ):
        assert name == "__version__" or name in text
    assert "one choice of clip mask, data weight, regulariser and average" in text
    assert "the first batches batches are kept and cycled over, never fresh" in " ".join(text.split())


def test_the_site_loads_nothing_from_other_servers(site):
    loaded = r"""(?:<script[^>]+src|<link[^>]+rel="(?:stylesheet|preconnect)"[^>]+href|<img[^>]+src)="(?:https?:)?//"""
    assert [page.name for page in site.rglob("*.html") if re.search(loaded, page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("[nowhere](nowhere.md)", "'nowhere.md'"),
        ("[no anchor](#nowhere)", "'#nowhere'"),
        ("::: trinity_rec.objective.Nothing", "trinity_rec.objective.Nothing"),
    ],
)
def test_a_broken_page_would_be_seen(tmp_path, page, complaint):
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = config[: config.index("nav:")].replace("hooks: [docs/site_hooks.py]\n", "")
    (tmp_path / "mkdocs.yml").write_text(config, encoding="utf-8")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Front\n\n{page}\n", encoding="utf-8")
    result = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert result.returncode != 0 and complaint in result.stderr
