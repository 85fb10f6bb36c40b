"""`auto` against the real page cache: the right bytes whatever its map says, and what corrects the map."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_table import make_files, make_table
from page_cache import (
    GEOMETRIES,
    ROW_BYTES,
    auto_of,
    batch_of,
    bits,
    bring_in,
    cold,
    gather_of,
    in_memory,
    pages_of,
    paths_of,
    residency_of,
    wait_until,
)

from engram_tables.address.spec import Addresses
from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines import auto as auto_module
from engram_tables.fetch.engines import residency as residency_module
from engram_tables.fetch.engines.auto import READ_ORDER, AutoEngine
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Engine, Items, Pending
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.engines.residency import Residency
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.reference import read_batch, read_rows
from engram_tables.fetch.table import AUTO, Table
from engram_tables.measure.residency import evict, preload
from engram_tables.storage.row_files import RowFiles

PAST_THE_CACHE = ("uring", "aio", "direct")


class Counted:
    """Counts the rows that each engine is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.n_rows: dict[str, int] = {}
        for call in ("read", "begin"):
            monkeypatch.setattr(Engine, call, self._counting(getattr(Engine, call)))

    def _counting(self, real: Any) -> Any:
        def counting(engine: Engine, batch: Batch, out: Any, threads: Any = None, items: Items | None = None) -> Any:
            n = batch.rows.size if items is None else items.size
            self.n_rows[engine.name] = self.n_rows.get(engine.name, 0) + n
            return real(engine, batch, out, threads, items)

        return counting

    def past_the_cache(self) -> int:
        return sum(self.n_rows.get(name, 0) for name in PAST_THE_CACHE)


def reads_past_the_cache(table: Table) -> None:
    """Skip where nothing can."""
    rungs = auto_module.first_usable(table.stored, table.engine, READ_ORDER)
    if rungs[-1].engine not in PAST_THE_CACHE:
        pytest.skip("no engine reads past the page cache here")


# The engine.


@given(seed=st.integers(0, 2**32), believed=st.sampled_from(["all", "none", "random"]), call=st.sampled_from("rbi"))
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_wrong_map_never_gives_wrong_bytes(
    share: float, geometry: str, tmp_path_factory: pytest.TempPathFactory, seed: int, believed: str, call: str
) -> None:
    rng = np.random.default_rng(seed)
    with make_files(tmp_path_factory.mktemp("files"), **GEOMETRIES[geometry]) as table:
        residency = residency_of(table)
        bring_in(table, share)
        for _ in range(2):
            residency.is_whole = believed == "all"
            patterns = {"all": 255, "none": 0, "random": rng.integers(0, 256, residency.pages.size, np.uint8)}
            residency.pages[:] = patterns[believed]
            rows = rng.integers(0, table.stored.owned(1)[0][1], rng.choice([1, 48, 300, 2000]))
            expected = read_rows(table.stored, 1, np.arange(table.stored.owned(1)[0][1]))[rows]
            out = np.full_like(expected, 7)
            if call == "r":
                table.fetch_rows(1, rows, out)
            elif call == "b":
                auto_of(table).begin(batch_of(table, rows), out).finish()
            else:
                items = rng.permutation(rows.size)[: rng.integers(0, rows.size + 1)]
                auto_of(table).read(batch_of(table, rows), out, 2, items)
                expected[np.setdiff1d(np.arange(rows.size), items)] = 7
            assert np.array_equal(out, expected)


def test_eviction_is_noticed(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(20_000,), row_bytes=ROW_BYTES) as table:
        preload(paths_of(table))
        residency = residency_of(table)
        residency.refresh()
        assert residency.is_whole
        n_refreshes = residency.n_refreshes
        rng = np.random.default_rng(0)
        for _ in range(40):
            # What is read through a mapping comes back into memory.
            cold(table)
            for _ in range(10):
                table.fetch_rows(1, rng.integers(0, 20_000, 48))
            if residency.n_refreshes > n_refreshes:
                break
        wait_until(lambda: residency.n_refreshes > n_refreshes)
        assert auto_of(table)._n_contradicted > 0


