"""Tables in a state of the page cache that is brought about and looked up here, without the code under test."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_table import apart

from engram_tables.fetch.engines.auto import AutoEngine
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.residency import Residency
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.table import AUTO, Table
from engram_tables.measure.residency import evict, preload

ROW_BYTES = 1000

GEOMETRIES: dict[str, dict[str, Any]] = {
    "packed": {"n_rows": [4000], "parts": apart(264), "cuts": [[[(0, 1500), (1500, 2500)]]]},
    "planar": {"n_rows": [3000], "parts": apart(256, 8), "cuts": [[[(0, 3000)], [(0, 3000)]]]},
    "long": {"n_rows": [300], "parts": apart(9000), "cuts": [[[(0, 300)]]], "data_offset": 77},
}


def auto_of(table: Table) -> AutoEngine:
    engine = table.engine(AUTO)
    assert isinstance(engine, AutoEngine)
    return engine


def residency_of(table: Table) -> Residency:
    """The estimate, made by a first read if need be."""
    auto = auto_of(table)
    if auto.residency is None:
        table.fetch_rows(table.spec.layer_ids[0], [0])
    assert auto.residency is not None
    return auto.residency


def gather_of(table: Table) -> GatherEngine:
    gather = table.engine("gather")
    assert isinstance(gather, GatherEngine)
    return gather


def pages_of_files(table: Table) -> list[slice]:
    """The region's pages that files have."""
    starts = (gather_of(table).region.file_starts // np.uint64(mmap.PAGESIZE)).tolist()
    files = zip(table.stored.files, starts, strict=True)
    return [slice(start, start - (-file.file_bytes // mmap.PAGESIZE)) for file, start in files]


def bring_in(table: Table, share: float) -> None:
    """Have this share of the table's pages in memory, drawn at random."""
    if share == 1.0:
        preload(paths_of(table))
        return
    cold(table)
    rng = np.random.default_rng(3)
    wanted = 0
    for file in table.stored.files:
        n_pages = -(-file.file_bytes // mmap.PAGESIZE)
        chosen = np.flatnonzero(rng.random(n_pages) < share).tolist()
        for page in chosen:
            os.posix_fadvise(file.fd, page * mmap.PAGESIZE, mmap.PAGESIZE, os.POSIX_FADV_WILLNEED)
        wanted += len(chosen)
    wait_until(lambda: int(in_memory(table).sum()) >= wanted)


def paths_of(table: Table) -> list[Path]:
    return [file.path for file in table.stored.files]


def cold(table: Table) -> None:
    """Evict the table's files, or skip where the filesystem keeps them."""
    if evict(paths_of(table)):
        pytest.skip("the filesystem does not evict files")


def in_memory(table: Table) -> Any:
    """The slow twin of the map: bool (pages of the region,), file by file, by `mincore` on mappings of its own."""
    gather = gather_of(table)
    found = np.zeros(gather.n_pages, np.bool_)
    libc = ctypes.CDLL(None)
    for file, start in zip(table.stored.files, gather.region.file_starts.tolist(), strict=True):
        states = np.zeros(-(-file.file_bytes // mmap.PAGESIZE), np.uint8)
        with mmap.mmap(file.fd, file.file_bytes, prot=mmap.PROT_READ) as mapping:
            view = np.frombuffer(mapping, np.uint8)
            address = ctypes.c_void_p(view.ctypes.data)
            del view
            code = libc.mincore(address, ctypes.c_size_t(file.file_bytes), ctypes.c_void_p(states.ctypes.data))
        assert code == 0
        found[start // mmap.PAGESIZE :][: states.size] = states & 1
    return found


def bits(pages: Any, n_pages: int) -> Any:
    return np.unpackbits(pages, bitorder="little")[:n_pages].astype(np.bool_)


def pages_of(table: Table, layer_id: int, rows: Any) -> list[Any]:
    """Numbers of the pages of each row, one set a row, by the table's own description of itself."""
    gather = gather_of(table)
    found: list[set[int]] = [set() for _ in rows]
    for part_idx, part in enumerate(table.stored.parts):
        spots = table.stored.locate(layer_id, rows, part_idx)
        starts = gather.region.file_starts[spots.file_idx].astype(np.int64) + spots.offsets
        for pages, start in zip(found, starts.tolist(), strict=True):
            pages |= set(range(start // mmap.PAGESIZE, (start + part.n_bytes - 1) // mmap.PAGESIZE + 1))
    return found


def batch_of(table: Table, rows: Any, layer: int = 0) -> Batch:
    rows = np.asarray(rows, np.int64)
    return table.places.check(rows, n_columns=max(rows.size, 1), first_layer=layer, n_layers=1)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
