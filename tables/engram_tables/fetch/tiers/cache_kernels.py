"""Compiled sets of 16 rows: who is in, who goes, and copies that no writer can tear. It knows keys and addresses, and
neither tables nor engines.

The rows of all layers are numbered through: a row's key is its layer's first key and its id. Of `n_sets` sets, key k
has the tag `k // n_sets`, and lies in set `(k % n_sets + turn(tag)) % n_sets`: set and tag name the key exactly.

A set is described by 64 bytes, one cache line:

    0   tags      16 x uint16, EMPTY where a way holds nothing
    32  ghosts    8 x uint16, tags that were thrown out last, newest first
    48  uses      16 x 4 bits, way 0 lowest
    56  version   uint32, odd while the set is being written
    60  pinned    uint16, one bit a way that is never thrown out
    62  clock     uint16: the way at which the search for a victim begins (4 bits), misses since uses were halved (12)

A reader notes the version, copies, and looks at the version again. A writer makes it odd first; one that finds it odd
leaves. `tiers.reference` is the slow twin. Nothing here is checked.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from engram_tables.memory import copy_bytes, intrinsic, prefetch, prefetch_to_write

WAYS = 16
N_GHOSTS = 8
HEADER_BYTES = 64
EMPTY = 0xFFFF
MOST_USES = 15
MISSES_BETWEEN_HALVINGS = 128
USES_OF_A_RETURNED_ROW = 3
USES_OF_A_PRELOADED_ROW = 1
TURN = 0x9E3779B97F4A7C15
"""Tags are spread over the sets by the upper half of their product with it."""

ADMIT, PIN, PRELOAD = 0, 1, 2
"""What `store_kernel` does with a row: let it compete, keep it for good, or use a free way."""

# Positions in `state`, uint64 (STATE_LAYERS + layers,), the rest of which are the layers' first keys.
STATE_HEADERS, STATE_SLOTS, STATE_N_SETS, STATE_SLOT_BYTES, STATE_COUNTS, STATE_LAYERS = range(6)
# Positions in the counts that STATE_COUNTS points at, int64 (N_COUNTS,).
HITS_PINNED, HITS_CACHED, MISSES, STORED, THROWN_OUT, LEFT_OUT, BUSY, N_COUNTS = range(8)

_GHOSTS_AT, _USES_AT, _VERSION_AT, _MARKS_AT = (np.uint64(at) for at in (32, 48, 56, 60))
_DISTANCE = np.int64(16)
_NEAR = np.int64(6)
_RING_MASK = np.int64(63)
_TRIES = 64
_WRITE_AHEAD_BYTES = 1024
_PRESENT, _FULL = 32, 64
_ONE = np.uint64(1)
_LOW_HALF = np.uint64(0xFFFF)
_NOTHING = np.uint64(EMPTY)
_NIBBLE = np.uint64(15)
_HALVED = np.uint64(0x7777777777777777)
_I16, _I32, _I64 = (ir.IntType(bits) for bits in (16, 32, 64))


def _at(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _loader(kind: Any, order: str) -> Any:
    def load(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = builder.load_atomic(_at(builder, arguments[0], kind), order, kind.width // 8)
            return value if kind is _I64 else builder.zext(value, _I64)

        return types.uint64(types.uint64), generate

    return intrinsic(load)


def _storer(kind: Any, order: str) -> Any:
    def store(typing_context: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            value = arguments[1] if kind is _I64 else builder.trunc(arguments[1], kind)
            builder.store_atomic(value, _at(builder, arguments[0], kind), order, kind.width // 8)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64), generate

    return intrinsic(store)


_load_version = _loader(_I32, "acquire")
_load32, _load64 = _loader(_I32, "monotonic"), _loader(_I64, "monotonic")
_store_version = _storer(_I32, "release")
_store16, _store32, _store64 = _storer(_I16, "monotonic"), _storer(_I32, "monotonic"), _storer(_I64, "monotonic")


@intrinsic
def _fence(typing_context: Any) -> Any:
    """What stands before it in the program also comes before it in memory, for every thread."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("acq_rel")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _take_version(typing_context: Any, address: Any, even: Any) -> Any:
    """Make a version that is still `even` odd; whether it was."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        even = builder.trunc(arguments[1], _I32)
        odd = builder.add(even, ir.Constant(_I32, 1))
        taken = builder.cmpxchg(_at(builder, arguments[0], _I32), even, odd, "acq_rel", "monotonic")
        return builder.extract_value(taken, 1)

    return types.boolean(types.uint64, types.uint64), generate


@intrinsic
def _add(typing_context: Any, address: Any, n: Any) -> Any:
    """Add to the int64 at `address`, atomically."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.atomic_rmw("add", _at(builder, arguments[0], _I64), arguments[1], "monotonic")
        return context.get_dummy_value()

    return types.void(types.uint64, types.int64), generate


