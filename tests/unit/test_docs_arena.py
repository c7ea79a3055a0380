"""docs/arena.md and docs/choose.md say what was measured: it follows from the runs that are kept beside them."""

import tarfile
from pathlib import Path

import pytest

from trinity_rec.lab.arena.own import variant_of
from trinity_rec.lab.arena.plan import FULL
from trinity_rec.lab.arena.run import Results, plan_of

DOCS = Path(__file__).parents[2] / "docs"
ARENA = DOCS / "arena"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """As the page says to, so that `trinity-rec arena` goes on from them."""
    out = tmp_path_factory.mktemp("arena")
    for archive in sorted((ARENA / "curves").iterdir()):
        with tarfile.open(archive) as runs:
            runs.extractall(out, filter="data")
    return out


def test_what_is_published_follows_from_the_runs(unpacked, monkeypatch):
    Results(plan_of(FULL, unpacked)).write(None)
    for name in ("arena.csv", "questions.json", "heat_map.png"):
        assert (unpacked / name).read_bytes() == (ARENA / name).read_bytes(), name
    assert (unpacked / "costs.md").read_text() in (DOCS / "choose.md").read_text()


def test_the_idea_is_judged_by_the_same_runs(unpacked, monkeypatch):
    monkeypatch.syspath_prepend(ARENA / "ideas")
    own = variant_of(ARENA / "ideas" / "relative_topr.yaml")
    Results(plan_of(FULL, unpacked, own)).write(own.name)
    assert (unpacked / "own.json").read_bytes() == (ARENA / "relative_topr.json").read_bytes()
