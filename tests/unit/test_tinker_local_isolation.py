"""One bad sampling request hurts only itself: generated requests, and failures that no check of the wire foresees."""

import dataclasses
from collections import Counter
from functools import partial
from queue import Queue
from random import Random

import pytest
import torch
from pydantic import ValidationError

from tests.tiny_model import VOCABULARY, make_tiny_model

pytest.importorskip("tinker", reason="the Tinker SDK needs Python 3.11")

from trinity_rec.tinker_local import wire
from trinity_rec.tinker_local.errors import RequestError
from trinity_rec.tinker_local.model import ServedModel, load
from trinity_rec.tinker_local.sampling import BatchSampler, SampleRequest, SampleResult
from trinity_rec.tinker_local.stats import Stats
from trinity_rec.tinker_local.weights import SAMPLER, SnapshotPath, WeightStore

GENERATED = 10_000
AT_A_TIME = 50
GOOD = SampleRequest(None, (5, 6, 7), samples=2, max_tokens=6, seed=11, temperature=0.9, top_k=50, top_p=0.95)


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> ServedModel:
    return load(make_tiny_model(tmp_path_factory.mktemp("model")), "cpu")


@pytest.fixture
def store(tmp_path) -> WeightStore:
    return WeightStore(tmp_path / "root", keep=2)


@pytest.fixture
def sampler(served, store):
    sampler = BatchSampler(served, store, max_rows=64, stats=Stats())
    yield sampler
    sampler.close()


def answers(sampler: BatchSampler, requests: list[SampleRequest]) -> list[SampleResult | Exception]:
    """What becomes of requests that come at the same time, in their order; each must be answered exactly once."""
    queue: Queue = Queue()
    for index, request in enumerate(requests):
        sampler.submit(request, partial(lambda index, outcome: queue.put((index, outcome)), index))
    found = dict(queue.get(timeout=60) for _ in requests)
    assert len(found) == len(requests) and queue.empty()
    return [found[index] for index in range(len(requests))]


def tokens(result: SampleResult | Exception) -> list[list[int]]:
    assert isinstance(result, SampleResult), repr(result)
    return [response.tokens.tolist() for response in result.responses]


NUMBERS = (
    *(-3, -1, 0, 1, 2, 1000, 2**31 - 1, 2**31, 2**63 - 1, 2**63, 2**64, -(2**63), -(2**63) - 1, 10**400),
    *(-1.0, -0.0, 1e-320, 1e-38, 1e-9, 1e-6, 1e-4, 0.5, 100.0, 101.0, 1e38, 1e300, float("nan"), float("inf")),
)
TEXTS = ("", "a", " the", "\x00", "\ud800", "a\udfff", "ﷺ" * 200, "é" * 1001, "🙂")


def generated(chance: Random) -> dict:
    """A sampling request with every setting drawn, one or two of which may be anything."""
    token = partial(chance.randrange, VOCABULARY)
    stops = [None, chance.choice(TEXTS), [token(), token()], [chance.choice(TEXTS[1:3]), "é"]]
    params = {
        "max_tokens": chance.randint(1, 6),
        "temperature": chance.choice([0, 1e-4, 1.0, chance.uniform(0.1, 100)]),
        "top_k": chance.choice([-1, 0, 1, chance.randrange(2**63)]),
        "top_p": chance.choice([1, 1e-6, chance.uniform(0.01, 1)]),
        "seed": chance.choice([None, chance.randrange(-(2**63), 2**64)]),
        "stop": chance.choice(stops),
    }
    body = {
        "sampling_session_id": "x",
        "prompt": {"chunks": [{"tokens": [token() for _ in range(chance.randint(1, 12))]}]},
        "sampling_params": params,
        "num_samples": chance.randint(1, 3),
        "prompt_logprobs": chance.choice([None, True, False]),
        "topk_prompt_logprobs": chance.choice([None, 0, chance.randint(1, 1000)]),
    }
    for _ in range(chance.choice([0, 0, 1, 1, 2])):
        anything = chance.choice([chance.choice(NUMBERS), chance.choice(NUMBERS), chance.choice(TEXTS), [], {}, True])
        anything = chance.choice([anything, anything, [anything], [chance.choice(NUMBERS), chance.choice(TEXTS)]])
        where = chance.choice([params, params, body, body["prompt"]["chunks"][0]])
        where[chance.choice([name for name in where if name not in ("prompt", "sampling_params")])] = anything
    return body


