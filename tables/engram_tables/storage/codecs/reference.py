"""Plain-Python twins of the storage kernels: slow, without numpy, and meant to be read beside the specification."""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from collections.abc import Sequence
from statistics import NormalDist

from engram_tables.storage.building.initialise import layer_state, mix

_MASK = 2**64 - 1
_GAMMA = 0x9E3779B97F4A7C15
_HALVES = struct.unpack("<31744e", struct.pack("<31744H", *range(0x7C00)))
_IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def e4m3_value(code: int) -> float:
    """Value of an E4M3 "FN" code."""
    if code & 0x7F == 0x7F:
        return math.nan
    exponent, mantissa = (code >> 3) & 15, code & 7
    magnitude = mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10)
    return math.copysign(magnitude, -1.0 if code & 0x80 else 1.0)


_E4M3_MAGNITUDES = tuple(e4m3_value(code) for code in range(127))


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
    best = min(range(127), key=lambda code: (abs(_E4M3_MAGNITUDES[code] - abs(value)), code & 1))
    return best | (0x80 if math.copysign(1.0, value) < 0 else 0)


def encode_row(codec: str, values: Sequence[float], *, scale: float = 1.0) -> bytes:
    """Record of one row; `values` are exact float32 numbers, `scale` is that of `fp8-e4m3-scalar`."""
    groups = [values[start : start + 32] for start in range(0, len(values), 32)]
    match codec:
        case "f32":
            return struct.pack(f"<{len(values)}f", *values)
        case "f16":
            return struct.pack(f"<{len(values)}e", *values)
        case "bf16":
            return b"".join(_bf16_bytes(value) for value in values)
        case "fp8-e4m3-e8m0":
            encoded = [encode_fp8_group(group) for group in groups]
            return b"".join(bytes(codes) for codes, _ in encoded) + bytes(scale for _, scale in encoded)
        case "fp8-e4m3-scalar":
            return bytes(_nearest_e4m3(_single(value / scale)) for value in values)
        case "int8-row":
            return _encode_int8(values)
        case "int4-g32":
            codes, scales, biases = zip(*(_encode_int4(group) for group in groups), strict=True)
            return b"".join(codes) + b"".join(scales) + b"".join(biases)
        case "q8_0":
            return b"".join(_encode_q8_0(group) for group in groups)
        case "q4_0":
            return b"".join(_encode_q4_0(group) for group in groups)
    raise AssertionError(codec)


