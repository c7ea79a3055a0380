"""`use`: the algorithm section becomes the preset's; every other byte of the file stays."""

import io
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from trinity_rec.presets import PRESETS
from trinity_rec.terminal import UsageError
from trinity_rec.yaml.document import Document
from trinity_rec.yaml.effective import effective
from trinity_rec.yaml.rewrite import parse_settings, switch, write
from trinity_rec.yaml.translate import BLOCKS, arguments_of, nearest

YAML = """\
# A run of mine.
mode:   both   # odd spaces stay
"project": 'quoted'
synchronizer: {sync_interval:  20, sync_method: nccl}

# What is trained.
algorithm:
  # the baseline
  algorithm_type: grpo  # was ppo
  repeat_times: 8  # group

  optimizer:
    lr: 1e-6   # the paper's
    # betas: [0.9, 0.95]
  # clipping
  policy_loss_fn_args:
    clip_range: 0.2
  advantage_fn: grpo
  kl_loss_fn: "k2"
  kl_loss_fn_args: {kl_coef: 0.001}
  sample_strategy: default
  entropy_loss_fn_args:
    entropy_coef: 0.0
  # the end of the section

# Buffers.
buffer:
    batch_size: 96
    explorer_input:
        tasksets:
        -   path: ${oc.env:TASKS,./tasks}   # indented my way
"""


def switched(text: str, preset: str = "rec_oneside_nois", **changes) -> str:
    return switch(
        Document.parse("run.yaml", text), preset, parse_settings([f"{k}={v}" for k, v in changes.items()])
    ).text


def data(text: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(io.StringIO(text)), resolve=False)


