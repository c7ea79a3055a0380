"""Environments with other versions of a package, on top of the one that the tests run in."""

import subprocess
import sys
import sysconfig
from pathlib import Path


def environment_with(folder: Path, *packages: str) -> str:
    """An interpreter that has these packages, and from the tests' own environment whatever goes with them (torch).

    Raises:
        AssertionError: pip could not install them, for want of an index, say; a test that needs them has failed then.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    site = Path(sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder}))
    (site / "below.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-warn-conflicts", *packages]
    installed = subprocess.run(pip, capture_output=True, text=True)
    assert installed.returncode == 0, f"pip could not install {' '.join(packages)}: {installed.stderr[-1000:]}"
    return str(python)
