"""Every snippet of the README, the documentation and the examples is run, or checked as a run would check it.

YAML goes through `trinity-rec check` (sections in the place of those of a complete YAML) and Trinity's own validator,
Python is executed, commands that start nothing are run and the others parsed.
"""

from __future__ import annotations

import re
import shlex
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from omegaconf import OmegaConf
from trinity.common.config import Config
from trinity.common.config_validator import AlgorithmConfigValidator
from trinity.trainer.verl.losses import build_trinity_loss
from typer.testing import CliRunner

from trinity_rec.cli import app
from trinity_rec.paper.experiments import select
from trinity_rec.terminal import preset_named
from trinity_rec.yaml.check import check
from trinity_rec.yaml.document import Document

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ALONG = [*ROOT.glob("examples/*/README.md"), *ROOT.glob("configs/*/README.md")]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md")), *ALONG]
COMPLETE = (ROOT / "examples" / "rec_gsm8k" / "gsm8k.yaml").read_text(encoding="utf-8")
STARTS_NOTHING = {
    "list",
    "show",
    "diff",
    "use",
    "check",
    "schema",
    "plugin-dir",
    "examples",
    "paper list",
    "paper write",
}


def snippets(page: Path, *languages: str) -> list[tuple[int, str]]:
    """The fenced blocks in one of these languages, each with its line."""
    text = page.read_text(encoding="utf-8")
    blocks = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [(text[: each.start()].count("\n") + 1, each[2]) for each in blocks if each[1] in languages]


def places(*languages: str) -> list:
    return [
        pytest.param(page, text, id=f"{page.relative_to(ROOT).as_posix()}:{line}")
        for page in PAGES
        for line, text in snippets(page, *languages)
    ]


@pytest.fixture
def modules(monkeypatch, tmp_path):
    """Saves the snippets of a page that begin with a file's name, importable; returns the other snippets in order."""
    saved = []

    def save(page: Path) -> list[str]:
        rest = []
        for _, text in snippets(page, "python"):
            name = re.match(r"# (\w+)\.py\n", text)
            if name is None:
                rest.append(text)
                continue
            (tmp_path / f"{name[1]}.py").write_text(text, encoding="utf-8")
            saved.append(name[1])
        return rest

    monkeypatch.syspath_prepend(tmp_path)
    yield save
    for name in saved:
        sys.modules.pop(name, None)


def validated(section: dict, **others) -> Config:
    """Trinity's configuration after its own check of the algorithm."""
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), {"algorithm": section}, others))
    AlgorithmConfigValidator().validate(config)
    return config


@pytest.mark.parametrize(("page", "text"), places("yaml"))
def test_yaml_is_what_a_run_takes(page, text, modules):
    modules(page)
    given = OmegaConf.to_container(OmegaConf.create(text))
    if not given:
        assert text.startswith("#"), "neither a section nor a comment"
        return
    if "algorithm" in given:
        assert validated(given["algorithm"]).algorithm.algorithm_type.startswith("trinity_rec.")
    whole = OmegaConf.to_yaml(OmegaConf.merge(OmegaConf.create(COMPLETE), given))
    report = check(Document.parse(str(page), whole))
    assert [str(each) for each in report.errors] == []
    doubts = [each for each in report.doubts if each.key.startswith("algorithm.")]
    assert [str(each) for each in doubts if each.key != "algorithm.policy_loss_fn"] == []


@pytest.mark.parametrize("wrong", ["epsilon_hihg: 0.3", "clip_mode: one_side", "epsilon_low: 2.0"])
def test_a_wrong_yaml_would_be_seen(wrong):
    text = COMPLETE.replace("  optimizer:", f"  policy_loss_fn_args: {{{wrong}}}\n  optimizer:", 1)
    assert check(Document.parse("wrong.yaml", text)).errors


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page, "python")], ids=lambda page: page.name)
def test_python_runs(page, modules, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    namespace: dict = {}
    for text in modules(page):
        exec(compile(text, str(page), "exec"), namespace)
    for path in tmp_path.glob("*.py"):
        import_module(path.stem)


def commands(text: str) -> list[list[str]]:
    """The `trinity-rec` command lines of a shell block, those within $(…) too, without redirections."""
    lines = [line.partition(" #")[0] for line in text.replace("\\\n", " ").splitlines()]
    found = [match for line in lines for match in re.findall(r"(?:^|[(/]|[;&|] )trinity-rec( [^|&;><)]*|$)", line)]
    return [shlex.split(each.strip()) for each in found]


def inline_commands(page: Path) -> list[list[str]]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    found = re.findall(r"`trinity-rec ([^`…]+)`", text)
    return [shlex.split(each) for each in found if each not in ("--install-completion", "rec")]


COMMANDS = [
    pytest.param(arguments, id=f"{page.relative_to(ROOT).as_posix()}: {' '.join(arguments)}")
    for page in PAGES
    for arguments in [
        *(each for _, text in snippets(page, "bash", "sh", "") for each in commands(text)),
        *inline_commands(page),
    ]
]


def test_commands_are_found_wherever_they_stand():
    text = 'cd trinity-rec\n.venv/bin/trinity-rec list # all\ntrinity run -c "$(trinity-rec plugin-dir)"\n'
    text += "trinity-rec a \\\n  b > out &"
    assert commands(text) == [["list"], ["plugin-dir"], ["a", "b"]]
    assert len(COMMANDS) > 20


@pytest.mark.parametrize("arguments", COMMANDS)
def test_command_lines_are_those_of_the_program(arguments, monkeypatch, tmp_path):
    command, name, rest = typer.main.get_command(app), "", arguments
    while rest and hasattr(command, "commands"):  # a group: `trinity-rec paper list`
        command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}".strip(), rest[1:]
    named = {name for each in command.params for name in each.opts if name.startswith("-")} | {"--help"}
    assert {each for each in rest if each.startswith("-")} <= named
    if not rest and (hasattr(command, "commands") or any(each.required for each in command.params)):
        return  # the command's name in a sentence
    values = command.make_context(name, list(rest)).params
    for key in ("preset", "algorithm"):
        given = values.get(key) or []
        for preset in [given] if isinstance(given, str) else given:
            assert preset == "nearest" or preset_named(preset)
    if name.startswith("paper "):
        select(values["names"] or (), values["task"], values["setting"], values["figure"])
    if name not in STARTS_NOTHING:
        return
    monkeypatch.chdir(tmp_path)
    for config in values.get("configs", ()):
        upstream = values.get("preset") == "nearest"
        text = COMPLETE.replace("trinity_rec.rec_oneside_nois", "rec") if upstream else COMPLETE
        Path(config).write_text(text, encoding="utf-8")
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output or result.exception


