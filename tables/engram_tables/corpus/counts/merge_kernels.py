"""Compiled merging of sorted runs of distinct keys with counts. Callers validate: nothing here checks a bound.

Runs are named by the addresses of their arrays, since their number is not known and each lies in a file of its own.
All loops work on slices that stay in a core's own cache: a slice is cut out of every run at one key, so that slices
can be merged one after the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def _type_load(bits: int, result: Any) -> Any:
    def type_load(_typing: Any, _address: Any) -> Any:
        def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            pointer = builder.inttoptr(arguments[0], ir.IntType(bits).as_pointer())
            return builder.load(pointer)

        return result(types.uint64), emit

    return type_load


_load_u64: Any = intrinsic(_type_load(64, types.uint64))
_load_u32: Any = intrinsic(_type_load(32, types.uint32))


@njit(cache=True, nogil=True)
def _key(address: np.uint64, position: int, n_words: int) -> tuple[np.uint64, np.uint64]:
    """Words (high, low) of the key at `position` of the array at `address`."""
    if n_words == 1:
        return np.uint64(0), _load_u64(address + np.uint64(position) * np.uint64(8))
    place = address + np.uint64(position) * np.uint64(16)
    return _load_u64(place), _load_u64(place + np.uint64(8))


@njit(cache=True, nogil=True)
def lower_bound(address: np.uint64, start: int, stop: int, high: np.uint64, low: np.uint64, n_words: int) -> int:
    """First position in [start, stop) whose key is not below (high, low)."""
    while start < stop:
        middle = (start + stop) // 2
        here_high, here_low = _key(address, middle, n_words)
        if here_high < high or (here_high == high and here_low < low):
            start = middle + 1
        else:
            stop = middle
    return start


@njit(cache=True, nogil=True)
def _cut(keys: U64, cursors: I64, stops: I64, share: int, n_words: int) -> tuple[np.uint64, np.uint64, bool]:
    """The largest key of the next slice: the lowest of the keys that stand `share` places on in each run."""
    found = False
    best_high, best_low = np.uint64(0), np.uint64(0)
    for run in range(keys.size):
        if stops[run] - cursors[run] > share:
            high, low = _key(keys[run], cursors[run] + share - 1, n_words)
            if not found or high < best_high or (high == best_high and low < best_low):
                best_high, best_low, found = high, low, True
    return best_high, best_low, found


@njit(cache=True, nogil=True)
def _merge_two(
    words: U64, counts: U64, first: int, second: int, stop: int, out_words: U64, out_counts: U64
) -> np.int64:
    """Merge [first, second) and [second, stop) of one array into another at `first`; equal keys become one."""
    one, two, out = np.uint64(first), np.uint64(second), np.uint64(first)
    one_stop, two_stop = np.uint64(second), np.uint64(stop)
    while one < one_stop and two < two_stop:
        left, right = words[one], words[two]
        takes_left, takes_right = left <= right, right <= left
        out_words[out] = left if takes_left else right
        out_counts[out] = (counts[one] if takes_left else np.uint64(0)) + (counts[two] if takes_right else np.uint64(0))
        one += np.uint64(takes_left)
        two += np.uint64(takes_right)
        out += np.uint64(1)
    while one < one_stop:
        out_words[out], out_counts[out] = words[one], counts[one]
        one += np.uint64(1)
        out += np.uint64(1)
    while two < two_stop:
        out_words[out], out_counts[out] = words[two], counts[two]
        two += np.uint64(1)
        out += np.uint64(1)
    return np.int64(out)


@njit(cache=True, nogil=True)
def _merge_two_wide(
    words: U64, counts: U64, first: int, second: int, stop: int, out_words: U64, out_counts: U64
) -> int:
    """As `_merge_two`, for keys of two words that stand side by side."""
    one, two, out = first, second, first
    while one < second or two < stop:
        takes_left = one < second
        takes_right = two < stop
        if takes_left and takes_right:
            high, low = words[2 * one], words[2 * one + 1]
            other_high, other_low = words[2 * two], words[2 * two + 1]
            takes_left = high < other_high or (high == other_high and low <= other_low)
            takes_right = other_high < high or (other_high == high and other_low <= low)
        source = one if takes_left else two
        out_words[2 * out], out_words[2 * out + 1] = words[2 * source], words[2 * source + 1]
        out_counts[out] = (counts[one] if takes_left else np.uint64(0)) + (counts[two] if takes_right else np.uint64(0))
        one += int(takes_left)
        two += int(takes_right)
        out += 1
    return out


@njit(cache=True, nogil=True)
def merge_slice(
    keys: U64,
    counts: U64,
    count_bytes: I64,
    cursors: I64,
    stops: I64,
    share: int,
    n_words: int,
    bounds: I64,
    words: U64,
    totals: U64,
    spare_words: U64,
    spare_totals: U64,
) -> tuple[int, bool]:
    """Merge the next slice of all runs and move their cursors past it.

    Parameters
    ----------
    keys, counts
        uint64 (n_runs,): addresses of each run's keys, `n_words` words each, and of its counts.
    count_bytes
        int64 (n_runs,): 4 or 8 bytes a count.
    cursors, stops
        int64 (n_runs,): what is left of each run; `cursors` is advanced.
    share
        Most keys that one run gives to a slice.
    bounds
        int64 (n_runs + 1,), scratch.
    words, totals, spare_words, spare_totals
        uint64 (n_runs * share * n_words,) and (n_runs * share,), twice: scratch, and one of them the result.

    Returns
    -------
    Number of keys, and whether they stand in the spare arrays.
    """
    cut_high, cut_low, is_cut = _cut(keys, cursors, stops, share, n_words)
    place = 0
    n_parts = 0
    for run in range(keys.size):
        stop = stops[run]
        if is_cut:
            # The first key above the cut; a run gives at most `share` keys, since its own share-th is not below it.
            nearest = min(stop, cursors[run] + share)
            stop = lower_bound(keys[run], cursors[run], nearest, cut_high, cut_low, n_words)
            if stop < nearest:
                high, low = _key(keys[run], stop, n_words)
                stop += high == cut_high and low == cut_low
        if stop == cursors[run]:
            continue
        bounds[n_parts] = place
        n_parts += 1
        for position in range(cursors[run], stop):
            high, low = _key(keys[run], position, n_words)
            if n_words == 1:
                words[place] = low
            else:
                words[2 * place], words[2 * place + 1] = high, low
            if count_bytes[run] == 4:
                totals[place] = np.uint64(_load_u32(counts[run] + np.uint64(position) * np.uint64(4)))
            else:
                totals[place] = _load_u64(counts[run] + np.uint64(position) * np.uint64(8))
            place += 1
        cursors[run] = stop
    return _merge_parts(n_parts, place, n_words, bounds, words, totals, spare_words, spare_totals)


@njit(cache=True, nogil=True)
def _merge_parts(
    n_parts: int,
    n_keys: int,
    n_words: int,
    bounds: I64,
    words: U64,
    totals: U64,
    spare_words: U64,
    spare_totals: U64,
) -> tuple[int, bool]:
    """Merge parts pair by pair until one is left. Part k begins at bounds[k], and where it ends moves forward as
    equal keys become one, so that gaps stay between the parts until they are closed by the next round."""
    is_spare = False
    bounds[n_parts] = n_keys
    while n_parts > 1:
        kept = 0
        place = 0
        for part in range(0, n_parts, 2):
            first = bounds[part]
            second = bounds[part + 1]
            stop = bounds[part + 2] if part + 2 < n_parts else bounds[n_parts]
            if n_words == 1:
                end = int(_merge_two(words, totals, first, second, stop, spare_words, spare_totals))
            else:
                end = _merge_two_wide(words, totals, first, second, stop, spare_words, spare_totals)
            if place != first:
                for word in range((end - first) * n_words):
                    spare_words[place * n_words + word] = spare_words[first * n_words + word]
                for total in range(end - first):
                    spare_totals[place + total] = spare_totals[first + total]
            bounds[kept] = place
            kept += 1
            place += end - first
        n_parts = kept
        bounds[n_parts] = place
        n_keys = place
        words, spare_words = spare_words, words
        totals, spare_totals = spare_totals, totals
        is_spare = not is_spare
    return n_keys, is_spare
