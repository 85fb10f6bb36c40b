"""Compiled caches of one size: sets of least recently used items, hot lists, S3-FIFO. They know dense ids only.

Every kernel replays the steps `first_step` … `stop_step` - 1 of a trace and goes on where it stood: what it keeps lies
in arrays of the caller's. `hits`, int64 (2, n_classes), is added to, and `misses`, uint32 (n_steps,), filled; with no
element it is left alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from engram_tables.memory import prefetch

_AHEAD = np.int64(24)
_FIRST_FACTOR = np.uint64(0xFF51AFD7ED558CCD)
_SECOND_FACTOR = np.uint64(0xC4CEB9FE1A85EC53)
_SHIFT, _HALF = np.uint64(33), np.uint64(32)
_NOWHERE, _SMALL, _MAIN, _PLACE = np.uint8(0), np.uint8(1), np.uint8(2), np.uint8(3)
_ONE_USE, _MOST_USES = np.uint8(4), np.uint8(12)

# Positions in the state of S3-FIFO, int64 (N_QUEUE_STATE,).
SMALL_HEAD, SMALL_N, MAIN_HEAD, MAIN_N, N_GHOSTED, N_QUEUE_STATE = range(6)


@njit(cache=True, nogil=True, inline="always")
def _set_of(item: Any, n_sets: Any) -> Any:
    """The upper half of a scrambled id (MurmurHash3's finaliser), scaled to the sets."""
    mixed = np.uint64(item)
    mixed = (mixed ^ (mixed >> _SHIFT)) * _FIRST_FACTOR
    mixed = (mixed ^ (mixed >> _SHIFT)) * _SECOND_FACTOR
    mixed ^= mixed >> _SHIFT
    return ((mixed >> _HALF) * np.uint64(n_sets)) >> _HALF


@njit(cache=True, nogil=True)
def replay_sets(
    ids: Any, classes: Any, step_starts: Any, first_step: Any, stop_step: Any, first_steady_step: Any, ways: Any,
    hits: Any, misses: Any,
) -> None:  # fmt: skip
    """Sets of a few items, the one used last first.

    Parameters
    ----------
    ways
        uint32 (n_sets, n_ways): ids + 1, 0 where there is none.
    """
    n, n_sets, n_ways = ids.shape[0], ways.shape[0], ways.shape[1]
    ways_at, set_bytes = np.uint64(ways.ctypes.data), np.uint64(4 * n_ways)
    for step in range(first_step, stop_step):
        start, stop = step_starts[step], step_starts[step + 1]
        state = np.int64(step >= first_steady_step)
        n_missed = np.int64(0)
        for k in range(start, stop):
            if k + _AHEAD < n:
                prefetch(ways_at + _set_of(ids[k + _AHEAD], n_sets) * set_bytes)
            item, home = ids[k] + np.uint32(1), _set_of(ids[k], n_sets)
            is_here = False
            for way in range(n_ways):
                is_here |= ways[home, way] == item
            hits[state, classes[k]] += np.int64(is_here)
            n_missed += np.int64(not is_here)
        if misses.shape[0] > 0:
            misses[step] = n_missed
        for k in range(start, stop):
            item, home = ids[k] + np.uint32(1), _set_of(ids[k], n_sets)
            moved = item
            for way in range(n_ways):
                moved, ways[home, way] = ways[home, way], moved
                if moved == item:
                    break


@njit(cache=True, nogil=True)
def replay_static(
    ids: Any, classes: Any, step_starts: Any, first_step: Any, stop_step: Any, first_steady_step: Any,
    loading_step: Any, smallest: Any, hits: Any, misses: Any,
) -> None:  # fmt: skip
    """Hot lists of all sizes at once, whose items stay.

    Parameters
    ----------
    loading_step
        Before it no size has any.
    smallest
        uint16 (n_distinct,): the smallest size, of those in ascending order, that has the item; m where none has.
    hits
        int64 (2, m + 1, n_classes): added to, at the smallest size.
    misses
        uint32 (m, n_steps), or (m, 0)
    """
    m = np.int64(misses.shape[0])
    of_step = np.zeros(m + 1, np.int64)
    for step in range(first_step, stop_step):
        start, stop = step_starts[step], step_starts[step + 1]
        state = np.int64(step >= first_steady_step)
        of_step[:] = 0
        for k in range(start, stop):
            j = np.int64(smallest[ids[k]]) if step >= loading_step else m
            hits[state, j, classes[k]] += 1
            of_step[j] += 1
        n_missed = np.int64(stop - start)
        for size in range(m if misses.shape[1] > 0 else 0):
            n_missed -= of_step[size]
            misses[size, step] = n_missed


@njit(cache=True, nogil=True, inline="always")
def _push(ring: Any, queue: Any, head_at: Any, item: Any) -> None:
    """Put an item at the head of a queue; its length stands behind its head's position."""
    ring[queue[head_at]] = item
    queue[head_at] += 1
    if queue[head_at] == ring.shape[0]:
        queue[head_at] = 0
    queue[head_at + 1] += 1


@njit(cache=True, nogil=True, inline="always")
def _pop(ring: Any, queue: Any, head_at: Any) -> Any:
    """Take the item at the tail of a queue that is not empty."""
    tail = queue[head_at] - queue[head_at + 1]
    if tail < 0:
        tail += ring.shape[0]
    queue[head_at + 1] -= 1
    return ring[tail]


@njit(cache=True, nogil=True)
def _evict_main(marks: Any, main: Any, queue: Any) -> None:
    """Throw out the first item of the main queue that has no use left; each one passed over loses a use."""
    while queue[MAIN_N] > 0:
        item = _pop(main, queue, MAIN_HEAD)
        if marks[item] < _ONE_USE:
            marks[item] = _NOWHERE
            return
        marks[item] -= _ONE_USE
        _push(main, queue, MAIN_HEAD, item)


@njit(cache=True, nogil=True)
def _evict_small(marks: Any, ghosts: Any, small: Any, main: Any, queue: Any, main_items: Any) -> None:
    """Throw out the first item of the small queue that was not used twice, noting its name; the others move."""
    while queue[SMALL_N] > 0:
        item = _pop(small, queue, SMALL_HEAD)
        if marks[item] < np.uint8(2) * _ONE_USE:
            marks[item] = _NOWHERE
            queue[N_GHOSTED] += 1
            ghosts[item] = queue[N_GHOSTED]
            return
        marks[item] = _MAIN
        _push(main, queue, MAIN_HEAD, item)
        if queue[MAIN_N] > main_items:
            _evict_main(marks, main, queue)


@njit(cache=True, nogil=True)
def replay_s3_fifo(
    ids: Any, classes: Any, step_starts: Any, first_step: Any, stop_step: Any, first_steady_step: Any,
    marks: Any, ghosts: Any, small: Any, main: Any, queue: Any, small_items: Any, main_items: Any, hits: Any,
    misses: Any,
) -> None:  # fmt: skip
    """S3-FIFO (Yang, Zhang, Qiu, Yue and Rashmi, SOSP 2023, algorithm 1), with ids for objects of one size.

    Parameters
    ----------
    marks
        uint8 (n_distinct,): in its two lowest bits the queue an item is in, above them its uses, 3 at most.
    ghosts
        uint32 (n_distinct,): how many names the ghost queue had taken with the item's, 0 if it has none there. A name
        lies in it until as many more have come as the main queue holds.
    small, main
        uint32: rings of one place more than the cache holds, so that an item can pass from one to the other.
    queue
        int64 (N_QUEUE_STATE,): heads and lengths.
    small_items, main_items
        What the queues hold when the cache is full; their sum is the cache's size.
    """
    n, cache_items = ids.shape[0], small_items + main_items
    marks_at = np.uint64(marks.ctypes.data)
    for step in range(first_step, stop_step):
        start, stop = step_starts[step], step_starts[step + 1]
        state = np.int64(step >= first_steady_step)
        n_missed = np.int64(0)
        missed = np.empty(stop - start, np.uint32)
        for k in range(start, stop):
            if k + _AHEAD < n:
                prefetch(marks_at + np.uint64(ids[k + _AHEAD]))
            item = ids[k]
            if marks[item] != _NOWHERE:
                hits[state, classes[k]] += 1
                marks[item] = min(marks[item] + _ONE_USE, _MOST_USES | (marks[item] & _PLACE))
            else:
                missed[n_missed] = item
                n_missed += 1
        if misses.shape[0] > 0:
            misses[step] = n_missed
        for k in range(n_missed):
            item = missed[k]
            while queue[SMALL_N] + queue[MAIN_N] >= cache_items:
                if queue[SMALL_N] >= small_items:
                    _evict_small(marks, ghosts, small, main, queue, main_items)
                else:
                    _evict_main(marks, main, queue)
            noted = np.int64(ghosts[item])
            if noted != 0 and queue[N_GHOSTED] - noted < main_items:
                ghosts[item] = 0
                marks[item] = _MAIN
                _push(main, queue, MAIN_HEAD, item)
            else:
                marks[item] = _SMALL
                _push(small, queue, SMALL_HEAD, item)