def test_what_is_brought_in_by_others_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_table(tmp_path, n_rows=(20_000,), row_bytes=ROW_BYTES) as table:
        cold(table)
        residency = residency_of(table)
        reads_past_the_cache(table)
        bring_in(table, 1.0)
        rng = np.random.default_rng(0)
        for _ in range(200):
            table.fetch_rows(1, rng.integers(0, 20_000, 48))
        wait_until(lambda: residency.is_whole)
        counted = Counted(monkeypatch)
        for _ in range(50):
            table.fetch_rows(1, rng.integers(0, 20_000, 48))
        assert counted.past_the_cache() == 0


def test_what_is_used_again_becomes_warm_and_a_scan_leaves_memory_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_table(tmp_path, n_rows=(20_000,), row_bytes=ROW_BYTES) as table:
        cold(table)
        residency_of(table)
        reads_past_the_cache(table)
        cold(table)
        residency_of(table).refresh()
        residency_of(table).forget_missed()
        counted = Counted(monkeypatch)
        used, scanned = np.arange(100, 4000, 50), np.arange(8000, 16_000, 50)
        for rows in (used, scanned):
            table.fetch_rows(1, rows)
        assert counted.past_the_cache() == used.size + scanned.size
        assert not in_memory(table).any()
        table.fetch_rows(1, used)
        assert counted.past_the_cache() == used.size + scanned.size
        assert counted.n_rows["willneed"] == used.size
        truth = in_memory(table)
        assert set(np.flatnonzero(truth).tolist()) == set().union(*pages_of(table, 1, used))
        assert np.array_equal(bits(residency_of(table).pages, truth.size), truth)
        before = dict(counted.n_rows)
        table.fetch_rows(1, used)
        assert {name: n for name, n in counted.n_rows.items() if n != before.get(name)}.keys() <= {"gather", "auto"}


def test_rows_in_memory_are_copied_and_only_the_others_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_table(tmp_path, n_rows=(20_000, 15_000), row_bytes=ROW_BYTES, n_columns=24) as table:
        residency = residency_of(table)
        bring_in(table, 0.5)
        residency.refresh()
        reads_past_the_cache(table)
        rows = np.random.default_rng(0).integers(0, 15_000, (100, 2, 24))
        believed = bits(residency.pages, gather_of(table).n_pages)
        n_missing = sum(
            not all(believed[list(pages)])
            for layer, layer_id in enumerate((1, 2))
            for pages in pages_of(table, layer_id, rows[:, layer].reshape(-1))
        )
        counted = Counted(monkeypatch)
        expected = read_batch(table.stored, rows)
        found = table.fetch(Addresses(rows=rows, keys=np.zeros((100, 2, 1), np.uint64)))
        assert np.array_equal(found, expected)
        assert 0 < n_missing < rows.size
        # The slow twin has brought pages in meanwhile: a look may have found them.
        assert counted.past_the_cache() <= n_missing


def test_a_large_table_is_looked_up_row_by_row_until_its_map_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency_module, "_PAGES_ON_THE_SPOT", 0)
    may_refresh = threading.Event()
    real = Residency.refresh
    monkeypatch.setattr(Residency, "refresh", lambda self: may_refresh.wait(60) and real(self))
    with make_table(tmp_path, n_rows=(20_000,), row_bytes=ROW_BYTES) as table:
        bring_in(table, 0.5)
        reads_past_the_cache(table)
        bring_in(table, 0.5)
        rows = np.random.default_rng(0).integers(0, 20_000, 300)
        truth = in_memory(table)
        n_missing = sum(not all(truth[list(pages)]) for pages in pages_of(table, 1, rows))
        counted = Counted(monkeypatch)
        found = table.fetch_rows(1, rows)
        assert counted.past_the_cache() >= n_missing > 0
        assert counted.past_the_cache() < n_missing + 10
        residency = residency_of(table)
        assert not residency.is_known
        may_refresh.set()
        wait_until(lambda: residency.is_known)
        assert residency.n_refreshes == 1
        assert np.array_equal(found, read_rows(table.stored, 1, rows))


def test_where_the_system_does_not_say_pread_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency_module, "_is_answered", lambda file: False)
    with make_table(tmp_path) as table:
        counted = Counted(monkeypatch)
        rows = np.arange(500)
        assert np.array_equal(table.fetch_rows(1, rows), read_rows(table.stored, 1, rows))
        assert counted.n_rows == {"auto": 500, "pread": 500}
        assert auto_of(table).engine_names == ("pread",)


