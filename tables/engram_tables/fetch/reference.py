"""The slow twin of every engine: one seek and one read a row, by the rules of the format document alone."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from engram_tables.storage.reader import StoredTable


def read_rows(table: StoredTable, layer_id: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The records of `rows`, integers (n,), as uint8 (n, row_bytes), one after the other."""
    records = np.empty((len(rows), table.row_bytes), np.uint8)
    shards = [shard for shard in table.shards if shard.layer_id == layer_id]
    with ExitStack() as stack:
        files = [stack.enter_context(open(shard.fd, "rb", closefd=False)) for shard in shards]
        for position, row in enumerate(int(row) for row in rows):
            nth = row // shards[0].n_rows
            in_shard = row - shards[nth].first_row
            if table.layout.name == "packed":
                offset = in_shard * table.row_bytes
            else:
                per_page = 4096 // table.row_bytes
                offset = in_shard // per_page * 4096 + in_shard % per_page * table.row_bytes
            files[nth].seek(shards[nth].data_offset + offset)
            records[position] = np.frombuffer(files[nth].read(table.row_bytes), np.uint8)
    return records


def read_batch(table: StoredTable, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The records of int64 (tokens, layers, columns) as uint8 (tokens, layers, columns, row_bytes)."""
    records = np.empty((*rows.shape, table.row_bytes), np.uint8)
    for layer, layer_id in enumerate(table.layer_ids):
        of_layer = rows[:, layer].reshape(-1)
        records[:, layer] = read_rows(table, layer_id, of_layer).reshape(records[:, layer].shape)
    return records
