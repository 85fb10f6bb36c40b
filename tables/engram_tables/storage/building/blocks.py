"""The blocks of one or several tables: made, hashed and written by several threads, each claimed in a journal.

Owns what happens between a plan and files with all their bytes. Knows neither manifests on the disk nor how a table
takes its name.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import CapacityError
from engram_tables.files import allocate, read_at, write_at
from engram_tables.storage.building.journal import BlockKey, BuildJournal, FinishedBlock
from engram_tables.storage.building.makers import RecordMaker, RecordWriter
from engram_tables.storage.extents import Part
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.shards import NO_DIGEST, ShardRecord, shard_header
from engram_tables.units import ProgressHook, format_bytes

if TYPE_CHECKING:
    from engram_tables.storage.codecs.fidelity import Fidelity

PROCESS_BYTES = 192 * 2**20
"""Of the memory given, what the interpreter, the libraries and compiled kernels take."""
_SYNC_FILE_RANGE_WRITE = 2
_LIBC = ctypes.CDLL(None)


class TableJob(NamedTuple):
    """A table to write: its manifest with empty digests, who makes its rows, and the directory that grows."""

    manifest: Manifest
    maker: RecordMaker
    directory: Path


class _Block(NamedTuple):
    key: BlockKey
    start: int
    stop: int


def threads_within(jobs: Sequence[TableJob], memory_bytes: int, n_threads: int) -> int:
    """How many of `n_threads` work within `memory_bytes`.

    Raises
    ------
    CapacityError
        Not even one does.
    """
    each = max((_thread_bytes(job) for job in jobs), default=0)
    if memory_bytes < PROCESS_BYTES + each:
        raise CapacityError(
            f"--memory {format_bytes(memory_bytes)}: found too little for one thread, expected "
            f"{format_bytes(PROCESS_BYTES + each)} or more; give more"
        )
    return min(n_threads, (memory_bytes - PROCESS_BYTES) // max(each, 1))


def reserve(path: Path, file_bytes: int) -> None:
    """A file of this length with its blocks allocated, so that a full disk is met before the work; what a file of this
    name holds stays."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    fd = os.open(path, flags, 0o666)
    try:
        allocate(fd, file_bytes)
    except OSError as error:
        error.add_note(f"reserving {format_bytes(file_bytes)} for {path.name}")
        raise
    finally:
        os.close(fd)


