"""The parts of the local backend that a client cannot see one by one: streams, cache, graphs, snapshots, futures."""

import asyncio
import dataclasses
import json
import math
import time
from functools import partial
from queue import Queue
from unittest.mock import Mock, call

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny_model import VOCABULARY, make_tiny_model

pytest.importorskip("tinker", reason="the Tinker SDK needs Python 3.11")

from trinity_rec.tinker_local import futures as futures_module
from trinity_rec.tinker_local import logprobs as logprobs_module
from trinity_rec.tinker_local import sampling as sampling_module
from trinity_rec.tinker_local.connections import Packets
from trinity_rec.tinker_local.errors import RequestError
from trinity_rec.tinker_local.futures import Futures
from trinity_rec.tinker_local.kv_cache import RaggedCache
from trinity_rec.tinker_local.logprobs import hidden_states, token_logprobs, token_logprobs_and_entropies
from trinity_rec.tinker_local.model import ServedModel, load
from trinity_rec.tinker_local.packing import rows_of
from trinity_rec.tinker_local.sampling import BatchSampler, SampleRequest, pick
from trinity_rec.tinker_local.stats import Stats
from trinity_rec.tinker_local.streams import stream_keys, uniform
from trinity_rec.tinker_local.training import AdamParams, Datum, TrainingRun
from trinity_rec.tinker_local.weights import CHECKPOINT, SAMPLER, SnapshotPath, WeightStore

ADAM = AdamParams(1e-3, 0.9, 0.95, 1e-8, 0.0, 0.0)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ServedModel:
    return load(make_tiny_model(tmp_path_factory.mktemp("model"), tied=False), "cpu")


def ragged_batch(sizes: list[int], seed: int = 0) -> list[Datum]:
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for size in sizes:
        tokens = torch.randint(3, VOCABULARY, (size + 1,), generator=generator)
        weights = torch.randn(size, generator=generator)
        weights[: size // 3] = 0
        batch.append(Datum(tokens[:-1], tokens[1:], weights))
    return batch


def gradients(run: TrainingRun) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in run.model.parameters()]


# ---- bfloat16 ----


def test_in_bfloat16_sampler_and_trainer_agree_and_weights_stay_float32(served):
    rounded = dataclasses.replace(served, bf16=True)
    batch = ragged_batch([20, 31], seed=3)
    exact = TrainingRun(served.copy(), 1e9, Stats()).forward(batch)
    run = TrainingRun(rounded.copy(), 1e9, Stats())
    trained = run.forward(batch)
    sampler = rounded.copy(frozen=True)
    for datum, one, other in zip(batch, exact, trained, strict=True):
        wanted = other != 0
        with torch.no_grad():
            hidden = sampler.base_model(input_ids=datum.tokens[None], use_cache=False).last_hidden_state[0]
            sampled = token_logprobs(sampler, hidden, datum.targets)
        assert hidden.dtype == torch.float32
        difference = (other - one)[wanted].abs()
        assert 0 < difference.max() < 0.3 and difference.mean() < 0.03, "rounded, and not more than bfloat16 rounds"
        torch.testing.assert_close(sampled[wanted], other[wanted], atol=2e-3, rtol=0)
    run.forward_backward(batch)
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.any() for p in run.model.parameters())


def test_in_bfloat16_the_sampler_s_logprobs_are_the_trainer_s(served, store):
    rounded = dataclasses.replace(served, bf16=True, stop_ids=())
    sampler = BatchSampler(rounded, store, max_rows=8, stats=Stats())
    run = TrainingRun(rounded.copy(), 1e9, Stats())
    answers = Queue()
    try:
        for prompt in ((5, 6, 7), (9, 4, 11, 12, 8)):  # of different lengths, so that rows stand at different columns
            sampler.submit(
                SampleRequest(None, prompt, samples=3, max_tokens=12, seed=1), partial(note, answers, prompt)
            )
        for _ in range(2):
            prompt, result = answers.get(timeout=60)
            assert not isinstance(result, Exception), result
            for response in result.responses:
                tokens = torch.cat([torch.tensor(prompt), response.tokens])
                weights = torch.cat([torch.zeros(len(prompt) - 1), torch.ones(12)])
                (scored,) = run.forward([Datum(tokens[:-1], tokens[1:], weights)])
                torch.testing.assert_close(response.logprobs, scored[len(prompt) - 1 :], atol=0.05, rtol=0)
    finally:
        sampler.close()


