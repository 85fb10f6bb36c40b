"""Compiled loops of exact n-gram counting. Callers validate: nothing here checks a bound.

A *key* is the window that starts at one position, oldest token in the most significant place, `token_bits` bits a
token, kept modulo 2^64; past the end of the document every place holds the sentinel, the largest value there is.
All arithmetic on keys is uint64.
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
    document_starts: I64,
    start: int,
    stop: int,
    order: int,
    token_bits: int,
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
        uint64 (n_tokens,), aligned to 64 bytes; written.
    """
    bits = np.uint64(token_bits)
    ahead = np.uint64(order - 1)
    sentinel = (np.uint64(1) << bits) - np.uint64(1)
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
        whole = max(position, min(last, end - order + 1))
        for at in range(np.uint64(position), np.uint64(whole)):
            key = ((key << bits) | np.uint64(ids[at + ahead])) & mask
            _put_key(key, partition_of[ids[at]], first, cursors, lines, keys)
        for at in range(np.uint64(whole), np.uint64(last)):
            key = ((key << bits) | sentinel) & mask
            _put_key(key, partition_of[ids[at]], first, cursors, lines, keys)
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
def count_distinct(keys: U64, order: int, token_bits: int, orders: I64, n_distinct: I64) -> None:
    """Distinct n-grams of each of `orders` among the beginnings of the sorted `keys`, into `n_distinct`."""
    bits = np.uint64(token_bits)
    sentinel = (np.uint64(1) << bits) - np.uint64(1)
    one = np.uint64(1)
    n_distinct[:] = 0
    for block_start in range(np.uint64(0), np.uint64(keys.size), np.uint64(BLOCK_KEYS)):
        block_stop = min(block_start + np.uint64(BLOCK_KEYS), np.uint64(keys.size))
        inner_stop = min(block_stop, np.uint64(keys.size) - one)
        n_ended = 0
        for position in range(block_start, block_stop):
            n_ended += (keys[position] & sentinel) == sentinel
        for column in range(orders.size):
            shift = np.uint64(order - orders[column]) * bits
            found = 0
            if n_ended == 0:
                for position in range(block_start, inner_stop):
                    found += (keys[position] ^ keys[position + one]) >> shift != np.uint64(0)
                found += block_stop != inner_stop
            else:
                for position in range(block_start, block_stop):
                    here = keys[position] >> shift
                    ends = position == inner_stop or here != keys[position + one] >> shift
                    found += ends & ((here & sentinel) != sentinel)
            n_distinct[column] += found


@njit(cache=True, nogil=True)
def compact_windows(keys: U64, start: int, stop: int, windows: U64, ends: I64) -> np.int64:
    """The distinct keys of one stretch of a sorted partition, and where the run of each ends.

    Parameters
    ----------
    keys
        uint64 (n_keys,), sorted.
    start, stop
        The stretch. A run that goes on after `stop` is not written: the next stretch has it.
    windows
        uint64 (stop - start + 1,), written; behind the last distinct key stands the one that follows, if any does.
    ends
        int64 (stop - start + 1,), written: one past each run's last position in `keys`.

    Returns
    -------
    Number of distinct keys.
    """
    one = np.uint64(1)
    n_windows = np.uint64(0)
    for position in range(np.uint64(start), min(np.uint64(stop), np.uint64(keys.size) - one)):
        windows[n_windows] = keys[position]
        ends[n_windows] = np.int64(position) + 1
        n_windows += np.uint64(keys[position] != keys[position + one])
    if stop == keys.size:
        windows[n_windows] = keys[stop - 1]
        ends[n_windows] = stop
        n_windows += one
    else:
        windows[n_windows] = keys[stop]
    return np.int64(n_windows)


@njit(cache=True, nogil=True)
def emit_runs(
    windows: U64,
    ends: I64,
    n_windows: int,
    is_last: bool,
    run_start: int,
    leading: int,
    order: int,
    n: int,
    token_bits: int,
    columns: U32,
    counts: U64,
    row: int,
    block: U64,
) -> tuple[np.int64, int]:
    """Unpack the distinct n-grams of one stretch, and how often each occurs.

    Parameters
    ----------
    windows, ends
        As `compact_windows` left them.
    is_last
        The stretch ends its partition, so that nothing stands behind its last window.
    run_start
        Position in the partition at which the n-gram of the first window began to occur.
    leading
        The partition's first leading token with the bits that keys hold themselves cleared.
    columns
        uint32 (n, n_distinct), written from column `row` on; oldest token in row 0.
    counts
        uint64 (n_distinct,), written from `row` on.
    block
        uint64 (2, BLOCK_KEYS + 1), scratch: the loop without branches writes one place too far, and that must not
        be the neighbour partition's part of the result.

    Returns
    -------
    The row and the run start to go on with.
    """
    bits = np.uint64(token_bits)
    shift = np.uint64(order - n) * bits
    sentinel = (np.uint64(1) << bits) - np.uint64(1)
    one = np.uint64(1)
    next_row = np.uint64(row)
    for block_start in range(np.uint64(0), np.uint64(n_windows), np.uint64(BLOCK_KEYS)):
        block_stop = min(block_start + np.uint64(BLOCK_KEYS), np.uint64(n_windows))
        n_runs = np.uint64(0)
        for position in range(block_start, block_stop):
            here = windows[position] >> shift
            block[0, n_runs] = here
            block[1, n_runs] = np.uint64(ends[position] - run_start)
            run_ends = (here != windows[position + one] >> shift) | (is_last & (position + one == np.uint64(n_windows)))
            run_start = ends[position] if run_ends else run_start
            n_runs += np.uint64(run_ends & ((here & sentinel) != sentinel))
        for run in range(n_runs):
            counts[next_row + run] = block[1, run]
        for place in range(n):
            place_shift = np.uint64(n - 1 - place) * bits
            high = np.uint32(leading) if place == 0 else np.uint32(0)
            for run in range(n_runs):
                columns[place, next_row + run] = np.uint32((block[0, run] >> place_shift) & sentinel) | high
        next_row += n_runs
    return np.int64(next_row), run_start


@njit(cache=True, nogil=True)
def lower_bounds(columns: U32, ngrams: U32, rows: I64) -> None:
    """For each n-gram the first column of `columns` that is not below it, compared from row 0 down.

    Parameters
    ----------
    columns
        uint32 (order, n_columns), ascending.
    ngrams
        uint32 (n_ngrams, order).
    rows
        int64 (n_ngrams,), written: 0 to n_columns.
    """
    for which in range(ngrams.shape[0]):
        low = 0
        high = columns.shape[1]
        while low < high:
            middle = (low + high) // 2
            below = False
            for place in range(columns.shape[0]):
                if columns[place, middle] != ngrams[which, place]:
                    below = columns[place, middle] < ngrams[which, place]
                    break
            if below:
                low = middle + 1
            else:
                high = middle
        rows[which] = low
