"""What the kernels of queues are given, and how they touch memory that the system shares. It knows no reads."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from engram_tables.memory import intrinsic


class Work(NamedTuple):
    """A batch's reads and where their records go; the first five as `queue_kernels.group_reads` has them."""

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


class Bundled(NamedTuple):
    """Where bundles lie, and what finds them; see `index_kernels.look_up` and `redirect`."""

    columns: NDArray[np.int64]
    """(orders + 1,): the first column of each order, and the number of columns"""
    spans: NDArray[np.int64]
    """(layers, orders, 3): first slot, slots, bundles"""
    slots: NDArray[np.uint64]
    """(slots, words of a key + 1)"""
    bases: NDArray[np.uint64]
    """(layers, orders): spot of the first bundle of each"""
    counts: NDArray[np.int64]
    """(2,): lookups and found ones, to which kernels add as one step"""


def _element(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.gep(array.data, [arguments[1]])


@intrinsic
def load_acquire(typing_context: Any, array: Any, position: Any) -> Any:
    """Element `position` of a contiguous uint32 array; what was written before it was stored is seen afterwards."""
    signature = types.uint32(array, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_element(context, builder, signature, arguments), "acquire", 4, typ=ir.IntType(32))

    return signature, generate


@intrinsic
def store_release(typing_context: Any, array: Any, position: Any, element: Any) -> Any:
    """Set element `position` of a contiguous uint32 array, after everything that was written before."""
    signature = types.void(array, types.int64, types.uint32)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _element(context, builder, signature, arguments), "release", 4)
        return context.get_dummy_value()

    return signature, generate
