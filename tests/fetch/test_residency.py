"""The map of pages in memory against what the system says, page by page."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_table import make_files, make_table
from page_cache import (
    GEOMETRIES,
    ROW_BYTES,
    batch_of,
    bits,
    bring_in,
    cold,
    gather_of,
    in_memory,
    pages_of,
    pages_of_files,
    paths_of,
)

from engram_tables.fetch.engines import residency as residency_module
from engram_tables.fetch.engines.residency import Residency
from engram_tables.fetch.engines.residency_kernels import AGAIN, MISSING, WAITING, fill
from engram_tables.measure.residency import preload


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("chunk_pages", [8, 64, 1 << 14])
def test_a_refresh_finds_what_the_system_says(share: float, chunk_pages: int, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3001, 1777), row_bytes=ROW_BYTES, rows_per_shard=900) as table:
        residency = Residency(table.stored, gather_of(table), chunk_pages=chunk_pages)
        bring_in(table, share)
        for pattern in (0, 255, 0x5A):
            residency.pages[:] = pattern
            residency.refresh()
            expected = in_memory(table)
            found = bits(residency.pages, expected.size)
            for pages in pages_of_files(table):
                assert np.array_equal(found[pages], expected[pages])
        assert residency.is_known
        assert residency.is_whole == (share == 1.0)
        whole_chunks = share == 0.0 or share == 1.0
        assert (residency.n_looked_up == 0) == whole_chunks


@pytest.mark.parametrize("is_in", [False, True])
def test_the_first_look_needs_no_page_where_all_or_none_is_in_memory(
    is_in: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "_PAGES_ON_THE_SPOT", 0)
    with make_table(tmp_path, n_rows=(3001, 1777), row_bytes=ROW_BYTES, rows_per_shard=900) as table:
        bring_in(table, float(is_in))
        residency = Residency(table.stored, gather_of(table))
        residency.first_look()
        assert residency.is_known
        assert residency.is_whole == is_in
        assert residency.n_refreshes == 0
        found = bits(residency.pages, gather_of(table).n_pages)
        assert all((found[pages] == is_in).all() for pages in pages_of_files(table))


@given(first=st.integers(0, 9), n_pages=st.integers(0, 100), is_set=st.booleans())
def test_filling_a_range_of_the_map(first: int, n_pages: int, is_set: bool) -> None:
    pages = np.full(40, 0x5A, np.uint8)
    expected = bits(pages, 320)
    fill(pages, 8 * first, n_pages, int(is_set))
    expected[8 * first : 8 * first + n_pages] = is_set
    # The bits that share a byte with the last page are behind a file's end.
    stop = 8 * first + n_pages
    shared = slice(stop, -(-stop // 8) * 8)
    found = bits(pages, 320)
    expected[shared] = found[shared]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_look_corrects_the_pages_of_its_records_and_no_other(geometry: str, share: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    with make_files(tmp_path, **GEOMETRIES[geometry]) as table:
        residency = Residency(table.stored, gather_of(table))
        bring_in(table, share)
        n_pages = gather_of(table).n_pages
        residency.pages[:] = rng.integers(0, 256, residency.pages.size, np.uint8)
        believed, truth = bits(residency.pages, n_pages), in_memory(table)
        rows = rng.integers(0, table.stored.owned(1)[0][1], 50)
        n_gone, n_come = residency.look_up(batch_of(table, rows))
        looked_at = np.array(sorted(set().union(*pages_of(table, 1, rows))))
        assert n_gone == int((believed[looked_at] & ~truth[looked_at]).sum())
        assert n_come == int((~believed[looked_at] & truth[looked_at]).sum())
        believed[looked_at] = truth[looked_at]
        assert np.array_equal(bits(residency.pages, n_pages), believed)
        # Of some records only.
        residency.pages[:] = 255 * (1 - int(share))
        before = bits(residency.pages, n_pages)
        chosen = np.arange(0, 50, 3)
        residency.look_up(batch_of(table, rows), chosen)
        looked_at = np.array(sorted(set().union(*pages_of(table, 1, rows[chosen]))))
        before[looked_at] = truth[looked_at]
        assert np.array_equal(bits(residency.pages, n_pages), before)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_what_was_missed_before(geometry: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    with make_files(tmp_path, **GEOMETRIES[geometry]) as table:
        residency = Residency(table.stored, gather_of(table))
        n_pages = gather_of(table).n_pages
        residency.pages[:] = rng.integers(0, 256, residency.pages.size, np.uint8)
        believed = bits(residency.pages, n_pages)
        missed: set[int] = set()
        for _ in range(4):
            rows = rng.integers(0, table.stored.owned(1)[0][1], 60)
            items = rng.permutation(60)[:40]
            out = [{page for page in pages if not believed[page]} for pages in pages_of(table, 1, rows[items])]
            addresses = np.ascontiguousarray(gather_of(table).placed.addresses(batch_of(table, rows))[:, items])
            kinds, n_missing, n_again = residency.part(addresses)
            assert kinds.tolist() == [(AGAIN if pages & missed else MISSING) if pages else WAITING for pages in out]
            assert (n_missing, n_again) == (sum(map(bool, out)), np.count_nonzero(kinds == AGAIN))
            missed |= set().union(*out)
        rows = np.arange(60)
        residency.mark(batch_of(table, rows), np.arange(0, 60, 2))
        for pages in pages_of(table, 1, rows[::2]):
            believed[list(pages)] = True
        assert np.array_equal(bits(residency.pages, n_pages), believed)
        residency.forget_missed()
        kinds, _, _ = residency.part(gather_of(table).placed.addresses(batch_of(table, rows)))
        assert AGAIN not in kinds


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_pages_that_are_out_are_fetched_and_believed_in(geometry: str, tmp_path: Path) -> None:
    with make_files(tmp_path, **GEOMETRIES[geometry]) as table:
        residency = Residency(table.stored, gather_of(table))
        cold(table)
        residency.refresh()
        rows = np.arange(0, table.stored.owned(1)[0][1], 7)
        addresses = gather_of(table).placed.addresses(batch_of(table, rows))
        kinds, _, _ = residency.part(addresses)
        kinds[::2] = WAITING
        before = bits(residency.pages, gather_of(table).n_pages)
        asked = sorted(set().union(*pages_of(table, 1, rows[1::2])))
        residency.fetch_pages(addresses, kinds)
        after = bits(residency.pages, gather_of(table).n_pages)
        assert after[asked].all()
        before[asked] = True
        assert np.array_equal(after, before)
        # The copy waits for what has not come; what was asked for is in memory then.
        table.fetch_rows(1, rows[1::2], engine="gather")
        residency.refresh()
        assert bits(residency.pages, gather_of(table).n_pages)[asked].all()


@pytest.mark.parametrize("n_layers", [1, 2])
def test_samples_contradict_the_map_only_where_it_is_wrong(n_layers: int, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(900,) * n_layers, row_bytes=ROW_BYTES, n_columns=4) as table:
        residency = Residency(table.stored, gather_of(table))
        rows = np.random.default_rng(0).integers(0, 900, (50, n_layers, 4))
        batch = table.places.check(rows, n_columns=4, first_layer=0, n_layers=n_layers)
        preload(paths_of(table))
        residency.refresh()
        assert not any(residency.is_contradicted(batch, 3, seed) for seed in range(50))
        cold(table)
        assert all(residency.is_contradicted(batch, 3, seed) for seed in range(50))
        residency.refresh()
        assert not any(residency.is_contradicted(batch, 3, seed) for seed in range(50))