def test_only_what_makes_up_the_objective_changes():
    new = switched(YAML)
    before, _, after = YAML.partition("  algorithm_type")
    assert new.startswith(before)
    assert new.endswith(after[after.index("\n# Buffers") :])
    section = new[len(before) : new.index("\n# Buffers")]
    assert section == (
        "  algorithm_type: trinity_rec.rec_oneside_nois  # was ppo\n"
        "  repeat_times: 8  # group\n"
        "\n"
        "  optimizer:\n"
        "    lr: 1e-6   # the paper's\n"
        "    # betas: [0.9, 0.95]\n"
        "  # clipping\n"
        "  # the end of the section\n"
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_what_the_new_file_trains(preset):
    section = data(switched(YAML, preset))["algorithm"]
    assert section == {"algorithm_type": f"trinity_rec.{preset}", "repeat_times": 8, "optimizer": {"lr": 1e-6}}


def test_settings_go_where_they_belong_and_keep_comments():
    new = switched(YAML, epsilon_high=2.0, **{"optimizer.lr": "5e-6", "std_normalize": "true", "repeat_times": 16})
    section = data(new)["algorithm"]
    assert section["policy_loss_fn_args"] == {"epsilon_high": 2.0}
    assert section["advantage_fn_args"] == {"std_normalize": True}
    assert section["repeat_times"] == 16
    assert section["optimizer"] == {"lr": 5e-6}
    assert "the paper's" in new and "# betas: [0.9, 0.95]" in new and "# group" in new
    # where the old arguments stood, under their comment
    assert "  # clipping\n  policy_loss_fn_args:\n    epsilon_high: 2.0\n" in new
    assert data(new) == {**data(YAML), "algorithm": section}


@pytest.mark.parametrize(
    "setting, words",
    [
        ("epsilon_hgih=2", "did you mean epsilon_high?"),
        ("epsilon_high=-1", "algorithm.policy_loss_fn_args.epsilon_high=-1 is not greater than 0"),
        ("clip_mode=rign", "is not one of none, one-side, two-side, ring, gspo-one-side"),
        ("policy_loss_fn_args.epsilom=1", "unknown argument 'epsilom'"),
        ("optimiser.lr=1", "did you mean optimizer?"),
        ("epsilon_high", "is not KEY=VALUE"),
        ("epsilon_high=[1", "is not a YAML value"),
        ("repeat_times.x=3", "repeat_times is not a mapping"),
        ("sample_strategy=trinity_rec.NoSuch", "NoSuch"),
    ],
)
def test_a_wrong_setting_is_refused_in_one_line(setting, words):
    with pytest.raises(UsageError) as refused:
        switch(Document.parse("run.yaml", YAML), "rec_oneside_nois", parse_settings([setting]))
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_line_ends_byte_order_mark_and_a_missing_last_newline_stay():
    windows = "\ufeff" + YAML.replace("\n", "\r\n").rstrip()
    new = switched(windows, epsilon_high=2.0)
    assert new.startswith("\ufeff# A run of mine.\r\n") and not new.endswith("\n")
    assert new.count("\r\n") == new.count("\n")
    assert data(new.removeprefix("\ufeff"))["algorithm"]["policy_loss_fn_args"] == {"epsilon_high": 2.0}


@pytest.mark.parametrize(
    "text",
    [
        "mode: both\n",
        "mode: both",
        "algorithm:\nmode: both\n",
        "algorithm: {algorithm_type: grpo, policy_loss_fn: ppo}\nmode: both\n",
        "mode: both\nalgorithm:\n    policy_loss_fn: ppo\n",
        "mode: both\nalgorithm:\n  algorithm_type: ppo",
        "---\nalgorithm:\n  algorithm_type: ppo\n# end\n...\n",
    ],
)
def test_sections_of_every_shape(text):
    new = data(switched(text, epsilon_low=0.1))
    assert new["algorithm"] == {
        "algorithm_type": "trinity_rec.rec_oneside_nois",
        "policy_loss_fn_args": {"epsilon_low": 0.1},
    }
    assert {**new, "algorithm": 0} == {**data(text), "algorithm": 0}


def test_a_section_in_braces_keeps_its_comments():
    text = (
        "algorithm: {\n  # the baseline\n  algorithm_type: grpo,  # was ppo\n  repeat_times: 8\n}  # ours\nmode: both\n"
    )
    assert switched(text) == (
        "algorithm:  # ours\n  # the baseline\n  # was ppo\n  algorithm_type: trinity_rec.rec_oneside_nois\n"
        "  repeat_times: 8\nmode: both\n"
    )


def test_doing_it_twice_changes_nothing():
    once = switched(YAML, epsilon_high=2.0)
    assert switched(once) == once


def test_an_anchor_inside_the_section_that_is_used_outside_is_refused():
    text = "algorithm:\n  policy_loss_fn_args: &shared\n    clip_range: 0.2\nother: *shared\n"
    with pytest.raises(UsageError, match=r"^run.yaml:1: the algorithm section shares anchors"):
        switched(text)


def test_an_anchor_from_before_the_section_stays_usable():
    text = "x: &rate 1e-6\nalgorithm:\n  algorithm_type: ppo\n  optimizer:\n    lr: *rate\n"
    assert "lr: *rate" in switched(text)
    with pytest.raises(UsageError, match="optimizer uses an anchor"):
        switched(text, **{"optimizer.lr": 1})


@pytest.mark.parametrize(
    "loss, advantage, preset, needed_loss, needed_advantage",
    [
        ({"clip_mode": "one-side", "weight": "none"}, {}, "rec_oneside_nois", {}, {}),
        ({"clip_mode": "one-side", "epsilon_high": 2.0, "epsilon_low": 0.6}, {}, "rec_oneside_nois",
         {"epsilon_high": 2.0, "epsilon_low": 0.6}, {}),
        ({"clip_mode": "one-side", "weight": "importance_sampling"}, {"std_normalize": True}, "rec_grpo", {}, {}),
        ({"clip_mode": "none"}, {}, "rec_reinforce", {}, {}),
        ({"regularizer": "k2", "regularizer_coef": 0.5}, {}, "rep_opmd", {"regularizer_coef": 0.5}, {}),
        ({"regularizer": "forward-kl", "regularizer_coef": 0.1}, {}, "rep_asymre", {}, {}),
        ({"weight": "advantage"}, {}, "red_weight", {}, {}),
        # upstream's constructor, not its default_args, fills in the ring's bounds
        ({"clip_mode": "ring"}, {}, "rec_ring_nois", {"epsilon_low_prime": 0.4, "epsilon_high_prime": 0.4}, {}),
        ({}, {"drop": "balance"}, "red_drop", {}, {"drop_form": "zero"}),
        ({"clip_mode": "gspo-one-side", "weight": "gspo_importance_sampling"}, {}, "rec_gspo_is",
         {"epsilon_low": 0.2, "epsilon_high": 0.2}, {}),
    ],
)  # fmt: skip
def test_the_nearest_preset_of_upstreams_rec(loss, advantage, preset, needed_loss, needed_advantage):
    section = {"algorithm_type": "rec", "policy_loss_fn_args": loss, "advantage_fn_args": advantage}
    found, needed = nearest(section)
    assert found.name == preset
    assert needed == {"policy_loss_fn_args": needed_loss, "advantage_fn_args": needed_advantage}


number = st.sampled_from([0.1, 0.2, 0.3])
upstream_arguments = st.fixed_dictionaries(
    {},
    optional={
        "clip_mode": st.sampled_from(["none", "one-side", "two-side", "ring", "gspo-one-side"]),
        "weight": st.sampled_from(["none", "importance_sampling", "advantage"]),
        "regularizer": st.sampled_from(["none", "k2", "forward-kl"]),
        "regularizer_coef": st.sampled_from([0.0, 0.1, 0.5]),
        "temp": st.sampled_from([0.5, 1.0]),
        "epsilon_low": number,
        "epsilon_high": number,
        "epsilon_low_prime": st.sampled_from([0.4, 0.6]),
        "epsilon_high_prime": st.sampled_from([0.4, 2.0]),
    },
)
upstream_advantages = st.fixed_dictionaries(
    {}, optional={"std_normalize": st.booleans(), "drop": st.sampled_from([None, "balance"]), "epsilon": number}
)


@settings(max_examples=30, deadline=None)
@given(loss=upstream_arguments, advantage=upstream_advantages)
def test_the_nearest_preset_optimises_what_upstreams_yaml_did(loss, advantage):
    section = {"algorithm_type": "rec", "policy_loss_fn_args": loss, "advantage_fn_args": advantage}
    old = OmegaConf.to_yaml(OmegaConf.create({"mode": "both", "algorithm": section}))
    new = effective(data(switched(old, "nearest"))["algorithm"])
    for key, was in arguments_of(section).items():
        counting = BLOCKS[key].read_only(was)
        assert {name: getattr(new, key)[name] for name in counting} == counting


def test_nearest_needs_a_rec():
    with pytest.raises(
        UsageError, match="reads the arguments of upstream's rec, not of 'grpo'; the nearest of grpo is rec_grpo"
    ):
        switched(YAML, "nearest")


def test_arguments_are_carried_where_they_mean_the_same():
    text = switched(YAML, "rec_ring_is", epsilon_high=2.0, epsilon_low=0.6, metrics="full")
    carried = data(switched(text, "rec_ring_nois"))["algorithm"]["policy_loss_fn_args"]
    assert carried == {"epsilon_high": 2.0, "epsilon_low": 0.6, "metrics": "full"}
    dropped = data(switched(text, "rec_twoside_nois"))["algorithm"]["policy_loss_fn_args"]
    assert dropped == {"metrics": "full"}


def test_a_sample_strategy_of_ours_stays_and_one_of_trinitys_goes():
    text = YAML.replace("sample_strategy: default", "sample_strategy: trinity_rec.InformativeSampleStrategy")
    assert data(switched(text))["algorithm"]["sample_strategy"] == "trinity_rec.InformativeSampleStrategy"
    text = YAML.replace(
        "sample_strategy: default", "sample_strategy: mix\n  sample_strategy_args: {expert_data_ratio: 0.5}"
    )
    assert not {"sample_strategy", "sample_strategy_args"} & set(data(switched(text))["algorithm"])


def test_what_is_lost_is_said():
    notes = switch(Document.parse("run.yaml", YAML), "rec_oneside_nois").notes
    assert any("--set kl_loss_fn=k2 --set kl_loss_fn_args.kl_coef=0.001" in note for note in notes)
    kept = parse_settings(["kl_loss_fn=k2", "kl_loss_fn_args.kl_coef=0.001"])
    again = switch(Document.parse("run.yaml", YAML), "rec_oneside_nois", kept)
    assert not any("KL" in note for note in again.notes)
    assert effective(data(again.text)["algorithm"]).algorithm_type == "trinity_rec.rec_oneside_nois_with_reference"


def test_writing_keeps_permissions_and_links_and_leaves_no_scraps(tmp_path):
    target, link = tmp_path / "run.yaml", tmp_path / "link.yaml"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write(link, "new")
    assert target.read_text() == "new" and link.is_symlink()
    assert stat.S_IMODE(os.stat(target).st_mode) == 0o640
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.yaml", "run.yaml"]
    with pytest.raises(UsageError, match="No such file or directory"):
        write(tmp_path / "nowhere" / "run.yaml", "new")
