"""`check`: every error and doubt, with its line. A mark behind a line of YAML says what must be found there."""

import contextlib
import re
import socket

import pytest
import ray

from trinity_rec.presets import PRESETS
from trinity_rec.terminal import UsageError
from trinity_rec.yaml.check import check
from trinity_rec.yaml.document import Document
from trinity_rec.yaml.rewrite import switch


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch, tmp_path):
    """No Ray, no network, and nothing written where the command is run."""

    def refuse(*args, **kwargs):
        raise AssertionError("check opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


CLEAN = """\
mode: both
checkpoint_root_dir: ./checkpoints
algorithm:
  algorithm_type: trinity_rec.rec_oneside_nois
  repeat_times: 8
model:
  model_path: Qwen/Qwen2.5-1.5B-Instruct
  max_model_len: 2048
cluster: {node_num: 1, gpu_per_node: 8}
buffer:
  batch_size: 96
  total_steps: 160
  explorer_input:
    taskset: {name: gsm8k, path: openai/gsm8k}
explorer:
  rollout_model: {engine_num: 4}
synchronizer:
  sync_interval: 20
"""


GRPO = "  algorithm_type: trinity_rec.rec_grpo\n  repeat_times: 8\n"


def report(text: str):
    return check(Document.parse("run.yaml", text))


def assert_marks(text: str) -> None:
    """Findings are just those of the marks `# error: words` and `# doubt: words`, each on its line."""
    expected = {}
    for number, line in enumerate(text.splitlines(), 1):
        for level, words in re.findall(r"# (error|doubt): (.*?)(?=$| # )", line):
            expected[number, level] = words
    found = report(text).findings
    assert sorted((each.line, each.level) for each in found) == sorted(expected), list(map(str, found))
    for each in found:
        assert expected[each.line, each.level] in str(each)
        assert "\n" not in str(each)


def with_algorithm(section: str, rest: str = CLEAN) -> str:
    before, after = rest.split("algorithm:\n")
    return f"{before}algorithm:\n{section}{after[after.index('model:') :]}"


def test_a_clean_configuration_has_no_findings():
    found = report(CLEAN)
    assert found.findings == []
    summary = found.summary
    assert summary.algorithm_type == "trinity_rec.rec_oneside_nois"
    assert summary.policy_loss_fn_args == {
        "clip_mode": "one-side", "weight": "none", "regularizer": "none",
        "epsilon_low": 0.2, "epsilon_high": 0.2, **_runtime(summary),
    }  # fmt: skip
    assert not summary.reference_model
    assert summary.staleness == (0, 19)
    assert (summary.responses_per_step, summary.train_batch_size) == (768, 768)
    assert "24 GB" in summary.memory


def _runtime(summary) -> dict:
    return {name: value for name, value in summary.policy_loss_fn_args.items() if name == "metrics"}


@pytest.mark.parametrize("preset", PRESETS)
def test_no_preset_is_in_error(preset):
    assert report(CLEAN.replace("rec_oneside_nois", preset)).errors == []


@pytest.mark.parametrize(
    "section",
    [
        # names and types
        "  algorithm_type: trinity_rec.rec_oneside_nios # error: did you mean trinity_rec.rec_oneside_nois?\n",
        "  algorithm_type: xyzzy # error: no algorithm 'xyzzy'\n",
        GRPO + "  optiimzer: # error: did you mean optimizer?\n    lr: 1\n",
        GRPO + "  optimizer:\n    lr: fast # error: expected a number\n",
        GRPO + "  optimizer: 3 # error: expected a mapping\n",
        GRPO + "  optimizer:\n    betas: [0.9, high] # error: betas[1]: 'high' has the wrong type; expected a number\n",
        GRPO + "  kl_loss_fn: trinity_rec.k2 # error: trinity_rec.k2 cannot be imported\n",
        GRPO + "  policy_loss_fn_args: 1 # error: expected a mapping\n",
        GRPO + "  kl_loss_fn: k9 # error: no 'k9'\n",
        GRPO + "  sample_strategy: trinity_rec.BalancedSampleStrateg # error: trinity_rec.BalancedSampleStrategy?\n",
        GRPO + "  advantage_fn: no_such.Advantage # error: imported\n",
        # arguments, all of them at once
        "  algorithm_type: trinity_rec.rec_ring_nois\n"
        "  repeat_times: 8\n"
        "  policy_loss_fn_args:\n"
        "    epsilon_low: 7 # error: is not in (0, 1]\n"
        "    epsilon_hgih: 1 # error: did you mean 'epsilon_high'?\n"
        "    weight: improtance # error: 'improtance' is not one of none, importance_sampling\n"
        "  advantage_fn_args:\n"
        "    drop: half # error: 'half' is not one of None, balance\n",
        "  algorithm_type: trinity_rec.rec_ring_nois\n"
        "  repeat_times: 8\n"
        "  policy_loss_fn_args:\n"
        "    epsilon_low: 0.3\n"
        "    epsilon_low_prime: 0.2 # error: must enclose the clip range\n",
        "  algorithm_type: trinity_rec.red_pairwise\n"
        "  repeat_times: 8\n"
        "  policy_loss_fn_args: {clip_mode: one-side}\n"
        "  advantage_fn_args: # error: does not go with\n"
        "    drop: balance\n",
        # sample strategies
        GRPO + "  sample_strategy: trinity_rec.InformativeSampleStrategy\n"
        "  sample_strategy_args:\n"
        "    refill: true # error: would starve\n",
        GRPO + "  sample_strategy: trinity_rec.OfflineSampleStrategy\n"
        "  sample_strategy_args:\n"
        "    batches: 30 # error: more than the 20 batches\n",
    ],
)
def test_errors(section):
    assert_marks(with_algorithm(section))


@pytest.mark.parametrize(
    "section",
    [
        "  algorithm_type: rec # doubt: switches to rec_twoside_nois with epsilon_high 0.5\n"
        "  repeat_times: 8\n"
        "  policy_loss_fn_args: {clip_mode: two-side, epsilon_high: 0.5}\n",
        "  algorithm_type: grpo\n  repeat_times: 8\n",
        "  algorithm_type: rec_grpo # doubt: only with --plugin-dir\n  repeat_times: 8\n",
        "  algorithm_type: trinity_rec.rec_reinforce # doubt: neither clipping nor a regulariser\n  repeat_times: 8\n",
        "  algorithm_type: trinity_rec.rec\n"
        "  repeat_times: 8\n"
        "  policy_loss_fn_args:\n"
        "    weight: importance_sampling # doubt: unbounded variance on rollouts up to 19 updates old\n",
        "  algorithm_type: trinity_rec.red_drop\n"
        "  repeat_times: 2 # doubt: drops nothing\n"
        "  policy_loss_fn_args: {clip_mode: one-side}\n",
        "  algorithm_type: trinity_rec.rec_grpo\n  repeat_times: 1 # doubt: nothing to compare\n",
        GRPO + "  kl_loss_fn: none\n"
        "  kl_loss_fn_args:\n"
        "    kl_coef: 0.001 # doubt: has no effect: kl_loss_fn is none\n"
        "  kl_penalty_fn: k2 # doubt: before the trainer sees them\n"
        "  entropy_loss_fn_args: {entropy_coef: 0.1} # doubt: entropy_loss_fn is none\n",
        GRPO + "  kl_loss_fn: k2 # doubt: coefficient 0 adds no KL term\n  kl_loss_fn_args: {kl_coef: 0.0}\n",
        "  algorithm_type: trinity_rec.rec_oneside_nois\n"
        "  repeat_times: 8\n"
        "  policy_loss_fn_args:\n"
        "    epsilon_high: 2.0\n"
        "    epsilon_low_prime: 0.6 # doubt: ignored under clip_mode: one-side\n"
        "    temp: 2.0 # doubt: ignored under weight: none\n"
        "    regularizer_coef: 0.1 # doubt: ignored under regularizer: none\n"
        "  advantage_fn_args:\n"
        "    seed: 3 # doubt: ignored under drop: null\n"
        "    epsilon: 0.1 # doubt: ignored under std_normalize: false\n",
        "  algorithm_type: trinity_rec.rec_oneside_nois\n"
        "  repeat_times: 8\n"
        "  policy_loss_fn_args:\n"
        "    regularizer: k2\n"
        "    regularizer_coef: 0 # doubt: has no effect with a coefficient of 0\n",
        "  algorithm_type: trinity_rec.rec_gspo_nois\n"
        "  repeat_times: 8\n"
        "  policy_loss_fn_args:\n"
        "    epsilon_high: 0.2 # doubt: hardly ever clips a sequence ratio\n",
        GRPO + "  advantage_fn: grpo # doubt: in place of the preset's own\n"
        "  bypass_old_logprobs: false # doubt: nothing corrects for stale rollouts\n"
        "  rollout_correction: {rollout_is: token} # doubt: verl's own correction\n",
        GRPO + "  sample_strategy: trinity_rec.StalenessSampleStrategy\n"
        "  sample_strategy_args:\n"
        "    max_staleness: 3 # doubt: all but 4 of every 20 batches\n",
        GRPO + "  sample_strategy: trinity_rec.InformativeSampleStrategy\n"
        "  sample_strategy_args:\n"
        "    max_reads: 3 # doubt: ignored under refill: false\n",
    ],
)
def test_doubts(section):
    assert_marks(with_algorithm(section))


@pytest.mark.parametrize(
    "old, new",
    [
        ("mode: both", "mode: boht # error: Invalid mode: boht"),
        ("mode: both", "mode: both\nmodell: {} # error: did you mean model?"),
        ("max_model_len: 2048", "max_model_len: long # error: expected a whole number"),
        ("  max_model_len: 2048\n", "  top_p: 0.9 # doubt: do not come from the policy\n  max_model_len: 2048\n"),
        ("batch_size: 96", "batch_size: 96\n  train_batch_size: 1000 # doubt: the trainer starves"),
        ("batch_size: 96", "batch_size: 96\n  train_batch_size: 96 # doubt: rollouts pile up"),
        ("sync_interval: 20", "sync_interval: 20\nmonitor: {monitor_type: wandb, monitor_args: {base_url: null}}"),
        ("gpu_per_node: 8}", "gpu_per_node: 2} # error: Not enough GPUs for trainer"),
        ("sync_interval: 20", "sync_style: fixd # error: expected one of fixed, trainer_driven"),
        ("sync_interval: 20", "sync_interval: 20\nmonitor: {monitor_type: wandbb} # error: wandbb"),
        ("path: openai/gsm8k}", "path: '${oc.env:NO_SUCH_VARIABLE}'} # doubt: NO_SUCH_VARIABLE is not set here"),
        ("path: openai/gsm8k}", "path: '${no_such_key}'} # error: Interpolation key 'no_such_key' not found"),
        ("path: openai/gsm8k}", "pth: openai/gsm8k} # error: did you mean path?"),
    ],
)
def test_the_rest_of_the_file(old, new):
    assert old in CLEAN
    assert_marks(CLEAN.replace(old, new))


@pytest.mark.parametrize("sync", ["checkpoint # doubt: rounds the weights to bfloat16", "memory"])
def test_float32_rollouts_of_rounded_weights(sync):
    text = CLEAN.replace("{engine_num: 4}", "{engine_num: 4, dtype: float32}")
    assert_marks(text.replace("sync_interval: 20", f"sync_interval: 20\n  sync_method: {sync}"))


TINKER = "  max_model_len: 2048\n  tinker: {enable: true}\n"


@pytest.mark.parametrize(
    "old, new",
    [
        ("  max_model_len: 2048\n", TINKER + "  temperature: 0.7 # error: must be sampled at temperature 1\n"),
        (
            "    taskset: {name: gsm8k, path: openai/gsm8k}\n",
            "    tasksets:\n      - {name: a, path: x}\n      - name: gsm8k\n        path: openai/gsm8k\n"
            "        rollout_args:\n          temperature: 0.7 # error: must be sampled at temperature 1\n",
        ),
    ],
)
def test_a_temperature_on_tinker(old, new):
    text = CLEAN.replace(old, new)
    assert_marks(text if TINKER in text else text.replace("  max_model_len: 2048\n", TINKER))


def test_a_sample_strategy_of_trinitys_on_tinker_costs_a_reference_pass():
    text = CLEAN.replace("  repeat_times: 8\n", "  repeat_times: 8\n  sample_strategy: mix # doubt: reference pass\n")
    text = text.replace("  max_model_len: 2048\n", TINKER)
    assert_marks(text)
    assert report(text).summary.reference_model


LOSS_OF_MINE = """\
from trinity.algorithm.policy_loss_fn.policy_loss_fn import PolicyLossFn


class Mine(PolicyLossFn):
    def __init__(self, backend="verl", *, beta, floor=0.1):
        super().__init__(backend=backend)

    def __call__(self, logprob, old_logprob, action_mask, advantages, **kwargs):
        return logprob.sum(), {}

    @classmethod
    def default_args(cls):
        return {"beta": 0.5}
"""


@pytest.fixture
def loss_of_mine(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("mine")
    (folder / "my_losses.py").write_text(LOSS_OF_MINE)
    monkeypatch.syspath_prepend(folder)


def test_a_loss_of_ones_own_is_told_as_it_is(loss_of_mine):
    section = GRPO + "  policy_loss_fn: my_losses.Mine # doubt: in place of the preset's own\n"
    summary = report(with_algorithm(section)).summary
    assert summary.gradient == "that of my_losses.Mine, not the preset's"
    assert summary.policy_loss_fn_args == {"beta": 0.5}  # what Trinity passes where the YAML gives none
    assert_marks(with_algorithm(section))
    given = report(with_algorithm(section + "  policy_loss_fn_args: {beta: 1.5}\n")).summary
    assert given.policy_loss_fn_args == {"beta": 1.5}


@pytest.mark.parametrize(
    "section",
    [
        GRPO + "  policy_loss_fn: my_losses.Mine # doubt: in place of the preset's own\n"
        "  policy_loss_fn_args:\n    beta: 1.0\n"
        "    flor: 2 # error: my_losses.Mine takes no such argument; did you mean floor?\n",
        GRPO + "  policy_loss_fn: my_losses.Mine # error: my_losses.Mine needs beta # doubt: in place of\n"
        "  policy_loss_fn_args: {floor: 0.2}\n",
        "  algorithm_type: grpo\n  repeat_times: 8\n"
        "  policy_loss_fn_args:\n    clip_range: 0.2\n    epsilon_low: 0.2 # error: ppo takes no such argument\n",
        GRPO + "  advantage_fn: grpo # doubt: in place of the preset's own\n"
        "  advantage_fn_args:\n    epsilom: 1 # error: grpo takes no such argument; did you mean epsilon?\n",
    ],
)
def test_arguments_of_other_blocks_are_held_against_their_constructors(section, loss_of_mine):
    assert_marks(with_algorithm(section))


@pytest.mark.parametrize(
    "old, new",
    [
        (
            "  repeat_times: 8\n",
            "  repeat_times: 8\n  policy_loss_fn_args:\n"
            "    epsilon_low: '0.2' # error: '0.2' is text, not a number; unquote it\n",
        ),
        ("sync_interval: 20", "sync_interval: '20'"),  # OmegaConf reads it as the number that it is
        (
            "    taskset: {name: gsm8k, path: openai/gsm8k}\n",
            "    tasksets:\n      - {name: a, path: x}\n      - name: b # error: this taskset has no path\n",
        ),
        (
            "    taskset: {name: gsm8k, path: openai/gsm8k}\n",
            "    taskset: {name: gsm8k, path: x}\n"
            "    eval_tasksets:\n      - name: b # error: this eval taskset has no path\n",
        ),
        ("max_model_len: 2048", "max_model_len: '${oc.env:NO_SUCH_LENGTH}' # doubt: NO_SUCH_LENGTH is not set here"),
        (
            "  repeat_times: 8\n",
            "  repeat_times: 8\n  optimizer:\n    betas: ['${oc.env:NO_BETA}', 0.9] # doubt: NO_BETA is not set\n",
        ),
        # and not what Trinity stumbles over when it goes on without it
        (
            "model:\n  model_path: Qwen/Qwen2.5-1.5B-Instruct\n  max_model_len: 2048\n",
            "model: # error: Unable to determine `max_model_len`\n  model_path: none/such\n",
        ),
        (
            "model_path: Qwen/Qwen2.5-1.5B-Instruct",
            "model_path: '${oc.env:NO_SUCH_MODEL}/x' # doubt: NO_SUCH_MODEL is not set here\n"
            "  chat_template_path: '${model.model_path}/y' # doubt: NO_SUCH_MODEL is not set here",
        ),
    ],
)
def test_what_is_meant_is_said_where_it_is(old, new):
    assert old in CLEAN
    assert_marks(CLEAN.replace(old, new))


def test_mode_train_is_told_as_what_it_is():
    text = CLEAN.replace("mode: both", "mode: train").replace(
        "batch_size: 96", "batch_size: 96\n  train_batch_size: 64"
    )
    said = dict(report(text).summary.lines())
    assert said["rollouts"] == "none are made: they come from the experience buffer; trains on 64 a step"
    assert "however old" in said["off-policy"]


def test_a_kl_term_loads_a_reference_model():
    kl = "  repeat_times: 8\n  kl_loss_fn: k3\n  kl_loss_fn_args: {kl_coef: 0.01}\n"
    found = report(CLEAN.replace("  repeat_times: 8\n", kl))
    assert found.findings == []
    assert found.summary.reference_model and found.summary.kl_loss == "k3, coefficient 0.01"
    assert "reference model adds" in found.summary.memory


@pytest.mark.parametrize(
    "settings, bounds, words",
    [
        ("sync_interval: 1", (0, 0), "on-policy"),
        ("sync_interval: 20", (0, 19), "0 to 19 updates old"),
        ("sync_interval: 4\n  sync_offset: 10", (10, 13), "10 to 13 updates old"),
        ("sync_interval: 1000", (0, 159), "offline: all 160 steps"),
        ("sync_style: fully_async", None, "how fast explorer and trainer are"),
    ],
)
def test_off_policyness(settings, bounds, words):
    summary = report(CLEAN.replace("sync_interval: 20", settings)).summary
    assert summary.staleness == bounds
    assert words in summary.off_policy


@pytest.mark.parametrize("args, words", [
    ("clip_mode: none", "A ∇log π, A = r - mean"),
    ("clip_mode: ring", "≤1-ε'_low"),
    ("weight: advantage", "M exp(A / temp) A ∇log π"),
])  # fmt: skip
def test_the_gradient_is_that_of_the_arguments_not_of_the_name(args, words):
    text = CLEAN.replace("  repeat_times: 8\n", f"  repeat_times: 8\n  policy_loss_fn_args: {{{args}}}\n")
    gradient = report(text).summary.gradient
    assert words in gradient and ("M" in gradient) is ("none" not in args)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: [1\n", "run.yaml:2: not readable as YAML"),
        ("mode: both\nmode: train\n", "run.yaml:2: not readable as YAML"),
        ("\tmode: both\n", "run.yaml:1: not readable as YAML"),
        ("- a\n- b\n", "not a Trinity configuration"),
        ("services: {web: {image: nginx}}\n", "not a Trinity configuration"),
        ("", "not a Trinity configuration"),
        ("just words", "not a Trinity configuration"),
        ("a: &x 1\nb: *y\n", "run.yaml:2: not readable as YAML"),
    ],
)
def test_what_is_no_configuration_is_one_line(text, words):
    with pytest.raises(UsageError) as refused:
        report(text)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def test_files_that_cannot_be_read(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name, words in (("none.yaml", "No such file"), ("binary.yaml", "not a text file"), (".", "Is a directory")):
        with pytest.raises(UsageError, match=words):
            Document.read(folder / name)


def test_stages_with_an_algorithm_of_their_own_are_said():
    text = CLEAN + "stages:\n  - stage_name: one\n    algorithm: {algorithm_type: sft} # doubt: not judged here\n"
    assert_marks(text)


@pytest.mark.parametrize("value", ["3", "[1]", "{a: 1}", "${x}", "null"])
@pytest.mark.parametrize("key", ["algorithm_type", "policy_loss_fn_args", "sample_strategy", "kl_loss_fn_args"])
@pytest.mark.parametrize("algorithm_type", ["rec", "trinity_rec.rec_grpo"])
def test_no_value_of_a_wrong_type_makes_it_fall_over(key, value, algorithm_type):
    section = {"algorithm_type": algorithm_type, "repeat_times": "8", key: value}
    text = with_algorithm("".join(f"  {name}: {each}\n" for name, each in section.items()))
    report(text)
    with contextlib.suppress(UsageError):
        switch(Document.parse("run.yaml", text), "rec_grpo")


@pytest.mark.parametrize("section", ["algorithm:", "buffer: 3", "synchronizer:", "stages: {a: 1}", "model: [1]"])
def test_a_section_that_is_no_mapping(section):
    name = section.split(":")[0]
    rest = re.sub(rf"^{name}:.*\n(  .*\n)*", "", CLEAN, flags=re.MULTILINE)
    assert_marks(rest + f"{section} # error: {name}: \n")
