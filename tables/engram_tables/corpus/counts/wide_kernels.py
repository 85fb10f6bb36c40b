"""The loops of `kernels` for keys of two words. Callers validate: nothing here checks a bound.

Keys are uint64 (n, 2): high word, low word. They hold all bits of the window, the leading token's too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

DIGIT_BITS = 11
N_DIGITS = 12
"""Digits of DIGIT_BITS in 128 bits."""

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


@njit(cache=True, nogil=True)
def _shifted(high: np.uint64, low: np.uint64, drop: np.uint64) -> tuple[np.uint64, np.uint64]:
    """(high, low) shifted right by 0 to 127 bits."""
    word = np.uint64(64)
    if drop == np.uint64(0):
        return high, low
    if drop >= word:
        return np.uint64(0), high >> (drop - word)
    return high >> drop, (low >> drop) | (high << (word - drop))


@njit(cache=True, nogil=True)
def scatter_keys(
    ids: U32,
    following: U32,
    document_starts: I64,
    start: int,
    stop: int,
    order: int,
    token_bits: int,
    next_bits: int,
    partition_of: U32,
    cursors: U64,
    keys: U64,
) -> None:
    """As `kernels.scatter_keys`, straight into `keys` (n_keys, 2)."""
    bits = np.uint64(token_bits)
    past = np.uint64(next_bits)
    word = np.uint64(64)
    sentinel = (np.uint64(1) << bits) - np.uint64(1)
    no_next = (np.uint64(1) << past) - np.uint64(1)
    window_bits = np.uint64(order * token_bits)
    full = np.uint64(0xFFFFFFFFFFFFFFFF)
    low_mask = full if window_bits >= word else (np.uint64(1) << window_bits) - np.uint64(1)
    high_mask = np.uint64(0)
    if window_bits > word:
        high_mask = full if window_bits >= np.uint64(128) else (np.uint64(1) << (window_bits - word)) - np.uint64(1)
    document = np.searchsorted(document_starts, start, side="right") - 1
    position = start
    while position < stop:
        end = document_starts[document + 1]
        last = min(end, stop)
        high, low = np.uint64(0), np.uint64(0)
        for place in range(position, position + order - 1):
            newest = np.uint64(ids[place]) if place < end else sentinel
            high = (high << bits) | (low >> (word - bits))
            low = (low << bits) | newest
        for at in range(position, last):
            newest = np.uint64(ids[at + order - 1]) if at + order - 1 < end else sentinel
            high = ((high << bits) | (low >> (word - bits))) & high_mask
            low = ((low << bits) | newest) & low_mask
            partition = partition_of[ids[at]]
            cursor = cursors[partition]
            cursors[partition] = cursor + np.uint64(1)
            if next_bits == 0:
                keys[cursor, 0] = high
                keys[cursor, 1] = low
            else:
                after = np.uint64(following[at + order]) if at + order < end else no_next
                keys[cursor, 0] = (high << past) | (low >> (word - past))
                keys[cursor, 1] = (low << past) | after
        position = last
        document += 1


@njit(cache=True, nogil=True)
def sort_keys(keys: U64, spare: U64, places: I64) -> None:
    """Sort `keys` (n, 2) in place, digit by digit from the lowest; digits that all keys share are passed over.

    Parameters
    ----------
    spare
        uint64 (n, 2), scratch.
    places
        int64 (N_DIGITS, 2^DIGIT_BITS), scratch.
    """
    digit_mask = np.uint64((1 << DIGIT_BITS) - 1)
    n_keys = keys.shape[0]
    places[:] = 0
    for position in range(n_keys):
        high, low = keys[position, 0], keys[position, 1]
        for digit in range(N_DIGITS):
            _, value = _shifted(high, low, np.uint64(digit * DIGIT_BITS))
            places[digit, value & digit_mask] += 1
    source, target = keys, spare
    n_passes = 0
    for digit in range(N_DIGITS):
        drop = np.uint64(digit * DIGIT_BITS)
        _, value = _shifted(keys[0, 0], keys[0, 1], drop)
        if places[digit, value & digit_mask] == n_keys:
            continue
        place = 0
        for bucket in range(places.shape[1]):
            n_here = places[digit, bucket]
            places[digit, bucket] = place
            place += n_here
        for position in range(n_keys):
            high, low = source[position, 0], source[position, 1]
            _, value = _shifted(high, low, drop)
            goal = places[digit, value & digit_mask]
            places[digit, value & digit_mask] = goal + 1
            target[goal, 0] = high
            target[goal, 1] = low
        source, target = target, source
        n_passes += 1
    if n_passes % 2:
        keys[:] = spare[:n_keys]


@njit(cache=True, nogil=True)
def compact_windows(keys: U64, counts: U32) -> np.int64:
    """As `kernels.compact_windows`."""
    last = keys.shape[0] - 1
    n_windows = 0
    for position in range(last):
        high, low = keys[position, 0], keys[position, 1]
        keys[n_windows, 0] = high
        keys[n_windows, 1] = low
        counts[n_windows] = np.uint32(position + 1)
        n_windows += high != keys[position + 1, 0] or low != keys[position + 1, 1]
    keys[n_windows] = keys[last]
    counts[n_windows] = np.uint32(last + 1)
    for window in range(n_windows, 0, -1):
        counts[window] -= counts[window - 1]
    return np.int64(n_windows + 1)


@njit(cache=True, nogil=True)
def count_rows(windows: U64, drop: int, token_bits: int, next_bits: int) -> int:
    """As `kernels.count_rows`."""
    sentinel = (np.uint64(1) << np.uint64(token_bits)) - np.uint64(1)
    shift, past = np.uint64(drop), np.uint64(next_bits)
    found = 0
    last = windows.shape[0] - 1
    for position in range(last + 1):
        high, low = _shifted(windows[position, 0], windows[position, 1], shift)
        after = min(position + 1, last)
        next_high, next_low = _shifted(windows[after, 0], windows[after, 1], shift)
        ends = position == last or high != next_high or low != next_low
        _, newest = _shifted(high, low, past)
        found += ends and (newest & sentinel) != sentinel
    return found


@njit(cache=True, nogil=True)
def shorten_runs(keys: U64, totals: U32, n_keys: int, drop: int, open_run: U64, out_keys: U64, out_totals: U64) -> int:
    """As `kernels.shorten_runs`; `open_run` is uint64 (4,): both words, total, and whether there is one."""
    shift = np.uint64(drop)
    n_runs = 0
    for position in range(n_keys):
        high, low = _shifted(keys[position, 0], keys[position, 1], shift)
        if open_run[3] and high == open_run[0] and low == open_run[1]:
            open_run[2] += np.uint64(totals[position])
            continue
        if open_run[3]:
            out_keys[n_runs, 0], out_keys[n_runs, 1], out_totals[n_runs] = open_run[0], open_run[1], open_run[2]
            n_runs += 1
        open_run[0], open_run[1], open_run[2], open_run[3] = high, low, np.uint64(totals[position]), np.uint64(1)
    return n_runs


@njit(cache=True, nogil=True)
def unpack_rows(
    keys: U64,
    totals: U32,
    n_keys: int,
    n: int,
    token_bits: int,
    next_bits: int,
    min_count: int,
    columns: U32,
    out_totals: U64,
    row: int,
    dropped: I64,
) -> np.int64:
    """As `kernels.unpack_rows`."""
    bits, past, least = np.uint64(token_bits), np.uint64(next_bits), np.uint64(min_count)
    sentinel = (np.uint64(1) << bits) - np.uint64(1)
    no_next = (np.uint64(1) << past) - np.uint64(1)
    next_row = row
    for position in range(n_keys):
        high, low, total = keys[position, 0], keys[position, 1], np.uint64(totals[position])
        _, newest = _shifted(high, low, past)
        if newest & sentinel == sentinel:
            continue
        if total < least:
            dropped[0] += 1
            dropped[1] += np.int64(total)
            continue
        for place in range(n):
            _, value = _shifted(high, low, np.uint64(n - 1 - place) * bits + past)
            columns[place, next_row] = np.uint32(value & sentinel)
        if next_bits:
            columns[n, next_row] = np.uint32(low & no_next)
        out_totals[next_row] = total
        next_row += 1
    return np.int64(next_row)
