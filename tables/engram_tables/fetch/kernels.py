"""Compiled copying of records out of memory. It knows addresses and strides, and neither tables nor files.

Nothing here is checked: `fetch.placement` has looked at every row id before a kernel turns it into an
address.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from engram_tables.memory import copy_bytes, prefetch, prefetch_to_write

PREFETCH_DISTANCE = 16
# The output is written in order, but from rows that arrive in bursts: asking for its lines a few records early made
# the whole gather 1.3 times as fast where memory is slow (2-core VM, 2026-11).
_WRITE_AHEAD_BYTES = 1024
_BLOCK = 1024
_RING_MASK = np.int64(2 * _BLOCK - 1)


class Placement(NamedTuple):
    """Where the records of a batch lie, as plain arrays for kernels.

    A row of layer l lies in shard `first_shard[l] + row // rows_per_shard[l]`, and there, numbered from the
    shard's first, at `(row // cell_rows) * cell_bytes + (row % cell_rows) * row_bytes`.
    """

    first_shard: NDArray[np.int64]
    """(layers,)"""
    rows_per_shard: NDArray[np.int64]
    """(layers,), at least 1"""
    n_rows: NDArray[np.int64]
    """(layers,)"""
    bases: NDArray[np.uint64]
    """(shards,): the address, in memory or in any space of the caller's, of each shard's record 0"""
    cell_rows: int
    cell_bytes: int
    row_bytes: int


@njit(cache=True, nogil=True)
def first_outside(rows: Any, n_columns: Any, n_rows: Any) -> Any:
    """Flat position of the first row id that its layer does not have, or -1.

    `rows` is int64 (tokens x layers x columns,), `n_rows` int64 (layers,).
    """
    n_layers = n_rows.shape[0]
    layer = 0
    for start in range(0, rows.shape[0], n_columns):
        limit = np.uint64(n_rows[layer])
        outside = np.int64(0)
        for k in range(start, min(start + n_columns, rows.shape[0])):
            # Seen as unsigned, a negative id is larger than any limit.
            outside += np.int64(np.uint64(rows[k]) >= limit)
        if outside:
            for k in range(start, start + n_columns):
                if np.uint64(rows[k]) >= limit:
                    return k
        layer += 1
        if layer == n_layers:
            layer = 0
    return -1


@njit(cache=True, nogil=True, inline="always")
def _divide(dividend: Any, divisor: Any, reciprocal: Any) -> Any:
    """`dividend // divisor` for 0 <= dividend < 2**53: a rounded product is off by one at most."""
    quotient = np.int64(np.float64(dividend) * reciprocal)
    remainder = dividend - quotient * divisor
    return quotient - np.int64(remainder < 0) + np.int64(remainder >= divisor)


@njit(cache=True, nogil=True)
def _locate(rows: Any, start: Any, stop: Any, n_columns: Any, place: Any, target: Any) -> None:
    """Write the addresses of flat items `start` to `stop` into the ring `target` at `item & _RING_MASK`.

    The range must not wrap in the ring.
    """
    n_layers = place.n_rows.shape[0]
    cell_rows, cell_bytes, row_bytes = place.cell_rows, place.cell_bytes, place.row_bytes
    per_cell = 1.0 / cell_rows
    position = start
    while position < stop:
        group = position // n_columns
        end = min(stop, (group + 1) * n_columns)
        layer = group % n_layers
        first_shard, shard_rows = place.first_shard[layer], place.rows_per_shard[layer]
        per_shard = 1.0 / shard_rows
        shift = (position & _RING_MASK) - position
        if place.n_rows[layer] <= shard_rows and cell_rows == 1:
            base = place.bases[first_shard]
            for k in range(position, end):
                target[k + shift] = base + np.uint64(rows[k] * cell_bytes)
        else:
            for k in range(position, end):
                shard = _divide(rows[k], shard_rows, per_shard)
                row = rows[k] - shard * shard_rows
                cell = _divide(row, cell_rows, per_cell)
                offset = cell * cell_bytes + (row - cell * cell_rows) * row_bytes
                target[k + shift] = place.bases[first_shard + shard] + np.uint64(offset)
        position = end


@njit(cache=True, nogil=True)
def locate(rows: Any, n_columns: Any, place: Any, addresses: Any) -> None:
    """Write the address of every record into `addresses`, uint64 (items,); otherwise as `gather_kernel`."""
    ring = np.empty(2 * _BLOCK, np.uint64)
    for start in range(0, rows.shape[0], _BLOCK):
        stop = min(start + _BLOCK, rows.shape[0])
        _locate(rows, start, stop, n_columns, place, ring)
        shift = (start & _RING_MASK) - start
        for k in range(start, stop):
            addresses[k] = ring[k + shift]


@lru_cache(maxsize=64)
def gather_kernel(row_bytes: int) -> Any:
    """The gather for records of `row_bytes`, a constant inside so that the copy is straight vector moves.

    The kernel's arguments: `rows` int64 (tokens x layers x columns,) in C order, `start` and `stop` in it,
    `n_columns`, a `Placement` in memory, the address of the output for item 0, and the prefetch distance.
    """
    n_lines = (row_bytes + 63) // 64

    @njit(cache=True, nogil=True)
    def gather(rows: Any, start: Any, stop: Any, n_columns: Any, place: Any, output: Any, distance: Any) -> None:
        ring = np.empty(2 * _BLOCK, np.uint64)
        located = start
        first_block = start - start % _BLOCK
        for block in range(first_block, stop, _BLOCK):
            # One block ahead of the copies, so that prefetching need not stop at a block's end.
            while located < min(stop, block + 2 * _BLOCK):
                end = min(stop, located - located % _BLOCK + _BLOCK)
                _locate(rows, located, end, n_columns, place, ring)
                located = end
            for k in range(max(start, block), min(block + _BLOCK, stop)):
                if k + distance < located:
                    ahead = ring[(k + distance) & _RING_MASK]
                    for line in range(n_lines):
                        prefetch(ahead + np.uint64(line * 64))
                    prefetch(ahead + np.uint64(row_bytes - 1))
                target = output + np.uint64(k) * np.uint64(row_bytes)
                for line in range(n_lines):
                    prefetch_to_write(target + np.uint64(_WRITE_AHEAD_BYTES + line * 64))
                copy_bytes(target, ring[k & _RING_MASK], np.int64(row_bytes))

    return gather
