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
    """Where one part of the records of a batch lies, as plain arrays for kernels.

    Extent e holds rows from `first_rows[e]` to the next one's first. In it, numbered from its first, a row lies at
    `(row // cell_rows) * cell_bytes + (row % cell_rows) * part_bytes`.
    """

    extents: NDArray[np.int64]
    """(layers, 2): a layer's first extent, and how many follow each other from there"""
    extent_rows: NDArray[np.int64]
    """(layers,): rows of each extent but the last, if they begin with row 0 and are equal; otherwise 0"""
    first_rows: NDArray[np.int64]
    """(extents,)"""
    bases: NDArray[np.uint64]
    """(extents,): the address, in memory or in any space of the caller's, of each extent's first row"""
    cell_rows: int
    cell_bytes: int
    part_bytes: int


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
def _find_extent(first_rows: Any, first_extent: Any, n_extents: Any, row: Any) -> Any:
    """The last of these extents that begins at `row` or before it; the first one where none does."""
    extent, n_left = np.int64(first_extent), np.int64(n_extents)
    while n_left > 1:
        half = n_left // 2
        extent += half * np.int64(first_rows[extent + half] <= row)
        n_left -= half
    return extent


@njit(cache=True, nogil=True)
def first_missing(rows: Any, n_columns: Any, extents: Any, first_rows: Any, stops: Any) -> Any:
    """Flat position of the first row id that lies in none of its layer's extents, or -1.

    `rows` is int64 (tokens x layers x columns,), `extents` and `first_rows` are as in `Placement`; `stops` is int64
    (extents,), one more than each extent's last row.
    """
    n_layers = extents.shape[0]
    for k in range(rows.shape[0]):
        layer = k // n_columns % n_layers
        first_extent, n_extents = extents[layer, 0], extents[layer, 1]
        if n_extents == 0:
            return k
        extent = _find_extent(first_rows, first_extent, n_extents, rows[k])
        if rows[k] < first_rows[extent] or rows[k] >= stops[extent]:
            return k
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
    n_layers = place.extents.shape[0]
    cell_rows, cell_bytes, part_bytes = place.cell_rows, place.cell_bytes, place.part_bytes
    per_cell = 1.0 / cell_rows
    position = start
    while position < stop:
        group = position // n_columns
        end = min(stop, (group + 1) * n_columns)
        layer = group % n_layers
        first_extent, n_extents = place.extents[layer, 0], place.extents[layer, 1]
        extent_rows = place.extent_rows[layer]
        shift = (position & _RING_MASK) - position
        if n_extents == 1 and cell_rows == 1:
            # Where row 0 would lie: such an address may wrap, and wraps back.
            base = place.bases[first_extent] - np.uint64(place.first_rows[first_extent] * cell_bytes)
            for k in range(position, end):
                target[k + shift] = base + np.uint64(rows[k] * cell_bytes)
        elif extent_rows > 0:
            per_extent = 1.0 / extent_rows
            for k in range(position, end):
                extent = _divide(rows[k], extent_rows, per_extent)
                row = rows[k] - extent * extent_rows
                cell = _divide(row, cell_rows, per_cell)
                offset = cell * cell_bytes + (row - cell * cell_rows) * part_bytes
                target[k + shift] = place.bases[first_extent + extent] + np.uint64(offset)
        else:
            for k in range(position, end):
                extent = _find_extent(place.first_rows, first_extent, n_extents, rows[k])
                row = rows[k] - place.first_rows[extent]
                cell = _divide(row, cell_rows, per_cell)
                offset = cell * cell_bytes + (row - cell * cell_rows) * part_bytes
                target[k + shift] = place.bases[extent] + np.uint64(offset)
        position = end


@njit(cache=True, nogil=True)
def locate(rows: Any, n_columns: Any, place: Any, addresses: Any) -> None:
    """Write the address of every record's part into `addresses`, uint64 (items,); otherwise as `gather_kernel`."""
    ring = np.empty(2 * _BLOCK, np.uint64)
    for start in range(0, rows.shape[0], _BLOCK):
        stop = min(start + _BLOCK, rows.shape[0])
        _locate(rows, start, stop, n_columns, place, ring)
        shift = (start & _RING_MASK) - start
        for k in range(start, stop):
            addresses[k] = ring[k + shift]


@lru_cache(maxsize=64)
def gather_kernel(part_bytes: int, row_bytes: int) -> Any:
    """The gather of parts of `part_bytes` into records of `row_bytes`, both constants inside so that the copy is
    straight vector moves.

    The kernel's arguments: `rows` int64 (tokens x layers x columns,) in C order, `start` and `stop` in it,
    `n_columns`, a `Placement` in memory, the address where item 0's part goes, and the prefetch distance.
    """
    n_lines = (part_bytes + 63) // 64

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
                    prefetch(ahead + np.uint64(part_bytes - 1))
                target = output + np.uint64(k) * np.uint64(row_bytes)
                for line in range(n_lines):
                    prefetch_to_write(target + np.uint64(_WRITE_AHEAD_BYTES + line * 64))
                copy_bytes(target, ring[k & _RING_MASK], np.int64(part_bytes))

    return gather


@lru_cache(maxsize=64)
def copy_kernel(part_bytes: int, row_bytes: int) -> Any:
    """The copy of parts that have been located already, for some records of a batch.

    The kernel's arguments: `addresses` uint64 (all items,), `items` int64 (n,), `start` and `stop` in it, the address
    where item 0's part goes, and the prefetch distance.
    """
    n_lines = (part_bytes + 63) // 64

    @njit(cache=True, nogil=True)
    def copy(addresses: Any, items: Any, start: Any, stop: Any, output: Any, distance: Any) -> None:
        for k in range(start, stop):
            if k + distance < stop:
                ahead = addresses[items[k + distance]]
                for line in range(n_lines):
                    prefetch(ahead + np.uint64(line * 64))
                prefetch(ahead + np.uint64(part_bytes - 1))
            target = output + np.uint64(items[k]) * np.uint64(row_bytes)
            copy_bytes(target, addresses[items[k]], np.int64(part_bytes))

    return copy
