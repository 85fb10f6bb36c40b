"""What the doctor foretells is provoked for real, in processes of their own: see `doctor_scenarios`."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from doctor_scenarios import CANNOT, SCENARIOS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is provoked are Linux's own limits")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str]]:
    """Status and words of every scenario, which one process runs for all that test at the same time."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "doctor.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answers = shared / "doctor.jsonl"
        if not answers.exists():
            answers.write_text(_run(tmp_path_factory.mktemp("doctor")))
    return {name: (status, said) for name, status, said in map(json.loads, answers.read_text().splitlines())}


def _run(directory: Path) -> str:
    command = [sys.executable, str(Path(__file__).with_name("doctor_scenarios.py")), str(directory)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_the_doctor_is_right(scenario: str, found: dict[str, tuple[int, str]]) -> None:
    status, said = found[scenario]
    if status == CANNOT:
        pytest.skip(said.splitlines()[0])
    assert status == 0, said
