"""What headers alone say of a table, a checkpoint, a GGUF or raw rows: contents, addressing, and where rows lie.

No row is read. Of files behind a URL only the ranges of headers are fetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_tables.address.spec import AddressSpec
from engram_tables.byte_files import ByteFile, Folder, open_place
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.gguf_file import read_gguf
from engram_tables.inspect.counted_files import CountedFile, CountedFolder, ReadCount
from engram_tables.inspect.page_costs import touched_pages
from engram_tables.safetensors_file import checkpoint_headers
from engram_tables.storage.extents import Extent, n_rows_of
from engram_tables.storage.sources.links import check_links
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.source import Source, closing
from engram_tables.storage.table.layout import MANIFEST_NAME
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.table_source import open_remote_table
from engram_tables.units import PAGE_BYTES

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.storage.sources.opening import RawGeometry

SCHEMA = "engram.inspect-header/1"
_GGUF = ".gguf"
_MOST_TENSORS = 16
"""Of the largest tensors, where no rows are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a user knows of the rows beyond what the headers say; see `open_source`."""

    spec: AddressSpec | None = None
    config: Path | None = None
    vocabulary: Vocabulary | None = None
    eos: int | None = None
    revision: str | None = None
    raw: RawGeometry | None = None
    opaque: bool = False


def inspect_header(
    where: str | Path, *, asked: Asked | None = None, rows: Sequence[tuple[int, int]] = ()
) -> dict[str, Any]:
    """The record of a place, as JSON values.

    Parameters
    ----------
    where
        A path or URL of a table, a checkpoint's directory or file, a GGUF, or raw rows.
    rows
        (layer id, row) whose bytes are to be found.

    Raises
    ------
    InvalidInput
        Nothing that holds tensors is there, a damaged header, or a row that is not in it.
    TableError
        A table whose manifest or headers are damaged.

    Notes
    -----
    A contradiction between what tensors say and what the addressing derives is part of the record, not an error.
    """
    asked = asked or Asked()
    counted = ReadCount()
    source, manifest, difference, problem = None, None, None, None
    why: InvalidInput | SpecMismatch | None = None
    place = _place(where, asked, counted)
    try:
        manifest, source = _opened(place, asked)
    except SpecMismatch as error:
        difference, why = str(error), error
    except InvalidInput as error:
        problem, why = str(error), error
    if source is None:
        if rows:
            raise InvalidInput(f"{where}: found no rows whose place is known: {difference or problem}")
        # What was opened to no end is closed by now.
        try:
            contents = _unknown(_place(where, asked, counted))
        except InvalidInput as error:
            # Nothing can be listed: what was said first says why.
            raise (why or error) from None
    else:
        with closing(source):
            contents = _known(source, manifest, rows)
    return {
        "schema": SCHEMA,
        "where": str(where),
        "bytes_read": counted.bytes_read,
        "n_reads": counted.n_reads,
        "agrees": False if difference is not None else True if source is not None else None,
        "difference": difference,
        "problem": problem,
        **contents,
    }


def _place(where: str | Path, asked: Asked, counted: ReadCount) -> CountedFile | CountedFolder:
    place = open_place(where, revision=asked.revision)
    return CountedFolder(place, counted) if isinstance(place, Folder) else CountedFile(place, counted)


def _opened(place: CountedFile | CountedFolder, asked: Asked) -> tuple[Manifest | None, Source]:
    """A table with its manifest, or anything else that has rows."""
    if isinstance(place, CountedFolder) and (manifest := place.find(MANIFEST_NAME)) is not None:
        manifest.close()
        return open_remote_table(place)
    try:
        source = open_source(
            place,
            spec=asked.spec,
            config=asked.config,
            vocabulary=asked.vocabulary,
            eos=asked.eos,
            raw=asked.raw,
            opaque=asked.opaque,
        )
    except BaseException:
        if isinstance(place, CountedFile):
            place.close()
        raise
    return None, source


# Where the rows are known.


def _known(source: Source, manifest: Manifest | None, rows: Sequence[tuple[int, int]]) -> dict[str, Any]:
    return {
        "form": source.form,
        "container": source.container,
        "codec": source.codec.name,
        "layout": None if manifest is None else manifest.layout,
        "row_width": source.spec.row_width,
        "row_bytes": source.row_bytes,
        "parts": [asdict(part) for part in source.parts],
        "spec": _spec(source.spec),
        "layers": [_layer(source, layer_id) for layer_id in source.spec.layer_ids],
        "files": [_file(source, file_idx) for file_idx in range(len(source.files))],
        "n_left_out": len(source.left_out),
        "notes": list(source.notes),
        "rows": [_row(source, layer_id, row) for layer_id, row in rows],
    }


def _spec(spec: AddressSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "provenance": spec.provenance,
        "fingerprint": spec.fingerprint,
        "orders": list(spec.orders),
        "heads": list(spec.heads),
        "canonical_size": spec.canonical_size,
    }


def _layer(source: Source, layer_id: int) -> dict[str, Any]:
    owned = source.owned(layer_id)
    n_here = n_rows_of({layer_id: owned})
    n_pages = touched_pages(source.parts, _extents(source, layer_id))
    return {
        "layer_id": layer_id,
        "n_rows": source.spec.layer(layer_id).n_rows,
        "n_rows_here": n_here,
        "owned": [list(ends) for ends in owned],
        "n_pages": n_pages,
        "pages_per_row": n_pages / n_here if n_here else None,
        "reads_per_row": len(source.parts),
    }


def _extents(source: Source, layer_id: int) -> list[Extent]:
    return [extent for extent in source.extents if extent.layer_id == layer_id]


def _file(source: Source, file_idx: int) -> dict[str, Any]:
    file = source.files[file_idx]
    return {
        "where": file.where,
        "file_bytes": file.file_bytes,
        "tensors": [
            {
                "name": tensor.name,
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "offset": tensor.start,
                "n_bytes": tensor.stop - tensor.start,
                "layer_id": tensor.layer_id,
                "part": source.parts[tensor.part_idx].name,
                "first_row": tensor.first_row,
                "n_rows": tensor.n_rows,
            }
            for tensor in source.tensors
            if tensor.file_idx == file_idx
        ],
    }


def _row(source: Source, layer_id: int, row: int) -> dict[str, Any]:
    layers = {layer.layer_id: layer.n_rows for layer in source.spec.layers}
    if not 0 <= row < layers.get(layer_id, 0):
        raise InvalidInput(
            f"row {layer_id}:{row}: not in {source.spec.name}, expected a row below its layer's count in "
            f"{', '.join(f'{layer}:{n_rows}' for layer, n_rows in layers.items())}; choose one of them"
        )
    parts = []
    for extent in _extents(source, layer_id):
        if extent.first_row <= row < extent.first_row + extent.n_rows:
            part = source.parts[extent.part_idx]
            offset = extent.offset + part.offset(row - extent.first_row)
            first_page, last_page = offset // PAGE_BYTES, (offset + part.n_bytes - 1) // PAGE_BYTES
            parts.append({
                "part": part.name,
                "file": source.files[extent.file_idx].where,
                "offset": offset,
                "n_bytes": part.n_bytes,
                "first_page": first_page,
                "n_pages": last_page - first_page + 1,
            })  # fmt: skip
    if not parts:
        raise InvalidInput(
            f"row {layer_id}:{row}: {source.where} holds other rows of this layer, expected one of "
            f"{source.owned(layer_id)}; ask the rank or the file that holds it"
        )
    return {"layer_id": layer_id, "row": row, "parts": parts}


# Where they are not.


def _unknown(place: CountedFile | CountedFolder) -> dict[str, Any]:
    """The containers as such: how many tensors, and the largest of them."""
    if isinstance(place, CountedFolder) and place.local_path is not None:
        check_links(place.local_path)
    files = _gguf_files(place) or _safetensors_files(place)
    return {
        "form": None,
        "container": None,
        "codec": None,
        "layout": None,
        "row_width": None,
        "row_bytes": None,
        "parts": [],
        "spec": None,
        "layers": [],
        "files": files,
        "n_left_out": sum(file.pop("n_tensors") - len(file["tensors"]) for file in files),
        "notes": [],
        "rows": [],
    }


def _safetensors_files(place: CountedFile | CountedFolder) -> list[dict[str, Any]]:
    found = []
    for header in checkpoint_headers(place):
        tensors = [(name, t.dtype, t.shape, t.start, t.stop - t.start) for name, t in header.tensors.items()]
        found.append(_plain_file(header.file, tensors))
        header.file.close()
    return found


def _gguf_files(place: CountedFile | CountedFolder) -> list[dict[str, Any]]:
    if isinstance(place, CountedFile):
        files: list[ByteFile] = [place] if place.name.endswith(_GGUF) else []
    else:
        files = [place.open(name) for name in place.names() if name.endswith(_GGUF)]
    found = []
    for file in files:
        tensors = read_gguf(file, lambda _: False).tensors
        found.append(_plain_file(file, [(n, t.type_name, t.dims, t.offset, t.n_bytes) for n, t in tensors.items()]))
        file.close()
    return found


def _plain_file(file: ByteFile, tensors: list[tuple[str, str, tuple[int, ...], int, int]]) -> dict[str, Any]:
    largest = sorted(tensors, key=lambda tensor: -tensor[4])[:_MOST_TENSORS]
    return {
        "where": file.where,
        "file_bytes": file.file_bytes,
        "n_tensors": len(tensors),
        "tensors": [
            {
                "name": name, "dtype": dtype, "shape": list(shape), "offset": offset, "n_bytes": n_bytes,
                "layer_id": None, "part": None, "first_row": None, "n_rows": None,
            }
            for name, dtype, shape, offset, n_bytes in sorted(largest, key=lambda tensor: tensor[3])
        ],
    }  # fmt: skip
