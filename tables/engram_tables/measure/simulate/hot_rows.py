"""The hot list of a text: its rows by lookups, as many as a budget holds. Writing one is `fetch.tiers.hot_list`'s."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.fetch.tiers.hot_list import HotList
from engram_tables.measure.simulate import stream_kernels as kernels
from engram_tables.measure.simulate.streams import CHUNK_TOKENS, Lookups
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import ProgressHook

_COUNTER_BYTES = 4
_LEAST_COUNTERS = 1 << 16
LEAST_LOOKUPS = 2
"""A row that was looked up once is nothing to begin with: nobody asked for it again."""


def hot_rows(
    lookups: Lookups,
    *,
    most_rows: int,
    memory_bytes: int = 1 << 30,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> HotList:
    """The rows that are looked up most, exactly; of equally many lookups the lower layer and row.

    Parameters
    ----------
    most_rows
        How many at most; rows that were looked up once are left out even so.
    memory_bytes
        Bound of the counters, 4 bytes a row; where they do not fit all at once, the text is hashed once for each part
        of a layer.
    progress
        Called with tokens, of all passes.

    Raises
    ------
    InvalidInput
        No row to list, or more lookups than a counter of 32 bits holds.
    """
    spec = lookups.spec
    if most_rows < 1 or lookups.n_tokens * spec.n_columns >= 2**32:
        raise InvalidInput(
            f"hot list: found {most_rows:,} rows of {lookups.n_tokens:,} tokens, expected 1 row or more of fewer than "
            f"{2**32 // spec.n_columns:,} tokens; choose another budget, or a part of the text"
        )
    n_counters = max(_LEAST_COUNTERS, memory_bytes // _COUNTER_BYTES)
    parts = [
        (layer, first, min(first + n_counters, spec.layers[layer].n_rows))
        for layer in range(len(spec.layers))
        for first in range(0, spec.layers[layer].n_rows, n_counters)
    ]
    best = _Best(most_rows)
    total = lookups.n_tokens * len(parts)
    for nth, (layer, first, stop) in enumerate(parts):
        counters = np.zeros(stop - first, np.uint32)
        for begin in range(0, lookups.n_tokens, CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, lookups.n_tokens)
            _count(lookups, begin, end, layer, first, counters, resolve_threads(threads))
            if progress is not None:
                progress(nth * lookups.n_tokens + end, total)
        best.add(spec.layers[layer].layer_id, first, counters)
    return HotList.of(best.layer_ids, best.rows, best.counts.astype(np.float64), fingerprint=spec.fingerprint)


def items_of(hot: HotList, lookups: Lookups) -> NDArray[np.uint64]:
    """A list's rows numbered through all layers, hottest first.

    Raises
    ------
    SpecMismatch, InvalidInput
        As `HotList.check_against`.
    """
    spec = lookups.spec
    n_rows = np.array([layer.n_rows for layer in spec.layers], np.int64)
    if hot.fingerprint is not None and hot.fingerprint != spec.fingerprint:
        raise SpecMismatch(
            f"hot list: made for the spec of fingerprint {hot.fingerprint[:16]}, the lookups have "
            f"{spec.fingerprint[:16]}; make the list with their spec"
        )
    hot.check_against(layer_ids=spec.layer_ids, n_rows=n_rows, fingerprint=None)
    items = hot.rows.astype(np.uint64)
    for layer_id, first in zip(spec.layer_ids, np.cumsum([0, *n_rows[:-1]]).tolist(), strict=True):
        items[hot.layer_ids == layer_id] += np.uint64(first)
    return items


def _count(
    lookups: Lookups, begin: int, end: int, layer: int, first_row: int, counters: NDArray[np.uint32], threads: int
) -> None:
    """Count a chunk's lookups; each thread adds to a range of rows of its own."""
    rows = lookups.rows(begin, end)
    is_live = np.ones(end - begin, np.bool_)
    at, stop = np.searchsorted(lookups.dead, (begin, end))
    is_live[lookups.dead[at:stop] - begin] = False

    def count(start: int, end: int) -> None:
        kernels.count_rows(rows, is_live, layer, first_row + start, counters[start:end])

    run_slices(count, counters.size, threads=threads, grain=_LEAST_COUNTERS)


class _Best:
    """The rows of most lookups so far."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self.layer_ids, self.rows = np.empty(0, np.int64), np.empty(0, np.int64)
        self.counts = np.empty(0, np.uint32)

    def add(self, layer_id: int, first_row: int, counters: NDArray[np.uint32]) -> None:
        """Take in rows after all that were taken in before; of equal counts, these lose against those."""
        chosen = np.flatnonzero(counters >= max(LEAST_LOOKUPS, self._least()))
        self.layer_ids = np.concatenate([self.layer_ids, np.full(chosen.size, layer_id, np.int64)])
        self.rows = np.concatenate([self.rows, chosen + first_row])
        self.counts = np.concatenate([self.counts, counters[chosen]])
        if self.counts.size > self._most_rows:
            kept = np.argsort(-self.counts.astype(np.int64), kind="stable")[: self._most_rows]
            kept.sort()
            self.layer_ids, self.rows, self.counts = self.layer_ids[kept], self.rows[kept], self.counts[kept]

    def _least(self) -> int:
        """What a row must have beyond: nothing more while there is room."""
        return int(self.counts.min()) + 1 if self.counts.size == self._most_rows else 0
