"""Malformed configurations, counted: each is one clear line a mistake, by `trinity-rec check` and, where the plugin is
asked, by the check that `trinity run` makes before Ray starts."""

from __future__ import annotations

import copy
import io
import re
import socket
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import ray
import yaml
from omegaconf import OmegaConf
from trinity.common.config import Config
from trinity.common.config_validator import AlgorithmConfigValidator

from trinity_rec.cli import main

CLEAN = yaml.safe_load("""
mode: both
checkpoint_root_dir: ./checkpoints
algorithm: {algorithm_type: trinity_rec.rec_oneside_nois, repeat_times: 8}
model: {model_path: Qwen/Qwen2.5-1.5B-Instruct, max_model_len: 2048}
cluster: {node_num: 1, gpu_per_node: 8}
buffer: {batch_size: 96, total_steps: 160, explorer_input: {taskset: {name: gsm8k, path: openai/gsm8k}}}
explorer: {rollout_model: {engine_num: 4}}
synchronizer: {sync_interval: 20}
""")

LOSS, ADVANTAGE, STRATEGY = (
    f"algorithm.{key}" for key in ("policy_loss_fn_args", "advantage_fn_args", "sample_strategy_args")
)
SCHEMA = OmegaConf.structured(Config)
LONG = "x" * 100_000

# Values that no number may have, and what is said of them.
NOT_NUMBERS = ("wide", "0,2", "[0.2]", "{a: 1}", "true", ".nan", "-.inf", '"0.2"', "2026-01-01")


def each(key: str, values: tuple[str, ...], words: str = "") -> list[tuple[dict[str, str], str]]:
    return [({key: value}, words) for value in values]


