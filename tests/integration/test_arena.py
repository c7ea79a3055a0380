"""`trinity-rec arena` end to end at a scale of seconds: what it writes, that it goes on, and what it refuses."""

import csv
import html
import json
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.in_process import InProcess
from trinity_rec.cli import app
from trinity_rec.lab import grid
from trinity_rec.lab.arena import plan, report
from trinity_rec.lab.arena.run import arena, plan_of

TINY = replace(
    plan.QUICK,
    lags=("on_policy", "offline"),
    algorithms=("rec_grpo", "off_tis"),
    steps=4,
    evaluate_every=2,
    judging=(0, 1),
    rates=(5e-4, 5e-3),
)
KEYS = {"algorithm", "task", "lag", "rate", "final", "interval", "auc", "collapse_rate", "robustness", "seeds"}
OWN = "algorithm:\n  algorithm_type: trinity_rec.rec\n  policy_loss_fn_args: {clip_mode: tests.own_rules.soft_clip}\n"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """By the command, with an algorithm of one's own."""
    directory = tmp_path_factory.mktemp("arena")
    (directory / "soft.yaml").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "QUICK", TINY)
        patch.syspath_prepend(Path(__file__).parents[2])  # the processes of the runs find tests.own_rules
        said = CliRunner().invoke(
            app,
            ["arena", "--quick", "--out", f"{directory}/out", "--variant", f"{directory}/soft.yaml", "--workers", "2"],
        )
    assert said.exit_code == 0, said.output
    return directory / "out", said.output


def test_arena_json_has_an_object_a_cell(done):
    out, _ = done
    cells = json.loads((out / "arena.json").read_text())
    wanted = [(lag, name) for lag in TINY.lags for name in (*TINY.algorithms, "soft")]
    assert [(cell["lag"], cell["algorithm"]) for cell in cells] == wanted
    for cell in cells:
        assert set(cell) >= KEYS
        assert cell["interval"][0] <= cell["final"] <= cell["interval"][1]
        assert cell["rate"] in TINY.rates and cell["seeds"] == 2
    rows = list(csv.DictReader((out / "arena.csv").open()))
    assert [(row["lag"], row["algorithm"]) for row in rows] == wanted
    assert float(rows[0]["final"]) == pytest.approx(cells[0]["final"], rel=1e-4)


