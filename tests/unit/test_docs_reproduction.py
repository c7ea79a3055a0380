"""docs/reproduction.md says what was measured: its tables are those of the results beside them."""

import csv
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.archived import columns_of, said_in, unpack
from trinity_rec.lab import contrast, rates
from trinity_rec.lab.claims import CLAIMS
from trinity_rec.lab.on_model import cells_of
from trinity_rec.lab.regimes import report as regimes_report
from trinity_rec.lab.regimes.rules import LAGS_OF, MAPPED
from trinity_rec.lab.regimes.rules import SEEDS as REGIME_SEEDS
from trinity_rec.lab.regimes.run import Map
from trinity_rec.lab.report import mass_table, parts_table, rewards_table, summary_table, trinity_table
from trinity_rec.lab.reproduce import ALL_CLAIMS, BANDIT, BANDIT_RULE, FULL, cells, claim_directory
from trinity_rec.lab.tasks import TASKS
from trinity_rec.lab.training import Experiment
from trinity_rec.lab.warm_up import ASSETS
from trinity_rec.variants import SETTINGS, VARIANTS

DOCS = Path(__file__).parents[2] / "docs"
RESULTS = DOCS / "reproduction"
REGIMES = RESULTS / "regimes"
PAGE = (DOCS / "reproduction.md").read_text(encoding="utf-8")
JUDGED = json.loads((RESULTS / "claims.json").read_text(encoding="utf-8"))
REWARDS = list(csv.DictReader((RESULTS / "rewards.csv").open(encoding="utf-8")))


def test_every_claim_was_measured_by_the_rule_that_the_code_has():
    assert [each["claim"] for each in JUDGED] == list(ALL_CLAIMS)
    for each in JUDGED:
        assert each["rule"] == (BANDIT_RULE if each["claim"] == BANDIT else CLAIMS[each["claim"]].rule)


def test_the_summary_is_that_of_the_results_with_the_real_model_s_beside_it():
    lines = heads = summary_table(JUDGED).splitlines()
    for task in ("products", "counting"):
        judged = json.loads((RESULTS / "smollm2" / task / "claims.json").read_text(encoding="utf-8"))
        column = {"claim": f" SmolLM2, {task} |", "---": "---|"} | {each["claim"]: in_a_cell(each) for each in judged}
        lines = [line + column.get(head.split("|")[1].strip(), "  |") for line, head in zip(lines, heads, strict=True)]
    assert "\n".join(lines) in PAGE


