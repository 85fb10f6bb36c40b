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
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.memory import aligned_bytes, anonymous_bytes
from engram_tables.storage.reader import Shard, StoredTable
from engram_tables.threads import resolve_threads, run_slices

READ_THREADS = 64
_GATHER_GRAIN = 4096
_READS_A_THREAD = 3
_MIN_BUFFER_BYTES = 64 << 10
_PAGE_BYTES = 4096
_READ_AHEAD_BYTES = 64 << 20


class Engine(Protocol):
    """Fill `out`, uint8 (items, row_bytes) in C order, with the batch's records. Safe from many threads."""

    def read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """Read the batch; `threads` None is the engine's own default. `InvalidInput` once closed."""

    def close(self) -> None:
        """Wait for the reads in flight, then give files and mappings back."""


class _LeasedEngine(ABC):
    """What engines have in common: no read outlives the files and memory it needs."""

    def __init__(self, name: str, table: StoredTable) -> None:
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

    def __init__(self, table: StoredTable, places: Placements) -> None:
        super().__init__("mapping", table)
        self._places = places
        self._table = table
        self._layer_shards = [table.layer_shards(layer_id) for layer_id in table.layer_ids]

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """One thread, whatever `threads` says."""
        rows = batch.rows.reshape(-1, batch.n_layers, batch.n_columns)
        target = out.reshape(*rows.shape, -1)
        for layer in range(batch.n_layers):
            shards = self._layer_shards[batch.first_layer + layer]
            if len(shards) == 1 and batch.n_layers == 1:
                self._take(shards.start, batch.rows, out)
                continue
            shard_rows = self._table.shards[shards.start].n_rows
            of_layer = np.ascontiguousarray(rows[:, layer]).reshape(-1)
            records = np.empty((of_layer.size, out.shape[-1]), np.uint8)
            shard_of = of_layer // shard_rows
            for nth, shard_idx in enumerate(shards):
                chosen = np.flatnonzero(shard_of == nth)
                part = np.empty((chosen.size, out.shape[-1]), np.uint8)
                self._take(shard_idx, of_layer[chosen] - nth * shard_rows, part)
                records[chosen] = part
            target[:, layer] = records.reshape(target[:, layer].shape)

    def _take(self, shard_idx: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        layout = self._table.layout
        data = self._table.mapping(shard_idx)[self._table.shards[shard_idx].data_offset :]
        cells = data.reshape(-1, layout.cell_bytes)
        if layout.cell_rows == 1:
            # mode="clip" lets take write into `out` without a buffer of its own; the ids have been checked.
            np.take(cells, rows, axis=0, out=out, mode="clip")
        else:
            used = cells[:, : layout.cell_rows * layout.row_bytes]
            records = np.lib.stride_tricks.as_strided(
                used,
                (len(cells), layout.cell_rows, layout.row_bytes),
                (*used.strides[:1], layout.row_bytes, 1),
            )
            out[:] = records[rows // layout.cell_rows, rows % layout.cell_rows]


class CopyEngine(_LeasedEngine):
    """Prefetching copies out of memory, where file k of the table begins at address `file_starts[k]`."""

    def __init__(self, name: str, table: StoredTable, places: Placements, file_starts: NDArray[np.uint64]) -> None:
        super().__init__(name, table)
        self._places = places
        self._kernel: Any = gather_kernel(places.row_bytes)
        self.file_starts = file_starts
        self._placements: dict[tuple[int, int], Placement] = {}

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """All usable CPUs by default, one for each few thousand rows: waking one costs as much."""
        layers = batch.first_layer, batch.n_layers
        place = self._placements.get(layers)
        if place is None:
            place = self._placements[layers] = self._places.place(batch, self.file_starts)
        output = np.uint64(out.ctypes.data)

        def copy(start: int, stop: int) -> None:
            self._kernel(batch.rows, start, stop, batch.n_columns, place, output, PREFETCH_DISTANCE)

        run_slices(copy, batch.rows.size, threads=resolve_threads(threads), grain=_GATHER_GRAIN)


class MemoryEngine(CopyEngine):
    """Copies out of private memory into which the whole table was read; with huge pages where the system
    gives them.

    The resident tier: it takes as much memory as the table's files, and no read of it ever waits for a disk.
    """

    def __init__(self, table: StoredTable, places: Placements, *, huge_pages: bool = True) -> None:
        self.blocks = [anonymous_bytes(s.file_bytes, huge_pages=huge_pages) for s in table.shards]
        for shard, block in zip(table.shards, self.blocks, strict=True):
            _read_whole(shard, block)
        super().__init__("memory", table, places, np.array([block.ctypes.data for block in self.blocks], np.uint64))

    def _release(self) -> None:
        self.blocks.clear()


class GatherEngine(CopyEngine):
    """Copies out of mappings of its own, advised MADV_RANDOM: a page that is not in memory costs one page."""

    def __init__(self, table: StoredTable, places: Placements) -> None:
        self._mappings = [mmap.mmap(s.fd, s.file_bytes, prot=mmap.PROT_READ) for s in table.shards]
        for mapping in self._mappings:
            if hasattr(mmap, "MADV_RANDOM"):
                mapping.madvise(mmap.MADV_RANDOM)
        views = [np.frombuffer(mapping, np.uint8) for mapping in self._mappings]
        super().__init__("gather", table, places, np.array([view.ctypes.data for view in views], np.uint64))
        self._pages_a_record = (table.row_bytes + mmap.PAGESIZE - 2) // mmap.PAGESIZE + 1

    def views(self) -> list[NDArray[np.uint8]]:
        """Each file's mapping as uint8 (file_bytes,); let go of them before `close`."""
        with self._leases:
            return [np.frombuffer(mapping, np.uint8) for mapping in self._mappings]

    def resident_share(self, batch: Batch, n_samples: int) -> float:
        """Share of `n_samples` of the batch's records, evenly spread over it, whose pages are all in memory.

        Linux answers "in memory" for every page of a file that this process neither owns nor may write.
        """
        chosen = np.linspace(0, batch.rows.size - 1, min(n_samples, batch.rows.size)).astype(np.int64)
        addresses = self._places.addresses(batch, self.file_starts)[chosen]
        states = np.empty(self._pages_a_record, np.uint8)
        with self._leases:
            n_resident = int(count_resident(addresses, self._places.row_bytes, mmap.PAGESIZE, states))
        return max(n_resident, 0) / addresses.size

    def _release(self) -> None:
        for mapping in self._mappings:
            mapping.close()


class ReadEngine(_LeasedEngine):
    """`pread` from many native threads, through the page cache or past it."""

    def __init__(self, table: StoredTable, places: Placements, *, direct: bool) -> None:
        self._name = "direct" if direct else "pread"
        super().__init__(self._name, table)
        self._places = places
        self._paths = [str(shard.path) for shard in table.shards]
        self._file_spots = places.file_spots()
        self._fds: list[int] = []
        self._close_files = weakref.finalize(self, _close_all, self._fds)
        try:
            for shard in table.shards:
                self._fds.append(_reopen(shard, direct=direct))
            self._unit = max((_direct_unit(fd, s) for fd, s in zip(self._fds, table.shards, strict=True)), default=1)
        except BaseException:
            self.close()
            raise
        if not direct:
            self._unit = 1
        window_bytes = table.row_bytes + 2 * self._unit
        self._buffer_bytes = -(-max(window_bytes, _MIN_BUFFER_BYTES) // _PAGE_BYTES) * _PAGE_BYTES
        self._buffers: list[NDArray[np.uint8]] = []
        self._files = self._file_spots, np.array(self._fds, np.int64)

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None) -> None:
        """64 threads by default, fewer for small batches. A record asked for twice is read once."""
        spots = self._places.addresses(batch, self._file_spots)
        order = np.argsort(spots)
        spots = spots[order]
        starts = np.empty(spots.size + 1, np.int64)
        n_reads = int(group_reads(spots, self._places.row_bytes, self._unit, self._buffer_bytes, starts))
        most = resolve_threads(threads) if threads is not None else READ_THREADS
        n_workers = max(1, min(most, n_reads // _READS_A_THREAD))
        counter = np.zeros(1, np.int64)
        n_at_once = min(32, max(1, n_reads // (n_workers * 16)))
        failures = np.zeros((n_workers, 4), np.int64)
        plan = self._places.row_bytes, self._unit
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
            return aligned_bytes(self._buffer_bytes, _PAGE_BYTES)

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


def _read_whole(shard: Shard, block: Any) -> None:
    done = 0
    while done < shard.file_bytes:
        got = os.preadv(shard.fd, [block[done : done + _READ_AHEAD_BYTES]], done)
        if got == 0:
            raise IncompleteTable(
                f"{shard.path}: ends at byte {done}, expected {shard.file_bytes}; it was cut after "
                "the table was opened, copy it again",
                path=str(shard.path),
            )
        done += got


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _reopen(shard: Shard, *, direct: bool) -> int:
    """A descriptor of one's own for the very file that is open, whatever its name holds by now."""
    if not direct:
        fd = _open_again(shard, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return fd
    if not hasattr(os, "O_DIRECT"):
        raise BackendUnavailable("engine direct: this system has no O_DIRECT; use the engine pread")
    try:
        return _open_again(shard, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        raise BackendUnavailable(
            f"engine direct: the filesystem of {shard.path} refuses O_DIRECT ({error.strerror}); use the engine pread"
        ) from None


def _open_again(shard: Shard, flags: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{shard.fd}", flags | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = os.open(shard.path, flags | os.O_CLOEXEC)
    if not os.path.sameopenfile(fd, shard.fd):
        os.close(fd)
        raise BackendUnavailable(f"{shard.path}: was replaced after the table was opened; open the table again")
    return fd


def _direct_unit(fd: int, shard: Shard) -> int:
    """The smallest unit of direct reads that the file accepts, found by reading one."""
    buffer: Any = aligned_bytes(_PAGE_BYTES, _PAGE_BYTES)
    for unit in (512, _PAGE_BYTES):
        try:
            os.preadv(fd, [buffer[:unit]], unit if shard.file_bytes > unit else 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                error.add_note(f"{shard.path}: trying a direct read of {unit} bytes")
                raise
        else:
            return unit
    raise BackendUnavailable(
        f"engine direct: the filesystem of {shard.path} takes no direct reads of 512 or {_PAGE_BYTES} bytes; "
        "use the engine pread"
    )


ENGINES: dict[str, Callable[[StoredTable, Placements], Engine]] = {
    "gather": GatherEngine,
    "pread": lambda table, places: ReadEngine(table, places, direct=False),
    "direct": lambda table, places: ReadEngine(table, places, direct=True),
    "mapping": MappingEngine,
}