def _matcher(n_lanes: int) -> Any:
    def match(typing_context: Any, address: Any, tag: Any) -> Any:
        lanes = ir.VectorType(_I16, n_lanes)

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            found = builder.load(_at(builder, arguments[0], lanes), align=n_lanes * 2)
            first = builder.insert_element(
                ir.Constant(lanes, ir.Undefined), builder.trunc(arguments[1], _I16), ir.Constant(_I32, 0)
            )
            wanted = builder.shuffle_vector(
                first, ir.Constant(lanes, ir.Undefined), ir.Constant(ir.VectorType(_I32, n_lanes), None)
            )
            equal = builder.icmp_unsigned("==", found, wanted)
            return builder.zext(builder.bitcast(equal, ir.IntType(n_lanes)), _I64)

        return types.uint64(types.uint64, types.uint64), generate

    return intrinsic(match)


_match_ways = _matcher(WAYS)
"""One bit for each of the 16 tags at an address that equals the given one."""
_match_ghosts = _matcher(N_GHOSTS)


@intrinsic
def _lowest_bit(typing_context: Any, mask: Any) -> Any:
    """Position of the lowest bit that is set; at least one is."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.uint64(types.uint64), generate


@njit(cache=True, nogil=True, inline="always")
def _home(rows: Any, item: Any, shape: Any, state: Any, per_set: Any) -> Any:
    """Set and tag of one item's row; `shape` is (n_columns, first_layer, n_layers), `per_set` 1 / n_sets."""
    n_columns, first_layer, n_layers = shape
    layer = np.uint64(0)
    if n_layers > 1:
        layer = np.uint64(item) // np.uint64(n_columns) % np.uint64(n_layers)
    key = np.int64(state[STATE_LAYERS + first_layer + np.int64(layer)]) + rows[item]
    n_sets = np.int64(state[STATE_N_SETS])
    # A rounded product is off by one at most for keys under 2**53.
    tag = np.int64(np.float64(key) * per_set)
    rest = key - tag * n_sets
    if rest < 0:
        tag, rest = tag - 1, rest + n_sets
    elif rest >= n_sets:
        tag, rest = tag + 1, rest - n_sets
    turn = ((np.uint64(tag) * np.uint64(TURN)) >> np.uint64(32)) * np.uint64(n_sets) >> np.uint64(32)
    home = np.uint64(rest) + turn
    if home >= np.uint64(n_sets):
        home -= np.uint64(n_sets)
    return home, np.uint64(tag)


@njit(cache=True, nogil=True, inline="always")
def _use(header: Any, way: Any) -> Any:
    """Count a hit; whether the way is pinned. Two threads may lose one of two counts, never more."""
    if (_load32(header + _MARKS_AT) >> way) & _ONE:
        return True
    uses = _load64(header + _USES_AT)
    if (uses >> (np.uint64(4) * way)) & _NIBBLE != _NIBBLE:
        _store64(header + _USES_AT, uses + (_ONE << (np.uint64(4) * way)))
    return False