def note(answers, prompt, result):
    answers.put((prompt, result))


# ---- a batch that becomes whole ----


def passes(served, store, ask) -> float:
    """How many passes over prompts a sampler takes for the requests that `ask` submits, given the sampler."""
    stats, answers = Stats(), Queue()
    sampler = BatchSampler(served, store, max_rows=8, stats=stats)
    try:
        for _ in range(ask(partial(sampler.submit, done=answers.put), sampler)):
            assert not isinstance(outcome := answers.get(timeout=60), Exception), outcome
    finally:
        sampler.close()
    return stats.snapshot()["prefill_passes"]


def one_by_one(submit, sampler, awaited: bool) -> int:
    """Three requests with pauses; `awaited` tells after each that its client waits for the answer."""
    for token in (5, 6, 7):
        job = submit(SampleRequest(None, (token, 8)))
        if awaited:
            sampler.await_answer(job)
        time.sleep(0.1)
    return 3


@pytest.mark.parametrize(("seconds", "at_most", "expected"), [(10, 0.5, 1), (0.5, 10, 1), (1e-4, 10, 3), (10, 1e-4, 3)])
def test_a_batch_begins_when_no_more_requests_come(served, store, monkeypatch, seconds, at_most, expected):
    monkeypatch.setattr(sampling_module, "GATHER_SECONDS", seconds)
    monkeypatch.setattr(sampling_module, "GATHER_AT_MOST", at_most)
    assert passes(served, store, partial(one_by_one, awaited=False)) == expected


def test_a_batch_begins_at_once_when_its_clients_wait_for_all_that_they_asked(served, store, monkeypatch):
    monkeypatch.setattr(sampling_module, "GATHER_SECONDS", 1000)
    monkeypatch.setattr(sampling_module, "GATHER_AT_MOST", 1000)
    assert passes(served, store, partial(one_by_one, awaited=True)) == 3


# ---- random streams ----


def test_streams_are_uniform_and_have_nothing_to_do_with_each_other():
    keys = torch.cat([stream_keys(100, seed, "snapshot", (1, 2)) for seed in range(100)])
    assert len(keys.unique()) == len(keys)
    draws = torch.stack([uniform(keys, torch.full_like(keys, count)) for count in range(20)])
    assert draws.min() >= 0 and draws.max() < 1
    counts = torch.histc(draws, 64, 0, 1)
    expected = draws.numel() / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * math.sqrt(2 * 63)
    correlations = torch.corrcoef(draws) - torch.eye(20)
    assert correlations.abs().max() < 5 / math.sqrt(len(keys))


def test_a_stream_is_its_key_and_counter_alone():
    keys = stream_keys(8, 7, None, (1,))
    assert torch.equal(stream_keys(3, 7, None, (1,)), keys[:3])
    assert torch.equal(uniform(keys[5:6], torch.tensor([9])), uniform(keys, torch.full((8,), 9))[5:6])
    for other in ((8, None, (1,)), (7, "a", (1,)), (7, None, (2,))):
        assert not (stream_keys(8, *other) == keys).any()


# ---- the cache ----


@given(kept=st.sets(st.integers(0, 9), min_size=1))
def test_who_stays_in_the_cache_keeps_its_columns(kept):
    cache = RaggedCache()
    layers = [torch.arange(10.0).view(10, 1, 1, 1).expand(10, 2, 3, 4) + 100 * layer for layer in range(2)]

    class Prefilled:
        pass

    prefilled = Prefilled()
    prefilled.layers = [Prefilled(), Prefilled()]
    for layer, values in zip(prefilled.layers, layers, strict=True):
        layer.keys, layer.values = values, -values
    cache.join(prefilled, torch.arange(10))
    order = cache.keep(sorted(kept))
    assert set(order) == kept and cache.rows == len(kept)
    cache.write_at(torch.full((len(kept),), 3), 4)
    fresh = torch.full((len(kept), 2, 1, 4), 7.0)
    for layer in range(2):
        keys, values = cache.update(fresh, fresh, layer)
        assert torch.equal(keys[:, :, :3], layers[layer][order])
        assert torch.equal(values[:, :, :3], -layers[layer][order])
        assert (keys[:, :, 3] == 7).all()


# ---- logprobs and graphs ----