# What the text around the snippets says of them.


def test_the_variant_trains_in_trinity_as_its_page_says(modules):
    page = DOCS / "variants.md"
    modules(page)
    (section,) = (OmegaConf.to_container(OmegaConf.create(text))["algorithm"] for _, text in snippets(page, "yaml"))
    for tinker in (False, True):
        algorithm = validated(section, model={"tinker": {"enable": tinker}}).algorithm
        assert algorithm.advantage_fn == "trinity_rec.RECAdvantage"
        assert algorithm.sample_strategy == "trinity_rec.RECSampleStrategy"
        assert (algorithm.algorithm_type, algorithm.kl_loss_fn) == ("trinity_rec.rec", "none")
        assert algorithm.policy_loss_fn_args["width"] == 0.3
    loss_fn = build_trinity_loss(algorithm).policy_loss_fn
    assert {"old_log_probs", "response_mask", "advantages"} <= set(loss_fn.select_keys)

    logprob = torch.randn(4, 6, dtype=torch.float64)
    old, advantages = torch.randn(2, 4, 6, dtype=torch.float64)
    mask = torch.rand(4, 6) < 0.7

    def gradient(*parts: slice) -> torch.Tensor:
        leaf = logprob.clone().requires_grad_()
        for part in parts:
            batch = {"old_log_probs": old[part], "response_mask": mask[part], "advantages": advantages[part]}
            loss_fn(logprob=leaf[part], batch_num_tokens=mask.sum(), dp_size=1, **batch)[0].backward()
        return leaf.grad

    torch.testing.assert_close(gradient(slice(0, 1), slice(1, 4)), gradient(slice(0, 4)))
    weight = (-(((logprob - old) / 0.3) ** 2)).exp()
    torch.testing.assert_close(gradient(slice(0, 4)), -(weight * advantages * mask) / mask.sum())


def test_a_variant_is_ten_lines():
    page = DOCS / "variants.md"
    lines = [line for kind in ("python", "yaml") for _, text in snippets(page, kind) for line in text.splitlines()]
    assert len([line for line in lines if line.strip() and not line.startswith("#")]) <= 10


def test_verls_own_trainer_finds_the_loss(modules):
    from verl.trainer.ppo.core_algos import get_policy_loss_fn

    modules(DOCS / "pipelines.md")
    import_module("my_losses")
    loss_fn = get_policy_loss_fn("rec_oneside_wide")
    logprob, old, advantages = torch.randn(3, 4, 6, dtype=torch.float64)
    logprob.requires_grad_()
    mask = torch.rand(4, 6) < 0.7
    info = {"dp_size": 1, "batch_num_tokens": int(mask.sum()), "global_batch_size": 4, "loss_scale_factor": None}
    config = SimpleNamespace(global_batch_info=info)
    for part in (slice(0, 3), slice(3, 4)):
        inputs = (old[part], logprob[part], advantages[part], mask[part])
        loss, metrics = loss_fn(*inputs, loss_agg_mode="token-mean", config=config, rollout_is_weights=None)
        loss.backward()
    assert set(metrics) == {"actor/pg_clipfrac", "actor/kl_k1"}
    ratio = (logprob.detach() - old).exp()
    keep = torch.where(advantages > 0, ratio <= 3.0, ratio >= 0.4)
    torch.testing.assert_close(logprob.grad, -(keep * advantages * mask) / mask.sum())


def test_the_tinker_loss_is_the_mean_over_the_batchs_tokens(modules):
    namespace: dict = {}
    for text in modules(DOCS / "pipelines.md"):
        exec(text, namespace)
    old = [torch.randn(3), torch.randn(5)]
    logprobs = [(each + 0.05 * torch.randn(len(each))).requires_grad_() for each in old]
    masks = [torch.ones(3), torch.tensor([1.0, 1, 1, 1, 0])]
    loss, _ = namespace["rec_loss"](old, masks, [0.5, -0.5])([], logprobs)
    loss.backward()
    for each, before, mask, advantage in zip(logprobs, old, masks, (0.5, -0.5), strict=True):
        torch.testing.assert_close(each.grad, -advantage * mask * (each.detach() - before).exp() / 7)
