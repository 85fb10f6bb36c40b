"""Records copied out of memory, with software prefetch: a mapping of the files, or private memory."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import IncompleteTable
from engram_tables.fetch.engines.engine import Engine, Items
from engram_tables.fetch.engines.read_kernels import count_resident
from engram_tables.fetch.kernels import PREFETCH_DISTANCE, Placement, copy_kernel, gather_kernel
from engram_tables.fetch.placement import Batch, Placed, Placements
from engram_tables.memory import anonymous_bytes
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import PAGE_BYTES

_GATHER_GRAIN = 4096
# Records whose parts are copied one part after the other: few enough that the output is still in a core's cache.
_PART_BLOCK = 1024
_READ_AHEAD_BYTES = 64 << 20


class CopyEngine(Engine):
    """Prefetching copies out of memory, in which the records are `placed`."""

    def __init__(self, table: RowFiles, places: Placements, placed: Placed) -> None:
        super().__init__(table)
        self.placed = placed
        self._parts: list[tuple[Any, int]] = [
            (gather_kernel(part.n_bytes, table.row_bytes), part.start) for part in places.parts
        ]
        self._item_kernels = [copy_kernel(part.n_bytes, table.row_bytes) for part in places.parts]
        self._part_starts = places.part_starts

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        """All usable CPUs by default, one for each few thousand rows: waking one costs as much."""
        if items is not None:
            self._read_items(batch, out, threads, items)
            return
        placements = self.placed.of(batch)
        # Of records in one piece a token's few rows are copied in microseconds: nothing else is made for them.
        copy = _copy_part(self._parts[0], placements[0], batch, out)
        if len(placements) > 1:
            parts = zip(self._parts, placements, strict=True)
            copy = _copy_in_turn([_copy_part(part, place, batch, out) for part, place in parts])
        run_slices(copy, batch.rows.size, threads=resolve_threads(threads), grain=_GATHER_GRAIN)

    def _read_items(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items) -> None:
        addresses = self.placed.addresses(batch)
        outputs = np.uint64(out.ctypes.data) + self._part_starts

        def copy(start: int, stop: int) -> None:
            for of_part, kernel, output in zip(addresses, self._item_kernels, outputs, strict=True):
                kernel(of_part, items, start, stop, output, PREFETCH_DISTANCE)

        run_slices(copy, items.size, threads=resolve_threads(threads), grain=_GATHER_GRAIN)


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

    name = "memory"

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
        super().__init__(table, places, Placed(places, bases))

    def _release(self) -> None:
        self.blocks.clear()


class GatherEngine(CopyEngine):
    """Copies out of mappings of its own, advised MADV_RANDOM: a page that is not in memory costs one page."""

    name = "gather"

    def __init__(self, table: RowFiles, places: Placements) -> None:
        self._mappings = [mmap.mmap(file.fd, file.file_bytes, prot=mmap.PROT_READ) for file in table.files]
        for mapping in self._mappings:
            if hasattr(mmap, "MADV_RANDOM"):
                mapping.madvise(mmap.MADV_RANDOM)
        views = [np.frombuffer(mapping, np.uint8) for mapping in self._mappings]
        starts = np.array([view.ctypes.data for view in views], np.uint64)
        super().__init__(table, places, places.in_files(starts))
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
