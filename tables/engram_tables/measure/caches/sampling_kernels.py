"""Compiled choice of items by a hash of theirs, and counts of what the whole trace had."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_OFFSET = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_FIRST_SHIFT, _SECOND_SHIFT, _THIRD_SHIFT = np.uint64(30), np.uint64(27), np.uint64(31)
_HALF = np.uint64(32)


@njit(cache=True, nogil=True, inline="always")
def _mix(item: Any) -> Any:
    """The scramble of SplitMix64, which no policy uses: so a sample's items spread over sets as all items do."""
    mixed = np.uint64(item) + _OFFSET
    mixed = (mixed ^ (mixed >> _FIRST_SHIFT)) * _FIRST_FACTOR
    mixed = (mixed ^ (mixed >> _SECOND_SHIFT)) * _SECOND_FACTOR
    return mixed ^ (mixed >> _THIRD_SHIFT)


@njit(cache=True, nogil=True)
def find_chosen(items: Any, low: Any, high: Any, is_chosen: Any) -> None:
    """Whether each item's hash is `low` … `high` - 1: bool (n,)."""
    for k in range(items.shape[0]):
        is_chosen[k] = low <= _mix(items[k]) >> _HALF < high


@njit(cache=True, nogil=True)
def take_sample(
    items: Any, classes: Any, step_starts: Any, first_step: Any, first_steady_step: Any, low: Any, high: Any,
    kept: Any, kept_classes: Any, kept_starts: Any, seen: Any, seen_in: Any, n_whole: Any,
) -> Any:  # fmt: skip
    """Keep the accesses whose item's hash, of 32 bits, is `low` … `high` - 1; how many there are.

    Parameters
    ----------
    first_step
        The number of the first step here in the whole trace.
    kept, kept_classes
        uint64 and uint8 (n,): filled.
    kept_starts
        int64 (n_steps + 1,): filled.
    seen, seen_in
        uint64 and int64 (a power of two, more than twice the longest step,): items, and the step of each + 1.
    n_whole
        int64 (2, 2, n_classes): added to; items of a step counted once, and as they come; by `State` and class.
    """
    mask = np.uint64(seen.shape[0] - 1)
    n_kept = np.int64(0)
    kept_starts[0] = 0
    for nth in range(step_starts.shape[0] - 1):
        step = first_step + nth
        state = np.int64(step >= first_steady_step)
        for k in range(step_starts[nth], step_starts[nth + 1]):
            item = items[k]
            mixed = _mix(item)
            n_whole[1, state, classes[k]] += 1
            slot = mixed & mask
            while seen_in[slot] == step + 1 and seen[slot] != item:
                slot = (slot + np.uint64(1)) & mask
            if seen_in[slot] != step + 1:
                seen[slot], seen_in[slot] = item, step + 1
                n_whole[0, state, classes[k]] += 1
            if low <= mixed >> _HALF < high:
                kept[n_kept], kept_classes[n_kept] = item, classes[k]
                n_kept += 1
        kept_starts[nth + 1] = n_kept
    return n_kept