def test_the_page_needs_nothing_else_and_the_figures_are_there(done):
    out, _ = done
    page = (out / "index.html").read_text()
    # Cells, soft against the others, and what each costs.
    assert page.count("<tr>") == (1 + 6) + (1 + 4) + (1 + 3) and 'class="sortable"' in page
    assert "http" not in page and page.count("data:image/png;base64,") == 2 + 2
    for name in ("heat_map.png", "robustness.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CLICKS = """<script>
const found = [...document.querySelectorAll("table.sortable th")].flatMap((head, column) => [1, 2].map(() => {
  head.click();
  const keys = [...document.querySelectorAll("table.sortable tbody tr")].map(row => row.cells[column].dataset.key);
  return [head.textContent, head.getAttribute("aria-sort"), keys];
}));
document.body.innerHTML = "";
document.body.textContent = JSON.stringify(found);
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium")
def test_a_click_on_a_head_sorts_the_page_and_another_turns_it_round(done, tmp_path):
    out, _ = done
    page = tmp_path / "page.html"
    page.write_text((out / "index.html").read_text() + CLICKS)
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    dom = subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    sorts = json.loads(html.unescape(dom[dom.index("[[") : dom.rindex("]]") + 2]))
    assert len(sorts) == 2 * 13
    for (head, first, up), (_, second, down) in zip(sorts[::2], sorts[1::2], strict=True):
        names = head in ("algorithm", "task", "lag")
        assert (first, second) == (("ascending", "descending") if names else ("descending", "ascending"))
        as_read = str.casefold if names else float
        assert [as_read(key) for key in up] == sorted(map(as_read, up), reverse=not names), head
        assert [as_read(key) for key in down] == sorted(map(as_read, down), reverse=names), head


def test_what_a_choice_costs_is_a_table_with_nothing_lost_by_the_best(done):
    out, _ = done
    heads, _, *rows = (out / "costs.md").read_text().splitlines()
    assert heads == "| algorithm | on-policy | offline | mean |"
    lost = [[float(value) for value in row.split("|")[2:4]] for row in rows]
    assert len(rows) == 3 and [min(of_lag) for of_lag in zip(*lost, strict=True)] == [0, 0]


def test_what_the_field_disagrees_on_is_answered_or_said_not_to_be_measured(done):
    out, _ = done
    said = json.loads((out / "questions.json").read_text())
    assert [each["question"] for each in said] == ["clipping", "importance_sampling", "ratio", "sample_size"]
    page = (out / "index.html").read_text()
    assert page.count("Not measured: the cells that it takes are not there.") == 4  # the tiny arena lacks them all
    assert all(each["title"] in page for each in said) and not list(out.glob("question_*.png"))


def test_ones_own_algorithm_is_judged_against_each_other_one(done):
    out, output = done
    beside = json.loads((out / "own.json").read_text())
    assert [(each["lag"], each["algorithm"]) for each in beside] == [
        (lag, n) for lag in TINY.lags for n in TINY.algorithms
    ]
    assert {each["verdict"] for each in beside} <= {"better", "worse", "undecided"}
    for lag in TINY.lags:
        assert f"addition, {lag}: yours is" in output
    assert "the arena takes about" in output
    best = [each for each in beside if each["is_best"]]
    assert [each["lag"] for each in best] == list(TINY.lags)
    cells = {(c["lag"], c["algorithm"]): c for c in json.loads((out / "arena.json").read_text())}
    for each in best:
        finals = [cells[each["lag"], name]["final"] for name in TINY.algorithms]
        assert cells[each["lag"], each["algorithm"]]["final"] == max(finals)
        assert each["robustness"]["own"] == cells[each["lag"], "soft"]["robustness"]
    said = "Against the best preset of each task and lag it is at worst"
    assert said in " ".join(output.split()) and said in (out / "index.html").read_text()


def test_a_killed_arena_goes_on_and_ends_the_same(done, tmp_path, monkeypatch):
    out, _ = done
    monkeypatch.setattr(InProcess, "started", 0)
    monkeypatch.setattr(grid, "ProcessPoolExecutor", InProcess)
    scale = replace(TINY, lags=("on_policy",))
    begun = []
    planned = plan_of(scale, tmp_path)
    jobs = planned.tuning(planned.cells(("addition", "on_policy")))
    for job in jobs[:3]:  # as a process that is killed in its fourth run leaves it
        grid.write_rows(job.work(lambda step: None), job.path)
        begun.append((job.path, job.path.stat().st_mtime_ns))
    (jobs[3].path.parent).mkdir(parents=True, exist_ok=True)
    jobs[3].path.with_suffix(".1.tmp").write_text("step,reward\n0,")
    cells, _ = arena(planned, 1, Console(quiet=True))
    assert all(path.stat().st_mtime_ns == then for path, then in begun)  # what was there was not run again
    before = {c["algorithm"]: c for c in json.loads((out / "arena.json").read_text()) if c["lag"] == "on_policy"}
    for cell in json.loads((tmp_path / "arena.json").read_text()):
        assert {**cell, "mean_rank": 0} == {**before[cell["algorithm"]], "mean_rank": 0}
    assert len(cells) == 2
    assert InProcess.started == 1  # a process, which takes seconds to start, serves the whole call


def test_columns_that_are_there_are_drawn_once(done, tmp_path, monkeypatch):
    out, _ = done
    shutil.copytree(out, tmp_path / "out")
    written = []
    monkeypatch.setattr(report, "write", lambda out, cells, *_: written.append(len(cells)))
    arena(plan_of(TINY, tmp_path / "out"), 1, Console(quiet=True))
    assert written == [len(TINY.lags) * len(TINY.algorithms)]


def test_calls_for_parts_add_up(done, tmp_path):
    out, _ = done
    part = replace(TINY, lags=("offline",), algorithms=("off_tis",))
    shutil.copytree(out, tmp_path / "out")
    cells, beside = arena(plan_of(part, tmp_path / "out"), 1, Console(quiet=True))
    assert [(cell["lag"], cell["algorithm"]) for cell in cells] == [("offline", "off_tis")] and not beside
    kept = json.loads((tmp_path / "out" / "arena.json").read_text())
    assert len(kept) == 4  # the presets; an algorithm that this call does not know is not among them
    assert (out / "own.json").exists() and not (tmp_path / "out" / "own.json").exists()
    assert "soft" not in (tmp_path / "out" / "index.html").read_text()


def test_results_by_other_rules_are_left_alone(done, monkeypatch):
    out, _ = done
    before = (out / "arena.json").read_bytes()
    monkeypatch.setattr(plan, "QUICK", replace(TINY, steps=6))
    said = CliRunner().invoke(app, ["arena", "--quick", "--out", str(out)])
    assert said.exit_code != 0 and "steps 4, these have 6: choose another --out" in str(said.exception)
    assert (out / "arena.json").read_bytes() == before


@pytest.mark.parametrize(
    "option, name, known",
    [
        ("--algorithm", "grpo", "rec_grpo"),
        ("--task", "adition", "addition"),
        ("--lag", "sync_interval_5", "sync_interval_4"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(option, name, known, tmp_path):
    said = CliRunner().invoke(app, ["arena", option, name, "--out", str(tmp_path / "out")])
    assert said.exit_code != 0 and f"{option} {name}: unknown; known are" in str(said.exception)
    assert known in str(said.exception) and not (tmp_path / "out").exists()
