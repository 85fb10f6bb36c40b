"""Which bytes of which file hold a row: the one description that tables and checkpoints share.

A record may lie in one piece or in several parts (weights here, scales elsewhere); rows follow each other in extents.
Knows no codec and opens no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

Ranges = tuple[tuple[int, int], ...]
"""Half-open ranges of rows of one layer, ascending, neither empty nor touching each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of every record that lies by itself.

    Attributes
    ----------
    name
        `records` for the whole record; else what it holds: `weights`, `scales`, `biases`.
    start, n_bytes
        Which bytes of the record.
    cell_rows, cell_bytes
        How rows follow each other in a file: cells of `cell_bytes` with the parts of `cell_rows` rows in each, one
        directly after the other; what is left of a cell is spare.
    """

    name: str
    start: int
    n_bytes: int
    cell_rows: int
    cell_bytes: int

    @overload
    def offset(self, row: int) -> int: ...
    @overload
    def offset(self, row: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def offset(self, row: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        """Bytes from an extent's beginning to its `row`-th row; a number or an array."""
        if self.cell_rows == 1:
            return row * self.cell_bytes
        cell = row // self.cell_rows
        return cell * self.cell_bytes + (row - cell * self.cell_rows) * self.n_bytes

    def n_cells(self, n_rows: int) -> int:
        """Cells that `n_rows` rows fill or begin."""
        return -(-n_rows // self.cell_rows)

    def data_bytes(self, n_rows: int) -> int:
        """Bytes of the whole cells of `n_rows` rows."""
        return self.n_cells(n_rows) * self.cell_bytes

    def touched_rows(self, start: int, stop: int, n_rows: int) -> tuple[int, int]:
        """Half-open range of the rows that have a byte in `start` to `stop`, of `n_rows` in all; may be empty.

        `start` and `stop` are bytes from the extent's beginning.
        """
        first = self._rows_begun(start, n_rows, whole=True)
        return first, max(self._rows_begun(stop, n_rows, whole=False), first) if start < stop else first

    def _rows_begun(self, offset: int, n_rows: int, *, whole: bool) -> int:
        cell, inside = divmod(offset, self.cell_bytes)
        in_cell = inside // self.n_bytes if whole else -(-inside // self.n_bytes)
        return min(cell * self.cell_rows + min(in_cell, self.cell_rows), n_rows)

    def place(self, stretches: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Lay whole cells into `out`.

        Parameters
        ----------
        stretches
            uint8 (n, n_bytes), this part alone of n records; the first one begins a cell.
        out
            uint8 (data_bytes(n),); its spare bytes become zeros.
        """
        cells = out.reshape(-1, self.cell_bytes)
        used = self.cell_rows * self.n_bytes
        n_full, n_last = divmod(len(stretches), self.cell_rows)
        cells[:n_full, :used] = stretches[: n_full * self.cell_rows].reshape(n_full, used)
        cells[:n_full, used:] = 0
        if n_last:
            cells[n_full, : n_last * self.n_bytes] = stretches[n_full * self.cell_rows :].reshape(-1)
            cells[n_full, n_last * self.n_bytes :] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Consecutive rows of one part of one layer in one file.

    Attributes
    ----------
    first_row, n_rows
        Numbered within the layer.
    offset
        Bytes from the start of the file to the first row; a cell begins there.
    """

    file_idx: int
    layer_id: int
    part_idx: int
    first_row: int
    n_rows: int
    offset: int


def ranges_of(extents: Iterable[Extent], layer_id: int) -> Ranges:
    """The rows of a layer that lie in `extents`, by those of part 0."""
    ranges: list[tuple[int, int]] = []
    of_layer = (extent for extent in extents if extent.layer_id == layer_id and extent.part_idx == 0)
    for extent in sorted(of_layer, key=lambda extent: extent.first_row):
        start, stop = extent.first_row, extent.first_row + extent.n_rows
        if ranges and ranges[-1][1] == start:
            start = ranges.pop()[0]
        ranges.append((start, stop))
    return tuple(ranges)


def n_rows_of(owned: Mapping[int, Ranges]) -> int:
    """Rows of all ranges of all layers."""
    return sum(stop - start for ranges in owned.values() for start, stop in ranges)
