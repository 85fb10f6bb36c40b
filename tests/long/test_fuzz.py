"""Every fuzzing harness starts, and finds nothing in its seeds and what lies near them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("parser", ["safetensors", "gguf", "manifest", "ple_store", "config"])
def test_a_parser_stands_what_a_fuzzer_makes(parser: str) -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", f"fuzz.{parser}", "-max_total_time=20"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "DONE" in done.stderr
