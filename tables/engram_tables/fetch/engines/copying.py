"""Records copied out of memory, with software prefetch: a mapping of the files, or private memory."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.engines.engine import Engine, Items
from engram_tables.fetch.engines.file_region import FileRegion
from engram_tables.fetch.engines.read_kernels import count_resident
from engram_tables.fetch.kernels import PREFETCH_DISTANCE, Placement, copy_items, copy_kernel, gather, sort_out
from engram_tables.fetch.placement import Batch, Placed, Placements
from engram_tables.fetch.warm import WarmPath
from engram_tables.memory import anonymous_bytes
from engram_tables.storage.row_files import RowFiles
from engram_tables.threads import resolve_threads, run_all, run_slices
from engram_tables.units import PAGE_BYTES

_GATHER_GRAIN = 4096
# Records whose parts are copied one part after the other: few enough that the output is still in a core's cache.
_PART_BLOCK = 1024
# Of a fill of private memory: bytes of a read, and reads at once, of which some wait for the disk.
_FILL_BYTES = 16 << 20
_FILL_THREADS = 4
_SORT_BLOCK = 4096
_PAGE_SHIFT = np.uint64(mmap.PAGESIZE.bit_length() - 1)
_WAITING, _MISSING, _COPIED = 0, 1, 2


class Parted(NamedTuple):
    """Records of a batch, by whether their pages are in memory: ascending positions in its flat rows."""

    missing: Items
    waiting: Items
    """Resident, and not copied yet"""


class CopyEngine(Engine):
    """Prefetching copies out of memory, in which the records are `placed`."""

    def __init__(self, table: RowFiles, places: Placements, placed: Placed, *, region_start: int = 0) -> None:
        super().__init__(table)
        self.placed, self.region_start = placed, region_start
        # Kept, since kernels get addresses of them.
        self._copies = [copy_kernel(part.n_bytes, table.row_bytes) for part in places.parts]
        self._part_starts, self._part_bytes = places.part_starts, places.part_bytes
        self._n_columns = table.spec.n_columns

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        """All usable CPUs by default, one for each few thousand rows: waking one costs as much."""
        if items is not None:
            self._read_items(batch, out, threads, items)
            return
        copy = self._copy_of(batch, out)
        run_slices(copy, batch.rows.size, threads=resolve_threads(threads), grain=_GATHER_GRAIN)

    def warm_path(
        self,
        pages: NDArray[np.uint8] | None = None,
        is_all: NDArray[np.uint8] | None = None,
        *,
        rows_a_check: int = 0,
    ) -> WarmPath | None:
        """The short way for small batches, see `WarmPath`; None for records whose parts lie apart.

        With `pages` it takes batches that lie in pages with a bit there, the first being that at `region_start`, or all
        as long as `is_all` says so.
        """
        if len(self._copies) > 1:
            return None
        return WarmPath(
            self.placed.places, self.placed.bases, self._leases, self._n_columns,
            pages=pages, is_all=is_all, region_start=self.region_start, rows_a_check=rows_a_check,
        )  # fmt: skip

    def copy_resident(
        self, batch: Batch, out: NDArray[np.uint8], pages: NDArray[np.uint8], threads: int | None = None
    ) -> Parted:
        """Copy a batch as long as all its records are resident, as `pages` says; each thread, from the first one that
        is not, sorts only. Every record of the batch is in the answer, or else copied."""
        states = np.full(batch.rows.size, _WAITING, np.uint8)

        def work(start: int, stop: int) -> None:
            n_missing = 0
            for block in range(start, stop, _SORT_BLOCK):
                end = min(block + _SORT_BLOCK, stop)
                n_missing += self._sort_out(self.placed.addresses(batch, block, end), pages, states[block:end])
                if not n_missing:
                    copy(block, end)
                    states[block:end] = _COPIED

        with self._leases:
            copy = self._copy_of(batch, out)
            run_slices(work, batch.rows.size, threads=resolve_threads(threads), grain=_GATHER_GRAIN)
        return Parted(np.flatnonzero(states == _MISSING), np.flatnonzero(states == _WAITING))

    def begins_resident(self, batch: Batch, pages: NDArray[np.uint8]) -> bool:
        """Whether the first block of a batch is all resident: otherwise `copy_resident` copies next to nothing."""
        states = np.empty(min(_SORT_BLOCK, batch.rows.size), np.uint8)
        return self._sort_out(self.placed.addresses(batch, 0, states.size), pages, states) == 0

    def part_items(self, batch: Batch, items: Items, pages: NDArray[np.uint8]) -> Parted:
        """Some records of a batch, sorted as by `copy_resident`; none is copied."""
        states = np.empty(items.size, np.uint8)
        self._sort_out(np.ascontiguousarray(self.placed.addresses(batch)[:, items]), pages, states)
        return Parted(items[states == _MISSING], items[states == _WAITING])

    def _sort_out(self, addresses: NDArray[np.uint64], pages: NDArray[np.uint8], states: NDArray[np.uint8]) -> int:
        map_address, region_start = np.uint64(pages.ctypes.data), np.uint64(self.region_start)
        return int(sort_out(addresses, self._part_bytes, map_address, region_start, _PAGE_SHIFT, states))

    def _copy_of(self, batch: Batch, out: NDArray[np.uint8]) -> _Copy:
        placements = self.placed.of(batch)
        parts = zip(self._copies, placements, self._part_starts.tolist(), strict=True)
        copies = [_copy_part(kernel, place, batch, out.ctypes.data + start) for kernel, place, start in parts]
        return copies[0] if len(copies) == 1 else _copy_in_turn(copies)

    def _read_items(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items) -> None:
        addresses = self.placed.addresses(batch)
        outputs = (np.uint64(out.ctypes.data) + self._part_starts).tolist()
        parts = list(zip(addresses, self._copies, self._part_bytes.tolist(), outputs, strict=True))

        def copy(start: int, stop: int) -> None:
            for of_part, kernel, n_bytes, output in parts:
                copy_items(of_part, items, start, stop, n_bytes, output, PREFETCH_DISTANCE, kernel.address)

        run_slices(copy, items.size, threads=resolve_threads(threads), grain=_GATHER_GRAIN)


_Copy = Callable[[int, int], None]


def _copy_part(kernel: Any, place: Placement, batch: Batch, output: int) -> _Copy:
    """Copies one part of the batch's records from `start` to `stop`; that of item 0 to the address `output`."""
    rows, n_columns, copy_at = batch.rows, batch.n_columns, kernel.address

    def copy(start: int, stop: int) -> None:
        gather(rows, start, stop, n_columns, place, output, PREFETCH_DISTANCE, copy_at)

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
    disk. `threads` fill it, usable CPUs by default, but four at least.
    """

    name = "memory"

    def __init__(
        self, table: RowFiles, places: Placements, *, huge_pages: bool = True, threads: int | None = None
    ) -> None:
        sizes = [table.parts[e.part_idx].data_bytes(e.n_rows) for e in table.extents]
        starts = np.concatenate(([0], np.cumsum([-(-size // PAGE_BYTES) * PAGE_BYTES for size in sizes])))
        block = anonymous_bytes(max(int(starts[-1]), 1), huge_pages=huge_pages)
        reads = []
        for extent, start, size in zip(table.extents, starts.tolist(), sizes, strict=False):
            file = table.files[extent.file_idx]
            # A file need not hold the spare bytes after its last row.
            n_bytes = min(size, file.file_bytes - extent.offset)
            for done in range(0, n_bytes, _FILL_BYTES):
                stretch = block[start + done : start + min(done + _FILL_BYTES, n_bytes)]
                reads.append((file, extent.offset + done, stretch))
        # Touching fresh memory costs as much as reading: both are shared out.
        run_all(lambda read: read[0].read_into(*read[1:]), reads, threads=max(resolve_threads(threads), _FILL_THREADS))
        self.blocks = [block]
        bases = np.uint64(block.ctypes.data) + starts[:-1].astype(np.uint64)
        super().__init__(table, places, Placed(places, bases))
        self.warm = self.warm_path()

    def _release(self) -> None:
        self.blocks.clear()


class GatherEngine(CopyEngine):
    """Copies out of mappings of its own, advised MADV_RANDOM: a page that is not in memory costs one page.

    Attributes
    ----------
    region
        The range of addresses into which all files are mapped.
    n_pages
        System pages of it.
    """

    name = "gather"

    def __init__(self, table: RowFiles, places: Placements) -> None:
        self.region = FileRegion(table.files)
        self.region.advise(getattr(mmap, "MADV_RANDOM", 1))
        self.n_pages = self.region.n_bytes // mmap.PAGESIZE
        self._files = table.files
        placed = places.in_files(self.region.file_starts + np.uint64(self.region.start))
        super().__init__(table, places, placed, region_start=self.region.start)
        self._pages_a_part = (max(part.n_bytes for part in places.parts) + mmap.PAGESIZE - 2) // mmap.PAGESIZE + 1
        self.warm = self.warm_path()

    def views(self) -> list[NDArray[np.uint8]]:
        """Each file as uint8 (file_bytes,), mapped anew: the pages are those of the engine's own mappings."""
        with self._leases:
            mappings = [mmap.mmap(file.fd, file.file_bytes, prot=mmap.PROT_READ) for file in self._files]
            return [np.frombuffer(mapping, np.uint8) for mapping in mappings]

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
        self.region.close()
