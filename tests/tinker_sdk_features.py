"""What a Tinker SDK can do with the local backend: one feature after another, through the SDK alone.

    python tests/tinker_sdk_features.py URL MODEL

Run by an interpreter that has some version of the SDK and nothing of this project; needs a server's URL and the name of
its model. Prints a JSON object: the SDK's version, and for each feature "ok", "absent" (this SDK does not have it), or
what went wrong. tests/integration/test_tinker_sdks.py says what must be what.
"""

import asyncio
import inspect
import json
import os
import sys
import time
import urllib.request
import warnings

warnings.simplefilter("ignore")
os.environ.setdefault("TINKER_API_KEY", "tml-features")

import tinker  # noqa: E402
from tinker import types  # noqa: E402

URL, MODEL = sys.argv[1:3]


class Absent(Exception):
    """This SDK has no such method."""


def done(value):
    """What a call comes to: newer SDKs give futures where older ones give the thing itself."""
    while hasattr(value, "result") or inspect.isawaitable(value):
        value = value.result() if hasattr(value, "result") else asyncio.run(_awaited(value))
    return value


async def _awaited(value):
    return await value


def call(target, name, *arguments, **options):
    if not hasattr(target, name):
        raise Absent(name)
    return done(getattr(target, name)(*arguments, **options))


def rest(service):
    if hasattr(tinker, "RestClient") and "base_url" in inspect.signature(tinker.RestClient).parameters:
        return tinker.RestClient(base_url=URL)
    return call(service, "create_rest_client")


def prompt(*tokens):
    return types.ModelInput.from_ints(list(tokens))


def batch():
    return [
        types.Datum(
            model_input=prompt(5, 6, 7), loss_fn_inputs={"target_tokens": [6, 7, 8], "weights": [0.0, 1.0, 1.0]}
        )
    ]


service = tinker.ServiceClient(base_url=URL)
trainer = done(service.create_lora_training_client(base_model=MODEL, rank=4))
sampler = done(service.create_sampling_client(base_model=MODEL))


def sample(client=sampler, **params):
    settings = types.SamplingParams(max_tokens=4, seed=1, **params)
    return call(client, "sample", prompt(5, 6, 7), num_samples=2, sampling_params=settings)


def train(client=trainer, steps=1):
    for _ in range(steps):
        output = call(client, "forward_backward", batch(), "cross_entropy")
        call(client, "optim_step", types.AdamParams(learning_rate=1e-2))
    return output.metrics["loss:sum"]


def capabilities():
    client = rest(service) if hasattr(rest(service), "get_server_capabilities") else service
    names = [model.model_name for model in call(client, "get_server_capabilities").supported_models]
    assert MODEL in names


def sampling():
    answer = sample()
    assert [len(sequence.tokens) for sequence in answer.sequences] == [4, 4]
    assert [list(s.tokens) for s in sample().sequences] == [list(s.tokens) for s in answer.sequences]


def prompt_logprobs():
    scores = call(sampler, "compute_logprobs", prompt(5, 6, 7))
    assert scores[0] is None and all(score < 0 for score in scores[1:])


def training():
    first = train()
    assert train(steps=3) < first


def custom_loss():
    def loss(data, logprobs):
        return sum(-row.sum() for row in logprobs), {"seen": float(len(logprobs))}

    assert call(trainer, "forward_backward_custom", batch(), loss).metrics["seen"] == 1
    call(trainer, "optim_step", types.AdamParams(learning_rate=1e-3))


def own_loss():
    inputs = {"target_tokens": [6, 7, 8], "logprobs": [0.0, -5.0, -5.0], "advantages": [0.0, 1.0, -1.0]}
    data = [types.Datum(model_input=prompt(5, 6, 7), loss_fn_inputs=inputs)]
    for loss, config in {
        "importance_sampling": None,
        "ppo": {"clip_low_threshold": 0.5},
        "cispo": None,
        "dro": None,
    }.items():
        assert len(call(trainer, "forward_backward", data, loss, config).loss_fn_outputs) == 1
    call(trainer, "optim_step", types.AdamParams(learning_rate=1e-3))


def unnamed_sampler():
    client = call(trainer, "save_weights_and_get_sampling_client")
    assert len(sample(client).sequences) == 2


def resume():
    """The state of a run, with its optimizer, in a new run: both go on alike."""
    path = call(trainer, "save_state", "resume").path
    other = done(service.create_training_client_from_state_with_optimizer(path))
    losses = [train(client, steps=3) for client in (trainer, other)]
    assert abs(losses[0] - losses[1]) < 1e-6, losses
    plain = done(service.create_training_client_from_state(path))
    assert call(plain, "get_info").model_id == plain.model_id
    assert plain.model_id != other.model_id


