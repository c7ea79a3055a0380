"""Coverage-guided fuzzing (atheris) of what strangers' bytes reach: the server's decoding, and the config checker.

    python -m tests.fuzz wire corpus_directory -max_total_time=600
    python -m tests.fuzz config corpus_directory -max_total_time=600

Ends with the input at the first error that is not one that the code promises. tests/unit/test_reliability_fuzz.py runs
both, in `make soak`.
"""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["trinity_rec.tinker_local.wire", "trinity_rec.tinker_local.weights", "trinity_rec.yaml"]
):
    import torch
    import yaml

    from tests.integration.test_reliability_server import text, training
    from tests.unit.test_reliability_configs import FILES, PLUGIN, REST, document
    from trinity_rec.terminal import UsageError
    from trinity_rec.tinker_local import wire
    from trinity_rec.tinker_local.errors import RequestError
    from trinity_rec.tinker_local.model import ServedModel
    from trinity_rec.tinker_local.weights import SnapshotPath
    from trinity_rec.yaml.check import check
    from trinity_rec.yaml.document import Document

SERVED = ServedModel(
    name="m",
    aliases=(),
    base=None,  # the wire never looks at the model
    tokenizer=None,
    device=torch.device("cpu"),
    context_length=64,
    vocabulary=290,
    cache_bytes_per_token=1,
    stop_ids=(),
    bf16=False,
)
BODIES = [
    each for each in vars(wire).values() if isinstance(each, type) and issubclass(each, wire.Body) and each != wire.Body
]
KEYS = sorted({key for settings, _ in PLUGIN + REST for key in settings})


def fuzz_wire(data: bytes) -> None:
    """A request's bytes, after one that says how they are sent, to what the server works on."""
    kind, content = data[:1], data[1:]
    try:
        if kind in (b"p", b"z"):
            body = wire.unpack(content, "zstd" if kind == b"z" else None)
            for datum in wire.batch_of(wire.parse_forward_backward(body), SERVED):
                assert len(datum.tokens) == len(datum.targets) == len(datum.weights) <= SERVED.context_length
                assert datum.tokens.min() >= 0 and datum.targets.max() < SERVED.vocabulary
        elif kind == b"s":
            path = SnapshotPath.parse(content.decode("utf-8", "replace"))
            assert ".." not in Path(path.run, path.kind, path.name).parts and len(str(path)) < 500
        else:
            for body in BODIES:
                with contextlib.suppress(RequestError):
                    request = wire.parse(body, content, {"content-type": "application/json"})
                    if isinstance(request, wire.Asample):
                        wanted = request.request(None, SERVED)
                        assert len(wanted.prompt) > 0 and len(wanted.prompt) + wanted.max_tokens <= 64
    except RequestError as error:
        assert 400 <= error.status < 500 and "\n" not in error.reason and len(error.reason) < 1000


def fuzz_config(data: bytes) -> None:
    """A file's bytes; or, after a first byte of 1, the number of a key and the value that it gets."""
    try:
        content = data.decode("utf-8", "replace")
        if data[:1] == b"\x01" and data[2:]:
            try:
                content = document({KEYS[data[1] % len(KEYS)]: content[2:]})
            except (yaml.YAMLError, ValueError, RecursionError):  # that value is none
                return
        with contextlib.redirect_stdout(io.StringIO()):
            findings = check(Document.parse("run.yaml", content)).findings
        assert all("\n" not in str(each) and len(str(each)) < 2000 for each in findings)
    except UsageError as error:
        assert "\n" not in str(error) and str(error).startswith("run.yaml")


def seeds(target: str) -> list[bytes]:
    if target == "config":
        texts = [document(settings).encode() for settings, _ in PLUGIN[::40] + REST[::20]]
        values = [
            bytes([1, KEYS.index(key)]) + value.encode()[:100]
            for settings, _ in PLUGIN[::4] + REST[::4]
            for key, value in settings.items()
        ]
        return [*texts, *values, *(content for content in FILES.values() if len(content) < 5000)]
    import zstandard

    sample = {"sampling_session_id": "s", "prompt": text(1, 2), "sampling_params": {"max_tokens": 2, "stop": ["a"]}}
    bodies = [{"model_id": "m", "adam_params": {"learning_rate": 1}}, {"session_id": "s", "model_seq_id": 0}, sample]
    good = training("m", rows=2)
    return [
        *(b"j" + json.dumps(body).encode() for body in bodies),
        b"p" + good,
        b"z" + zstandard.compress(good),
        b"stinker://a/weights/b",
    ]


def main() -> None:
    target, corpus, *options = sys.argv[1:]
    for number, seed in enumerate(seeds(target)):
        (Path(corpus) / f"seed-{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], corpus, *options], {"wire": fuzz_wire, "config": fuzz_config}[target])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