@njit(cache=True, nogil=True, inline="always")
def _victim(uses: Any, pinned: Any, hand: Any) -> Any:
    """The unpinned way of fewest uses, the first from `hand` on; -1 if all are pinned."""
    way, fewest = np.int64(-1), np.uint64(16)
    for step in range(WAYS):
        candidate = (hand + np.uint64(step)) & _NIBBLE
        of_candidate = (uses >> (np.uint64(4) * candidate)) & _NIBBLE
        if of_candidate < fewest and (pinned >> candidate) & _ONE == 0:
            way, fewest = np.int64(candidate), of_candidate
            if fewest == 0:
                break
    return way


@njit(cache=True, nogil=True, inline="always")
def _guess(header: Any) -> Any:
    """The way that the next row of this set will probably get."""
    empty = _match_ways(header, _NOTHING)
    if empty != 0:
        return _lowest_bit(empty)
    marks = _load32(header + _MARKS_AT)
    way = _victim(_load64(header + _USES_AT), marks & _LOW_HALF, (marks >> np.uint64(16)) & _NIBBLE)
    return np.uint64(max(way, np.int64(0)))


@njit(cache=True, nogil=True)
def _settle(header: Any, tag: Any, mode: Any) -> Any:
    """Give the row of `tag` a way of this set, which the caller has taken.

    Returns the way, with _PRESENT added if the row was there and with _FULL if another one was thrown out; -1 if
    there was no way for it.
    """
    present = _match_ways(header, tag)
    marks = _load32(header + _MARKS_AT)
    pinned, hand, n_misses = marks & _LOW_HALF, (marks >> np.uint64(16)) & _NIBBLE, marks >> np.uint64(20)
    if present != 0:
        way = _lowest_bit(present)
        if mode == PIN:
            _store32(header + _MARKS_AT, marks | (_ONE << way))
        else:
            _use(header, way)
        return np.int64(way) + _PRESENT
    uses = _load64(header + _USES_AT)
    of_row = np.uint64(USES_OF_A_PRELOADED_ROW)
    if mode == ADMIT:
        of_row = np.uint64(0)
        n_misses += _ONE
        if n_misses == np.uint64(MISSES_BETWEEN_HALVINGS):
            n_misses = np.uint64(0)
            uses = (uses >> _ONE) & _HALVED
        if _match_ghosts(header + _GHOSTS_AT, tag) != 0:
            of_row = np.uint64(USES_OF_A_RETURNED_ROW)
    empty = _match_ways(header, _NOTHING)
    found = np.int64(-1)
    if empty != 0:
        found = np.int64(_lowest_bit(empty))
    elif mode != PRELOAD:
        found = _victim(uses, pinned, hand)
    if found >= 0:
        way = np.uint64(found)
        if empty == 0:
            _remember(header, way)
            found += _FULL
        _store16(header + np.uint64(2) * way, tag)
        uses = (uses & ~(_NIBBLE << (np.uint64(4) * way))) | (of_row << (np.uint64(4) * way))
        hand = (way + _ONE) & _NIBBLE
        if mode == PIN:
            pinned |= _ONE << way
    _store64(header + _USES_AT, uses)
    _store32(header + _MARKS_AT, pinned | (hand << np.uint64(16)) | (n_misses << np.uint64(20)))
    return found


@njit(cache=True, nogil=True, inline="always")
def _remember(header: Any, way: Any) -> None:
    """The tag that `way` held becomes the newest ghost."""
    pair = _load64(header + (way >> np.uint64(2)) * np.uint64(8))
    gone = (pair >> ((way & np.uint64(3)) * np.uint64(16))) & _LOW_HALF
    low, high = _load64(header + _GHOSTS_AT), _load64(header + _GHOSTS_AT + np.uint64(8))
    _store64(header + _GHOSTS_AT, (low << np.uint64(16)) | gone)
    _store64(header + _GHOSTS_AT + np.uint64(8), (high << np.uint64(16)) | (low >> np.uint64(48)))


