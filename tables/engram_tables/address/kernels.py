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

from engram_tables.memory import intrinsic

LANES = 8
SMALLEST_FAST_MODULUS = 2**13 + 1
LARGEST_FAST_MODULUS = 2**31 - 1

# Adding 1.5 · 2^52 leaves the nearest integer in the low bits of the double.
_ROUNDING_MAGIC = 1.5 * 2.0**52
# Positions hashed together: their windows and mixes stay in the first-level cache.
BLOCK = 256
# How a kernel takes remainders: see `hash_tokens`.
DIVIDE, REDUCE, REDUCE_PAST_CACHE = 0, 1, 2


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


def _reduce_eight_generator(*, past_cache: bool) -> Any:
    """Code for out[0:8] = mix mod moduli[0:8] + offsets[0:8]; `past_cache` stores need `out` on a 64-byte line."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        wide, double = ir.VectorType(ir.IntType(64), LANES), ir.VectorType(ir.DoubleType(), LANES)
        halves = ir.VectorType(ir.IntType(32), 2 * LANES)
        low_half = ir.Constant(wide, [2**32 - 1] * LANES)
        mix_at, double_at, moduli_at, reciprocals_at, offsets_at, out_at = args

        def load(address: Any, vector: Any) -> Any:
            return builder.load(builder.inttoptr(address, vector.as_pointer()), align=8)

        def splat(address: Any, vector: Any) -> Any:
            undefined = ir.Constant(vector, ir.Undefined)
            value = builder.load(builder.inttoptr(address, vector.element.as_pointer()), align=8)
            first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
            zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
            return builder.shuffle_vector(first, undefined, zeros)

        modulus = load(moduli_at, wide)
        # Fusing the two spares an instruction; either rounding is within the bound above.
        estimate = builder.fmul(splat(double_at, double), load(reciprocals_at, double), flags=("contract",))
        magic = ir.Constant(double, [_ROUNDING_MAGIC] * LANES)
        rounded = builder.fadd(estimate, magic, flags=("contract",))
        # Only low halves matter from here on; a product of two of them is one instruction everywhere.
        quotient = builder.and_(builder.bitcast(rounded, wide), low_half)
        product = builder.mul(quotient, builder.and_(modulus, low_half))
        remainder = builder.sub(splat(mix_at, wide), product)
        # A negative remainder is a huge unsigned one, so the smaller of r and r + p is the right one.
        low, lifted = (builder.bitcast(v, halves) for v in (remainder, builder.add(remainder, modulus)))
        exact = builder.select(builder.icmp_unsigned("<", low, lifted), low, lifted)
        local = builder.and_(builder.bitcast(exact, wide), low_half)
        rows = builder.add(local, load(offsets_at, wide))
        out = builder.inttoptr(out_at, wide.as_pointer())
        if past_cache:
            _store_past_cache(builder, rows, out)
        else:
            builder.store(rows, out, align=8)
        return context.get_dummy_value()

    return generate


@intrinsic
def _reduce_eight(
    typing_context: Any, mix: Any, mix_double: Any, moduli: Any, reciprocals: Any, offsets: Any, out: Any
) -> Any:
    """Everything comes as an address: numba counts references around calls that take arrays, which would cost more."""
    signature = types.void(mix, mix_double, moduli, reciprocals, offsets, out)
    return signature, _reduce_eight_generator(past_cache=False)


@intrinsic
def _reduce_eight_past_cache(
    typing_context: Any, mix: Any, mix_double: Any, moduli: Any, reciprocals: Any, offsets: Any, out: Any
) -> Any:
    """The same, storing past the cache."""
    signature = types.void(mix, mix_double, moduli, reciprocals, offsets, out)
    return signature, _reduce_eight_generator(past_cache=True)


@intrinsic
def _copy_line_past_cache(typing_context: Any, source: Any, out: Any) -> Any:
    """64 bytes from one address to another, which lies on a 64-byte line, past the cache."""
    signature = types.void(source, out)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(64), LANES).as_pointer()
        value = builder.load(builder.inttoptr(args[0], line), align=8)
        _store_past_cache(builder, value, builder.inttoptr(args[1], line))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def _fence(typing_context: Any) -> Any:
    """Wait until what was stored past the cache can be read by other threads: such stores are not ordered."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def _store_past_cache(builder: Any, value: Any, pointer: Any) -> None:
    store = builder.store(value, pointer, align=64)
    store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))


