"""The sets of one tier as kernels see them, and the policy alone for memory that the caller copies to and from."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.engines.engine import Items
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.tiers.budget import CacheShape
from engram_tables.fetch.tiers.cache_kernels import (
    ADMIT,
    N_COUNTS,
    PIN,
    PRELOAD,
    STATE_COUNTS,
    STATE_HEADERS,
    STATE_LAYERS,
    STATE_N_SETS,
    STATE_SLOT_BYTES,
    STATE_SLOTS,
    claim_slots,
    clear_sets,
    find_slots,
)
from engram_tables.memory import CACHE_LINE_BYTES, aligned_bytes

ALL_ITEMS: Items = np.empty(0, np.int64)
"""What kernels take for all items of a batch."""

__all__ = ["ADMIT", "ALL_ITEMS", "PIN", "PRELOAD", "Sets", "SlotMap", "TierCounts"]


class TierCounts(NamedTuple):
    """What a tier has done since it was made, in records."""

    hits_pinned: int
    """Found among the rows of the hot list that stay for good"""
    hits_cached: int
    """Found among the others"""
    misses: int
    """Asked of what is behind"""
    stored: int
    """Taken in, those of the hot list included"""
    thrown_out: int
    """Gave way to another row"""
    left_out: int
    """Not taken in: their set had no way for them"""
    busy: int
    """Not taken in: another thread was writing their set"""

    @property
    def hit_ratio(self) -> float | None:
        """Share of the records asked for that were here; None if none was asked for."""
        n_hits = self.hits_pinned + self.hits_cached
        return n_hits / (n_hits + self.misses) if n_hits + self.misses else None


class Sets:
    """Empty sets whose headers lie at one address and whose slots at another (0 if they are the caller's own).

    Attributes
    ----------
    state
        As kernels take it, uint64 (STATE_LAYERS + layers,). It points at memory of this object: keep both.
    """

    def __init__(self, shape: CacheShape, *, n_rows: Sequence[int], headers: int, slots: int) -> None:
        self._counts = np.zeros(N_COUNTS, np.int64)
        self.state = np.zeros(STATE_LAYERS + len(n_rows), np.uint64)
        self.state[STATE_HEADERS], self.state[STATE_SLOTS] = headers, slots
        self.state[STATE_N_SETS], self.state[STATE_SLOT_BYTES] = shape.n_sets, shape.slot_bytes
        self.state[STATE_COUNTS] = self._counts.ctypes.data
        self.state[STATE_LAYERS:] = np.concatenate(([0], np.cumsum(n_rows)[:-1]))
        clear_sets(self.state, 0, shape.n_sets)

    def counts(self) -> TierCounts:
        """A snapshot; reads under way are not in it yet."""
        return TierCounts(*self._counts.tolist())


def kernel_shape(batch: Batch) -> tuple[int, int, int]:
    """What kernels take as `shape`."""
    return batch.n_columns, batch.first_layer, batch.n_layers


class SlotMap:
    """Which row lies in which slot of a memory that is not the host's, by the same policy. Safe from many threads.

    For every batch: `find`, start the copies out of the slots found, read what is missing, `claim`, copy that in; in
    this order, since a claim gives away slots that were found. Slot k begins at byte `k * slot_bytes`.
    """

    def __init__(self, shape: CacheShape, *, n_rows: Sequence[int]) -> None:
        self.shape = shape
        self._headers = aligned_bytes(shape.header_bytes, CACHE_LINE_BYTES)
        self._sets = Sets(shape, n_rows=n_rows, headers=self._headers.ctypes.data, slots=0)
        self._lock = threading.Lock()

    def find(self, batch: Batch, items: Items | None = None) -> NDArray[np.int64]:
        """The slot of every record of the batch, or of those that `items` names; -1 where it is not here."""
        slots = np.empty(batch.rows.size if items is None else items.size, np.int64)
        chosen = ALL_ITEMS if items is None else items
        if slots.size:
            with self._lock:
                find_slots(batch.rows, chosen, kernel_shape(batch), self._sets.state, slots)
        return slots

    def claim(self, batch: Batch, items: Items, mode: int = ADMIT) -> NDArray[np.int64]:
        """The slot that each record of `items` is to be copied to; -1 where it is not to be kept, or is here.

        No slot is named twice.
        """
        slots = np.empty(items.size, np.int64)
        with self._lock:
            claim_slots(batch.rows, items, kernel_shape(batch), self._sets.state, mode, slots)
        # Of two claims the last one holds: the first row was thrown out again.
        _, last = np.unique(slots[::-1], return_index=True)
        kept = slots.size - 1 - last
        valid = np.full(slots.size, -1, np.int64)
        valid[kept] = slots[kept]
        return valid

    def counts(self) -> TierCounts:
        """See `Sets.counts`."""
        return self._sets.counts()
