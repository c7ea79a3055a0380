"""The command line as users meet it: exit codes, what goes to stdout and what to stderr, errors of one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from trinity_rec import __version__


def trinity_rec(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "trinity_rec.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def assert_one_line_error(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode not in (0, None)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and len(result.stderr.splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def test_the_version_is_the_packages():
    assert trinity_rec("--version").stdout == f"{__version__}\n"


def test_help_imports_nothing_heavy():
    heavy = "'torch', 'ray', 'trinity', 'transformers', 'matplotlib'"
    code = f"import sys, trinity_rec.cli; print([name for name in ({heavy}) if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


HEAVY = ("torch", "ray", "verl", "transformers", "matplotlib", "pandas", "datasets", "tinker")


def loaded_by(arguments, modules, cwd=None):
    """Which of these modules a command has imported when it is done."""
    code = (
        f"import sys; sys.argv = ['trinity-rec', *{arguments.split()}]\nfrom trinity_rec.cli import app\n"
        f"try:\n    app()\nfinally:\n    print([name for name in {modules} if name in sys.modules], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert result.stdout
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", ["list", "list --json", "show rec_grpo", "diff rec_grpo off_tis", "schema", "--help", "paper list"]
)
def test_the_catalogue_answers_without_torch_verl_or_trinity(arguments):
    assert loaded_by(arguments, (*HEAVY, "trinity", "omegaconf")) == "[]"


@pytest.mark.parametrize("arguments", ["check run.yaml", "use rep_opmd run.yaml --dry-run", "translate verl.yaml"])
def test_a_yaml_is_judged_by_trinity_without_what_its_training_needs(arguments, tmp_path):
    (tmp_path / "run.yaml").write_text("mode: both\nalgorithm: {algorithm_type: grpo}\n")
    (tmp_path / "verl.yaml").write_text("algorithm: {adv_estimator: grpo}\nactor_rollout_ref: {rollout: {n: 8}}\n")
    assert loaded_by(arguments, (*HEAVY, "trinity"), tmp_path) == "['trinity']"


def test_the_plugin_directory_registers_the_presets():
    directory = Path(trinity_rec("plugin-dir").stdout.strip())
    assert [path.suffix for path in directory.iterdir() if path.is_file()] == [".py"]


def test_an_unknown_preset_names_the_nearest():
    assert_one_line_error(trinity_rec("quickstart", "--algorithm", "red_drp"), "'red_drp'", "did you mean red_drop?")


def test_a_preset_like_no_other_names_them_all():
    assert_one_line_error(trinity_rec("quickstart", "--algorithm", "xyzzy"), "rec_ring_nois", "red_pairwise")


def test_an_output_directory_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.tex").touch()
    assert_one_line_error(trinity_rec("quickstart", "--out", tmp_path), "holds something else")


def test_serve_refuses_a_model_directory_that_is_not_there(tmp_path):
    assert_one_line_error(trinity_rec("serve", "--model", tmp_path / "nowhere", "--root", tmp_path / "w"), "nowhere")


def test_debug_shows_where_an_error_comes_from(tmp_path):
    result = trinity_rec("--debug", "serve", "--model", tmp_path / "nowhere", "--root", tmp_path / "w")
    assert result.returncode != 0
    assert "Traceback" in result.stderr


@pytest.mark.parametrize("bad", [["--steps", "0"], ["--sync-interval", "0"], ["--steps", "many"]])
def test_numbers_out_of_range_are_usage_errors(bad):
    result = trinity_rec("quickstart", *bad)
    assert result.returncode == 2
    assert bad[0] in result.stderr and "Traceback" not in result.stderr


def test_examples_are_listed_found_and_copied(tmp_path):
    names = trinity_rec("examples").stdout.splitlines()
    assert "rec_gsm8k/quickstart.yaml" in names
    path = Path(trinity_rec("examples", "rec_gsm8k/quickstart.yaml").stdout.strip())
    assert "trinity_rec.rec_oneside_nois" in path.read_text()

    copied = trinity_rec("examples", "rec_gsm8k/quickstart.yaml", "--copy", tmp_path / "mine")
    assert Path(copied.stdout.strip()) == tmp_path / "mine" / "quickstart.yaml"
    assert (tmp_path / "mine" / "quickstart.yaml").read_text() == path.read_text()
    again = trinity_rec("examples", "rec_gsm8k/quickstart.yaml", "--copy", tmp_path / "mine")
    assert_one_line_error(again, "is there already")


def test_an_unknown_example_names_the_nearest():
    assert_one_line_error(trinity_rec("examples", "quickstart"), "did you mean rec_gsm8k/quickstart.yaml?")
