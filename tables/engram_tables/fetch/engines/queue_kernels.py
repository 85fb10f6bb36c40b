"""Compiled reading with many reads in flight from one thread: the bookkeeping once, io_uring's and libaio's own ways.

A read, as `group_reads` left it, is given a slot, asked for, and when the system answers its records are
copied out of the slot. What a call changes is in arrays, so that a later call goes on where it stopped. No memory but
these arrays, the slots and the output is touched; nothing is checked but what the system answers, and what a short
fetch is given.

Parts of records are named by *spots*: byte positions in one space in which the files follow each other, so that sorting
spots sorts by file and by offset within it. All parts of a batch are sorted together: item `part * n_records + record`
is one part of one record.
"""

from __future__ import annotations

import platform
import sys
from functools import lru_cache
from typing import Any

import numpy as np
from numba import njit, types

from engram_tables.fetch.engines.queue_memory import Work as Work
from engram_tables.fetch.engines.queue_memory import load_acquire, store_release
from engram_tables.fetch.engines.residency_kernels import are_first_misses, note_first_misses
from engram_tables.fetch.kernels import CLOSED, DONE, LARGE, MISFIT, OUTSIDE, SHUT
from engram_tables.memory import add_in_order, claim, copy_bytes, load_int32

END_OF_FILE = -1
"""As in `read_kernels`."""
UNKNOWN_ANSWER = -2
"""The system answered a read that was not asked for."""
NO_FILE = -1

# Cells of `state`, int64 (N_STATES,).
IN_FLIGHT, N_FREE, N_QUEUED, CODE, FILE, OFFSET, NEEDED, IS_BROKEN, ROUNDS, BUSY_ROUNDS = range(10)
"""Reads that the system has; free slots; reads that it will be given next; then what failed first: a code (0 if
nothing did: an errno, END_OF_FILE or UNKNOWN_ANSWER), the read's file (NO_FILE if it was not a read that failed),
offset and bytes needed; whether reads are in flight that nobody can wait for any more; and in how many rounds answers
came while there were more reads to ask for, and in how many of them so many that this thread is what they wait for."""
N_STATES = 10

FAILED = 100
"""What a short fetch answers, beside those of `fetch.kernels`: a read failed, and bytes may have been written."""
NOT_FIRST, STALE = 101, 102
"""Where it looks at maps of pages: one is in memory or was missed before, and nothing has happened; or all is done, and
one that was believed out of memory is in it."""
# Words of a short fetch's plan, int64: these, then `Placements.extent_words` of the spots, each file's spot, and the
# number of each file's first page in the maps.
GATE, MOST_ROWS, N_LAYERS, N_COLUMNS, N_EXTENTS, CELL_ROWS, CELL_BYTES, ROW_BYTES, UNIT, LIMIT_BYTES = range(10)
N_FILES, PAGES, MISSED, MAP_BYTES, PAGE_SHIFT, REGION_START = range(10, 16)
"""PAGES and MISSED are addresses of maps with a bit for each page, as `residency_kernels` has them: what is in memory,
and what was missed. PAGES is 0 where none is to be looked at."""
PLAN_HEAD = 16

MOST_TRIES = 1000
_PAGE = np.uint64(4096)
_EINTR, _EAGAIN, _EBUSY, _ECANCELED, _EINVAL = 4, 11, 16, 125, 22
# Of the index of bundles, as in `index_kernels`.
_LOW_HALF, _HALF, _SHIFT = np.uint64(2**32 - 1), np.uint64(32), np.uint64(33)
_FIRST, _SECOND = np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ENTER = 426
_GETEVENTS = 1
# The same on every architecture but x86-64, where libaio is older than the agreed numbers.
_IO_SUBMIT, _IO_GETEVENTS = (209, 208) if platform.machine() == "x86_64" else (2, 4)

_external: Any = types.ExternalFunction
_i64 = types.int64
_syscall = _external("syscall", _i64(_i64, _i64, _i64, _i64, _i64, _i64, _i64))
_errno_address = _external("__errno_location" if sys.platform.startswith("linux") else "__error", types.uint64())


# Reads of a batch.