def write_file(path: Path, data: bytes) -> None:
    """A new file with these bytes, flushed."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        write_at(fd, memoryview(data), 0)
        os.fsync(fd)
    finally:
        os.close(fd)


class BlockRun:
    """One run over all blocks of all tables; workers take the next block as they become free.

    Attributes
    ----------
    n_reused
        Blocks that were there already and had the bytes that the journal claims.
    """

    def __init__(self, jobs: Sequence[TableJob], journal: BuildJournal, progress: ProgressHook | None) -> None:
        self.n_reused = 0
        self._jobs = jobs
        self._journal = journal
        self._claimed = dict(journal.finished)
        self._progress = progress
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._blocks = self._next_blocks()
        self._finished: dict[BlockKey, FinishedBlock] = {}
        shards = [(table_idx, shard_idx) for table_idx, job in enumerate(jobs) for shard_idx in _shard_idxs(job)]
        self._to_do = {(t, s): len(jobs[t].manifest.shards[s].block_sha256) for t, s in shards}
        self._headers = {(t, s): shard_header(jobs[t].manifest, jobs[t].manifest.shards[s]) for t, s in shards}
        self._total_bytes = sum(jobs[t].manifest.shards[s].file_bytes for t, s in shards)
        self._done_bytes = 0

    def run(self, n_threads: int) -> list[tuple[ShardRecord, ...]]:
        """Write everything; for each table its shards with their digests."""
        with ThreadPoolExecutor(n_threads, thread_name_prefix="engram-build") as pool:
            workers = [pool.submit(self._work) for _ in range(n_threads)]
            try:
                wait(workers, return_when=FIRST_EXCEPTION)
            finally:
                # Also after Ctrl-C: leaving the pool waits for the workers, each at most one block.
                self._stopped.set()
            for worker in workers:
                worker.result()
        return [
            tuple(self._with_digests(table_idx, shard_idx) for shard_idx in _shard_idxs(job))
            for table_idx, job in enumerate(self._jobs)
        ]

    def fidelity(self, table_idx: int) -> Fidelity | None:
        """What re-encoding lost in a table, summed in the order of its blocks; None where nothing was re-encoded."""
        total = None
        for key in sorted(key for key in self._finished if key.table_idx == table_idx):
            found = self._finished[key].fidelity
            if found is not None:
                from engram_tables.storage.codecs.fidelity import Fidelity

                one = Fidelity.from_json(found, where=str(self._journal.path))
                if total is None:
                    total = one
                else:
                    total.merge(one)
        return total

    def _with_digests(self, table_idx: int, shard_idx: int) -> ShardRecord:
        shard = self._jobs[table_idx].manifest.shards[shard_idx]
        keys = (BlockKey(table_idx, shard_idx, block_idx) for block_idx in range(len(shard.block_sha256)))
        header_sha256 = hashlib.sha256(self._headers[table_idx, shard_idx]).hexdigest()
        digests = tuple(self._finished[key].sha256 for key in keys)
        return replace(shard, header_sha256=header_sha256, block_sha256=digests)

    def _next_blocks(self) -> Iterator[_Block]:
        for table_idx, job in enumerate(self._jobs):
            block_bytes = job.manifest.block_bytes
            for shard_idx, shard in enumerate(job.manifest.shards):
                for block_idx, start in enumerate(range(0, shard.file_bytes, block_bytes)):
                    stop = min(start + block_bytes, shard.file_bytes)
                    yield _Block(BlockKey(table_idx, shard_idx, block_idx), start, stop)

    def _work(self) -> None:
        largest = max((_block_room(job) for job in self._jobs), default=0)
        buffer = np.empty(largest, dtype=np.uint8)
        table_idx, maker = -1, None
        while True:
            with self._lock:
                block = None if self._stopped.is_set() else next(self._blocks, None)
            if block is None:
                return
            if self._is_there(block, buffer):
                continue
            if maker is None or table_idx != block.key.table_idx:
                table_idx = block.key.table_idx
                maker = _BlockMaker(self._jobs[table_idx])
            header = self._headers[block.key[:2]]
            data, fidelity = maker.make(block, header, buffer)
            sha256 = hashlib.sha256(data).hexdigest()
            self._write(block, data, FinishedBlock(sha256, None if fidelity is None else fidelity.to_json()))

    def _path(self, block: _Block) -> Path:
        job = self._jobs[block.key.table_idx]
        return job.directory / job.manifest.shards[block.key.shard_idx].path

    def _is_there(self, block: _Block, buffer: NDArray[np.uint8]) -> bool:
        """Whether an earlier run wrote the block; it counts as finished then."""
        claim = self._claimed.get(block.key)
        if claim is None or claim.sha256 == NO_DIGEST:
            return False
        fd = os.open(self._path(block), os.O_RDWR | os.O_CLOEXEC)
        try:
            data = memoryview(buffer[: block.stop - block.start])  # type: ignore[arg-type]
            if hashlib.sha256(read_at(fd, data, block.start)).hexdigest() != claim.sha256:
                return False
            with self._lock:
                self.n_reused += 1
            self._finish(block, fd, claim)
        finally:
            os.close(fd)
        return True

    def _write(self, block: _Block, data: memoryview, finished: FinishedBlock) -> None:
        fd = os.open(self._path(block), os.O_WRONLY | os.O_CLOEXEC)
        try:
            write_at(fd, data, block.start)
            _start_writeback(fd, block.start, len(data))
            self._journal.add(block.key, finished)
            self._finish(block, fd, finished)
        finally:
            os.close(fd)

    def _finish(self, block: _Block, fd: int, finished: FinishedBlock) -> None:
        shard = block.key[:2]
        with self._lock:
            self._finished[block.key] = finished
            self._to_do[shard] -= 1
            is_last = self._to_do[shard] == 0
        if is_last:
            self._flush(block, fd)
        with self._lock:
            self._done_bytes += block.stop - block.start
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes)

    def _flush(self, block: _Block, fd: int) -> None:
        try:
            os.fsync(fd)
        except OSError as error:
            # After a failed flush the system may hold pages that the disk never got, and say so only once: what
            # is claimed of this file must not be found there again.
            with suppress(OSError):
                self._path(block).unlink()
            error.add_note(f"while flushing {self._path(block)}")
            raise


class _BlockMaker:
    """One thread's way from a block's number to its bytes, for one table."""

    def __init__(self, job: TableJob) -> None:
        self._manifest = job.manifest
        self._parts = job.manifest.parts
        self._writer: RecordWriter = job.maker.for_thread()
        self._tile_bytes = job.maker.tile_bytes
        self._tile = np.empty(_tile_room(self._parts, self._tile_bytes), dtype=np.uint8)

    def make(self, block: _Block, header: bytes, buffer: NDArray[np.uint8]) -> tuple[memoryview, Fidelity | None]:
        """The block's bytes, inside `buffer`."""
        shard = self._manifest.shards[block.key.shard_idx]
        part_idx = self._manifest.part_idx(shard.part)
        part = self._parts[part_idx]
        head = np.frombuffer(header, dtype=np.uint8)[block.start : block.stop]
        buffer[: len(head)] = head
        first = max(block.start - shard.data_offset, 0)
        last = max(block.stop - shard.data_offset, 0)
        first_cell, stop_cell = first // part.cell_bytes, -(-last // part.cell_bytes)
        rows = range(first_cell * part.cell_rows, min(stop_cell * part.cell_rows, shard.n_rows))
        cells = buffer[len(head) : len(head) + (stop_cell - first_cell) * part.cell_bytes]
        begun = _rows_begun(part, first, last, shard.n_rows) if part_idx == 0 else range(0)
        self._writer.begin(shard.layer_id, range(shard.first_row + begun.start, shard.first_row + begun.stop))
        self._fill_cells(shard, part_idx, rows, cells)
        skipped = first - first_cell * part.cell_bytes
        # Only a block without a header can begin inside a cell.
        data = memoryview(buffer[skipped : skipped + block.stop - block.start])  # type: ignore[arg-type]
        return data, self._writer.end()

    def _fill_cells(self, shard: ShardRecord, part_idx: int, rows: range, cells: NDArray[np.uint8]) -> None:
        """The part's stretches of `rows` of `shard`, which begin at a cell, laid into `cells`."""
        part = self._parts[part_idx]
        wanted = None if len(self._parts) == 1 else part_idx
        tile_rows = _tile_rows(part, self._tile_bytes)
        is_dense = (part.cell_rows, part.cell_bytes) == (1, part.n_bytes)
        for begin in range(0, len(rows), tile_rows):
            n_rows = min(tile_rows, len(rows) - begin)
            first_row = shard.first_row + rows.start + begin
            start = part.offset(begin)
            if is_dense:
                out = cells[start : start + n_rows * part.n_bytes].reshape(n_rows, part.n_bytes)
                self._writer.fill(shard.layer_id, wanted, first_row, out)
                continue
            stretches = self._tile[: n_rows * part.n_bytes].reshape(n_rows, part.n_bytes)
            self._writer.fill(shard.layer_id, wanted, first_row, stretches)
            part.place(stretches, cells[start : start + part.data_bytes(n_rows)])


