"""What was tried to break reading: interrupts during reads, reads finished twice or never, wrong engines."""

from __future__ import annotations

import gc
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_table import make_table

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.engines.reading import Behind
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import AUTO, ENGINE_NAMES, Table
from engram_tables.fetch.tiers.budget import MemoryTier, TierPlan
from engram_tables.threads import in_background, run_all, run_slices


def interrupt() -> None:
    """What Ctrl-C does."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def closes(table: Table) -> bool:
    """Whether closing comes to an end."""
    closing = threading.Thread(target=table.close, daemon=True)
    closing.start()
    closing.join(3)
    return not closing.is_alive()


def addresses(rows: Any) -> Addresses:
    return Addresses(rows=np.asarray(rows, np.int64), keys=np.zeros((len(rows), 1, 1), np.uint64))


class Slow:
    """Work that interrupts the main thread once it has begun, and is noted when it has ended."""

    def __init__(self) -> None:
        self.n_begun = self.n_ended = 0

    def __call__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            while not self.n_begun:
                time.sleep(0.001)
            return
        self.n_begun += 1
        time.sleep(0.05)
        interrupt()
        time.sleep(0.2)
        self.n_ended += 1


def test_an_interrupt_is_raised_when_all_slices_have_ended() -> None:
    slow = Slow()
    with pytest.raises(KeyboardInterrupt):
        run_slices(slow, 2, threads=2, grain=1)
    assert slow.n_begun == slow.n_ended == 1


def test_an_interrupt_stops_what_goes_on_and_on() -> None:
    n_done, begun = 0, threading.Event()

    def work(_item: int) -> None:
        nonlocal n_done
        if threading.current_thread() is threading.main_thread():
            begun.wait()
            interrupt()
        begun.set()
        time.sleep(0.01)
        n_done += 1

    with pytest.raises(KeyboardInterrupt):
        run_all(work, range(10_000), threads=3)
    assert n_done < 10


def test_an_interrupt_is_raised_when_a_read_behind_has_ended() -> None:
    slow = Slow()
    behind = Behind(slow)
    with pytest.raises(KeyboardInterrupt):
        behind.finish()
    assert slow.n_begun == slow.n_ended == 1


def test_more_reads_under_way_than_the_pool_has_threads(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(1000,)) as table:
        rows = np.arange(1000) // 999 * 7 + np.arange(1000)
        rows = np.minimum(rows, 999)
        outs = [np.empty((1000, 264), np.uint8) for _ in range(300)]
        batch = table.places.check(rows, n_columns=1000, first_layer=0, n_layers=1)
        engine = table.engine("pread")
        pending = [engine.begin(batch, out) for out in outs]
        done = threading.Event()

        def finish() -> None:
            for each in pending:
                each.finish()
            done.set()

        threading.Thread(target=finish, daemon=True).start()
        assert done.wait(20)
        expected = read_rows(table.stored, 1, rows)
        assert all(np.array_equal(out, expected) for out in outs)


def test_a_closed_pool_leaves_the_work_to_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    monkeypatch.setattr("engram_tables.threads._pool", lambda: closed)
    seen: list[int] = []
    run_slices(lambda start, stop: seen.extend(range(start, stop)), 10, threads=4, grain=1)
    assert seen == list(range(10))
    assert in_background(lambda: 7).result() == 7
    with pytest.raises(ZeroDivisionError):
        in_background(lambda: 1 // 0).result()


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_finished_twice_is_refused_and_changes_nothing(engine: str, tmp_path: Path) -> None:
    table = make_table(tmp_path, n_rows=(1000, 777), n_columns=3)
    rows = np.random.default_rng(0).integers(0, 777, (40, 2, 3))
    out = np.zeros((*rows.shape, 264), np.uint8)
    pending = table.begin(addresses(rows), out, engine)
    pending.finish()
    with pytest.raises(InvalidInput, match="finished already"):
        pending.finish()
    assert np.array_equal(out, table.fetch(addresses(rows), engine="gather"))
    held = getattr(table.engine(engine), "_idle", [])
    assert len({id(queue) for queue in held}) == len(held)
    assert closes(table)


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_a_read_that_nobody_finishes_does_not_keep_a_table_open(engine: str, tmp_path: Path) -> None:
    table = make_table(tmp_path, n_rows=(1000, 777), n_columns=3)
    rows = np.random.default_rng(0).integers(0, 777, (40, 2, 3))
    table.begin(addresses(rows), np.zeros((*rows.shape, 264), np.uint8), engine)
    gc.collect()
    assert closes(table)


def test_closing_broken_off_is_taken_up_again(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    engines = [table.engine(name) for name in ("gather", "pread")]
    reads = threading.Event(), threading.Event()

    def read() -> None:
        with engines[0]._leases:
            reads[0].set()
            reads[1].wait()

    reading = threading.Thread(target=read)
    reading.start()
    reads[0].wait()
    threading.Timer(0.1, interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        table.close()
    assert not table.stored._is_closed
    reads[1].set()
    reading.join()
    table.close()
    assert table.stored._is_closed
    assert not any(engine._leases.close() for engine in engines)
    table.close()


def test_a_read_under_way_ends_before_its_table_is_closed(tmp_path: Path) -> None:
    for name in ENGINE_NAMES:
        table = make_table(tmp_path, n_rows=(1000, 777), n_columns=3)
        rows = np.random.default_rng(0).integers(0, 777, (40, 2, 3))
        expected, out = table.fetch(addresses(rows)), np.zeros((*rows.shape, 264), np.uint8)
        pending = table.begin(addresses(rows), out, name)
        assert closes(table)
        assert np.array_equal(out, expected)
        pending.finish()
        with pytest.raises(InvalidInput, match="finished already"):
            pending.finish()


@pytest.mark.parametrize("name", ["nonsense", "", "memory", "tiered"])
def test_an_engine_that_is_not_there(name: str, tmp_path: Path) -> None:
    with make_table(tmp_path) as table:
        with pytest.raises(InvalidInput, match="expected one of auto, gather"):
            table.engine(name)
        plan = TierPlan(tiers=(MemoryTier(budget_bytes=1 << 20),), behind=name)
        with pytest.raises(InvalidInput, match="expected one of auto, gather"):
            table.add_tiers(plan)
        table.add_tiers(TierPlan(tiers=plan.tiers))


@pytest.mark.parametrize("engine", [*ENGINES, AUTO])
def test_an_engine_of_another_table_is_refused(engine: str, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    with make_table(tmp_path / "a", seed=1) as one, make_table(tmp_path / "b", seed=2) as other:
        rows = np.arange(6).reshape(1, 2, 3)
        foreign = other.engine(engine)
        other.fetch(addresses(rows), engine=engine)
        with pytest.raises(InvalidInput, match=r"another table|of table"):
            one.fetch(addresses(rows), engine=foreign)
        with pytest.raises(InvalidInput, match=r"another table|of table"):
            one.fetch_rows(1, [1, 2], engine=foreign)
        with pytest.raises(InvalidInput, match=r"another table|of table"):
            one.begin(addresses(rows), np.empty((1, 2, 3, 264), np.uint8), foreign)


def test_too_few_descriptors_are_told_and_none_is_kept(tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with make_table(tmp_path, n_rows=(60,), rows_per_shard=1, n_columns=1) as table:
        rows = np.arange(60)
        expected = read_rows(table.stored, 1, rows)
        n_open = len(list(Path("/proc/self/fd").iterdir()))
        resource.setrlimit(resource.RLIMIT_NOFILE, (n_open + 30, limits[1]))
        try:
            for name in ("pread", "direct", "uring", "aio"):
                with pytest.raises(OSError, match="Too many open files") as caught:
                    table.fetch_rows(1, rows, engine=name)
                assert any("ulimit -n" in note for note in caught.value.__notes__)
                assert len(list(Path("/proc/self/fd").iterdir())) == n_open
            assert np.array_equal(table.fetch_rows(1, rows), expected)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_lease_that_was_never_given_back_does_not_keep_its_own_thread_from_closing(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    # As Ctrl-C leaves it that comes when a read has ended and its lease is about to be given back.
    table.engine("pread")._leases.__enter__()
    table.close()
    assert table.stored._is_closed
