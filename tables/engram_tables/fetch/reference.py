"""The slow twin of every engine: one read a part of a row, by the rules of the format document alone."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from engram_tables.storage.row_files import RowFiles


def read_rows(table: RowFiles, layer_id: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The records of `rows`, integers (n,), as uint8 (n, row_bytes), one after the other."""
    records = np.empty((len(rows), table.row_bytes), np.uint8)
    for part_idx, part in enumerate(table.parts):
        extents = [e for e in table.extents if (e.layer_id, e.part_idx) == (layer_id, part_idx)]
        for position, row in enumerate(int(row) for row in rows):
            extent = next(e for e in extents if e.first_row <= row < e.first_row + e.n_rows)
            cell, in_cell = divmod(row - extent.first_row, part.cell_rows)
            offset = extent.offset + cell * part.cell_bytes + in_cell * part.n_bytes
            # At an offset: the position of a descriptor is shared by all threads.
            stretch = os.pread(table.files[extent.file_idx].fd, part.n_bytes, offset)
            records[position, part.start : part.start + part.n_bytes] = np.frombuffer(stretch, np.uint8)
    return records


def read_batch(table: RowFiles, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The records of int64 (tokens, layers, columns) as uint8 (tokens, layers, columns, row_bytes)."""
    records = np.empty((*rows.shape, table.row_bytes), np.uint8)
    for layer, layer_id in enumerate(table.layer_ids):
        of_layer = rows[:, layer].reshape(-1)
        records[:, layer] = read_rows(table, layer_id, of_layer).reshape(records[:, layer].shape)
    return records