def test_whether_the_system_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make_table(tmp_path) as table:
        (file, *_) = table.stored.files
        assert residency_module._is_answered(file)
        monkeypatch.setattr(os, "geteuid", lambda: os.fstat(file.fd).st_uid + 4321)
        monkeypatch.setattr(os, "access", lambda *_, **__: False)
        assert not residency_module._is_answered(file)
        monkeypatch.setattr(os, "access", lambda *_, **__: True)
        assert residency_module._is_answered(file)


# Engines that are refused or fail.


def refusing(table: Table, *names: str) -> Callable[[str], Engine]:
    def engine_of(name: str) -> Engine:
        if name in names:
            raise BackendUnavailable(f"engine {name}: refused here; use another")
        return table.engine(name)

    return engine_of


def believing_nothing(table: Table, engine_of: Callable[[str], Engine], rows: Any) -> AutoEngine:
    """An engine whose map says that nothing is in memory."""
    auto = AutoEngine(table.stored, engine_of)
    auto.read(batch_of(table, rows[:1]), np.empty((1, table.row_bytes), np.uint8))
    assert auto.residency is not None
    auto.residency.pages[:] = 0
    auto.residency.is_whole = False
    return auto


def test_the_first_engine_that_reads_takes_what_is_missing(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3000,)) as table:
        rows = np.arange(200)
        expected = read_rows(table.stored, 1, rows)
        for n_refused in range(len(READ_ORDER)):
            cold(table)
            auto = believing_nothing(table, refusing(table, *READ_ORDER[:n_refused]), rows)
            out = np.empty_like(expected)
            auto.read(batch_of(table, rows), out)
            assert np.array_equal(out, expected)
            *refused, chosen = auto.rungs
            assert chosen.is_usable
            assert auto.engine_names == ("gather", chosen.engine)
            assert [rung.engine for rung in refused][:n_refused] == list(READ_ORDER[:n_refused])
            assert all("refused here" in str(rung.reason) for rung in refused[:n_refused])
            auto.close()


def test_no_engine_reads(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3000,)) as table:
        rows = np.arange(200)
        preload(paths_of(table))
        auto = believing_nothing(table, refusing(table, *READ_ORDER), rows)
        cold(table)
        with pytest.raises(BackendUnavailable, match=r"engine auto: found no way to read .*engine pread: refused here"):
            auto.read(batch_of(table, rows), np.empty((200, 264), np.uint8))
        auto.close()


class FailsInFlight(Engine):
    """Reads that begin and cannot be finished."""

    name = "direct"

    def __init__(self, table: Table) -> None:
        super().__init__(table.stored)
        self.n_begun = self.n_finished = 0

    def _read(self, batch: Batch, out: Any, threads: int | None, items: Items | None) -> None:
        out[:] = read_rows_of(batch, self)

    def _begin(self, batch: Batch, out: Any, threads: int | None, items: Items | None) -> Pending:
        self.n_begun += 1
        return self

    def finish(self) -> None:
        self.n_finished += 1
        raise OSError(5, "Input/output error")


def read_rows_of(batch: Batch, engine: FailsInFlight) -> Any:
    return read_rows(engine.stored, 1, batch.rows)  # type: ignore[attr-defined]