@njit(cache=True, nogil=True)
def hash_tokens(ids, dead, history, start, stop, constants, n_columns, form, rows, keys):  # type: ignore[no-untyped-def]
    """Rows and keys of positions start … stop of a run of tokens.

    Parameters
    ----------
    ids
        uint32 or int64 (tokens,).
    dead
        bool (tokens,), or empty where no token is dead.
    history
        int64 (max_order - 1,): what stands before the tokens, -1 where dead or before the sequence.
    start, stop
        Positions among the tokens, `start` a multiple of `BLOCK`; look-backs read before it, so any split
        gives the same result.
    form
        `DIVIDE` for moduli of any size, `REDUCE` where all are within the bounds above, `REDUCE_PAST_CACHE` where
        besides every group is full, and `rows` and `keys` begin on a 64-byte line.
    rows
        int64 (tokens · layers · columns,), written for these positions alone.
    keys
        uint64 (tokens · layers · orders,), likewise.
    """
    n_layers, max_order = constants.multipliers.shape
    lead = max_order - 1
    stream = np.empty(lead + BLOCK, dtype=np.int64)
    windows = np.empty((max_order, BLOCK), dtype=np.uint64)
    mixes = np.empty((n_layers, constants.orders.size, BLOCK), dtype=np.uint64)
    doubles = np.empty((n_layers, constants.orders.size, BLOCK), dtype=np.float64)
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        n_before = max(0, lead - first)
        stream[:n_before] = history[lead - n_before :]
        for place in range(n_before, lead + n):
            position = first - lead + place
            stream[place] = -1 if dead.size and dead[position] else np.int64(ids[position])
        _fill_windows(stream, n, constants.fill, windows)
        _hash_block(windows, n, first, constants, n_columns, form, mixes, doubles, rows, keys)
    _fence()


@njit(cache=True, nogil=True)
def hash_ngrams(ngrams, start, stop, constants, n_columns, form, rows, keys):  # type: ignore[no-untyped-def]
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
    windows = np.empty((order, BLOCK), dtype=np.uint64)
    mixes = np.empty((1, 1, BLOCK), dtype=np.uint64)
    doubles = np.empty((1, 1, BLOCK), dtype=np.float64)
    for first in range(start, stop, BLOCK):
        n = min(BLOCK, stop - first)
        for back in range(order):
            for i in range(n):
                windows[back, i] = ngrams[first + i, order - 1 - back]
        _hash_block(windows, n, first, constants, n_columns, form, mixes, doubles, rows, keys)


@njit(cache=True, nogil=True)
def _fill_windows(stream, n, fill, windows):  # type: ignore[no-untyped-def]
    """windows[back, i]: the id `back` before token i of the stream, or `fill` once anything since then is dead."""
    lead = windows.shape[0] - 1
    live = np.empty(BLOCK, dtype=np.int64)
    run = 0
    for place in range(lead):
        run = run + 1 if stream[place] >= 0 else 0
    for i in range(n):
        run = run + 1 if stream[lead + i] >= 0 else 0
        live[i] = run
    for back in range(lead + 1):
        shifted, seen = stream[lead - back :], windows[back]
        for i in range(n):
            token = np.uint64(shifted[i])
            seen[i] = token if back < live[i] else fill


@njit(cache=True, nogil=True)
def _hash_block(windows, n, first, constants, n_columns, form, mixes, doubles, rows, keys):  # type: ignore[no-untyped-def]
    """Mix, then reduce, `n` windows whose results stand from `first` on."""
    for layer in range(mixes.shape[0]):
        _mix_windows(windows, n, constants.multipliers[layer], constants.orders, mixes[layer], doubles[layer])
    _store_keys(mixes, n, first, form == REDUCE_PAST_CACHE, keys)
    if form == DIVIDE:
        _divide_block(mixes, n, first, constants, n_columns, rows)
    else:
        _reduce_block(mixes, doubles, n, first, constants, n_columns, form == REDUCE_PAST_CACHE, rows)


