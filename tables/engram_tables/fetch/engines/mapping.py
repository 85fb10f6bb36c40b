"""The baseline: `np.take` on plain mappings with default advice."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.engines.engine import Engine, Items
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.row_files import RowFiles


class MappingEngine(Engine):
    """`np.take` on the stored table's own mappings. One thread, whatever is asked for.

    Where a page is not in memory, its row reads as much as the system's read-ahead.
    """

    name = "mapping"

    def __init__(self, table: RowFiles, places: Placements) -> None:
        super().__init__(table)
        self._places = places
        self._table = table
        self._cells: dict[int, NDArray[np.uint8]] = {}

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        if items is None:
            self._read_all(batch, out)
            return
        layer_of = items // batch.n_columns % batch.n_layers
        for layer in range(batch.n_layers):
            chosen = items[layer_of == layer]
            if not chosen.size:
                continue
            of_layer = Batch(batch.rows[chosen], chosen.size, batch.first_layer + layer, 1)
            found = np.empty((chosen.size, out.shape[-1]), np.uint8)
            self._read_all(of_layer, found)
            out[chosen] = found

    def _read_all(self, batch: Batch, out: NDArray[np.uint8]) -> None:
        places = self._places
        if batch.n_layers == 1 and len(places.parts) == 1:
            extents = places.extents_of(0, batch.first_layer)
            if len(extents) == 1:
                self._take(extents.start, batch.rows, out)
                return
        rows = batch.rows.reshape(-1, batch.n_layers, batch.n_columns)
        target = out.reshape(*rows.shape, -1)
        for layer in range(batch.n_layers):
            of_layer = np.ascontiguousarray(rows[:, layer]).reshape(-1)
            records = np.empty((of_layer.size, out.shape[-1]), np.uint8)
            for part_idx, part in enumerate(places.parts):
                stretches = records[:, part.start : part.start + part.n_bytes]
                self._take_part(part_idx, batch.first_layer + layer, of_layer, stretches)
            target[:, layer] = records.reshape(target[:, layer].shape)

    def _take_part(self, part_idx: int, layer: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        """One part of one layer's rows, extent by extent."""
        extent_of = self._places.extent_of_rows(part_idx, layer, rows)
        for nth, extent_idx in enumerate(self._places.extents_of(part_idx, layer)):
            chosen = np.flatnonzero(extent_of == nth)
            found = np.empty((chosen.size, out.shape[-1]), np.uint8)
            self._take(extent_idx, rows[chosen], found)
            out[chosen] = found

    def _take(self, extent_idx: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        extent = self._table.extents[extent_idx]
        part = self._places.parts[extent.part_idx]
        if extent.first_row:
            rows = rows - extent.first_row
        cells = self._cells.get(extent_idx)
        if cells is None:
            cells = self._cells[extent_idx] = self._map(extent, part)
        if part.cell_rows > 1:
            out[:] = cells[rows // part.cell_rows, rows % part.cell_rows]
        elif part.cell_bytes == part.n_bytes:
            # mode="clip" lets take write into `out` without a buffer of its own; the ids have been checked.
            np.take(cells, rows, axis=0, out=out, mode="clip")
        else:
            # Of an array with gaps take would copy the whole first.
            out[:] = cells[rows]

    def _map(self, extent: Extent, part: Part) -> NDArray[np.uint8]:
        """uint8 (cells, cell_rows, part bytes), or (rows, part bytes) where cells are of one row, without the spare
        bytes. The last cell may reach past the file's end, but none of its rows that are asked for."""
        data = self._table.mapping(extent.file_idx)[extent.offset :]
        n_cells = part.n_cells(extent.n_rows)
        shape, strides = (n_cells, part.cell_rows, part.n_bytes), (part.cell_bytes, part.n_bytes, 1)
        cells = np.lib.stride_tricks.as_strided(data, shape, strides, writeable=False)
        return cells if part.cell_rows > 1 else cells[:, 0]

    def _release(self) -> None:
        self._cells.clear()
