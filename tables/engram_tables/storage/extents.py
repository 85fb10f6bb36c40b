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