@pytest.mark.parametrize("slice_size", [VOCABULARY, 7 * VOCABULARY, 10**9])
def test_sliced_logprobs_are_those_of_all_logits_with_the_same_gradient(served, monkeypatch, slice_size):
    monkeypatch.setattr(logprobs_module, "LOGITS_SLICE", slice_size)
    model = served.copy().double()
    tokens, weights = torch.randint(3, VOCABULARY, (2, 12)), torch.randn(22, dtype=torch.double)
    targets, results = tokens[:, 1:].flatten(), []
    for sliced in (True, False):
        hidden = hidden_states(model, tokens)[:, :-1].flatten(0, 1)
        if sliced:
            logprobs, entropies = token_logprobs_and_entropies(model, hidden, targets)
            assert torch.equal(logprobs, token_logprobs(model, hidden, targets)) and not entropies.requires_grad
        else:
            every = model.lm_head(hidden).float().log_softmax(-1)
            logprobs, entropies = every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(-1)
        model.zero_grad()
        (logprobs * weights).sum().backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results.append([logprobs.detach(), entropies.detach(), *gradients])
    for ours, plain in zip(*results, strict=True):
        assert torch.allclose(ours, plain, atol=1e-5)


@pytest.mark.parametrize("budget", [0, 3e5, 1e12], ids=["none", "some", "all"])
def test_a_kept_graph_gives_the_gradient_of_a_new_pass(served, monkeypatch, budget):
    monkeypatch.setattr("trinity_rec.tinker_local.training.MICRO_BATCH_TOKENS", {"cpu": 64})
    batch = ragged_batch([3, 30, 17, 9, 28, 5, 21])
    plain = TrainingRun(served.copy(), 0, Stats())
    plain.forward_backward(batch)
    stats = Stats()
    run = TrainingRun(served.copy(), budget, stats)
    run.forward(ragged_batch([40, 3], seed=1))  # something else first, whose graph may have to go
    before = run.forward(batch)
    after, _ = run.forward_backward(batch)
    passes = len(run._micro_batches(batch))
    hits = stats.snapshot().get("graph_hits", 0)
    assert {0: hits == 0, 3e5: 0 < hits < passes, 1e12: hits == passes}[budget]
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(before, after, strict=True))
    assert all(torch.allclose(x, y, atol=1e-6) for x, y in zip(gradients(run), gradients(plain), strict=True))
    run.forward_backward(batch)  # a graph serves once
    assert stats.snapshot().get("graph_hits", 0) == hits


def test_the_measured_graph_is_what_the_graph_holds(served):
    run = TrainingRun(served.copy(), 1e12, Stats())
    run.forward(ragged_batch([32] * 8))
    config = served.base.config
    # At least the inputs of each layer's matrices; at most some dozens of vectors of the layer's widest part.
    widest = 4 * config.num_hidden_layers * config.intermediate_size
    assert widest < run._bytes_per_token < 40 * widest


@pytest.mark.parametrize("change", ["step", "load"])
def test_a_graph_is_not_used_once_the_weights_have_changed(served, change):
    batch, stats = ragged_batch([8, 12]), Stats()
    run = TrainingRun(served.copy(), 1e12, stats)
    if change == "step":
        run.forward_backward(ragged_batch([10], seed=2))
    run.forward(batch)
    if change == "step":
        run.optim_step(ADAM)
    else:
        run.load({name: 0.5 * tensor for name, tensor in run.weights().items()}, None)
    run.forward_backward(batch)
    fresh = TrainingRun(served.copy(), 0, Stats())
    fresh.load(run.weights(), None)
    fresh.forward_backward(batch)
    assert "graph_hits" not in stats.snapshot()
    assert all(torch.equal(x, y) for x, y in zip(gradients(run), gradients(fresh), strict=True))


def test_a_weight_where_the_forward_had_none_is_not_lost(served):
    batch = ragged_batch([12])
    wider = [Datum(batch[0].tokens, batch[0].targets, torch.ones(12))]
    run, fresh = (TrainingRun(served.copy(), 1e12, Stats()) for _ in range(2))
    assert (run.forward(batch)[0][:4] == 0).all()
    run.forward_backward(wider)
    fresh.forward_backward(wider)
    assert all(torch.equal(x, y) for x, y in zip(gradients(run), gradients(fresh), strict=True))


