"""`pread` from many native threads, through the page cache or past it."""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Callable
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.engines.descriptors import ReadFiles
from engram_tables.fetch.engines.engine import Engine, Items, Pending
from engram_tables.fetch.engines.read_kernels import read_groups
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.memory import aligned_bytes
from engram_tables.storage.row_files import RowFiles
from engram_tables.threads import in_background, resolve_threads, run_slices
from engram_tables.units import PAGE_BYTES

READ_THREADS = 64
_READS_A_THREAD = 3
_MIN_BUFFER_BYTES = 64 << 10


class ReadEngine(Engine):
    """Many native threads in `pread`; 64 by default, fewer for small batches."""

    _is_direct = False

    def __init__(self, table: RowFiles, places: Placements) -> None:
        super().__init__(table)
        self._files = ReadFiles(self.name, table, places, direct=self._is_direct)
        window_bytes = max(part.n_bytes for part in table.parts) + 2 * self._files.unit
        self._buffer_bytes = -(-max(window_bytes, _MIN_BUFFER_BYTES) // PAGE_BYTES) * PAGE_BYTES
        self._buffers: list[NDArray[np.uint8]] = []

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        files = self._files
        reads = files.plan(batch, items, self._buffer_bytes)
        most = resolve_threads(threads) if threads is not None else READ_THREADS
        n_workers = max(1, min(most, reads.n_reads // _READS_A_THREAD))
        counter = np.zeros(1, np.int64)
        n_at_once = min(32, max(1, reads.n_reads // (n_workers * 16)))
        failures = np.zeros((n_workers, 4), np.int64)
        of_kernel = reads.starts, reads.windows, reads.n_reads, reads.spots, reads.order
        plan = reads.n_records, files.row_bytes, files.unit, files.part_starts, files.part_bytes
        output = np.uint64(out.ctypes.data)

        def work(start: int, stop: int) -> None:
            buffer = self._take_buffer()
            for worker in range(start, stop):
                address = np.uint64(buffer.ctypes.data)
                read_groups(counter, n_at_once, of_kernel, files.fds, plan, output, address, failures[worker])
            self._buffers.append(buffer)

        run_slices(work, n_workers, threads=n_workers, grain=1)
        for failure in failures[failures[:, 0] != 0]:
            files.fail(*(int(figure) for figure in failure))

    def _begin(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> Pending:
        return Behind(lambda: self._read(batch, out, threads, items))

    def _take_buffer(self) -> NDArray[np.uint8]:
        try:
            return self._buffers.pop()
        except IndexError:
            return aligned_bytes(self._buffer_bytes, PAGE_BYTES)

    def _release(self) -> None:
        self._files.close()


class CachedReadEngine(ReadEngine):
    """Through the page cache, so that rows read once are warm afterwards."""

    name = "pread"


class DirectReadEngine(ReadEngine):
    """Past the page cache (O_DIRECT).

    Raises
    ------
    BackendUnavailable
        The files' system refuses direct reads.
    """

    name = "direct"
    _is_direct = True


class Behind:
    """A read under way in a thread of the pool."""

    def __init__(self, read: Callable[[], None]) -> None:
        self._read, self._process = read, os.getpid()
        self._future: Future[None] = in_background(read)

    def finish(self) -> None:
        """See `Pending`; after a fork, whose child has none of the threads, the child reads by itself."""
        if os.getpid() != self._process:
            self._read()
            return
        try:
            self._future.result()
        except KeyboardInterrupt:
            # The read uses files and memory that the caller is about to give back.
            concurrent.futures.wait([self._future])
            raise
