"""Compiled numbering of items in the order in which they first occur. It knows nothing of caches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from engram_tables.memory import prefetch

_AHEAD = np.int64(24)
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)
_FIRST_FACTOR = np.uint64(0xFF51AFD7ED558CCD)
_SECOND_FACTOR = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT = np.uint64(33)


@njit(cache=True, nogil=True, inline="always")
def _mix(item: Any) -> Any:
    """A one-to-one scramble of 64 bits: the finaliser of MurmurHash3."""
    item = (item ^ (item >> _SHIFT)) * _FIRST_FACTOR
    item = (item ^ (item >> _SHIFT)) * _SECOND_FACTOR
    return item ^ (item >> _SHIFT)


@njit(cache=True, nogil=True)
def number_items(
    items: Any, classes: Any, step_starts: Any, first_step: Any, stop_step: Any, slots: Any, items_of: Any,
    last_steps: Any, n_distinct: Any, ids: Any, kept_classes: Any, kept_starts: Any,
) -> Any:  # fmt: skip
    """Number the items of some steps, leaving out those that the step has had, until the slots are half full.

    Parameters
    ----------
    slots
        uint64 (a power of two,): 0, or an item's low 32 bits above its number + 1.
    items_of, last_steps
        uint64 and uint32 (n,): by number, the item and the step in which it was seen last + 1.
    ids, kept_classes
        uint32 and uint8 (n,): filled from kept_starts[first_step] on.
    kept_starts
        int64 (n_steps + 1,): entry k + 1 is filled when step k is done.

    Returns
    -------
    tuple of int
        The step to go on with, `stop_step` when all are done, and how many items there are.
    """
    mask = np.uint64(slots.shape[0] - 1)
    room = np.int64(slots.shape[0] // 2)
    slots_at = np.uint64(slots.ctypes.data)
    n, at = items.shape[0], kept_starts[first_step]
    for step in range(first_step, stop_step):
        start, stop = step_starts[step], step_starts[step + 1]
        if n_distinct + (stop - start) > room:
            return step, n_distinct
        for k in range(start, stop):
            if k + _AHEAD < n:
                prefetch(slots_at + ((_mix(items[k + _AHEAD]) & mask) << np.uint64(3)))
            item = items[k]
            slot = _mix(item) & mask
            low = (item & _LOW) << _HIGH
            number = np.int64(-1)
            while True:
                found = slots[slot]
                if found == 0:
                    break
                number = np.int64(found & _LOW) - 1
                if (found ^ low) <= _LOW and items_of[number] == item:
                    break
                number = np.int64(-1)
                slot = (slot + np.uint64(1)) & mask
            if number < 0:
                number = n_distinct
                n_distinct += 1
                slots[slot] = low | np.uint64(n_distinct)
                items_of[number] = item
                last_steps[number] = 0
            if last_steps[number] != step + 1:
                last_steps[number] = step + 1
                ids[at], kept_classes[at] = number, classes[k]
                at += 1
        kept_starts[step + 1] = at
    return np.int64(stop_step), n_distinct


@njit(cache=True, nogil=True)
def fill_slots(slots: Any, items_of: Any, n_distinct: Any) -> None:
    """Put the first `n_distinct` items into slots that are all 0."""
    mask = np.uint64(slots.shape[0] - 1)
    for number in range(n_distinct):
        item = items_of[number]
        slot = _mix(item) & mask
        while slots[slot] != 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = (item & _LOW) << _HIGH | np.uint64(number + 1)
