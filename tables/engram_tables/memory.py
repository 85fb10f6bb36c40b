"""Raw memory for kernels: copies, prefetches, atomic counters as numba intrinsics; aligned and huge buffers.

It knows addresses and bytes, and neither rows nor files. Every address is a `uint64` that the caller vouches
for: nothing here is checked, and a wrong address ends the process. A kernel that uses an intrinsic of this
file must be recompiled when the intrinsic changes (numba's cache watches the kernel's own file only).
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic as _numba_intrinsic
from numpy.typing import NDArray

from engram_tables.errors import CapacityError

# Kernels call an intrinsic without its first parameter, which type checkers cannot know.
intrinsic: Any = _numba_intrinsic
_unpack_tuple: Any = cgutils.unpack_tuple

CACHE_LINE_BYTES = 64
HUGE_PAGE_BYTES = 2 << 20

_BYTE_POINTER = ir.IntType(8).as_pointer()
_I32 = ir.IntType(32)
_READ, _WRITE, _KEEP_IN_ALL_CACHES, _DATA = (ir.Constant(_I32, value) for value in (0, 1, 3, 1))


def _pointer(builder: Any, address: Any) -> Any:
    return builder.inttoptr(address, _BYTE_POINTER)


@intrinsic
def copy_bytes(typing_context: Any, target: Any, source: Any, n_bytes: Any) -> Any:
    """memcpy from address `source` to `target`; a constant `n_bytes` becomes straight vector moves."""
    signature = types.void(types.uint64, types.uint64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        target, source, n_bytes = arguments
        memcpy = builder.module.declare_intrinsic("llvm.memcpy", [_BYTE_POINTER, _BYTE_POINTER, n_bytes.type])
        plain = ir.Constant(ir.IntType(1), 0)
        builder.call(memcpy, [_pointer(builder, target), _pointer(builder, source), n_bytes, plain])
        return context.get_dummy_value()

    return signature, generate


def _generate_prefetch(purpose: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = ir.FunctionType(ir.VoidType(), [_BYTE_POINTER, _I32, _I32, _I32])
        llvm_prefetch = builder.module.declare_intrinsic("llvm.prefetch", [_BYTE_POINTER], function)
        builder.call(llvm_prefetch, [_pointer(builder, arguments[0]), purpose, _KEEP_IN_ALL_CACHES, _DATA])
        return context.get_dummy_value()

    return generate


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at `address` in all cache levels; an address that is not mapped does no harm."""
    return types.void(types.uint64), _generate_prefetch(_READ)


@intrinsic
def prefetch_to_write(typing_context: Any, address: Any) -> Any:
    """As `prefetch`, for a line that will be written: it is fetched as this core's own."""
    return types.void(types.uint64), _generate_prefetch(_WRITE)


@intrinsic
def load_int32(typing_context: Any, address: Any) -> Any:
    """The int32 at `address`, which must be a multiple of 4."""
    signature = types.int32(types.uint64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(builder.inttoptr(arguments[0], ir.IntType(32).as_pointer()))

    return signature, generate


@intrinsic
def claim(typing_context: Any, counter: Any, n_items: Any) -> Any:
    """Add `n_items` to element 0 of the int64 array `counter` atomically; returns the value before."""
    signature = types.int64(counter, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        return builder.atomic_rmw("add", array.data, arguments[1], "monotonic")

    return signature, generate


@intrinsic
def pointer_to(typing_context: Any, address: Any) -> Any:
    """`address` for `numba.carray`, whose arrays own nothing and cost nothing to make."""
    return types.voidptr(types.uint64), lambda _context, builder, _signature, arguments: _pointer(builder, arguments[0])


@intrinsic
def call_at(typing_context: Any, function: Any, arguments: Any) -> Any:
    """Call the C function at address `function`, which takes int64 and answers nothing, with a tuple of them."""
    signature = types.void(types.uint64, arguments)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        given = _unpack_tuple(builder, values[1], len(signature.args[1]))
        called = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * len(given)).as_pointer()
        builder.call(builder.inttoptr(values[0], called), given)
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def load_byte(typing_context: Any, address: Any) -> Any:
    """The uint8 at `address`."""
    signature = types.uint8(types.uint64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(builder, arguments[0]))

    return signature, generate


@intrinsic
def add_in_order(typing_context: Any, address: Any, amount: Any) -> Any:
    """Add `amount` to the int64 at `address` (a multiple of 8) as one step that no load or store passes; returns the
    value before."""
    signature = types.int64(types.uint64, types.int64)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, arguments[1], "seq_cst")

    return signature, generate


def aligned_bytes(n_bytes: int, alignment: int) -> NDArray[np.uint8]:
    """Uninitialised uint8 (n_bytes,) whose first byte lies on a multiple of `alignment` (a power of two)."""
    block = np.empty(n_bytes + alignment, np.uint8)
    start = -block.ctypes.data % alignment
    return block[start : start + n_bytes]


def anonymous_bytes(n_bytes: int, *, huge_pages: bool) -> NDArray[np.uint8]:
    """Zeroed private memory, uint8 (n_bytes,), that starts on a huge-page boundary.

    The kernel is advised for or against huge pages before the first touch. Advice is not a promise:
    `measure.residency.huge_page_bytes` says how much of a range got them.
    """
    try:
        block = mmap.mmap(-1, n_bytes + HUGE_PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise CapacityError(
            f"memory: the system refused {n_bytes} bytes ({error.strerror}), expected room for them; ask for less, or "
            "raise the limit (`ulimit -v`, a container's memory)"
        ) from None
    advice = getattr(mmap, "MADV_HUGEPAGE" if huge_pages else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        block.madvise(advice)
    whole = np.frombuffer(block, np.uint8)
    start = -whole.ctypes.data % HUGE_PAGE_BYTES
    return whole[start : start + n_bytes]