# What the plugin's own check refuses, as settings in YAML over CLEAN, with words of the message.
PLUGIN: list[tuple[dict[str, str], str]] = [
    # misspelt and unknown arguments
    *[
        ({f"{section}.{wrong}": "1"}, right)
        for section, pairs in {
            LOSS: {
                "epsilon_hgih": "'epsilon_high'",
                "epsilonlow": "'epsilon_low'",
                "clip_range": "clip_mode",
                "wieght": "'weight'",
                "regulariser": "'regularizer'",
                "temperature": "temp",
                "Metrics": "'metrics'",
                "ε": "known are",
                "objective": "known are",
                "self": "known are",
                "1": "known are",
            },
            ADVANTAGE: {
                "std_normalise": "'std_normalize'",
                "dorp": "'drop'",
                "epsilom": "'epsilon'",
                "group_size": "known are",
                "baseline": "known are",
            },
            STRATEGY: {"bakcend": "'backend'", "decay": "backend"},
        }.items()
        for wrong, right in pairs.items()
    ],
    # values of another type, or out of range
    *each(
        f"{LOSS}.clip_mode", ("one_side", "1", "[one-side]", "null", "{}", '"one-side "', "ONE-SIDE", LONG), "not one"
    ),
    *each(f"{LOSS}.weight", ("is", "true", "null", "[none]", "重み"), "weight="),
    *each(f"{LOSS}.regularizer", ("k1", "kl", "false", "null"), "regularizer="),
    *each(f"{LOSS}.metrics", ("all", "3", "null"), "metrics="),
    *each(f"{LOSS}.epsilon_low", (*NOT_NUMBERS, "0", "-0.2", "1.5", "1e400", ".inf", "null"), "epsilon_low="),
    *each(f"{LOSS}.epsilon_high", (*NOT_NUMBERS, "0", "-1e-9", "null"), "epsilon_high="),
    *each(f"{LOSS}.epsilon_low_prime", ("0", "2", "wide"), "epsilon_low_prime="),
    *each(f"{LOSS}.epsilon_high_prime", ("-2", "null", "wide"), "epsilon_high_prime="),
    *each(f"{LOSS}.temp", ("0", "-1", "warm", ".nan", "null"), "temp="),
    *each(f"{LOSS}.regularizer_coef", ("-0.1", ".inf", "much", "null", "[]"), "regularizer_coef="),
    *each(f"{LOSS}.loss_scale_factor", ("0", "-1", ".inf", "tokens"), "loss_scale_factor="),
    *each(f"{LOSS}.sample_weight", ("1", "yes please"), "sample_weight"),
    *each(f"{LOSS}.loss_agg_mode", ("mean", "7", "[token-mean]"), "loss_agg_mode="),
    *each("algorithm.loss_agg_mode", ("mean", "token_mean", "sum"), "loss_agg_mode"),
    *each(f"{ADVANTAGE}.drop", ("half", "true", "0.5", "[balance]"), "drop="),
    *each(f"{ADVANTAGE}.drop_form", ("mask", "null", "{}"), "drop_form="),
    *each(f"{ADVANTAGE}.std_normalize", ("2", '"true"', "[true]"), "std_normalize="),
    *each(f"{ADVANTAGE}.epsilon", ("-1", ".nan", "small", "null", "[]"), "epsilon="),
    *each(f"{ADVANTAGE}.pairwise", ("all", "1", "{}"), "pairwise="),
    *each(f"{ADVANTAGE}.pairwise_temp", ("0", "-1", ".inf", "null"), "pairwise_temp="),
    *each(f"{ADVANTAGE}.reweight", ("always", "true"), "reweight="),
    *each(f"{ADVANTAGE}.reweight_floor", ("0", ".inf", "low"), "reweight_floor="),
    *each(f"{ADVANTAGE}.seed", ("0.5", "true", "null", "lucky"), "seed="),
    # contradictions
    ({f"{LOSS}.clip_mode": "ring", f"{LOSS}.epsilon_low": "0.3", f"{LOSS}.epsilon_low_prime": "0.2"}, "enclose"),
    ({f"{LOSS}.clip_mode": "ring", f"{LOSS}.epsilon_high": "3", f"{LOSS}.epsilon_high_prime": "2"}, "enclose"),
    ({"algorithm.loss_agg_mode": "seq-mean-token-sum-norm"}, "loss_scale_factor"),
    ({f"{ADVANTAGE}.pairwise": "uniform", f"{ADVANTAGE}.drop": "balance"}, "does not go with"),
    ({f"{ADVANTAGE}.pairwise": "product", f"{ADVANTAGE}.std_normalize": "true"}, "does not go with"),
    ({"model.tinker.enable": "true", "model.temperature": "0.7"}, "temperature 1"),
    (
        {
            "model.tinker.enable": "true",
            "buffer.explorer_input.taskset": "{name: a, path: b, rollout_args: {temperature: 0}}",
        },
        "temperature 1",
    ),
    # sample strategies
    *[
        ({"algorithm.sample_strategy": f"trinity_rec.{name}SampleStrategy", f"{STRATEGY}.{key}": value}, words)
        for name, key, values, words in (
            ("Informative", "refill", ("1", "maybe"), "refill="),
            ("Informative", "refill", ("true",), "would starve"),
            ("Informative", "max_reads", ("0", "1.5", "true", "many"), "max_reads="),
            ("Informative", "max_raeds", ("1",), "'max_reads'"),
            ("Balanced", "seed", ("0.5", "lucky"), "seed="),
            ("Staleness", "decay", ("0", "1.1", "-1", ".nan", "slow", "null"), "decay="),
            ("Staleness", "max_staleness", ("-1", "0.5", "old"), "max_staleness="),
            ("Offline", "batches", ("0", "-3", "2.5", "null", "all"), "batches="),
            ("Offline", "batches", ("21", "1000000000000"), "initial policy"),
        )
        for value in values
    ],
    *each("algorithm.sample_strategy", ("trinity_rec.BalancedSampleStrateg", "trinity_rec.no.such"), "trinity_rec"),
    *each("algorithm.policy_loss_fn", ("trinity_rec.RECPolicyLos",), "trinity_rec.RECPolicyLoss?"),
    *each("algorithm.advantage_fn", ("trinity_rec.Advantage",), "trinity_rec.RECAdvantage?"),
    # counts
    *each("algorithm.repeat_times", ("0", "-8"), "repeat_times"),
    *each("model.max_model_len", ("-1", "0"), "max_model_len"),
    *each("buffer.batch_size", ("0", "-96"), "batch_size"),
    *each("buffer.train_batch_size", ("-1",), "train_batch_size"),
    # a KL term
    *each("algorithm.kl_loss_fn_args.kl_coef", ("much", "[1]", "-1", ".nan"), "kl_coef"),
]

