"""Compiled bound of all caches: keep what is used again soonest. It knows dense ids only."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from engram_tables.memory import intrinsic

_ONE, _SIX, _LOW_SIX = np.uint64(1), np.uint64(6), np.uint64(63)


@intrinsic
def _highest_bit(typing_context: Any, mask: Any) -> Any:
    """Position of the highest bit that is set; at least one is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zeros = builder.ctlz(arguments[0], ir.Constant(ir.IntType(1), 1))
        return builder.sub(ir.Constant(ir.IntType(64), 63), zeros)

    return types.uint64(types.uint64), generate


@njit(cache=True, nogil=True)
def find_next_uses(ids: Any, n_distinct: Any, next_uses: Any) -> None:
    """For each access the next one of its item, uint32 (n,); n where there is none."""
    n = ids.shape[0]
    seen = np.full(n_distinct, n, np.uint32)
    for back in range(n):
        k = n - 1 - back
        next_uses[k] = seen[ids[k]]
        seen[ids[k]] = k


@njit(cache=True, nogil=True, inline="always")
def _insert(bits: Any, levels: Any, place: Any) -> None:
    """Set a bit, and in every level above that of its word, until one was set."""
    at = np.uint64(place)
    for level in range(levels.shape[0]):
        word = levels[level] + np.int64(at >> _SIX)
        before = bits[word]
        bits[word] = before | (_ONE << (at & _LOW_SIX))
        if before != 0:
            return
        at >>= _SIX


@njit(cache=True, nogil=True, inline="always")
def _remove(bits: Any, levels: Any, place: Any) -> None:
    """Clear a bit that is set, and in every level above that of its word if the word is empty now."""
    at = np.uint64(place)
    for level in range(levels.shape[0]):
        word = levels[level] + np.int64(at >> _SIX)
        bits[word] &= ~(_ONE << (at & _LOW_SIX))
        if bits[word] != 0:
            return
        at >>= _SIX


@njit(cache=True, nogil=True, inline="always")
def _last(bits: Any, levels: Any) -> Any:
    """The highest place whose bit is set; there is one."""
    at = np.uint64(0)
    for below in range(levels.shape[0]):
        level = levels.shape[0] - 1 - below
        at = (at << _SIX) + _highest_bit(bits[levels[level] + np.int64(at)])
    return at


@njit(cache=True, nogil=True)
def replay_belady(
    next_uses: Any, classes: Any, step_starts: Any, first_step: Any, stop_step: Any, first_steady_step: Any,
    size: Any, bits: Any, levels: Any, n_in: Any, hits: Any, misses: Any,
) -> None:  # fmt: skip
    """One cache that knows what comes (Belady, 1966), and need not take in what it has read.

    An item that is kept stands for the access at which it is used again: a bit there. An access hits if its bit is
    set. When there are more bits than the cache has places, the last one goes.

    Parameters
    ----------
    next_uses
        uint32 (n,): see `find_next_uses`.
    bits
        uint64: of every access, and above them of every word of 64, up to one word.
    levels
        int64: where each level begins, the accesses' first.
    n_in
        int64 (1,): items that are kept.
    hits, misses
        int64 (2, n_classes), added to, and uint32 (n_steps,), filled for the steps, or (0,).
    """
    n = next_uses.shape[0]
    for step in range(first_step, stop_step):
        start, stop = step_starts[step], step_starts[step + 1]
        state = np.int64(step >= first_steady_step)
        n_missed = np.int64(0)
        for k in range(start, stop):
            if (bits[k >> 6] >> (np.uint64(k) & _LOW_SIX)) & _ONE:
                hits[state, classes[k]] += 1
                n_in[0] -= 1
                _remove(bits, levels, k)
            else:
                n_missed += 1
        if misses.shape[0] > 0:
            misses[step] = n_missed
        for k in range(start, stop):
            if next_uses[k] < n:
                _insert(bits, levels, next_uses[k])
                n_in[0] += 1
                if n_in[0] > size:
                    _remove(bits, levels, _last(bits, levels))
                    n_in[0] -= 1
