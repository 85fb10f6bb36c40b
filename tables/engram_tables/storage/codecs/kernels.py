"""Compiled loops of storage: float32 values to record bytes and back, and the random values of a fresh table.

Nothing is checked here: `codecs` validates shapes, and every array is C-contiguous. Each kernel has its plain
twin in `reference`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from engram_tables.storage.building.quantiles import normal_magnitudes
from engram_tables.storage.codecs.float_bits import bits_of, float_of

# Constants of the compiled code: as an argument, a table might overlap `out`, and no loop would become vectors.
_MAGNITUDES = normal_magnitudes()
LARGEST_NORMAL = np.float32(_MAGNITUDES.max())
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
_E4M3_VALUES = np.zeros(256, dtype=np.float32)
for _code in range(256):
    _exponent, _mantissa = (_code >> 3) & 15, _code & 7
    _magnitude = _mantissa * 2.0**-9 if _exponent == 0 else (8 + _mantissa) * 2.0 ** (_exponent - 10)
    _E4M3_VALUES[_code] = np.nan if _code & 0x7F == 0x7F else (-_magnitude if _code & 0x80 else _magnitude)
_E8M0_VALUES = np.array([*(2.0**exponent for exponent in range(-127, 128)), np.nan], dtype=np.float32)


@njit(cache=True, nogil=True)
def encode_f32(bits: np.ndarray, limit_bits: np.uint32, out: np.ndarray) -> int:
    """Copy `bits` uint32 (n, width) into `out` uint32 (n, width).

    Returns the first row with a value whose magnitude bits reach `limit_bits`, where it stops, or -1. Magnitude bits
    order as magnitudes do, infinity and NaN last.
    """
    for row in range(bits.shape[0]):
        if _largest_magnitude(bits, row) >= limit_bits:
            return row
        for k in range(bits.shape[1]):
            out[row, k] = bits[row, k]
    return -1


@njit(cache=True, nogil=True)
def _largest_magnitude(bits: np.ndarray, row: int) -> np.uint32:
    # The trip count is a variable on purpose: as a constant 32 the loop is unrolled and loses half its speed.
    largest = np.uint32(0)
    for k in range(bits.shape[1]):
        largest = max(largest, np.uint32(bits[row, k] & np.uint32(0x7FFFFFFF)))
    return largest


@njit(cache=True, nogil=True)
def encode_bf16(bits: np.ndarray, limit_bits: np.uint32, n_rows: int, out: np.ndarray, start: int) -> int:
    """Round the first `n_rows` of `bits` uint32 (n, width) to nearest even into `out` uint16 (m, width) from row
    `start` on.

    Returns the first row with a value that cannot be stored, where it stops, or -1.
    """
    for row in range(n_rows):
        if _largest_magnitude(bits, row) >= limit_bits:
            return row
        for k in range(bits.shape[1]):
            word = bits[row, k]
            round_up = np.uint32(np.uint32(0x7FFF) + np.uint32(np.uint32(word >> np.uint32(16)) & np.uint32(1)))
            out[start + row, k] = np.uint16(np.uint32(word + round_up) >> np.uint32(16))
    return -1


@njit(cache=True, nogil=True)
def decode_bf16(codes: np.ndarray, out: np.ndarray) -> None:
    """Widen `codes` uint16 (n,) to float32 bits in `out` uint32 (n,)."""
    for k in range(codes.size):
        out[k] = np.uint32(codes[k]) << np.uint32(16)


@njit(cache=True, nogil=True)
def encode_fp8(bits: np.ndarray, limit_bits: np.uint32, n_rows: int, out: np.ndarray, start: int) -> int:
    """Encode `n_rows` rows, given as `bits` uint32 (n * groups, 32), into `out` uint8 (m, groups * 33) from row
    `start` on.

    Returns the first row with a value that cannot be stored, where it stops, or -1.
    """
    n_groups = out.shape[1] // 33
    width = n_groups * 32
    for row in range(n_rows):
        target = start + row
        for group in range(n_groups):
            largest = _largest_magnitude(bits, row * n_groups + group)
            if largest >= limit_bits:
                return row
            out[target, width + group] = _shared_scale(largest)
        for group in range(n_groups):
            inverse = float_of(np.uint32((np.uint32(254) - np.uint32(out[target, width + group])) << np.uint32(23)))
            source, first = row * n_groups + group, np.uint64(group * 32)
            for k in range(bits.shape[1]):
                out[target, first + np.uint64(k)] = _e4m3_code(bits[source, k], inverse)
    return -1


@njit(cache=True, nogil=True)
def _shared_scale(largest: np.uint32) -> np.uint8:
    # 448 = 1.75 * 2**8: one power of two higher when the mantissa passes 1.75.
    bump = np.int32(1) if np.uint32(largest & np.uint32(0x7FFFFF)) > np.uint32(0x600000) else np.int32(0)
    scale = max(np.int32(1), np.int32(np.int32(largest >> np.uint32(23)) - np.int32(8) + bump))
    return np.uint8(scale) if largest != np.uint32(0) else np.uint8(127)


@njit(cache=True, nogil=True)
def _e4m3_code(word: np.uint32, inverse: np.float32) -> np.uint8:
    sign = np.uint32(np.uint32(word >> np.uint32(24)) & np.uint32(0x80))
    scaled = np.float32(float_of(np.uint32(word & np.uint32(0x7FFFFFFF))) * inverse)
    # Below 2**-6 codes are multiples of 2**-9, which is the last place of a float32 near 2**14.
    small = np.uint32(bits_of(np.float32(scaled + np.float32(16384.0))) & np.uint32(0xF))
    scaled_bits = bits_of(scaled)
    odd = np.uint32(np.uint32(scaled_bits >> np.uint32(20)) & np.uint32(1))
    large = np.uint32(np.uint32(np.uint32(scaled_bits + np.uint32(0x7FFFF) + odd) >> np.uint32(20)) - np.uint32(960))
    code = small if scaled < np.float32(0.015625) else large
    return np.uint8(code | sign)


@njit(cache=True, nogil=True)
def decode_fp8(records: np.ndarray, out: np.ndarray) -> None:
    """Decode `records` uint8 (n, width + width // 32) into `out` float32 (n, width)."""
    n_groups = records.shape[1] // 33
    n_values = out.shape[1] // n_groups
    for row in range(records.shape[0]):
        for group in range(n_groups):
            code = records[row, n_groups * 32 + group]
            scale, first = _E8M0_VALUES[code], np.uint64(group * 32)
            # From 2**-117 to 2**119 no product needs rounding: it is normal and has the four bits of the code.
            if 10 <= code <= 246:
                for k in range(n_values):
                    at = first + np.uint64(k)
                    out[row, at] = np.float32(_E4M3_VALUES[records[row, at]] * scale)
            else:
                for k in range(n_values):
                    at = first + np.uint64(k)
                    out[row, at] = _rounded_product(_E4M3_VALUES[records[row, at]], scale)


@njit(cache=True, nogil=True)
def _rounded_product(value: np.float32, scale: np.float32) -> np.float32:
    word = bits_of(np.float32(value * scale))
    odd = np.uint32(np.uint32(word >> np.uint32(16)) & np.uint32(1))
    rounded = np.uint32(np.uint32(word + np.uint32(0x7FFF) + odd) & np.uint32(0xFFFF0000))
    is_nan = np.uint32(word & np.uint32(0x7FFFFFFF)) > np.uint32(0x7F800000)
    product: np.float32 = float_of(np.uint32(0x7FC00000) if is_nan else rounded)
    return product


@njit(cache=True, nogil=True, error_model="numpy")
def encode_fp8_scalar(bits: np.ndarray, limit_bits: np.uint32, scale: np.float32, out: np.ndarray) -> int:
    """Encode `bits` uint32 (n, width) divided by `scale` into `out` uint8 (n, width).

    Returns the first row with a value that cannot be stored, where it stops, or -1.
    """
    for row in range(bits.shape[0]):
        if _largest_magnitude(bits, row) >= limit_bits:
            return row
        for k in range(bits.shape[1]):
            quotient = np.float32(float_of(bits[row, k]) / scale)
            out[row, k] = _e4m3_code(bits_of(quotient), np.float32(1))
    return -1


@njit(cache=True, nogil=True)
def decode_fp8_scalar(codes: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """Decode `codes` uint8 (n, width) times `scale` into `out` float32 (n, width)."""
    for row in range(out.shape[0]):
        for k in range(out.shape[1]):
            out[row, k] = np.float32(_E4M3_VALUES[codes[row, k]] * scale)


@njit(cache=True, nogil=True)
def fill_words(state: np.uint64, first_word: np.uint64, n_words: int, out: np.ndarray) -> None:
    """Words `first_word`, `first_word` + 1, … of the SplitMix64 stream of `state` into `out` uint64 (n,)."""
    for k in range(n_words):
        word = state + (first_word + np.uint64(k) + np.uint64(1)) * _GAMMA
        word = (word ^ (word >> np.uint64(30))) * _FIRST_FACTOR
        word = (word ^ (word >> np.uint64(27))) * _SECOND_FACTOR
        out[k] = word ^ (word >> np.uint64(31))


@njit(cache=True, nogil=True)
def fill_normal(quarters: np.ndarray, std: np.float32, n_rows: int, out: np.ndarray, start: int) -> None:
    """Normal values for the first `n_rows` of `quarters` uint16 (n, width or more) into `out` float32 (m, width)
    from row `start` on."""
    for row in range(n_rows):
        for column in range(out.shape[1]):
            quarter = np.uint32(quarters[row, column])
            magnitude = np.float32(_MAGNITUDES[quarter & np.uint32(0x1FFF)] * std)
            sign = np.uint32(np.uint32(quarter & np.uint32(0x8000)) << np.uint32(16))
            out[start + row, column] = float_of(np.uint32(bits_of(magnitude) | sign))


class Tile(NamedTuple):
    """Working memory of one thread, small enough for its cache, each array in the two shapes that kernels want.

    `words` uint64 (rows * row words,) and the same as `quarters` uint16 (rows, 4 * row words); `values` float32
    (rows, width), the same as `bits` uint32 (rows, width), and as `groups` uint32 (rows * width // 32, 32), which is
    empty where no codec wants it. Views are made outside: inside a kernel they cost seconds of compilation.
    """

    words: np.ndarray
    quarters: np.ndarray
    values: np.ndarray
    bits: np.ndarray
    groups: np.ndarray


@njit(cache=True, nogil=True)
def normal_f32(state: np.uint64, first_word: np.uint64, std: np.float32, tile: Tile, out: np.ndarray) -> None:
    """Rows of normal values into `out` float32 (n, width); the first row begins at word `first_word`.

    One call a block, without the GIL in between. No value is past what a codec can store.
    """
    tile_rows, tile_words = tile.values.shape[0], tile.words.size
    for start in range(0, out.shape[0], tile_rows):
        fill_words(state, first_word, tile_words, tile.words)
        fill_normal(tile.quarters, std, min(tile_rows, out.shape[0] - start), out, start)
        first_word += np.uint64(tile_words)


@njit(cache=True, nogil=True)
def normal_bf16(state: np.uint64, first_word: np.uint64, std: np.float32, tile: Tile, out: np.ndarray) -> None:
    """The same as bfloat16 into `out` uint16 (n, width)."""
    tile_rows, tile_words = tile.values.shape[0], tile.words.size
    for start in range(0, out.shape[0], tile_rows):
        n_rows = min(tile_rows, out.shape[0] - start)
        fill_words(state, first_word, tile_words, tile.words)
        fill_normal(tile.quarters, std, n_rows, tile.values, 0)
        encode_bf16(tile.bits, np.uint32(0x7F800000), n_rows, out, start)
        first_word += np.uint64(tile_words)


@njit(cache=True, nogil=True)
def normal_fp8(state: np.uint64, first_word: np.uint64, std: np.float32, tile: Tile, out: np.ndarray) -> None:
    """The same as fp8-e4m3-e8m0 into `out` uint8 (n, width + width // 32)."""
    tile_rows, tile_words = tile.values.shape[0], tile.words.size
    for start in range(0, out.shape[0], tile_rows):
        n_rows = min(tile_rows, out.shape[0] - start)
        fill_words(state, first_word, tile_words, tile.words)
        fill_normal(tile.quarters, std, n_rows, tile.values, 0)
        encode_fp8(tile.groups, np.uint32(0x7F800000), n_rows, out, start)
        first_word += np.uint64(tile_words)
