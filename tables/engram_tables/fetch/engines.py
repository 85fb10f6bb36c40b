"""The ways in which records reach the caller's buffer, behind one call. No clock, no choice between them.

`gather`   copy from a shared mapping, with software prefetch; for pages that are in memory.
`pread`    many native threads reading through the page cache, so that rows read once are warm afterwards.
`direct`   many native threads reading past the page cache (O_DIRECT), deduplicated and sorted by file offset.
`mapping`  NumPy's `take` on a mapping with default advice: the baseline. Where a page is not in memory, its
           row reads as much as the system's read-ahead.
"""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable, IncompleteTable
from engram_tables.fetch.cold_kernels import END_OF_FILE, count_resident, group_reads, read_groups
from engram_tables.fetch.kernels import PREFETCH_DISTANCE, Placement, gather_kernel
from engram_tables.fetch.leases import Leases
from engram_tables.fetch.placement import Batch, Placed, Placements
from engram_tables.memory import aligned_bytes, anonymous_bytes
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import PAGE_BYTES

READ_THREADS = 64
_GATHER_GRAIN = 4096
# Records whose parts are copied one part after the other: few enough that the output is still in a core's cache.
_PART_BLOCK = 1024
_READS_A_THREAD = 3
_MIN_BUFFER_BYTES = 64 << 10
_READ_AHEAD_BYTES = 64 << 20


class Engine(Protocol):
    """Fill `out`, uint8 (items, row_bytes) in C order, with the batch's records. Safe from many threads."""

    def read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """Read the batch; `threads` None is the engine's own default. `InvalidInput` once closed."""

    def close(self) -> None:
        """Wait for the reads in flight, then give files and mappings back."""


class _LeasedEngine(ABC):
    """What engines have in common: no read outlives the files and memory it needs."""

    def __init__(self, name: str, table: RowFiles) -> None:
        self._leases = Leases(f"engine {name} of table {table.path}")

    def read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """See `Engine`."""
        with self._leases:
            self._read(batch, out, threads)

    def close(self) -> None:
        """See `Engine`."""
        if self._leases.close():
            self._release()

    @abstractmethod
    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """Read the batch; the engine stays open meanwhile."""

    def _release(self) -> None:  # noqa: B027 (most engines hold nothing)
        """Give back what the engine holds."""