@njit(cache=True, nogil=True)
def clear_sets(state: Any, start: Any, stop: Any) -> None:
    """Nothing is in sets `start` to `stop`."""
    headers = state[STATE_HEADERS]
    nothing = np.uint64(0xFFFFFFFFFFFFFFFF)
    for k in range(start, stop):
        header = headers + np.uint64(k) * np.uint64(HEADER_BYTES)
        for word in range(6):
            _store64(header + np.uint64(8 * word), nothing)
        _store64(header + _USES_AT, np.uint64(0))
        _store64(header + _VERSION_AT, np.uint64(0))


@njit(cache=True, nogil=True)
def _copy_again(header: Any, tag: Any, slots: Any, slot_bytes: Any, target: Any, row_bytes: Any) -> Any:
    """Copy under a version that stays; the way, or -1 if the row is not here or the set is never at rest."""
    for _ in range(_TRIES):
        version = _load_version(header + _VERSION_AT)
        if version & _ONE:
            continue
        present = _match_ways(header, tag)
        if present == 0:
            return np.int64(-1)
        way = _lowest_bit(present)
        copy_bytes(target, slots + way * slot_bytes, np.int64(row_bytes))
        _fence()
        if _load_version(header + _VERSION_AT) == version:
            return np.int64(way)
    return np.int64(-1)


@lru_cache(maxsize=64)
def look_up_kernel(row_bytes: int) -> Any:
    """The copy of what is here, with `row_bytes` a constant inside.

    The kernel's arguments: `rows` int64 (tokens x layers x columns,) in C order; `items` int64, the positions in it
    that are asked for, or of length 0 for all; `start` and `stop` in `items` or else in `rows`; `shape` as in
    `_home`; `state`; the address where item 0's record goes; and `missing` int64, which from `start` on gets the
    items that are not here, in order. Returns their number.
    """
    n_lines = (row_bytes + 63) // 64

    @njit(cache=True, nogil=True)
    def look_up(rows: Any, items: Any, start: Any, stop: Any, shape: Any, state: Any, output: Any, missing: Any) -> Any:
        headers, slots, slot_bytes = state[STATE_HEADERS], state[STATE_SLOTS], state[STATE_SLOT_BYTES]
        set_bytes = slot_bytes * np.uint64(WAYS)
        per_set = 1.0 / np.float64(state[STATE_N_SETS])
        has_items = items.shape[0] > 0
        # Of each item on its way: header, tag, version, way.
        ring = np.empty((64, 4), np.uint64)
        n_missing, n_pinned = np.int64(0), np.int64(0)
        for k in range(start, stop + 2 * _DISTANCE):
            if k < stop:
                item = items[k] if has_items else np.int64(k)
                home, tag = _home(rows, item, shape, state, per_set)
                header = headers + home * np.uint64(HEADER_BYTES)
                prefetch(header)
                ring[k & _RING_MASK, 0], ring[k & _RING_MASK, 1] = header, tag
            middle = k - _DISTANCE
            if start <= middle < stop:
                place = middle & _RING_MASK
                header = ring[place, 0]
                ring[place, 2] = _load_version(header + _VERSION_AT)
                present = _match_ways(header, ring[place, 1])
                ring[place, 3] = np.uint64(WAYS)
                if present != 0:
                    way = _lowest_bit(present)
                    ring[place, 3] = way
                    source = slots + (header - headers) // np.uint64(HEADER_BYTES) * set_bytes + way * slot_bytes
                    for line in range(n_lines):
                        prefetch(source + np.uint64(line * 64))
                    prefetch(source + np.uint64(row_bytes - 1))
            last = middle - _DISTANCE
            if last >= start:
                place = last & _RING_MASK
                header, version, found = ring[place, 0], ring[place, 2], np.int64(ring[place, 3])
                item = items[last] if has_items else np.int64(last)
                target = output + np.uint64(item) * np.uint64(row_bytes)
                of_set = slots + (header - headers) // np.uint64(HEADER_BYTES) * set_bytes
                is_sure = version & _ONE == 0
                if found < WAYS and is_sure:
                    for line in range(n_lines):
                        prefetch_to_write(target + np.uint64(_WRITE_AHEAD_BYTES + line * 64))
                    copy_bytes(target, of_set + np.uint64(found) * slot_bytes, np.int64(row_bytes))
                    _fence()
                    is_sure = _load_version(header + _VERSION_AT) == version
                if not is_sure:
                    found = _copy_again(header, ring[place, 1], of_set, slot_bytes, target, row_bytes)
                if 0 <= found < WAYS:
                    n_pinned += np.int64(_use(header, np.uint64(found)))
                else:
                    missing[start + n_missing] = item
                    n_missing += 1
        counts = state[STATE_COUNTS]
        _add(counts + np.uint64(8 * HITS_PINNED), n_pinned)
        _add(counts + np.uint64(8 * HITS_CACHED), stop - start - n_missing - n_pinned)
        _add(counts + np.uint64(8 * MISSES), n_missing)
        return n_missing

    return look_up


