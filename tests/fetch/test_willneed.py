"""Advice for a batch's pages: which ones, and that they are in memory afterwards and no others."""

from __future__ import annotations

import ctypes
import mmap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_table import apart, make_files, make_table

from engram_tables.fetch.engines.willneed import WillneedEngine
from engram_tables.fetch.engines.willneed_kernels import advise, pages_of
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import Table
from engram_tables.measure.residency import evict, preload

ENGINE = "willneed"


def willneed_of(table: Table) -> WillneedEngine:
    engine = table.engine(ENGINE)
    assert isinstance(engine, WillneedEngine)
    return engine


def cold(table: Table) -> None:
    if evict([file.path for file in table.stored.files]):
        pytest.skip("the filesystem does not evict files")


def pages_in_memory(table: Table) -> set[tuple[int, int]]:
    """(file, page) of every page in memory, by `mincore`."""
    found = set()
    libc = ctypes.CDLL(None)
    for file_idx, file in enumerate(table.stored.files):
        states = np.zeros(-(-file.file_bytes // mmap.PAGESIZE), np.uint8)
        with mmap.mmap(file.fd, file.file_bytes, prot=mmap.PROT_READ) as mapping:
            view = np.frombuffer(mapping, np.uint8)
            address = ctypes.c_void_p(view.ctypes.data)
            del view
            assert libc.mincore(address, ctypes.c_size_t(file.file_bytes), ctypes.c_void_p(states.ctypes.data)) == 0
        found |= {(file_idx, int(page)) for page in np.flatnonzero(states & 1)}
    return found


def pages_of_rows(table: Table, rows: Any) -> set[tuple[int, int]]:
    found = set()
    for part_idx, part in enumerate(table.stored.parts):
        spots = table.stored.locate(1, rows, part_idx)
        for file_idx, start in zip(spots.file_idx.tolist(), spots.offsets.tolist(), strict=True):
            last = (start + part.n_bytes - 1) // mmap.PAGESIZE
            found |= {(file_idx, page) for page in range(start // mmap.PAGESIZE, last + 1)}
    return found


@given(data=st.data())
def test_pages_of_records(data: st.DataObject) -> None:
    part_bytes = data.draw(st.lists(st.integers(1, 20_000), min_size=1, max_size=3))
    n = data.draw(st.integers(0, 20))
    of_a_part = st.lists(st.integers(0, 2**47), min_size=n, max_size=n)
    starts = [data.draw(of_a_part) for _ in part_bytes]
    size = data.draw(st.sampled_from([4096, 16_384, 65_536]))
    addresses = np.array(starts, np.uint64).reshape(len(part_bytes), n)
    pages = np.empty(n * sum(-(-length // size) + 1 for length in part_bytes), np.uint64)
    n_pages = pages_of(addresses, np.array(part_bytes, np.uint64), size, pages)
    expected = [
        page * size
        for length, of_part in zip(part_bytes, starts, strict=True)
        for start in of_part
        for page in range(start // size, (start + length - 1) // size + 1)
    ]
    assert pages[:n_pages].tolist() == expected


GEOMETRIES: dict[str, dict[str, Any]] = {
    "packed": {"n_rows": [9000], "parts": apart(264), "cuts": [[[(0, 4000), (4000, 5000)]]]},
    "planar": {"n_rows": [9000], "parts": apart(256, 8), "cuts": [[[(0, 9000)], [(0, 9000)]]]},
    "long": {"n_rows": [900], "parts": apart(9000), "cuts": [[[(0, 900)]]], "data_offset": 77},
}


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("n_rows", [1, 30, 700])
@pytest.mark.parametrize("call", ["read", "begin", "items"])
def test_the_batchs_pages_and_no_others_are_brought_in(geometry: str, n_rows: int, call: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(n_rows)
    with make_files(tmp_path, **GEOMETRIES[geometry]) as table:
        engine = willneed_of(table)
        n_all = table.stored.owned(1)[0][1]
        rows = rng.integers(0, n_all // 2, n_rows) * 2
        expected = read_rows(table.stored, 1, rows)
        cold(table)
        batch = table.places.check(rows, n_columns=n_rows, first_layer=0, n_layers=1)
        out = np.full_like(expected, 7)
        items = rng.permutation(n_rows)[: (n_rows + 1) // 2] if call == "items" else np.arange(n_rows)
        if call == "read":
            engine.read(batch, out, 2)
        elif call == "begin":
            engine.begin(batch, out).finish()
        else:
            engine.begin(batch, out, 2, items).finish()
        expected[np.setdiff1d(np.arange(n_rows), items)] = 7
        assert np.array_equal(out, expected)
        assert pages_in_memory(table) == pages_of_rows(table, rows[items])


def test_advice_alone_brings_pages_in(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(9000,)) as table:
        engine = willneed_of(table)
        cold(table)
        start = engine.region.start + int(engine.region.file_starts[0])
        wanted = [1, 2, 3, 3, 90, 200, 201]
        pages = np.array([start + page * mmap.PAGESIZE for page in wanted], np.uint64)
        assert advise(pages, 0, len(wanted), mmap.PAGESIZE) == 0
        deadline = time.monotonic() + 30
        while pages_in_memory(table) != {(0, page) for page in wanted}:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert advise(pages, 3, 3, mmap.PAGESIZE) == 0


def test_refused_advice_is_counted_and_harms_nobody() -> None:
    # Nothing is mapped there.
    assert advise(np.array([4096, 8192, 1 << 20], np.uint64), 0, 3, 4096) == 2


def test_it_has_no_way_past_its_advice(tmp_path: Path) -> None:
    with make_table(tmp_path) as table:
        assert willneed_of(table).warm is None
        preload([file.path for file in table.stored.files])
        assert np.array_equal(table.fetch_rows(1, [5], engine=ENGINE), read_rows(table.stored, 1, np.array([5])))
