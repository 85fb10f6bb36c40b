"""io_uring and libaio: what the system may answer, laid out in plain memory; then the real thing."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_table import apart, make_files, make_table
from plain_system import UNIT, Asked, PlainContext, PlainRing, PlainWork, run, serve

from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.engines.aio import AioEngine
from engram_tables.fetch.engines.queue_kernels import (
    BUSY_ROUNDS,
    CODE,
    END_OF_FILE,
    FILE,
    IN_FLIGHT,
    IS_BROKEN,
    MOST_TRIES,
    N_QUEUED,
    NEEDED,
    NO_FILE,
    OFFSET,
    ROUNDS,
    UNKNOWN_ANSWER,
    count_round,
    refuse_block,
    take,
)
from engram_tables.fetch.engines.queued import MOST_DEPTH, QueueEngine
from engram_tables.fetch.engines.rings import UringRing
from engram_tables.fetch.engines.uring import UringEngine
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import Table
from engram_tables.threads import resolve_threads

SYSTEMS = pytest.mark.parametrize("system_of", [PlainRing, PlainContext])
ENGINES = pytest.mark.parametrize("engine_of", [UringEngine, AioEngine])
FILE_BYTES = (40_960, 513, 12_801)
PUT_OFF = (-errno.EAGAIN, -errno.EINTR, -errno.ECANCELED)


def files_of(rng: np.random.Generator) -> list[Any]:
    return [rng.integers(0, 256, n, np.uint8) for n in FILE_BYTES]


def wanted_of(rng: np.random.Generator, n: int, part_bytes: int) -> list[tuple[int, int]]:
    file_idx = rng.integers(0, len(FILE_BYTES), n).tolist()
    return [(file, int(rng.integers(0, FILE_BYTES[file] - part_bytes + 1))) for file in file_idx]


# In plain memory.


@SYSTEMS
@given(
    seed=st.integers(0, 2**32), n=st.sampled_from([1, 2, 31, 200]), n_slots=st.sampled_from([1, 2, 7, 16]),
    part_bytes=st.sampled_from([1, 8, 264, 512]),
)  # fmt: skip
@settings(deadline=None, max_examples=60)
def test_answers_in_any_order_short_or_put_off(
    system_of: Any, seed: int, n: int, n_slots: int, part_bytes: int
) -> None:
    rng = np.random.default_rng(seed)
    files = files_of(rng)
    plain = PlainWork(files, wanted_of(rng, n, part_bytes), part_bytes, n_slots)

    def answer(asked: Asked) -> int:
        if rng.random() < 0.3:
            return int(rng.choice(PUT_OFF))
        # A whole unit and more, so that every answer goes on.
        return serve(files, asked, int(rng.choice([UNIT, UNIT + 1, 3 * UNIT - 1, 1 << 20])))

    run(system_of(n_slots, len(files)), plain, answer, rng)
    assert plain.state[CODE] == 0
    assert np.array_equal(plain.out, plain.expected)


@SYSTEMS
@given(seed=st.integers(0, 2**32), code=st.sampled_from([-errno.EIO, -errno.ENODATA, 0, 1, 263]))
@settings(deadline=None, max_examples=60)
def test_a_read_that_fails_is_named_and_ends_all(system_of: Any, seed: int, code: int) -> None:
    rng = np.random.default_rng(seed)
    files = files_of(rng)
    plain = PlainWork(files, wanted_of(rng, 200, 264), 264, 7)
    fatal, n_after = int(rng.integers(0, plain.work.n_reads)), 0
    failed: list[Asked] = []

    def answer(asked: Asked) -> int:
        nonlocal n_after
        if int(plain.slots.read[asked.slot]) == fatal:
            failed.append(asked)
            return code
        n_after += bool(failed)
        return serve(files, asked, 1 << 20)

    run(system_of(7, len(files)), plain, answer, rng)
    (asked,) = failed
    assert plain.state[CODE] == (-code if code < 0 else END_OF_FILE)
    file, offset, needed_bytes = plain.work.windows[fatal].tolist()
    assert plain.state[[FILE, OFFSET, NEEDED]].tolist() == [file, offset, needed_bytes]
    assert (asked.fd, asked.offset) == (file + 100, offset)
    # Whatever was in flight was waited for, and nothing else was asked for.
    assert n_after <= 6
    of_fatal = plain.work.order[plain.work.starts[fatal] : plain.work.starts[fatal + 1]]
    assert (plain.out[of_fatal] == 7).all()


@SYSTEMS
@pytest.mark.parametrize("code", PUT_OFF)
def test_a_read_put_off_for_ever_fails(system_of: Any, code: int) -> None:
    rng = np.random.default_rng(0)
    files = files_of(rng)
    plain = PlainWork(files, [(0, 100)], 264, 1)
    n_asked = 0

    def answer(asked: Asked) -> int:
        nonlocal n_asked
        n_asked += 1
        return code

    run(system_of(1, len(files)), plain, answer, rng)
    assert (plain.state[CODE], n_asked) == (-code, MOST_TRIES)


@SYSTEMS
@pytest.mark.parametrize("slot", [0, 1, 5, 2**31])
def test_an_answer_that_nobody_asked_for_breaks_the_queue(system_of: Any, slot: int) -> None:
    rng = np.random.default_rng(0)
    files = files_of(rng)
    plain = PlainWork(files, wanted_of(rng, 40, 264), 264, 2)
    system = system_of(2, len(files))
    system.queue(plain, taken := take(plain.work, plain.slots, plain.state))
    system.accept(plain)
    system.complete(plain, [((1 - taken) if slot < 2 else slot, 512)])
    assert plain.state[[CODE, FILE, IS_BROKEN, IN_FLIGHT]].tolist() == [UNKNOWN_ANSWER, NO_FILE, 1, 1]
    assert take(plain.work, plain.slots, plain.state) == -1
    assert (plain.out == 7).all()


def test_a_block_that_is_refused_fails_and_the_others_are_not_handed_over() -> None:
    rng = np.random.default_rng(0)
    files = files_of(rng)
    plain = PlainWork(files, [(0, 0), (0, 9000), (0, 20_000)], 264, 4)
    context = PlainContext(4, len(files))
    for _ in range(3):
        context.queue(plain, take(plain.work, plain.slots, plain.state))
    refuse_block(context.view, plain.work, plain.slots, plain.state, errno.EBADF)
    assert plain.state[[CODE, FILE, OFFSET, N_QUEUED]].tolist() == [errno.EBADF, 0, 0, 0]
    assert sorted(plain.slots.free.tolist()) == [0, 1, 2, 3]
    assert take(plain.work, plain.slots, plain.state) == -1


@pytest.mark.parametrize(
    ("n_wait", "n_answers", "is_round", "is_busy"),
    [(0, 0, 0, 0), (8, 0, 0, 0), (8, 8, 1, 0), (8, 63, 1, 0), (8, 64, 1, 1), (0, 7, 1, 0), (0, 8, 1, 1)],
)
def test_rounds_in_which_the_device_waits(n_wait: int, n_answers: int, is_round: int, is_busy: int) -> None:
    rng = np.random.default_rng(0)
    plain = PlainWork(files_of(rng), wanted_of(rng, 40, 264), 264, 128)
    count_round(plain.work, plain.slots, plain.state, n_wait, 8, n_answers)
    assert plain.state[[ROUNDS, BUSY_ROUNDS]].tolist() == [is_round, is_busy]
    # The last answers of a batch come as they come.
    plain.work.counter[0] = plain.work.n_reads
    count_round(plain.work, plain.slots, plain.state, n_wait, 8, n_answers)
    assert plain.state[ROUNDS] == is_round


# The real thing.


def batch_of(rows: Any) -> Batch:
    return Batch(np.asarray(rows, np.int64), len(rows), 0, 1)


def usable(engine_of: Any, table: Table, **options: Any) -> QueueEngine:
    try:
        engine: QueueEngine = engine_of(table.stored, table.places, **options)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    return engine


def n_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@ENGINES
@pytest.mark.parametrize("depth", [1, 2, 3, 16, 200])
def test_any_depth(engine_of: Any, depth: int, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(5000,), rows_per_shard=1200) as table:
        engine = usable(engine_of, table, depth=depth)
        rows = np.random.default_rng(depth).integers(0, 5000, 3000)
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine), read_rows(table.stored, 1, rows))
        engine.close()


@ENGINES
@pytest.mark.parametrize("depth", [0, -1, MOST_DEPTH + 1])
def test_a_depth_that_cannot_be(engine_of: Any, depth: int, tmp_path: Path) -> None:
    with make_table(tmp_path) as table:
        before = n_descriptors()
        with pytest.raises(InvalidInput, match=f"found {depth}, expected 1 to {MOST_DEPTH}"):
            engine_of(table.stored, table.places, depth=depth)
        assert n_descriptors() == before


@ENGINES
def test_parts_longer_than_a_page(engine_of: Any, tmp_path: Path) -> None:
    n = 60
    with make_files(tmp_path, n_rows=[n], parts=apart(30_001, 8), cuts=[[[(0, n)], [(0, n)]]]) as table:
        engine = usable(engine_of, table, depth=4)
        rows = np.random.default_rng(0).integers(0, n, 200)
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine), read_rows(table.stored, 1, rows))
        engine.close()


@ENGINES
def test_closing_gives_everything_back(engine_of: Any, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3000,)) as table:
        before = n_descriptors()
        for _ in range(3):
            engine = usable(engine_of, table)
            out = [np.empty((40, 264), np.uint8) for _ in range(3)]
            begun = [engine.begin(batch_of(np.arange(40) * 70), each) for each in out]
            for pending in reversed(begun):
                pending.finish()
            assert all(np.array_equal(each, read_rows(table.stored, 1, np.arange(40) * 70)) for each in out)
            engine.close()
            assert n_descriptors() == before
            with pytest.raises(InvalidInput, match="closed already"):
                engine.read(batch_of([0]), out[0][:1])
        # One that is dropped, not closed.
        usable(engine_of, table)
        assert n_descriptors() == before


@ENGINES
@pytest.mark.parametrize("n_rows", [3, 2500])
def test_begun_here_and_finished_in_another_thread(engine_of: Any, n_rows: int, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3000,)) as table:
        engine = usable(engine_of, table)
        rows = np.random.default_rng(0).permutation(3000)[:n_rows]
        out = np.full((n_rows, 264), 7, np.uint8)
        pending = engine.begin(batch_of(rows), out)
        thread = threading.Thread(target=pending.finish)
        thread.start()
        thread.join()
        assert np.array_equal(out, read_rows(table.stored, 1, rows))
        engine.close()


@ENGINES
def test_begun_in_a_thread_that_has_ended(engine_of: Any, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3000,)) as table:
        engine = usable(engine_of, table)
        rows = np.random.default_rng(0).permutation(3000)[:100]
        out = np.full((100, 264), 7, np.uint8)
        begun: list[Any] = []
        thread = threading.Thread(target=lambda: begun.append(engine.begin(batch_of(rows), out)))
        thread.start()
        thread.join()
        begun[0].finish()
        assert np.array_equal(out, read_rows(table.stored, 1, rows))
        engine.close()


@ENGINES
def test_many_callers_at_once(engine_of: Any, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3000,)) as table:
        engine = usable(engine_of, table, depth=8)
        expected = read_rows(table.stored, 1, np.arange(3000))

        def call(seed: int) -> bool:
            rng = np.random.default_rng(seed)
            same = True
            for n in (1, 8, 9, 300):
                rows = rng.integers(0, 3000, n)
                out = np.full((n, 264), 7, np.uint8)
                pending = engine.begin(batch_of(rows), out)
                same &= np.array_equal(table.fetch_rows(1, rows, engine=engine, threads=2), expected[rows])
                pending.finish()
                same &= np.array_equal(out, expected[rows])
            return same

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(call, range(24)))
        engine.close()


@ENGINES
def test_threads_share_a_large_batch(engine_of: Any, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(90_000,), row_bytes=1000) as table:
        engine = usable(engine_of, table)
        rows = np.random.default_rng(0).permutation(90_000)[:9000]
        expected = read_rows(table.stored, 1, rows)
        for threads in (1, 2, 4):
            assert np.array_equal(table.fetch_rows(1, rows, engine=engine, threads=threads), expected)
        engine._n_threads = 3
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine), expected)
        # The device kept up with three threads, or did not.
        assert engine._n_threads in {1, 3, min(6, resolve_threads(None))}
        assert len(engine._idle) >= 2
        engine.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@ENGINES
@pytest.mark.parametrize("n_rows", [60, 2500])
def test_a_fork_while_reads_are_in_flight(engine_of: Any, n_rows: int, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3000,)) as table:
        engine = usable(engine_of, table)
        rows = np.random.default_rng(0).permutation(3000)[:n_rows]
        expected = read_rows(table.stored, 1, rows)
        out = np.full((n_rows, 264), 7, np.uint8)
        pending = engine.begin(batch_of(rows), out)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                own = table.fetch_rows(1, rows[:50], engine=engine)
                pending.finish()
                is_same = np.array_equal(out, expected) and np.array_equal(own, expected[:50])
                status = 0 if is_same and len(engine._queues) >= 1 else 2
            finally:
                os._exit(status)
        pending.finish()
        assert np.array_equal(out, expected)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine), expected)
        engine.close()


def test_files_and_memory_are_registered_where_they_may_be(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(100,)) as table:
        engine = usable(UringEngine, table)
        backend = engine._idle[0].backend
        assert isinstance(backend, UringRing)
        if os.geteuid() == 0:
            assert backend.registered == {"files", "memory"}
        engine.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize("locked_bytes", [0, 256 << 10])
def test_with_little_locked_memory(locked_bytes: int, tmp_path: Path) -> None:
    """Too little for the slots, they are not registered; too little for the rings, the engine says so."""
    with make_table(tmp_path, n_rows=(3000,)) as table:
        rows = np.random.default_rng(0).permutation(3000)
        expected = read_rows(table.stored, 1, rows)
        engine = usable(UringEngine, table)
        # Compiled here: the child may not see the compiler's files.
        engine.read(batch_of(rows), np.empty((3000, 264), np.uint8))
        engine.close()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (locked_bytes, locked_bytes))
                # Takes CAP_IPC_LOCK with it, and this process's /proc/self/fd, which PR_SET_DUMPABLE gives back.
                os.setresuid(65534, 65534, 65534)
                ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
                try:
                    engine = UringEngine(table.stored, table.places)
                except BackendUnavailable as error:
                    os._exit(0 if locked_bytes == 0 and "ulimit -l" in str(error) else 2)
                backend = engine._idle[0].backend
                assert isinstance(backend, UringRing)
                out = np.full((3000, 264), 7, np.uint8)
                engine.read(batch_of(rows), out)
                is_right = backend.registered == {"files"} and np.array_equal(out, expected)
                status = 0 if locked_bytes and is_right else 3
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@ENGINES
def test_a_limit_is_named(engine_of: Any, tmp_path: Path) -> None:
    """No descriptor is left for a ring; a context needs none, and works."""
    with make_table(tmp_path, n_rows=(60_000,), row_bytes=1000) as table:
        engine = usable(engine_of, table)
        rows = np.arange(0, 60_000, 5)
        expected = read_rows(table.stored, 1, rows)
        # Kernels come from files too.
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine, threads=1), expected)
        out = np.full((2, 10, 1000), 7, np.uint8)
        first = engine.begin(batch_of(np.arange(10)), out[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        try:
            if engine_of is UringEngine:
                with pytest.raises(BackendUnavailable, match="io_uring: no file descriptor is left"):
                    engine.begin(batch_of(np.arange(10)), out[1])
                first.finish()
                # The ring that is there reads for the threads that get none.
                assert np.array_equal(table.fetch_rows(1, rows, engine=engine, threads=4), expected)
                first = engine.begin(batch_of(np.arange(10)), out[0])
            else:
                engine.begin(batch_of(np.arange(10)), out[1]).finish()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        first.finish()
        assert np.array_equal(out[0], read_rows(table.stored, 1, np.arange(10)))
        engine.close()