class MappingEngine(_LeasedEngine):
    """The baseline: `np.take` on plain mappings, which are the stored table's own."""

    def __init__(self, table: RowFiles, places: Placements) -> None:
        super().__init__("mapping", table)
        self._places = places
        self._table = table
        self._cells: dict[int, NDArray[np.uint8]] = {}

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """One thread, whatever `threads` says."""
        places = self._places
        if batch.n_layers == 1 and len(places.parts) == 1:
            extents = places.extents_of(0, batch.first_layer)
            if len(extents) == 1:
                self._take(extents.start, batch.rows, out)
                return
        rows = batch.rows.reshape(-1, batch.n_layers, batch.n_columns)
        target = out.reshape(*rows.shape, -1)
        for layer in range(batch.n_layers):
            of_layer = np.ascontiguousarray(rows[:, layer]).reshape(-1)
            records = np.empty((of_layer.size, out.shape[-1]), np.uint8)
            for part_idx, part in enumerate(places.parts):
                stretches = records[:, part.start : part.start + part.n_bytes]
                self._take_part(part_idx, batch.first_layer + layer, of_layer, stretches)
            target[:, layer] = records.reshape(target[:, layer].shape)

    def _take_part(self, part_idx: int, layer: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """One part of one layer's rows, extent by extent."""
        extent_of = self._places.extent_of_rows(part_idx, layer, rows)
        for nth, extent_idx in enumerate(self._places.extents_of(part_idx, layer)):
            chosen = np.flatnonzero(extent_of == nth)
            found = np.empty((chosen.size, out.shape[-1]), np.uint8)
            self._take(extent_idx, rows[chosen], found)
            out[chosen] = found

    def _take(self, extent_idx: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        extent = self._table.extents[extent_idx]
        part = self._places.parts[extent.part_idx]
        if extent.first_row:
            rows = rows - extent.first_row
        cells = self._cells.get(extent_idx)
        if cells is None:
            cells = self._cells[extent_idx] = self._map(extent, part)
        if part.cell_rows > 1:
            out[:] = cells[rows // part.cell_rows, rows % part.cell_rows]
        elif part.cell_bytes == part.n_bytes:
            # mode="clip" lets take write into `out` without a buffer of its own; the ids have been checked.
            np.take(cells, rows, axis=0, out=out, mode="clip")
        else:
            # Of an array with gaps take would copy the whole first.
            out[:] = cells[rows]

    def _map(self, extent: Extent, part: Part) -> NDArray[np.uint8]:
        """uint8 (cells, cell_rows, part bytes), or (rows, part bytes) where cells are of one row, without the spare
        bytes. The last cell may reach past the file's end, but none of its rows that are asked for."""
        data = self._table.mapping(extent.file_idx)[extent.offset :]
        n_cells = part.n_cells(extent.n_rows)
        shape, strides = (n_cells, part.cell_rows, part.n_bytes), (part.cell_bytes, part.n_bytes, 1)
        cells = np.lib.stride_tricks.as_strided(data, shape, strides, writeable=False)
        return cells if part.cell_rows > 1 else cells[:, 0]

    def _release(self) -> None:
        self._cells.clear()


class CopyEngine(_LeasedEngine):
    """Prefetching copies out of memory, in which the records are `placed`."""

    def __init__(self, name: str, table: RowFiles, places: Placements, placed: Placed) -> None:
        super().__init__(name, table)
        self.placed = placed
        self._parts: list[tuple[Any, int]] = [
            (gather_kernel(part.n_bytes, table.row_bytes), part.start) for part in places.parts
        ]

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """All usable CPUs by default, one for each few thousand rows: waking one costs as much."""
        placements = self.placed.of(batch)
        # Of records in one piece a token's few rows are copied in microseconds: nothing else is made for them.
        copy = _copy_part(self._parts[0], placements[0], batch, out)
        if len(placements) > 1:
            parts = zip(self._parts, placements, strict=True)
            copy = _copy_in_turn([_copy_part(part, place, batch, out) for part, place in parts])
        run_slices(copy, batch.rows.size, threads=resolve_threads(threads), grain=_GATHER_GRAIN)


_Copy = Callable[[int, int], None]


def _copy_part(part: tuple[Any, int], place: Placement, batch: Batch, out: NDArray[np.uint8]) -> _Copy:
    """Copies one part of the batch's records from `start` to `stop`."""
    kernel, part_start = part
    rows, n_columns, output = batch.rows, batch.n_columns, np.uint64(out.ctypes.data + part_start)

    def copy(start: int, stop: int) -> None:
        kernel(rows, start, stop, n_columns, place, output, PREFETCH_DISTANCE)

    return copy


def _copy_in_turn(copies: list[_Copy]) -> _Copy:
    def copy(start: int, stop: int) -> None:
        for block in range(start, stop, _PART_BLOCK):
            for copy_part in copies:
                copy_part(block, min(block + _PART_BLOCK, stop))

    return copy


class MemoryEngine(CopyEngine):
    """Copies out of private memory into which all rows were read; with huge pages where the system gives them.

    The resident tier: it takes as much memory as the rows take in their files, and no read of it ever waits for a
    disk.
    """

    def __init__(self, table: RowFiles, places: Placements, *, huge_pages: bool = True) -> None:
        sizes = [table.parts[e.part_idx].data_bytes(e.n_rows) for e in table.extents]
        starts = np.concatenate(([0], np.cumsum([-(-size // PAGE_BYTES) * PAGE_BYTES for size in sizes])))
        block = anonymous_bytes(max(int(starts[-1]), 1), huge_pages=huge_pages)
        for extent, start, size in zip(table.extents, starts.tolist(), sizes, strict=False):
            file = table.files[extent.file_idx]
            # A file need not hold the spare bytes after its last row.
            _read_range(file, extent.offset, block[start : start + min(size, file.file_bytes - extent.offset)])
        self.blocks = [block]
        bases = np.uint64(block.ctypes.data) + starts[:-1].astype(np.uint64)
        super().__init__("memory", table, places, Placed(places, bases))

    def _release(self) -> None:
        self.blocks.clear()


class GatherEngine(CopyEngine):
    """Copies out of mappings of its own, advised MADV_RANDOM: a page that is not in memory costs one page."""

    def __init__(self, table: RowFiles, places: Placements) -> None:
        self._mappings = [mmap.mmap(file.fd, file.file_bytes, prot=mmap.PROT_READ) for file in table.files]
        for mapping in self._mappings:
            if hasattr(mmap, "MADV_RANDOM"):
                mapping.madvise(mmap.MADV_RANDOM)
        views = [np.frombuffer(mapping, np.uint8) for mapping in self._mappings]
        starts = np.array([view.ctypes.data for view in views], np.uint64)
        super().__init__("gather", table, places, places.in_files(starts))
        self._part_bytes = places.part_bytes
        self._pages_a_part = (max(part.n_bytes for part in places.parts) + mmap.PAGESIZE - 2) // mmap.PAGESIZE + 1

    def views(self) -> list[NDArray[np.uint8]]:
        """Each file's mapping as uint8 (file_bytes,); let go of them before `close`."""
        with self._leases:
            return [np.frombuffer(mapping, np.uint8) for mapping in self._mappings]

    def resident_share(self, batch: Batch, n_samples: int) -> float:
        """Share of `n_samples` of the batch's records, evenly spread over it, whose pages are all in memory.

        Linux answers "in memory" for every page of a file that this process neither owns nor may write.
        """
        chosen = np.linspace(0, batch.rows.size - 1, min(n_samples, batch.rows.size)).astype(np.int64)
        addresses = self.placed.addresses(batch)[:, chosen]
        states = np.empty(self._pages_a_part, np.uint8)
        with self._leases:
            n_resident = int(count_resident(addresses, self._part_bytes, mmap.PAGESIZE, states))
        return max(n_resident, 0) / chosen.size

    def _release(self) -> None:
        for mapping in self._mappings:
            mapping.close()


class ReadEngine(_LeasedEngine):
    """`pread` from many native threads, through the page cache or past it."""

    def __init__(self, table: RowFiles, places: Placements, *, direct: bool) -> None:
        self._name = "direct" if direct else "pread"
        super().__init__(self._name, table)
        self._places = places
        self._paths = [str(file.path) for file in table.files]
        file_spots = places.file_spots()
        self._placed = places.in_files(file_spots)
        self._fds: list[int] = []
        self._close_files = weakref.finalize(self, _close_all, self._fds)
        try:
            for file in table.files:
                self._fds.append(_reopen(file, direct=direct))
            self._unit = max((_direct_unit(fd, f) for fd, f in zip(self._fds, table.files, strict=True)), default=1)
        except BaseException:
            self.close()
            raise
        if not direct:
            self._unit = 1
        window_bytes = max(part.n_bytes for part in table.parts) + 2 * self._unit
        self._buffer_bytes = -(-max(window_bytes, _MIN_BUFFER_BYTES) // PAGE_BYTES) * PAGE_BYTES
        self._buffers: list[NDArray[np.uint8]] = []
        self._files = file_spots, np.array(self._fds, np.int64)

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """64 threads by default, fewer for small batches. A record asked for twice is read once.

        All parts of all records are one list of reads, so that a record's second part does not wait for its first.
        """
        part_bytes, n_records = self._places.part_bytes, batch.rows.size
        spots = self._placed.addresses(batch).reshape(-1)
        order = np.argsort(spots)
        spots = spots[order]
        starts = np.empty(spots.size + 1, np.int64)
        n_reads = int(group_reads(spots, order, n_records, part_bytes, self._unit, self._buffer_bytes, starts))
        most = resolve_threads(threads) if threads is not None else READ_THREADS
        n_workers = max(1, min(most, n_reads // _READS_A_THREAD))
        counter = np.zeros(1, np.int64)
        n_at_once = min(32, max(1, n_reads // (n_workers * 16)))
        failures = np.zeros((n_workers, 4), np.int64)
        plan = n_records, self._places.row_bytes, self._unit, self._places.part_starts, part_bytes
        output = np.uint64(out.ctypes.data)

        def work(start: int, stop: int) -> None:
            buffer = self._take_buffer()
            for worker in range(start, stop):
                read_groups(
                    counter, n_at_once, starts, n_reads, spots, order, self._files, plan, output,
                    np.uint64(buffer.ctypes.data), failures[worker],
                )  # fmt: skip
            self._buffers.append(buffer)

        run_slices(work, n_workers, threads=n_workers, grain=1)
        for failure in failures[failures[:, 0] != 0]:
            self._raise(*(int(figure) for figure in failure))

    def _take_buffer(self) -> NDArray[np.uint8]:
        try:
            return self._buffers.pop()
        except IndexError:
            return aligned_bytes(self._buffer_bytes, PAGE_BYTES)

    def _raise(self, code: int, file: int, file_offset: int, n_bytes: int) -> None:
        path = self._paths[file]
        if code == END_OF_FILE:
            raise IncompleteTable(
                f"{path}: ends before byte {file_offset + n_bytes}, "
                f"expected {self._places.file_bytes[file]} bytes; it was cut after the table was opened, "
                "copy it again",
                path=path,
            )
        error = OSError(code, os.strerror(code), path)
        error.add_note(f"{path}: reading {n_bytes} bytes at byte {file_offset} (engine {self._name})")
        raise error

    def _release(self) -> None:
        self._close_files()


def _read_range(file: RowFile, offset: int, block: Any) -> None:
    done = 0
    while done < len(block):
        got = os.preadv(file.fd, [block[done : done + _READ_AHEAD_BYTES]], offset + done)
        if got == 0:
            raise IncompleteTable(
                f"{file.path}: ends at byte {offset + done}, expected {file.file_bytes}; it was cut after "
                "the table was opened, copy it again",
                path=str(file.path),
            )
        done += got


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _reopen(file: RowFile, *, direct: bool) -> int:
    """A descriptor of one's own for the very file that is open, whatever its name holds by now."""
    if not direct:
        fd = _open_again(file, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return fd
    if not hasattr(os, "O_DIRECT"):
        raise BackendUnavailable("engine direct: this system has no O_DIRECT; use the engine pread")
    try:
        return _open_again(file, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        raise BackendUnavailable(
            f"engine direct: the filesystem of {file.path} refuses O_DIRECT ({error.strerror}); use the engine pread"
        ) from None


def _open_again(file: RowFile, flags: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{file.fd}", flags | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = os.open(file.path, flags | os.O_CLOEXEC)
    if not os.path.sameopenfile(fd, file.fd):
        os.close(fd)
        raise BackendUnavailable(f"{file.path}: was replaced after the table was opened; open the table again")
    return fd


def _direct_unit(fd: int, file: RowFile) -> int:
    """The smallest unit of direct reads that the file accepts, found by reading one."""
    buffer: Any = aligned_bytes(PAGE_BYTES, PAGE_BYTES)
    for unit in (512, PAGE_BYTES):
        try:
            os.preadv(fd, [buffer[:unit]], unit if file.file_bytes > unit else 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                error.add_note(f"{file.path}: trying a direct read of {unit} bytes")
                raise
        else:
            return unit
    raise BackendUnavailable(
        f"engine direct: the filesystem of {file.path} takes no direct reads of 512 or {PAGE_BYTES} bytes; "
        "use the engine pread"
    )


ENGINES: dict[str, Callable[[RowFiles, Placements], Engine]] = {
    "gather": GatherEngine,
    "pread": lambda table, places: ReadEngine(table, places, direct=False),
    "direct": lambda table, places: ReadEngine(table, places, direct=True),
    "mapping": MappingEngine,
}
