"""How a row's values become its record's bytes: small, named codecs.

A codec knows one row at a time and no file. Values are float32 here, whatever the record holds.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput

T = TypeVar("T", bound=np.generic)

F32 = "f32"
F16 = "f16"
BF16 = "bf16"
FP8 = "fp8-e4m3-e8m0"
FP8_SCALAR = "fp8-e4m3-scalar"
INT8_ROW = "int8-row"
INT4_G32 = "int4-g32"
Q8_0 = "q8_0"
Q4_0 = "q4_0"
IQ4_NL = "iq4_nl"

RECORDS = "records"
WEIGHTS = "weights"
SCALES = "scales"
BIASES = "biases"

_OPAQUE = re.compile(r"opaque-([1-9][0-9]{0,8})")
_NOT_FINITE = 0x7F800000
# 448, the largest code, times this is still a finite float32.
_LARGEST_SCALE_BITS = (119 + 127) << 23
_SMALLEST_SCALE_BITS = 1 << 23


class Section(NamedTuple):
    """A stretch of a record that planar files keep apart: bytes from `start` on."""

    name: str
    start: int
    n_bytes: int


class Piece(NamedTuple):
    """What a section takes of every record: so many bytes for each group of values, and so many once."""

    name: str
    group_bytes: int
    row_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One record format.

    Attributes
    ----------
    name
        As it stands in manifests and on the command line.
    group_values
        The smallest number of values that fill whole bytes.
    pieces
        Its sections, in the order of a record's bytes.
    limit_bits
        A float32 whose magnitude bits reach this would not come back finite: infinities, NaN, and what rounds
        up to infinity.
    scale_bits
        float32 bits of the one scale of a whole table; only `fp8-e4m3-scalar` has it.
    can_encode, can_decode
        Whether the methods of these names work; `iq4_nl` is only read, `opaque-N` neither written nor read.

    Notes
    -----
    `n` is the row width. Every number of more than one byte is little-endian, and RNE rounds to nearest, ties to
    even. Products and sums are single operations of IEEE single precision. Decoding never refuses: codes and
    scales that are not finite give what IEEE arithmetic gives. Encoding refuses what is not finite or would come
    back infinite.

    `f32`, `f16`, `bf16`: IEEE single, IEEE half, the upper half of a float32; rounded by RNE. NaN codes keep their
    payload.

    `fp8-e4m3-e8m0`: n bytes of E4M3 (OCP "FN": bias 7, no infinities), then n / 32 bytes of E8M0, one scale for
    each 32 values of this row: 264 bytes at width 256. A value decodes to
    `bf16_RNE(float32(e4m3) * 2**(scale - 127))`, returned as float32. Where implementations differ this follows
    torch: scale 0 is 2**-127 and 255 is NaN; codes 0x7F and 0xFF are NaN. The encoder takes the power of two
    rounded up from amax / 448, so no code saturates, and 127 for a group of zeros; it writes scales 1 to 247 only,
    about which implementations agree.

    `fp8-e4m3-scalar`: n bytes of E4M3; the scale is the table's, not the record's: a positive normal float32 up to
    2**119. A value decodes to `float32(e4m3) * scale` in float32, as engramdb does. vLLM multiplies in bfloat16:
    where the scale is one itself, its result is RNE of this one to bfloat16. The encoder writes
    `e4m3_RNE(value / scale)`, the quotient rounded to float32 first, and refuses quotients past 464, which is where
    rounding would leave 448.

    `int8-row`: n bytes of two's complement, then one f16 scale: 162 bytes at width 160. A value decodes to
    `code * scale`. The encoder takes amax / 127 rounded up to an f16, so no code saturates, and
    `RNE(value / scale)`; code -128 is read and never written. A row of zeros has scale 0.

    `int4-g32`: n / 2 bytes of codes (0 to 15, value 2k in the low nibble of byte k), then n / 32 scales and n / 32
    biases in bf16: MLX's affine format at 4 bits in groups of 32, 100 bytes at width 160. A value decodes to
    `code * scale + bias` in float32; the product is exact, so a fused operation gives the same bits. MLX itself
    returns bfloat16, by roundings of its own. The rounding of MLX's quantiser is not published as a format, and this
    encoder has its own: bias is bf16_RNE(min), scale bf16_RNE((max - bias) / 15) and not below 0, codes
    `RNE((value - bias) / scale)` held to 0 to 15, all 0 where the scale is 0. Magnitudes of 2**126 and more are
    refused, so that no intermediate overflows.

    `q8_0`, `q4_0`, `iq4_nl`: GGUF's blocks of 32 values, a f16 scale d first. `q8_0`: 32 bytes of two's complement,
    `code * d`. `q4_0` and `iq4_nl`: 16 bytes, value k in the low nibble of byte k and value k + 16 in the high one,
    `(code - 8) * d` and `level[code] * d`. The encoders write what ggml's reference quantisers write: d is amax / 127
    or the value of largest magnitude / -8, codes come from value * (1 / d) with d before it is rounded to f16, half
    away from zero for `q8_0`, `trunc(x + 8.5)` held to 15 for `q4_0`. Where 1 / d is infinite, which they leave
    undefined, 0 stands in its place (d is 0 as f16 then); a `q4_0` block of zeros has d = -0.0.

    `opaque-N`: N bytes that nobody here understands, for rows of any width.
    """

    name: str
    group_values: int
    pieces: tuple[Piece, ...]
    limit_bits: int
    scale_bits: int | None = None
    can_encode: bool = True
    can_decode: bool = True

    @property
    def scale(self) -> np.float32:
        """The one scale of a whole table; 1 where a codec has none."""
        return np.float32(1) if self.scale_bits is None else np.uint32(self.scale_bits).view(np.float32)

    def row_bytes(self, row_width: int) -> int:
        """Bytes of a record of `row_width` values."""
        if row_width < 1 or row_width % self.group_values:
            raise InvalidInput(
                f"codec {self.name}: found a row of {row_width} values, expected a positive multiple of "
                f"{self.group_values}; choose another width or codec"
            )
        return sum(section.n_bytes for section in self._sections(row_width))

    def row_width(self, row_bytes: int) -> int:
        """Values of a record of `row_bytes` bytes."""
        self._refuse_opaque("tell the width of")
        group_bytes = sum(piece.group_bytes for piece in self.pieces)
        once = sum(piece.row_bytes for piece in self.pieces)
        if row_bytes <= once or (row_bytes - once) % group_bytes:
            raise InvalidInput(
                f"codec {self.name}: found records of {row_bytes} bytes, expected a positive multiple of "
                f"{group_bytes}{f' and {once}' if once else ''}; were they written by another codec?"
            )
        return (row_bytes - once) // group_bytes * self.group_values

    def sections(self, row_width: int) -> tuple[Section, ...]:
        """The stretches of a record that planar files keep apart; one, `records`, where nothing can be split."""
        self.row_bytes(row_width)
        return self._sections(row_width)

    def _sections(self, row_width: int) -> tuple[Section, ...]:
        sections, start = [], 0
        for piece in self.pieces:
            n_bytes = row_width // self.group_values * piece.group_bytes + piece.row_bytes
            sections.append(Section(piece.name, start, n_bytes))
            start += n_bytes
        return tuple(sections)

    def check_can_encode(self) -> None:
        """Raise `InvalidInput` unless values can be written in this codec."""
        self._refuse_opaque("encode")
        if not self.can_encode:
            raise InvalidInput(
                f"codec {self.name}: found a request to encode, expected to decode only; choose one of "
                f"{', '.join(FRESH_CODEC_NAMES)}"
            )

    def encode(self, values: NDArray[np.float32], out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
        """Records of `values`.

        Parameters
        ----------
        values
            float32 (n, width).
        out
            uint8 (n, row_bytes), C-contiguous; made when not given.

        Raises
        ------
        InvalidInput
            A value is not finite, or would be infinite when decoded; its position is in the message. Or a codec that
            does not encode.
        """
        self.check_can_encode()
        if values.ndim != 2 or values.dtype != np.float32:
            raise TypeError(f"values: found {values.dtype} {values.shape}, expected float32 (n, width)")
        shape = (values.shape[0], self.row_bytes(values.shape[1]))
        out = _buffer(out, shape, np.dtype(np.uint8))
        values = np.ascontiguousarray(values)
        bits, limit_bits = values.view(np.uint32), np.uint32(self.limit_bits)
        bad_row = self._encode(bits, limit_bits, out)
        if bad_row >= 0:
            column = int(np.argmax((bits[bad_row] & np.uint32(0x7FFFFFFF)) >= limit_bits))
            raise InvalidInput(
                f"row {bad_row}, column {column}: found {values[bad_row, column]!s}, expected a finite value that "
                f"codec {self.name} can hold; mend the source of these values"
            )
        return out

    def _encode(self, bits: NDArray[np.uint32], limit_bits: np.uint32, out: NDArray[np.uint8]) -> int:
        """Write records of `bits` uint32 (n, width); the first row that cannot be stored, or -1."""
        from engram_tables.storage.codecs import block_kernels, kernels

        # Kernels of blocks return a block, and -1 // n_groups is -1 too.
        groups, n_groups = bits.reshape(-1, 32) if self.group_values == 32 else bits, bits.shape[1] // 32
        match self.name:
            case "f32":
                return int(kernels.encode_f32(bits, limit_bits, out.view(np.uint32)))
            case "bf16":
                return int(kernels.encode_bf16(bits, limit_bits, len(out), out.view(np.uint16), 0))
            case "f16":
                return int(block_kernels.encode_f16(bits, limit_bits, out.view(np.uint16)))
            case "fp8-e4m3-e8m0":
                return int(kernels.encode_fp8(groups, limit_bits, len(out), out, 0))
            case "fp8-e4m3-scalar":
                return int(kernels.encode_fp8_scalar(bits, limit_bits, self.scale, out))
            case "int8-row":
                return int(block_kernels.encode_int8_row(bits, limit_bits, out))
            case "int4-g32":
                return int(block_kernels.encode_int4_g32(groups, limit_bits, out))
            case "q8_0":
                return int(block_kernels.encode_q8_0(groups, limit_bits, out.reshape(-1, 34)) // n_groups)
            case "q4_0":
                return int(block_kernels.encode_q4_0(groups, limit_bits, out.reshape(-1, 18)) // n_groups)
        raise AssertionError(self.name)

    def decode(self, records: NDArray[np.uint8], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """float32 (..., width) of `records` uint8 (..., row_bytes); `InvalidInput` for `opaque-N`."""
        self._refuse_opaque("decode")
        if records.ndim < 1 or records.dtype != np.uint8:
            raise InvalidInput(f"records: found {records.dtype} {records.shape}, expected uint8 (..., row bytes)")
        width = self.row_width(records.shape[-1])
        out = _buffer(out, (*records.shape[:-1], width), np.dtype(np.float32))
        flat = np.ascontiguousarray(records).reshape(-1, records.shape[-1])
        # Mappings are read-only, and a kernel is compiled once more for arrays that are not.
        flat.flags.writeable = False
        self._decode(flat, out.reshape(-1, width))
        return out

    def _decode(self, records: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
        from engram_tables.storage.codecs import block_kernels, kernels

        groups = out.reshape(-1, 32) if self.group_values == 32 else out
        match self.name:
            case "f32":
                out.view(np.uint8)[:] = records
            case "f16":
                block_kernels.decode_f16(_flat(records, np.dtype(np.uint16)), out.reshape(-1))
            case "bf16":
                kernels.decode_bf16(_flat(records, np.dtype(np.uint16)), _flat(out, np.dtype(np.uint32)))
            case "fp8-e4m3-e8m0":
                kernels.decode_fp8(records, out)
            case "fp8-e4m3-scalar":
                kernels.decode_fp8_scalar(records, self.scale, out)
            case "int8-row":
                block_kernels.decode_int8_row(records, out)
            case "int4-g32":
                block_kernels.decode_int4_g32(records, groups)
            case "q8_0":
                block_kernels.decode_q8_0(records.reshape(-1, 34), groups)
            case "q4_0":
                block_kernels.decode_q4_0(records.reshape(-1, 18), groups)
            case "iq4_nl":
                block_kernels.decode_iq4_nl(records.reshape(-1, 18), groups)

    def _refuse_opaque(self, what: str) -> None:
        if not self.can_decode:
            raise InvalidInput(
                f"codec {self.name}: found a request to {what} records of unknown meaning, expected bytes to be "
                "copied only; import the source again with the codec that its rows are in"
            )


def _whole(n_bytes: int) -> tuple[Piece, ...]:
    return (Piece(RECORDS, n_bytes),)


_CODECS = {
    codec.name: codec
    for codec in (
        Codec(name=F32, group_values=1, pieces=_whole(4), limit_bits=_NOT_FINITE),
        Codec(name=F16, group_values=1, pieces=_whole(2), limit_bits=0x477FF000),
        Codec(name=BF16, group_values=1, pieces=_whole(2), limit_bits=0x7F7F8000),
        Codec(name=FP8, group_values=32, pieces=(Piece(WEIGHTS, 32), Piece(SCALES, 1)), limit_bits=0x7F780000),
        Codec(name=FP8_SCALAR, group_values=1, pieces=_whole(1), limit_bits=_NOT_FINITE),
        # 127 times what rounds up past 65504, the largest half.
        Codec(name=INT8_ROW, group_values=1, pieces=(Piece(WEIGHTS, 1), Piece(SCALES, 0, 2)), limit_bits=0x4AFDE041),
        Codec(
            name=INT4_G32,
            group_values=32,
            pieces=(Piece(WEIGHTS, 16), Piece(SCALES, 2), Piece(BIASES, 2)),
            limit_bits=(126 + 127) << 23,
        ),
        # 127 and 8 times 65520, where rounding leaves 65504.
        Codec(name=Q8_0, group_values=32, pieces=_whole(34), limit_bits=0x4AFDF020),
        Codec(name=Q4_0, group_values=32, pieces=_whole(18), limit_bits=0x48FFF000),
        Codec(name=IQ4_NL, group_values=32, pieces=_whole(18), limit_bits=0, can_encode=False),
    )
}
CODEC_NAMES = tuple(_CODECS)
"""Every codec with a name of its own; beside them there is `opaque-N` for each N from 1 to 999,999,999."""
FRESH_CODEC_NAMES = tuple(codec.name for codec in _CODECS.values() if codec.can_encode and codec.name != FP8_SCALAR)
"""Those that values can be written in without knowing more than the values."""


def get_codec(name: str, *, scale_bits: int | None = None) -> Codec:
    """The codec called `name`.

    Parameters
    ----------
    scale_bits
        float32 bits of the table's one scale; needed by `fp8-e4m3-scalar`, refused by all others.

    Raises
    ------
    InvalidInput
        There is no such codec, or it and `scale_bits` do not fit.
    """
    opaque = _OPAQUE.fullmatch(name)
    if opaque is None and name not in _CODECS:
        raise InvalidInput(
            f"codec {name!r}: not known, expected one of {', '.join(CODEC_NAMES)} or opaque-N with N bytes a row, "
            "1 to 999999999; choose one of them"
        )
    if name == FP8_SCALAR:
        return _with_scale(_CODECS[name], scale_bits)
    if scale_bits is not None:
        raise InvalidInput(
            f"codec {name}: found a scale for the whole table (bits {scale_bits:#010x}), expected none; drop it, or "
            f"is the codec {FP8_SCALAR}?"
        )
    if opaque is None:
        return _CODECS[name]
    pieces = (Piece(RECORDS, 0, int(opaque[1])),)
    return Codec(name=name, group_values=1, pieces=pieces, limit_bits=0, can_encode=False, can_decode=False)


def _with_scale(codec: Codec, scale_bits: int | None) -> Codec:
    if scale_bits is None:
        raise InvalidInput(
            f"codec {codec.name}: found no scale for the whole table, expected the one of a source whose rows keep "
            "their bytes; leave out the codec, or take fp8-e4m3-e8m0"
        )
    if not _SMALLEST_SCALE_BITS <= scale_bits <= _LARGEST_SCALE_BITS:
        found = np.uint32(scale_bits & 0xFFFFFFFF).view(np.float32)
        raise InvalidInput(
            f"codec {codec.name}: found scale {found!s} (float32 bits {scale_bits:#x}), expected a positive normal "
            f"number up to 2**119; was it read from the right tensor?"
        )
    # The first magnitude whose quotient passes 464, from which on rounding would leave 448.
    scale = np.uint32(scale_bits).view(np.float32)
    limit = np.float32(464) * scale
    with np.errstate(over="ignore"):
        while limit / scale > np.float32(464):
            limit = np.nextafter(limit, np.float32(0))
        while np.isfinite(limit) and limit / scale <= np.float32(464):
            limit = np.nextafter(limit, np.float32(np.inf))
    return replace(codec, scale_bits=scale_bits, limit_bits=int(limit.view(np.uint32)))


def _buffer(out: NDArray[T] | None, shape: tuple[int, ...], dtype: np.dtype[T]) -> NDArray[T]:
    if out is None:
        return np.empty(shape, dtype=dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise TypeError(f"out: found {out.dtype} {out.shape}, expected C-contiguous {dtype} {shape}")
    return out


def _flat(array: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    return array.reshape(-1).view(dtype)
