"""Compiled loops of the codecs with halves and integers: float32 values to record bytes and back.

Nothing is checked here but the values: `codecs` validates shapes, and every array is C-contiguous. An encoder takes
values as `bits` uint32 (n, width), stops at the first row with a magnitude of `limit_bits` or more, and returns that
row or -1. Where values come in groups or blocks of 32, each of these is a row of `bits`. Each kernel has its plain
twin in `reference`.

Two habits double the speed. Loops over 32 values take their number from a shape: with a constant they are unrolled
before they become vectors. An index with something added is `np.uint64`: a signed one might be negative, which
turns loads into gathers.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from engram_tables.storage.codecs.float_bits import bits_of, float_of

_TWO = np.uint64(2)
_MAGNITUDE = np.uint32(0x7FFFFFFF)
# Added to a small float32, its last bits are the nearest integer, ties to even, in two's complement.
_ROUNDER = np.float32(1.5 * 2**23)
_IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=np.float32
)  # fmt: skip


@njit(cache=True, nogil=True)
def encode_f16(bits: np.ndarray, limit_bits: np.uint32, out: np.ndarray) -> int:
    """Round `bits` to nearest even into `out` uint16 (n, width)."""
    for row in range(bits.shape[0]):
        if _largest_magnitude(bits, row) >= limit_bits:
            return row
        for k in range(bits.shape[1]):
            out[row, k] = _f16_code(bits[row, k])
    return -1


@njit(cache=True, nogil=True)
def decode_f16(codes: np.ndarray, out: np.ndarray) -> None:
    """Widen `codes` uint16 (n,) to `out` float32 (n,)."""
    for k in range(codes.size):
        out[k] = _f16_value(codes[k])


@njit(cache=True, nogil=True)
def _f16_code(word: np.uint32) -> np.uint16:
    magnitude = np.uint32(word & _MAGNITUDE)
    # Below 2**-14 codes are multiples of 2**-24, which is the last place of a float32 near 1/2.
    small = np.uint32(bits_of(np.float32(float_of(magnitude) + np.float32(0.5))) - np.uint32(0x3F000000))
    odd = np.uint32(np.uint32(magnitude >> np.uint32(13)) & np.uint32(1))
    large = np.uint32(np.uint32(np.uint32(magnitude + np.uint32(0xFFF) + odd) >> np.uint32(13)) - np.uint32(0x1C000))
    code = small if magnitude < np.uint32(0x38800000) else large
    return np.uint16(code | np.uint32(np.uint32(word >> np.uint32(16)) & np.uint32(0x8000)))


@njit(cache=True, nogil=True)
def _f16_value(code: np.uint16) -> np.float32:
    magnitude = np.uint32(np.uint32(code) & np.uint32(0x7FFF))
    word = np.uint32(magnitude << np.uint32(13))
    small = bits_of(np.float32(float_of(np.uint32(word + np.uint32(0x38800000))) - np.float32(2.0**-14)))
    # The exponent is 112 more in float32, and the one of infinities and NaN 224.
    large = np.uint32(word + (np.uint32(0x38000000) if magnitude < np.uint32(0x7C00) else np.uint32(0x70000000)))
    found = small if magnitude < np.uint32(0x400) else large
    sign = np.uint32(np.uint32(np.uint32(code) & np.uint32(0x8000)) << np.uint32(16))
    value: np.float32 = float_of(np.uint32(found | sign))
    return value


@njit(cache=True, nogil=True)
def _bf16_code(value: np.float32) -> np.uint32:
    word = bits_of(value)
    odd = np.uint32(np.uint32(word >> np.uint32(16)) & np.uint32(1))
    return np.uint32(np.uint32(word + np.uint32(0x7FFF) + odd) >> np.uint32(16))


@njit(cache=True, nogil=True)
def _largest_magnitude(bits: np.ndarray, row: int) -> np.uint32:
    largest = np.uint32(0)
    for k in range(bits.shape[1]):
        largest = max(largest, np.uint32(bits[row, k] & _MAGNITUDE))
    return largest


@njit(cache=True, nogil=True)
def _ordered(word: np.uint32) -> np.int32:
    """Bits whose order as integers is that of the values; its own inverse."""
    signed = np.int32(word)
    return np.int32(signed ^ np.int32(np.int32(signed >> np.int32(31)) & np.int32(0x7FFFFFFF)))


@njit(cache=True, nogil=True)
def _extremes(bits: np.ndarray, row: np.uint64) -> tuple[np.uint32, np.uint32]:
    """Least and greatest value, as bits; a NaN is one of the two."""
    least = greatest = _ordered(bits[row, 0])
    for k in range(bits.shape[1]):
        key = _ordered(bits[row, k])
        least, greatest = min(least, key), max(greatest, key)
    return np.uint32(_ordered(np.uint32(least))), np.uint32(_ordered(np.uint32(greatest)))


@njit(cache=True, nogil=True)
def _get_half(records: np.ndarray, row: int, start: int) -> np.uint16:
    low, high = np.uint32(records[row, start]), np.uint32(records[row, start + 1])
    return np.uint16(low | np.uint32(high << np.uint32(8)))


@njit(cache=True, nogil=True)
def _put_half(out: np.ndarray, row: int, start: int, code: np.uint32) -> None:
    out[row, start] = np.uint8(code & np.uint32(0xFF))
    out[row, start + 1] = np.uint8(code >> np.uint32(8))


@njit(cache=True, nogil=True, error_model="numpy")
def encode_int8_row(bits: np.ndarray, limit_bits: np.uint32, out: np.ndarray) -> int:
    """Into `out` uint8 (n, width + 2)."""
    width = bits.shape[1]
    for row in range(bits.shape[0]):
        largest = _largest_magnitude(bits, row)
        if largest >= limit_bits:
            return row
        exact = np.float32(float_of(largest) / np.float32(127))
        code = np.uint32(_f16_code(bits_of(exact)))
        if _f16_value(np.uint16(code)) < exact:
            code = np.uint32(code + np.uint32(1))
        _put_half(out, row, width, code)
        scale = _f16_value(np.uint16(code)) if code else np.float32(1)
        for k in range(width):
            quotient = np.float32(float_of(bits[row, k]) / scale)
            out[row, k] = np.uint8(bits_of(np.float32(quotient + _ROUNDER)) & np.uint32(0xFF))
    return -1


@njit(cache=True, nogil=True)
def decode_int8_row(records: np.ndarray, out: np.ndarray) -> None:
    """From `records` uint8 (n, width + 2) into `out` float32 (n, width)."""
    width = out.shape[1]
    for row in range(out.shape[0]):
        scale = _f16_value(_get_half(records, row, width))
        for k in range(width):
            out[row, k] = np.float32(np.float32(np.int8(records[row, k])) * scale)


@njit(cache=True, nogil=True, error_model="numpy")
def encode_int4_g32(bits: np.ndarray, limit_bits: np.uint32, out: np.ndarray) -> int:
    """From `bits` uint32 (n * groups, 32) into `out` uint8 (n, groups * 20)."""
    n_groups, n_pairs = out.shape[1] // 20, bits.shape[1] // 2
    for row in range(out.shape[0]):
        for group in range(n_groups):
            source = np.uint64(row * n_groups + group)
            least, greatest = _extremes(bits, source)
            if max(np.uint32(least & _MAGNITUDE), np.uint32(greatest & _MAGNITUDE)) >= limit_bits:
                return row
            # Adding zero turns -0.0 into 0.0, and nothing else changes.
            bias_code = _bf16_code(np.float32(float_of(least) + np.float32(0)))
            bias = float_of(np.uint32(bias_code << np.uint32(16)))
            span = max(np.float32(0), np.float32(float_of(greatest) - bias))
            scale_code = _bf16_code(np.float32(span / np.float32(15)))
            _put_half(out, row, n_groups * 16 + 2 * group, scale_code)
            _put_half(out, row, n_groups * 18 + 2 * group, bias_code)
            scale = float_of(np.uint32(scale_code << np.uint32(16))) if scale_code else np.float32(np.inf)
            start = np.uint64(group * 16)
            for k in range(n_pairs):
                first = _TWO * np.uint64(k)
                low = _affine_code(bits[source, first], bias, scale)
                high = _affine_code(bits[source, first + np.uint64(1)], bias, scale)
                out[row, start + np.uint64(k)] = np.uint8(low | np.uint32(high << np.uint32(4)))
    return -1


@njit(cache=True, nogil=True, error_model="numpy")
def _affine_code(word: np.uint32, bias: np.float32, scale: np.float32) -> np.uint32:
    quotient = np.float32(np.float32(float_of(word) - bias) / scale)
    held = min(max(quotient, np.float32(0)), np.float32(15))
    return np.uint32(bits_of(np.float32(held + _ROUNDER)) & np.uint32(0xF))


@njit(cache=True, nogil=True)
def decode_int4_g32(records: np.ndarray, out: np.ndarray) -> None:
    """From `records` uint8 (n, groups * 20) into `out` float32 (n * groups, 32)."""
    n_groups, n_pairs = records.shape[1] // 20, out.shape[1] // 2
    for row in range(records.shape[0]):
        for group in range(n_groups):
            target, start = np.uint64(row * n_groups + group), np.uint64(group * 16)
            scale_code = np.uint32(_get_half(records, row, n_groups * 16 + 2 * group))
            bias_code = np.uint32(_get_half(records, row, n_groups * 18 + 2 * group))
            scale = float_of(np.uint32(scale_code << np.uint32(16)))
            bias = float_of(np.uint32(bias_code << np.uint32(16)))
            for k in range(n_pairs):
                pair, first = np.int32(records[row, start + np.uint64(k)]), _TWO * np.uint64(k)
                low, high = np.float32(np.int32(pair & np.int32(15))), np.float32(np.int32(pair >> np.int32(4)))
                out[target, first] = np.float32(np.float32(low * scale) + bias)
                out[target, first + np.uint64(1)] = np.float32(np.float32(high * scale) + bias)


@njit(cache=True, nogil=True, error_model="numpy")
def _inverse(scale: np.float32) -> np.float32:
    inverse = np.float32(np.float32(1) / scale)
    return inverse if np.float32(abs(inverse)) < np.float32(np.inf) else np.float32(0)


@njit(cache=True, nogil=True, error_model="numpy")
def encode_q8_0(bits: np.ndarray, limit_bits: np.uint32, out: np.ndarray) -> int:
    """From `bits` uint32 (blocks, 32) into `out` uint8 (blocks, 34)."""
    for block in range(bits.shape[0]):
        largest = _largest_magnitude(bits, block)
        if largest >= limit_bits:
            return block
        scale = np.float32(float_of(largest) / np.float32(127))
        inverse = _inverse(scale)
        _put_half(out, block, 0, np.uint32(_f16_code(bits_of(scale))))
        for k in range(bits.shape[1]):
            out[block, np.uint64(k) + _TWO] = _away_from_zero(np.float32(float_of(bits[block, k]) * inverse))
    return -1


@njit(cache=True, nogil=True)
def _away_from_zero(value: np.float32) -> np.uint8:
    """The nearest integer, halves away from zero, of a value in -127 to 127."""
    whole = np.int32(value)
    # The difference is exact; adding 1/2 before cutting off would not be.
    rest = np.float32(value - np.float32(whole))
    up = np.int32(1) if rest >= np.float32(0.5) else np.int32(0)
    down = np.int32(1) if rest <= np.float32(-0.5) else np.int32(0)
    return np.uint8(np.int32(whole + np.int32(up - down)))


@njit(cache=True, nogil=True)
def decode_q8_0(records: np.ndarray, out: np.ndarray) -> None:
    """From `records` uint8 (blocks, 34) into `out` float32 (blocks, 32)."""
    for block in range(out.shape[0]):
        scale = _f16_value(_get_half(records, block, 0))
        for k in range(out.shape[1]):
            out[block, k] = np.float32(np.float32(np.int8(records[block, np.uint64(k) + _TWO])) * scale)


@njit(cache=True, nogil=True, error_model="numpy")
def encode_q4_0(bits: np.ndarray, limit_bits: np.uint32, out: np.ndarray) -> int:
    """From `bits` uint32 (blocks, 32) into `out` uint8 (blocks, 18)."""
    half = np.uint64(bits.shape[1] // 2)
    for block in range(bits.shape[0]):
        least, greatest = _extremes(bits, np.uint64(block))
        below, above = np.uint32(least & _MAGNITUDE), np.uint32(greatest & _MAGNITUDE)
        if max(below, above) >= limit_bits:
            return block
        extreme = least if below > above else greatest
        if below == above:
            k = 0
            while np.uint32(bits[block, k] & _MAGNITUDE) != below:
                k += 1
            extreme = bits[block, k] if below else np.uint32(0)
        scale = np.float32(float_of(extreme) / np.float32(-8))
        inverse = _inverse(scale)
        _put_half(out, block, 0, np.uint32(_f16_code(bits_of(scale))))
        for k in range(bits.shape[1] // 2):
            low = _q4_code(bits[block, k], inverse)
            high = _q4_code(bits[block, np.uint64(k) + half], inverse)
            out[block, np.uint64(k) + _TWO] = np.uint8(low | np.uint32(high << np.uint32(4)))
    return -1


@njit(cache=True, nogil=True)
def _q4_code(word: np.uint32, inverse: np.float32) -> np.uint32:
    shifted = np.float32(np.float32(float_of(word) * inverse) + np.float32(8.5))
    return np.uint32(min(np.int32(15), np.int32(shifted)))


@njit(cache=True, nogil=True)
def decode_q4_0(records: np.ndarray, out: np.ndarray) -> None:
    """From `records` uint8 (blocks, 18) into `out` float32 (blocks, 32)."""
    half = np.uint64(out.shape[1] // 2)
    for block in range(out.shape[0]):
        scale = _f16_value(_get_half(records, block, 0))
        for k in range(out.shape[1] // 2):
            pair = np.int32(records[block, np.uint64(k) + _TWO])
            low, high = np.int32(pair & np.int32(15)), np.int32(pair >> np.int32(4))
            out[block, k] = np.float32(np.float32(np.int32(low - np.int32(8))) * scale)
            out[block, np.uint64(k) + half] = np.float32(np.float32(np.int32(high - np.int32(8))) * scale)


@njit(cache=True, nogil=True)
def decode_iq4_nl(records: np.ndarray, out: np.ndarray) -> None:
    """From `records` uint8 (blocks, 18) into `out` float32 (blocks, 32)."""
    half = np.uint64(out.shape[1] // 2)
    for block in range(out.shape[0]):
        scale = _f16_value(_get_half(records, block, 0))
        for k in range(out.shape[1] // 2):
            pair = records[block, np.uint64(k) + _TWO]
            out[block, k] = np.float32(_IQ4_LEVELS[pair & np.uint8(15)] * scale)
            out[block, np.uint64(k) + half] = np.float32(_IQ4_LEVELS[pair >> np.uint8(4)] * scale)