@pytest.mark.parametrize("others_fail", [False, True])
def test_a_failed_read_is_raised_after_all_are_finished(
    others_fail: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_table(tmp_path, n_rows=(20_000,), row_bytes=ROW_BYTES) as table:
        failing = FailsInFlight(table)
        failing.stored = table.stored  # type: ignore[attr-defined]
        usual = refusing(table, "uring", "aio")
        auto = believing_nothing(table, lambda name: failing if name == "direct" else usual(name), np.arange(1))
        cold(table)
        assert auto.residency is not None
        bring_in(table, 0.5)
        auto.residency.refresh()
        if others_fail:

            def fail(*_: object) -> None:
                raise RuntimeError("a copy failed")

            monkeypatch.setattr(GatherEngine, "_read_items", fail)
        rows = np.random.default_rng(0).integers(0, 20_000, 500)
        with pytest.raises(RuntimeError if others_fail else OSError, match="failed" if others_fail else "Input/output"):
            auto.read(batch_of(table, rows), np.empty((500, ROW_BYTES), np.uint8))
        assert failing.n_begun == failing.n_finished == 1
        auto.close()
        # No lease was left behind.
        failing.close()


# Threads, forks, ends.


def test_no_thread_and_no_map_without_auto(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(100,)) as table:
        before = set(threading.enumerate())
        table.fetch_rows(1, np.arange(100), engine="gather")
        assert set(threading.enumerate()) == before
        assert auto_of(table).residency is None
        assert set(threading.enumerate()) == before


def test_nothing_keeps_a_table_that_was_forgotten(tmp_path: Path) -> None:
    stored, table, engine = used_and_forgotten(tmp_path)

    def is_gone() -> bool:
        gc.collect()
        return table() is None and engine() is None

    wait_until(is_gone)
    stored.close()


def used_and_forgotten(
    root: Path,
) -> tuple[RowFiles, weakref.ReferenceType[Table], weakref.ReferenceType[AutoEngine]]:
    table = make_table(root, n_rows=(5000,))
    residency = residency_of(table)
    n_refreshes = residency.n_refreshes
    residency.ask()
    table.fetch_rows(1, np.arange(5000), threads=2)
    wait_until(lambda: residency.n_refreshes > n_refreshes)
    return table.stored, weakref.ref(table), weakref.ref(auto_of(table))


def test_close_ends_a_refresh_that_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began, ended = threading.Event(), threading.Event()

    def endless(self: Residency) -> None:
        began.set()
        while not self._stop[0]:
            time.sleep(0.001)
        ended.set()

    table = make_table(tmp_path, n_rows=(5000,))
    residency = residency_of(table)
    monkeypatch.setattr(Residency, "refresh", endless)
    residency.ask()
    table.fetch_rows(1, np.arange(5000), threads=2)
    assert began.wait(60)
    table.close()
    assert ended.is_set()
    assert auto_of_closed(table).warm is None


def auto_of_closed(table: Table) -> AutoEngine:
    engine = table._engines[AUTO]
    assert isinstance(engine, AutoEngine)
    return engine


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_refreshes_though_a_refresh_of_its_parent_was_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, may_end = threading.Event(), threading.Event()
    real, parent = Residency.refresh, os.getpid()

    def slow(self: Residency) -> None:
        if os.getpid() == parent:
            began.set()
            may_end.wait(60)
        real(self)

    with make_table(tmp_path, n_rows=(9000,)) as table:
        rows = np.arange(9000)
        expected = read_rows(table.stored, 1, rows)
        residency = residency_of(table)
        monkeypatch.setattr(Residency, "refresh", slow)
        residency.ask()
        table.fetch_rows(1, rows, threads=2)
        assert began.wait(60)
        child = os.fork()
        if child == 0:
            n_refreshes = residency.n_refreshes
            residency.ask()
            is_right = np.array_equal(table.fetch_rows(1, rows, threads=2), expected)
            deadline = time.monotonic() + 30
            while residency.n_refreshes == n_refreshes and time.monotonic() < deadline:
                time.sleep(0.01)
            os._exit(0 if is_right and residency.n_refreshes > n_refreshes else 1)
        deadline, done, status = time.monotonic() + 60, 0, 0
        while done == 0 and time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if done == 0:
            os.kill(child, 9)
            os.waitpid(child, 0)
        may_end.set()
        assert done == child
        assert os.waitstatus_to_exitcode(status) == 0


def test_many_threads_while_pages_come_and_go(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(20_000,), row_bytes=ROW_BYTES) as table:
        everything = read_rows(table.stored, 1, np.arange(20_000))
        wrong: list[int] = []
        stop = threading.Event()

        def read(seed: int) -> None:
            rng = np.random.default_rng(seed)
            while not stop.is_set():
                rows = rng.integers(0, 20_000, rng.choice([1, 48, 700]))
                if not np.array_equal(table.fetch_rows(1, rows), everything[rows]):
                    wrong.append(seed)

        readers = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
        for reader in readers:
            reader.start()
        for _ in range(4):
            evict(paths_of(table))
            time.sleep(0.05)
            preload(paths_of(table))
            time.sleep(0.05)
        stop.set()
        for reader in readers:
            reader.join()
        assert wrong == []
        assert ENGINES.keys() >= set(READ_ORDER)
