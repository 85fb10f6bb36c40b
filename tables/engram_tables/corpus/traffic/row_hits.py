"""How often each row of one head is hit, and how many n-grams own it, from the distinct keys of its order.

Weights are first scattered to windows of rows and then added window by window in cache, since adding them in the order
of keys waits for memory once a row. Knows one head at a time; what the counters mean is `occupancy.py`'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_ngrams
from engram_tables.address.spec import AddressSpec, Family, HistoryRule, KeyForm, LayerAddressing
from engram_tables.address.vectors import LARGEST_FAST_MODULUS, SMALLEST_FAST_MODULUS
from engram_tables.corpus.traffic import traffic_kernels as kernels
from engram_tables.corpus.traffic.distinct_keys import BLOCK_KEYS, DistinctKeys
from engram_tables.corpus.traffic.token_addresses import unpack_ids
from engram_tables.memory import CACHE_LINE_BYTES, aligned_bytes
from engram_tables.threads import run_slices

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_PAGE_BITS = 9
_MANY_HITS = 1 << 16
_MANY_NGRAMS = 1 << 12
HitsSink = Callable[[int, npt.NDArray[Any]], None]
"""Called with the first row (within the head) and the hits of the rows from there on; from any thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """One column of one layer, by itself."""

    spec: AddressSpec
    layer: LayerAddressing
    column: int

    @property
    def modulus(self) -> int:
        """Rows of the head."""
        return tuple(chain.from_iterable(self.layer.moduli))[self.column]

    @property
    def order(self) -> int:
        """Order of the head's n-grams."""
        return self.spec.columns[self.column][0]

    def alone(self) -> AddressSpec:
        """A spec of this head alone, for n-grams as the hash saw them: fills, boundaries and replacements are done."""
        order, first = self.order, sum(length for length, _ in self.spec.columns[: self.column])
        is_salted = self.spec.mix.family is Family.SALTED_AFFINE
        multipliers = self.layer.multipliers[first : first + order] if is_salted else self.layer.multipliers
        layer = LayerAddressing(
            layer_id=0, multipliers=multipliers, moduli=((self.modulus,),), offsets=(0,), n_rows=self.modulus
        )
        return AddressSpec(
            name=self.spec.name,
            provenance="one head alone",
            canonical_size=self.spec.canonical_size,
            history=HistoryRule(fill_id=self.spec.fill_id),
            orders=(order,),
            layers=(layer,),
            mix=self.spec.mix,
            folded=self.spec.folded,
        )

    def rows_of(self) -> Callable[[U64, I64], None]:
        """What writes the rows, within the head, of keys uint64 (n, words)."""
        modulus, order, id_bits = self.modulus, self.order, self.spec.id_bits
        if self.spec.key_form is KeyForm.IDS:
            alone = self.alone()

            def hash_ids(keys: U64, rows: I64) -> None:
                rows[:] = hash_ngrams(alone, 0, order, unpack_ids(keys, order, id_bits), threads=1)[1][:, 0]

            return hash_ids
        is_signed = self.spec.mix.word_bits == 32
        is_fast = not is_signed and SMALLEST_FAST_MODULUS <= modulus <= LARGEST_FAST_MODULUS

        def reduce(keys: U64, rows: I64) -> None:
            kernels.reduce_keys(keys.reshape(-1), modulus, is_fast, is_signed, rows)

        return reduce


class Histogram(NamedTuple):
    """How many rows have which value: int64 (n,) each, values ascending, no row count 0."""

    values: I64
    n_rows: I64


class RowCounts(NamedTuple):
    """What the counters of one head came to.

    Attributes
    ----------
    by_hits, by_ngrams
        Rows by their hits and by the distinct n-grams they belong to.
    shared_hits
        Hits of the rows that belong to two n-grams or more.
    """

    by_hits: Histogram
    by_ngrams: Histogram
    shared_hits: int


