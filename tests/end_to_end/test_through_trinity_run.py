"""The lab's contrast through the real `trinity run`, short; and `trinity-rec plot` of what it logged."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from trinity_rec.cli import app
from trinity_rec.lab import through_trinity
from trinity_rec.lab.grid import read_rows
from trinity_rec.plot.events import find_runs, read_run
from trinity_rec.plot.runs import PANELS
from trinity_rec.session import trained_steps

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

STEPS, ALGORITHM = 10, "rec_oneside_is"


def test_a_run_through_trinity_is_compared_kept_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(through_trinity, "ALGORITHMS", (ALGORITHM,))
    out, said = tmp_path / "out", io.StringIO()

    def compare():
        console = Console(file=said, width=120)
        return through_trinity.through_trinity(out, tmp_path / "curves", STEPS, 1, 1, console)

    (result,) = compare()
    assert f"step {STEPS}/{STEPS}" in said.getvalue()
    assert result["variant"] == ALGORITHM and result["seconds"][0] > 0
    # The same model, not yet trained on anything else, on the same 160 problems with 8 samples each: two draws of one
    # proportion near 0.24, whose difference has a standard deviation of less than 0.02.
    assert abs(result["lab_final"][0] - result["trinity_final"][0]) < 0.08
    assert 0.1 < result["trinity_final"][0] < 0.4
    table = read_rows(out / ALGORITHM / "seed_0.csv")
    lab = read_rows(tmp_path / "curves" / "addition" / "sync_interval_20" / ALGORITHM / "seed_0.csv")
    assert table["step"].tolist() == [10] and table.keys() == lab.keys()
    for name in ("kl_rollout", "clip_fraction", "gradient_norm"):  # the same staleness, rate and loss
        assert 0.5 < table[name][0] / lab[name][-1] < 2
    assert (out / "trinity.png").stat().st_size > 10_000

    before = (out / ALGORITHM / "seed_0.csv").stat().st_mtime_ns
    assert compare() == [result]
    assert (out / ALGORITHM / "seed_0.csv").stat().st_mtime_ns == before
    assert "1 of 1 runs are there already" in said.getvalue()

    (job,) = find_runs(out / "runs")
    run = read_run(job)
    assert run.roles.keys() == {"trainer", "explorer"} and run.warnings == ()
    logged = trained_steps(job)
    for tag in ("critic/rewards/mean", "actor/kl_k3", "actor/pg_clipfrac"):
        series = run.get("trainer", tag)
        np.testing.assert_array_equal(series.steps, np.arange(1, STEPS + 1))
        np.testing.assert_allclose(series.values, [step.metrics[tag] for step in logged], rtol=1e-4, atol=1e-6)

    plotted = CliRunner().invoke(app, ["plot", str(out / "runs"), "--out", str(tmp_path / "plots")])
    assert plotted.exit_code == 0, plotted.output
    assert {path.stem for path in (tmp_path / "plots").glob("*.png")} == {panel.name for panel in PANELS}
