"""Compiled copying of records out of memory. It knows addresses and strides, and neither tables nor files.

Nothing here is checked: `fetch.placement` has looked at every row id before a kernel turns it into an
address.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import carray, cfunc, njit, types  # type: ignore[attr-defined]
from numpy.typing import NDArray

from engram_tables.memory import (
    add_in_order,
    call_at,
    copy_bytes,
    load_byte,
    pointer_to,
    prefetch,
    prefetch_to_write,
)

PREFETCH_DISTANCE = 16
# The output is written in order, but from rows that arrive in bursts: asking for its lines a few records early made
# the whole gather 1.3 times as fast where memory is slow (2-core VM, 2026-11).
_WRITE_AHEAD_BYTES = 1024
_LONGEST_MOVE_BYTES = 1024
_BLOCK = 1024
# Records of a small batch that are located and copied at a time. Of 64, beginning each stretch took a fifth of the time
# that records of 8 bytes took.
_STRETCH = 256
_RING_MASK = np.int64(2 * _BLOCK - 1)

# What `fetch_kernel` answers. Everything but DONE means that no byte was written.
DONE, CLOSED, MISFIT, LARGE, OUTSIDE, ABSENT, CONTRADICTED, SPENT = range(8)
# A gate is one int64: how many kernels are at work behind it, plus this once it is shut.
SHUT = 1 << 40

# Words of a plan, see `WarmPath`. Those that change as rows are fetched have a cache line to themselves.
BUDGET, UNTIL_CHECK, CHECKED, CONTRADICTIONS = 0, 1, 2, 3
GATE, ROWS_A_CHECK, MOST_ROWS, N_LAYERS, N_COLUMNS, N_EXTENTS, IS_WHOLE = 8, 9, 10, 11, 12, 13, 14
CELL_ROWS, CELL_BYTES, PAGES, REGION_START, PAGE_SHIFT, WHOLE = 15, 16, 17, 18, 19, 20
# Addresses of the objects that are NumPy's array type, its int64 and its uint8.
ARRAY_TYPE, INT64_TYPE, UINT8_TYPE = 21, 22, 23
# The address of `copy_kernel` for records of that size.
ROW_BYTES, COPY = 24, 25
PLAN_HEAD = 26

_external: Any = types.ExternalFunction
_mincore = _external("mincore", types.int32(types.uint64, types.uint64, types.uint64))
_release_gil = _external("PyEval_SaveThread", types.uint64())
_take_gil = _external("PyEval_RestoreThread", types.void(types.uint64))
_python_int = _external("PyLong_FromLong", types.uint64(types.int64))
_int_of = _external("PyLong_AsLong", types.int64(types.uint64))
_forget_error = _external("PyErr_Clear", types.void())


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
    # Rows that the smallest layer has are in all of them: one loop without a branch for nearly every batch.
    fewest = np.uint64(n_rows[0])
    for layer in range(1, n_layers):
        fewest = min(fewest, np.uint64(n_rows[layer]))
    n_beyond = np.int64(0)
    for k in range(rows.shape[0]):
        # Seen as unsigned, a negative id is larger than any limit.
        n_beyond += np.int64(np.uint64(rows[k]) >= fewest)
    if n_beyond == 0:
        return -1
    layer = 0
    for start in range(0, rows.shape[0], n_columns):
        limit = np.uint64(n_rows[layer])
        outside = np.int64(0)
        for k in range(start, min(start + n_columns, rows.shape[0])):
            outside += np.int64(np.uint64(rows[k]) >= limit)
        if outside:
            for k in range(start, start + n_columns):
                if np.uint64(rows[k]) >= limit:
                    return k
        layer += 1
        if layer == n_layers:
            layer = 0
    return -1


@njit(cache=True, nogil=True, forceinline=True)
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


@njit(cache=True, nogil=True, forceinline=True)
def _divide(dividend: Any, divisor: Any, reciprocal: Any) -> Any:
    """`dividend // divisor` for 0 <= dividend < 2**53: a rounded product is off by one at most."""
    quotient = np.int64(np.float64(dividend) * reciprocal)
    remainder = dividend - quotient * divisor
    return quotient - np.int64(remainder < 0) + np.int64(remainder >= divisor)


@njit(cache=True, nogil=True)
def _locate(rows: Any, start: Any, stop: Any, n_columns: Any, place: Any, target: Any, shift: Any) -> None:
    """Write the addresses of flat items `start` to `stop` into `target` at `item + shift`."""
    n_layers = place.extents.shape[0]
    cell_rows, cell_bytes, part_bytes = place.cell_rows, place.cell_bytes, place.part_bytes
    per_cell = 1.0 / cell_rows
    position = start
    group = start // n_columns
    layer, group_stop = group % n_layers, (group + 1) * n_columns
    while position < stop:
        end = min(stop, group_stop)
        first_extent, n_extents = place.extents[layer, 0], place.extents[layer, 1]
        extent_rows = place.extent_rows[layer]
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
        group_stop += n_columns
        layer += 1
        if layer == n_layers:
            layer = 0


@njit(cache=True, nogil=True)
def locate(rows: Any, n_columns: Any, place: Any, addresses: Any) -> None:
    """Write the address of every record's part into `addresses`, uint64 (items,); otherwise as `gather`."""
    _locate(rows, np.int64(0), np.int64(rows.shape[0]), n_columns, place, addresses, np.int64(0))


