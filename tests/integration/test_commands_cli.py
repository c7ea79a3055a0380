"""The commands as users meet them: exit codes, stdout and stderr, colour, width, completion."""

import io
import json
import os
import pty
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
from omegaconf import OmegaConf

from trinity_rec.cli import main
from trinity_rec.paper.experiments import EXPERIMENTS
from trinity_rec.presets import PRESETS

ESC = "\x1b["
PLAIN = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR", "NO_COLOR")}
COMMAND = [sys.executable, "-m", "trinity_rec.cli"]
YAML = """\
mode: both  # mine
algorithm:
  algorithm_type: grpo
  repeat_times: 8
model: {model_path: Qwen/Qwen2.5-1.5B-Instruct, max_model_len: 2048}
buffer:
  batch_size: 96
  explorer_input:
    taskset: {path: openai/gsm8k}
synchronizer: {sync_interval: 20}
"""


def trinity_rec(*arguments, encoding="utf-8") -> subprocess.CompletedProcess[str]:
    """What the command prints and how it exits. In this process: starting one imports torch, Ray and transformers."""
    argv = ["trinity-rec", *map(str, arguments)]
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True) for _ in range(2)]
    patched = mock.patch.multiple(sys, argv=argv, stdin=io.StringIO())
    with patched, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in streams)
    return subprocess.CompletedProcess(argv, code, out, err)


def in_a_process(*arguments) -> subprocess.CompletedProcess[str]:
    """The same as a user starts it, so with all that anything in the process prints."""
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=PLAIN, stdin=subprocess.DEVNULL)


def on_a_terminal(*arguments, columns=100) -> str:
    """What a terminal of this width is sent."""
    ours, theirs = pty.openpty()
    env = {**PLAIN, "COLUMNS": str(columns), "TERM": "xterm-256color"}
    process = subprocess.Popen([*COMMAND, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    received = b""
    try:
        while chunk := os.read(ours, 65536):
            received += chunk
    except OSError:  # Linux says so that the other end is closed
        pass
    process.wait(timeout=60)
    os.close(ours)
    return received.decode()


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return path


def test_list_is_a_table_for_people_and_json_for_programs():
    table = trinity_rec("list")
    assert table.returncode == 0 and table.stderr == ""
    assert ESC not in table.stdout
    for name in PRESETS:
        assert sum(line.startswith(f"{name}\t") for line in table.stdout.splitlines()) == 1
    rows = json.loads(trinity_rec("list", "--json").stdout)
    assert [row["preset"] for row in rows] == list(PRESETS)


def test_show_prints_a_section_to_paste(tmp_path):
    shown = trinity_rec("show", "rec_ring_nois")
    section = OmegaConf.create(shown.stdout)["algorithm"]
    assert section.algorithm_type == "trinity_rec.rec_ring_nois"
    assert section.policy_loss_fn_args.epsilon_high_prime == 2.0
    assert "∇log π" in shown.stdout and ESC not in shown.stdout
    assert "grad log pi" in trinity_rec("show", "rec_ring_nois", encoding="ascii").stdout
    details = json.loads(trinity_rec("show", "rec_ring_nois", "--json").stdout)
    assert details["algorithm"]["policy_loss_fn_args"]["clip_mode"] == "ring"


def test_diff():
    found = json.loads(trinity_rec("diff", "rec_oneside_is", "rec_oneside_nois", "--json").stdout)
    assert found["policy_loss_fn_args.weight"] == {"rec_oneside_is": "importance_sampling", "rec_oneside_nois": "none"}
    assert "importance_sampling" in trinity_rec("diff", "rec_oneside_is", "rec_oneside_nois").stdout


def test_schema_describes_the_section_or_a_whole_file():
    section = json.loads(trinity_rec("schema").stdout)
    whole = json.loads(trinity_rec("schema", "--whole-file").stdout)
    del section["$schema"]
    assert "properties" in section and whole["properties"]["algorithm"] == section


def test_use_shows_the_difference_and_writes(config):
    result = trinity_rec("use", "rec_oneside_nois", config, "--set", "epsilon_high=2.0")
    assert result.returncode == 0
    assert "-  algorithm_type: grpo\n+  algorithm_type: trinity_rec.rec_oneside_nois\n" in result.stdout
    assert "wrote" in result.stderr and "wrote" not in result.stdout
    text = config.read_text()
    assert text.startswith("mode: both  # mine\nalgorithm:\n  algorithm_type: trinity_rec.rec_oneside_nois\n")
    assert text.endswith(YAML[YAML.index("model:") :])


def test_use_writes_elsewhere_or_nowhere(config, tmp_path):
    assert trinity_rec("use", "rep_opmd", config, "-o", tmp_path / "new.yaml").returncode == 0
    assert trinity_rec("use", "rep_opmd", config, "--dry-run").returncode == 0
    assert config.read_text() == YAML
    assert "trinity_rec.rep_opmd" in (tmp_path / "new.yaml").read_text()


def test_use_asks_on_a_terminal_before_it_writes_over_a_file(config):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "use", "rep_opmd", str(config)],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=PLAIN,
    )
    os.write(ours, b"n\n")
    out, err = process.communicate(timeout=60)
    os.close(theirs)
    os.close(ours)
    assert process.returncode == 1 and b"+  algorithm_type: trinity_rec.rep_opmd" in out and b"Write" in err
    assert config.read_text() == YAML


