"""What a killed run leaves behind, in every state in which a kill can leave it, and what a resumed run starts from."""

import json

import pytest
from trinity.common.config import Config, TasksetConfig

from trinity_rec.plugin.resume import LEDGER, Entry, Ledger, settle, write_atomically

EVERY = 2  # steps between checkpoints


@pytest.fixture
def config(tmp_path):
    config = Config()
    config.mode = "both"
    config.project, config.group, config.name = "p", "g", "n"
    config.checkpoint_job_dir = str(tmp_path / "job")
    config.model.tinker.enable = True
    config.buffer.batch_size, config.algorithm.repeat_times = 3, 4
    config.synchronizer.sync_interval = EVERY
    return config


@pytest.fixture
def job(tmp_path):
    """A run of which 5 steps were trained, killed in the sixth: checkpoints of 2 and 4, the explorer at 6."""
    job = tmp_path / "job"
    for step in (2, 4):
        write_atomically(job / f"global_step_{step}" / "remote_checkpoint_path.txt", f"tinker://run/weights/{step}")
        write_atomically(
            job / f"global_step_{step}" / "remote_sampler_path.txt", f"tinker://run/sampler_weights/{step}"
        )
    write_atomically(job / "latest_checkpointed_iteration.txt", "4")
    write_atomically(job / "latest_state_dict_iteration.txt", "4")
    write_atomically(job / "trainer_meta.json", json.dumps({"latest_iteration": 4, "sample_strategy_state": reader(4)}))
    explorer = {"latest_iteration": 6, "taskset_states": [{"current_index": 18}]}
    write_atomically(job / "explorer_meta.json", json.dumps(explorer))
    ledger = Ledger(job / "buffer" / LEDGER)
    for step in range(1, 7):
        ledger.append(Entry(step, step, reader(step)))
    return job


def reader(step):
    return {"current_index": 100 * step}


def read(path):
    return json.loads(path.read_text())


def assert_at(job, step):
    """Everything in the directory says that `step` steps were trained."""
    assert read(job / "trainer_meta.json") == {"latest_iteration": step, "sample_strategy_state": reader(step)}
    assert read(job / "explorer_meta.json") == {
        "latest_iteration": step,
        "taskset_states": [{"current_index": 3 * step}],
    }
    assert (job / "latest_checkpointed_iteration.txt").read_text() == str(step)
    assert [entry.step for entry in Ledger(job / "buffer" / LEDGER).entries()] == list(range(1, step + 1))
    assert not list(job.glob("**/.writing-*"))


def test_explorer_and_ledger_go_back_to_the_checkpoint(config, job):
    for _ in range(2):
        settle(config)
        assert_at(job, 4)
        assert (job / "latest_state_dict_iteration.txt").read_text() == "4"


@pytest.mark.parametrize("text", ["", "4x", '{"latest_iter'])
@pytest.mark.parametrize("name", ["latest_checkpointed_iteration.txt", "trainer_meta.json", "explorer_meta.json"])
def test_a_file_that_was_being_written_is_made_anew(config, job, name, text):
    (job / name).write_text(text)
    settle(config)
    assert_at(job, 4)


@pytest.mark.parametrize("name", ["trainer_meta.json", "explorer_meta.json"])
def test_a_file_that_was_not_yet_written_is_made(config, job, name):
    (job / name).unlink()
    settle(config)
    assert_at(job, 4)


def test_a_trainer_killed_between_its_two_notes_is_where_the_first_says(config, job):
    state = {"latest_iteration": 2, "sample_strategy_state": reader(2)}
    (job / "trainer_meta.json").write_text(json.dumps(state))
    settle(config)
    assert_at(job, 4)


def test_a_checkpoint_whose_path_was_being_written_does_not_count(config, job):
    (job / "global_step_4" / "remote_checkpoint_path.txt").write_text("")
    settle(config)
    assert_at(job, 2)
    assert not (job / "latest_state_dict_iteration.txt").exists()


def test_weights_handed_out_after_the_checkpoint_are_forgotten(config, job):
    write_atomically(job / "global_step_6" / "remote_sampler_path.txt", "tinker://run/sampler_weights/6")
    (job / "latest_state_dict_iteration.txt").write_text("6")
    settle(config)
    assert_at(job, 4)
    assert not (job / "latest_state_dict_iteration.txt").exists()


