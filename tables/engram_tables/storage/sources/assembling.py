"""Stretches of rows put together to a source: every row once, in every part, within its file.

What a container could not protect is checked here against the spec, whoever found the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from engram_tables.address.spec import AddressSpec
from engram_tables.byte_files import ByteFile
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.storage.extents import Extent, Ranges, ranges_of
from engram_tables.storage.sources.row_formats import RowFormat
from engram_tables.storage.sources.source import ScaleTensor, Source, SourceTensor

_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Consecutive rows of one part in one file; `name`, `dtype` and `shape` as the container states them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: ByteFile
    start: int
    stop: int
    layer_id: int
    part_idx: int
    first_row: int
    n_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """What is known of one file beside its rows."""

    file: ByteFile
    alignment: int
    metadata: Mapping[str, str]
    tensor_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallTensor:
    """A tensor that was read whole."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: ByteFile
    start: int
    stop: int


def assemble(
    *,
    where: str,
    form: str,
    container: str,
    spec: AddressSpec,
    row_format: RowFormat,
    stretches: Sequence[Stretch],
    containers: Iterable[Container],
    small: Sequence[SmallTensor] = (),
    layers: Sequence[int] | None = None,
    is_whole: bool,
    notes: Sequence[str] = (),
) -> Source:
    """The source of `stretches`; files without rows are left open for the caller to close.

    Parameters
    ----------
    layers
        Those to take; all by default.
    is_whole
        Whether every row of these layers must be there.

    Raises
    ------
    InvalidInput
        Rows that are missing or there twice, parts of one record with different rows, bytes outside a file or used
        twice, or a layer that the spec does not have.
    SpecMismatch
        Another row width than the spec's.
    """
    spec = _with_width(where, spec, row_format)
    wanted = spec.layer_ids if layers is None else check_layers(where, spec, layers)
    kept = [stretch for stretch in stretches if stretch.layer_id in wanted]
    files = _files_of(kept)
    numbers = {id(file): file_idx for file_idx, file in enumerate(files)}
    extents = tuple(
        Extent(
            file_idx=numbers[id(stretch.file)],
            layer_id=stretch.layer_id,
            part_idx=stretch.part_idx,
            first_row=stretch.first_row,
            n_rows=stretch.n_rows,
            offset=stretch.start,
        )
        for stretch in sorted(kept, key=lambda s: (spec.layer_ids.index(s.layer_id), s.part_idx, s.first_row))
        if stretch.n_rows
    )
    _check_bytes(where, kept, row_format)
    _check_rows(where, spec, extents, row_format, wanted, is_whole=is_whole)
    tensors = sorted(
        (
            SourceTensor(
                name=s.name, dtype=s.dtype, shape=s.shape, file_idx=numbers[id(s.file)], start=s.start, stop=s.stop,
                layer_id=s.layer_id, part_idx=s.part_idx, first_row=s.first_row, n_rows=s.n_rows,
            )
            for s in kept
        ),
        key=lambda tensor: (tensor.file_idx, tensor.start, tensor.stop),
    )  # fmt: skip
    known = {id(container.file): container for container in containers}
    scales = _small_tensors(small, numbers)
    looked_at = {tensor.name for tensor in tensors} | {scale.name for scale in scales}
    return Source(
        where=where,
        form=form,
        container=container,
        files=files,
        metadata=tuple(dict(known[id(file)].metadata) for file in files),
        alignments=tuple(known[id(file)].alignment for file in files),
        spec=spec,
        codec=row_format.codec,
        row_bytes=row_format.row_bytes,
        parts=row_format.parts,
        extents=extents,
        tensors=tuple(tensors),
        left_out=tuple(name for file in files for name in known[id(file)].tensor_names if name not in looked_at),
        scale_tensors=scales,
        notes=tuple(notes),
    )


def layer_in(where: str, spec: AddressSpec, layer_id: int | None) -> int:
    """A layer that a name states, or the spec's only one where it states none."""
    if layer_id is None and len(spec.layers) == 1:
        return spec.layer_ids[0]
    if layer_id is None or layer_id not in spec.layer_ids:
        found = "a table without a layer's number" if layer_id is None else f"a table of layer {layer_id}"
        raise SpecMismatch(
            f"{where}: found {found}, the spec {spec.name} has layers {', '.join(map(str, spec.layer_ids))}; they "
            "belong to different models"
        )
    return layer_id


def _with_width(where: str, spec: AddressSpec, row_format: RowFormat) -> AddressSpec:
    if spec.row_width not in (None, row_format.row_width):
        raise SpecMismatch(
            f"{where}: found rows of {row_format.row_width} values, the spec {spec.name} says {spec.row_width}; they "
            "belong to different models"
        )
    return spec if spec.row_width is not None else replace(spec, row_width=row_format.row_width)


