"""Records copied out of mappings after the system was asked, for a whole batch at once, to read their pages."""

from __future__ import annotations

import concurrent.futures
import mmap
from concurrent.futures import Future

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Items, Pending
from engram_tables.fetch.engines.willneed_kernels import advise, pages_of
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.storage.row_files import RowFiles
from engram_tables.threads import in_background, resolve_threads, run_slices

_PAGES_A_THREAD = 512
# So many reads fit the queue of a usual device: advising more waits for the first ones.
_PAGES_WITHOUT_WAITING = 128


class WillneedEngine(GatherEngine):
    """MADV_WILLNEED for the sorted pages of a batch, neighbours together, then copies. The pages stay in memory.

    Raises
    ------
    BackendUnavailable
        The system knows no such advice.
    """

    name = "willneed"

    def __init__(self, table: RowFiles, places: Placements) -> None:
        if not hasattr(mmap, "MADV_WILLNEED"):
            raise BackendUnavailable(f"engine {self.name}: this system has no MADV_WILLNEED; use the engine pread")
        super().__init__(table, places)
        # Its copies must not begin before the advice.
        self.warm = None
        self._most_pages = int(sum((part.n_bytes + mmap.PAGESIZE - 2) // mmap.PAGESIZE + 1 for part in places.parts))

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        self._advise(self._pages(batch, items), threads)
        super()._read(batch, out, threads, items)

    def _begin(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> Pending:
        pages = self._pages(batch, items)
        if pages.size > _PAGES_WITHOUT_WAITING:
            return _Advised(self, batch, out, threads, items, in_background(lambda: self._advise(pages, threads)))
        self._advise(pages, threads)
        return _Advised(self, batch, out, threads, items, None)

    def _pages(self, batch: Batch, items: Items | None) -> NDArray[np.uint64]:
        """Addresses of the pages, ascending, duplicates included."""
        addresses = self.placed.addresses(batch)
        if items is not None:
            addresses = np.ascontiguousarray(addresses[:, items])
        pages = np.empty(addresses.shape[1] * self._most_pages, np.uint64)
        found = pages[: pages_of(addresses, self._part_bytes, mmap.PAGESIZE, pages)]
        found.sort()
        return found

    def _advise(self, pages: NDArray[np.uint64], threads: int | None) -> None:
        # Refused advice is no error: the copies wait for their pages one after the other.
        def work(start: int, stop: int) -> None:
            advise(pages, start, stop, mmap.PAGESIZE)

        run_slices(work, pages.size, threads=resolve_threads(threads), grain=_PAGES_A_THREAD)

    def _copy(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        super()._read(batch, out, threads, items)


class _Advised:
    """Records whose pages the system reads."""

    def __init__(
        self, engine: WillneedEngine, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None,
        advice: Future[None] | None,
    ) -> None:  # fmt: skip
        self._engine, self._wanted = engine, (batch, out, threads, items)
        self._advice = advice

    def finish(self) -> None:
        """See `Pending`."""
        if self._advice is not None:
            try:
                self._advice.result()
            except KeyboardInterrupt:
                # What is advised is mapped no more once the engine is closed.
                concurrent.futures.wait([self._advice])
                raise
        self._engine._copy(*self._wanted)