@lru_cache(maxsize=64)
def store_kernel(row_bytes: int) -> Any:
    """The taking in of records that have been read, with `row_bytes` a constant inside.

    The kernel's arguments: as for `look_up_kernel` up to `state`, then the address where item 0's record lies, `mode`
    (ADMIT, PIN or PRELOAD), `outcome` uint8, of length 0 or one element for each of `items`, which says whether
    the row is in the set afterwards, and `limit`, the most rows for which that may be. Returns where it ended.
    """

    n_lines = (row_bytes + 63) // 64

    @njit(cache=True, nogil=True)
    def store(
        rows: Any, items: Any, start: Any, stop: Any, shape: Any, state: Any, records: Any, mode: Any, outcome: Any,
        limit: Any,
    ) -> Any:  # fmt: skip
        headers, slots, slot_bytes = state[STATE_HEADERS], state[STATE_SLOTS], state[STATE_SLOT_BYTES]
        per_set = 1.0 / np.float64(state[STATE_N_SETS])
        n_stored, n_thrown_out, n_left_out, n_busy = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
        n_in, end = np.int64(0), np.int64(stop)
        for k in range(start, stop):
            if n_in >= limit:
                end = np.int64(k)
                break
            if k + _DISTANCE < stop:
                home, _ = _home(rows, items[k + _DISTANCE], shape, state, per_set)
                prefetch_to_write(headers + home * np.uint64(HEADER_BYTES))
            if k + _NEAR < stop:
                home, _ = _home(rows, items[k + _NEAR], shape, state, per_set)
                guessed = _guess(headers + home * np.uint64(HEADER_BYTES))
                slot = slots + (home * np.uint64(WAYS) + guessed) * slot_bytes
                for line in range(n_lines):
                    prefetch_to_write(slot + np.uint64(line * 64))
            home, tag = _home(rows, items[k], shape, state, per_set)
            header = headers + home * np.uint64(HEADER_BYTES)
            version = _load_version(header + _VERSION_AT)
            if version & _ONE or not _take_version(header + _VERSION_AT, version):
                n_busy += 1
                continue
            _fence()
            way = _settle(header, tag, mode)
            if outcome.shape[0] > 0:
                outcome[k] = way >= 0
            n_in += np.int64(way >= 0)
            if way < 0:
                n_left_out += 1
            elif way & _PRESENT == 0:
                slot = home * np.uint64(WAYS) + (np.uint64(way) & _NIBBLE)
                source = records + np.uint64(items[k]) * np.uint64(row_bytes)
                copy_bytes(slots + slot * slot_bytes, source, np.int64(row_bytes))
                n_stored += 1
                n_thrown_out += np.int64(way & _FULL != 0)
            _store_version(header + _VERSION_AT, version + np.uint64(2))
        counts = state[STATE_COUNTS]
        _add(counts + np.uint64(8 * STORED), n_stored)
        _add(counts + np.uint64(8 * THROWN_OUT), n_thrown_out)
        _add(counts + np.uint64(8 * LEFT_OUT), n_left_out)
        _add(counts + np.uint64(8 * BUSY), n_busy)
        return end

    return store