def test_check_exits_by_what_it_finds(config):
    switched = config.with_name("ours.yaml")
    trinity_rec("use", "rec_oneside_nois", config, "-o", switched)
    clean = trinity_rec("check", switched)
    assert (clean.returncode, clean.stderr) == (0, "")
    assert "no errors, no doubts" in clean.stdout and ESC not in clean.stdout

    unread = config.with_name("unread.yaml")
    unread.write_text(
        switched.read_text().replace("repeat_times: 8", "repeat_times: 8\n  policy_loss_fn_args: {temp: 2}")
    )
    doubtful = trinity_rec("check", unread)
    line = f"{unread}:5: doubt: algorithm.policy_loss_fn_args.temp: ignored under weight: none"
    assert doubtful.returncode == 0 and line in doubtful.stdout

    switched.write_text(switched.read_text().replace("repeat_times: 8", "repeat_tiems: 8"))
    wrong = trinity_rec("check", switched)
    line = f"{switched}:4: error: algorithm.repeat_tiems: unknown key; did you mean repeat_times?"
    assert wrong.returncode == 1 and line in wrong.stdout.splitlines() and wrong.stderr == ""

    report = json.loads(in_a_process("check", switched, "--json").stdout)
    assert report["ok"] is False
    assert report["errors"][0]["line"] == 4 and report["errors"][0]["key"] == "algorithm.repeat_tiems"
    assert report["summary"]["policy_loss_fn_args"]["clip_mode"] == "one-side"


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["show", "rec_gpro"], "did you mean rec_grpo?"),
        (["diff", "rec_grpo", "rec_onside_is"], "did you mean rec_oneside_is?"),
        (["use", "rec_gpro", "{config}"], "did you mean rec_grpo?"),
        (["use", "rec_grpo", "{config}", "--set", "epsilon_hihg=1"], "did you mean epsilon_high?"),
        (["use", "rec_grpo", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["check", "nowhere.yaml"], "nowhere.yaml: No such file"),
        (["check", "{broken}"], "broken[1].yaml:2: not readable as YAML"),
    ],
)
def test_mistakes_are_one_line_on_stderr(arguments, words, config):
    broken = config.with_name("broken[1].yaml")
    broken.write_text("a: [1\n")
    result = trinity_rec(*(each.format(config=config, broken=broken) for each in arguments))
    assert result.returncode == 1 and result.stdout == ""
    assert words in result.stderr and len(result.stderr.splitlines()) == 1
    assert config.read_text() == YAML


def test_an_unreadable_file_is_still_json_for_programs(config):
    config.write_text("a: [1\n")
    result = trinity_rec("check", config, "--json")
    assert result.returncode == 1 and json.loads(result.stdout)["errors"][0]["line"] == 2


SECTIONS = {
    "trinitys": "algorithm_type: gspo, kl_loss_fn: k3, sample_strategy: staleness_control",
    "a_presets": "algorithm_type: trinity_rec.off_tis, sample_strategy: trinity_rec.NoSuch",
    "wrong": "algorithm_type: grpo, policy_loss_fn: no_such, optimizer: {lr: fast}, advantage_fn_args: {epsilom: 1}",
    "ones_own": "algorithm_type: trinity_rec.rec_grpo, policy_loss_fn: my_losses.Mine",
    "ones_own_rule": "algorithm_type: trinity_rec.rec, policy_loss_fn_args: {clip_mode: my_losses.near}",
}
MY_LOSSES = """\
import torch
from trinity.algorithm.policy_loss_fn.policy_loss_fn import PolicyLossFn

ONE = torch.ones(()).exp().log().item()


def near(tokens, far: float = 2 * ONE):
    return (tokens.log_ratio.abs() < far).float()


class Mine(PolicyLossFn):
    def __init__(self, backend="verl", beta=ONE):
        super().__init__(backend=backend)

    def __call__(self, logprob, **kwargs):
        return logprob.sum(), {}

    @classmethod
    def default_args(cls):
        return {"beta": float(torch.tensor(ONE))}
"""


