"""The fuzzers of tests/fuzz.py, for as long as TRINITY_REC_FUZZ_SECONDS says: ten minutes each in `make soak`."""

import os
import re
import subprocess
import sys

import pytest

SECONDS = int(os.environ.get("TRINITY_REC_FUZZ_SECONDS", "600"))


@pytest.mark.soak
@pytest.mark.timeout(SECONDS + 900)
@pytest.mark.parametrize("target", ["wire", "config"])
def test_no_input_gets_past_what_is_promised(target, tmp_path):
    pytest.importorskip("atheris", reason="pip install 'trinity-rec[soak]'; Linux, Python 3.11 and later")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    command = [sys.executable, "-m", "tests.fuzz", target, str(corpus), f"-max_total_time={SECONDS}"]
    ran = subprocess.run(
        [*command, "-rss_limit_mb=0", f"-artifact_prefix={tmp_path}/"], capture_output=True, text=True, errors="replace"
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
    runs = int(re.search(r"Done (\d+) runs", ran.stderr)[1])
    print(f"{target}: {runs} inputs in {SECONDS} s")
    assert runs > (1000 * SECONDS if target == "wire" else SECONDS)
