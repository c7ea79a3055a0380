"""`trinity-rec plot` on event files as Trinity writes them: which runs are one curve, what is drawn, what it says."""

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.tensorboard import SummaryWriter
from trinity.common.experience import EID, Experience
from typer.testing import CliRunner

import trinity_rec
from tests.unit.test_docs_tables import names, tables
from trinity_rec.cli import app
from trinity_rec.plot import draw, page, runs
from trinity_rec.plot.events import LogsError

VERL = {
    "critic/rewards/mean": lambda step: 0.3 + 0.01 * step,
    "actor/kl_k1": lambda step: 0.001 * (step % 4),
    "actor/pg_clipfrac": lambda step: 0.01 * (step % 4),
    "response_length/mean": lambda step: 100.0 + step,
    "actor/entropy_loss": lambda step: 1.5,
}
TINKER = {**VERL, "loss:sum": lambda step: 0.0}


def make_run(job: Path, tags=VERL, steps=20, shift=0.0) -> Path:
    with SummaryWriter(str(job / "monitor" / "tensorboard" / "trainer")) as writer:
        for step in range(1, steps + 1):
            for tag, value in tags.items():
                writer.add_scalar(tag, value(step) + shift, step)
    return job


def plot(*arguments: object):
    return CliRunner().invoke(app, ["plot", *map(str, arguments)])


@pytest.mark.parametrize(
    ("paths", "labels"),
    [
        (["grpo-seed0", "grpo-seed1", "ring_seed_0"], ["grpo", "grpo", "ring"]),
        (["a/seed0/trinity/x", "a/seed1/trinity/x", "b/seed0/trinity/x"], ["a", "a", "b"]),
        (["grpo", "grpo_20261122235959"], ["grpo", "grpo"]),  # Trinity's name for a second run
        (["one"], ["one"]),
        (["a", "a/a"], ["a", "a/a"]),  # one run within another's directory
        (["lr1", "lr2"], ["lr1", "lr2"]),
    ],
)
def test_runs_whose_names_differ_only_in_a_seed_are_one_curve(paths, labels):
    assert runs.labels_of([Path("/runs") / path for path in paths]) == labels


def test_one_run_under_two_labels_is_two_curves(tmp_path):
    make_run(tmp_path / "x", steps=3)
    groups = runs.read_groups([f"A={tmp_path / 'x'}", f"B={tmp_path / 'x'}", f"B={tmp_path / 'x'}"])
    assert [(group.label, len(group.runs)) for group in groups] == [("A", 1), ("B", 1)]


def test_the_summary_shows_the_peak(tmp_path):
    rise_and_fall = {**VERL, "critic/rewards/mean": lambda step: 0.1 * min(step, 40 - step)}
    make_run(tmp_path / "x", rise_and_fall, steps=40)
    picture = page.Picture.of(runs.PANELS[0], runs.read_groups([str(tmp_path)]))
    heads, rows = page.table_of([picture], runs.read_groups([str(tmp_path)]))
    assert heads[-1] == "highest reward" and rows[0][-1] == "1.75 at 24"  # the mean of steps 15 to 24


def test_seeds_become_one_curve_with_their_union_of_steps(tmp_path):
    make_run(tmp_path / "rec_grpo-seed0", steps=3)
    make_run(tmp_path / "rec_grpo-seed1", steps=2, shift=0.5)
    make_run(tmp_path / "other")
    grpo, other = sorted(runs.read_groups([str(tmp_path)]), key=lambda group: -len(group.runs))
    assert (grpo.label, grpo.name, len(grpo.runs)) == ("GRPO", "rec_grpo", 2)
    assert (other.label, other.name) == ("other", "other")
    curve = page.Picture.of(runs.PANELS[0], [grpo]).curves["GRPO"]
    np.testing.assert_array_equal(curve.steps, [1, 2, 3])
    np.testing.assert_allclose(curve.values, [[0.31, 0.32, 0.33], [0.81, 0.82, np.nan]], rtol=1e-6)


def test_labels_of_the_command_line_come_first(tmp_path):
    for name in ("a", "b", "c"):
        make_run(tmp_path / name, steps=1)
    arguments = [f"mine={tmp_path / 'a'}", f"mine={tmp_path / 'b'}", str(tmp_path / "c"), str(tmp_path / "c")]
    assert [(group.label, len(group.runs)) for group in runs.read_groups(arguments)] == [("mine", 2), ("c", 1)]
    assert [group.label for group in runs.read_groups(arguments, each_run=True)] == ["mine/a", "mine/b", "c"]


def test_two_runs_of_a_preset_in_different_settings_look_different(tmp_path):
    for name in ("sync/rec_grpo", "offline/rec_grpo"):
        make_run(tmp_path / name, steps=1)
    one, other = runs.read_groups([str(tmp_path)])
    styles = draw.styles_for([one.name, other.name])
    assert styles[one.name] != styles[other.name]