class RowCounter:
    """Counters and scratch memory for one head after the other.

    Parameters
    ----------
    room_rows
        Rows counted at once; a larger head is counted in ranges, each of which reads every key.
    """

    def __init__(self, *, room_rows: int, threads: int, counts_dtype: np.dtype[Any]) -> None:
        self.room_rows = room_rows
        self.threads = threads
        self._counters = np.zeros(2 * room_rows, counts_dtype)

    @staticmethod
    def least_entries(room_rows: int, threads: int) -> int:
        """Entries that pages must hold."""
        per_thread = 2 + -(-room_rows // kernels.WINDOW_ROWS) + 2 * (BLOCK_KEYS >> _PAGE_BITS)
        return threads * (per_thread << _PAGE_BITS)

    def count(
        self,
        head: Head,
        distinct: DistinctKeys,
        pages: U64,
        *,
        sink: HitsSink | None = None,
        add_progress: Callable[[int], None] = lambda _keys: None,
    ) -> RowCounts:
        """Count one head.

        Parameters
        ----------
        pages
            uint64, on a 64-byte line: where weights wait to be added; `least_entries` says how many at least.
        sink
            Given the hits of every row, part after part, from any thread.
        """
        tally = _Tally(distinct.n_total, self._counters.dtype, sink)
        for first in range(0, head.modulus, self.room_rows):
            n_rows = min(self.room_rows, head.modulus - first)
            self._count_range(head, distinct, pages, range(first, first + n_rows), tally, add_progress)
        return tally.result()

    def _count_range(
        self,
        head: Head,
        distinct: DistinctKeys,
        pages: U64,
        rows: range,
        tally: _Tally,
        add_progress: Callable[[int], None],
    ) -> None:
        """Scatter as many weights as there is room for, add them, and so on until no key is left."""
        n_windows = -(-len(rows) // kernels.WINDOW_ROWS)
        mine = (len(pages) >> _PAGE_BITS) // self.threads << _PAGE_BITS
        lots = [_Lot(pages[k * mine : (k + 1) * mine], n_windows) for k in range(self.threads)]
        waiting = _Shared(iter(distinct.blocks()))
        rows_of = head.rows_of()
        is_first = True

        def scatter(which: int, _stop: int) -> None:
            lot, scratch, found = lots[which], distinct.scratch(), np.empty(BLOCK_KEYS, np.int64)
            while not waiting.stopped and lot.has_room() and (block := waiting.take()) is not None:
                try:
                    keys, counts = distinct.read(block, scratch)
                    rows_of(keys, found[: len(keys)])
                    lot.scatter(found[: len(keys)], counts, rows)
                    add_progress(len(keys))
                except BaseException:
                    waiting.stopped = True
                    raise
            lot.flush()

        def add(begin: int, end: int) -> None:
            # Weights that are all there need no counters but a window's, which stay in cache.
            is_last = waiting.is_empty
            window_counters = np.zeros(2 * kernels.WINDOW_ROWS, self._counters.dtype)
            reader = tally.reader()
            for window in range(begin, end):
                start = window * kernels.WINDOW_ROWS
                n_rows = min(kernels.WINDOW_ROWS, len(rows) - start)
                if is_last and is_first:
                    counters = window_counters[: 2 * n_rows]
                else:
                    counters = self._counters[2 * start : 2 * (start + n_rows)]
                for lot in lots:
                    lot.add(window, counters)
                if is_last:
                    reader.read(rows.start + start, counters)
                if waiting.stopped:
                    return

        try:
            while True:
                for lot in lots:
                    lot.clear()
                run_slices(scatter, self.threads, threads=self.threads, grain=1)
                run_slices(add, n_windows, threads=self.threads, grain=1)
                if waiting.is_empty:
                    return
                is_first = False
        except BaseException:
            waiting.stopped = True
            raise


class _Shared:
    """Blocks that threads take one after the other."""

    def __init__(self, items: Iterator[tuple[int, int]]) -> None:
        self._items = items
        self._next = next(items, None)
        self._lock = threading.Lock()
        self.stopped = False

    @property
    def is_empty(self) -> bool:
        return self._next is None

    def take(self) -> tuple[int, int] | None:
        with self._lock:
            item, self._next = self._next, next(self._items, None) if self._next is not None else None
        return item


class _Lot:
    """One thread's pages and where it writes in them."""

    def __init__(self, pages: U64, n_windows: int) -> None:
        self._pages = pages
        self._cursors = np.zeros(n_windows, np.uint64)
        self._lines = aligned_bytes(64 * n_windows, CACHE_LINE_BYTES).view(np.uint64)
        self._previous = np.empty(len(pages) >> _PAGE_BITS, np.int64)
        self._n_pages = np.ones(1, np.int64)

    def clear(self) -> None:
        self._cursors[:] = 0
        self._n_pages[0] = 1

    def has_room(self) -> bool:
        """Whether a block fits, whichever rows it hits."""
        return int(self._n_pages[0]) + len(self._cursors) + (BLOCK_KEYS >> _PAGE_BITS) <= len(self._previous)

    def scatter(self, rows: I64, counts: npt.NDArray[Any], wanted: range) -> None:
        kernels.scatter_weights(
            rows, counts, wanted.start, len(wanted), _PAGE_BITS, self._cursors, self._lines, self._previous,
            self._n_pages, self._pages,
        )  # fmt: skip

    def flush(self) -> None:
        kernels.flush_weights(self._cursors, self._lines, self._pages)

    def add(self, window: int, counters: npt.NDArray[Any]) -> None:
        kernels.add_weights(self._pages, self._previous, self._cursors, _PAGE_BITS, window, counters)


class _Tally:
    """Histograms of a head's counters, from any number of readers."""

    def __init__(self, n_total: int, dtype: np.dtype[Any], sink: HitsSink | None) -> None:
        self.n_total = n_total
        self.dtype = dtype
        self.sink = sink
        self.readers: list[_TallyReader] = []

    def reader(self) -> _TallyReader:
        """A reader for one thread."""
        self.readers.append(_TallyReader(self))
        return self.readers[-1]

    def result(self) -> RowCounts:
        by_hits = _histogram([reader.by_hits for reader in self.readers], [r.large_hits for r in self.readers])
        by_ngrams = _histogram([reader.by_ngrams for reader in self.readers], [r.large_ngrams for r in self.readers])
        return RowCounts(by_hits, by_ngrams, sum(reader.shared_hits for reader in self.readers))


class _TallyReader:
    """What one thread has read: histograms of small values, and the large values themselves."""

    def __init__(self, tally: _Tally) -> None:
        self._tally = tally
        self._few = np.zeros((kernels.TALLY_LANES, kernels.FEW**2), np.int64)
        self._by_hits = np.zeros(_MANY_HITS, np.int64)
        self._by_ngrams = np.zeros(_MANY_NGRAMS, np.int64)
        self.large_hits: list[npt.NDArray[Any]] = []
        self.large_ngrams: list[npt.NDArray[Any]] = []
        self._shared = np.zeros(1, np.uint64)
        # No more rows can have so many of all lookups.
        most = [min(kernels.WINDOW_ROWS, tally.n_total // many) for many in (_MANY_HITS, _MANY_NGRAMS)]
        self._large = [np.empty(n, tally.dtype) for n in most]

    def read(self, first_row: int, counters: npt.NDArray[Any]) -> None:
        """Give a window's hits to the sink, add its counters to the histograms and set them to 0."""
        if self._tally.sink is not None:
            self._tally.sink(first_row, np.ascontiguousarray(counters[::2]))
        n_large = np.zeros(2, np.int64)
        large_hits, large_ngrams = self._large
        kernels.tally_rows(
            counters, self._few, self._by_hits, self._by_ngrams, large_hits, large_ngrams, n_large, self._shared
        )
        for found, large, n in zip((self.large_hits, self.large_ngrams), self._large, n_large, strict=True):
            if n:
                found.append(large[:n].copy())

    @property
    def few(self) -> I64:
        """int64 (FEW, FEW): rows by hits and n-grams, where both are few."""
        few: I64 = self._few.sum(axis=0).reshape(kernels.FEW, kernels.FEW)
        return few

    @property
    def by_hits(self) -> I64:
        """int64: rows by hits."""
        found = self._by_hits.copy()
        found[: kernels.FEW] += self.few.sum(axis=1)
        return found

    @property
    def by_ngrams(self) -> I64:
        """int64: rows by n-grams."""
        found = self._by_ngrams.copy()
        found[: kernels.FEW] += self.few.sum(axis=0)
        return found

    @property
    def shared_hits(self) -> int:
        """Hits of the rows that belong to two n-grams or more."""
        return int(self._shared[0]) + int(np.arange(kernels.FEW) @ self.few[:, 2:].sum(axis=1))


def _histogram(small: list[I64], large: list[list[npt.NDArray[Any]]]) -> Histogram:
    few = np.sum(small, axis=0)
    parts = [np.empty(0, np.int64), *(part.astype(np.int64) for parts in large for part in parts)]
    values, n_rows = np.unique(np.concatenate(parts), return_counts=True)
    present = np.flatnonzero(few)
    return Histogram(np.concatenate([present, values]), np.concatenate([few[present], n_rows]))
