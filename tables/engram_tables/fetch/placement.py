"""Batches of row ids, and where a table's records lie in a space of addresses. It reads no record."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.fetch.kernels import Placement, first_outside, locate
from engram_tables.storage.reader import StoredTable

_PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Checked row ids: int64 (tokens x layers x columns,) in C order, for layers `first_layer` and on."""

    rows: NDArray[np.int64]
    n_columns: int
    first_layer: int
    n_layers: int


class Placements:
    """The shards of one table as arrays."""

    def __init__(self, table: StoredTable) -> None:
        shards = [table.layer_shards(layer_id) for layer_id in table.layer_ids]
        self.layer_ids = table.layer_ids
        self.row_bytes = table.row_bytes
        self.data_offsets = np.array([shard.data_offset for shard in table.shards], np.int64)
        self.file_bytes = np.array([shard.file_bytes for shard in table.shards], np.int64)
        self.n_rows = np.array([table.spec.layer(layer_id).n_rows for layer_id in table.layer_ids], np.int64)
        self._first_shard = np.array([of_layer.start for of_layer in shards], np.int64)
        per_shard = [table.shards[of_layer.start].n_rows for of_layer in shards]
        self._rows_per_shard = np.array(per_shard, np.int64)
        self._cell = table.layout.cell_rows, table.layout.cell_bytes
        for of_layer, n in zip(shards, per_shard, strict=True):
            for nth, shard_idx in enumerate(of_layer):
                assert table.shards[shard_idx].first_row == nth * n, "shards of a layer are equal but for the last"

    def check(self, rows: NDArray[np.int64], *, n_columns: int, first_layer: int, n_layers: int) -> Batch:
        """A batch, after every row id has been held against its layer's number of rows.

        Raises
        ------
        InvalidInput
            A row id that its layer does not have; the first one is named.
        """
        flat = rows.reshape(-1)
        limits = self.n_rows[first_layer : first_layer + n_layers]
        position = int(first_outside(flat, n_columns, limits))
        if position >= 0:
            layer = position // n_columns % n_layers
            where = position if rows.ndim == 1 else tuple(int(k) for k in np.unravel_index(position, rows.shape))
            raise InvalidInput(
                f"rows: found row {flat[position]} at position {where}, expected 0 to {limits[layer] - 1} in "
                f"layer {self.layer_ids[first_layer + layer]}; were the rows computed with another spec?"
            )
        return Batch(rows=flat, n_columns=n_columns, first_layer=first_layer, n_layers=n_layers)

    def place(self, batch: Batch, file_starts: NDArray[np.uint64]) -> Placement:
        """The kernel's view of the batch's layers; byte 0 of shard k's file is at `file_starts[k]`."""
        layers = slice(batch.first_layer, batch.first_layer + batch.n_layers)
        return Placement(
            first_shard=self._first_shard[layers],
            rows_per_shard=self._rows_per_shard[layers],
            n_rows=self.n_rows[layers],
            bases=file_starts + self.data_offsets.astype(np.uint64),
            cell_rows=self._cell[0],
            cell_bytes=self._cell[1],
            row_bytes=self.row_bytes,
        )

    def addresses(self, batch: Batch, file_starts: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Address of every record of the batch, uint64 (items,)."""
        addresses = np.empty(batch.rows.size, np.uint64)
        locate(batch.rows, batch.n_columns, self.place(batch, file_starts), addresses)
        return addresses

    def file_spots(self) -> NDArray[np.uint64]:
        """Where each file's byte 0 is in a space in which they follow each other, a page or more apart."""
        pages = -(-self.file_bytes // _PAGE_BYTES) + 1
        return (np.concatenate(([0], np.cumsum(pages)[:-1])) * _PAGE_BYTES).astype(np.uint64)