def test_a_panel_takes_one_tag_for_all_where_it_can(tmp_path):
    kl, entropy = runs.PANELS[1], runs.PANELS[3]
    ours = {**TINKER, "experience_pipeline/group_advantages/rollout_entropy": lambda step: 1.0}
    upstream = {"actor/ppo_kl": lambda step: 0.1, "actor/entropy_loss": lambda step: 1.5}
    both = {**VERL, "actor/ppo_kl": lambda step: 0.1}
    for name, tags in {"ours": ours, "upstream": upstream, "both": both, "tinker": TINKER}.items():
        make_run(tmp_path / name, tags, steps=1)

    def tags(panel, *names):
        return page.Picture.of(panel, runs.read_groups([str(tmp_path / name) for name in names])).tags

    assert tags(kl, "ours", "both") == ("actor/kl_k1",)
    assert tags(kl, "upstream", "both") == ("actor/ppo_kl",)
    assert tags(kl, "ours", "upstream") == ("actor/kl_k1", "actor/ppo_kl")
    assert tags(entropy, "ours", "upstream") == (
        "experience_pipeline/group_advantages/rollout_entropy",
        "actor/entropy_loss",
    )
    assert tags(entropy, "tinker") == ()  # its entropy_loss is none


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.images, self.elsewhere, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs["src"])
        self.elsewhere += [attrs[name] for name in ("href", "src") if name in attrs and attrs[name][:5] != "data:"]

    def handle_data(self, data):
        self.text.append(data.strip())


def test_the_page_holds_everything_and_needs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # no cell is folded
    for seed in range(3):
        make_run(tmp_path / f"rec_ring_nois-seed{seed}", shift=0.1 * seed)
    make_run(tmp_path / "<b>")
    result = plot(tmp_path, "--out", tmp_path / "plots")
    assert result.exit_code == 0, result.output
    written = {path.name for path in (tmp_path / "plots").iterdir()}
    assert written == {"index.html", *(f"{panel.name}.png" for panel in runs.PANELS)}
    html = (tmp_path / "plots" / "index.html").read_text(encoding="utf-8")
    links = Links()
    links.feed(html)
    assert links.elsewhere == [] and "<script" not in html and "url(" not in html and "@import" not in html
    assert 'name="viewport"' in html and len(html) < 1_500_000
    images = [base64.b64decode(image.partition("base64,")[2]) for image in links.images]
    assert images == [(tmp_path / "plots" / f"{panel.name}.png").read_bytes() for panel in runs.PANELS]
    # rewards end at 0.5, 0.6 and 0.7, so the last ten have means 0.455, 0.555 and 0.655; 4.303 * 0.1 / sqrt(3) = 0.248
    for text in ("REC-Ring-NoIS", "0.555 (0.307 to 0.803)", "<b>"):
        assert text in links.text
    assert "0.555 (0.307 to 0.803)" in result.output


def test_a_metric_of_ones_own(tmp_path):
    make_run(tmp_path / "a", {**VERL, "eval/gsm8k/accuracy/mean": lambda step: 0.5})
    assert plot(tmp_path / "a", "--out", tmp_path / "p", "--metric", "eval/gsm8k/accuracy/mean").exit_code == 0
    assert (tmp_path / "p" / "eval_gsm8k_accuracy_mean.png").exists()
    result = plot(tmp_path / "a", "--metric", "eval/gsm8k/accuracy")
    assert "did you mean eval/gsm8k/accuracy/mean?" in str(result.exception)


def test_what_is_missing_is_said(tmp_path):
    make_run(tmp_path / "a", {"critic/rewards/mean": lambda step: 0.5, "loss:sum": lambda step: 0.0})
    result = plot(tmp_path / "a", "--out", tmp_path / "p")
    assert result.exit_code == 0
    assert "response length (tokens): no run logged response_length/mean" in result.output
    assert not (tmp_path / "p" / "response_length.png").exists()
    make_run(tmp_path / "b", {"perf/throughput": lambda step: 1.0})
    result = plot(tmp_path / "b")
    assert result.exit_code == 1 and "they hold perf/throughput" in str(result.exception)
    with pytest.raises(LogsError, match="no directory"):
        runs.read_groups([str(tmp_path / "nowhere")])


def test_the_rollouts_entropy_is_the_mean_surprise_of_the_drawn_tokens():
    def exp(run, logprobs, mask):
        tokens = torch.arange(2 + len(logprobs))
        said = {"tokens": tokens, "prompt_length": 2, "action_mask": torch.tensor(mask)}
        return Experience(eid=EID(batch=0, task=0, run=run), reward=float(run), logprobs=torch.tensor(logprobs), **said)

    exps = [exp(0, [-1.0, -2.0], [True, True]), exp(1, [-6.0, -100.0], [True, False])]
    _, metrics = trinity_rec.RECAdvantage().process(exps)
    assert metrics["group_advantages/rollout_entropy"] == pytest.approx(3.0)
    exps[0].logprobs = None
    assert "group_advantages/rollout_entropy" not in trinity_rec.RECAdvantage().process(exps)[1]


def test_the_documented_tags_are_those_that_are_read():
    (table,) = tables("metrics.md", "Pictures of runs")
    documented = [tag for row in table for tag in names(row[1])]
    assert documented == [tag for panel in runs.PANELS for tag in panel.tags]
    assert all(re.fullmatch(r"[\w/]+", tag) for tag in documented)
