"""The key index of bundles: open addressing over exact keys. It knows keys, numbers and row ids, and no file.

A slot is the words of a key and one word more: the bundle's number plus one in its low half (0: the slot is free), and
in its high half a check of that number and of the rows that the n-gram owns. Slots are searched from the key's home
on, around the end.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

_LOW_HALF = np.uint64(2**32 - 1)
_HALF = np.uint64(32)
_ONE = np.uint64(1)
_SHIFT = np.uint64(33)
# The finaliser of MurmurHash3 (fmix64): every bit of a key moves every bit of its home.
_FIRST, _SECOND = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@numba.njit(cache=True, nogil=True)
def _home(keys: Any, first: Any, n_words: Any, n_slots: Any) -> Any:
    """Where the search for the key at word `first` begins."""
    mixed = np.uint64(0)
    for word in range(n_words):
        mixed = (mixed ^ keys[first + word]) * _GOLDEN
        mixed ^= mixed >> _SHIFT
        mixed *= _FIRST
        mixed ^= mixed >> _SHIFT
        mixed *= _SECOND
        mixed ^= mixed >> _SHIFT
    return np.int64(((mixed >> _HALF) * np.uint64(n_slots)) >> _HALF)


@numba.njit(cache=True, nogil=True)
def _search(keys: Any, first: Any, slots: Any, first_slot: Any, n_slots: Any) -> Any:
    """The slot of the key at word `first` among `n_slots`, or the free one where it belongs; -1 if there is neither."""
    n_words = slots.shape[1] - 1
    slot = first_slot + _home(keys, first, n_words, n_slots)
    for _ in range(n_slots):
        if slots[slot, n_words] & _LOW_HALF == np.uint64(0):
            return slot
        is_equal = True
        for word in range(n_words):
            is_equal &= slots[slot, word] == keys[first + word]
        if is_equal:
            return slot
        slot += 1
        if slot == first_slot + n_slots:
            slot = first_slot
    return np.int64(-1)


@numba.njit(cache=True, nogil=True)
def _check(rows: Any, first: Any, n_heads: Any, number: Any) -> Any:
    """32 bits that depend on the bundle's number, and on every row id and its place."""
    mixed = np.uint64(number)
    for head in range(n_heads):
        mixed = (mixed ^ np.uint64(rows[first + head])) * _GOLDEN
        mixed ^= mixed >> _SHIFT
    return mixed >> _HALF


@numba.njit(cache=True, nogil=True)
def insert(keys: Any, rows: Any, n_heads: Any, n_before: Any, slots: Any, numbers: Any) -> Any:
    """Enter keys, the most frequent n-gram first, each with the next number; how many numbers are given out then.

    Parameters
    ----------
    keys
        uint64 (n x words,), one key after the other.
    rows
        int64 (n x n_heads,): the rows of each n-gram, head by head.
    n_before
        Numbers that are given out already.
    slots
        uint64 (slots, words + 1), with more slots than keys.
    numbers
        int64 (n,), to be filled: each key's number, or -1 for a key that was entered before.
    """
    n_words = slots.shape[1] - 1
    n_entered = np.int64(n_before)
    for place in range(len(numbers)):
        first = place * n_words
        slot = _search(keys, first, slots, 0, slots.shape[0])
        if slots[slot, n_words] & _LOW_HALF != np.uint64(0):
            numbers[place] = -1
            continue
        for word in range(n_words):
            slots[slot, word] = keys[first + word]
        check = _check(rows, place * n_heads, n_heads, n_entered)
        slots[slot, n_words] = (check << _HALF) | (np.uint64(n_entered) + _ONE)
        numbers[place] = n_entered
        n_entered += 1
    return n_entered


@numba.njit(cache=True, nogil=True)
def find(keys: Any, slots: Any, n_bundles: Any, numbers: Any) -> None:
    """The number of every key's bundle, or -1, into `numbers`, int64 (n,); `keys` uint64 (n x words,).

    Numbers run below `n_bundles`; a slot that says otherwise is damaged and finds nothing.
    """
    n_words = slots.shape[1] - 1
    for place in range(len(numbers)):
        numbers[place] = _number(keys, place * n_words, slots, 0, slots.shape[0], n_bundles)


@numba.njit(cache=True, nogil=True)
def _number(keys: Any, first: Any, slots: Any, first_slot: Any, n_slots: Any, n_bundles: Any) -> Any:
    slot = _search(keys, first, slots, first_slot, n_slots)
    if slot < 0:
        return np.int64(-1)
    number = np.int64(slots[slot, slots.shape[1] - 1] & _LOW_HALF) - 1
    return number if number < n_bundles else np.int64(-1)


@numba.njit(cache=True, nogil=True)
def look_up(rows: Any, keys: Any, columns: Any, spans: Any, slots: Any, numbers: Any) -> Any:
    """Which bundle holds each n-gram of a batch; how many have one.

    Parameters
    ----------
    rows
        int64 (tokens x layers x columns,).
    keys
        uint64 (tokens x layers x orders x words,).
    columns
        int64 (orders + 1,): the first column of each order, and the number of columns.
    spans
        int64 (layers, orders, 3): first slot, slots, bundles.
    slots
        uint64 (slots, words + 1) of all layers and orders.
    numbers
        int64 (tokens x layers x orders,), to be filled: the number of the bundle, or -1. A bundle of other rows than
        the batch's is none.
    """
    n_layers, n_orders = spans.shape[0], spans.shape[1]
    n_words, n_columns = slots.shape[1] - 1, columns[n_orders]
    n_found = np.int64(0)
    for place in range(len(numbers)):
        order, layer = place % n_orders, place // n_orders % n_layers
        first_row = place // n_orders * n_columns + columns[order]
        span = spans[layer, order]
        slot = _search(keys, place * n_words, slots, span[0], span[1])
        numbers[place] = -1
        if slot >= 0:
            entry = slots[slot, n_words]
            number = np.int64(entry & _LOW_HALF) - 1
            n_heads = columns[order + 1] - columns[order]
            is_known = number >= 0 and number < span[2]
            if is_known and entry >> _HALF == _check(rows, first_row, n_heads, number):
                numbers[place] = number
                n_found += 1
    return n_found


@numba.njit(cache=True, nogil=True)
def redirect(numbers: Any, columns: Any, bases: Any, row_bytes: Any, part_starts: Any, addresses: Any) -> None:
    """Let the rows of bundled n-grams lie in their bundles.

    Parameters
    ----------
    numbers
        int64 (tokens x layers x orders,), as `look_up` fills it.
    columns
        As there.
    bases
        uint64 (layers, orders): where the first bundle of each is.
    part_starts
        uint64 (parts,): which byte of the record each part begins with; in a bundle a record lies in one piece.
    addresses
        uint64 (parts, tokens x layers x columns), to be changed where there is a bundle.
    """
    n_layers, n_orders = bases.shape[0], bases.shape[1]
    n_columns = columns[n_orders]
    for place in range(len(numbers)):
        if numbers[place] < 0:
            continue
        order, layer = place % n_orders, place // n_orders % n_layers
        first = place // n_orders * n_columns + columns[order]
        n_heads = columns[order + 1] - columns[order]
        start = bases[layer, order] + np.uint64(numbers[place] * n_heads) * np.uint64(row_bytes)
        for head in range(n_heads):
            for part in range(len(part_starts)):
                addresses[part, first + head] = start + np.uint64(head) * np.uint64(row_bytes) + part_starts[part]