@njit(cache=True, nogil=True)
def locate_some(rows: Any, start: Any, stop: Any, n_columns: Any, place: Any, addresses: Any) -> None:
    """As `locate`, for items `start` to `stop` of the batch; `addresses` is uint64 (stop - start,)."""
    _locate(rows, start, stop, n_columns, place, addresses, -start)


@njit(cache=True, nogil=True, forceinline=True)
def _ask(address: Any, n_bytes: Any) -> None:
    """Ask for every line of some bytes; of 264 that begin at a multiple of 8 they are five."""
    for line in range((n_bytes + 63) // 64):
        prefetch(address + np.uint64(line * 64))
    prefetch(address + np.uint64(n_bytes - 1))


@njit(cache=True, nogil=True, forceinline=True)
def _words(address: Any, n_words: Any) -> Any:
    return carray(pointer_to(np.uint64(address)), (n_words,), np.int64)


@lru_cache(maxsize=64)
def copy_kernel(part_bytes: int, row_bytes: int) -> Any:
    """The copy of parts of `part_bytes` into records of `row_bytes`, both constants inside so that it is straight
    vector moves: a C function with an `address`.

    It is all that is made for one size; what calls it is made once, which takes several times as long. Its arguments,
    int64: where addresses lie, the k-th item's at word `k & mask`; `mask`; 0, or where the numbers of the items lie,
    to be used for k; `start` and `stop` of the items; up to where items have been located; the address where item 0's
    part goes; and the prefetch distance. The first ones have been asked for.
    """
    n_lines = (part_bytes + 63) // 64
    # Few bytes are cut into cache lines, which become moves between registers: of 264 at once the compiler makes a
    # call, 8 ns of the 12 that the copy took (2026-11).
    n_pieces = part_bytes // 64 if part_bytes <= _LONGEST_MOVE_BYTES else 0
    done = n_pieces * 64

    @cfunc(types.void(*[types.int64] * 8), cache=True)
    def copy(
        addresses_at: Any, mask: Any, items_at: Any, start: Any, stop: Any, n_located: Any, output: Any, distance: Any
    ) -> None:
        addresses, items = _words(addresses_at, stop), _words(items_at, stop)
        for k in range(start, stop):
            if k + distance < n_located:
                ahead = k + distance if items_at == 0 else items[k + distance]
                wanted = np.uint64(addresses[ahead & mask])
                for line in range(n_lines):
                    prefetch(wanted + np.uint64(line * 64))
                prefetch(wanted + np.uint64(part_bytes - 1))
            item = k if items_at == 0 else items[k]
            source = np.uint64(addresses[item & mask])
            target = np.uint64(output) + np.uint64(item) * np.uint64(row_bytes)
            if items_at == 0:
                for line in range(n_lines):
                    prefetch_to_write(target + np.uint64(_WRITE_AHEAD_BYTES + line * 64))
            for piece in range(n_pieces):
                copy_bytes(target + np.uint64(piece * 64), source + np.uint64(piece * 64), np.int64(64))
            if done < part_bytes:
                copy_bytes(target + np.uint64(done), source + np.uint64(done), np.int64(part_bytes - done))

    return copy


@njit(cache=True, nogil=True)
def gather(
    rows: Any, start: Any, stop: Any, n_columns: Any, place: Any, output: Any, distance: Any, copy_at: Any
) -> None:
    """Copy a part of each record.

    `rows` is int64 (tokens x layers x columns,) in C order, `start` and `stop` stand in it, `place` is a `Placement` in
    memory, `output` the address where item 0's part goes, `copy_at` that of the part's `copy_kernel`.
    """
    ring = np.empty(2 * _BLOCK, np.uint64)
    located = start
    first_block = start - start % _BLOCK
    for block in range(first_block, stop, _BLOCK):
        # One block ahead of the copies, so that prefetching need not stop at a block's end.
        while located < min(stop, block + 2 * _BLOCK):
            end = min(stop, located - located % _BLOCK + _BLOCK)
            _locate(rows, located, end, n_columns, place, ring, (located & _RING_MASK) - located)
            located = end
        if block == first_block:
            for k in range(start, min(start + distance, located)):
                _ask(ring[k & _RING_MASK], place.part_bytes)
        first, end = max(start, block), min(block + _BLOCK, stop)
        ring_at = np.int64(ring.ctypes.data)
        call_at(copy_at, (ring_at, _RING_MASK, np.int64(0), first, end, located, np.int64(output), np.int64(distance)))
    # What is not used after a call may be freed before it.
    ring[0] = np.uint64(0)


@njit(cache=True, nogil=True)
def copy_items(
    addresses: Any, items: Any, start: Any, stop: Any, part_bytes: Any, output: Any, distance: Any, copy_at: Any
) -> None:
    """Copy parts that have been located already, of some records of a batch.

    `addresses` is uint64 (all items,), `items` int64 (n,), `start` and `stop` stand in it; otherwise as `gather`.
    """
    for k in range(start, min(start + distance, stop)):
        _ask(addresses[items[k]], part_bytes)
    addresses_at, items_at = np.int64(addresses.ctypes.data), np.int64(items.ctypes.data)
    call_at(copy_at, (addresses_at, np.int64(-1), items_at, start, stop, stop, np.int64(output), np.int64(distance)))


@njit(cache=True, nogil=True)
def shut_gate(gate: Any) -> Any:
    """Let no further kernel through the gate at this address; returns how many are behind it, and is asked again until
    none is."""
    before = add_in_order(gate, np.int64(0))
    if before < SHUT:
        before = add_in_order(gate, np.int64(SHUT))
    return before % SHUT


@njit(cache=True, nogil=True, forceinline=True)
def _page_bit(page: Any, pages: Any) -> Any:
    return load_byte(pages + (page >> np.uint64(3))) >> np.uint8(page & np.uint64(7))


@njit(cache=True, nogil=True, forceinline=True)
def _resident_bit(address: Any, n_bytes: Any, pages: Any, region_start: Any, page_shift: Any) -> Any:
    """1 if the map says so of every page of these bytes, otherwise 0.

    Of the first page and the last one without a branch, which a record over two pages would often mislead.
    """
    page = (address - region_start) >> page_shift
    last = (address + np.uint64(n_bytes - 1) - region_start) >> page_shift
    found = _page_bit(page, pages) & _page_bit(last, pages)
    for between in range(page + np.uint64(1), last):
        found &= _page_bit(np.uint64(between), pages)
    return found & np.uint8(1)


@njit(cache=True, nogil=True)
def sort_out(addresses: Any, part_bytes: Any, pages: Any, region_start: Any, page_shift: Any, states: Any) -> Any:
    """Set `states`, uint8 (items,), to 1 for records with a page of any part that the map does not know as resident,
    otherwise to 0; returns how many there are.

    `addresses` is uint64 (parts, items), `part_bytes` uint64 (parts,), `pages` the map's address.
    """
    n_missing = np.int64(0)
    for k in range(states.shape[0]):
        is_here = True
        for part in range(part_bytes.shape[0]):
            n_bytes = np.int64(part_bytes[part])
            is_here &= _resident_bit(addresses[part, k], n_bytes, pages, region_start, page_shift) != 0
        states[k] = np.uint8(not is_here)
        n_missing += np.int64(not is_here)
    return n_missing


@njit(cache=True, nogil=True)
def _contradicts(flat: Any, n_columns: Any, place: Any, plan: Any) -> Any:
    """Look one of the records up in the page cache; whether it is not there.

    That takes one microsecond where what the system looks at is in the processor's caches, and eight where it is not: a
    second look at the same batch would be dear."""
    page_bytes = np.uint64(1) << np.uint64(plan[PAGE_SHIFT])
    state, address = np.zeros(8, np.uint8), np.empty(1, np.uint64)
    plan[UNTIL_CHECK] = plan[ROWS_A_CHECK]
    plan[CHECKED] += 1
    # Any one of them: multiples of an odd constant fall everywhere.
    spread = np.uint64(plan[CHECKED]) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(33)
    chosen = np.int64(spread % np.uint64(flat.shape[0]))
    _locate(flat, chosen, chosen + 1, n_columns, place, address, -chosen)
    start = address[0] // page_bytes * page_bytes
    if _mincore(start, page_bytes, np.uint64(state.ctypes.data)) == 0 and state[0] & 1 == 1:
        return False
    plan[CONTRADICTIONS] += 1
    return True


@njit(cache=True, nogil=True)
def _believed_resident(addresses: Any, n_bytes: Any, plan: Any) -> Any:
    """Whether the map says so of every page of these records."""
    pages, start, shift = np.uint64(plan[PAGES]), np.uint64(plan[REGION_START]), np.uint64(plan[PAGE_SHIFT])
    found = np.uint8(1)
    for k in range(addresses.shape[0]):
        found &= _resident_bit(addresses[k], n_bytes, pages, start, shift)
    return found != 0


@njit(cache=True, nogil=True, forceinline=True)
def _open_plan(address: Any, plan: Any, first_layer: Any, n_layers: Any) -> Any:
    """The rows that some layers have, int64 (layers,), where they lie, and one more than each extent's last row.

    Slices of the plan would be counted as owners of it, half a microsecond in all.
    """
    all_layers, n_extents = plan[N_LAYERS], plan[N_EXTENTS]
    word = np.uint64(8)
    tail = address + word * np.uint64(PLAN_HEAD)
    skipped, layers = np.uint64(first_layer) * word, np.uint64(all_layers) * word
    limits = carray(pointer_to(tail + skipped), (n_layers,), np.int64)
    extent_rows = carray(pointer_to(tail + layers + skipped), (n_layers,), np.int64)
    extents = carray(pointer_to(tail + np.uint64(2) * (layers + skipped)), (n_layers, 2), np.int64)
    tail += np.uint64(4) * layers
    span = np.uint64(n_extents) * word
    first_rows = carray(pointer_to(tail), (n_extents,), np.int64)
    bases = carray(pointer_to(tail + span), (n_extents,), np.uint64)
    stops = carray(pointer_to(tail + np.uint64(2) * span), (n_extents,), np.int64)
    place = Placement(extents, extent_rows, first_rows, bases, plan[CELL_ROWS], plan[CELL_BYTES], plan[ROW_BYTES])
    return limits, place, stops


@njit(cache=True, nogil=True)
def _check_and_ask(
    flat: Any, n_columns: Any, limits: Any, place: Any, stops: Any, plan: Any, addresses: Any
) -> Any:  # fmt: skip
    """Check row ids, and ask for the first records: while they come, the pages of all are looked at.

    Returns DONE, or why the records are not to be copied, and how many of `addresses` are filled.
    """
    n_items, n_bytes = flat.shape[0], place.part_bytes
    if first_outside(flat, n_columns, limits) >= 0:
        return OUTSIDE, 0
    if plan[IS_WHOLE] == 0 and first_missing(flat, n_columns, place.extents, place.first_rows, stops) >= 0:
        return OUTSIDE, 0
    n_located = min(PREFETCH_DISTANCE, n_items)
    _locate(flat, np.int64(0), n_located, n_columns, place, addresses, np.int64(0))
    for k in range(n_located):
        _ask(addresses[k], n_bytes)
    if plan[PAGES] == 0:
        return DONE, n_located
    if plan[WHOLE] == 0 or load_byte(np.uint64(plan[WHOLE])) == 0:
        _locate(flat, n_located, n_items, n_columns, place, addresses, np.int64(0))
        n_located = n_items
        if not _believed_resident(addresses, n_bytes, plan):
            return ABSENT, n_located
    if plan[ROWS_A_CHECK] > 0:
        plan[UNTIL_CHECK] -= n_items
        if plan[UNTIL_CHECK] <= 0 and _contradicts(flat, n_columns, place, plan):
            return CONTRADICTED, n_located
    return DONE, n_located


@njit(cache=True, nogil=True, forceinline=True)
def _enter(plan: Any) -> Any:
    """Pass the gate; whether it was open."""
    gate = np.uint64(plan[GATE])
    if add_in_order(gate, np.int64(1)) < SHUT:
        return True
    add_in_order(gate, np.int64(-1))
    return False


@njit(cache=True, nogil=True, forceinline=True)
def _leave(plan: Any) -> None:
    add_in_order(np.uint64(plan[GATE]), np.int64(-1))


@njit(cache=True, nogil=True, forceinline=True)
def _fetch_all(
    plan_at: Any, first_layer: Any, n_layers: Any, n_columns: Any, n_items: Any, rows_at: Any, out_at: Any
) -> Any:  # fmt: skip
    """A whole fetch into an `out` that fits: row ids, gate, addresses, pages, copies."""
    plan = _words(plan_at, PLAN_HEAD)
    row_bytes = plan[ROW_BYTES]
    if n_items > plan[MOST_ROWS] or n_items == 0:
        return LARGE
    # Row ids that lie in `out` would be written over before they are used.
    if rows_at < out_at + n_items * row_bytes and out_at < rows_at + 8 * n_items:
        return MISFIT
    if plan[BUDGET] < n_items:
        return SPENT
    if not _enter(plan):
        return CLOSED
    addresses = np.empty(n_items, np.uint64)
    flat = _words(rows_at, n_items)
    limits, place, stops = _open_plan(np.uint64(plan_at), plan, first_layer, n_layers)
    answer, n_located = _check_and_ask(flat, n_columns, limits, place, stops, plan, addresses)
    if answer == DONE:
        addresses_at, output = np.int64(addresses.ctypes.data), np.int64(out_at)
        everything, ahead = np.int64(-1), np.int64(PREFETCH_DISTANCE)
        for start in range(0, n_items, _STRETCH):
            end = min(start + _STRETCH, n_items)
            located = min(end + ahead, n_items)
            if n_located < located:
                _locate(flat, n_located, located, n_columns, place, addresses, np.int64(0))
                n_located = located
            span = np.int64(start), end, n_located
            call_at(np.uint64(plan[COPY]), (addresses_at, everything, np.int64(0), *span, output, ahead))
        # What is not used after the call may be freed before it.
        addresses[0] = np.uint64(0)
        plan[BUDGET] -= n_items
    _leave(plan)
    return answer


def _fetch_signature(n_dims: int) -> Any:
    """Of `fetch_kernel`. Fixed, so that what it is not made for is refused by the call itself (TypeError), which has to
    look at the types anyway."""
    rows = types.Array(types.int64, n_dims, "C", readonly=True)
    return types.int64(types.int64, types.int64, rows, types.Array(types.uint8, n_dims + 1, "C"))


@cache
def fetch_kernel(n_dims: int) -> Any:
    """A whole fetch of a few thousand records in one call.

    The kernel's arguments: the address of a plan (see `warm.WarmPath`); the layer, if `n_dims` is 1, or 0; `rows` int64
    (n,) of that layer, or (tokens, layers, columns) of all, in C order; `out` uint8 of that shape and (row_bytes,) to
    write to. It answers DONE, or something else before it has written a byte.
    """

    @njit(_fetch_signature(n_dims), cache=True, nogil=True)
    def fetch(plan_at: Any, layer: Any, rows: Any, out: Any) -> Any:
        plan = _words(plan_at, PLAN_HEAD)
        if out.shape[:-1] != rows.shape or out.shape[-1] != plan[ROW_BYTES]:
            return MISFIT
        n_layers, n_columns = np.int64(1), rows.size
        if n_dims == 3:
            n_layers, n_columns = np.int64(rows.shape[1]), np.int64(rows.shape[-1])
            if n_layers != plan[N_LAYERS] or n_columns != plan[N_COLUMNS]:
                return MISFIT
        if layer < 0 or layer >= plan[N_LAYERS]:
            return MISFIT
        return _fetch_all(plan_at, layer, n_layers, n_columns, rows.size, rows.ctypes.data, out.ctypes.data)

    return fetch


# Words of an array object of CPython and NumPy, as `array_calls.knows_arrays` finds them.
OBJECT_TYPE, ARRAY_DATA, ARRAY_N_DIMS, ARRAY_SHAPE, ARRAY_DTYPE, ARRAY_FLAGS, ARRAY_WORDS = 1, 2, 3, 4, 7, 8, 9
_INT = 0xFFFFFFFF
_IN_C_ORDER_ALIGNED, _TO_WRITE_TO = 0x101, 0x501


@njit(cache=True, nogil=True, forceinline=True)
def _is_array(object_at: Any, array_type: Any, dtype: Any, n_dims: Any, flags: Any) -> Any:
    words = _words(object_at, ARRAY_WORDS)
    if words[OBJECT_TYPE] != array_type:
        return False
    return words[ARRAY_DTYPE] == dtype and words[ARRAY_N_DIMS] & _INT == n_dims and words[ARRAY_FLAGS] & flags == flags


@cache
def object_fetch(n_dims: int) -> Any:
    """As `fetch_kernel`, as the function of a Python object (METH_FASTCALL): it reads the arrays where they lie.

    A call by numba's dispatcher makes two records of ownership and looks at the types of all arguments, which takes
    longer than copying a dozen rows. The object's own argument is a plan; the others are the layer, if `n_dims` is 1,
    `rows` and `out`. MISFIT is also the answer to what is no such array.
    """

    @cfunc(types.uint64(types.uint64, types.uint64, types.int64), cache=True)
    def fetch(plan_object: Any, arguments: Any, n_arguments: Any) -> Any:
        plan_at = _words(plan_object, ARRAY_WORDS)[ARRAY_DATA]
        plan = _words(plan_at, PLAN_HEAD)
        n_before = 0 if n_dims == 3 else 1
        if n_arguments != n_before + 2:
            return _python_int(MISFIT)
        given = _words(arguments, n_before + 2)
        rows, out = given[n_before], given[n_before + 1]
        if not _is_array(rows, plan[ARRAY_TYPE], plan[INT64_TYPE], n_dims, _IN_C_ORDER_ALIGNED):
            return _python_int(MISFIT)
        if not _is_array(out, plan[ARRAY_TYPE], plan[UINT8_TYPE], n_dims + 1, _TO_WRITE_TO):
            return _python_int(MISFIT)
        shape = _words(_words(rows, ARRAY_WORDS)[ARRAY_SHAPE], n_dims)
        of_out = _words(_words(out, ARRAY_WORDS)[ARRAY_SHAPE], n_dims + 1)
        n_items, fits = np.int64(1), of_out[n_dims] == plan[ROW_BYTES]
        for dim in range(n_dims):
            n_items *= shape[dim]
            fits &= shape[dim] == of_out[dim]
        layer, n_layers, n_columns = np.int64(0), np.int64(1), n_items
        if n_dims == 3:
            n_layers, n_columns = shape[1], shape[n_dims - 1]
            fits &= (n_layers == plan[N_LAYERS]) & (n_columns == plan[N_COLUMNS])
        else:
            layer = _int_of(np.uint64(given[0]))
            # It is -1 of what is no number.
            if layer < 0:
                _forget_error()
            fits &= (layer >= 0) & (layer < plan[N_LAYERS])
        if not fits:
            return _python_int(MISFIT)
        rows_at, out_at = _words(rows, ARRAY_WORDS)[ARRAY_DATA], _words(out, ARRAY_WORDS)[ARRAY_DATA]
        thread = _release_gil()
        answer = _fetch_all(plan_at, layer, n_layers, n_columns, n_items, rows_at, out_at)
        _take_gil(thread)
        return _python_int(answer)

    return fetch
