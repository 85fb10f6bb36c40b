"""Compiled replay of the policy of `fetch.tiers`: keys only, no records, no other thread. `tiers.reference` is its slow
twin as well; its constants come in as arguments, so that a compiled replay never holds old ones.

A set is a row of uint32: its tags, the uses of each way (with `_PINNED_BIT` where it stays), ghosts with the newest
first, the way at which the search for a victim begins, and the misses since uses were halved.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from engram_tables.memory import prefetch

_NOTHING = np.uint32(0xFFFFFFFF)
_HALF = np.uint64(32)
_PINNED_BIT = np.uint32(0x80000000)

# What a rule book says, int64 (N_RULES,).
WAYS, N_GHOSTS, MOST_USES, MISSES_BETWEEN_HALVINGS, USES_RETURNED, USES_PRELOADED, N_RULES = range(7)
ADMIT, PIN, PRELOAD = 0, 1, 2


@njit(cache=True, nogil=True, inline="always")
def _home(key: Any, n_sets: Any, turn: Any) -> Any:
    """Set and tag of a key: see `fetch.tiers.cache_kernels`."""
    tag = key // n_sets
    home = (key - tag * n_sets) + ((((tag * turn) >> _HALF) * n_sets) >> _HALF)
    return np.int64(home - n_sets if home >= n_sets else home), np.uint32(tag)


@njit(cache=True, nogil=True)
def _way_of(of_set: Any, tag: Any, n_ways: Any) -> Any:
    for way in range(n_ways):
        if of_set[way] == tag:
            return way
    return -1


@njit(cache=True, nogil=True, inline="always")
def _use(of_set: Any, way: Any, rules: Any) -> None:
    """Count a hit; a pinned way needs none."""
    uses = rules[WAYS] + way
    if of_set[uses] < np.uint32(rules[MOST_USES]):
        of_set[uses] += np.uint32(1)


@njit(cache=True, nogil=True)
def _settle(of_set: Any, tag: Any, mode: Any, rules: Any) -> Any:
    """Give a tag a way of its set; whether it is here afterwards."""
    n_ways = rules[WAYS]
    ghosts, hand_at = 2 * n_ways, 2 * n_ways + rules[N_GHOSTS]
    way = _way_of(of_set, tag, n_ways)
    if way >= 0:
        if mode == PIN:
            of_set[n_ways + way] |= _PINNED_BIT
        else:
            _use(of_set, way, rules)
        return True
    n_uses = np.uint32(rules[USES_PRELOADED])
    if mode == ADMIT:
        n_uses = np.uint32(0)
        for ghost in range(rules[N_GHOSTS]):
            if of_set[ghosts + ghost] == tag:
                n_uses = np.uint32(rules[USES_RETURNED])
        of_set[hand_at + 1] += np.uint32(1)
        if of_set[hand_at + 1] == np.uint32(rules[MISSES_BETWEEN_HALVINGS]):
            of_set[hand_at + 1] = 0
            for uses in range(n_ways, 2 * n_ways):
                pinned = of_set[uses] & _PINNED_BIT
                of_set[uses] = pinned | ((of_set[uses] & ~_PINNED_BIT) >> np.uint32(1))
    way = _way_of(of_set, _NOTHING, n_ways)
    if way < 0 and mode != PRELOAD:
        way = _victim(of_set, n_ways, np.int64(of_set[hand_at]))
        if way >= 0:
            for ghost in range(hand_at - 1, ghosts, -1):
                of_set[ghost] = of_set[ghost - 1]
            of_set[ghosts] = of_set[way]
    if way < 0:
        return False
    of_set[way], of_set[n_ways + way] = tag, n_uses
    if mode == PIN:
        of_set[n_ways + way] |= _PINNED_BIT
    of_set[hand_at] = np.uint32((way + 1) % n_ways)
    return True


@njit(cache=True, nogil=True)
def _victim(of_set: Any, n_ways: Any, hand: Any) -> Any:
    """The unpinned way of fewest uses, the first from the hand on; -1 if all are pinned."""
    found, fewest = -1, _PINNED_BIT
    for step in range(n_ways):
        way = hand + step
        if way >= n_ways:
            way -= n_ways
        if of_set[n_ways + way] < fewest:
            found, fewest = way, of_set[n_ways + way]
    return found


@njit(cache=True, nogil=True)
def take_in(keys: Any, first: Any, mode: Any, limit: Any, sets: Any, turn: Any, rules: Any) -> Any:
    """Pin or preload keys from `first` on until `limit` are in; where it ended, and how many are in."""
    n_sets, n_in = np.uint64(sets.shape[0]), np.int64(0)
    for k in range(first, keys.shape[0]):
        if n_in >= limit:
            return np.int64(k), n_in
        home, tag = _home(keys[k], n_sets, turn)
        n_in += np.int64(_settle(sets[home], tag, mode, rules))
    return np.int64(keys.shape[0]), n_in


@njit(cache=True, nogil=True)
def replay_tiered(
    items: Any, classes: Any, step_starts: Any, first_step: Any, stop_step: Any, first_steady_step: Any, sets: Any,
    turn: Any, rules: Any, hits: Any, misses: Any,
) -> None:  # fmt: skip
    """Look up all of a step, then let what it missed compete, in order; items that a step has twice count twice.

    Parameters
    ----------
    items
        uint64 (n,): keys, counted through all layers.
    sets
        uint32 (n_sets, words of a set).
    turn
        uint64: `cache_kernels.TURN`.
    rules
        int64 (N_RULES,)
    hits, misses
        int64 (2, n_classes), added to, and uint32 (n_steps,), filled for the steps, or (0,).
    """
    n_sets, n_ways = np.uint64(sets.shape[0]), rules[WAYS]
    sets_at, set_bytes = np.uint64(sets.ctypes.data), np.uint64(4 * sets.shape[1])
    longest = np.int64(0)
    for step in range(first_step, stop_step):
        longest = max(longest, step_starts[step + 1] - step_starts[step])
    homes, tags, missed = np.empty(longest, np.int64), np.empty(longest, np.uint32), np.empty(longest, np.int64)
    for step in range(first_step, stop_step):
        start, n_here = step_starts[step], step_starts[step + 1] - step_starts[step]
        state = np.int64(step >= first_steady_step)
        # Where a step's sets are is worked out first, so that they are on their way when the first is looked at.
        for k in range(n_here):
            homes[k], tags[k] = _home(items[start + k], n_sets, turn)
            prefetch(sets_at + np.uint64(homes[k]) * set_bytes)
            prefetch(sets_at + np.uint64(homes[k]) * set_bytes + np.uint64(64))
        n_missed = np.int64(0)
        for k in range(n_here):
            of_set = sets[homes[k]]
            way = _way_of(of_set, tags[k], n_ways)
            if way >= 0:
                _use(of_set, way, rules)
                hits[state, classes[start + k]] += 1
            else:
                missed[n_missed] = k
                n_missed += 1
        if misses.shape[0] > 0:
            misses[step] = n_missed
        for nth in range(n_missed):
            _settle(sets[homes[missed[nth]]], tags[missed[nth]], ADMIT, rules)
