"""Numba kernels of the xor-multiply hash. Unchecked: `hashing.py` validates, `reference.py` is the slow twin.

The modulus is the cost. Eight columns at a time share one mix x, and x mod p is found without a division:
q = round(x · (1/p)) in double precision is off by less than 0.875 for x < 2^63 and p > 2^13 (three roundings of
2^-53 relative on q <= 2^50, and half a unit for the rounding to an integer), so r = x - q·p lies within (-p, p) and
its low 32 bits, with p added once where r is negative, are the exact remainder for p < 2^31.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

LANES = 8
SMALLEST_FAST_MODULUS = 2**13 + 1
LARGEST_FAST_MODULUS = 2**31 - 1

# Adding 1.5 · 2^52 leaves the nearest integer in the low bits of the double.
_ROUNDING_MAGIC = 1.5 * 2.0**52
# Positions hashed together: their windows and mixes stay in the first-level cache.
_BLOCK = 256


class HashConstants(NamedTuple):
    """The arrays a kernel reads; columns are held in groups of eight that never span two orders.

    Attributes
    ----------
    fill
        uint64: id where the history is missing.
    multipliers
        uint64 (layers, max_order), newest token first.
    orders
        int64 (orders,), ascending.
    group_order, group_column, group_valid
        int64 (groups,): index of the group's order, its first column, and how many of the eight lanes are columns.
    moduli
        uint64 (layers · groups · 8,), unused lanes 1.
    reciprocals
        float64 (layers · groups · 8,): 1 / modulus.
    offsets
        int64 (layers · groups · 8,).
    """

    fill: np.uint64
    multipliers: npt.NDArray[np.uint64]
    orders: npt.NDArray[np.int64]
    group_order: npt.NDArray[np.int64]
    group_column: npt.NDArray[np.int64]
    group_valid: npt.NDArray[np.int64]
    moduli: npt.NDArray[np.uint64]
    reciprocals: npt.NDArray[np.float64]
    offsets: npt.NDArray[np.int64]


@intrinsic
def _reduce_eight_lanes(
    typingctx: Any, mix: Any, mix_double: Any, moduli: Any, reciprocals: Any, offsets: Any, out: Any
) -> Any:
    """out[0:8] = mix mod moduli[0:8] + offsets[0:8].

    Arrays come as addresses: numba counts references around every call that takes arrays, which costs more than this.
    """
    signature = types.void(mix, mix_double, moduli, reciprocals, offsets, out)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide, double = ir.VectorType(ir.IntType(64), LANES), ir.VectorType(ir.DoubleType(), LANES)
        halves = ir.VectorType(ir.IntType(32), 2 * LANES)
        low_half = ir.Constant(wide, [2**32 - 1] * LANES)

        def vector_at(position: int, vector: Any) -> Any:
            return builder.inttoptr(args[position], vector.as_pointer())

        def splat(value: Any, vector: Any) -> Any:
            undefined = ir.Constant(vector, ir.Undefined)
            first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            return builder.shuffle_vector(first, undefined, zeros)

        modulus = builder.load(vector_at(2, wide), align=8)
        reciprocal = builder.load(vector_at(3, double), align=8)
        rounded = builder.fadd(
            builder.fmul(splat(args[1], double), reciprocal), ir.Constant(double, [_ROUNDING_MAGIC] * LANES)
        )
        # Only low halves matter from here on; a product of two of them is one instruction everywhere.
        quotient = builder.and_(builder.bitcast(rounded, wide), low_half)
        product = builder.mul(quotient, builder.and_(modulus, low_half))
        remainder = builder.sub(splat(args[0], wide), product)
        # A negative remainder is a huge unsigned one, so the smaller of r and r + p is the right one.
        low, lifted = (builder.bitcast(v, halves) for v in (remainder, builder.add(remainder, modulus)))
        exact = builder.select(builder.icmp_unsigned("<", low, lifted), low, lifted)
        local = builder.and_(builder.bitcast(exact, wide), low_half)
        offset = builder.load(vector_at(4, wide), align=8)
        builder.store(builder.add(local, offset), vector_at(5, wide), align=8)
        return context.get_dummy_value()

    return signature, generate


# Typed loosely: numba supplies the first parameter, which the type of the decorated function does not know.
_reduce_eight: Any = _reduce_eight_lanes


@njit(cache=True, nogil=True)
def hash_stream(stream, start, stop, constants, n_columns, fast, rows, keys):  # type: ignore[no-untyped-def]
    """Rows and keys of positions start … stop of a run of tokens.

    Parameters
    ----------
    stream
        int64 (max_order - 1 + tokens,): the history, then the tokens; -1 where dead or before the sequence.
    start, stop
        Positions among the tokens; look-backs read before `start`, so any split gives the same result.
    fast
        Whether every modulus is within the bounds of the division-free form.
    rows
        int64 (tokens · layers · columns,), written for these positions alone.
    keys
        uint64 (tokens · layers · orders,), likewise.
    """
    windows = np.empty((constants.multipliers.shape[1], _BLOCK), dtype=np.uint64)
    mixes = np.empty((constants.multipliers.shape[0], constants.orders.size, _BLOCK), dtype=np.uint64)
    for first in range(start, stop, _BLOCK):
        n = min(_BLOCK, stop - first)
        _fill_windows(stream, first, n, constants.fill, windows)
        _hash_block(windows, n, first, constants, n_columns, fast, mixes, rows, keys)


@njit(cache=True, nogil=True)
def hash_ngrams(ngrams, start, stop, constants, n_columns, fast, rows, keys):  # type: ignore[no-untyped-def]
    """Rows and keys of n-grams that stand by themselves; `constants` are those of one layer and one order.

    Parameters
    ----------
    ngrams
        uint32 (n, order), oldest token first.
    rows
        int64 (n · n_columns,), written for start … stop alone.
    keys
        uint64 (n,), likewise.
    """
    order = ngrams.shape[1]
    windows = np.empty((order, _BLOCK), dtype=np.uint64)
    mixes = np.empty((1, 1, _BLOCK), dtype=np.uint64)
    for first in range(start, stop, _BLOCK):
        n = min(_BLOCK, stop - first)
        for back in range(order):
            for i in range(n):
                windows[back, i] = ngrams[first + i, order - 1 - back]
        _hash_block(windows, n, first, constants, n_columns, fast, mixes, rows, keys)


@njit(cache=True, nogil=True)
def _fill_windows(stream, first, n, fill, windows):  # type: ignore[no-untyped-def]
    """windows[back, i]: the id `back` before position first + i, or `fill` once anything since then is dead."""
    max_order = windows.shape[0]
    live = np.empty(_BLOCK, dtype=np.int64)
    run = 0
    for place in range(first, first + max_order - 1):
        run = run + 1 if stream[place] >= 0 else 0
    for i in range(n):
        run = run + 1 if stream[first + max_order - 1 + i] >= 0 else 0
        live[i] = run
    for back in range(max_order):
        shifted, seen = stream[first + max_order - 1 - back :], windows[back]
        for i in range(n):
            token = np.uint64(shifted[i])
            seen[i] = token if back < live[i] else fill


@njit(cache=True, nogil=True)
def _hash_block(windows, n, first, constants, n_columns, fast, mixes, rows, keys):  # type: ignore[no-untyped-def]
    """Mix, then reduce, `n` windows whose results stand from `first` on."""
    n_layers, n_orders, _ = mixes.shape
    for layer in range(n_layers):
        key = (first * n_layers + layer) * n_orders
        _mix_windows(windows, n, constants.multipliers[layer], constants.orders, mixes[layer], keys, key, n_layers)
    if fast:
        _reduce_block(mixes, n, first, constants, n_columns, rows)
    else:
        _divide_block(mixes, n, first, constants, n_columns, rows)


@njit(cache=True, nogil=True)
def _mix_windows(windows, n, multipliers, orders, mixes, keys, key, n_layers):  # type: ignore[no-untyped-def]
    """mixes[order, i]: the running exclusive-or over the first orders[order] look-backs; copied to keys as well."""
    running = np.zeros(_BLOCK, dtype=np.uint64)
    back = 0
    for order in range(orders.size):
        while back < orders[order]:
            seen, multiplier = windows[back], multipliers[back]
            for i in range(n):
                running[i] ^= seen[i] * multiplier
            back += 1
        mixed, place = mixes[order], key + order
        for i in range(n):
            mixed[i] = running[i]
            keys[place] = running[i]
            place += n_layers * orders.size


@njit(cache=True, nogil=True)
def _reduce_block(mixes, n, first, constants, n_columns, rows):  # type: ignore[no-untyped-def]
    """Rows of `n` mixes per layer and order, eight columns at a time and without a division."""
    group_order, group_column, group_valid = (
        constants.group_order,
        constants.group_column,
        constants.group_valid,
    )
    n_layers, n_groups = mixes.shape[0], group_order.size
    scratch = np.empty(LANES, dtype=np.int64)
    scratch_at, rows_at = scratch.ctypes.data, rows.ctypes.data
    moduli_at, offsets_at = constants.moduli.ctypes.data, constants.offsets.ctypes.data
    reciprocals_at = constants.reciprocals.ctypes.data
    # One group at a time over all positions: its constants stay in registers.
    for layer in range(n_layers):
        for group in range(n_groups):
            shift = (layer * n_groups + group) * (LANES * 8)
            modulus_at, reciprocal_at, offset_at = (
                moduli_at + shift,
                reciprocals_at + shift,
                offsets_at + shift,
            )
            mixed = mixes[layer, group_order[group]]
            column = (first * n_layers + layer) * n_columns + group_column[group]
            if group_valid[group] == LANES:
                out_at, stride = rows_at + column * 8, n_layers * n_columns * 8
                for i in range(n):
                    _reduce_eight(
                        mixed[i], np.float64(np.int64(mixed[i])), modulus_at, reciprocal_at, offset_at, out_at
                    )
                    out_at += stride
            else:
                for i in range(n):
                    _reduce_eight(
                        mixed[i],
                        np.float64(np.int64(mixed[i])),
                        modulus_at,
                        reciprocal_at,
                        offset_at,
                        scratch_at,
                    )
                    for lane in range(group_valid[group]):
                        rows[column + lane] = scratch[lane]
                    column += n_layers * n_columns


@njit(cache=True, nogil=True)
def _divide_block(mixes, n, first, constants, n_columns, rows):  # type: ignore[no-untyped-def]
    """The same for moduli of any size, with the processor's division."""
    n_layers, n_groups = mixes.shape[0], constants.group_order.size
    for i in range(n):
        for layer in range(n_layers):
            for group in range(n_groups):
                mix = mixes[layer, constants.group_order[group], i]
                column = ((first + i) * n_layers + layer) * n_columns + constants.group_column[group]
                for lane in range(constants.group_valid[group]):
                    flat = (layer * n_groups + group) * LANES + lane
                    rows[column + lane] = np.int64(mix % constants.moduli[flat]) + constants.offsets[flat]
