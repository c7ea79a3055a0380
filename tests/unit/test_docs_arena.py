"""docs/arena.md and docs/choose.md say what was measured: it follows from the runs that are kept beside them."""

from pathlib import Path

import pytest

from tests.archived import columns_of, said_in, unpack
from trinity_rec.lab.arena.own import variant_of
from trinity_rec.lab.arena.plan import FULL
from trinity_rec.lab.arena.run import Results, plan_of
from trinity_rec.lab.reproduce import claim_directory

DOCS = Path(__file__).parents[2] / "docs"
ARENA = DOCS / "arena"
ARCHIVES = sorted((ARENA / "curves").glob("*.tar.xz"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    out = tmp_path_factory.mktemp("arena")
    unpack(ARCHIVES, out)
    return out


def test_they_are_of_todays_scale_and_rules_and_whole(runs):
    plan = plan_of(FULL, runs)
    claim_directory(runs, plan.scale.marker)  # which refuses others
    columns = columns_of(ARCHIVES)
    assert {f"{task}-{lag}" for task, lag, _ in plan.whole()} == columns
    assert len(plan.whole()) == len(columns) * len(FULL.algorithms) > 0


def test_what_is_published_follows_from_them(runs):
    Results(plan_of(FULL, runs)).write(None)
    assert (runs / "arena.csv").read_text(encoding="utf-8") == (ARENA / "arena.csv").read_text(encoding="utf-8")
    assert said_in(runs / "questions.json") == said_in(ARENA / "questions.json")
    assert (runs / "costs.md").read_text(encoding="utf-8") in (DOCS / "choose.md").read_text(encoding="utf-8")
    pictures = {path.name for path in (runs / "heat_map.png", runs / "robustness.png", *runs.glob("question_*.png"))}
    assert pictures == {path.name for path in ARENA.glob("*.png")}


def test_the_idea_is_judged_by_the_same_runs(runs, monkeypatch):
    monkeypatch.syspath_prepend(ARENA / "ideas")
    own = variant_of(ARENA / "ideas" / "relative_topr.yaml")
    Results(plan_of(FULL, runs, own)).write(own.name)
    assert said_in(runs / "own.json") == said_in(ARENA / "relative_topr.json")
