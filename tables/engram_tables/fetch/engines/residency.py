"""An estimate of which pages of a table's files are in memory, kept off the path of the reads. It reads no record.

The estimate is a map with a bit for each page. It is made and renewed by `refresh`, in a thread of the pool, and
corrected by whoever looks records up. It may be wrong at any time: a wrong bit costs time, never bytes.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import Items
from engram_tables.fetch.engines.residency_kernels import (
    cached_pages,
    fetch_pages,
    fill,
    look_up,
    mark,
    n_absent,
    part,
    refresh_file,
)
from engram_tables.fetch.placement import Batch
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.threads import in_background

_KNOWS_EFFECTIVE_IDS = os.access in os.supports_effective_ids
_CHUNK_PAGES = 1 << 14
# Up to 256 MiB are looked up on the spot: 4 ms at worst, at about 55 ns a page (2-core VM, 2026-11).
_PAGES_ON_THE_SPOT = 1 << 16
# Pages that a refresh looks up for each row read since the last one: a microsecond of a thread in the background. A row
# whose page is not where the map says costs a hundred.
_PAGES_A_ROW = 16
_FEWEST_ROWS_BETWEEN = 2048


class Residency:
    """Which pages of the files that `gather` has mapped are believed in memory.

    Attributes
    ----------
    pages
        uint8: bit `p & 7` of byte `p >> 3` says that page p of the mapped region is in memory.
    missed
        As `pages`: what was read because it was not in memory, and not forgotten since.
    maps
        What `ShortReads.of_first_misses` takes.
    is_known
        Whether a refresh has filled the map. Until then only what was looked up is in it.
    is_whole, whole
        Whether everything was in memory at the last refresh, and nothing has contradicted that since; the same as uint8
        (1,), for kernels.
    is_answered
        Whether the system tells this process what is in memory: of files that it neither owns nor may write Linux
        says that all is.
    n_refreshes, n_looked_up
        Refreshes that ended, and pages that the last one had to look up one by one.
    """

    def __init__(self, stored: RowFiles, gather: GatherEngine, *, chunk_pages: int = _CHUNK_PAGES) -> None:
        self._gather, self._chunk_pages = gather, chunk_pages
        starts = gather.region.file_starts // np.uint64(mmap.PAGESIZE)
        self._files = [
            (file.fd, int(first), -(-file.file_bytes // mmap.PAGESIZE))
            for file, first in zip(stored.files, starts.tolist(), strict=True)
        ]
        self.pages = np.zeros((gather.n_pages + 7) // 8, np.uint8)
        self.missed = np.zeros_like(self.pages)
        self.maps = self.pages, self.missed, starts.astype(np.int64), gather.region.start
        self._n_pages = sum(n for _, _, n in self._files)
        self._missed_until_forgotten = self._window = min(self._n_pages, _memory_pages() // 2)
        self._part_bytes = np.array([part.n_bytes for part in stored.parts], np.uint64)
        # No part touches more pages, wherever it begins.
        self._states = (int(self._part_bytes.max()) + mmap.PAGESIZE - 2) // mmap.PAGESIZE + 1
        self._where = np.uint64(gather.region.start), mmap.PAGESIZE
        self._stop = np.zeros(1, np.uint8)
        self._under_way: dict[int, object] = {}
        self._n_corrections = 0
        self._rows_since_refresh, self._is_wanted = 0, False
        self.whole = np.zeros(1, np.uint8)
        self.is_known = False
        self.is_answered = all(_is_answered(file) for file in stored.files)
        self.n_refreshes = self.n_looked_up = 0

    @property
    def is_whole(self) -> bool:
        """See the class."""
        return bool(self.whole[0])

    @is_whole.setter
    def is_whole(self, is_whole: bool) -> None:
        self.whole[0] = is_whole

    def first_look(self) -> None:
        """Fill the map if that takes milliseconds: of files wholly in memory, wholly out, or small."""
        found = [cached_pages(fd, 0, n * mmap.PAGESIZE) for fd, _, n in self._files]
        if self._n_pages <= _PAGES_ON_THE_SPOT:
            self.refresh()
        elif all(n_in in (0, n) for n_in, (_, _, n) in zip(found, self._files, strict=True)):
            for n_in, (_, first, n) in zip(found, self._files, strict=True):
                fill(self.pages, first, n, int(n_in != 0))
            self.is_known, self.is_whole = True, sum(found) == self._n_pages

    def refresh(self) -> None:
        """Fill the map from what the system says now; about 0.2 ns a page where all or none of 64 MiB is in memory,
        otherwise about 55 ns."""
        before = self._n_corrections
        found, states = np.zeros(2, np.int64), np.empty(self._chunk_pages, np.uint8)
        address = self._gather.region.start
        for fd, first, n in self._files:
            start = np.uint64(address + first * mmap.PAGESIZE)
            if not refresh_file(fd, start, first, n, mmap.PAGESIZE, self.pages, self._stop, found, states):
                self.is_answered &= bool(self._stop[0])
                return
        self.is_whole = int(found[0]) == self._n_pages and before == self._n_corrections
        self.n_looked_up = int(found[1])
        self.n_refreshes += 1
        self.is_known = True

    def ask(self) -> None:
        """Ask for a refresh; it begins when so many rows have been read since the last one that it costs little."""
        self._is_wanted = True

    def count(self, n_rows: int, lease: AbstractContextManager[object]) -> None:
        """So many rows are read now: begin a refresh in the background, under `lease`, if one is asked for and due."""
        self._rows_since_refresh += n_rows
        if not self._is_wanted and self.is_known:
            return
        if self.n_refreshes and self._rows_since_refresh < self.rows_between:
            return
        # By process, so that a child does not wait for a thread of its parent's.
        process, token = os.getpid(), object()
        if self._under_way.setdefault(process, token) is token:
            self._is_wanted, self._rows_since_refresh = False, 0
            _submit(self.refresh, lease, lambda: self._under_way.pop(process, None))

    @property
    def rows_between(self) -> int:
        """The fewest rows between two refreshes, by what the last one cost."""
        return max(_FEWEST_ROWS_BETWEEN, self.n_looked_up // _PAGES_A_ROW)

    def stop(self) -> None:
        """Let a refresh under way end soon, unfinished."""
        self._stop[0] = 1

    def look_up(self, batch: Batch, items: Items | None = None) -> tuple[int, int]:
        """Correct the map for the pages of a batch's records, or of some: (pages that have gone, pages that have come).
        About a microsecond a record."""
        return self.look_up_at(self._addresses(batch, items))

    def look_up_at(self, addresses: NDArray[np.uint64]) -> tuple[int, int]:
        """As `look_up`, for records at `addresses`, uint64 (parts, n)."""
        n_gone, n_come = look_up(addresses, self._part_bytes, *self._where, self.pages, self._scratch())
        if n_gone:
            self._n_corrections += 1
            self.is_whole = False
        return int(n_gone), int(n_come)

    def is_contradicted(self, batch: Batch, n_samples: int, seed: int) -> bool:
        """Whether one of some records of the batch is believed in memory and is not; a microsecond each."""
        places = self._gather.placed.of(batch)
        place = places[seed % len(places)]
        n = n_absent(
            batch.rows, batch.n_columns, place, *self._where, self.pages, np.uint64(seed), n_samples, self._scratch()
        )
        return int(n) > 0

    def mark(self, batch: Batch, items: Items | None) -> None:
        """These records have just been read through the page cache."""
        mark(self._addresses(batch, items), self._part_bytes, *self._where, self.pages)

    def part(self, addresses: NDArray[np.uint64]) -> tuple[NDArray[np.uint8], int, int]:
        """WAITING, MISSING or AGAIN for each record, uint8 (n,), how many are not in memory, and how many of those are
        AGAIN; all that are out are remembered.

        `addresses` is uint64 (parts, n), from `gather.placed`. What was missed is forgotten after as many misses as
        half the memory has pages: what comes back later than that would not have stayed.
        """
        kinds = np.empty(addresses.shape[1], np.uint8)
        n_missing, n_again = part(addresses, self._part_bytes, *self._where, self.pages, self.missed, kinds)
        self.count_missed(int(n_missing))
        return kinds, int(n_missing), int(n_again)

    def count_missed(self, n_rows: int) -> None:
        """So many rows have been noted in `missed`."""
        self._missed_until_forgotten -= n_rows
        if self._missed_until_forgotten < 0:
            self.forget_missed()

    def fetch_pages(self, addresses: NDArray[np.uint64], kinds: NDArray[np.uint8]) -> None:
        """Have the system read the pages of the records that are not in memory, as `part` sorted them, without waiting:
        a copy waits where one has not come. They are believed in memory from now on."""
        fetch_pages(addresses, self._part_bytes, *self._where, self.pages, kinds)

    def forget_missed(self) -> None:
        """From now on no page was missed before."""
        self.missed[:] = 0
        self._missed_until_forgotten = self._window

    def _addresses(self, batch: Batch, items: Items | None) -> NDArray[np.uint64]:
        addresses = self._gather.placed.addresses(batch)
        return addresses if items is None else np.ascontiguousarray(addresses[:, items])

    def _scratch(self) -> NDArray[np.uint8]:
        return np.empty(self._states, np.uint8)


def _submit(
    work: Callable[[], None], lease: AbstractContextManager[object], done: Callable[[], object]
) -> Future[None]:
    def run() -> None:
        try:
            # Closed meanwhile: nobody will ask.
            with contextlib.suppress(InvalidInput), lease:
                work()
        finally:
            done()

    return in_background(run)


def _is_answered(file: RowFile) -> bool:
    owner = os.fstat(file.fd).st_uid
    if os.geteuid() in (0, owner):
        return True
    path = f"/proc/self/fd/{file.fd}"
    return _KNOWS_EFFECTIVE_IDS and os.access(path, os.W_OK, effective_ids=True)


def _memory_pages() -> int:
    try:
        return max(os.sysconf("SC_PHYS_PAGES"), 0)
    except (ValueError, OSError):
        return 0
