"""Compiled least-recently-used caches of all sizes in one pass. It knows dense ids and no items."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from engram_tables.memory import intrinsic, prefetch

_AHEAD = np.int64(32)
_ONE, _SIX, _LOW_SIX = np.uint64(1), np.uint64(6), np.uint64(63)


@intrinsic
def _lowest_bit(typing_context: Any, mask: Any) -> Any:
    """Position of the lowest bit that is set; at least one is."""
    from llvmlite import ir
    from numba import types

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@njit(cache=True, nogil=True, inline="always")
def _next_live(live: Any, time: Any) -> Any:
    """The first time after `time` that some item was touched at last; there is one."""
    word = (time + _ONE) >> _SIX
    bits = live[word] >> ((time + _ONE) & _LOW_SIX) << ((time + _ONE) & _LOW_SIX)
    while bits == 0:
        word += _ONE
        bits = live[word]
    return (word << _SIX) + _lowest_bit(bits)


@njit(cache=True, nogil=True)
def replay_lru(
    ids: Any, classes: Any, step_starts: Any, first_step: Any, stop_step: Any, first_steady_step: Any, sizes: Any,
    last_times: Any, live: Any, bounds: Any, n_in: Any, hits: Any, misses: Any,
) -> None:  # fmt: skip
    """Replay steps `first_step` … `stop_step` - 1 for every size.

    An item's time is the position of its last access + 1. Bit t of `live` is set where some item's time is t, and
    cache j holds the items whose time is above bounds[j]: so the bounds alone tell for which sizes an item is here.
    When a miss fills a cache beyond its size, its bound moves to the next live time. No bound ever moves back.

    Parameters
    ----------
    sizes
        int64 (m,), ascending, 1 or more.
    last_times
        uint32 (n_distinct,), 0 where an item has not been touched.
    live
        uint64, a bit for each of the times 0 … n.
    bounds, n_in
        uint64 and int64 (m,): the last time that has left, and the items of each cache.
    hits
        int64 (2, m + 1, n_classes): added to, at the smallest size that has the item; m: none has it.
    misses
        uint32 (m, n_steps): filled for the steps; (m, 0): left alone.
    """
    n, m = ids.shape[0], sizes.shape[0]
    last_times_at = np.uint64(last_times.ctypes.data)
    of_step = np.zeros(m + 1, np.int64)
    for step in range(first_step, stop_step):
        start, stop = step_starts[step], step_starts[step + 1]
        state = np.int64(step >= first_steady_step)
        of_step[:] = 0
        for k in range(start, stop):
            if k + _AHEAD < n:
                prefetch(last_times_at + (np.uint64(ids[k + _AHEAD]) << np.uint64(2)))
            time, j = np.uint64(last_times[ids[k]]), 0
            while j < m and time <= bounds[j]:
                j += 1
            hits[state, j, classes[k]] += 1
            of_step[j] += 1
        n_missed = np.int64(stop - start)
        for size in range(m if misses.shape[1] > 0 else 0):
            n_missed -= of_step[size]
            misses[size, step] = n_missed
        for k in range(start, stop):
            item = ids[k]
            time, now = np.uint64(last_times[item]), np.uint64(k + 1)
            if time != 0:
                live[time >> _SIX] &= ~(_ONE << (time & _LOW_SIX))
            live[now >> _SIX] |= _ONE << (now & _LOW_SIX)
            last_times[item] = now
            for missed in range(m):
                if time > bounds[missed]:
                    break
                if n_in[missed] < sizes[missed]:
                    n_in[missed] += 1
                else:
                    bounds[missed] = _next_live(live, bounds[missed])
