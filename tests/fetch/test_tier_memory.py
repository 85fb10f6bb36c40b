"""Where a tier's memory lies and what the system refuses of it; tables that are opened with tiers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_tables import small_table

from engram_tables.errors import BackendUnavailable, CapacityError, InvalidInput
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import open_table
from engram_tables.fetch.tiers import cache_kernels
from engram_tables.fetch.tiers.budget import MemoryTier, TierPlan
from engram_tables.fetch.tiers.cache_kernels import HEADER_BYTES, WAYS
from engram_tables.fetch.tiers.placed_memory import PlacedMemory, memory_nodes

ROW_BYTES = 264
SET_BYTES = HEADER_BYTES + WAYS * ROW_BYTES


def test_memory_lies_on_the_node_that_was_named() -> None:
    nodes = memory_nodes()
    if not nodes:
        pytest.skip("this system names no memory nodes")
    for node in nodes:
        memory = PlacedMemory(8 << 20, node=node.number, huge_pages=False)
        found = memory.nodes()
        memory.close()
        assert set(found) <= {node.number}
        assert found or sys.platform != "linux"
    absent = max(node.number for node in nodes) + 1
    with pytest.raises(BackendUnavailable, match=f"memory node {absent} is not here, expected one of"):
        PlacedMemory(1 << 20, node=absent)


def test_more_memory_than_there_is_is_refused() -> None:
    with pytest.raises(CapacityError, match="make the budget smaller"):
        PlacedMemory(1 << 50)


LOCKING = """
import ctypes, os, resource, sys
sys.path.insert(0, {library!r})
resource.setrlimit(resource.RLIMIT_MEMLOCK, ({limit}, {limit}))
from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.tiers.placed_memory import PlacedMemory
if os.getuid() == 0:
    os.setuid(65534)
def locked():
    return [int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmLck")][0]
try:
    memory = PlacedMemory(4 << 20, is_locked=True)
except BackendUnavailable as error:
    print("refused:", error)
else:
    held = locked()
    memory.close()
    print("locked", held, "then", locked())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="locked memory is read from /proc")
def test_memory_is_locked_or_refused_with_the_limit() -> None:
    library = str(Path(cache_kernels.__file__).parents[3])
    answers = []
    for limit in (1 << 20, 8 << 20):
        program = LOCKING.format(library=library, limit=limit)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        answers.append(done.stdout.strip() or done.stderr)
    assert answers[0].startswith("refused: tier: locking 4194304 bytes was refused")
    assert "a limit of 1048576 bytes" in answers[0]
    assert answers[1] == "locked 4096 then 0"


def test_a_table_is_opened_with_tiers(tmp_path: Path) -> None:
    path = small_table(tmp_path / "table")
    plan = TierPlan(tiers=(MemoryTier(budget_bytes=1 << 20, huge_pages=False),), behind="pread")
    with open_table(path, tiers=plan) as opened:
        layer = opened.spec.layers[0]
        rows = np.arange(layer.n_rows) % min(layer.n_rows, 100)
        expected = read_rows(opened.stored, layer.layer_id, rows)
        for _ in range(2):
            assert np.array_equal(opened.fetch_rows(layer.layer_id, rows), expected)
        with pytest.raises(InvalidInput, match="has tiers already"):
            opened.add_tiers(plan)
    with pytest.raises(InvalidInput, match="closed already"):
        opened.fetch_rows(layer.layer_id, rows)


def test_a_plan_that_cannot_be_closes_the_table(tmp_path: Path) -> None:
    path = small_table(tmp_path / "table")
    n_open = len([*Path("/proc/self/fd").iterdir()]) if sys.platform == "linux" else 0
    with pytest.raises(InvalidInput, match="budget of 1 bytes"):
        open_table(path, tiers=TierPlan(tiers=(MemoryTier(budget_bytes=1),)))
    if n_open:
        assert len([*Path("/proc/self/fd").iterdir()]) <= n_open


def test_the_counts_of_a_tables_tiers(tmp_path: Path) -> None:
    plan = TierPlan(tiers=(MemoryTier(budget_bytes=1 << 22, huge_pages=False),))
    with open_table(small_table(tmp_path / "table")) as opened:
        made = opened.add_tiers(plan)
        layer_id = opened.spec.layer_ids[0]
        for _ in range(2):
            opened.fetch_rows(layer_id, np.arange(50))
        opened.fetch_rows(layer_id, np.arange(50), engine="pread")
        assert (made.counts().hits_cached, made.counts().misses) == (50, 50)
