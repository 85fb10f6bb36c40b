"""The system refuses, fails, or takes something away: a clear error or a named fallback, never wrong bytes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fault_scenarios import CANNOT, SCENARIOS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="faults are provoked by Linux's means")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[int, str]]:
    """Status and words of every scenario."""
    script = Path(__file__).with_name("fault_scenarios.py")
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("faults"))]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    return {(scenario, engine): (status, said) for scenario, engine, status, said in lines}


@pytest.mark.parametrize(
    ("scenario", "engine"), [(name, engine) for name, (_, engines) in SCENARIOS.items() for engine in engines]
)
def test_fault(scenario: str, engine: str, found: dict[tuple[str, str], tuple[int, str]]) -> None:
    status, said = found[scenario, engine]
    if status == CANNOT:
        pytest.skip(said.splitlines()[0])
    assert status == 0, said
