"""Compiled loops of exact n-gram counting. Callers validate: nothing here checks a bound.

Keys are those of `windows`, of one word; `wide_kernels` has the loops for two. All arithmetic on keys is uint64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

BLOCK_KEYS = 2048
"""Keys or runs that one loop after the other works on while they stay in the nearest cache."""

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


LINE_KEYS = 8
"""Keys of one 64-byte cache line."""


def _type_stream_line(_typing: Any, _target: Any, _source: Any) -> Any:
    """Copy one aligned cache line past the caches, so that the line is not fetched before it is overwritten."""

    def emit(_context: Any, builder: Any, _signature: Any, arguments: Any) -> None:
        line = ir.VectorType(ir.IntType(64), LINE_KEYS).as_pointer()
        load = builder.load(builder.inttoptr(arguments[1], line))
        load.align = 64
        store = builder.store(load, builder.inttoptr(arguments[0], line))
        store.align = 64
        one = ir.Constant(ir.IntType(32), 1)
        store.set_metadata("nontemporal", builder.module.add_metadata([one]))

    return types.void(types.uintp, types.uintp), emit


_stream_line: Any = intrinsic(_type_stream_line)


def _type_fence(_typing: Any) -> Any:
    """Order the stores above, streamed ones too, before all that follows."""

    def emit(_context: Any, builder: Any, _signature: Any, _arguments: Any) -> None:
        builder.fence("seq_cst")

    return types.void(), emit


_fence: Any = intrinsic(_type_fence)


@njit(cache=True, nogil=True)
def map_ids(ids: U32, canonical_ids: U32, mapped: U32) -> None:
    """`canonical_ids` of each of `ids`, which must be below its length, into `mapped`; it may be `ids` itself."""
    for position in range(ids.size):
        mapped[position] = canonical_ids[ids[position]]


@njit(cache=True, nogil=True)
def add_histogram(ids: U32, histogram: I64) -> None:
    """Add to `histogram` (canonical_size,) how often each id occurs in `ids`."""
    for position in range(ids.size):
        histogram[ids[position]] += 1


@njit(cache=True, nogil=True)
def _put_key(key: np.uint64, partition: np.uint32, first: U64, cursors: U64, lines: U64, keys: U64) -> None:
    """Add a key to its partition's line; a full line goes to `keys`."""
    cursor = cursors[partition]
    place = cursor & np.uint64(LINE_KEYS - 1)
    line = np.uint64(partition) * np.uint64(LINE_KEYS)
    lines[line + place] = key
    cursors[partition] = cursor + np.uint64(1)
    if place == np.uint64(LINE_KEYS - 1):
        start = cursor - place
        if start >= first[partition]:
            _stream_line(
                np.uint64(keys.ctypes.data) + start * np.uint64(8), np.uint64(lines.ctypes.data) + line * np.uint64(8)
            )
        else:
            for at in range(first[partition], cursor + np.uint64(1)):
                keys[at] = lines[line + (at & np.uint64(LINE_KEYS - 1))]


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
    first: U64,
    cursors: U64,
    lines: U64,
    keys: U64,
) -> None:
    """Put the key of each start position in [start, stop) into its partition's next free place.

    Keys gather in a line of `lines` for each partition and leave it eight at a time; `flush_keys` writes the rest.

    Parameters
    ----------
    ids
        uint32 (n_tokens,).
    following
        uint32 (n_tokens,): the raw ids, of which the one after the window joins the key; not read if `next_bits` is 0.
    document_starts
        int64 (n_documents + 1,).
    order
        Tokens in a window.
    partition_of
        uint32 (canonical_size,): partition by leading token.
    first
        uint64 (n_partitions,): first place in each partition that is this caller's.
    cursors
        uint64 (n_partitions,): next free place of each partition for this caller; advanced.
    lines
        uint64 (n_partitions * LINE_KEYS,), aligned to 64 bytes: this caller's, between calls too.
    keys
        uint64 (n_keys,), aligned to 64 bytes; written.
    """
    bits = np.uint64(token_bits)
    past = np.uint64(next_bits)
    ahead = np.uint64(order - 1)
    sentinel = (np.uint64(1) << bits) - np.uint64(1)
    no_next = (np.uint64(1) << past) - np.uint64(1)
    mask = np.uint64(0xFFFFFFFFFFFFFFFF)
    if order * token_bits < 64:
        mask = (np.uint64(1) << np.uint64(order * token_bits)) - np.uint64(1)
    document = np.searchsorted(document_starts, start, side="right") - 1
    position = start
    while position < stop:
        end = document_starts[document + 1]
        last = min(end, stop)
        key = np.uint64(0)
        for place in range(position, position + order - 1):
            key = (key << bits) | (np.uint64(ids[place]) if place < end else sentinel)
        # Windows that end, the following token included, before the document does.
        whole = max(position, min(last, end - order + 1 - (next_bits > 0)))
        if next_bits == 0:
            for at in range(np.uint64(position), np.uint64(whole)):
                key = ((key << bits) | np.uint64(ids[at + ahead])) & mask
                _put_key(key, partition_of[ids[at]], first, cursors, lines, keys)
        else:
            for at in range(np.uint64(position), np.uint64(whole)):
                key = ((key << bits) | np.uint64(ids[at + ahead])) & mask
                joined = (key << past) | np.uint64(following[at + ahead + np.uint64(1)])
                _put_key(joined, partition_of[ids[at]], first, cursors, lines, keys)
        for at in range(whole, last):
            newest = np.uint64(ids[at + order - 1]) if at + order - 1 < end else sentinel
            key = ((key << bits) | newest) & mask
            _put_key((key << past) | no_next, partition_of[ids[at]], first, cursors, lines, keys)
        position = last
        document += 1
    _fence()


