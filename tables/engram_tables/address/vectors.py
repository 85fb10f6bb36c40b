"""Vector instructions of the hash kernels, written as LLVM: eight remainders at a time, and stores past the cache.

The modulus is the cost, and x mod p is found without a division: q = round(x · (1/p)) in double precision is off by
less than 0.875 for x < 2^63 and p > 2^13 (three roundings of 2^-53 relative on q <= 2^50, and half a unit for the
rounding to an integer), so r = x - q·p lies within (-p, p) and its low 32 bits, with p added once where r is negative,
are the exact remainder for p < 2^31.

Everything comes as an address that the caller vouches for. A kernel that uses an intrinsic of this file must be
recompiled when the intrinsic changes (numba's cache watches the kernel's own file only).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from engram_tables.memory import intrinsic

LANES = 8
SMALLEST_FAST_MODULUS = 2**13 + 1
LARGEST_FAST_MODULUS = 2**31 - 1

# Adding 1.5 · 2^52 leaves the nearest integer in the low bits of the double.
_ROUNDING_MAGIC = 1.5 * 2.0**52
# Positions hashed together: their windows and mixes stay in the first-level cache.
BLOCK = 256
_WIDE, _DOUBLE = ir.VectorType(ir.IntType(64), LANES), ir.VectorType(ir.DoubleType(), LANES)


def _load(builder: Any, address: Any, vector: Any) -> Any:
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=8)


def _splat(builder: Any, address: Any, vector: Any) -> Any:
    """A vector of eight times the number at `address`."""
    undefined = ir.Constant(vector, ir.Undefined)
    value = builder.load(builder.inttoptr(address, vector.element.as_pointer()), align=8)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, zeros)


def _store_rows(builder: Any, mixes: Any, doubles: Any, constants_at: Any, out_at: Any, *, past_cache: bool) -> None:
    """Code for out[0:8] = mixes mod moduli[0:8] + offsets[0:8]; `past_cache` stores need `out` on a 64-byte line."""
    halves = ir.VectorType(ir.IntType(32), 2 * LANES)
    low_half = ir.Constant(_WIDE, [2**32 - 1] * LANES)
    moduli_at, reciprocals_at, offsets_at = constants_at
    modulus = _load(builder, moduli_at, _WIDE)
    # Fusing the two spares an instruction; either rounding is within the bound above.
    estimate = builder.fmul(doubles, _load(builder, reciprocals_at, _DOUBLE), flags=("contract",))
    magic = ir.Constant(_DOUBLE, [_ROUNDING_MAGIC] * LANES)
    rounded = builder.fadd(estimate, magic, flags=("contract",))
    # Only low halves matter from here on; a product of two of them is one instruction everywhere.
    quotient = builder.and_(builder.bitcast(rounded, _WIDE), low_half)
    product = builder.mul(quotient, builder.and_(modulus, low_half))
    remainder = builder.sub(mixes, product)
    # A negative remainder is a huge unsigned one, so the smaller of r and r + p is the right one.
    low, lifted = (builder.bitcast(v, halves) for v in (remainder, builder.add(remainder, modulus)))
    exact = builder.select(builder.icmp_unsigned("<", low, lifted), low, lifted)
    local = builder.and_(builder.bitcast(exact, _WIDE), low_half)
    rows = builder.add(local, _load(builder, offsets_at, _WIDE))
    out = builder.inttoptr(out_at, _WIDE.as_pointer())
    if past_cache:
        _store_past_cache(builder, rows, out)
    else:
        builder.store(rows, out, align=8)


def _reduce_eight_generator(*, past_cache: bool) -> Any:
    """Code that reduces one mix, which is given as an integer and as a double, by eight moduli."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        mix_at, double_at, *constants_at, out_at = args
        mixes, doubles = _splat(builder, mix_at, _WIDE), _splat(builder, double_at, _DOUBLE)
        _store_rows(builder, mixes, doubles, constants_at, out_at, past_cache=past_cache)
        return context.get_dummy_value()

    return generate