def _rows_begun(part: Part, start: int, stop: int, n_rows: int) -> range:
    """The rows of a file whose first byte lies in `start` to `stop` of its data: each row in one block alone."""
    first, end = part.touched_rows(start, stop, n_rows)
    if first < end and part.offset(first) < start:
        first += 1
    return range(first, end)


def _tile_rows(part: Part, tile_bytes: int) -> int:
    return max(tile_bytes // part.cell_bytes, 1) * part.cell_rows


def _tile_room(parts: Sequence[Part], tile_bytes: int) -> int:
    """Bytes of the largest tile; 0 where rows follow each other without a gap and are filled as they lie."""
    spare = (part for part in parts if (part.cell_rows, part.cell_bytes) != (1, part.n_bytes))
    return max((_tile_rows(part, tile_bytes) * part.n_bytes for part in spare), default=0)


def _shard_idxs(job: TableJob) -> range:
    return range(len(job.manifest.shards))


def _block_room(job: TableJob) -> int:
    """Bytes that hold any block of a table with the cells that it cuts."""
    largest_file = max((shard.file_bytes for shard in job.manifest.shards), default=0)
    return min(job.manifest.block_bytes, largest_file) + 2 * max(part.cell_bytes for part in job.manifest.parts)


def _thread_bytes(job: TableJob) -> int:
    return _block_room(job) + _tile_room(job.manifest.parts, job.maker.tile_bytes) + job.maker.thread_bytes


def _start_writeback(fd: int, offset: int, n_bytes: int) -> None:
    """Ask Linux to send these bytes to the disk now, so that the fsync at a shard's end finds little left."""
    sync_file_range = getattr(_LIBC, "sync_file_range", None)
    if sync_file_range is not None:
        # A hint: what it says is not looked at, fsync decides.
        sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(n_bytes), _SYNC_FILE_RANGE_WRITE)