def test_no_generated_request_makes_another_one_fail(served, sampler):
    (alone,) = map(tokens, answers(sampler, [GOOD]))
    chance, seen = Random(0), Counter()
    for _ in range(GENERATED // AT_A_TIME):
        accepted = [GOOD]
        for body in (generated(chance) for _ in range(AT_A_TIME)):
            try:
                request = wire.Asample.model_validate(body).request(None, served)
            except (ValidationError, RequestError):
                seen["refused"] += 1
                continue
            if request.samples > sampler.max_rows:
                with pytest.raises(RequestError, match="limit is"):
                    sampler.submit(request, lambda _: None)
                seen["refused"] += 1
            else:
                accepted.append(dataclasses.replace(request, max_tokens=min(request.max_tokens, 8)))
                seen["sampled"] += 1
        first, *others = answers(sampler, accepted)
        assert tokens(first) == alone
        for request, result in zip(accepted[1:], others, strict=True):
            assert len(tokens(result)) == request.samples
            assert all(response.logprobs.isfinite().all() for response in result.responses)
    assert seen.total() == GENERATED and min(seen.values()) > GENERATED / 5, seen
    assert not sampler.stats.snapshot().get("sample_parts"), "what the wire lets in does not fail in the sampler"


# What the wire refuses, brought past it; and what it cannot know.
BAD = {
    "top_k beyond int64": dataclasses.replace(GOOD, top_k=2**63),
    "temperature that overflows": dataclasses.replace(GOOD, temperature=1e-38),
    "half a surrogate pair": dataclasses.replace(GOOD, stop_strings=("\ud800",)),
    "token outside the vocabulary": dataclasses.replace(GOOD, prompt=(5, VOCABULARY + 7)),
    "too many top logprobs": dataclasses.replace(GOOD, top_prompt_logprobs=VOCABULARY + 1),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
@pytest.mark.parametrize("place", [0, 7, 19])
def test_a_failure_in_a_batch_is_found_to_its_request_and_the_others_are_sampled(sampler, bad, place):
    good = [dataclasses.replace(GOOD, seed=seed, max_tokens=3 + seed % 5) for seed in range(19)]
    alone = [tokens(answers(sampler, [request])[0]) for request in good]
    together = answers(sampler, [*good[:place], bad, *good[place:]])
    reason = together.pop(place)
    assert isinstance(reason, Exception) and str(reason)
    if bad.temperature == GOOD.temperature:  # otherwise it is seen in the row itself
        assert sampler.stats.snapshot()["sample_parts"] >= 1, "nothing failed in a batch"
    assert [tokens(result) for result in together] == alone
    assert tokens(answers(sampler, [good[3]])[0]) == alone[3]


def test_several_bad_requests_in_one_batch_are_all_found(sampler):
    alone = tokens(answers(sampler, [GOOD])[0])
    mixed = [request for bad in BAD.values() for request in (GOOD, bad, bad, GOOD)]
    for request, outcome in zip(mixed, answers(sampler, mixed), strict=True):
        if request == GOOD:
            assert tokens(outcome) == alone
        else:
            assert isinstance(outcome, Exception)


def test_weights_that_cannot_be_had_fail_who_wants_them_and_nobody_else(served, sampler, store):
    path = SnapshotPath("run", SAMPLER, "nan")
    store.save(
        path,
        {
            name: torch.full_like(t, torch.nan)
            for name, t in served.base.state_dict().items()
            if name != "lm_head.weight"
        },
    )
    missing = dataclasses.replace(GOOD, weights=SnapshotPath("run", SAMPLER, "gone"))
    diverged = dataclasses.replace(GOOD, weights=path)
    good, no_weights, no_number, again = answers(sampler, [GOOD, missing, diverged, GOOD])
    assert tokens(good) == tokens(again)
    assert "no such weights" in str(no_weights) and "not finite" in str(no_number)


def test_who_cancels_leaves_the_batch_or_the_queue_and_the_others_are_sampled(sampler):
    alone = tokens(answers(sampler, [GOOD])[0])
    endless = dataclasses.replace(GOOD, samples=60, max_tokens=500, ends=False)
    queue, good = Queue(), Queue()
    running, waiting = (sampler.submit(endless, queue.put) for _ in range(2))
    finished = sampler.submit(GOOD, good.put)
    sampler.cancel(waiting)  # no room for it beside the first
    sampler.cancel(running)
    for _ in range(2):
        assert "cancelled" in str(queue.get(timeout=60))
    assert tokens(good.get(timeout=60)) == alone
    sampler.cancel(finished)  # too late, and no harm
    assert tokens(answers(sampler, [GOOD])[0]) == alone
    assert sampler.stats.snapshot()["generate_tokens"] < 60 * 500, "it was sampled to its end"
    assert queue.empty()


def test_a_cancelled_request_that_fails_its_batch_takes_nobody_along(sampler):
    bad, good = BAD["half a surrogate pair"], dataclasses.replace(GOOD, max_tokens=40, ends=False)
    alone = tokens(answers(sampler, [good])[0])
    queue, other = Queue(), Queue()
    cancelled = sampler.submit(dataclasses.replace(bad, max_tokens=40, ends=False), queue.put)
    sampler.submit(good, other.put)
    sampler.cancel(cancelled)
    assert isinstance(queue.get(timeout=60), Exception)
    assert tokens(other.get(timeout=60)) == alone