def _sum_eight_generator(*, past_cache: bool, narrow: bool) -> Any:
    """Code that makes eight sums of id times coefficient over the look-backs, and reduces each by its modulus.

    `narrow` coefficients are below 2^32, as every id is: their product is then one instruction.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        window_at, n_back, coefficients_at, *constants_at, out_at = args
        sums = cgutils.alloca_once_value(builder, ir.Constant(_WIDE, [0] * LANES))  # type: ignore[no-untyped-call]
        with cgutils.for_range(builder, n_back) as loop:
            back = builder.zext(loop.index, ir.IntType(64)) if loop.index.type.width < 64 else loop.index
            token_at = builder.add(window_at, builder.mul(back, ir.Constant(ir.IntType(64), BLOCK * 8)))
            coefficient_at = builder.add(coefficients_at, builder.mul(back, ir.Constant(ir.IntType(64), LANES * 8)))
            token, coefficient = _splat(builder, token_at, _WIDE), _load(builder, coefficient_at, _WIDE)
            if narrow:
                low_half = ir.Constant(_WIDE, [2**32 - 1] * LANES)
                token, coefficient = builder.and_(token, low_half), builder.and_(coefficient, low_half)
            product = builder.mul(token, coefficient)
            builder.store(builder.add(builder.load(sums), product), sums)
        mixes = builder.load(sums)
        doubles = builder.uitofp(mixes, _DOUBLE)
        _store_rows(builder, mixes, doubles, constants_at, out_at, past_cache=past_cache)
        return context.get_dummy_value()

    return generate


def _reduce_eight_intrinsic(*, past_cache: bool) -> Any:
    """Everything comes as an address: numba counts references around calls that take arrays, which would cost more."""

    @intrinsic
    def reduce_eight(
        typing_context: Any, mix: Any, mix_double: Any, moduli: Any, reciprocals: Any, offsets: Any, out: Any
    ) -> Any:
        signature = types.void(mix, mix_double, moduli, reciprocals, offsets, out)
        return signature, _reduce_eight_generator(past_cache=past_cache)

    return reduce_eight


def _sum_eight_intrinsic(*, past_cache: bool, narrow: bool) -> Any:
    """`window` is the address of the newest id; an older one stands `BLOCK` ids further each."""

    @intrinsic
    def sum_eight(
        typing_context: Any, window: Any, n_back: Any, coefficients: Any, moduli: Any, reciprocals: Any, offsets: Any,
        out: Any,
    ) -> Any:  # fmt: skip
        signature = types.void(window, n_back, coefficients, moduli, reciprocals, offsets, out)
        return signature, _sum_eight_generator(past_cache=past_cache, narrow=narrow)

    return sum_eight


reduce_eight = _reduce_eight_intrinsic(past_cache=False)
reduce_eight_past_cache = _reduce_eight_intrinsic(past_cache=True)
sum_eight = _sum_eight_intrinsic(past_cache=False, narrow=False)
sum_eight_narrow = _sum_eight_intrinsic(past_cache=False, narrow=True)
sum_eight_narrow_past_cache = _sum_eight_intrinsic(past_cache=True, narrow=True)


@intrinsic
def copy_line_past_cache(typing_context: Any, source: Any, out: Any) -> Any:
    """64 bytes from one address to another, which lies on a 64-byte line, past the cache."""
    signature = types.void(source, out)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = ir.VectorType(ir.IntType(64), LANES).as_pointer()
        value = builder.load(builder.inttoptr(args[0], line), align=8)
        _store_past_cache(builder, value, builder.inttoptr(args[1], line))
        return context.get_dummy_value()

    return signature, generate


@intrinsic
def fence(typing_context: Any) -> Any:
    """Wait until what was stored past the cache can be read by other threads: such stores are not ordered."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def _store_past_cache(builder: Any, value: Any, pointer: Any) -> None:
    store = builder.store(value, pointer, align=64)
    store.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
