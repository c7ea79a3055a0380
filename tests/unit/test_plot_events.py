"""Event files as torch's SummaryWriter, which Trinity's monitor uses, writes them: whole, resumed, cut off, damaged."""

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from trinity_rec.plot.events import LogsError, find_runs, read_run


def log(job, values, first=1, role="trainer", tag="critic/rewards/mean", start=1_700_000_000):
    """One start of a run: `values` from step `first` on. Event files are told apart by the second of their start."""
    directory = job / "monitor" / "tensorboard" / role
    with SummaryWriter(str(directory)) as writer:
        for step, value in enumerate(values, first):
            writer.add_scalar(tag, value, step)
    (path,) = (path for path in directory.iterdir() if path.name.split(".")[3] != "0" and "moved" not in path.name)
    return path.rename(directory / f"events.out.tfevents.{start}.moved.{path.name.split('.')[-1]}")


def test_the_roles_and_their_series(tmp_path):
    log(tmp_path / "proj" / "a", [0.25, float("nan"), 0.75])
    log(tmp_path / "proj" / "a", [3.0], role="explorer", tag="rollout/model_version")
    (job,) = find_runs(tmp_path)
    run = read_run(job)
    assert job == tmp_path / "proj" / "a" and run.warnings == ()
    assert run.roles.keys() == {"trainer", "explorer"}
    series = run.get("trainer", "critic/rewards/mean")
    np.testing.assert_array_equal(series.steps, [1, 2, 3])
    np.testing.assert_array_equal(series.values, [0.25, np.nan, 0.75])
    assert run.get("explorer", "critic/rewards/mean") is None and run.get("benchmark", "x") is None


def test_every_run_below_a_directory_is_found(tmp_path):
    for name in ("b", "a", "group/c"):
        log(tmp_path / name, [1.0])
    assert [path.relative_to(tmp_path).as_posix() for path in find_runs(tmp_path)] == ["a", "b", "group/c"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_a_resumed_run_goes_on_where_it_was_resumed(tmp_path):
    log(tmp_path, [0.1, 0.2, 0.3, 0.4], start=1_700_000_000)
    log(tmp_path, [0.35], first=3, start=1_700_000_999)
    series = read_run(tmp_path).get("trainer", "critic/rewards/mean")
    np.testing.assert_array_equal(series.steps, [1, 2, 3])
    np.testing.assert_allclose(series.values, [0.1, 0.2, 0.35], rtol=1e-6)


@pytest.mark.parametrize("cut", [1, 4, 9, 30])
def test_a_record_that_is_cut_off_is_passed_over_with_a_warning(tmp_path, cut):
    path = log(tmp_path, [0.1, 0.2, 0.3])
    path.write_bytes(path.read_bytes()[:-cut])
    run = read_run(tmp_path)
    np.testing.assert_array_equal(run.get("trainer", "critic/rewards/mean").steps, [1, 2])
    (warning,) = run.warnings
    assert f"{path}: its last record is cut off" in warning and "up to step 2" in warning


def test_a_damaged_file_is_refused_with_what_is_readable(tmp_path):
    path = log(tmp_path, [0.1, 0.2, 0.3])
    other = log(tmp_path, [0.1], start=1_700_000_001)
    content = bytearray(path.read_bytes())
    content[-10] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(LogsError) as error:
        read_run(tmp_path)
    for part in (str(path), "damaged", "up to step 2", other.name):
        assert part in str(error.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    path = log(tmp_path, [])
    path.write_text("not an event file, although it is named like one")
    with pytest.raises(LogsError, match="no event file or broken: record 1 is damaged"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "no directory .*; in .*: else$"),
        (lambda path: path.write_text("x"), "is a file"),
        (lambda path: (path / "checkpoints").mkdir(parents=True), "holds no TensorBoard logs .*: checkpoints"),
        (lambda path: (path / "monitor" / "tensorboard" / "trainer").mkdir(parents=True), "holds no TensorBoard logs"),
    ],
)
def test_where_there_are_no_logs_the_message_says_what_there_is(tmp_path, make, message):
    (tmp_path / "else").mkdir()
    make(tmp_path / "run")
    with pytest.raises(LogsError, match=message):
        find_runs(tmp_path / "run")


def test_a_run_that_has_only_begun_says_so(tmp_path):
    log(tmp_path, [])
    with pytest.raises(LogsError, match="no metric yet"):
        read_run(tmp_path)
