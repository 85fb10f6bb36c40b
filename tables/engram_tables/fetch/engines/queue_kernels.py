"""Compiled reading with many reads in flight from one thread: the bookkeeping once, io_uring's and libaio's own ways.

A read, as `read_kernels.group_reads` left it, is given a slot, asked for, and when the system answers its records are
copied out of the slot. What a call changes is in arrays, so that a later call goes on where it stopped. No memory but
these arrays, the slots and the output is touched; nothing is checked but what the system answers.
"""

from __future__ import annotations

import platform
import sys
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import njit, types
from numpy.typing import NDArray

from engram_tables.memory import claim, copy_bytes, intrinsic, load_int32

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

MOST_TRIES = 1000
_EINTR, _EAGAIN, _EBUSY, _ECANCELED, _EINVAL = 4, 11, 16, 125, 22
_ENTER = 426
_GETEVENTS = 1
# The same on every architecture but x86-64, where libaio is older than the agreed numbers.
_IO_SUBMIT, _IO_GETEVENTS = (209, 208) if platform.machine() == "x86_64" else (2, 4)

_external: Any = types.ExternalFunction
_i64 = types.int64
_syscall = _external("syscall", _i64(_i64, _i64, _i64, _i64, _i64, _i64, _i64))
_errno_address = _external("__errno_location" if sys.platform.startswith("linux") else "__error", types.uint64())


class Slots(NamedTuple):
    """Where reads in flight put their bytes; slot k is `slot_bytes` from `address + k * slot_bytes`."""

    read: NDArray[np.int64]
    """(slots,): the read that a slot is for, or -1"""
    done: NDArray[np.int64]
    """(slots,): bytes of it that are there"""
    tries: NDArray[np.int64]
    """(slots,): how often the system put it off"""
    free: NDArray[np.int64]
    """(slots,): the first `state[N_FREE]` are the free slots"""
    address: np.uint64
    slot_bytes: int


class Work(NamedTuple):
    """A batch's reads and where their records go; the first five as `group_reads` has them."""

    starts: NDArray[np.int64]
    windows: NDArray[np.int64]
    spots: NDArray[np.uint64]
    order: NDArray[np.int64]
    n_reads: int
    n_records: int
    row_bytes: int
    unit: int
    part_starts: NDArray[np.uint64]
    part_bytes: NDArray[np.uint64]
    output: np.uint64
    """Address of record 0"""
    counter: NDArray[np.int64]
    """(1,): the next read that no thread has taken"""


class Ring(NamedTuple):
    """io_uring's shared memory, and how reads are written into it."""

    words: NDArray[np.uint32]
    """Heads, tails and completions"""
    entries: NDArray[np.uint64]
    """(submission entries, 8)"""
    sq_tail: int
    """Position in `words`, as the next three"""
    cq_head: int
    cq_tail: int
    cqes: int
    sq_mask: np.uint32
    cq_mask: np.uint32
    fds: NDArray[np.int64]
    """(files,): a descriptor, or a number among the registered files"""
    head: np.uint64
    """First word of every entry, without the descriptor"""
    fd: int
    """The ring's own"""


class Context(NamedTuple):
    """A context of libaio, and what is handed to it and comes back."""

    fds: NDArray[np.int64]
    blocks: NDArray[np.uint64]
    """(slots, 8): each slot's control block"""
    pointers: NDArray[np.uint64]
    """(slots,): the first `state[N_QUEUED]` are addresses of blocks to hand over"""
    events: NDArray[np.uint64]
    """(slots, 4)"""
    context: int


def _element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


@intrinsic
def _load_acquire(typing_context: Any, array: Any, position: Any) -> Any:
    """Element `position` of a contiguous uint32 array; what was written before it was stored is seen afterwards."""
    signature = types.uint32(array, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_element(context, builder, signature, arguments), "acquire", 4, typ=ir.IntType(32))

    return signature, generate


@intrinsic
def _store_release(typing_context: Any, array: Any, position: Any, element: Any) -> Any:
    """Set element `position` of a contiguous uint32 array, after everything that was written before."""
    signature = types.void(array, types.int64, types.uint32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _element(context, builder, signature, arguments), "release", 4)
        return context.get_dummy_value()

    return signature, generate


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
    _store_release(ring.words, np.int64(ring.sq_tail), np.uint32(tail + np.uint32(1)))
    state[N_QUEUED] += 1


@njit(cache=True, nogil=True)
def reap_ring(ring: Any, work: Any, slots: Any, state: Any) -> Any:
    """Settle every completion that is there, and queue what must be asked for again; returns how many there were."""
    head = ring.words[ring.cq_head]
    tail = _load_acquire(ring.words, np.int64(ring.cq_tail))
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
    _store_release(ring.words, np.int64(ring.cq_head), head)
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
