"""The short way of `auto` to small batches of which nothing is in memory, against the real page cache."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_table import make_table
from page_cache import auto_of, bits, bring_in, cold, gather_of, pages_of, paths_of, residency_of, wait_until

from engram_tables.address.spec import Addresses
from engram_tables.errors import IncompleteTable, InvalidInput
from engram_tables.fetch.engines.auto import FirstMisses
from engram_tables.fetch.engines.engine import Engine
from engram_tables.fetch.engines.queue_kernels import FAILED, NOT_FIRST, STALE
from engram_tables.fetch.engines.queue_memory import Bundled
from engram_tables.fetch.engines.queued import SHORT_ROWS, ShortReads
from engram_tables.fetch.kernels import CLOSED, DONE, LARGE
from engram_tables.fetch.reference import read_batch, read_rows
from engram_tables.fetch.table import AUTO, Table
from engram_tables.measure.residency import evict, preload

N_ROWS = 5000


def shards(root: Path) -> Table:
    """Two layers in nine files."""
    return make_table(root, n_rows=(N_ROWS, 777), rows_per_shard=700)


def short_of(table: Table) -> ShortReads:
    """The short way of the engine that reads what is missing, as `auto` has it."""
    residency_of(table)
    short = auto_of(table)._engine_for_missing().warm
    if not isinstance(short, ShortReads):
        pytest.skip("no engine with a short way reads here")
    return short


def expecting_misses(table: Table) -> FirstMisses:
    """`auto` after a small batch of which nothing was in memory, with nothing in memory and nothing missed."""
    short_of(table)
    cold(table)
    residency = residency_of(table)
    residency.refresh()
    residency.forget_missed()
    auto = auto_of(table)
    table.fetch_rows(1, np.array([1]))
    assert isinstance(auto.warm, FirstMisses)
    residency.forget_missed()
    return auto.warm


class Long:
    """Counts the calls that went the long way to `auto`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_calls = 0
        real = Engine.read

        def read(engine: Engine, *args: Any, **options: Any) -> None:
            self.n_calls += engine.name == AUTO
            real(engine, *args, **options)

        monkeypatch.setattr(Engine, "read", read)


@given(
    seed=st.integers(0, 2**32), believed=st.sampled_from([0.0, 0.001, 0.3, 1.0]),
    missed=st.sampled_from([0.0, 0.001, 0.3]), of_all=st.booleans(),
)  # fmt: skip
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_it_reads_first_misses_alone_and_notes_them(
    share: float, tmp_path_factory: pytest.TempPathFactory, seed: int, believed: float, missed: float, of_all: bool
) -> None:
    rng = np.random.default_rng(seed)
    with shards(tmp_path_factory.mktemp("files")) as table:
        short, residency = short_of(table), residency_of(table)
        n_pages = gather_of(table).n_pages
        first = short.of_first_misses(*residency.maps)
        assert first is not None
        for which, chance in ((residency.pages, believed), (residency.missed, missed)):
            which[:] = np.packbits(rng.random(which.size * 8) < chance, bitorder="little")
        before = bits(residency.pages, n_pages), bits(residency.missed, n_pages)
        if of_all:
            rows = rng.integers(0, 777, (rng.integers(1, 9), 2, 3))
            expected = read_batch(table.stored, rows)
            wanted = [pages_of(table, layer_id, rows[:, k].reshape(-1)) for k, layer_id in enumerate((1, 2))]
            touched = sorted(set().union(*wanted[0], *wanted[1]))
        else:
            rows = rng.integers(0, N_ROWS, rng.integers(1, 60))
            expected = read_rows(table.stored, 1, rows)
            touched = sorted(set().union(*pages_of(table, 1, rows)))
        bring_in(table, share)
        out = np.full_like(expected, 7)
        answer = first.fetch_tokens(rows, out) if of_all else first.fetch_rows(0, rows, out)
        is_first = not (before[0] | before[1])[touched].any()
        assert answer in ((DONE, STALE) if is_first else (NOT_FIRST,))
        if is_first and share in (0.0, 1.0):
            assert (answer == STALE) == (share == 1.0)
        assert np.array_equal(out, expected if is_first else np.full_like(out, 7))
        noted = before[1].copy()
        noted[touched] |= is_first
        assert np.array_equal(bits(residency.missed, n_pages), noted)
        assert np.array_equal(bits(residency.pages, n_pages), before[0])


def test_cold_batches_go_the_short_way_until_one_is_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    with shards(tmp_path) as table:
        auto, rows = auto_of(table), rng.permutation(N_ROWS // 16)[:5] * 16
        expected = read_rows(table.stored, 1, rows)
        expecting_misses(table)
        table.fetch_rows(1, rows[:1])  # which looks for the short way
        residency_of(table).forget_missed()
        long = Long(monkeypatch)
        assert np.array_equal(table.fetch_rows(1, rows[1:]), expected[1:])
        assert long.n_calls == 0
        # In pages that were missed: they become warm.
        assert np.array_equal(table.fetch_rows(1, rows[1:]), expected[1:])
        assert long.n_calls == 1
        assert not isinstance(auto.warm, FirstMisses)
        assert np.array_equal(table.fetch_rows(1, rows[1:]), expected[1:])
        assert long.n_calls == 1


def test_tokens_of_all_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).integers(0, 777, (5, 2, 3))
    addresses = Addresses(rows=rows, keys=np.zeros((5, 2, 1), np.uint64))
    with shards(tmp_path) as table:
        expected = read_batch(table.stored, rows)
        for is_known_way in (False, True):
            expecting_misses(table)
            long = Long(monkeypatch)
            assert np.array_equal(table.fetch(addresses), expected)
            assert long.n_calls == (not is_known_way)