@njit(cache=True, nogil=True)
def flush_keys(first: U64, cursors: U64, lines: U64, keys: U64) -> None:
    """Write the keys that `scatter_keys` left in lines that are not full."""
    for partition in range(first.size):
        cursor = cursors[partition]
        start = max(cursor & ~np.uint64(LINE_KEYS - 1), first[partition])
        for at in range(start, cursor):
            keys[at] = lines[np.uint64(partition) * np.uint64(LINE_KEYS) + (at & np.uint64(LINE_KEYS - 1))]


@njit(cache=True, nogil=True)
def compact_windows(keys: U64, counts: U32) -> np.int64:
    """Leave each distinct key once, in place, with how often it occurred.

    Parameters
    ----------
    keys
        uint64 (n_keys,), sorted, not empty; the distinct ones come to stand first.
    counts
        uint32 (n_keys,), written as far as there are distinct keys.

    Returns
    -------
    Number of distinct keys.
    """
    one = np.uint64(1)
    last = np.uint64(keys.size) - one
    n_windows = np.uint64(0)
    for position in range(np.uint64(0), last):
        key = keys[position]
        keys[n_windows] = key
        counts[n_windows] = np.uint32(position + one)
        n_windows += np.uint64(key != keys[position + one])
    keys[n_windows] = keys[last]
    counts[n_windows] = np.uint32(keys.size)
    for window in range(n_windows, np.uint64(0), -1):
        counts[window] -= counts[window - 1]
    return np.int64(n_windows + one)


@njit(cache=True, nogil=True)
def count_rows(windows: U64, drop: int, token_bits: int, next_bits: int) -> np.int64:
    """Distinct n-grams among the beginnings of the distinct sorted `windows`, those past a document's end left out.

    Parameters
    ----------
    windows
        uint64 (n_windows,), not empty.
    drop
        Bits of each window that are not part of the n-gram.
    """
    sentinel = (np.uint64(1) << np.uint64(token_bits)) - np.uint64(1)
    shift, past, one = np.uint64(drop), np.uint64(next_bits), np.uint64(1)
    last = np.uint64(windows.size) - one
    found = np.uint64(((windows[last] >> (shift + past)) & sentinel) != sentinel)
    for position in range(np.uint64(0), last):
        ends = (windows[position] ^ windows[position + one]) >> shift != np.uint64(0)
        found += np.uint64(ends & (((windows[position] >> (shift + past)) & sentinel) != sentinel))
    return np.int64(found)


