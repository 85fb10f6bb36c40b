"""What a table refuses, and what it survives: closing, threads, forks, shards that are cut, filesystems."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_table import make_table

from engram_tables.address.spec import Addresses
from engram_tables.errors import BackendUnavailable, IncompleteTable, InvalidInput, SpecMismatch
from engram_tables.fetch.engines.copying import GatherEngine, MemoryEngine
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.engines.reading import ReadEngine
from engram_tables.fetch.kernels import Placement, copy_kernel, first_outside, locate
from engram_tables.fetch.leases import Leases
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import ENGINE_NAMES
from engram_tables.storage.codecs.codec import get_codec

SHM = Path("/dev/shm")


def addresses(rows: Any) -> Addresses:
    return Addresses(rows=np.asarray(rows, np.int64), keys=np.zeros((len(rows), 1, 1), np.uint64))


@pytest.mark.parametrize("engine", ENGINE_NAMES)
@pytest.mark.parametrize("bad", [-1, 777, 2**40, -(2**63), 2**63 - 1])
def test_a_row_out_of_range_is_named_and_nothing_written(engine: str, bad: int, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(1000, 777), n_columns=3) as table:
        rows = np.zeros((5, 2, 3), np.int64)
        rows[:, 0] = 999
        rows[3, 1, 2] = rows[4, 0, 0] = bad
        out = np.full((5, 2, 3, 264), 7, np.uint8)
        with pytest.raises(
            InvalidInput, match=rf"found row {bad} at position \(3, 1, 2\), expected 0 to 776 in layer 2"
        ):
            table.fetch(addresses(rows), out, engine)
        assert (out == 7).all()
        with pytest.raises(InvalidInput, match=f"found row {bad} at position 4, expected 0 to 776"):
            table.fetch_rows(2, [0, 1, 2, 776, bad, bad], engine=engine)


def test_a_row_past_int64_is_named(tmp_path: Path) -> None:
    with make_table(tmp_path) as table, pytest.raises(InvalidInput, match=str(2**64 - 1)):
        table.fetch_rows(1, np.array([2**64 - 1], np.uint64))


@pytest.mark.parametrize("shape", [(4, 1, 3), (4, 2, 4), (4, 6), (24,)])
def test_addresses_of_another_spec(shape: tuple[int, ...], tmp_path: Path) -> None:
    with make_table(tmp_path, n_columns=3) as table, pytest.raises(SpecMismatch, match="expected \\(tokens, 2 layers"):
        table.fetch(addresses(np.zeros(shape, np.int64)))


@pytest.mark.parametrize(
    "out",
    [
        np.empty((4, 2, 3, 263), np.uint8),
        np.empty((4, 2, 3, 264), np.int8),
        np.empty((4, 2, 3, 528), np.uint8)[..., ::2],
        np.asfortranarray(np.empty((4, 2, 3, 264), np.uint8)),
        np.frombuffer(bytes(4 * 2 * 3 * 264), np.uint8).reshape(4, 2, 3, 264),
        [1, 2],
    ],
    ids=["shape", "dtype", "strides", "order", "read-only", "list"],
)
def test_unusable_output(out: Any, tmp_path: Path) -> None:
    with make_table(tmp_path) as table, pytest.raises(InvalidInput, match="out: found"):
        table.fetch(addresses(np.zeros((4, 2, 3))), out)


def test_unusable_arguments(tmp_path: Path) -> None:
    with make_table(tmp_path) as table:
        with pytest.raises(InvalidInput, match="engine 'mmap': not known"):
            table.fetch_rows(1, [0], engine="mmap")
        with pytest.raises(InvalidInput, match="found float64"):
            table.fetch_rows(1, [0.5])
        with pytest.raises(InvalidInput, match=r"found shape \(1, 1\)"):
            table.fetch_rows(1, [[0]])
        with pytest.raises(InvalidInput, match="threads"):
            table.fetch_rows(1, [0], engine="gather", threads=0)


def _n_descriptors() -> int:
    listed = Path("/proc/self/fd")
    return sum(1 for _ in listed.iterdir()) if listed.exists() else 0


def test_closed_tables_refuse_and_closing_twice_is_nothing(tmp_path: Path) -> None:
    table = make_table(tmp_path)
    for engine in ENGINE_NAMES:
        table.fetch_rows(1, [1], engine=engine)
    open_before = _n_descriptors()
    table.close()
    table.close()
    if open_before:
        # Two files, held by the table itself, by pread and by direct; mmap keeps descriptors of its own.
        assert open_before - _n_descriptors() >= 6
        maps = Path("/proc/self/maps").read_text()
        assert str(tmp_path) not in maps
    with pytest.raises(InvalidInput, match="closed already"):
        table.fetch_rows(1, [1])


def test_closing_waits_for_the_reads_in_flight() -> None:
    leases, events = Leases("it"), []
    inside, may_leave = threading.Event(), threading.Event()

    def use() -> None:
        with leases:
            inside.set()
            may_leave.wait(10)
            events.append("read")

    user = threading.Thread(target=use)
    user.start()
    inside.wait(10)
    closer = threading.Thread(target=lambda: (leases.close(), events.append("closed")))
    closer.start()
    time.sleep(0.05)
    assert events == []
    may_leave.set()
    user.join()
    closer.join()
    assert events == ["read", "closed"]


@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_many_threads_at_once(engine: str, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(4001,), rows_per_shard=999) as table:
        expected = read_rows(table.stored, 1, np.arange(4001))

        def read(seed: int) -> bool:
            rows = np.random.default_rng(seed).integers(0, 4001, 3000)
            return np.array_equal(table.fetch_rows(1, rows, engine=engine), expected[rows])

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(read, range(32)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("engine", ENGINE_NAMES)
def test_a_child_reads_on_after_a_fork(engine: str, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(9000,)) as table:
        rows = np.arange(9000)
        expected = table.fetch_rows(1, rows, engine=engine, threads=2)
        child = os.fork()
        if child == 0:
            found = table.fetch_rows(1, rows, engine=engine, threads=2)
            os._exit(0 if np.array_equal(found, expected) else 1)
        deadline = time.monotonic() + 240
        done = 0
        while done == 0 and time.monotonic() < deadline:
            done, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.01)
        if done == 0:
            os.kill(child, 9)
            pytest.fail("the child hangs")
        assert os.waitstatus_to_exitcode(status) == 0


@pytest.mark.parametrize("engine", ["pread", "direct"])
def test_a_shard_that_was_cut_after_opening(engine: str, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(1000,)) as table:
        table.fetch_rows(1, [0], engine=engine)
        os.truncate(table.stored.files[0].path, table.stored.extents[0].offset + 500 * 264 + 100)
        assert np.array_equal(table.fetch_rows(1, [499], engine=engine), read_rows(table.stored, 1, [499]))
        with pytest.raises(IncompleteTable, match="was cut after the table was opened"):
            table.fetch_rows(1, np.arange(1000), engine=engine)
        with pytest.raises(IncompleteTable):
            table.fetch_rows(1, [500], engine=engine)


@pytest.mark.parametrize("engine", ["pread", "direct"])
def test_an_errno_of_the_system_is_passed_on(engine: str, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(1000,)) as table:
        reader = table.engine(engine)
        assert isinstance(reader, ReadEngine)
        # A descriptor that cannot be read.
        fd = os.open(tmp_path, os.O_RDONLY)
        reader._files.fds[0] = fd
        with pytest.raises(IsADirectoryError) as caught:
            table.fetch_rows(1, [3], engine=engine)
        assert str(table.stored.files[0].path) in str(caught.value)
        assert any(f"engine {engine}" in note and "at byte" in note for note in caught.value.__notes__)
        os.close(fd)


@pytest.mark.skipif(not SHM.is_dir(), reason="no tmpfs here")
def test_direct_on_a_filesystem_without_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir=SHM) as root, make_table(Path(root)) as table:
        rows = np.arange(700)
        expected = read_rows(table.stored, 1, rows)
        # Older kernels refuse O_DIRECT on tmpfs.
        with contextlib.suppress(BackendUnavailable):
            assert np.array_equal(table.fetch_rows(1, rows, engine="direct"), expected)
        assert np.array_equal(table.fetch_rows(1, rows), expected)


def test_direct_refused_by_the_filesystem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    plain_open = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), path)
        return plain_open(path, flags, *more, **named)

    with make_table(tmp_path) as table:
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(BackendUnavailable, match="refuses O_DIRECT"):
            table.fetch_rows(1, [0], engine="direct")
        assert table.fetch_rows(1, [0], engine="pread").shape == (1, 264)


def test_a_replaced_directory_keeps_serving_the_old_bytes(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(100,)) as table:
        rows = np.arange(100)
        expected = read_rows(table.stored, 1, rows)
        path = table.stored.files[0].path
        path.rename(tmp_path / "old")
        path.write_bytes(bytes(table.stored.files[0].file_bytes))
        for engine in ENGINES:
            assert np.array_equal(table.fetch_rows(1, rows, engine=engine), expected)


def test_residency_is_what_the_system_says(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(50_000,), row_bytes=1000) as table:
        gather = table.engine("gather")
        assert isinstance(gather, GatherEngine)
        batch = table.places.check(np.arange(0, 50_000, 50), n_columns=1000, first_layer=0, n_layers=1)
        assert gather.resident_share(batch, 32) == 1.0
        fd = table.stored.files[0].fd
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert gather.resident_share(batch, 32) < 1.0


def test_the_whole_table_in_memory(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3000, 500), rows_per_shard=1000, layout="page") as table:
        memory = MemoryEngine(table.stored, table.places)
        rows = np.random.default_rng(0).integers(0, 500, (50, 2, 3))
        batch = table.places.check(rows, n_columns=3, first_layer=0, n_layers=2)
        out = np.empty((rows.size, 264), np.uint8)
        memory.read(batch, out, None)
        assert np.array_equal(out.reshape(50, 2, 3, 264), table.fetch(addresses(rows), engine="pread"))
        memory.close()


@pytest.mark.parametrize("is_equal", [True, False])
def test_division_by_a_reciprocal_is_exact(is_equal: bool) -> None:
    rng = np.random.default_rng(0)
    for per_extent in (1, 2, 3, 15, 1009, 16_000_057, 384_006_168, 2**31 + 11):
        n_extents = 9
        near = rng.integers(1, n_extents, 2000) * per_extent + rng.integers(-2, 3, 2000)
        rows = np.clip(near, 0, n_extents * per_extent - 1)
        for cell_rows, cell_bytes, part_bytes in ((1, 264, 264), (1, 512, 264), (15, 4096, 264), (4096, 4096, 1)):
            place = Placement(
                extents=np.array([[0, n_extents]]),
                extent_rows=np.array([per_extent if is_equal else 0]),
                first_rows=np.arange(n_extents) * per_extent,
                bases=(np.arange(n_extents) * 2**50).astype(np.uint64),
                cell_rows=cell_rows,
                cell_bytes=cell_bytes,
                part_bytes=part_bytes,
            )
            found = np.empty(rows.size, np.uint64)
            locate(rows, rows.size, place, found)
            row = rows % per_extent
            expected = rows // per_extent * 2**50 + row // cell_rows * cell_bytes + row % cell_rows * part_bytes
            assert np.array_equal(found, expected.astype(np.uint64))
            assert first_outside(rows, rows.size, np.array([n_extents * per_extent])) == -1


def test_kernels_are_kept_by_record_size() -> None:
    assert copy_kernel(264, 264) is copy_kernel(264, 264)
    assert copy_kernel(264, 264) is not copy_kernel(160, 160)
    assert copy_kernel(256, 264) is not copy_kernel(256, 256)


@pytest.mark.parametrize("name", ENGINES)
def test_engines_that_outlive_their_table_refuse(name: str, tmp_path: Path) -> None:
    table = make_table(tmp_path, n_rows=(1000,))
    engine = table.engine(name)
    batch = table.places.check(np.arange(3), n_columns=3, first_layer=0, n_layers=1)
    out = np.full((3, 264), 7, np.uint8)
    engine.read(batch, out, 1)
    table.close()
    # Whatever is opened next gets the descriptors that have become free.
    decoy = tmp_path / "decoy"
    decoy.write_bytes(bytes(300_000))
    others = [os.open(decoy, os.O_RDONLY) for _ in range(4)]
    out[:] = 7
    with pytest.raises(InvalidInput, match="closed already"):
        engine.read(batch, out, 1)
    with pytest.raises(InvalidInput, match="closed already"):
        table.engine(name)
    with pytest.raises(InvalidInput, match="closed already"):
        table.fetch_rows(1, [], engine=name)
    if isinstance(engine, GatherEngine):
        with pytest.raises(InvalidInput, match="closed already"):
            engine.resident_share(batch, 3)
        with pytest.raises(InvalidInput, match="closed already"):
            engine.views()
    assert (out == 7).all()
    for fd in others:
        os.close(fd)


def test_a_table_is_closed_after_the_reads_of_its_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = make_table(tmp_path)
    inside, may_leave, events = threading.Event(), threading.Event(), []
    real = GatherEngine._read

    def slowly(self: GatherEngine, *arguments: Any) -> None:
        inside.set()
        may_leave.wait(10)
        real(self, *arguments)
        events.append("read")

    monkeypatch.setattr(GatherEngine, "_read", slowly)
    reader = threading.Thread(target=lambda: table.fetch_rows(1, [1], engine="gather"))
    reader.start()
    inside.wait(10)
    closer = threading.Thread(target=lambda: (table.close(), events.append("closed")))
    closer.start()
    time.sleep(0.05)
    assert events == []
    may_leave.set()
    reader.join()
    closer.join()
    assert events == ["read", "closed"]


def test_the_copy_in_memory_refuses_once_closed(tmp_path: Path) -> None:
    with make_table(tmp_path) as table:
        memory = MemoryEngine(table.stored, table.places)
        batch = table.places.check(np.arange(3), n_columns=3, first_layer=0, n_layers=1)
        memory.close()
        memory.close()
        with pytest.raises(InvalidInput, match="closed already"):
            memory.read(batch, np.empty((3, 264), np.uint8), None)


def test_records_of_another_length_are_not_decoded(tmp_path: Path) -> None:
    with make_table(tmp_path, row_bytes=33) as table:
        table.stored.codec = get_codec("fp8-e4m3-e8m0")
        assert table.decode(table.fetch_rows(1, [0, 1])).shape == (2, 32)
        for shape in ((2, 66), (), (33, 1), (2, 0)):
            with pytest.raises(InvalidInput, match=r"records: found uint8 .*expected uint8 \(\.\.\., 33\)"):
                table.decode(np.zeros(shape, np.uint8))