@njit(cache=True, nogil=True)
def group_reads(
    spots: Any, order: Any, n_records: Any, part_bytes: Any, file_spots: Any, unit: Any, limit_bytes: Any, starts: Any,
    windows: Any,
) -> Any:  # fmt: skip
    """Cut sorted spots into reads: what begins in a page that the read before touches joins that read.

    `spots` is uint64 (n,), ascending, duplicates welcome, and `order` int64 (n,) says which item each one is;
    `part_bytes` is uint64 (parts,), `file_spots` uint64 (files,), ascending. `starts` int64 (n + 1,) gets where each
    read's items begin, and n at the end; `windows` int64 (n, 3) each read's file, offset in it (a multiple of `unit`)
    and the bytes that are needed from there. Returns the number of reads. None is longer than `limit_bytes`, rounded
    up to the unit, but one part that is longer by itself.
    """
    unit = np.uint64(unit)
    n_reads = 0
    file, n_files = 0, file_spots.shape[0]
    window, window_stop = np.uint64(0), np.uint64(0)
    for k in range(spots.shape[0]):
        start = spots[k] // unit * unit
        needed_stop = spots[k] + part_bytes[order[k] // n_records]
        stop = (needed_stop + unit - np.uint64(1)) // unit * unit
        pages_stop = (window_stop + _PAGE - np.uint64(1)) // _PAGE * _PAGE
        if k == 0 or start >= pages_stop or stop - window > np.uint64(limit_bytes):
            while file + 1 < n_files and file_spots[file + 1] <= spots[k]:
                file += 1
            starts[n_reads] = k
            windows[n_reads, 0], windows[n_reads, 1] = file, np.int64(start - file_spots[file])
            windows[n_reads, 2] = np.int64(needed_stop - start)
            n_reads += 1
            window, window_stop = start, stop
        else:
            window_stop = max(window_stop, stop)
            # The last part to begin need not be the last to end.
            windows[n_reads - 1, 2] = max(windows[n_reads - 1, 2], np.int64(needed_stop - window))
    starts[n_reads] = spots.shape[0]
    return n_reads


# The bookkeeping.


@njit(cache=True, nogil=True)
def _fail(work: Any, state: Any, code: Any, read: Any) -> None:
    """Keep the first failure, and let no thread take another read."""
    if state[CODE] == 0:
        state[CODE], state[FILE] = code, NO_FILE
        if read >= 0:
            file, offset, needed_bytes = work.windows[read]
            state[FILE], state[OFFSET], state[NEEDED] = file, offset, needed_bytes
    claim(work.counter, np.int64(work.n_reads))


@njit(cache=True, nogil=True)
def take(work: Any, slots: Any, state: Any) -> Any:
    """A slot for the next read of the batch, or -1 if there is no slot or no read left."""
    if state[N_FREE] == 0 or work.counter[0] >= work.n_reads:
        return np.int64(-1)
    read = claim(work.counter, np.int64(1))
    if read >= work.n_reads:
        return np.int64(-1)
    state[N_FREE] -= 1
    slot = slots.free[state[N_FREE]]
    slots.read[slot], slots.done[slot], slots.tries[slot] = read, 0, 0
    return slot


@njit(cache=True, nogil=True)
def _free(slots: Any, state: Any, slot: Any) -> None:
    slots.read[slot] = -1
    slots.free[state[N_FREE]] = slot
    state[N_FREE] += 1


@njit(cache=True, nogil=True)
def settle(work: Any, slots: Any, state: Any, slot: Any, answer: Any) -> Any:
    """What the system answered for a slot: bytes read, or minus an errno. Returns whether to ask again for the rest.

    Otherwise the slot is free again, and the read's records are written or the failure is kept.
    """
    read = slots.read[slot]
    needed_bytes = work.windows[read, 2]
    if answer > 0:
        slots.done[slot] += answer
        if slots.done[slot] >= needed_bytes:
            _deliver(work, slots, slot, read)
        elif answer < work.unit:
            # Direct reads go on at a multiple of their unit only: asked again, the file would end here for ever.
            _fail(work, state, np.int64(END_OF_FILE), read)
        elif state[CODE] == 0:
            slots.done[slot] -= slots.done[slot] % work.unit
            return True
    elif answer == 0:
        _fail(work, state, np.int64(END_OF_FILE), read)
    elif answer == -_EAGAIN or answer == -_EINTR or answer == -_ECANCELED:
        slots.tries[slot] += 1
        if slots.tries[slot] < MOST_TRIES and state[CODE] == 0:
            return True
        _fail(work, state, np.int64(-answer), read)
    else:
        _fail(work, state, np.int64(-answer), read)
    _free(slots, state, slot)
    return False


@njit(cache=True, nogil=True)
def _deliver(work: Any, slots: Any, slot: Any, read: Any) -> None:
    """Copy what a read brought into the records that asked for it."""
    buffer = slots.address + np.uint64(slot * slots.slot_bytes)
    first, unit = work.starts[read], np.uint64(work.unit)
    window = work.spots[first] // unit * unit
    for k in range(first, work.starts[read + 1]):
        part = work.order[k] // work.n_records
        record = np.uint64(work.order[k] - part * work.n_records)
        target = work.output + record * np.uint64(work.row_bytes) + work.part_starts[part]
        copy_bytes(target, buffer + (work.spots[k] - window), np.int64(work.part_bytes[part]))


@njit(cache=True, nogil=True)
def _span(work: Any, slots: Any, slot: Any) -> Any:
    """File, offset, address and bytes of what a slot still has to read."""
    read, done = slots.read[slot], slots.done[slot]
    n_bytes = (work.windows[read, 2] + work.unit - 1) // work.unit * work.unit - done
    address = slots.address + np.uint64(slot * slots.slot_bytes + done)
    return work.windows[read, 0], work.windows[read, 1] + done, address, n_bytes


@njit(cache=True, nogil=True)
def _n_to_wait_for(work: Any, state: Any, at_once: Any, may_wait: Any) -> Any:
    """How many answers to wait for now: none while there are slots for more reads, `at_once` while there are more
    reads, otherwise all. -1 if there is nothing left to do."""
    in_flight = state[IN_FLIGHT] + state[N_QUEUED]
    has_more = work.counter[0] < work.n_reads
    if in_flight == 0:
        return np.int64(0) if has_more else np.int64(-1)
    if has_more and state[N_FREE] > 0:
        return np.int64(0)
    if not may_wait:
        return np.int64(0) if state[N_QUEUED] > 0 else np.int64(-1)
    return min(np.int64(at_once), in_flight) if has_more else in_flight


@njit(cache=True, nogil=True)
def count_round(work: Any, slots: Any, state: Any, n_wait: Any, at_once: Any, n_answers: Any) -> None:
    """A device that this thread waits for has a few answers at a time; one that waits for this thread has all that
    were asked for last, or half of everything in flight."""
    if n_answers > 0 and work.counter[0] < work.n_reads:
        state[ROUNDS] += 1
        limit = max(slots.read.shape[0] // 2, at_once + 1) if n_wait > 0 else at_once
        state[BUSY_ROUNDS] += np.int64(n_answers >= limit)


# io_uring.


@njit(cache=True, nogil=True)
def queue_entry(ring: Any, work: Any, slots: Any, state: Any, slot: Any) -> None:
    """Write a slot's read into the submission ring, which has an entry for every slot."""
    file, offset, address, n_bytes = _span(work, slots, slot)
    tail = ring.words[ring.sq_tail]
    entry = ring.entries[np.int64(tail & ring.sq_mask)]
    entry[0] = ring.head | np.uint64(ring.fds[file]) << np.uint64(32)
    entry[1], entry[2], entry[3], entry[4] = np.uint64(offset), address, np.uint64(n_bytes), np.uint64(slot)
    store_release(ring.words, np.int64(ring.sq_tail), np.uint32(tail + np.uint32(1)))
    state[N_QUEUED] += 1


@njit(cache=True, nogil=True)
def reap_ring(ring: Any, work: Any, slots: Any, state: Any) -> Any:
    """Settle every completion that is there, and queue what must be asked for again; returns how many there were."""
    head = ring.words[ring.cq_head]
    tail = load_acquire(ring.words, np.int64(ring.cq_tail))
    n_reaped = 0
    while head != tail:
        word = ring.cqes + 4 * np.int64(head & ring.cq_mask)
        slot, answer = np.int64(ring.words[word]), np.int64(np.int32(ring.words[word + 2]))
        head = np.uint32(head + np.uint32(1))
        n_reaped += 1
        if slot >= slots.read.shape[0] or slots.read[slot] < 0:
            _fail(work, state, np.int64(UNKNOWN_ANSWER), -1)
            state[IS_BROKEN] = 1
            continue
        state[IN_FLIGHT] -= 1
        if settle(work, slots, state, slot, answer):
            queue_entry(ring, work, slots, state, slot)
    store_release(ring.words, np.int64(ring.cq_head), head)
    return n_reaped


@njit(cache=True, nogil=True)
def drive_ring(ring: Any, work: Any, slots: Any, state: Any, at_once: Any, may_wait: Any) -> None:
    """Ask for reads, `at_once` in one system call, until all are there; or until all slots are in flight, if it may
    not wait. Ends early only when `state[IS_BROKEN]`."""
    n_refused = 0
    while state[IS_BROKEN] == 0:
        while state[N_QUEUED] < at_once:
            slot = take(work, slots, state)
            if slot < 0:
                break
            queue_entry(ring, work, slots, state, slot)
        n_wait = _n_to_wait_for(work, state, at_once, may_wait)
        if n_wait < 0:
            return
        n_submit = state[N_QUEUED]
        if n_refused and state[IN_FLIGHT]:
            # What is in flight holds what the system was short of.
            n_submit, n_wait = np.int64(0), np.int64(1)
        flags = _GETEVENTS if n_wait else 0
        got = _syscall(_ENTER, ring.fd, n_submit, n_wait, flags, 0, 0)
        if got >= 0:
            state[N_QUEUED] -= got
            state[IN_FLIGHT] += got
            n_refused = 0
        else:
            code = np.int64(load_int32(_errno_address()))
            n_refused += 0 if code == _EINTR else 1
            if code not in (_EINTR, _EAGAIN, _EBUSY) or n_refused > MOST_TRIES:
                _fail(work, state, code, -1)
                state[IS_BROKEN] = 1
        count_round(work, slots, state, n_wait, at_once, reap_ring(ring, work, slots, state))


# libaio.


@njit(cache=True, nogil=True)
def queue_block(context: Any, work: Any, slots: Any, state: Any, slot: Any) -> None:
    """Write a slot's read into its control block, to be handed over next."""
    file, offset, address, n_bytes = _span(work, slots, slot)
    block = context.blocks[slot]
    block[0], block[1], block[2] = np.uint64(slot), np.uint64(0), np.uint64(context.fds[file]) << np.uint64(32)
    block[3], block[4], block[5] = address, np.uint64(n_bytes), np.uint64(offset)
    block[6], block[7] = np.uint64(0), np.uint64(0)
    context.pointers[state[N_QUEUED]] = np.uint64(context.blocks.ctypes.data) + np.uint64(slot * 64)
    state[N_QUEUED] += 1


@njit(cache=True, nogil=True)
def hand_over(context: Any, state: Any, n_taken: Any) -> None:
    """The system took the first blocks: the others move up."""
    state[N_QUEUED] -= n_taken
    state[IN_FLIGHT] += n_taken
    for k in range(state[N_QUEUED]):
        context.pointers[k] = context.pointers[k + n_taken]


@njit(cache=True, nogil=True)
def reap_events(context: Any, work: Any, slots: Any, state: Any, n_events: Any) -> None:
    """Settle the first `n_events` events, and queue what must be asked for again."""
    for event in range(n_events):
        slot, answer = np.int64(context.events[event, 0]), np.int64(context.events[event, 2])
        if slot < 0 or slot >= slots.read.shape[0] or slots.read[slot] < 0:
            _fail(work, state, np.int64(UNKNOWN_ANSWER), -1)
            state[IS_BROKEN] = 1
            continue
        state[IN_FLIGHT] -= 1
        if settle(work, slots, state, slot, answer):
            queue_block(context, work, slots, state, slot)


@njit(cache=True, nogil=True)
def refuse_block(context: Any, work: Any, slots: Any, state: Any, code: Any) -> None:
    """The system refuses the first block: its read has failed, and the others are not handed over any more."""
    start = np.uint64(context.blocks.ctypes.data)
    for k in range(state[N_QUEUED]):
        slot = np.int64((context.pointers[k] - start) // np.uint64(64))
        if k == 0:
            _fail(work, state, code, slots.read[slot])
        _free(slots, state, slot)
    state[N_QUEUED] = 0


@njit(cache=True, nogil=True)
def drive_context(context: Any, work: Any, slots: Any, state: Any, at_once: Any, may_wait: Any) -> None:
    """As `drive_ring`."""
    n_refused = 0
    while state[IS_BROKEN] == 0:
        while state[N_QUEUED] < at_once:
            slot = take(work, slots, state)
            if slot < 0:
                break
            queue_block(context, work, slots, state, slot)
        n_wait = _n_to_wait_for(work, state, at_once, may_wait)
        if n_wait < 0:
            return
        if state[N_QUEUED] > 0 and not (n_refused and state[IN_FLIGHT]):
            taken = _syscall(_IO_SUBMIT, context.context, state[N_QUEUED], context.pointers.ctypes.data, 0, 0, 0)
            if taken >= 0:
                hand_over(context, state, taken)
                n_refused = 0
            else:
                code = np.int64(load_int32(_errno_address()))
                n_refused += 0 if code == _EINTR else 1
                if code not in (_EINTR, _EAGAIN) or n_refused > MOST_TRIES:
                    refuse_block(context, work, slots, state, code)
            if state[N_QUEUED] > 0:
                n_wait = min(np.int64(1), state[IN_FLIGHT])
        elif n_refused:
            n_refused, n_wait = 0, np.int64(1)
        n_wait = min(n_wait, state[IN_FLIGHT])
        if n_wait > 0:
            events = context.events.ctypes.data
            got = _syscall(_IO_GETEVENTS, context.context, n_wait, slots.read.shape[0], events, 0, 0)
            if got >= 0:
                reap_events(context, work, slots, state, got)
                count_round(work, slots, state, n_wait, at_once, got)
            else:
                code = np.int64(load_int32(_errno_address()))
                if code != _EINTR:
                    _fail(work, state, code, -1)
                    state[IS_BROKEN] = 1


# A whole fetch in one call. A token's batch is a hundred microseconds of Python otherwise, and several times that after
# a pause in which the processor's caches were somebody else's.


@njit(cache=True, nogil=True)
def _find_spots(plan: Any, rows: Any, first_layer: Any, n_layers: Any, n_columns: Any, spots: Any) -> Any:
    """Fill `spots`, uint64 (items,), of row ids that nobody has checked; whether all of them are here."""
    all_layers, n_extents = plan[N_LAYERS], plan[N_EXTENTS]
    extents = PLAN_HEAD + 2 * all_layers
    first_rows = PLAN_HEAD + 4 * all_layers
    for k in range(rows.shape[0]):
        layer = first_layer + k // n_columns % n_layers
        extent, n_left = plan[extents + 2 * layer], plan[extents + 2 * layer + 1]
        if n_left == 0:
            return False
        while n_left > 1:
            half = n_left // 2
            if plan[first_rows + extent + half] <= rows[k]:
                extent += half
            n_left -= half
        first_row, stop = plan[first_rows + extent], plan[first_rows + 2 * n_extents + extent]
        if rows[k] < first_row or rows[k] >= stop:
            return False
        row = rows[k] - first_row
        cell = row // plan[CELL_ROWS]
        offset = cell * plan[CELL_BYTES] + (row - cell * plan[CELL_ROWS]) * plan[ROW_BYTES]
        spots[k] = np.uint64(plan[first_rows + n_extents + extent] + offset)
    return True


# `index_kernels` finds bundles for everybody else. Kernels that call one another stand in one file, since a compiled
# one that is kept on disk is made anew when its own file changes, and no other; so this is a second copy.


@njit(cache=True, nogil=True)
def _bundle_of(rows: Any, first_row: Any, n_heads: Any, keys: Any, first_word: Any, slots: Any, span: Any) -> Any:
    """The bundle of the n-gram whose key is at word `first_word` and whose rows are at `first_row`; or -1."""
    n_words = slots.shape[1] - 1
    mixed = np.uint64(0)
    for word in range(n_words):
        mixed = (mixed ^ keys[first_word + word]) * _GOLDEN
        mixed = (mixed ^ mixed >> _SHIFT) * _FIRST
        mixed = (mixed ^ mixed >> _SHIFT) * _SECOND
        mixed ^= mixed >> _SHIFT
    first_slot, n_slots, n_bundles = span
    slot = first_slot + np.int64(((mixed >> _HALF) * np.uint64(n_slots)) >> _HALF)
    for _ in range(n_slots):
        entry = slots[slot, n_words]
        number = np.int64(entry & _LOW_HALF) - 1
        if number < 0:
            break
        is_equal = True
        for word in range(n_words):
            is_equal &= slots[slot, word] == keys[first_word + word]
        if is_equal:
            mixed = np.uint64(number)
            for head in range(n_heads):
                mixed = (mixed ^ np.uint64(rows[first_row + head])) * _GOLDEN
                mixed ^= mixed >> _SHIFT
            return number if number < n_bundles and entry >> _HALF == mixed >> _HALF else np.int64(-1)
        slot = slot + 1 if slot + 1 < first_slot + n_slots else first_slot
    return np.int64(-1)


@njit(cache=True, nogil=True)
def find_bundles(rows: Any, keys: Any, bundled: Any, row_bytes: Any, spots: Any) -> Any:
    """Let the spots of bundled n-grams be those in their bundles; how many n-grams have one.

    `rows` is int64 (tokens x layers x columns,) and `spots` uint64 of that length; `keys` is uint64 (tokens x layers x
    orders x words,), of any value.
    """
    columns, n_words = bundled.columns, bundled.slots.shape[1] - 1
    n_layers, n_orders = bundled.bases.shape
    n_found = np.int64(0)
    for place in range(rows.shape[0] // columns[n_orders] * n_orders):
        order, layer = place % n_orders, place // n_orders % n_layers
        first, n_heads = place // n_orders * columns[n_orders] + columns[order], columns[order + 1] - columns[order]
        span = bundled.spans[layer, order]
        number = _bundle_of(rows, first, n_heads, keys, place * n_words, bundled.slots, (span[0], span[1], span[2]))
        if number >= 0:
            n_found += 1
            start = bundled.bases[layer, order] + np.uint64(number * n_heads * row_bytes)
            for head in range(n_heads):
                spots[first + head] = start + np.uint64(head * row_bytes)
    return n_found


@njit(cache=True, nogil=True)
def _sort(spots: Any, order: Any) -> None:
    """Put a few spots in ascending order, and note in `order` which item each one is."""
    for k in range(spots.shape[0]):
        spot, at = spots[k], k
        while at > 0 and spots[at - 1] > spot:
            spots[at], order[at] = spots[at - 1], order[at - 1]
            at -= 1
        spots[at], order[at] = spot, np.int64(k)


@njit(cache=True, nogil=True)
def _work(plan: Any, spots: Any, output: Any) -> Any:
    """The reads of records in one part at these spots, which are sorted here."""
    n_items = spots.shape[0]
    order, starts = np.empty(n_items, np.int64), np.empty(n_items + 1, np.int64)
    windows = np.empty((n_items, 3), np.int64)
    part_starts, part_bytes = np.zeros(1, np.uint64), np.full(1, np.uint64(plan[ROW_BYTES]))
    first_file = PLAN_HEAD + 4 * plan[N_LAYERS] + 3 * plan[N_EXTENTS]
    file_spots = plan[first_file : first_file + plan[N_FILES]].view(np.uint64)
    _sort(spots, order)
    n_reads = group_reads(
        spots, order, n_items, part_bytes, file_spots, plan[UNIT], plan[LIMIT_BYTES], starts, windows
    )  # fmt: skip
    return Work(
        starts, windows, spots, order, n_reads, n_items, plan[ROW_BYTES], plan[UNIT], part_starts,
        part_bytes, output, np.zeros(1, np.int64),
    )  # fmt: skip


@njit(cache=True, nogil=True, inline="always")
def _in_maps(plan: Any, work: Any) -> Any:
    """What `are_first_misses` takes."""
    first = PLAN_HEAD + 4 * plan[N_LAYERS] + 3 * plan[N_EXTENTS] + plan[N_FILES]
    maps = np.uint64(plan[PAGES]), np.uint64(plan[MISSED]), plan[MAP_BYTES], np.uint64(plan[REGION_START])
    return maps, plan[first:], plan[PAGE_SHIFT], work.windows, work.n_reads


@njit(cache=True, nogil=True, inline="always")
def _enter(plan: Any) -> Any:
    """Pass the gate (see `Leases.gate`); whether it was open."""
    gate = np.uint64(plan[GATE])
    if add_in_order(gate, np.int64(1)) < SHUT:
        return True
    add_in_order(gate, np.int64(-1))
    return False


@lru_cache(maxsize=64)
def short_kernel(n_dims: int, drives_ring: bool, queue_types: Any, bundled_type: Any = types.none) -> Any:
    """A whole fetch of a few records in one part: shapes, gate, row ids, spots, bundles, reads.

    Parameters
    ----------
    n_dims
        1 for rows of one layer, 3 for (tokens, layers, columns) of all.
    drives_ring
        io_uring, otherwise libaio.
    queue_types
        Types, as numba has them, of the view and the slots that `drive_ring` or `drive_context` takes.
    bundled_type
        That of a `Bundled`, whose bundles are looked in; only with 3 dimensions.

    Notes
    -----
    The kernel's arguments: a plan (see `GATE`), the layer's position or 0, `rows` int64 in C order, `out` uint8 of that
    shape and (row_bytes,) to write to, then a queue's view, slots and state; last the keys, uint64 (tokens, layers,
    orders x words), and the bundles, both None without bundles. The types are fixed, so that others are refused by the
    call itself (TypeError). It answers DONE; or FAILED, and `state` has the failure; or something else, and has done
    nothing. Nothing is in flight when it returns, unless `state[IS_BROKEN]`.
    """
    words, has_keys = types.Array(types.int64, 1, "C"), bundled_type != types.none
    signature = types.int64(
        words, types.int64, types.Array(types.int64, n_dims, "C", readonly=True),
        types.Array(types.uint8, n_dims + 1, "C"), *queue_types, words, types.int64,
        types.Array(types.uint64, 3, "C", readonly=True) if has_keys else types.none, bundled_type,
    )  # fmt: skip

    @njit(signature, cache=True, nogil=True)
    def fetch(
        plan: Any, layer: Any, rows: Any, out: Any, view: Any, slots: Any, state: Any, at_once: Any, keys: Any,
        bundled: Any,
    ) -> Any:  # fmt: skip
        n_items = rows.size
        if out.shape[:-1] != rows.shape or out.shape[-1] != plan[ROW_BYTES]:
            return MISFIT
        if n_items > plan[MOST_ROWS] or n_items == 0:
            return LARGE
        n_columns, n_layers = n_items, np.int64(1)
        if n_dims == 3:
            n_layers, n_columns = np.int64(rows.shape[1]), np.int64(rows.shape[-1])
            if n_layers != plan[N_LAYERS] or n_columns != plan[N_COLUMNS]:
                return MISFIT
        if has_keys:
            n_words = bundled.bases.shape[1] * (bundled.slots.shape[1] - 1)
            if keys.shape != (rows.shape[0], n_layers, n_words):
                return MISFIT
        spots, flat = np.empty(n_items, np.uint64), rows.reshape(n_items)
        if not _find_spots(plan, flat, layer, n_layers, n_columns, spots):
            return OUTSIDE
        if not _enter(plan):
            return CLOSED
        n_found = np.int64(0)
        if has_keys:
            n_found = find_bundles(flat, keys.reshape(keys.size), bundled, plan[ROW_BYTES], spots)
        work = _work(plan, spots, np.uint64(out.ctypes.data))
        if not has_keys and plan[PAGES] != 0 and not are_first_misses(*_in_maps(plan, work)):
            add_in_order(np.uint64(plan[GATE]), np.int64(-1))
            return NOT_FIRST
        if drives_ring:
            drive_ring(view, work, slots, state, at_once, True)
        else:
            drive_context(view, work, slots, state, at_once, True)
        # What failed is read again by whoever goes the long way, which is no second miss.
        is_stale = False
        if not has_keys and plan[PAGES] != 0 and state[CODE] == 0:
            is_stale = note_first_misses(*_in_maps(plan, work))
        if has_keys and state[CODE] == 0:
            counts = np.uint64(bundled.counts.ctypes.data)
            add_in_order(counts, np.int64(keys.size // (bundled.slots.shape[1] - 1)))
            add_in_order(counts + np.uint64(8), n_found)
        add_in_order(np.uint64(plan[GATE]), np.int64(-1))
        return FAILED if state[CODE] != 0 else STALE if is_stale else DONE

    return fetch
