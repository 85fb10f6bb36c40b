"""The files of a table's rows: what the manifest says of each, how they are cut, and their headers.

One file holds consecutive rows of one part of one layer. Everything here follows from the manifest; no file is
opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from engram_tables.errors import InvalidInput
from engram_tables.storage.extents import Part
from engram_tables.storage.table.layout import shard_path
from engram_tables.units import PAGE_BYTES, canonical_json

if TYPE_CHECKING:
    from engram_tables.storage.table.manifest import Manifest

ROWS_SCHEMA = "engram.rows/2"
NO_DIGEST = "0" * 64

_MAX_SHARDS = 99_999
_MAX_HEADER_BYTES = 16 * PAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRecord:
    """One file of rows.

    Attributes
    ----------
    path
        Below the table's directory, with `/`.
    part
        Which part of every record it holds, by name.
    first_row, n_rows
        The rows it holds, numbered within the layer.
    data_offset
        Bytes from the start of the file to the first row; a multiple of 4096.
    header_sha256
        Digest of the bytes before `data_offset`.
    block_sha256
        Digest of each `block_bytes` of the file, header included; the last block may be shorter.
    """

    path: str
    layer_id: int
    part: str
    first_row: int
    n_rows: int
    file_bytes: int
    data_offset: int
    header_sha256: str = NO_DIGEST
    block_sha256: tuple[str, ...] = ()


def shard_header(manifest: Manifest, shard: ShardRecord) -> bytes:
    """The bytes before `shard.data_offset`: a safetensors header of one U8 tensor, padded with spaces.

    `shard` may still have a `data_offset` of 0; the result's length is then the one it needs.
    """
    part = manifest.parts[manifest.part_idx(shard.part)]
    metadata = {
        "schema": ROWS_SCHEMA,
        "fingerprint": manifest.spec.fingerprint,
        "codec": manifest.codec,
        "layout": manifest.layout,
        "row_width": str(manifest.row_width),
        "row_bytes": str(manifest.row_bytes),
        "part": shard.part,
        "layer_id": str(shard.layer_id),
        "first_row": str(shard.first_row),
        "n_rows": str(shard.n_rows),
    }
    if manifest.codec_scale is not None:
        metadata["codec_scale"] = manifest.codec_scale
    tensor = {
        "dtype": "U8",
        "shape": [part.n_cells(shard.n_rows), part.cell_bytes],
        "data_offsets": [0, part.data_bytes(shard.n_rows)],
    }
    text = canonical_json({"__metadata__": metadata, shard.part: tensor})
    n_header = -(-(8 + len(text)) // PAGE_BYTES) * PAGE_BYTES
    return (n_header - 8).to_bytes(8, "little") + text.ljust(n_header - 8, b" ")


def plan_shards(empty: Manifest, shard_bytes: int) -> Iterator[ShardRecord]:
    """The files of the table of `empty`, a manifest without shards, their digests still `NO_DIGEST`.

    Parameters
    ----------
    shard_bytes
        Upper bound of a file.

    Raises
    ------
    InvalidInput
        Files that hold no row, or too many files.
    """
    for layer in empty.spec.layers:
        owned = empty.owned_rows(layer.layer_id)
        if not owned:
            continue
        for part in empty.parts:
            whole = ShardRecord(
                path="", layer_id=layer.layer_id, part=part.name, first_row=owned[-1][1], n_rows=layer.n_rows,
                file_bytes=0, data_offset=0,
            )  # fmt: skip
            data_offset = len(shard_header(empty, whole))
            rows_per_shard = _rows_per_shard(part, shard_bytes, data_offset)
            n_shards = sum(-(-(stop - start) // rows_per_shard) for start, stop in owned)
            if n_shards > _MAX_SHARDS:
                raise InvalidInput(
                    f"shard size: {shard_bytes} bytes make {n_shards} shards of layer {layer.layer_id}, expected "
                    f"{_MAX_SHARDS} at most; choose a larger one"
                )
            cuts = ((first, stop) for start, stop in owned for first in range(start, stop, rows_per_shard))
            for shard_idx, (first_row, stop) in enumerate(cuts):
                n_rows = min(rows_per_shard, stop - first_row)
                file_bytes = data_offset + part.data_bytes(n_rows)
                yield replace(
                    whole,
                    path=shard_path(layer.layer_id, part.name, shard_idx, n_shards),
                    first_row=first_row,
                    n_rows=n_rows,
                    file_bytes=file_bytes,
                    data_offset=data_offset,
                    block_sha256=(NO_DIGEST,) * -(-file_bytes // empty.block_bytes),
                )


def check_shards(manifest: Manifest) -> None:
    """`InvalidInput` unless the shards are those that spec, layout and owned rows ask for, in their order."""
    n_known = 0
    for layer in manifest.spec.layers:
        for part in manifest.parts:
            n_known += _check_part(manifest, layer.layer_id, part, n_known)
    need(n_known == len(manifest.shards), "shards", len(manifest.shards), n_known)


def need(holds: bool, what: str, found: object, expected: object) -> None:
    """`InvalidInput` about a damaged table unless `holds`."""
    if not holds:
        raise InvalidInput(f"{what} is {found}, expected {expected}; copy or build the table again")


def _check_part(manifest: Manifest, layer_id: int, part: Part, n_before: int) -> int:
    """Hold the run of shards of one part of one layer, from number `n_before` on, to the rows; its length."""
    shards = manifest.shards[n_before:]
    n_shards = next(
        (k for k, shard in enumerate(shards) if (shard.layer_id, shard.part) != (layer_id, part.name)), len(shards)
    )
    where = f"layer {layer_id}, {part.name}"
    need(n_shards <= _MAX_SHARDS, f"{where}: shards", n_shards, f"{_MAX_SHARDS} at most")
    shard_idx = 0
    for start, stop in manifest.owned_rows(layer_id):
        row, full = start, 0
        while row < stop:
            need(shard_idx < n_shards, f"{where}: the end of its shards", f"row {row}", f"row {stop}")
            shard = shards[shard_idx]
            name = shard_path(layer_id, part.name, shard_idx, n_shards)
            need(shard.path == name, f"{where}: the path of a shard", repr(shard.path), repr(name))
            need(shard.first_row == row, f"{name}: first_row", shard.first_row, row)
            full = full or shard.n_rows
            need(shard.n_rows > 0, f"{name}: n_rows", shard.n_rows, "1 or more")
            need(shard.n_rows == min(full, stop - row), f"{name}: n_rows", shard.n_rows, min(full, stop - row))
            _check_bytes(manifest, shard, part)
            row, shard_idx = row + shard.n_rows, shard_idx + 1
    need(shard_idx == n_shards, f"{where}: shards", n_shards, shard_idx)
    return n_shards


def _check_bytes(manifest: Manifest, shard: ShardRecord, part: Part) -> None:
    offset_ok = 0 < shard.data_offset <= _MAX_HEADER_BYTES and shard.data_offset % PAGE_BYTES == 0
    need(offset_ok, f"{shard.path}: data_offset", shard.data_offset, f"a multiple of {PAGE_BYTES}")
    file_bytes = shard.data_offset + part.data_bytes(shard.n_rows)
    need(shard.file_bytes == file_bytes, f"{shard.path}: file_bytes", shard.file_bytes, file_bytes)
    n_blocks = -(-file_bytes // manifest.block_bytes)
    need(len(shard.block_sha256) == n_blocks, f"{shard.path}: blocks", len(shard.block_sha256), n_blocks)


def _rows_per_shard(part: Part, shard_bytes: int, data_offset: int) -> int:
    rows_per_shard = max(shard_bytes - data_offset, 0) // part.cell_bytes * part.cell_rows
    if rows_per_shard < 1:
        raise InvalidInput(
            f"shard size: found {shard_bytes} bytes, expected {data_offset + part.cell_bytes} or more, "
            "a header and one row; choose a larger one"
        )
    return rows_per_shard
