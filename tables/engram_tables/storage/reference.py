"""Plain-Python twins of the storage kernels: slow, without numpy, and meant to be read beside the specification."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from statistics import NormalDist

from engram_tables.storage.initialise import layer_state, mix

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15


def e4m3_value(code: int) -> float:
    """Value of an E4M3 "FN" code."""
    if code & 0x7F == 0x7F:
        return math.nan
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return math.copysign(magnitude, -1.0 if code & 0x80 else 1.0)


def e8m0_value(scale: int) -> float:
    """Value of an E8M0 scale, by torch's rule: 0 is 2**-127, 255 is NaN."""
    return math.nan if scale == 255 else 2.0 ** (scale - 127)


def round_to(value: float, *, precision: int, least_exponent: int, largest: float) -> float:
    """`value` rounded to nearest even in a binary format; infinite past `largest`.

    `precision` counts the bits of the significand with its leading one; `least_exponent` is the exponent of the
    smallest normal number.
    """
    if value == 0 or not math.isfinite(value):
        return value
    exponent = max(math.frexp(abs(value))[1] - 1, least_exponent)
    step = math.ldexp(1.0, exponent - precision + 1)
    # Both the division by a power of two and Python's round, which goes to even, are exact here.
    rounded = math.copysign(round(abs(value) / step) * step, value)
    return math.copysign(math.inf, value) if abs(rounded) > largest else rounded


def to_bf16(value: float) -> float:
    """`value` in bfloat16."""
    return round_to(value, precision=8, least_exponent=-126, largest=(2 - 2**-7) * 2.0**127)


def decode_fp8_pair(code: int, scale: int) -> float:
    """One value: bf16_RNE(float32(e4m3) * 2**(scale - 127))."""
    product = e4m3_value(code) * e8m0_value(scale)
    if abs(product) > (2 - 2**-23) * 2.0**127:
        product = math.copysign(math.inf, product)
    return to_bf16(product)


def encode_fp8_group(values: Sequence[float]) -> tuple[list[int], int]:
    """Codes and scale of up to 32 values, by trying every code."""
    largest = max(abs(value) for value in values)
    scale = 127
    if largest > 0:
        scale = next(s for s in range(1, 255) if largest <= 448 * 2.0 ** (s - 127))
    return [_nearest_e4m3(value / 2.0 ** (scale - 127)) for value in values], scale


def _nearest_e4m3(value: float) -> int:
    # Among equally near codes the even one: neighbouring codes differ in their last bit.
    best = min(range(127), key=lambda code: (abs(e4m3_value(code) - abs(value)), code & 1))
    return best | (0x80 if math.copysign(1.0, value) < 0 else 0)


def encode_row(codec: str, values: Sequence[float]) -> bytes:
    """Record of one row; `values` are exact float32 numbers."""
    if codec == "f32":
        return struct.pack(f"<{len(values)}f", *values)
    if codec == "bf16":
        return b"".join(struct.pack("<f", to_bf16(value))[2:] for value in values)
    groups = [encode_fp8_group(values[start : start + 32]) for start in range(0, len(values), 32)]
    return b"".join(bytes(codes) for codes, _ in groups) + bytes(scale for _, scale in groups)


def decode_row(codec: str, record: bytes) -> list[float]:
    """Values of one record."""
    if codec == "f32":
        return list(struct.unpack(f"<{len(record) // 4}f", record))
    if codec == "bf16":
        return [struct.unpack("<f", b"\0\0" + record[k : k + 2])[0] for k in range(0, len(record), 2)]
    width = len(record) // 33 * 32
    return [decode_fp8_pair(record[k], record[width + k // 32]) for k in range(width)]


def normal_value(seed: int, layer_id: int, row: int, column: int, *, row_width: int, std: str) -> float:
    """The value that `--init normal` gives one place, before the codec."""
    word_number = row * -(-row_width // 4) + column // 4
    word = mix((layer_state(seed, layer_id) + (word_number + 1) * _GAMMA) & _MASK)
    quarter = word >> 16 * (column % 4) & 0xFFFF
    quantile = NormalDist().inv_cdf(0.5 + (quarter % 8192 + 0.5) / 16384)
    on_grid = round(quantile * 2**20) / 2**20
    return _single(on_grid * _single(float(std))) * (-1 if quarter & 0x8000 else 1)


def _single(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])