def test_the_map_is_that_of_its_results():
    rows = json.loads((REGIMES / "regimes.json").read_text(encoding="utf-8"))
    assert regimes_report.summary_table(rows) in PAGE and "(reproduction/regimes/map.png)" in PAGE
    columns = {(task, lag) for task, lags in LAGS_OF.items() for lag in lags}
    assert {(row["task"], row["lag"]) for row in rows} == columns and f"All {len(columns)} columns" in PAGE
    assert {row["seeds"] for row in rows} == {len(REGIME_SEEDS)}
    section = PAGE.partition("## Where each claim holds")[2].partition("\n## ")[0]
    assert all(f"- **{name}** holds" in section for name in MAPPED)
    for name in ("map", *MAPPED):
        assert (REGIMES / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_map_follows_from_the_runs_that_are_kept_beside_it(tmp_path):
    archives = sorted((REGIMES / "curves").glob("*.tar.xz"))
    unpack(archives, tmp_path)
    here = Map(tmp_path, tuple(LAGS_OF))
    claim_directory(tmp_path, here.marker)  # which refuses runs by other rules
    rows = here.judged()
    assert {f"{row['task']}-{row['lag']}" for row in rows} == columns_of(archives)
    regimes_report.write(tmp_path, rows)
    assert said_in(tmp_path / "regimes.json") == said_in(REGIMES / "regimes.json")
    assert (tmp_path / "regimes.csv").read_bytes() == (REGIMES / "regimes.csv").read_bytes()


def in_a_cell(claim):
    low, high = claim["interval"]
    return f" **{claim['verdict']}** {claim['effect']:+.3f} ({low:+.3f} to {high:+.3f}) |"


@pytest.mark.parametrize("claim", JUDGED, ids=lambda claim: claim["claim"])
def test_a_claim_s_section_has_its_verdict_its_statement_its_figure_and_its_numbers(claim):
    name = claim["claim"]
    section = PAGE.partition(f"## {name}: ")[2].partition("\n## ")[0]
    assert section.startswith(claim["verdict"] + "\n")
    assert claim["statement"] in section and f"(reproduction/{name}.png)" in section
    assert parts_table(claim) in section
    assert (RESULTS / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    if "final_mass" in claim:
        assert mass_table(claim["final_mass"]) in section
    paragraph = section.strip().rpartition("\n\n")[2]
    assert len(paragraph) > 200 and not paragraph.startswith("|")


def test_all_cells_of_the_grid_stand_behind_what_the_page_shows():
    """A preset that came after the runs has no row and needs none; one that has was run as the others were."""
    measured = {(row["task"], row["setting"], row["variant"]): int(row["seeds"]) for row in REWARDS}
    shown = {variant for _, _, variant in measured}
    grid = [cell for cell in cells(ALL_CLAIMS[1:], FULL) if cell[2] in shown]
    assert measured == dict.fromkeys(grid, FULL.seeds)
    assert {variant for claim in CLAIMS.values() for variant in claim.variants} <= shown <= set(VARIANTS)


def test_all_rewards_stand_on_the_page():
    assert rewards_table(REWARDS) in PAGE


def test_both_sides_of_the_central_contrast_are_shown():
    side_by_side = json.loads((RESULTS / "trinity.json").read_text(encoding="utf-8"))
    assert trinity_table(side_by_side) in PAGE and "(reproduction/trinity.png)" in PAGE
    assert [each["variant"] for each in side_by_side] == [
        "rec_reinforce",
        "rec_grpo",
        "rec_oneside_is",
        "rec_oneside_nois",
    ]


def test_the_models_and_the_rates_are_those_in_use():
    for name in {row["task"] for row in REWARDS}:
        task = TASKS[name]
        card = json.loads((ASSETS / name / "card.json").read_text(encoding="utf-8"))
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| {task.title} | `"))
        assert row.endswith(f"| {card['greedy_reward']:.2f} | {card['sampled_reward']:.2f} |")
        row = next(line for line in PAGE.splitlines() if re.match(rf"\| {task.title} \| [+-]", line))
        assert row.endswith(f"| {TASKS[name].rate:g} |")
    assert all(setting.title.split()[0] in PAGE for setting in SETTINGS.values())


def test_the_real_model_s_tables_are_those_of_its_results():
    for path in (RESULTS / "smollm2").glob("*/claims.json"):
        assert summary_table(json.loads(path.read_text(encoding="utf-8"))) in PAGE
        rewards = list(csv.DictReader(path.with_name("rewards.csv").open(encoding="utf-8")))
        assert rewards_table(rewards) in PAGE and all(row["seeds"] == "3" for row in rewards)
        task = path.parent.name
        assert f"{len(rewards)} of the {len(cells_of(task))} cells of `{task}` are whole" in PAGE


def test_the_contrast_through_the_real_pipeline_is_that_of_its_runs(tmp_path):
    kept = RESULTS / "smollm2" / "trinity"
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    judged = contrast.judge(tmp_path)
    assert judged == json.loads((kept / "contrast.json").read_text(encoding="utf-8"))
    assert sorted((run["algorithm"], run["seed"], len(run["intervals"])) for run in judged["runs"]) == [
        (algorithm, seed, 6) for algorithm in (contrast.CLIPPED, contrast.UNCLIPPED) for seed in (1, 2)
    ]
    section = PAGE.partition("**Through the real pipeline.**")[2].partition("**The tasks**")[0]
    assert contrast.contrast_table(judged["runs"]) in section and "smollm2/trinity/contrast.png" in section
    assert f"The contrast is **{'seen' if judged['seen'] else 'not seen'}**" in section


def test_the_readme_counts_the_real_model_s_verdicts():
    results = RESULTS / "smollm2" / "products"
    judged = json.loads((results / "claims.json").read_text(encoding="utf-8"))
    rewards = list(csv.DictReader((results / "rewards.csv").open(encoding="utf-8")))
    said = Counter(claim["verdict"] for claim in judged)
    readme = " ".join((DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    count = f"hold {said['holds']}, do not hold {said['does not hold']}, inconclusive {said['inconclusive']}"
    assert f"{len(rewards)} of {len(cells_of('products'))} cells run: {count} ([docs/reproduction.md]" in readme


def test_the_real_model_s_rates_are_those_that_were_measured():
    for path in (RESULTS / "smollm2").glob("*/rates.json"):
        measured, task = json.loads(path.read_text(encoding="utf-8")), path.parent.name
        gains = " | ".join(f"{gain:+.2f}" for gain in measured["gains"].values())
        assert f"| {task} | {gains} | {measured['chosen']:g} |" in PAGE
        curves = rates.jobs(
            Experiment(task, SETTINGS["on_policy"], VARIANTS["rec_grpo"], 0, 0.0),
            path.parent,
            rates.REAL_CANDIDATES,
            rates.REAL_SEEDS,
        )
        assert {f"{rate:g}": round(gain, 4) for rate, gain in rates.gains(curves).items()} == measured["gains"]
        assert rates.chosen(rates.gains(curves)) == measured["chosen"]