def test_without_any_weight_all_logprobs_are_wanted_and_the_gradient_is_zero(served):
    tokens = ragged_batch([9])[0]
    nothing = [Datum(tokens.tokens, tokens.targets, torch.zeros(9))]
    run = TrainingRun(served.copy(), 1e12, Stats())
    assert (run.forward(nothing)[0] < 0).all()
    run.forward_backward(nothing)
    assert all((gradient == 0).all() for gradient in gradients(run))
    run.optim_step(ADAM)
    assert all(torch.equal(run.weights()[name], tensor) for name, tensor in served.base.state_dict().items())


# ---- drawing ----


@pytest.mark.parametrize("vocabulary", [5, 256, 1000, 5000])
def test_a_token_is_picked_where_the_running_mass_exceeds_the_share(vocabulary):
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(64, vocabulary, generator=generator) ** 8
    mass[mass < 1e-4] = 0
    mass[:, vocabulary // 2] += 1e-3
    uniforms = torch.rand(64, generator=generator, dtype=torch.double)
    uniforms[0], uniforms[1] = 0.0, 1 - 2.0**-52
    mass[0, : vocabulary // 2] = mass[1, vocabulary // 2 :] = 0  # what has no mass is not picked at the ends either
    mass[:2, vocabulary // 2 - 1 : vocabulary // 2 + 1] += 1e-3
    mass[0, vocabulary // 2 - 1] = mass[1, vocabulary // 2] = 0
    cumulated = mass.double().cumsum(-1)
    expected = (cumulated <= uniforms[:, None] * cumulated[:, -1:]).sum(-1)
    assert (pick(mass, uniforms) == expected).all()
    assert (mass[torch.arange(64), expected] > 0).all()


# ---- shared rows ----


def group(prompt: int, responses: list[int], seed: int) -> list[Datum]:
    """Responses to one prompt, with weights from the token that predicts the response on."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(3, VOCABULARY, (prompt,), generator=generator)
    batch = []
    for response in responses:
        tokens = torch.cat([start, torch.randint(3, VOCABULARY, (response,), generator=generator)])
        weights = torch.cat([torch.zeros(prompt - 1), torch.randn(response, generator=generator)])
        batch.append(Datum(tokens[:-1], tokens[1:], weights))
    return batch


def test_responses_to_one_prompt_share_it_and_nothing_else_changes(served, monkeypatch):
    batch = group(40, [7, 1, 19, 30], seed=0) + group(9, [50, 3], seed=1) + group(25, [12, 12, 12], seed=2)
    batch = [batch[index] for index in torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))]
    outcomes = []
    for limit in (0, 512):  # nothing shared, and as it is
        monkeypatch.setattr("trinity_rec.tinker_local.packing.SHARED_ROW_TOKENS", limit)
        stats = Stats()
        run = TrainingRun(served.copy(), 1e12, stats)
        forward = run.forward(batch)
        logprobs, loss = run.forward_backward(batch)
        outcomes.append((forward, logprobs, loss, gradients(run), stats.snapshot()))
    alone, shared = outcomes
    for theirs, ours in zip(alone[0] + alone[1], shared[0] + shared[1], strict=True):
        assert torch.allclose(theirs, ours, atol=1e-5)
    assert shared[2] == pytest.approx(alone[2], rel=1e-5)
    for theirs, ours in zip(alone[3], shared[3], strict=True):
        assert torch.allclose(theirs, ours, atol=1e-4 * float(theirs.abs().max()) + 1e-6)
    assert shared[4]["forward_tokens"] == alone[4]["forward_tokens"]


def test_a_shared_prompt_is_computed_once(served):
    stats = Stats()
    run = TrainingRun(served.copy(), 1e12, stats)
    run.forward(group(60, [10] * 8, seed=3))
    # The last token of a response is only ever a target.
    assert stats.snapshot()["forward_positions"] == 60 + 8 * 9


@pytest.mark.parametrize("prompt, responses", [(600, 20), (2, 60)], ids=["too long a row", "nothing to save"])
def test_a_prompt_is_not_shared_where_that_costs_more(prompt, responses):
    tokens = [torch.arange(prompt + responses)] * 4
    assert [row.shared for row in rows_of(tokens, [prompt] * 4)] == [0] * 4


# ---- snapshots ----


@pytest.fixture
def store(tmp_path) -> WeightStore:
    return WeightStore(tmp_path / "root", keep=2)


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.full((3,), value)}


@pytest.mark.parametrize(
    "uri",
    [
        "x",
        "tinker://a/weights",
        "tinker://a/weights/b/c",
        "tinker://../weights/x",
        "tinker://a/weights/..",
        "tinker:///",
        "tinker://a/b/c",
        "tinker://a/weights/.hidden",
        "tinker://a/weights/x\x00",
        "tinker://a/weights/" + "x" * 201,
        "tinker://a/" + "\x00" * 5000 + "/x",
        "\U000e0001" * 5000,
    ],
)
def test_a_path_stays_inside_the_root_and_else_gets_a_short_reason(uri):
    with pytest.raises(RequestError) as refused:
        SnapshotPath.parse(uri)
    assert len(refused.value.reason) < 1000


def test_a_link_out_of_the_root_is_not_followed(store, tmp_path):
    (tmp_path / "outside").mkdir()
    (store.root / "run").symlink_to(tmp_path / "outside")
    for act in (store.load, lambda path: store.save(path, weights(1))):
        with pytest.raises(RequestError, match="not inside"):
            act(SnapshotPath("run", SAMPLER, "x"))
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("harm", ["cut", "flip", "no manifest", "bad manifest"])
def test_a_damaged_snapshot_is_not_loaded(store, harm):
    path = SnapshotPath("run", CHECKPOINT, "x")
    store.save(path, weights(1), {"state": {}})
    assert torch.equal(store.load(path)["w"], weights(1)["w"]) and store.load_optimizer(path) == {"state": {}}
    file, manifest = (store.directory(path) / name for name in ("weights.safetensors", "manifest.json"))
    content = file.read_bytes()
    if harm == "cut":
        file.write_bytes(content[:-1])
    elif harm == "flip":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps({"files": []}))
    with pytest.raises(RequestError, match="no such weights" if harm == "no manifest" else "damaged"):
        store.load(path)


def test_a_failed_save_leaves_nothing(store, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("trinity_rec.tinker_local.weights.save_file", fail)
    with pytest.raises(RequestError, match="full"):
        store.save(SnapshotPath("run", SAMPLER, "x"), weights(1))
    assert not [entry for entry in store.root.rglob("*") if entry.is_file() and entry.name != ".lock"]


def test_what_a_killed_server_left_half_written_goes(store):
    leftover = store.root / "run" / SAMPLER / ".writing-1"
    leftover.mkdir(parents=True)
    store.close()
    WeightStore(store.root, keep=2).close()
    assert not leftover.exists()


def names(store: WeightStore, run: str = "run") -> set[str]:
    """What lies on the disk, whoever may still ask for it."""
    return {entry.name for entry in store.root.glob(f"{run}/*/*") if not entry.name.startswith(".")}


def test_a_deleted_snapshot_lives_on_while_it_may_be_asked_for(store):
    first, second, third = (SnapshotPath("run", SAMPLER, name) for name in ("1", "2", "3"))
    for step, path in enumerate((first, second)):
        store.save(path, weights(step))
    store.delete(store.find("run", "1"), in_use=())
    assert store.exists(first), "the explorer may not yet know of the second"
    assert [snapshot.path for snapshot in store.snapshots()] == [second]
    with pytest.raises(RequestError, match="no snapshot"):
        store.find("run", "1")
    store.save(third, weights(3), in_use={first})
    assert store.exists(first), "it is sampled from"
    store.close()
    store = WeightStore(store.root, keep=2)  # a new server knows what was deleted
    assert not store.exists(first) and store.exists(second) and store.exists(third)
    assert torch.equal(store.load(second)["w"], weights(1)["w"])


def test_a_deleted_checkpoint_goes_at_once_unless_it_is_in_use(store):
    path = SnapshotPath("run", CHECKPOINT, "only")
    store.save(path, weights(1))
    store.delete(path, in_use={path})
    assert store.exists(path)
    store.sweep("run", ())
    assert not store.exists(path) and not names(store)


def test_what_has_a_name_stays_and_of_the_rest_the_newest(store):
    for step in range(6):
        for kind in (SAMPLER, CHECKPOINT):
            store.save(SnapshotPath("run", kind, f"named-{step}"), weights(step))
            store.save(SnapshotPath("run", kind, f"nameless-{step}"), weights(step), named=False)
    named = {f"named-{step}" for step in range(6)}
    assert names(store) == named | {"nameless-5"}  # with named-5 the newest two of each kind
    store.sweep_all(())
    assert {snapshot.path.name for snapshot in store.snapshots("run")} == named | {"nameless-5"}


def test_a_snapshot_goes_when_its_time_is_over(store, monkeypatch):
    now = 1e9
    monkeypatch.setattr("trinity_rec.tinker_local.weights.time.time", lambda: now)
    short, long, changed = (SnapshotPath("run", CHECKPOINT, name) for name in ("short", "long", "changed"))
    store.save(short, weights(1), ttl_seconds=10)
    store.save(long, weights(2), ttl_seconds=100)
    store.save(changed, weights(3), ttl_seconds=10)
    store.set_ttl(changed, None)
    assert {each.path.name: each.expires for each in store.snapshots()} == {
        "short": now + 10,
        "long": now + 100,
        "changed": None,
    }
    now += 10
    assert not store.exists(short) and store.exists(long) and store.exists(changed)
    store.sweep("run", in_use={short})
    assert "short" in names(store), "it is still sampled from"
    store.sweep("run", ())
    assert names(store) == {"long", "changed"}
    store.set_ttl(long, 5)
    now += 5
    assert [each.path for each in store.snapshots()] == [changed]


def test_beyond_the_budget_a_save_fails_and_nothing_else_goes(tmp_path):
    big = {"w": torch.zeros(250)}  # 1,000 bytes, and some for the manifest
    store = WeightStore(tmp_path / "root", keep=2, budget=5_500)
    for step in range(2):
        store.save(SnapshotPath("run", CHECKPOINT, f"{step}"), big)
        store.save(SnapshotPath("run", SAMPLER, f"{step}"), big, named=step == 0)
    before = names(store)
    with pytest.raises(
        RequestError, match=r"not saved: it takes 2e-06 GB, .* of the 5.5e-06 GB .*--disk-budget-gb"
    ) as full:
        store.save(
            SnapshotPath("run", CHECKPOINT, "more"), {"w": torch.zeros(250)}, {"state": {0: {"m": torch.zeros(250)}}}
        )
    assert full.value.status == 507 and names(store) == before and "\n" not in str(full.value)
    store.delete(SnapshotPath("run", SAMPLER, "0"), in_use=())
    assert "0" in {each.name for each in (store.root / "run" / SAMPLER).iterdir()}, "kept for who has not heard of it"
    store.save(SnapshotPath("run", CHECKPOINT, "more"), big)
    assert not (store.root / "run" / SAMPLER / "0").exists(), "but not at the price of a save"


def test_overwriting_needs_leave(store):
    path = SnapshotPath("run", CHECKPOINT, "x")
    store.save(path, weights(1))
    with pytest.raises(RequestError, match="exists already"):
        store.save(path, weights(2))
    store.save(path, weights(3), overwrite=True)
    assert torch.equal(store.load(path)["w"], weights(3)["w"])


# ---- answers ----


def test_what_is_written_in_one_turn_is_sent_together_and_before_the_end():
    sent = Mock(**{"is_closing.return_value": False})

    async def write() -> None:
        packets = Packets(sent, asyncio.get_running_loop())
        packets.write(b"headers")
        packets.write(b"body")
        await asyncio.sleep(0)
        packets.write(b"goodbye")
        packets.close()
        await asyncio.sleep(0)
        sent.is_closing.return_value = True
        packets.write(b"to nobody")
        await asyncio.sleep(0)

    asyncio.run(write())
    done = [each for each in sent.mock_calls if each[0] != "is_closing"]
    assert done == [call.writelines([b"headers", b"body"]), call.writelines([b"goodbye"]), call.close()]


def test_answers_are_bounded_and_the_oldest_go_first(monkeypatch):
    monkeypatch.setattr(futures_module, "MAX_FINISHED", 3)
    monkeypatch.setattr(futures_module, "MAX_PENDING", 2)

    async def scenario():
        futures, loop = Futures(), asyncio.get_running_loop()
        pending = loop.create_future()
        futures.add("pending", pending)
        assert await futures.answer("pending", 0.01) is None
        for number in range(5):
            future = loop.create_future()
            futures.add(str(number), future)
            with pytest.raises(RequestError) as full:
                futures.check_room()
            assert full.value.status == 429
            future.set_result(b"%d" % number)
            assert await futures.answer(str(number), 1) == b"%d" % number
        with pytest.raises(RequestError) as gone:
            await futures.answer("1", 1)
        assert gone.value.status == 410 and await futures.answer("2", 1) == b"2"
        pending.cancel()
        assert "stopping" in (await futures.answer("pending", 1))["error"]

    asyncio.run(scenario())
