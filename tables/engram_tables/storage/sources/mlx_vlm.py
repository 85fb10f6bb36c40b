"""mlx-vlm's `ple-store.json`: a manifest that names ranges of safetensors files, or one file of whole records.

A manifest protects nothing, so every range is held against the header of the file that it points into.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engram_tables.address.released.tensors import holds_tables
from engram_tables.address.spec import AddressSpec
from engram_tables.byte_files import ByteFile, Folder, LocalFolder
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.safetensors_file import (
    SafetensorsHeader,
    checkpoint_headers,
    checkpoint_names,
    read_safetensors_header,
)
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.sources.assembling import Container, Stretch, assemble
from engram_tables.storage.sources.links import check_link
from engram_tables.storage.sources.pieces import BIASES, SCALES, WEIGHTS, Piece, find_pieces
from engram_tables.storage.sources.row_formats import RowFormat, packed, row_format
from engram_tables.storage.sources.safetensors_tables import check_findings, container_of, stretches_of
from engram_tables.storage.sources.source import Source

STORE_NAME = "ple-store.json"
_VERSION = 2
_MAX_STORE_BYTES = 2**26
_MAX_SHARDS = 2**20
_RANGES, _INTERLEAVED = "safetensors_ranges", "interleaved_q4"
_PARTS = {"weight": WEIGHTS, "scales": SCALES, "biases": BIASES}
_AFFINE = {"bits": 4, "group_size": 32, "mode": "affine"}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Store:
    """The fields of a manifest that decide rows."""

    file: ByteFile
    folder: Folder
    layout: str
    row_width: int
    n_rows: int
    is_affine: bool
    fields: dict[str, Any]

    def invalid(self, found: str, expected: str) -> InvalidInput:
        return InvalidInput(f"{self.file.where}: found {found}, expected {expected}; prepare the store anew")


def mlx_vlm_source(
    folder: Folder, *, spec: AddressSpec, layers: Sequence[int] | None, opaque: bool, opened: list[ByteFile]
) -> Source:
    """The table that the manifest in `folder` describes.

    Parameters
    ----------
    opened
        Receives every file that is opened here, those without rows too.

    Raises
    ------
    InvalidInput
        No such manifest, or one whose ranges are not those of its files' tensors.
    SpecMismatch
        Other sizes than the spec's.
    """
    store = _read_store(folder)
    if len(spec.layers) != 1 or spec.layers[0].n_rows != store.n_rows:
        stated = ", ".join(f"{layer.n_rows} in layer {layer.layer_id}" for layer in spec.layers)
        raise SpecMismatch(
            f"{store.file.where}: found one table of {store.n_rows} rows, the spec {spec.name} says {stated}; they "
            "belong to different models"
        )
    if spec.row_width not in (None, store.row_width):
        raise SpecMismatch(
            f"{store.file.where}: found rows of {store.row_width} values, the spec {spec.name} says {spec.row_width}; "
            "they belong to different models"
        )
    spec = replace(spec, row_width=store.row_width)
    _check_constants(folder, spec, opened)
    if store.layout == _INTERLEAVED:
        form, stretches, containers = _interleaved(store, spec, opaque=opaque, opened=opened)
    else:
        form, stretches, containers = _ranges(store, spec, opaque=opaque, opened=opened)
    return assemble(
        where=folder.where,
        form="mlx-vlm",
        container="raw" if store.layout == _INTERLEAVED else "safetensors",
        spec=spec,
        row_format=form,
        stretches=stretches,
        containers=containers,
        layers=layers,
        is_whole=True,
    )


def _check_constants(folder: Folder, spec: AddressSpec, opened: list[ByteFile]) -> None:
    """Hold the tensors beside the manifest against the spec: a view of a model keeps its hash's constants there."""
    if not checkpoint_names(folder):
        return
    headers = checkpoint_headers(folder)
    opened += [header.file for header in headers]
    if holds_tables(headers):
        check_findings(folder, headers, spec)