def check_layers(where: str, spec: AddressSpec, layers: Sequence[int]) -> tuple[int, ...]:
    """The same ids; `InvalidInput` for one that the caller asks for and the spec does not have."""
    unknown = [layer_id for layer_id in layers if layer_id not in spec.layer_ids]
    if unknown:
        raise InvalidInput(
            f"layers: found {', '.join(map(str, unknown))}, expected some of {', '.join(map(str, spec.layer_ids))} as "
            f"the spec {spec.name} of {where} has; choose among these"
        )
    return tuple(layers)


def _files_of(stretches: Iterable[Stretch]) -> tuple[ByteFile, ...]:
    """Files with rows, once each, by name and then as they come."""
    files = {id(stretch.file): stretch.file for stretch in stretches}
    return tuple(sorted(files.values(), key=lambda file: file.name))


def _check_bytes(where: str, stretches: Sequence[Stretch], row_format: RowFormat) -> None:
    """Every stretch has the bytes of its rows, within its file and for itself."""
    for stretch in stretches:
        part = row_format.parts[stretch.part_idx]
        n_bytes = (stretch.n_rows - 1) * part.cell_bytes + part.n_bytes if stretch.n_rows else 0
        if not 0 <= stretch.start <= stretch.stop <= stretch.file.file_bytes or stretch.stop - stretch.start != n_bytes:
            raise InvalidInput(
                f"{stretch.file.where}: found {stretch.name or 'rows'} at bytes {stretch.start} to {stretch.stop}, "
                f"expected {stretch.n_rows} rows of {part.cell_bytes} bytes within the file's "
                f"{stretch.file.file_bytes}; is it whole? copy it again"
            )
    by_file = sorted((s for s in stretches if s.n_rows), key=lambda s: (s.file.where, s.start))
    for before, stretch in pairwise(by_file):
        if before.file.where == stretch.file.where and stretch.start < before.stop:
            raise InvalidInput(
                f"{stretch.file.where}: found rows {stretch.first_row} on of layer {stretch.layer_id} at byte "
                f"{stretch.start}, expected them behind byte {before.stop}, where rows {before.first_row} on of layer "
                f"{before.layer_id} end; they overlap"
            )


def _check_rows(
    where: str,
    spec: AddressSpec,
    extents: Sequence[Extent],
    row_format: RowFormat,
    wanted: Sequence[int],
    *,
    is_whole: bool,
) -> None:
    for layer_id in wanted:
        n_rows = spec.layer(layer_id).n_rows
        if n_rows * row_format.row_bytes > _INT64_MAX:
            raise InvalidInput(f"{where}: found {n_rows} rows of {row_format.row_bytes} bytes, expected less than 2^63")
        owned: Ranges | None = None
        for part_idx, part in enumerate(row_format.parts):
            of_part = [e for e in extents if (e.layer_id, e.part_idx) == (layer_id, part_idx)]
            _check_order(where, layer_id, n_rows, of_part)
            ranges = ranges_of((replace(extent, part_idx=0) for extent in of_part), layer_id)
            if owned not in (None, ranges):
                raise InvalidInput(
                    f"{where}: found {part.name} of other rows of layer {layer_id} than {row_format.parts[0].name}, "
                    "expected both of the same; a file is missing or of another model"
                )
            owned = ranges
        if is_whole and owned != ((0, n_rows),):
            raise InvalidInput(_missing(where, spec, layer_id, owned or ()))


def _check_order(where: str, layer_id: int, n_rows: int, extents: Sequence[Extent]) -> None:
    end = 0
    for extent in extents:
        stop = extent.first_row + extent.n_rows
        if extent.first_row < end or stop > n_rows:
            raise SpecMismatch(
                f"{where}: found rows {extent.first_row} to {stop - 1} of layer {layer_id}, expected rows of {end} to "
                f"{n_rows - 1}, each once; a file belongs to another table"
            )
        end = stop


def _missing(where: str, spec: AddressSpec, layer_id: int, owned: Ranges) -> str:
    """What to say of rows that are not there."""
    n_rows = spec.layer(layer_id).n_rows
    if not owned:
        return (
            f"{where}: found no row of layer {layer_id}, expected {n_rows}, as the spec {spec.name} says; copy the "
            "file that holds them, or name the layers to take"
        )
    first = owned[0][1] if owned[0][0] == 0 else 0
    stop = next((start for start, _ in owned if start > first), n_rows)
    return (
        f"{where}: rows {first} to {stop - 1} of layer {layer_id} are missing, expected all of its {n_rows}; copy the "
        "file that holds them"
    )


def _small_tensors(small: Iterable[SmallTensor], numbers: Mapping[int, int]) -> tuple[ScaleTensor, ...]:
    """Those in files with rows, read."""
    found = [
        ScaleTensor(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            data=tensor.file.read(tensor.start, tensor.stop - tensor.start).hex(),
            file_idx=numbers[id(tensor.file)],
            start=tensor.start,
        )
        for tensor in small
        if id(tensor.file) in numbers
    ]
    return tuple(sorted(found, key=lambda tensor: (tensor.file_idx, tensor.start)))
