"""How a row's values become its record's bytes: small, named codecs.

A codec knows one row at a time and no file. Values are float32 here, whatever the record holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput

T = TypeVar("T", bound=np.generic)

F32 = "f32"
BF16 = "bf16"
FP8 = "fp8-e4m3-e8m0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """One record format.

    Attributes
    ----------
    name
        As it stands in manifests and on the command line.
    group_values, group_bytes
        The smallest number of values that fill whole bytes, and those bytes.
    limit_bits
        A float32 whose magnitude bits reach this would not come back finite: infinities, NaN, and what rounds
        up to infinity.

    Notes
    -----
    `f32`: IEEE single, little-endian. `bf16`: the upper half of a float32, little-endian, rounded to nearest even.

    `fp8-e4m3-e8m0`: `width` bytes of E4M3 (OCP "FN": bias 7, no infinities), then `width / 32` bytes of E8M0, one
    scale for each 32 values of this row: 264 bytes at width 256. A value decodes to
    `bf16_RNE(float32(e4m3) * 2**(scale - 127))`, returned as float32. Where implementations differ this follows
    torch: scale 0 is 2**-127 and 255 is NaN; codes 0x7F and 0xFF are NaN. The encoder takes the power of two
    rounded up from amax / 448, so no code saturates, and 127 for a group of zeros; it writes scales 1 to 247 only,
    about which implementations agree.
    """

    name: str
    group_values: int
    group_bytes: int
    limit_bits: int

    def row_bytes(self, row_width: int) -> int:
        """Bytes of a record of `row_width` values."""
        if row_width < 1 or row_width % self.group_values:
            raise InvalidInput(
                f"codec {self.name}: found a row of {row_width} values, expected a positive multiple of "
                f"{self.group_values}; choose another width or codec"
            )
        return row_width // self.group_values * self.group_bytes

    def row_width(self, row_bytes: int) -> int:
        """Values of a record of `row_bytes` bytes."""
        if row_bytes < 1 or row_bytes % self.group_bytes:
            raise InvalidInput(
                f"codec {self.name}: found records of {row_bytes} bytes, expected a positive multiple of "
                f"{self.group_bytes}; were they written by another codec?"
            )
        return row_bytes // self.group_bytes * self.group_values

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
            A value is not finite, or would be infinite when decoded; its position is in the message.
        """
        from engram_tables.storage import kernels

        if values.ndim != 2 or values.dtype != np.float32:
            raise TypeError(f"values: found {values.dtype} {values.shape}, expected float32 (n, width)")
        shape = (values.shape[0], self.row_bytes(values.shape[1]))
        out = _buffer(out, shape, np.dtype(np.uint8))
        values = np.ascontiguousarray(values)
        bits, limit_bits = values.view(np.uint32), np.uint32(self.limit_bits)
        if self.name == FP8:
            bad_row = kernels.encode_fp8(bits.reshape(-1, 32), limit_bits, len(out), out, 0)
        else:
            bad_row = kernels.first_unstorable_row(bits, limit_bits)
        if bad_row >= 0:
            column = int(np.argmax((bits[bad_row] & np.uint32(0x7FFFFFFF)) >= limit_bits))
            raise InvalidInput(
                f"row {bad_row}, column {column}: found {values[bad_row, column]!s}, expected a finite value that "
                f"codec {self.name} can hold; mend the source of these values"
            )
        if self.name == F32:
            out[:] = values.view(np.uint8)
        elif self.name == BF16:
            kernels.encode_bf16(bits, len(out), out.view(np.uint16), 0)
        return out

    def decode(self, records: NDArray[np.uint8], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """float32 (..., width) of `records` uint8 (..., row_bytes)."""
        from engram_tables.storage import kernels

        if records.ndim < 1 or records.dtype != np.uint8:
            raise InvalidInput(f"records: found {records.dtype} {records.shape}, expected uint8 (..., row bytes)")
        width = self.row_width(records.shape[-1])
        out = _buffer(out, (*records.shape[:-1], width), np.dtype(np.float32))
        flat = np.ascontiguousarray(records).reshape(-1, records.shape[-1])
        if self.name == F32:
            out.reshape(-1, width).view(np.uint8)[:] = flat
        elif self.name == BF16:
            kernels.decode_bf16(_flat(flat, np.dtype(np.uint16)), _flat(out, np.dtype(np.uint32)))
        else:
            kernels.decode_fp8(flat, out.reshape(-1, width))
        return out


_CODECS = {
    codec.name: codec
    for codec in (
        Codec(name=F32, group_values=1, group_bytes=4, limit_bits=0x7F800000),
        Codec(name=BF16, group_values=1, group_bytes=2, limit_bits=0x7F7F8000),
        Codec(name=FP8, group_values=32, group_bytes=33, limit_bits=0x7F780000),
    )
}
CODEC_NAMES = tuple(_CODECS)


def get_codec(name: str) -> Codec:
    """The codec called `name`; `InvalidInput` when there is none."""
    if name not in _CODECS:
        raise InvalidInput(f"codec {name!r}: not known, expected one of {', '.join(CODEC_NAMES)}; choose one of them")
    return _CODECS[name]


def _buffer(out: NDArray[T] | None, shape: tuple[int, ...], dtype: np.dtype[T]) -> NDArray[T]:
    if out is None:
        return np.empty(shape, dtype=dtype)
    if out.shape != shape or out.dtype != dtype or not out.flags.c_contiguous:
        raise TypeError(f"out: found {out.dtype} {out.shape}, expected C-contiguous {dtype} {shape}")
    return out


def _flat(array: NDArray[np.generic], dtype: np.dtype[np.generic]) -> NDArray[np.generic]:
    return array.reshape(-1).view(dtype)