def _read_store(folder: Folder) -> _Store:
    file = folder.open(STORE_NAME)
    if file.file_bytes > _MAX_STORE_BYTES:
        raise InvalidInput(f"{file.where}: found {file.file_bytes} bytes, expected {_MAX_STORE_BYTES} at most")
    try:
        fields = json.loads(file.read(0, file.file_bytes).decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        if isinstance(error, InvalidInput):
            raise
        raise InvalidInput(f"{file.where}: no JSON ({error}), expected an object; prepare the store anew") from None
    finally:
        file.close()
    if not isinstance(fields, dict) or fields.get("version") != _VERSION:
        found = f"version {reprlib.repr(fields.get('version'))}" if isinstance(fields, dict) else type(fields).__name__
        raise InvalidInput(f"{file.where}: found {found}, expected an object of version {_VERSION}")
    store = _Store(
        file=file,
        folder=folder,
        layout=str(fields.get("layout", _RANGES)),
        row_width=_size(file.where, fields, "row_width", most=2**20),
        n_rows=_size(file.where, fields, "row_count", most=2**40),
        is_affine=fields.get("quantization") == _AFFINE,
        fields=fields,
    )
    if store.layout not in (_RANGES, _INTERLEAVED):
        raise store.invalid(f"layout {reprlib.repr(fields.get('layout'))}", f"{_RANGES} or {_INTERLEAVED}")
    return store


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise ValueError("a key twice")
    return unique


def _size(where: str, fields: dict[str, Any], key: str, *, most: int, least: int = 1) -> int:
    value = fields.get(key)
    if type(value) is not int or not least <= value <= most:
        raise InvalidInput(f"{where}: {key} is {reprlib.repr(value)}, expected {least} to {most}; prepare it anew")
    return value


def _plain_name(store: _Store, value: Any) -> str:
    """A name without directories, as the format demands."""
    if not isinstance(value, str) or not value or set(value) & {"/", "\\", "\0"} or value in (".", ".."):
        raise store.invalid(f"the file {reprlib.repr(value)}", "a name without directories")
    return value


def _interleaved(
    store: _Store, spec: AddressSpec, *, opaque: bool, opened: list[ByteFile]
) -> tuple[RowFormat, list[Stretch], list[Container]]:
    """One file of whole records, the parts of each behind one another."""
    stride = _size(store.file.where, store.fields, "row_stride", most=2**30)
    affine_bytes = store.row_width * 5 // 8
    if store.is_affine and store.row_width % 32 == 0 and stride == affine_bytes:
        codec = get_codec("int4-g32")
    elif opaque:
        codec = get_codec(f"opaque-{stride}")
    else:
        raise store.invalid(
            f"records of {stride} bytes with quantization {reprlib.repr(store.fields.get('quantization'))}",
            f"{affine_bytes} bytes of {_AFFINE}, which a codec reads (or take the rows as opaque bytes: --opaque)",
        )
    name = _plain_name(store, store.fields.get("data_file"))
    if store.folder.local_path is not None:
        check_link(store.folder.local_path, store.folder.local_path / name)
    file = store.folder.open(name)
    opened.append(file)
    if file.file_bytes != store.n_rows * stride:
        raise store.invalid(f"{file.where} with {file.file_bytes} bytes", f"{store.n_rows} records of {stride} bytes")
    stretch = Stretch(
        name="",
        dtype="U8",
        shape=(store.n_rows, stride),
        file=file,
        start=0,
        stop=file.file_bytes,
        layer_id=spec.layer_ids[0],
        part_idx=0,
        first_row=0,
        n_rows=store.n_rows,
    )
    return packed(codec, store.row_width), [stretch], [Container(file=file, alignment=1, metadata={})]


def _ranges(
    store: _Store, spec: AddressSpec, *, opaque: bool, opened: list[ByteFile]
) -> tuple[RowFormat, list[Stretch], list[Container]]:
    """Tensors of other files, piece by piece: their names must say the same as the manifest."""
    entries = store.fields.get("shards")
    if not isinstance(entries, list) or not 0 < len(entries) <= _MAX_SHARDS:
        raise store.invalid(f"shards {reprlib.repr(entries)}", f"a list of 1 to {_MAX_SHARDS}")
    headers = _headers(store, entries, opened)
    found = find_pieces(store.file.where, list(headers.values()))
    if found is None or found.form.name != "qwen" or len(found.pieces) != len(entries):
        n_found = 0 if found is None else len(found.pieces)
        raise store.invalid(f"{len(entries)} shards", f"the {n_found} of the tables in its files")
    end = 0
    stretches = []
    for piece, entry in zip(found.pieces, entries, strict=True):
        _check_entry(store, piece, entry, end)
        stretches += stretches_of(piece, spec.layer_ids[0], end)
        end += piece.n_rows
    if any(piece.columns() != found.pieces[0].columns() for piece in found.pieces):
        raise store.invalid("shards of several formats", "one")
    # No entry of a store speaks of a scale for all rows: with one beside them its rows are of no known format.
    scalars = [scalar for of_layer in found.scalars.values() for scalar in of_layer]
    form = row_format(found.pieces[0], row_width=store.row_width, scalars=scalars, metadata={}, opaque=opaque)
    if form.codec.name == "int4-g32" and not store.is_affine:
        stated = reprlib.repr(store.fields.get("quantization"))
        raise store.invalid(f"quantization {stated}", f"{_AFFINE}, as its tensors have it")
    return form, stretches, [container_of(header) for header in headers.values()]


def _headers(store: _Store, entries: list[Any], opened: list[ByteFile]) -> dict[str, SafetensorsHeader]:
    """Of every file that the entries name."""
    root = _root(store)
    headers: dict[str, SafetensorsHeader] = {}
    for number, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise store.invalid(f"shard {number} as {reprlib.repr(entry)}", "an object")
        for tensor in (entry[key] for key in _PARTS if key in entry):
            if not isinstance(tensor, dict):
                raise store.invalid(f"a tensor of shard {number} as {reprlib.repr(tensor)}", "an object")
            name = _plain_name(store, tensor.get("file"))
            if name in headers:
                continue
            if root.local_path is not None:
                check_link(root.local_path, root.local_path / name)
            file = root.open(name)
            opened.append(file)
            headers[name] = read_safetensors_header(file)
    return headers


def _check_entry(store: _Store, piece: Piece, entry: dict[str, Any], first_row: int) -> None:
    """Raise InvalidInput unless the entry says of a piece what the headers of its files say."""
    stated: dict[str, Any] = {key: entry.get(key) for key in ("row_start", "row_count")}
    held: dict[str, Any] = {"row_start": first_row, "row_count": piece.n_rows}
    for key, part in _PARTS.items():
        tensor = piece.tensors.get(part)
        if key in entry:
            stated[key] = {name: entry[key].get(name) for name in ("file", "offset", "dtype", "shape")}
        if tensor is not None:
            place = {"file": tensor.header.name, "offset": tensor.start}
            held[key] = {**place, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    for key in [*held, *stated]:
        if stated.get(key) != held.get(key):
            raise store.invalid(
                f"{key} of the shard from row {first_row} on as {stated.get(key)}",
                f"{held.get(key)}, where {piece.stem} lies",
            )


def _root(store: _Store) -> Folder:
    """Where the files of the ranges lie: the format allows any directory of this machine, and only here."""
    root = store.fields.get("source_root", ".")
    if not isinstance(root, str) or "\0" in root:
        raise store.invalid(f"source_root {reprlib.repr(root)}", "a directory")
    if Path(root) == Path():
        return store.folder
    if store.folder.local_path is None:
        raise store.invalid(f"source_root {root!r}", "'.', since the store lies behind a URL")
    path = store.folder.local_path / root
    if not path.is_dir():
        raise store.invalid(f"source_root {root!r}, where no directory is", "the directory of the checkpoint")
    return LocalFolder(path)