def decode_row(codec: str, record: bytes, *, scale: float = 1.0) -> list[float]:
    """Values of one record."""
    match codec:
        case "f32":
            return list(struct.unpack(f"<{len(record) // 4}f", record))
        case "f16":
            return list(struct.unpack(f"<{len(record) // 2}e", record))
        case "bf16":
            return [_bf16_value(record[k : k + 2]) for k in range(0, len(record), 2)]
        case "fp8-e4m3-e8m0":
            width = len(record) // 33 * 32
            return [decode_fp8_pair(record[k], record[width + k // 32]) for k in range(width)]
        case "fp8-e4m3-scalar":
            return [_single(e4m3_value(code) * scale) for code in record]
        case "int8-row":
            *codes, scale = struct.unpack(f"<{len(record) - 2}be", record)
            return [_single(code * scale) for code in codes]
        case "int4-g32":
            return _decode_int4(record)
        case "q8_0":
            blocks = (struct.unpack("<e32b", record[k : k + 34]) for k in range(0, len(record), 34))
            return [_single(code * scale) for scale, *codes in blocks for code in codes]
        case "q4_0" | "iq4_nl":
            levels = range(-8, 8) if codec == "q4_0" else _IQ4_LEVELS
            blocks = (struct.unpack("<e16B", record[k : k + 18]) for k in range(0, len(record), 18))
            return [
                _single(levels[pair >> shift & 15] * scale)
                for scale, *pairs in blocks
                for shift in (0, 4)
                for pair in pairs
            ]
    raise AssertionError(codec)


def _encode_int8(values: Sequence[float]) -> bytes:
    largest = _single(max(abs(value) for value in values) / 127)
    scale = _HALVES[bisect_left(_HALVES, largest)]
    codes = [round(_single(value / scale)) if scale else 0 for value in values]
    return struct.pack(f"<{len(codes)}be", *codes, scale)


def _encode_int4(group: Sequence[float]) -> tuple[bytes, bytes, bytes]:
    bias = to_bf16(min(group) + 0.0)
    scale = to_bf16(_single(max(0.0, _single(max(group) - bias)) / 15))
    quotients = [_single(_single(value - bias) / scale) if scale else 0.0 for value in group]
    codes = [round(min(max(quotient, 0.0), 15.0)) for quotient in quotients]
    pairs = bytes(low | high << 4 for low, high in zip(codes[::2], codes[1::2], strict=True))
    return pairs, _bf16_bytes(scale), _bf16_bytes(bias)


def _decode_int4(record: bytes) -> list[float]:
    n_groups = len(record) // 20
    values = []
    for k in range(32 * n_groups):
        code = record[k // 2] >> 4 * (k % 2) & 15
        at = 16 * n_groups + 2 * (k // 32)
        scale, bias = (_bf16_value(record[start : start + 2]) for start in (at, at + 2 * n_groups))
        values.append(_single(_single(code * scale) + bias))
    return values


def _encode_q8_0(block: Sequence[float]) -> bytes:
    scale = _single(max(abs(value) for value in block) / 127)
    products = [_single(value * _inverse(scale)) for value in block]
    codes = [int(math.copysign(math.floor(abs(product) + 0.5), product)) for product in products]
    return struct.pack("<e32b", scale, *codes)


def _encode_q4_0(block: Sequence[float]) -> bytes:
    extreme = max(block, key=abs)
    scale = _single((extreme or 0.0) / -8)
    codes = [min(15, math.trunc(_single(_single(value * _inverse(scale)) + 8.5))) for value in block]
    return struct.pack("<e16B", scale, *(low | high << 4 for low, high in zip(codes[:16], codes[16:], strict=True)))


def _inverse(scale: float) -> float:
    inverse = _single(1 / scale) if scale else 0.0
    return inverse if math.isfinite(inverse) else 0.0


def _bf16_bytes(value: float) -> bytes:
    return struct.pack("<f", to_bf16(value))[2:]


def _bf16_value(code: bytes) -> float:
    return float(struct.unpack("<f", b"\0\0" + code)[0])


def distance(original: Sequence[float], decoded: Sequence[float]) -> tuple[float, float, float]:
    """Largest absolute difference of two rows, and the sums of squared differences and of squared originals, in the
    order in which the kernel adds."""
    errors = [abs(value - other) for value, other in zip(original, decoded, strict=True)]
    lanes = [(errors[lane::16], original[lane::16]) for lane in range(16)]
    squared_error = squared_value = 0.0
    for lane_errors, lane_values in lanes:
        error_sum = value_sum = 0.0
        for error, value in zip(lane_errors, lane_values, strict=True):
            error_sum += error * error
            value_sum += value * value
        squared_error += error_sum
        squared_value += value_sum
    return max(errors), squared_error, squared_value


def normal_value(seed: int, layer_id: int, row: int, column: int, *, row_width: int, std: str) -> float:
    """The value that `--init normal` gives one place, before the codec."""
    word_number = row * -(-row_width // 4) + column // 4
    word = mix((layer_state(seed, layer_id) + (word_number + 1) * _GAMMA) & _MASK)
    quarter = word >> 16 * (column % 4) & 0xFFFF
    quantile = NormalDist().inv_cdf(0.5 + (quarter % 8192 + 0.5) / 16384)
    on_grid = round(quantile * 2**20) / 2**20
    return _single(on_grid * _single(float(std))) * (-1 if quarter & 0x8000 else 1)


def _single(value: float) -> float:
    """`value` in single precision: where it is one operation's result in double, as if it had been done in single."""
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)
