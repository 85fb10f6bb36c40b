"""What a record is, from the dtypes and shapes of the tensors that hold its parts."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engram_tables.errors import InvalidInput
from engram_tables.storage.codecs.codec import FP8_SCALAR, Codec, get_codec
from engram_tables.storage.extents import Part
from engram_tables.storage.sources.pieces import (
    BIASES,
    RECORDS,
    SCALES,
    WEIGHTS,
    FoundTensor,
    Piece,
    listed,
    part_of,
)

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
_PLAIN = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_MTPLX_RECORDS = "mtplx_ngram_rows_v1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFormat:
    """A codec, and the parts in which its records lie."""

    codec: Codec
    row_width: int
    parts: tuple[Part, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a whole record."""
        return sum(part.n_bytes for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """A part of a piece: dtype and how many elements a row has."""

    dtype: str
    n_elements: int

    @property
    def n_bytes(self) -> int:
        """Bytes a row."""
        return self.n_elements * DTYPE_BYTES[self.dtype]


def row_format(
    piece: Piece, *, row_width: int | None, scalars: Sequence[FoundTensor], metadata: Mapping[str, str], opaque: bool
) -> RowFormat:
    """The format of a piece's rows.

    Parameters
    ----------
    row_width
        As the spec says; None where it does not.
    scalars
        Tensors of one value that belong to the piece's layer.
    metadata
        The texts of the file that holds it.
    opaque
        Whether rows that no codec reads are taken as bytes.

    Raises
    ------
    InvalidInput
        No codec reads such tensors, or one that it needs is missing.
    """
    columns = _columns(piece)
    width = row_width or _width_of(columns, metadata)
    # A scalar of another name belongs to a format of its own, and only one format has a scale for all rows.
    is_known = width is not None and all(part_of(scalar.name) == SCALES for scalar in scalars)
    name = _codec_of(columns, width or 0, has_scale=bool(scalars), metadata=metadata) if is_known else None
    if scalars and name != FP8_SCALAR:
        name = None
    sizes = {part_of(tensor.name): columns[part_of(tensor.name)].n_bytes for tensor in piece.in_order()}
    if name is None or width is None:
        if not opaque or width is None:
            raise _unreadable(piece, width, scalars)
        name = f"opaque-{sum(sizes.values())}"
    codec = get_codec(name, scale_bits=_scale_bits(scalars) if name == FP8_SCALAR else None)
    if len(sizes) == 1:
        sizes = {RECORDS: sum(sizes.values())}
    form = RowFormat(codec=codec, row_width=width, parts=_parts(sizes))
    if form.row_bytes != codec.row_bytes(width):
        raise AssertionError(f"{piece.stem}: {form} is no {codec.row_bytes(width)} bytes")
    return form


def packed(codec: Codec, row_width: int, *, row_stride: int | None = None) -> RowFormat:
    """Whole records that follow each other, `row_stride` bytes from one to the next."""
    n_bytes = codec.row_bytes(row_width)
    part = Part(name=RECORDS, start=0, n_bytes=n_bytes, cell_rows=1, cell_bytes=row_stride or n_bytes)
    return RowFormat(codec=codec, row_width=row_width, parts=(part,))


def _columns(piece: Piece) -> dict[str, Columns]:
    columns = {}
    for part, tensor in piece.tensors.items():
        if tensor.dtype not in DTYPE_BYTES or tensor.shape[1] < 1:
            raise InvalidInput(
                f"{tensor.where} is {tensor.dtype} {list(tensor.shape)}, expected rows of whole bytes; convert it anew"
            )
        columns[part] = Columns(dtype=tensor.dtype, n_elements=tensor.shape[1])
    return columns


def _parts(sizes: Mapping[str, int]) -> tuple[Part, ...]:
    parts, start = [], 0
    for name, n_bytes in sizes.items():
        parts.append(Part(name=name, start=start, n_bytes=n_bytes, cell_rows=1, cell_bytes=n_bytes))
        start += n_bytes
    return tuple(parts)


def _width_of(columns: Mapping[str, Columns], metadata: Mapping[str, str]) -> int | None:
    """Values of a row where no recipe tells them."""
    if metadata.get("dim", "").isdecimal() and len(metadata["dim"]) < 8:
        return int(metadata["dim"]) or None
    weights = columns.get(WEIGHTS)
    if weights is None or weights.dtype in ("U8", "I8"):
        return None
    return weights.n_elements * 8 if weights.dtype == "U32" and BIASES in columns else weights.n_elements


def _codec_of(
    columns: Mapping[str, Columns], width: int, *, has_scale: bool, metadata: Mapping[str, str]
) -> str | None:
    """The codec that reads such columns; None where none does."""
    parts = frozenset(columns)
    if parts == {WEIGHTS, SCALES, BIASES}:
        affine = Columns(dtype="BF16", n_elements=width // 32)
        is_affine = columns[SCALES] == columns[BIASES] == affine and width % 32 == 0
        return "int4-g32" if is_affine and columns[WEIGHTS] == Columns(dtype="U32", n_elements=width // 8) else None
    if parts == {WEIGHTS, SCALES}:
        return _scaled(columns[WEIGHTS], columns[SCALES], width)
    if parts == {WEIGHTS} and columns[WEIGHTS].n_elements == width:
        dtype = columns[WEIGHTS].dtype
        return FP8_SCALAR if dtype == "F8_E4M3" and has_scale else _PLAIN.get(dtype)
    if parts == {RECORDS} and metadata.get("format") == _MTPLX_RECORDS and width % 32 == 0:
        return "int4-g32" if columns[RECORDS].n_bytes == width * 5 // 8 else None
    return None


def _scaled(weights: Columns, scales: Columns, width: int) -> str | None:
    # MLX maps codes of eight bits as words of 32; vLLM keeps the scales as the bytes that they are.
    codes = {"F8_E4M3": width, "U8": width, "U32": width // 4}
    is_blocked = scales.dtype in ("F8_E8M0", "U8") and scales.n_elements * 32 == width
    if is_blocked and codes.get(weights.dtype) == weights.n_elements:
        return "fp8-e4m3-e8m0"
    by_row = Columns(dtype="F16", n_elements=1)
    return "int8-row" if (weights, scales) == (Columns(dtype="I8", n_elements=width), by_row) else None


def _scale_bits(scalars: Sequence[FoundTensor]) -> int:
    """The float32 of the one scale; all of them must be equal."""
    bits = {}
    for scalar in scalars:
        data = scalar.header.file.read(scalar.start, scalar.stop - scalar.start)
        bits[_float_bits(scalar, data)] = scalar
    if len(bits) > 1:
        raise InvalidInput(
            f"{listed(scalar.where for scalar in bits.values())}: found scales of {len(bits)} values, expected one for "
            "the table; name the layer that you mean"
        )
    found, scalar = next(iter(bits.items()))
    value = struct.unpack("<f", found.to_bytes(4, "little"))[0]
    if not math.isfinite(value) or value <= 0:
        raise InvalidInput(
            f"{scalar.where}: found a scale of {value}, expected a positive number; is the file damaged?"
        )
    return found


def _float_bits(scalar: FoundTensor, data: bytes) -> int:
    match scalar.dtype:
        case "F32":
            return int.from_bytes(data, "little")
        case "BF16":
            return int.from_bytes(data, "little") << 16
        case "F16":
            return int.from_bytes(struct.pack("<f", struct.unpack("<e", data)[0]), "little")
    raise InvalidInput(f"{scalar.where} is {scalar.dtype}, expected a scale as F32, BF16 or F16; convert it anew")


def _unreadable(piece: Piece, width: int | None, scalars: Sequence[FoundTensor]) -> InvalidInput:
    first = next(iter(piece.tensors.values()))
    found = listed([*piece.in_order(), *scalars])
    if width is None:
        return InvalidInput(f"{first.where}: found {found}, and nothing says how many values a row has; give its spec")
    weights = piece.tensors.get(WEIGHTS)
    if weights is not None and weights.dtype == "F8_E4M3" and len(piece.tensors) == 1:
        expected = (
            f"its scales beside it ({piece.stem}.scale [{weights.shape[0]}, {width // 32}], or one weight_scale for "
            "the table)"
        )
    elif weights is not None and weights.dtype == "U32" and BIASES not in piece.tensors and SCALES in piece.tensors:
        expected = f"biases beside them ({piece.stem}.biases), as rows of four bits with scales and biases have"
    else:
        expected = f"a format of {width} values a row that a codec reads"
    return InvalidInput(
        f"{first.header.where}: found {found}, expected {expected}; lay the missing file beside it, or take the rows "
        "as opaque bytes (--opaque)"
    )