@njit(cache=True, nogil=True)
def shorten_runs(
    keys: U64, totals: U32, n_keys: int, drop: int, open_run: U64, out_keys: U64, out_totals: U64
) -> np.int64:
    """Make the sorted `keys` shorter by `drop` bits and add up those that become equal.

    Parameters
    ----------
    keys, totals
        uint64 and unsigned (n_keys,).
    open_run
        uint64 (3,): the run that the call before left open, as key, total and whether there is one; the last run of
        this call is left there, since it may go on.
    out_keys, out_totals
        uint64 (n_keys + 1,), written.

    Returns
    -------
    Number of runs written.
    """
    shift = np.uint64(drop)
    key, total = open_run[0], open_run[1]
    n_runs = np.uint64(0)
    start = np.uint64(0)
    if open_run[2] == np.uint64(0) and n_keys > 0:
        key, total, start = keys[0] >> shift, np.uint64(totals[0]), np.uint64(1)
    for position in range(start, np.uint64(n_keys)):
        here = keys[position] >> shift
        ends = here != key
        out_keys[n_runs] = key
        out_totals[n_runs] = total
        n_runs += np.uint64(ends)
        total = np.uint64(totals[position]) + (np.uint64(0) if ends else total)
        key = here
    open_run[0], open_run[1] = key, total
    if n_keys > 0:
        open_run[2] = np.uint64(1)
    return np.int64(n_runs)


@njit(cache=True, nogil=True)
def unpack_rows(
    keys: U64,
    totals: U32,
    n_keys: int,
    leading: int,
    n: int,
    token_bits: int,
    next_bits: int,
    min_count: int,
    columns: U32,
    out_totals: U64,
    row: int,
    dropped: I64,
    block: U64,
) -> np.int64:
    """Write the n-grams of sorted distinct keys, those left out that reach past the document's end.

    Parameters
    ----------
    keys, totals
        uint64 and unsigned (n_keys,): `n` tokens a key, and how often each occurs.
    leading
        The bits of the leading token that keys do not hold.
    min_count
        N-grams that occur less often are left out, and entered in `dropped`.
    columns
        uint32 (n or, with a following token, n + 1, capacity), written from column `row` on, oldest token in row 0.
    out_totals
        uint64 (capacity,), written from `row` on.
    dropped
        int64 (2,): n-grams and occurrences left out, added to.
    block
        uint64 (2, BLOCK_KEYS + 1), scratch.

    Returns
    -------
    The row to go on with.
    """
    past, least = np.uint64(next_bits), np.uint64(min_count)
    sentinel = (np.uint64(1) << np.uint64(token_bits)) - np.uint64(1)
    next_row = np.uint64(row)
    zero: np.uint64 = np.uint64(0)
    for start in range(zero, np.uint64(n_keys), np.uint64(BLOCK_KEYS)):
        stop = min(start + np.uint64(BLOCK_KEYS), np.uint64(n_keys))
        n_out = zero
        for at in range(start, stop):
            is_past = ((keys[at] >> past) & sentinel) == sentinel
            n_out += np.uint64(is_past | (np.uint64(totals[at]) < least))
        if n_out == zero:
            begin = np.uint64(start)
            _unpack_block(keys, totals, begin, stop, leading, n, token_bits, next_bits, columns, out_totals, next_row)
            next_row += stop - start
            continue
        n_rows = zero
        for at in range(start, stop):
            key, total = keys[at], np.uint64(totals[at])
            is_whole = ((key >> past) & sentinel) != sentinel
            is_rare = is_whole & (total < least)
            dropped[0] += is_rare
            dropped[1] += np.int64(total) if is_rare else 0
            block[0, n_rows] = key
            block[1, n_rows] = total
            n_rows += np.uint64(is_whole & ~is_rare)
        _unpack_block(
            block[0], block[1], zero, n_rows, leading, n, token_bits, next_bits, columns, out_totals, next_row
        )
        next_row += n_rows
    return np.int64(next_row)


@njit(cache=True, nogil=True)
def _unpack_block(
    keys: U64,
    totals: U32,
    start: np.uint64,
    stop: np.uint64,
    leading: int,
    n: int,
    token_bits: int,
    next_bits: int,
    columns: U32,
    out_totals: U64,
    row: np.uint64,
) -> None:
    """As `unpack_rows`, for [start, stop) of `keys`, which all become rows."""
    bits, past = np.uint64(token_bits), np.uint64(next_bits)
    sentinel = (np.uint64(1) << bits) - np.uint64(1)
    for at in range(stop - start):
        out_totals[row + at] = np.uint64(totals[start + at])
    for place in range(n):
        place_shift = np.uint64(n - 1 - place) * bits + past
        high = np.uint32(leading) if place == 0 else np.uint32(0)
        for at in range(stop - start):
            columns[place, row + at] = np.uint32((keys[start + at] >> place_shift) & sentinel) | high
    if next_bits:
        low = (np.uint64(1) << past) - np.uint64(1)
        for at in range(stop - start):
            columns[n, row + at] = np.uint32(keys[start + at] & low)