@njit(cache=True, nogil=True)
def find_slots(rows: Any, items: Any, shape: Any, state: Any, slots: Any) -> Any:
    """Where each item's record is kept, for memory that the caller copies from: int64 (items,), -1 if it is not here.

    Arguments as for `look_up_kernel`; `slots` is as long as `items`, or as `rows` if `items` has length 0. Counts
    uses; returns how many are not here. One thread at a time, and no `claim_slots` meanwhile.
    """
    headers = state[STATE_HEADERS]
    per_set = 1.0 / np.float64(state[STATE_N_SETS])
    has_items = items.shape[0] > 0
    ring = np.empty((64, 2), np.uint64)
    n_missing, n_pinned = np.int64(0), np.int64(0)
    for k in range(slots.shape[0] + _DISTANCE):
        if k < slots.shape[0]:
            home, tag = _home(rows, items[k] if has_items else np.int64(k), shape, state, per_set)
            prefetch(headers + home * np.uint64(HEADER_BYTES))
            ring[k & _RING_MASK, 0], ring[k & _RING_MASK, 1] = home, tag
        last = k - _DISTANCE
        if last >= 0:
            home, tag = ring[last & _RING_MASK, 0], ring[last & _RING_MASK, 1]
            header = headers + home * np.uint64(HEADER_BYTES)
            present = _match_ways(header, tag)
            if present != 0:
                way = _lowest_bit(present)
                n_pinned += np.int64(_use(header, way))
                slots[last] = np.int64(home * np.uint64(WAYS) + way)
            else:
                slots[last] = -1
                n_missing += 1
    counts = state[STATE_COUNTS]
    _add(counts + np.uint64(8 * HITS_PINNED), n_pinned)
    _add(counts + np.uint64(8 * HITS_CACHED), slots.shape[0] - n_missing - n_pinned)
    _add(counts + np.uint64(8 * MISSES), n_missing)
    return n_missing


@njit(cache=True, nogil=True)
def claim_slots(rows: Any, items: Any, shape: Any, state: Any, mode: Any, slots: Any) -> None:
    """Where each of `items` is to be put by the caller: int64 (items,), -1 if it is here already or left out.

    A slot may be claimed twice, when a later item throws out an earlier one: the last claim is the valid one.
    """
    headers = state[STATE_HEADERS]
    per_set = 1.0 / np.float64(state[STATE_N_SETS])
    n_stored, n_thrown_out, n_left_out = np.int64(0), np.int64(0), np.int64(0)
    for k in range(items.shape[0]):
        home, tag = _home(rows, items[k], shape, state, per_set)
        way = _settle(headers + home * np.uint64(HEADER_BYTES), tag, mode)
        slots[k] = -1
        if way < 0:
            n_left_out += 1
        elif way & _PRESENT == 0:
            slots[k] = np.int64(home) * WAYS + (way & 15)
            n_stored += 1
            n_thrown_out += np.int64(way & _FULL != 0)
    counts = state[STATE_COUNTS]
    _add(counts + np.uint64(8 * STORED), n_stored)
    _add(counts + np.uint64(8 * THROWN_OUT), n_thrown_out)
    _add(counts + np.uint64(8 * LEFT_OUT), n_left_out)