@pytest.mark.parametrize("command", [["check"], ["check", "--json"], ["use", "rec_gspo_is", "--dry-run"]])
def test_what_is_imported_lightly_says_the_same(command, tmp_path, monkeypatch):
    """A process of its own imports Trinity with stand-ins for torch and its like; in this one all is real."""
    (tmp_path / "my_losses.py").write_text(MY_LOSSES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PLAIN, "PYTHONPATH", str(tmp_path))
    files = []
    for name, section in SECTIONS.items():
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(YAML.replace("  algorithm_type: grpo\n  repeat_times: 8\n", f"  {{{section}}}\n"))
    real, light = trinity_rec(*command, *files), in_a_process(*command, *files)
    assert (light.stdout, light.stderr, light.returncode) == (real.stdout, real.stderr, real.returncode)
    assert "rec_grpo" in light.stdout


def test_one_call_judges_many_files(config):
    """What is wrong with one does not keep the others from it."""
    broken = config.with_name("broken.yaml")
    broken.write_text("a: [1\n")
    checked = trinity_rec("check", broken, config, "nowhere.yaml")
    assert checked.returncode == 1 and checked.stderr == ""
    assert f"{broken}:2: error: not readable as YAML" in checked.stdout and "GRPO" not in checked.stdout
    assert "nowhere.yaml:1: error: No such file" in checked.stdout and checked.stdout.count("policy loss ") == 1
    listed = json.loads(trinity_rec("check", broken, config, "--json").stdout)
    assert [each["ok"] for each in listed] == [False, True]

    other = config.with_name("other.yaml")
    other.write_text(YAML.replace("grpo", "ppo"))
    used = trinity_rec("use", "rep_opmd", broken, other, config)
    assert used.returncode == 1 and config.read_text() != YAML and other.read_text() == YAML.replace("grpo", "ppo")
    errors = [line for line in used.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and "trains a critic" in errors[1]
    assert "--output" in trinity_rec("use", "rep_opmd", config, other, "-o", broken).stderr


def test_a_traceback_is_for_those_who_ask():
    assert "Traceback" in in_a_process("--debug", "check", "nowhere.yaml").stderr


def test_colour_and_width_are_the_terminals():
    wide, narrow = on_a_terminal("list", columns=250), on_a_terminal("list", columns=90)
    assert ESC in wide and ESC in narrow
    assert max(map(len, narrow.splitlines())) < max(map(len, wide.splitlines()))
    assert ESC in on_a_terminal("show", "rec_grpo")
    listed = on_a_terminal("list", columns=80)
    assert max(len(re.sub(r"\x1b\[[\d;]*m", "", line).rstrip()) for line in listed.splitlines()) <= 80
    assert all(name in listed for name in PRESETS)


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["paper", "list"], list(EXPERIMENTS)),
        (
            ["diff", "rec_grpo", "off_tis"],
            ["capped_importance_sampling", "policy_loss_fn_args.epsilon_high", "off_tis"],
        ),
    ],
)
def test_no_name_is_folded_or_cut(arguments, names, columns):
    words = re.sub(r"\x1b\[[\d;]*m", "", on_a_terminal(*arguments, columns=columns)).split()
    assert {name for name in names if name not in words and f"{name}:" not in words} == set()


@pytest.mark.parametrize(
    "command", ["list", "show", "diff", "use", "check", "schema", "quickstart", "serve", "plugin-dir", "examples"]
)
def test_help_has_an_example(command):
    text = trinity_rec(command, "--help").stdout
    assert "Example: " in " ".join(text.split())


def test_the_shell_completes_presets():
    code = "import sys; sys.argv = ['trinity-rec']; from trinity_rec.cli import main; main()"
    env = {"_TRINITY_REC_COMPLETE": "complete_bash", "COMP_WORDS": "trinity-rec show rec_gs", "COMP_CWORD": "2"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**PLAIN, **env})
    assert result.stdout.split() == ["rec_gspo_is", "rec_gspo_nois"]
