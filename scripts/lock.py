# /// script
# requires-python = ">=3.10"
# dependencies = ["uv==0.13.9", "msgpack>=1.1"]
# ///
"""Write the two sets of the vLLM + verl environments, gpu.txt and cpu-vllm.txt in requirements/: every package, pinned
for Linux x86-64, Python 3.11.

`trinity-rft[vllm]` has no solution of its own, since its parts disagree on numpy; with single pins overridden
(requirements/<set>-overrides.txt) uv finds one in seconds from package metadata alone. The versions in constraints.txt
are preferred, for the CPU set those in gpu.txt before them, so that the sets differ only where vLLM makes them.

A set made by an override cannot be checked by a resolver, so what each package asks for is written down next to it, in
requirements/<set>-metadata.json, and tests/unit/test_package_pins.py holds the pins against it, without a network.

    pip install uv==0.13.9 msgpack && python scripts/lock.py [SET ...]     (or: uv run scripts/lock.py)
"""

import email.parser
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import msgpack

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements"
PYTHON, PLATFORM = "3.11", "x86_64-manylinux_2_28"
HEADERS = {
    "gpu": f"""\
# Everything that a run with vLLM and verl needs: Linux x86-64, Python {PYTHON}, an NVIDIA GPU with its CUDA 13 driver.
#   uv pip install --no-deps --no-build-isolation-package flash-attn -r requirements/gpu.txt -e .
# Made by scripts/lock.py; why a resolver alone cannot make it: requirements/gpu-overrides.txt.
""",
    "cpu-vllm": f"""\
# Everything that a run with vLLM and verl needs on a machine without a GPU: Linux x86-64 with AVX2, Python {PYTHON}.
#   python -m pip install --no-deps -r requirements/cpu-vllm.txt -e .     (`make quickstart-vllm` does it)
# Made by scripts/lock.py; why a resolver alone cannot make it: requirements/cpu-vllm-overrides.txt.
""",
}
PREFERRED = {"gpu": ["constraints.txt"], "cpu-vllm": ["requirements/gpu.txt", "constraints.txt"]}
EXTRAS = {"gpu": [], "cpu-vllm": ["--extra", "local"]}


def resolve(name: str, cache: Path) -> list[str]:
    """The pins of a set, one `package==version` each, as uv resolves them into `cache`."""
    output = cache / f"{name}.txt"
    # uv prefers the versions that its output file already holds.
    output.write_text("\n".join(preferred(PREFERRED[name])))
    options = {
        "--python-version": PYTHON,
        "--python-platform": PLATFORM,
        "--override": REQUIREMENTS / f"{name}-overrides.txt",
        "--cache-dir": cache,
        "--output-file": output,
    }
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *EXTRAS[name]]
    command += [str(word) for option in options.items() for word in option]
    subprocess.run(
        [*command, ROOT / "pyproject.toml", REQUIREMENTS / f"{name}.in"],
        check=True,
        stdout=subprocess.DEVNULL,
        # Settings of this machine must not find their way into the result.
        env={key: value for key, value in os.environ.items() if not key.startswith("UV_")},
    )
    return output.read_text().split()


def preferred(files: list[str]) -> list[str]:
    """The pins of several files; of a package that stands in two, the first file's."""
    pins: dict[str, str] = {}
    for file in files:
        for line in (ROOT / file).read_text().splitlines():
            if "==" in line and not line.startswith("#"):
                pins.setdefault(re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower(), line)
    return list(pins.values())


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
    for name in sys.argv[1:] or HEADERS:
        with tempfile.TemporaryDirectory() as folder:
            cache = Path(folder)
            pins = resolve(name, cache)
            packages = {
                package: metadata(cache, package, version) for package, version in (pin.split("==") for pin in pins)
            }
        (REQUIREMENTS / f"{name}.txt").write_text(HEADERS[name] + "\n".join(pins) + "\n")
        lines = (f"{json.dumps(package)}: {json.dumps(record)}" for package, record in packages.items())
        (REQUIREMENTS / f"{name}-metadata.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(f"{name}: pinned {len(pins)} packages")


if __name__ == "__main__":
    main()