def test_what_others_bring_in_is_noticed(tmp_path: Path) -> None:
    with shards(tmp_path) as table:
        first, residency, rows = expecting_misses(table), residency_of(table), np.arange(0, N_ROWS, 150)
        expected = read_rows(table.stored, 1, rows)
        bring_in(table, 1.0)
        out = np.zeros_like(expected)
        assert first.fetch_rows(0, rows, out) == DONE
        assert np.array_equal(out, expected)
        believed = bits(residency.pages, gather_of(table).n_pages)
        assert believed[sorted(set().union(*pages_of(table, 1, rows)))].all()
        assert auto_of(table).warm is not first
        assert first.fetch_rows(0, rows, out) == NOT_FIRST


def test_a_refresh_that_is_asked_for_comes(tmp_path: Path) -> None:
    with shards(tmp_path) as table:
        first, residency = expecting_misses(table), residency_of(table)
        residency.ask()
        n_refreshes, rows = residency.n_refreshes, np.arange(0, N_ROWS, 50)
        out = np.empty((rows.size, table.row_bytes), np.uint8)
        for _ in range(residency.rows_between // rows.size + 2):
            assert first.fetch_rows(0, rows, out) == DONE
            residency.forget_missed()
        wait_until(lambda: residency.n_refreshes > n_refreshes)


def test_what_was_missed_is_forgotten_in_time(tmp_path: Path) -> None:
    with shards(tmp_path) as table:
        first, residency = expecting_misses(table), residency_of(table)
        residency._missed_until_forgotten = SHORT_ROWS - 1
        rows = np.arange(0, N_ROWS, N_ROWS // SHORT_ROWS)[:SHORT_ROWS]
        out = np.empty((rows.size, table.row_bytes), np.uint8)
        assert first.fetch_rows(0, rows, out) == DONE
        assert not residency.missed.any()
        assert first.fetch_rows(0, np.arange(SHORT_ROWS + 1), np.empty((SHORT_ROWS + 1, 264), np.uint8)) == LARGE
        assert auto_of(table).warm is not first


def test_a_read_that_fails_is_no_first_miss(tmp_path: Path) -> None:
    """Otherwise it would be read through a mapping the second time, where a failing device ends the process."""
    with make_table(tmp_path, n_rows=(3000,)) as table:
        first, residency = expecting_misses(table), residency_of(table)
        rows, out = np.array([0, 2999]), np.full((2, 264), 7, np.uint8)
        os.truncate(table.stored.files[0].path, 8192)
        assert first.fetch_rows(0, rows, out) == FAILED
        assert not residency.missed.any()
        with pytest.raises(IncompleteTable, match="was cut after the table was opened"):
            table.fetch_rows(1, rows, out)


def test_it_ends_with_its_engine(tmp_path: Path) -> None:
    with shards(tmp_path) as table:
        first, auto = expecting_misses(table), auto_of(table)
        rows, out = np.zeros(3, np.int64), np.full((3, table.row_bytes), 7, np.uint8)
        auto.close()
        assert first.fetch_rows(0, rows, out) == first.fetch_tokens(rows.reshape(1, 1, 3), out[None, None]) == CLOSED
        assert auto.warm is None
        assert (out == 7).all()
        with pytest.raises(InvalidInput, match="closed already"):
            table.fetch_rows(1, rows, out)


def test_bundles_are_not_passed_over(tmp_path: Path) -> None:
    """Their files are not in the maps."""
    with shards(tmp_path) as table:
        short, none = short_of(table), np.zeros(1, np.int64)
        keys = none.view(np.uint64)
        empty = Bundled(columns=none, spans=none, slots=keys, bases=keys, counts=none)
        short.look_in(empty, np.dtype(np.uint64))
        assert short.of_first_misses(*residency_of(table).maps) is None


def test_maps_and_memory_may_change_under_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with shards(tmp_path) as table:
        contents = read_rows(table.stored, 1, np.arange(N_ROWS))
        residency, wrong = residency_of(table), []
        expecting_misses(table)
        has_ended = threading.Event()

        def read(seed: int) -> None:
            mine = np.random.default_rng(seed)
            while not has_ended.is_set():
                rows = mine.integers(0, N_ROWS, mine.integers(1, 49))
                if not np.array_equal(table.fetch_rows(1, rows), contents[rows]):
                    wrong.append(rows)

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(2)]
        for reader in readers:
            reader.start()
        try:
            for turn in range(60):
                # Pages that a reader is at stay: whether all have gone is not asked.
                if turn % 10 == 0:
                    (preload if turn % 20 else evict)(paths_of(table))
                residency.pages[:] = rng.choice(np.array([0, 0, 0, 16, 255], np.uint8), residency.pages.size)
                residency.forget_missed()
        finally:
            has_ended.set()
            for reader in readers:
                reader.join()
        assert not wrong