# What `trinity-rec check` refuses besides: it also reads what Trinity itself would stumble over.
REST: list[tuple[dict[str, str], str]] = [
    *each("algorithm.algorithm_type", ("trinity_rec.rec_oneside_nios",), "trinity_rec.rec_oneside_nois"),
    *each(
        "algorithm.algorithm_type", ("xyzzy", '""', "trinity_rec.", "trinity_rec", "рек", "rec_grpo2"), "no algorithm"
    ),
    *each("algorithm.algorithm_type", ("..", ".", "a..b", "os.system", "trinity_rec.RECPolicyLoss"), "algorithm"),
    *each("algorithm.algorithm_type", (r'"(\n\n."',), "cannot be imported"),  # found by the fuzzer
    *each("algorithm.algorithm_type", ("[rec_grpo]", "{a: 1}"), "wrong type"),
    *each("algorithm.algorithm_type", (LONG,), "no algorithm"),
    *each("algorithm.algorithm_type", ("null",), "algorithm_type"),
    *each("algorithm.repeat_times", ("many", "0.5", "[8]", "null"), "repeat_times"),
    *each("algorithm.optimizer", ("adam", "3", "[1]"), "expected a mapping"),
    *each("algorithm.optimizer.lr", ("fast", "[1e-6]", "{}"), "expected a number"),
    *each("algorithm.optimizr", ("{lr: 1}",), "optimizer"),
    *each("algorithm.optimizer.betas", ("0.9", "[a, b]"), "betas"),
    *each(LOSS, ("1", "[epsilon_low]", "wide"), "expected a mapping"),
    *each(ADVANTAGE, ("1", "[]", "drop"), "expected a mapping"),
    *each(STRATEGY, ("1", "[]", "seed"), "expected a mapping"),
    *each("algorithm.policy_loss_fn", ("no_such_loss", "no.such.Loss"), "policy_loss_fn"),
    *each("algorithm.advantage_fn", ("no_such", "torch.no_such"), "advantage_fn"),
    *each("algorithm.kl_loss_fn", ("k9", "a.b"), "kl_loss_fn"),
    *each("algorithm.entropy_loss_fn", ("k9",), "entropy_loss_fn"),
    *each("algorithm", ("1", "[]", "rec_grpo", "null"), "algorithm"),
    *each("synchronizer.sync_method", ("60",), "60 has the wrong type; expected"),  # found by the fuzzer
    *each("algoritm", ("{algorithm_type: rec}",), "did you mean algorithm?"),
    *each("mode", ("train_both", "[both]", "1", "null", '""'), "mode"),
    *each("model", ("1", "qwen"), "expected a mapping"),
    *each("model.max_model_len", ("long", "2k", "[2048]"), "expected a whole number"),
    *each("model.temperature", ("warm",), "expected a number"),
    *each("model.tinker", ("true",), "expected a mapping"),
    *each("model.tinker.enable", ("maybe", "[]"), "expected true or false"),
    *each("buffer.batch_size", ("many", "1.5", "{}"), "batch_size"),
    *each("buffer.explorer_input", ("gsm8k",), "expected a mapping"),
    *each("buffer.explorer_input.taskset", ("gsm8k", "[gsm8k]"), "expected a mapping"),
    *each("buffer.explorer_input.tasksts", ("[]",), "tasksets"),
    *each("buffer.explorer_input.tasksets", ("[1]", "[[]]"), "expected"),
    *each("synchronizer.sync_interval", ("often", "1.5"), "sync_interval"),
    *each("synchronizer.sync_interval", ("0", "-1"), "sync_interval"),
    *each("synchronizer.sync_method", ("carrier_pigeon",), "sync_method"),
    *each("synchronizer.sync_style", ("sometimes",), "sync_style"),
    *each("synchronizer.sync_intervall", ("1",), "sync_interval"),
    *each("cluster.node_num", ("one",), "node_num"),
    *each("trainer.trainer_type", ("none_such",), "trainer"),
    *each("explorer.rollout_model.engine_num", ("four",), "engine_num"),
    *each("stages", ("1", "{}"), "stages"),
    *each("${mode}", ("1",), "unknown key"),
    *each("キー", ("1",), "unknown key"),
    *each("checkpoint_root_dir", ("${oc.env:}", "${nosuch:x}", "${mode.a}"), "checkpoint_root_dir"),
    *each("checkpoint_root_dir", ("${", "${oc.env:HOME"), "not readable as YAML"),
]