def resume_elsewhere():
    """In another session, as after a restart."""
    path = call(trainer, "save_state", "elsewhere").path
    again = tinker.ServiceClient(base_url=URL)
    client = done(again.create_training_client_from_state_with_optimizer(path))
    train(client)


def overwrite():
    if "overwrite" not in inspect.signature(trainer.save_state).parameters:
        raise Absent("overwrite")
    call(trainer, "save_state", "same")
    call(trainer, "save_state", "same", overwrite=True)


def ttl():
    path = call(trainer, "save_state", "short", ttl_seconds=3600).path
    client = rest(service)
    found = {each.tinker_path: each for each in call(client, "list_user_checkpoints", limit=1000).checkpoints}
    assert 3500 < found[path].expires_at.timestamp() - time.time() <= 3600
    call(client, "set_checkpoint_ttl_from_tinker_path", path, None)
    found = {each.tinker_path: each for each in call(client, "list_user_checkpoints", limit=1000).checkpoints}
    assert found[path].expires_at is None


def list_runs():
    client = rest(service)
    call(trainer, "save_state", "listed")
    runs = call(client, "list_training_runs", limit=1000)
    assert trainer.model_id in [run.training_run_id for run in runs.training_runs]
    assert runs.cursor.total_count == len(runs.training_runs)
    run = call(client, "get_training_run", trainer.model_id)
    assert run.base_model and run.last_checkpoint.checkpoint_id == "weights/listed"


def list_checkpoints():
    client = rest(service)
    path = call(trainer, "save_weights_for_sampler", "to-list").path
    found = call(client, "list_checkpoints", trainer.model_id).checkpoints
    (one,) = [each for each in found if each.tinker_path == path]
    assert one.checkpoint_type == "sampler" and one.size_bytes > 1000
    call(client, "delete_checkpoint_from_tinker_path", path)
    assert path not in [each.tinker_path for each in call(client, "list_checkpoints", trainer.model_id).checkpoints]


def list_sessions():
    client = rest(service)
    session = service.holder.get_session_id()
    assert session in call(client, "list_sessions", limit=1000).sessions
    assert trainer.model_id in call(client, "get_session", session).training_run_ids


def weights_info():
    path = call(trainer, "save_state", "info").path
    assert call(rest(service), "get_weights_info_by_tinker_path", path).base_model


def refused():
    """What this server cannot do is an error with a reason, and not something else done in silence."""
    asked = inspect.signature(sampler.sample).parameters
    for name, value in {"topk_sample_logprobs": 3, "prompt_alt_tokens_k": 2}.items():
        if name in asked:
            try:
                call(sampler, "sample", prompt(5, 6), 1, types.SamplingParams(max_tokens=1), **{name: value})
            except tinker.APIStatusError as error:
                assert name in str(error)
            else:
                raise AssertionError(f"{name} was ignored")


def cancel():
    """A sample that nobody waits for any more leaves the sampler."""
    if not hasattr(service.holder, "enqueue_cancel"):
        raise Absent("cancel")
    settings = types.SamplingParams(max_tokens=500, stop=[])
    futures = [sampler.sample(prompt(5, 6, 7), 256, settings) for _ in range(4)]
    time.sleep(0.2)
    for future in futures:
        future.cancel()
    deadline = time.monotonic() + 30
    while not stats().get("sample_cancelled") or stats()["pending_requests"]:
        assert time.monotonic() < deadline, stats()
        time.sleep(0.1)
    assert len(sample().sequences) == 2


def stats():
    with urllib.request.urlopen(f"{URL}/stats") as answer:
        return json.load(answer)


def close():
    """Closing gives back what the session held."""
    if not hasattr(tinker.ServiceClient, "close"):
        raise Absent("close")
    other = tinker.ServiceClient(base_url=URL)
    run = done(other.create_lora_training_client(base_model=MODEL)).model_id
    call(other, "close", "success", detail="done")
    found = call(rest(service), "list_training_runs", limit=1000).training_runs
    assert run not in [each.training_run_id for each in found]


FEATURES = [
    capabilities, sampling, prompt_logprobs, training, custom_loss, own_loss, unnamed_sampler, resume, resume_elsewhere,
    overwrite, ttl, list_runs, list_checkpoints, list_sessions, weights_info, refused, cancel, close,
]  # fmt: skip

outcome = {"version": tinker.__version__}
for feature in FEATURES:
    try:
        feature()
        outcome[feature.__name__] = "ok"
    except Absent as error:
        outcome[feature.__name__] = f"absent: {error}"
    except Exception as error:
        outcome[feature.__name__] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
print(json.dumps(outcome), flush=True)
os._exit(0)  # not waiting for the SDK's threads
