"""The short way to records in memory: the slow twin's bytes, or nothing; and the map of resident pages."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_table import apart, make_files, make_table, one_part

from engram_tables.address.spec import Addresses
from engram_tables.errors import IncompleteTable, InvalidInput
from engram_tables.fetch.engines import copying
from engram_tables.fetch.engines.copying import GatherEngine, MemoryEngine
from engram_tables.fetch.engines.file_region import FileRegion
from engram_tables.fetch.kernels import ABSENT, CLOSED, CONTRADICTED, DONE, LARGE, MISFIT, OUTSIDE, SPENT
from engram_tables.fetch.reference import read_batch, read_rows
from engram_tables.fetch.table import Table
from engram_tables.fetch.warm import WARM_ROWS
from engram_tables.measure.residency import evict
from engram_tables.memory import HUGE_PAGE_BYTES
from engram_tables.storage.row_files import RowFile

ANY_FIXTURE = [HealthCheck.function_scoped_fixture]


def addresses(rows: Any) -> Addresses:
    return Addresses(rows=rows, keys=np.zeros((*rows.shape[:2], 1), np.uint64))


def gather_of(table: Table) -> GatherEngine:
    engine = table.engine("gather")
    assert isinstance(engine, GatherEngine)
    return engine


def pages_of(gather: GatherEngine, address: int, n_bytes: int) -> range:
    first = (address - gather.region.start) // mmap.PAGESIZE
    return range(first, (address + n_bytes - 1 - gather.region.start) // mmap.PAGESIZE + 1)


@given(data=st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=ANY_FIXTURE)
def test_the_slow_twins_bytes_or_nothing(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    layout = data.draw(st.sampled_from(["packed", "page", "aligned-512"]))
    n_rows = data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=3))
    cuts = []
    for n in n_rows:
        bounds = sorted(data.draw(st.sets(st.integers(0, n), max_size=4))) if data.draw(st.booleans()) else [0, n]
        cuts.append([[(start, stop - start) for start, stop in zip(bounds[::2], bounds[1::2], strict=False)]])
    if not any(of_layer[0] for of_layer in cuts):
        return
    root, n_columns = tmp_path_factory.mktemp("table"), data.draw(st.integers(1, 5))
    parts = one_part(layout, data.draw(st.sampled_from([63, 264])))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    with make_files(root, n_rows=n_rows, parts=parts, cuts=cuts, n_columns=n_columns) as table:
        warm = gather_of(table).warm
        assert warm is not None
        shape = data.draw(st.integers(1, 40)), len(n_rows), n_columns
        rows = np.stack([rng.integers(0, n, (shape[0], n_columns)) for n in n_rows], axis=1)
        if data.draw(st.booleans()):
            rows.reshape(-1)[rng.integers(rows.size)] = data.draw(
                st.sampled_from([-1, 300, 2**62, -(2**63), 2**63 - 1])
            )
        owned = [table.stored.owned(layer_id) for layer_id in table.stored.layer_ids]
        is_here = all(
            any(start <= row < stop for start, stop in owned[layer]) for (_, layer, _), row in np.ndenumerate(rows)
        )
        out = np.full((*shape, table.row_bytes), 7, np.uint8)
        assert warm.fetch_tokens(rows, out) == (DONE if is_here else OUTSIDE)
        assert np.array_equal(out, read_batch(table.stored, rows) if is_here else np.full_like(out, 7))
        layer = len(n_rows) - 1
        of_layer = np.ascontiguousarray(rows[:, layer]).reshape(-1)
        records = np.full((of_layer.size, table.row_bytes), 7, np.uint8)
        if warm.fetch_rows(layer, of_layer, records) == DONE:
            assert np.array_equal(records, read_rows(table.stored, layer + 1, of_layer))
        else:
            assert not is_here
            assert (records == 7).all()


@pytest.mark.parametrize("n_items", [1, 2, 15, 16, 17, 31, 2047, 2049, WARM_ROWS, WARM_ROWS + 1, 3 * WARM_ROWS])
def test_sizes_about_the_limit(n_items: int, tmp_path: Path) -> None:
    with make_table(tmp_path, layout="page", n_rows=(3001,), rows_per_shard=1000) as table:
        everything = read_rows(table.stored, 1, np.arange(3001))
        rows = np.random.default_rng(n_items).integers(0, 3001, n_items)
        out = np.full((n_items, 264), 7, np.uint8)
        warm = gather_of(table).warm
        assert warm is not None
        assert warm.fetch_rows(0, rows, out) == (DONE if n_items <= WARM_ROWS else LARGE)
        for threads in (None, 1, 2):
            assert np.array_equal(table.fetch_rows(1, rows, None, "gather", threads=threads), everything[rows])


def test_no_rows_and_other_shapes_are_declined(tmp_path: Path) -> None:
    with make_table(tmp_path, n_columns=3) as table:
        warm = gather_of(table).warm
        assert warm is not None
        rows = np.zeros((4, 2, 3), np.int64)
        assert warm.fetch_tokens(rows[:0], np.empty((0, 2, 3, 264), np.uint8)) == LARGE
        for shape in ((4, 2, 3, 263), (4, 3, 2, 264), (3, 2, 3, 264), (5, 2, 3, 264)):
            assert warm.fetch_tokens(rows, np.empty(shape, np.uint8)) == MISFIT
        for other in (np.zeros((4, 3, 2), np.int64), np.zeros((4, 1, 3), np.int64)):
            assert warm.fetch_tokens(other, np.empty((*other.shape, 264), np.uint8)) == MISFIT


def test_a_table_in_use_refuses_what_a_new_one_refuses(tmp_path: Path) -> None:
    """The short way has been found by then, and has no errors of its own."""
    with make_table(tmp_path, n_rows=(1000, 777), n_columns=3) as table:
        rows = np.zeros((4, 2, 3), np.int64)
        out = np.full((4, 2, 3, 264), 7, np.uint8)
        expected = table.fetch(addresses(rows), engine="gather")
        for bad in (-1, 777, 2**40, -(2**63), 2**63 - 1):
            wrong = rows.copy()
            wrong[3, 1, 2] = bad
            with pytest.raises(InvalidInput, match=rf"found row {bad} at position \(3, 1, 2\), expected 0 to 776"):
                table.fetch(addresses(wrong), out, "gather")
            with pytest.raises(InvalidInput, match=f"found row {bad} at position 5, expected 0 to 776"):
                table.fetch_rows(2, wrong[:, 1].reshape(-1)[-6:], engine="gather")
        read_only = out.copy()
        read_only.flags.writeable = False
        unusable: list[Any] = [
            out[..., :263], out[..., ::-1], out.view(np.int8), read_only, np.asfortranarray(out), out[:3], [1, 2]
        ]  # fmt: skip
        for bad_out in unusable:
            with pytest.raises(InvalidInput, match="out: found"):
                table.fetch(addresses(rows), bad_out, "gather")
        with pytest.raises(InvalidInput, match="threads"):
            table.fetch(addresses(rows), out, "gather", threads=0)
        with pytest.raises(InvalidInput, match="found float64"):
            table.fetch_rows(1, np.array([0.5]), engine="gather")
        with pytest.raises(InvalidInput, match=r"found shape \(1, 1\)"):
            table.fetch_rows(1, np.zeros((1, 1), np.int64), engine="gather")
        assert (out == 7).all()
        frozen = rows.copy()
        frozen.flags.writeable = False
        for usable in (frozen, np.asfortranarray(rows), rows.astype(np.int32), np.repeat(rows, 2, axis=2)[..., ::2]):
            assert np.array_equal(table.fetch(addresses(usable), None, "gather"), expected)
        table.close()
        for warmed in ("gather", "auto"):
            with pytest.raises(InvalidInput, match="closed already"):
                table.fetch(addresses(rows), out, warmed)
        assert (out == 7).all()


@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.0, 0.5, 0.9, 1.0]), n_parts=st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=25, suppress_health_check=ANY_FIXTURE)
def test_the_map_of_pages(tmp_path_factory: pytest.TempPathFactory, seed: int, share: float, n_parts: int) -> None:
    rng = np.random.default_rng(seed)
    n = 700
    parts, cuts = (apart(264), [[[(0, n)]]]) if n_parts == 1 else (apart(256, 8), [[[(0, 300), (300, 400)], [(0, n)]]])
    with make_files(tmp_path_factory.mktemp("files"), n_rows=[n], parts=parts, cuts=cuts, n_columns=2) as table:
        gather = gather_of(table)
        bits = rng.random(gather.n_pages) < share
        pages = np.packbits(bits, bitorder="little")
        rows = rng.integers(0, n, (int(rng.integers(1, 30)), 1, 2))
        expected = read_batch(table.stored, rows).reshape(-1, 264)
        batch = table.places.check(rows, n_columns=2, first_layer=0, n_layers=1)
        found = gather.placed.addresses(batch)
        is_missing = np.array([
            not all(
                bits[page]
                for part, address in zip(parts, of_record.tolist(), strict=True)
                for page in pages_of(gather, address, part.n_bytes)
            )
            for of_record in found.T
        ])  # fmt: skip
        out = np.full((rows.size, 264), 7, np.uint8)
        missing, waiting = gather.copy_resident(batch, out, pages, 1)
        assert np.array_equal(missing, np.flatnonzero(is_missing))
        assert not is_missing[waiting].any()
        untouched = np.isin(np.arange(rows.size), [*missing, *waiting])
        assert np.array_equal(out, np.where(untouched[:, None], 7, expected))
        items = rng.permutation(rows.size)[: rows.size // 2]
        missing, waiting = gather.part_items(batch, items, pages)
        assert np.array_equal(missing, items[is_missing[items]])
        assert np.array_equal(waiting, items[~is_missing[items]])
        warm = gather.warm_path(pages)
        assert (warm is None) == (n_parts == 2)
        if warm is not None:
            tokens = np.full((*rows.shape, 264), 7, np.uint8)
            assert warm.fetch_tokens(rows, tokens) == (ABSENT if is_missing.any() else DONE)
            assert np.array_equal(tokens.reshape(-1, 264), np.full_like(expected, 7) if is_missing.any() else expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_large_batches_are_copied_until_a_record_is_missing(threads: int, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(40_000,), n_columns=1) as table:
        gather = gather_of(table)
        pages = np.full((gather.n_pages + 7) // 8, 255, np.uint8)
        rows = np.arange(20_000)
        batch = table.places.check(rows, n_columns=20_000, first_layer=0, n_layers=1)
        expected = read_rows(table.stored, 1, rows)
        out = np.full_like(expected, 7)
        assert all(not part.size for part in gather.copy_resident(batch, out, pages, threads))
        assert np.array_equal(out, expected)
        address = int(gather.placed.addresses(batch)[0, 15_000])
        (page, *_) = pages_of(gather, address, 1)
        pages[page // 8] &= np.uint8(255 - (1 << page % 8))
        out.fill(7)
        missing, waiting = gather.copy_resident(batch, out, pages, threads)
        assert 15_000 in missing
        assert missing.size < 20
        assert waiting.size
        gather.read(batch, out, threads, np.concatenate([missing, waiting]))
        assert np.array_equal(out, expected)


def test_a_map_that_is_wrong_is_contradicted(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(30_000,), n_columns=1) as table:
        gather = gather_of(table)
        pages = np.full((gather.n_pages + 7) // 8, 255, np.uint8)
        warm = gather.warm_path(pages, rows_a_check=1)
        assert warm is not None
        rows, out = np.arange(0, 30_000, 600), np.full((50, 264), 7, np.uint8)
        expected = read_rows(table.stored, 1, rows)
        assert warm.fetch_rows(0, rows, out) == DONE
        assert np.array_equal(out, expected)
        assert warm.n_contradicted == 0
        if evict([file.path for file in table.stored.files]):
            pytest.skip("this filesystem keeps the file in memory")
        out.fill(7)
        assert warm.fetch_rows(0, rows, out) == CONTRADICTED
        assert warm.n_contradicted == 1
        assert (out == 7).all()


def test_a_budget_runs_out(tmp_path: Path) -> None:
    with make_table(tmp_path) as table:
        warm = gather_of(table).warm
        assert warm is not None
        rows, out = np.zeros(10, np.int64), np.empty((10, 264), np.uint8)
        warm.budget(25)
        assert [warm.fetch_rows(0, rows, out) for _ in range(3)] == [DONE, DONE, SPENT]
        warm.budget(10)
        assert warm.fetch_rows(0, rows, out) == DONE


def test_closing_waits_for_the_kernels_behind_the_gate(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    gather = gather_of(table)
    gate, warm = gather._leases.gate(), gather.warm
    assert warm is not None
    gate[0] += 1  # as a kernel does
    closing = threading.Thread(target=table.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    out = np.full((1, 264), 7, np.uint8)
    assert warm.fetch_rows(0, np.zeros(1, np.int64), out) == CLOSED
    assert (out == 7).all()
    gate[0] -= 1
    closing.join(10)
    assert not closing.is_alive()
    assert warm.fetch_rows(0, np.zeros(1, np.int64), out) == CLOSED


def test_threads_fetch_while_the_table_is_closed(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 500, 200)
    for _ in range(10):
        table = make_table(tmp_path, n_rows=(500,))
        expected = table.fetch_rows(1, rows, engine="gather")
        wrong: list[object] = []

        def fetch(table: Table = table, wrong: list[object] = wrong, expected: Any = expected) -> None:
            out = np.empty_like(expected)
            try:
                while True:
                    table.fetch_rows(1, rows, out, "gather")
                    if not np.array_equal(out, expected):
                        wrong.append(out.copy())
            except InvalidInput as error:
                if "closed already" not in str(error):
                    wrong.append(error)

        workers = [threading.Thread(target=fetch) for _ in range(3)]
        for worker in workers:
            worker.start()
        table.close()
        for worker in workers:
            worker.join(20)
        assert not wrong


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_forgets_the_kernels_of_its_parent(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(500,)) as table:
        rows = np.arange(100)
        expected = table.fetch_rows(1, rows, engine="gather")
        gate = gather_of(table)._leases.gate()
        gate[0] += 1  # another thread's kernel, which the child will not have
        child = os.fork()
        if child == 0:
            status = 1
            try:
                is_same = np.array_equal(table.fetch_rows(1, rows, engine="gather"), expected)
                table.close()
                status = 0 if is_same else 2
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        gate[0] -= 1
        assert np.array_equal(table.fetch_rows(1, rows, engine="gather"), expected)


def test_a_region_of_files(tmp_path: Path) -> None:
    sizes = [1, 0, 4096, 5000]
    files = []
    for k, n_bytes in enumerate(sizes):
        path = tmp_path / str(k)
        path.write_bytes(bytes([k + 1]) * n_bytes)
        files.append(RowFile(path=path, file_bytes=n_bytes, fd=os.open(path, os.O_RDONLY)))
    region = FileRegion(files)
    assert region.start % HUGE_PAGE_BYTES == 0
    assert region.n_bytes == 3 * HUGE_PAGE_BYTES
    assert region.file_starts.tolist() == [0, *(np.array([1, 1, 2]) * HUGE_PAGE_BYTES).tolist()]
    maps = Path("/proc/self/maps")
    listed = maps.read_text() if maps.exists() else ""
    assert all(str(file.path) in listed for file in files if file.file_bytes) or not listed
    region.close()
    region.close()
    if listed:
        assert str(tmp_path) not in maps.read_text()
    for file in files:
        os.close(file.fd)
    bad = [RowFile(path=tmp_path / "0", file_bytes=4096, fd=-1)]
    with pytest.raises(OSError, match="mmap of 4096 bytes") as error:
        FileRegion(bad)
    assert str(tmp_path / "0") in error.value.__notes__[0]


@pytest.mark.parametrize("threads", [None, 1, 7])
def test_private_memory_is_filled_in_stretches(
    threads: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_FILL_BYTES", 5000)
    with make_table(tmp_path, layout="page", n_rows=(700, 333), rows_per_shard=100) as table:
        engine = MemoryEngine(table.stored, table.places, threads=threads)
        rows = np.random.default_rng(0).integers(0, 333, (100, 2, 3))
        assert np.array_equal(table.fetch(addresses(rows), engine=engine), read_batch(table.stored, rows))
        engine.close()
        with pytest.raises(InvalidInput, match="closed already"):
            table.fetch(addresses(rows), engine=engine)
        os.truncate(table.stored.files[1].path, 4096)
        with pytest.raises(IncompleteTable, match="was cut after the table was opened"):
            MemoryEngine(table.stored, table.places, threads=threads)