@njit(cache=True, nogil=True)
def _store_keys(mixes, n, first, past_cache, keys):  # type: ignore[no-untyped-def]
    """Transpose `n` mixes per layer and order into keys, position by position."""
    n_keys = mixes.shape[0] * mixes.shape[1]
    by_position = np.empty(n_keys * BLOCK, dtype=np.uint64)
    flat = mixes.reshape(-1)
    for column in range(n_keys):
        mixed = flat[column * BLOCK : (column + 1) * BLOCK]
        place = column
        for i in range(n):
            by_position[place] = mixed[i]
            place += n_keys
    start, stop = first * n_keys, (first + n) * n_keys
    if past_cache:
        source, out = by_position.ctypes.data, keys.ctypes.data + start * 8
        for line in range(n_keys * n // LANES):
            _copy_line_past_cache(source + line * (LANES * 8), out + line * (LANES * 8))
        start += n_keys * n // LANES * LANES
    for place in range(start, stop):
        keys[place] = by_position[place - first * n_keys]


@njit(cache=True, nogil=True)
def _mix_windows(windows, n, multipliers, orders, mixes, doubles):  # type: ignore[no-untyped-def]
    """mixes[order, i]: the running exclusive-or over the first orders[order] look-backs, and the same as a double."""
    back = 0
    for order in range(orders.size):
        mixed, as_double = mixes[order], doubles[order]
        seen, multiplier = windows[back], multipliers[back]
        if order == 0:
            for i in range(n):
                mixed[i] = seen[i] * multiplier
        else:
            before = mixes[order - 1]
            for i in range(n):
                mixed[i] = before[i] ^ (seen[i] * multiplier)
        back += 1
        while back < orders[order]:
            seen, multiplier = windows[back], multipliers[back]
            for i in range(n):
                mixed[i] ^= seen[i] * multiplier
            back += 1
        for i in range(n):
            as_double[i] = np.float64(np.int64(mixed[i]))


@njit(cache=True, nogil=True)
def _reduce_block(mixes, doubles, n, first, constants, n_columns, past_cache, rows):  # type: ignore[no-untyped-def]
    """Rows of `n` mixes per layer and order, eight columns at a time, without a division, in the order of memory."""
    n_layers, n_orders, _ = mixes.shape
    n_groups = constants.group_order.size
    mix_rows = np.empty(n_layers * n_groups, dtype=np.uint64)
    ragged = False
    for flat in range(mix_rows.size):
        mix_rows[flat] = (flat // n_groups * n_orders + constants.group_order[flat % n_groups]) * (BLOCK * 8)
        ragged |= constants.group_valid[flat % n_groups] != LANES
    mixes_at, doubles_at = np.uint64(mixes.ctypes.data), np.uint64(doubles.ctypes.data)
    moduli_at, offsets_at = np.uint64(constants.moduli.ctypes.data), np.uint64(constants.offsets.ctypes.data)
    reciprocals_at = np.uint64(constants.reciprocals.ctypes.data)
    out_at = np.uint64(rows.ctypes.data + first * n_layers * n_columns * 8)
    word, line = np.uint64(8), np.uint64(LANES * 8)
    if ragged:
        scratch = np.empty(LANES, dtype=np.int64)
        column = first * n_layers * n_columns
        for i in range(np.uint64(n)):
            shift = np.uint64(0)
            for flat in range(mix_rows.size):
                at = mix_rows[flat] + i * word
                _reduce_eight(
                    mixes_at + at, doubles_at + at, moduli_at + shift, reciprocals_at + shift, offsets_at + shift,
                    np.uint64(scratch.ctypes.data),
                )  # fmt: skip
                for lane in range(constants.group_valid[flat % n_groups]):
                    rows[column + lane] = scratch[lane]
                column += constants.group_valid[flat % n_groups]
                shift += line
    elif past_cache:
        for i in range(np.uint64(n)):
            shift = np.uint64(0)
            for flat in range(np.uint64(mix_rows.size)):
                at = mix_rows[flat] + i * word
                _reduce_eight_past_cache(
                    mixes_at + at, doubles_at + at, moduli_at + shift, reciprocals_at + shift, offsets_at + shift,
                    out_at + shift,
                )  # fmt: skip
                shift += line
            out_at += shift
    else:
        for i in range(np.uint64(n)):
            shift = np.uint64(0)
            for flat in range(np.uint64(mix_rows.size)):
                at = mix_rows[flat] + i * word
                _reduce_eight(
                    mixes_at + at, doubles_at + at, moduli_at + shift, reciprocals_at + shift, offsets_at + shift,
                    out_at + shift,
                )  # fmt: skip
                shift += line
            out_at += shift


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
