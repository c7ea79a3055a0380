"""`trinity-rec reproduce` end to end at a scale of seconds, and what it says to those who ask for what is not there."""

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from trinity_rec.cli import app
from trinity_rec.lab import bandit, reproduce
from trinity_rec.lab.reproduce import ALL_CLAIMS, OtherResults, Scale
from trinity_rec.lab.training import COLUMNS
from trinity_rec.presets import PRESETS
from trinity_rec.variants import SETTINGS, VARIANTS

TINY = Scale(("addition",), seeds=2, steps=30, every_variant=False)
CONSOLE = Console(quiet=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """All claims, with two processes."""
    out = tmp_path_factory.mktemp("reproduce")
    return out, reproduce.reproduce(ALL_CLAIMS, TINY, out, workers=2, console=CONSOLE)


def test_claims_json_has_an_object_a_claim(done):
    out, judged = done
    assert json.loads((out / "claims.json").read_text()) == json.loads(json.dumps(judged))
    assert [each["claim"] for each in judged] == list(ALL_CLAIMS)
    for each in judged:
        low, high = each["interval"]
        assert low <= each["effect"] <= high
        assert each["verdict"] in ("holds", "does not hold", "inconclusive")
        assert each["statement"] and each["rule"] and each["decided_by"]


def test_reinforce_ends_on_the_second_best_arm(done):
    _, judged = done
    assert judged[0]["claim"] == "C1" and judged[0]["verdict"] == "holds"
    masses = judged[0]["final_mass"]["exact"]
    assert set(masses) == set(bandit.BANDIT_VARIANTS)
    # what the dynamics of the variants are known to end at
    for name, arm_2, arm_3 in (
        ("rep_asymre", 1.00, 0.00),
        ("rep_opmd", 0.78, 0.21),
        ("rec_oneside_nois", 0.72, 0.12),
        ("red_weight", 0.88, 0.12),
        ("red_weight_cold", 0.30, 0.70),
    ):
        assert masses[name][1:] == pytest.approx([arm_2, arm_3], abs=0.01), name


def test_every_run_has_its_curve_and_every_claim_its_figure(done):
    out, _ = done
    for name in ALL_CLAIMS:
        assert f"![{name}]({name}.png)" in (out / "report.md").read_text()
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    curves = list((out / "curves" / "addition").glob("*/*/seed_*.csv"))
    cells = set(reproduce.cells(ALL_CLAIMS[1:], TINY))
    assert len(curves) == len(cells) * TINY.seeds
    with curves[0].open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and [row["step"] for row in rows] == ["0", "10", "20", "30"]
    with (out / "rewards.csv").open() as file:
        assert {(row["task"], row["setting"], row["variant"]) for row in csv.DictReader(file)} == cells


def test_an_interrupted_grid_goes_on_where_it_stopped(done):
    out, judged = done
    curves = {path: path.stat().st_mtime_ns for path in (out / "curves").rglob("*.csv")}
    lost = out / "curves" / "addition" / "offline" / "rec_grpo" / "seed_1.csv"
    before = lost.read_bytes()
    lost.unlink()
    again = reproduce.reproduce(ALL_CLAIMS, TINY, out, workers=1, console=CONSOLE)
    assert lost.read_bytes() == before  # the same run, to the bit
    assert {path: path.stat().st_mtime_ns for path in curves if path != lost} == {
        path: time for path, time in curves.items() if path != lost
    }
    assert json.dumps(again) == json.dumps(judged)


def test_results_of_another_scale_are_not_mixed(done):
    out, _ = done
    with pytest.raises(OtherResults, match="holds runs with steps 30, these have 31"):
        reproduce.reproduce(["C2"], Scale(("addition",), 2, 31, False), out, workers=1, console=CONSOLE)


def test_the_full_grid_is_every_algorithm_of_the_paper_in_every_setting_with_five_seeds():
    cells = set(reproduce.cells(ALL_CLAIMS[1:], reproduce.FULL))
    assert 5 * len(cells) + len(reproduce.bandit_jobs(Path(), reproduce.FULL)) == 1188  # as docs/reproduction.md says
    for variant in VARIANTS.values():
        if PRESETS[variant.preset].family == "OFF":
            continue
        settings = SETTINGS if variant.rate_factor == 1 else ["sync_interval_20"]
        for setting in settings:
            for task in reproduce.FULL.tasks:
                assert (task, setting, variant.name) in cells
    assert reproduce.FULL.seeds >= 5 and len(reproduce.FULL.tasks) >= 3


def test_an_unknown_claim_names_the_known_ones():
    result = CliRunner().invoke(app, ["reproduce", "--quick", "C9"])
    assert result.exit_code != 0
    assert str(result.exception) == "no claim 'C9'; known: C1, C2, C3, C4, C5, C6, C7, C8"


def test_help_teaches():
    result = CliRunner().invoke(app, ["reproduce", "--help"])
    assert result.exit_code == 0
    for word in ("--quick", "--out", "C1 to C8", "Example: trinity-rec reproduce"):
        assert word in result.stdout
