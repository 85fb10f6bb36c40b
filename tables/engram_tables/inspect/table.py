"""What a table is, from its manifest alone; or what a checkpoint is that is read where it lies."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engram_tables.storage.extents import Extent, n_rows_of
from engram_tables.storage.row_files import RowFiles
from engram_tables.storage.sources.opening import SourceRows
from engram_tables.storage.table.reader import StoredTable

if TYPE_CHECKING:
    from engram_tables.fetch.table import Table


def inspect_table(table: Table) -> dict[str, Any]:
    """Facts about an open table: addressing, codec, layout, sizes, vocabulary and shards; no row is read.

    What only a manifest says (layout, digests, vocabulary, rank) is None for a checkpoint, and `has_digests` False.
    """
    stored, spec = table.stored, table.spec
    manifest = stored.manifest if isinstance(stored, StoredTable) else None
    vocabulary = None if manifest is None else manifest.vocabulary
    return {
        "schema": "engram.inspect-table/1",
        "path": str(table.path),
        "form": stored.source.form if isinstance(stored, SourceRows) else "table",
        "has_digests": manifest is not None,
        "name": spec.name,
        "provenance": spec.provenance,
        "fingerprint": spec.fingerprint,
        "orders": list(spec.orders),
        "heads": list(spec.heads),
        "row_width": spec.row_width if manifest is None else manifest.row_width,
        "codec": stored.codec.name,
        "layout": None if manifest is None else manifest.layout,
        "row_bytes": stored.row_bytes,
        "parts": [asdict(part) for part in stored.parts],
        "n_rows": spec.n_rows,
        "n_rows_here": n_rows_of({layer_id: stored.owned(layer_id) for layer_id in spec.layer_ids}),
        "rank": None if manifest is None or manifest.rank is None else asdict(manifest.rank),
        "rows_per_token": spec.n_columns * len(spec.layers),
        "bytes_per_token": spec.n_columns * len(spec.layers) * stored.row_bytes,
        "file_bytes": sum(file.file_bytes for file in stored.files),
        "vocab_sha256": spec.vocab_sha256 if vocabulary is None else vocabulary.map_sha256,
        "has_vocabulary": vocabulary is not None,
        "bundles": _bundles(table),
        "layers": [
            {
                "layer_id": layer.layer_id,
                "n_rows": layer.n_rows,
                "owned": [list(ends) for ends in stored.owned(layer.layer_id)],
                "shards": [_shard(stored, extent) for extent in stored.extents if extent.layer_id == layer.layer_id],
            }
            for layer in spec.layers
        ],
    }


def _bundles(table: Table) -> dict[str, Any] | None:
    """The bundles that the table was opened with, or None."""
    from engram_tables.fetch.bundles import BundledTable

    if not isinstance(table, BundledTable):
        return None
    directory = table.bundles.directory
    manifest = directory.manifest
    return {
        "path": str(directory.path),
        "budget_bytes": manifest.budget_bytes,
        "least_count": manifest.least_count,
        "counts_sha256": manifest.counts_sha256,
        "file_bytes": manifest.total_bytes,
        "orders": [
            {"order": order, "n_ngrams": n_ngrams, "bundle_bytes": n_heads * manifest.row_bytes}
            for order, n_heads, n_ngrams in zip(manifest.orders, manifest.heads, manifest.n_ngrams, strict=True)
        ],
        "n_bundles": sum(map(sum, manifest.n_bundles)),
    }


def file_name(stored: RowFiles, file_idx: int) -> str:
    """A file's name below the table or checkpoint."""
    path = Path(stored.files[file_idx].path)
    return str(path.relative_to(stored.path)) if path != stored.path and path.is_relative_to(stored.path) else path.name


def _shard(stored: RowFiles, extent: Extent) -> dict[str, Any]:
    return {
        "path": file_name(stored, extent.file_idx),
        "part": stored.parts[extent.part_idx].name,
        "first_row": extent.first_row,
        "n_rows": extent.n_rows,
        "offset": extent.offset,
        "file_bytes": stored.files[extent.file_idx].file_bytes,
    }
