"""What a table remembers of the checkpoint it was made from: enough to write the same files again.

Names and numbers as the containers state them; no path, URL or host. The record stands in the table's manifest, so
whatever reads it must expect anything there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput
from engram_tables.storage.extents import Part
from engram_tables.storage.sources.source import Source
from engram_tables.units import int_from_json, json_int

_COPY_AGAIN = "copy or build the table again"


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedFile:
    """A file of the source: its name without a directory, the unit its container pads to, its `__metadata__`."""

    name: str
    alignment: int
    metadata: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedTensor:
    """A tensor that held rows: as `source.SourceTensor`, its file and part by position; `start` counts from byte 0."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    start: int
    layer_id: int
    part: int
    first_row: int
    n_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedScale:
    """A small tensor that the codec's parameters were taken from; `data` is hexadecimal."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: int
    start: int
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRecord:
    """A source without its bytes.

    Attributes
    ----------
    form, container
        As in `Source`.
    codec, codec_scale
        Of the source's records: name, and the float32 of a table-wide scale as 8 hexadecimal digits or None.
    row_bytes
        Of the source's records.
    left_out
        Tensors of these files that held no rows.
    """

    form: str
    container: str
    codec: str
    codec_scale: str | None
    row_bytes: int
    files: tuple[RecordedFile, ...]
    parts: tuple[Part, ...]
    tensors: tuple[RecordedTensor, ...]
    scale_tensors: tuple[RecordedScale, ...]
    left_out: int

    @classmethod
    def of(cls, source: Source) -> Self:
        """The record of an open source."""
        scale_bits = source.codec.scale_bits
        return cls(
            form=source.form,
            container=source.container,
            codec=source.codec.name,
            codec_scale=None if scale_bits is None else f"{scale_bits:08x}",
            row_bytes=source.row_bytes,
            files=tuple(
                RecordedFile(name=file.name, alignment=alignment, metadata=tuple(metadata.items()))
                for file, alignment, metadata in zip(source.files, source.alignments, source.metadata, strict=True)
            ),
            parts=source.parts,
            tensors=tuple(
                RecordedTensor(
                    name=tensor.name, dtype=tensor.dtype, shape=tensor.shape, file=tensor.file_idx,
                    start=tensor.start, layer_id=tensor.layer_id, part=tensor.part_idx, first_row=tensor.first_row,
                    n_rows=tensor.n_rows,
                )
                for tensor in source.tensors
            ),
            scale_tensors=tuple(
                RecordedScale(
                    name=scale.name, dtype=scale.dtype, shape=scale.shape, file=scale.file_idx, start=scale.start,
                    data=scale.data,
                )
                for scale in source.scale_tensors
            ),
            left_out=len(source.left_out),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """The object that stands in a manifest."""
        return {
            "form": self.form,
            "container": self.container,
            "codec": self.codec,
            "codec_scale": self.codec_scale,
            "row_bytes": json_int(self.row_bytes),
            "files": [
                {"name": file.name, "alignment": json_int(file.alignment), "metadata": [list(m) for m in file.metadata]}
                for file in self.files
            ],
            "parts": [
                {
                    "name": part.name,
                    "start": json_int(part.start),
                    "n_bytes": json_int(part.n_bytes),
                    "cell_rows": json_int(part.cell_rows),
                    "cell_bytes": json_int(part.cell_bytes),
                }
                for part in self.parts
            ],
            "tensors": [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": [json_int(n) for n in tensor.shape],
                    "file": tensor.file,
                    "start": json_int(tensor.start),
                    "layer_id": tensor.layer_id,
                    "part": tensor.part,
                    "first_row": json_int(tensor.first_row),
                    "n_rows": json_int(tensor.n_rows),
                }
                for tensor in self.tensors
            ],
            "scale_tensors": [
                {
                    "name": scale.name,
                    "dtype": scale.dtype,
                    "shape": [json_int(n) for n in scale.shape],
                    "file": scale.file,
                    "start": json_int(scale.start),
                    "data": scale.data,
                }
                for scale in self.scale_tensors
            ],
            "left_out": self.left_out,
        }

    @classmethod
    def from_json(cls, value: Any) -> Self:
        """The record in a manifest's `source`.

        Raises
        ------
        InvalidInput
            A missing entry, one of another kind, or numbers that contradict each other. What a record does not have
            is not met here: compare `to_json` with `value`.
        """
        try:
            record = cls(
                form=_text(value["form"], "form"),
                container=_text(value["container"], "container"),
                codec=_text(value["codec"], "codec"),
                codec_scale=None if value["codec_scale"] is None else _hex(value["codec_scale"], "codec_scale"),
                row_bytes=_number(value["row_bytes"], "row_bytes"),
                files=tuple(_file(file) for file in value["files"]),
                parts=tuple(_part(part) for part in value["parts"]),
                tensors=tuple(_tensor(tensor) for tensor in value["tensors"]),
                scale_tensors=tuple(_scale(scale) for scale in value["scale_tensors"]),
                left_out=_number(value["left_out"], "left_out"),
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, InvalidInput):
                raise
            raise InvalidInput(
                f"source: {type(error).__name__} {error}, expected the entries of a source; {_COPY_AGAIN}"
            ) from None
        record._check()
        return record

    def check_rows(self, spec: AddressSpec) -> None:
        """`InvalidInput` where a tensor holds rows that `spec` does not have."""
        n_rows = {layer.layer_id: layer.n_rows for layer in spec.layers}
        for tensor in self.tensors:
            last = tensor.first_row + tensor.n_rows
            _need(
                last <= n_rows.get(tensor.layer_id, 0),
                f"tensor {tensor.name!r} with row {last - 1} of layer {tensor.layer_id}",
                "a row of the spec",
            )

    def _check(self) -> None:
        position = 0
        for part in self.parts:
            holds = part.start == position and part.n_bytes > 0 and part.cell_rows > 0
            _need(holds and part.cell_rows * part.n_bytes <= part.cell_bytes, f"part {part.name!r}", "within its cells")
            position += part.n_bytes
        _need(position == self.row_bytes, f"parts of {position} bytes", f"records of {self.row_bytes}")
        names = [file.name for file in self.files]
        _need(len(set(names)) == len(names), "file names", "each one once")
        for tensor in self.tensors:
            within = tensor.file < len(self.files) and tensor.part < len(self.parts) and tensor.n_rows > 0
            _need(within, f"tensor {tensor.name!r}", "a file, a part and rows of this source")
        for scale in self.scale_tensors:
            _need(scale.file < len(self.files), f"scale {scale.name!r}", "a file of this source")


def source_record(source: Source) -> dict[str, Any]:
    """What the manifest of a table made from `source` says of it."""
    return SourceRecord.of(source).to_json()


def _file(value: Any) -> RecordedFile:
    name = _text(value["name"], "a file's name")
    _need(name not in ("", ".", "..") and not set(name) & set("/\\\0"), f"file name {name!r}", "no directory")
    return RecordedFile(
        name=name,
        alignment=_number(value["alignment"], f"{name}: alignment"),
        metadata=tuple((_text(key, name), _text(text, name)) for key, text in value["metadata"]),
    )


def _part(value: Any) -> Part:
    name = _text(value["name"], "a part's name")
    numbers = {
        key: _number(value[key], f"part {name!r}: {key}") for key in ("start", "n_bytes", "cell_rows", "cell_bytes")
    }
    return Part(name=name, **numbers)


def _tensor(value: Any) -> RecordedTensor:
    name = _text(value["name"], "a tensor's name")
    keys = ("file", "start", "layer_id", "part", "first_row", "n_rows")
    return RecordedTensor(
        name=name,
        dtype=_text(value["dtype"], f"tensor {name!r}: dtype"),
        shape=_shape(value["shape"], f"tensor {name!r}: shape"),
        **{key: _number(value[key], f"tensor {name!r}: {key}") for key in keys},
    )


def _scale(value: Any) -> RecordedScale:
    name = _text(value["name"], "a scale's name")
    return RecordedScale(
        name=name,
        dtype=_text(value["dtype"], f"scale {name!r}: dtype"),
        shape=_shape(value["shape"], f"scale {name!r}: shape"),
        file=_number(value["file"], f"scale {name!r}: file"),
        start=_number(value["start"], f"scale {name!r}: start"),
        data=_hex(value["data"], f"scale {name!r}: data"),
    )


def _shape(values: Iterable[Any], where: str) -> tuple[int, ...]:
    return tuple(_number(value, where) for value in values)


def _text(value: Any, where: str) -> str:
    _need(isinstance(value, str), f"{where} {value!r}", "a text")
    return str(value)


def _hex(value: Any, where: str) -> str:
    text = _text(value, where)
    _need(bytes.fromhex(text).hex() == text, f"{where} {text!r}", "hexadecimal digits")
    return text


def _number(value: Any, where: str) -> int:
    number = int_from_json(value, f"source: {where}")
    _need(number >= 0, f"{where} {number}", "0 or more")
    return number


def _need(holds: bool, what: str, expected: str) -> None:
    if not holds:
        raise InvalidInput(f"source: found {what}, expected {expected}; {_COPY_AGAIN}")