# Files that are not a mapping, not YAML, or not text.
FILES: dict[str, bytes] = {
    "empty": b"",
    "blank": b"\n\n \n",
    "comment": b"# nothing\n",
    "null": b"null\n",
    "list": b"- mode: both\n",
    "scalar": b"rec_grpo\n",
    "number": b"42\n",
    "quoted number": b"'1'",  # for OmegaConf a text to be read once more
    "json list": b"[1, 2]",
    "other keys": b"model_name: x\nlearning_rate: 1\n",
    "number keys": b"1: 2\n",
    "tab": b"mode:\n\tboth\n",
    "unclosed list": b"mode: [both\n",
    "unclosed quote": b'mode: "both\n',
    "unclosed mapping": b"{mode: both\n",
    "wrong indent": b"mode: both\n  algorithm: x\n",
    "duplicate key": b"mode: both\nmode: train\n",
    "two documents": b"mode: both\n---\nmode: train\n",
    "undefined alias": b"mode: *m\n",
    "endless alias": b"mode: &m [*m]\n",
    "unknown tag": b"mode: !!python/object/apply:os.system ['true']\n",
    "own tag": b"mode: !mine both\n",
    "binary": b"\x00\x01\x02\xff",
    "latin-1": "mode: gro\xdf".encode("latin-1"),
    "utf-16": "mode: both".encode("utf-16"),
    "control": b"mode: \x07both\n",
    "bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in range(98, 106)),
    "deep": b"[" * 3000,
    "deep mapping": b"algorithm: " + b"{a: " * 2000,
    "percent": b"%YAML 9.9\n---\nmode: both\n",
    "merge": b"<<: 1\nmode: both\n",
}


def document(settings: dict[str, str]) -> str:
    data = copy.deepcopy(CLEAN)
    for path, text in settings.items():
        *parents, last = [path] if path.startswith("$") else path.split(".")
        place = data
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = yaml.safe_load(text)
    return yaml.safe_dump(data, allow_unicode=True)


def name_of(case) -> str:
    return (
        ", ".join(f"{key.rpartition('.')[2]}={value[:20]}" for key, value in case.items())
        if isinstance(case, dict)
        else ""
    )


@pytest.fixture(autouse=True)
def nothing_is_started(monkeypatch, tmp_path):
    def refuse(*args, **kwargs):
        raise AssertionError("a check opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.chdir(tmp_path)


def checked(path: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `trinity-rec check`, in this process."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with mock.patch("sys.argv", ["trinity-rec", "check", str(path)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
    return code, *(stream.buffer.getvalue().decode() for stream in (out, err))


def assert_said_in_lines(path: Path, words: str) -> None:
    code, out, err = checked(path)
    assert code == 1, out
    assert "Traceback" not in out + err
    lines = [line for line in (out + err).splitlines() if "error: " in line]
    assert lines, out + err
    for line in lines:
        assert re.match(rf"(error: )?{re.escape(path.name)}(:\d+)?: |error: ", line), line
        assert len(line) < 1000, f"{len(line)} characters: {line[:300]}"
    assert any(words.rstrip("=") in line for line in lines), lines


@pytest.mark.parametrize("settings, words", PLUGIN + REST, ids=name_of)
def test_check_says_what_is_wrong(settings, words, tmp_path):
    Path("run.yaml").write_text(document(settings), encoding="utf-8")
    assert_said_in_lines(Path("run.yaml"), words)


@pytest.mark.parametrize("name", FILES)
def test_check_says_what_is_wrong_with_a_file(name):
    Path("run.yaml").write_bytes(FILES[name])
    assert_said_in_lines(Path("run.yaml"), "")


@pytest.mark.parametrize("settings, words", PLUGIN, ids=name_of)
def test_trinity_run_says_what_is_wrong_before_ray_starts(settings, words):
    config = OmegaConf.to_object(OmegaConf.merge(SCHEMA, OmegaConf.create(document(settings))))
    with pytest.raises(ValueError) as caught:
        AlgorithmConfigValidator().validate(config)
    message = str(caught.value)
    assert words in message and "\n" not in message and len(message) < 1000
    assert re.match(r"[a-z_]+(\.[\w()-]+)+", message), message


def test_there_are_enough_of_them():
    assert len(PLUGIN) + len(REST) + len(FILES) >= 150
    documents = {document(settings) for settings, _ in PLUGIN + REST}
    assert len(documents) == len(PLUGIN + REST)
