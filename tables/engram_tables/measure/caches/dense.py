"""A trace with small numbers for its items, each once a step: what every policy but `tiered` replays."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import CapacityError
from engram_tables.measure.caches.accesses import Accesses
from engram_tables.measure.caches.dense_kernels import fill_slots, number_items
from engram_tables.measure.caches.replays import Watch, parts

_LEAST_SLOTS = 1 << 16
_MOST_ACCESSES = 2**32 - 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DenseAccesses:
    """Accesses whose items are numbered in the order in which they first occur: the hot ones tend to be low.

    Attributes
    ----------
    ids
        uint32 (n,): the items' numbers; no step has one twice.
    classes
        uint8 (n,): of an item that a step has in several classes, the first.
    step_starts
        int64 (n_steps + 1,)
    items_of
        uint64 (n_distinct,): the item of each number.
    n_classes
        All classes are below it.
    whole_starts
        int64 (n_steps + 1,): `step_starts` of the accesses it was made of. Progress counts in these.
    """

    ids: NDArray[np.uint32]
    classes: NDArray[np.uint8]
    step_starts: NDArray[np.int64]
    items_of: NDArray[np.uint64]
    n_classes: int
    whole_starts: NDArray[np.int64]

    @property
    def n_distinct(self) -> int:
        """Items that occur."""
        return self.items_of.size

    @property
    def n_steps(self) -> int:
        """Fetches."""
        return self.step_starts.size - 1

    def n_accesses(self, first_steady_step: int) -> NDArray[np.int64]:
        """Accesses by `State` and class: int64 (2, n_classes)."""
        split = int(self.step_starts[first_steady_step])
        parts = (self.classes[:split], self.classes[split:])
        return np.stack([np.bincount(part, minlength=self.n_classes) for part in parts]).astype(np.int64)


def number(accesses: Accesses, *, watch: Watch) -> DenseAccesses:
    """Number the items.

    Raises
    ------
    CapacityError
        2^32 - 2 accesses or more.

    Notes
    -----
    5 bytes an access, 12 a distinct item, and while it runs 16 to 32 more a distinct item; one thread, for the order.
    """
    n = len(accesses)
    if n >= _MOST_ACCESSES:
        raise CapacityError(f"accesses: found {n:,}, expected less than {_MOST_ACCESSES:,}; take a sample of the items")
    # Reserved for the worst case: only what is written becomes memory.
    ids, classes = np.empty(n, np.uint32), np.empty(n, np.uint8)
    items_of, last_steps = np.empty(n, np.uint64), np.empty(n, np.uint32)
    starts = np.zeros(accesses.n_steps + 1, np.int64)
    longest = int(np.diff(accesses.step_starts).max(initial=0))
    slots = np.zeros(max(_LEAST_SLOTS, 1 << (4 * longest).bit_length()), np.uint64)
    n_distinct = 0
    for first, stop in parts(accesses.step_starts, watch):
        step = first
        while True:
            step, n_distinct = number_items(
                accesses.items, accesses.classes, accesses.step_starts, step, stop, slots, items_of, last_steps,
                n_distinct, ids, classes, starts,
            )  # fmt: skip
            if step == stop:
                break
            slots = np.zeros(2 * slots.size, np.uint64)
            fill_slots(slots, items_of, n_distinct)
    kept = int(starts[-1])
    return DenseAccesses(
        ids=ids[:kept], classes=classes[:kept], step_starts=starts, items_of=items_of[:n_distinct],
        n_classes=accesses.n_classes, whole_starts=accesses.step_starts,
    )  # fmt: skip
