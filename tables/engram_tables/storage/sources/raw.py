"""Rows in a file without a container, with a geometry given by hand."""

from __future__ import annotations

from dataclasses import dataclass

from engram_tables.address.spec import AddressSpec
from engram_tables.byte_files import ByteFile
from engram_tables.errors import InvalidInput
from engram_tables.storage.codecs.codec import Codec, get_codec
from engram_tables.storage.sources.assembling import Container, Stretch, assemble, layer_in
from engram_tables.storage.sources.row_formats import packed
from engram_tables.storage.sources.source import Source

_MOST = 2**62


@dataclass(frozen=True, slots=True, kw_only=True)
class RawGeometry:
    """Where the records of a file without a container lie.

    Attributes
    ----------
    codec
        Of the records; None where `row_bytes` alone is known: then they are opaque.
    row_bytes
        Of a record; by default what the codec makes of the spec's row width.
    row_stride
        Bytes from one record to the next; by default `row_bytes`.
    first_byte
        Where the first record begins.
    layer_id
        The layer; may be left out where the spec has one.
    first_row
        The row of the layer that the first record is.
    n_rows
        Records there; by default as many as fill the file to its end.
    """

    codec: str | None = None
    row_bytes: int | None = None
    row_stride: int | None = None
    first_byte: int = 0
    layer_id: int | None = None
    first_row: int = 0
    n_rows: int | None = None


def raw_source(file: ByteFile, geometry: RawGeometry, spec: AddressSpec) -> Source:
    """The rows of `file`, which may be a part of a layer's.

    Raises
    ------
    InvalidInput
        A geometry that contradicts itself or the file's length.
    SpecMismatch
        More rows than the layer has.
    """
    where = file.where
    codec, row_width = _codec(where, geometry, spec)
    row_bytes = codec.row_bytes(row_width)
    stride = row_bytes if geometry.row_stride is None else geometry.row_stride
    if geometry.layer_id is None and len(spec.layers) > 1:
        known = ", ".join(map(str, spec.layer_ids))
        raise InvalidInput(
            f"{where}: found a geometry without a layer, expected one of {known} as the spec {spec.name} has; add "
            f"layer={spec.layer_ids[0]}, or another one"
        )
    layer_id = layer_in(where, spec, geometry.layer_id)
    for name, value, least in (
        ("row_stride", stride, row_bytes),
        ("first_byte", geometry.first_byte, 0),
        ("first_row", geometry.first_row, 0),
    ):
        if not least <= value <= _MOST:
            raise InvalidInput(f"{where}: {name} is {value}, expected {least} or more; correct the geometry")
    n_rows = _n_rows(file, geometry, row_bytes, stride)
    start = geometry.first_byte
    stretch = Stretch(
        name="",
        dtype="U8",
        shape=(n_rows, row_bytes),
        file=file,
        start=start,
        stop=start + (n_rows - 1) * stride + row_bytes,
        layer_id=layer_id,
        part_idx=0,
        first_row=geometry.first_row,
        n_rows=n_rows,
    )
    return assemble(
        where=where,
        form="raw",
        container="raw",
        spec=spec,
        row_format=packed(codec, row_width, row_stride=stride),
        stretches=[stretch],
        containers=[Container(file=file, alignment=1, metadata={})],
        is_whole=False,
    )


def _codec(where: str, geometry: RawGeometry, spec: AddressSpec) -> tuple[Codec, int]:
    """The codec and the values of a row."""
    if geometry.codec is None:
        if geometry.row_bytes is None:
            raise InvalidInput(f"{where}: found a geometry without codec and row bytes, expected one of them; give it")
        if spec.row_width is None:
            raise InvalidInput(f"{where}: the spec {spec.name} does not say how many values a row has; give a codec")
        return get_codec(f"opaque-{geometry.row_bytes}"), spec.row_width
    codec = get_codec(geometry.codec)
    if spec.row_width is None and geometry.row_bytes is None:
        raise InvalidInput(f"{where}: neither the spec nor the geometry says how long a row is; give its bytes")
    width = spec.row_width or codec.row_width(geometry.row_bytes or 0)
    if geometry.row_bytes not in (None, codec.row_bytes(width)):
        raise InvalidInput(
            f"{where}: found records of {geometry.row_bytes} bytes, expected {codec.row_bytes(width)}: {width} values "
            f"as {codec.name}; correct one of them"
        )
    return codec, width


def _n_rows(file: ByteFile, geometry: RawGeometry, row_bytes: int, stride: int) -> int:
    """Rows of the file: as stated, or to its end, where the last one may lack what lies between two."""
    rest = file.file_bytes - geometry.first_byte
    most, left = divmod(rest - row_bytes, stride)
    if rest < row_bytes or (geometry.n_rows is None and left not in (0, stride - row_bytes)):
        raise InvalidInput(
            f"{file.where}: found {rest} bytes from byte {geometry.first_byte} on, expected records of {row_bytes} "
            f"bytes, {stride} from one to the next; correct the geometry"
        )
    if geometry.n_rows is None:
        return most + 1
    if not 1 <= geometry.n_rows <= most + 1:
        raise InvalidInput(f"{file.where}: n_rows is {geometry.n_rows}, expected 1 to {most + 1}, which the file holds")
    return geometry.n_rows
