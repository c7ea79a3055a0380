# /// script
# requires-python = ">=3.10"
# dependencies = ["uv==0.13.9", "msgpack>=1.1"]
# ///
"""Write requirements/gpu.txt: every package of the vLLM + verl environment, pinned for Linux x86-64, Python 3.11.

`trinity-rft[vllm]` has no solution of its own, since its parts disagree on numpy; with that one pin overridden
(requirements/gpu-overrides.txt) uv finds one in seconds from package metadata alone. The versions in constraints.txt
are preferred, so that the GPU set differs from the tested CPU set only where vLLM makes it.

A set made by an override cannot be checked by a resolver, so what each package asks for is written down next to it, in
requirements/gpu-metadata.json, and tests/unit/test_package_pins.py holds the pins against it, without a network.

    pip install uv==0.13.9 msgpack && python scripts/lock_gpu.py     (or: uv run scripts/lock_gpu.py)
"""

import email.parser
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import msgpack

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_28"
HEADER = f"""\
# Everything that a run with vLLM and verl needs: Linux x86-64, Python {PYTHON}, an NVIDIA GPU with its CUDA 13 driver.
#   uv pip install --no-deps --no-build-isolation-package flash-attn -r requirements/gpu.txt -e .
# Made by scripts/lock_gpu.py; why a resolver alone cannot make it: requirements/gpu-overrides.txt.
"""


def resolve(cache: Path) -> list[str]:
    """The pins, one `name==version` each, as uv resolves them into `cache`."""
    output = cache / "gpu.txt"
    # uv prefers the versions that its output file already holds.
    output.write_text((ROOT / "constraints.txt").read_text())
    options = {
        "--python-version": PYTHON,
        "--python-platform": PLATFORM,
        "--override": REQUIREMENTS / "gpu-overrides.txt",
        "--cache-dir": cache,
        "--output-file": output,
    }
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate"]
    command += [str(word) for option in options.items() for word in option]
    subprocess.run(
        [*command, ROOT / "pyproject.toml", REQUIREMENTS / "gpu.in"],
        check=True,
        # Settings of this machine must not find their way into the result.
        env={key: value for key, value in os.environ.items() if not key.startswith("UV_")},
    )
    return output.read_text().split()


def metadata(cache: Path, name: str, version: str) -> dict:
    """What `name==version` asks for, read back from uv's cache, whose layout is private to the uv pinned above."""
    for path in [
        *cache.glob(f"wheels-v*/pypi/{name}/{version}-*.msgpack"),
        *cache.glob(f"sdists-v*/pypi/{name}/{version}/*/metadata.msgpack"),
    ]:
        with path.open("rb") as file:
            _, _, requires_dist, requires_python, *_ = next(iter(msgpack.Unpacker(file)))
        return {
            "version": version,
            "requires_python": requires_python,
            "requires_dist": sorted(requires_dist),
        }
    for path in cache.glob(f"sdists-v*/pypi/{name}/{version}/*/src/PKG-INFO"):
        fields = email.parser.Parser().parsestr(path.read_text(), headersonly=True)
        return {
            "version": version,
            "requires_python": fields["Requires-Python"],
            "requires_dist": sorted(fields.get_all("Requires-Dist", [])),
        }
    raise LookupError(f"uv resolved {name}=={version} but left no metadata of it in its cache")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        pins = resolve(cache)
        packages = {name: metadata(cache, name, version) for name, version in (pin.split("==") for pin in pins)}
    (REQUIREMENTS / "gpu.txt").write_text(HEADER + "\n".join(pins) + "\n")
    lines = (f"{json.dumps(name)}: {json.dumps(record)}" for name, record in packages.items())
    (REQUIREMENTS / "gpu-metadata.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"pinned {len(pins)} packages")


if __name__ == "__main__":
    main()