@pytest.mark.parametrize("text", ["", None])
def test_without_a_checkpoint_a_run_starts_afresh(config, job, text):
    for path in job.glob("global_step_*/remote_checkpoint_path.txt"):
        path.unlink()
    (job / "latest_checkpointed_iteration.txt").unlink()
    if text is not None:
        (job / "latest_checkpointed_iteration.txt").write_text(text)
    settle(config)
    left = {path.name for path in job.iterdir()}
    assert left == {"buffer", "global_step_2", "global_step_4"}
    assert Ledger(job / "buffer" / LEDGER).entries() == []


def test_a_line_that_was_being_written_is_not_read_and_does_not_spoil_the_next(config, job):
    ledger = Ledger(job / "buffer" / LEDGER)
    with ledger.path.open("a") as file:
        file.write('{"step": 4, "explored": 99, "rea')
    assert [entry.step for entry in ledger.entries()] == [1, 2, 3, 4, 5, 6]
    settle(config)
    ledger.append(Entry(5, 5, reader(5)))
    assert [entry.step for entry in ledger.entries()] == [1, 2, 3, 4, 5]


def test_a_strategy_that_read_more_than_a_batch_a_step_is_not_given_the_same_problems(config, job):
    ledger = Ledger(job / "buffer" / LEDGER)
    ledger.path.unlink()
    for step in range(1, 7):
        ledger.append(Entry(step, 3 * step, reader(step)))
    settle(config)
    assert read(job / "explorer_meta.json")["latest_iteration"] == 12
    assert read(job / "explorer_meta.json")["taskset_states"] == [{"current_index": 36}]


@pytest.mark.parametrize(("train_batch_size", "explored"), [(None, 4), (24, 8), (6, 2)])
def test_without_a_ledger_the_explorer_is_put_where_the_steps_alone_say(config, job, train_batch_size, explored):
    (job / "buffer" / LEDGER).unlink()
    config.buffer.train_batch_size = train_batch_size
    settle(config)
    assert read(job / "explorer_meta.json")["latest_iteration"] == explored
    assert read(job / "trainer_meta.json")["sample_strategy_state"] == reader(4)


@pytest.mark.parametrize(("offset", "resumed"), [(0, 0), (1, 5), (2, 6), (7, 7)])
def test_the_explorers_head_start_is_given_again(config, job, offset, resumed):
    config.synchronizer.sync_offset = offset
    for _ in range(2):
        settle(config)
        assert config.synchronizer.sync_offset == resumed


def test_of_several_tasksets_the_explorers_own_place_stays(config, job):
    config.buffer.explorer_input.tasksets = [TasksetConfig(name="a"), TasksetConfig(name="b")]
    settle(config)
    assert read(job / "explorer_meta.json")["latest_iteration"] == 6


@pytest.mark.parametrize("mode", ["explore", "bench", "serve"])
def test_a_driver_that_does_not_start_the_trainer_changes_nothing(config, job, mode):
    before = {path: path.read_bytes() for path in job.rglob("*") if path.is_file()}
    config.mode = mode
    settle(config)
    assert {path: path.read_bytes() for path in job.rglob("*") if path.is_file()} == before
    assert not config.ray_namespace


def test_a_trainer_alone_leaves_the_explorers_files(config, job):
    config.mode = "train"
    settle(config)
    assert read(job / "trainer_meta.json")["latest_iteration"] == 4
    assert read(job / "explorer_meta.json")["latest_iteration"] == 6


def test_on_verl_a_checkpoint_that_cannot_be_told_is_an_error(config, job):
    config.model.tinker.enable = False
    settle(config)
    assert_at(job, 4)
    (job / "latest_checkpointed_iteration.txt").write_text("")
    with pytest.raises(ValueError, match="does not name a step: ''"):
        settle(config)


def test_each_start_has_a_ray_namespace_of_its_own_unless_the_yaml_names_one(config):
    settle(config)
    assert config.ray_namespace.startswith("p/g/n/")
    config.ray_namespace = "mine"
    settle(config)
    assert config.ray_namespace == "mine"


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "folder" / "file"
    write_atomically(path, "old")
    old = path.open()
    write_atomically(path, b"new")
    assert (old.read(), path.read_text()) == ("old", "new")
    assert list(path.parent.iterdir()) == [path]
