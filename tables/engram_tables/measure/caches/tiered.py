"""What the tiered reader would hold: its policy, without its memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.fetch.tiers import cache_kernels
from engram_tables.fetch.tiers.budget import MemoryTier, shape_for
from engram_tables.measure.caches.accesses import Accesses
from engram_tables.measure.caches.replays import Course, Replayed, parts
from engram_tables.measure.caches.tiered_kernels import PIN, PRELOAD, replay_tiered, take_in

_SET_WORDS = 48
"""Words of a set's row: three cache lines, of which the last is not full."""
_MOST_TAGS = 2**32 - 1
_RULES = np.array(
    [
        cache_kernels.WAYS,
        cache_kernels.N_GHOSTS,
        cache_kernels.MOST_USES,
        cache_kernels.MISSES_BETWEEN_HALVINGS,
        cache_kernels.USES_OF_A_RETURNED_ROW,
        cache_kernels.USES_OF_A_PRELOADED_ROW,
    ],
    np.int64,
)


class TierShape(NamedTuple):
    """One size of the tiered reader: its sets, and how many rows of a hot list it pins at most."""

    n_sets: int
    n_pinned: int = 0

    @property
    def n_slots(self) -> int:
        """Rows that fit."""
        return self.n_sets * cache_kernels.WAYS

    def of_sample(self, rate: float) -> TierShape:
        """The shape for a sample of the rows: as many rows a set as before."""
        return TierShape(n_sets=max(1, round(self.n_sets * rate)), n_pinned=round(self.n_pinned * rate))


def tier_shape(tier: MemoryTier, *, n_rows: Sequence[int], row_bytes: int, has_hot_list: bool) -> TierShape:
    """The shape that the reader gives a tier over layers of `n_rows` rows. Raises as `shape_for`."""
    shape = shape_for(tier.budget_bytes, n_rows=n_rows, row_bytes=row_bytes)
    n_pinned = min(tier.most_pinned_bytes // shape.slot_bytes, shape.n_slots) if has_hot_list else 0
    return TierShape(n_sets=shape.n_sets, n_pinned=n_pinned)


def replay(accesses: Accesses, shape: TierShape, hot: NDArray[np.uint64] | None, course: Course) -> Replayed:
    """Hits as the reader counts them, when one thread at a time reads and a step is one fetch.

    Parameters
    ----------
    hot
        uint64 (k,): keys of a hot list, the hottest first, of which the reader pins and preloads.

    Raises
    ------
    InvalidInput
        So few sets that a tag of 32 bits does not tell the items apart. (The reader itself, with 16 bits, needs more.)

    Notes
    -----
    12 bytes a row of the cache. A reader whose fetch misses 8,192 rows or more lets them compete in slices,
    on several threads: then their order differs, and with it which rows of a set stay.
    """
    if accesses.n_items > shape.n_sets * _MOST_TAGS:
        fewest = -(-accesses.n_items // _MOST_TAGS)
        raise InvalidInput(
            f"tiered: found {shape.n_sets} sets for {accesses.n_items} items, expected {fewest} or more; make the "
            "cache larger"
        )
    sets = np.zeros((shape.n_sets, _SET_WORDS), np.uint32)
    n_ways, n_ghosts = cache_kernels.WAYS, cache_kernels.N_GHOSTS
    sets[:, :n_ways] = sets[:, 2 * n_ways : 2 * n_ways + n_ghosts] = 0xFFFFFFFF
    turn = np.uint64(cache_kernels.TURN)
    if hot is not None:
        at, n_pinned = take_in(hot, 0, PIN, min(shape.n_pinned, shape.n_slots), sets, turn, _RULES)
        take_in(hot, at, PRELOAD, shape.n_slots - n_pinned, sets, turn, _RULES)
    hits = np.zeros((2, accesses.n_classes), np.int64)
    misses = course.room(1, accesses.n_steps)
    for first, stop in parts(accesses.step_starts, course.watch):
        replay_tiered(
            accesses.items, accesses.classes, accesses.step_starts, first, stop, course.first_steady_step, sets,
            turn, _RULES, hits, misses[0],
        )  # fmt: skip
    return course.ended(hits[:, None], misses)
