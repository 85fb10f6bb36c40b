"""What a table is, from its manifest alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engram_tables.fetch.table import Table


def inspect_table(table: Table) -> dict[str, Any]:
    """Facts about an open table: addressing, codec, layout, sizes, vocabulary and shards; no row is read."""
    stored, spec = table.stored, table.spec
    vocabulary = stored.manifest.vocabulary
    return {
        "schema": "engram.inspect-table/1",
        "path": str(table.path),
        "name": spec.name,
        "provenance": spec.provenance,
        "fingerprint": spec.fingerprint,
        "orders": list(spec.orders),
        "heads": list(spec.heads),
        "row_width": stored.manifest.row_width,
        "codec": stored.codec.name,
        "layout": stored.layout.name,
        "row_bytes": stored.row_bytes,
        "n_rows": spec.n_rows,
        "rows_per_token": spec.n_columns * len(spec.layers),
        "bytes_per_token": spec.n_columns * len(spec.layers) * stored.row_bytes,
        "file_bytes": sum(shard.file_bytes for shard in stored.shards),
        "vocab_sha256": None if vocabulary is None else vocabulary.map_sha256,
        "layers": [
            {
                "layer_id": layer.layer_id,
                "n_rows": layer.n_rows,
                "shards": [
                    {
                        "path": str(stored.shards[idx].path.relative_to(table.path)),
                        "first_row": stored.shards[idx].first_row,
                        "n_rows": stored.shards[idx].n_rows,
                        "file_bytes": stored.shards[idx].file_bytes,
                    }
                    for idx in stored.layer_shards(layer.layer_id)
                ],
            }
            for layer in spec.layers
        ],
    }
