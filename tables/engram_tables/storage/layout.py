"""Where a record lies inside a shard's data section, and how a table's files are called.

Offsets are in bytes from the start of the data section. No file is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.units import PAGE_BYTES

PACKED = "packed"
PAGE = "page"
LAYOUT_NAMES = (PACKED, PAGE)
MANIFEST_NAME = "engram.json"
VOCABULARY_NAME = "vocab.parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How records of `row_bytes` bytes follow each other: cells of `cell_bytes` with `cell_rows` records in each.

    `packed` has one record a cell. In `page` a cell is a page of 4096 bytes, and the bytes after its last record
    are zero, so that no record crosses a page.
    """

    name: str
    row_bytes: int
    cell_rows: int
    cell_bytes: int

    @overload
    def record_offset(self, row: int) -> int: ...
    @overload
    def record_offset(self, row: NDArray[np.int64]) -> NDArray[np.int64]: ...
    def record_offset(self, row: int | NDArray[np.int64]) -> int | NDArray[np.int64]:
        """Offset of the record of the shard's `row`-th row; a number or an array."""
        if self.cell_rows == 1:
            return row * self.cell_bytes
        cell = row // self.cell_rows
        return cell * self.cell_bytes + (row - cell * self.cell_rows) * self.row_bytes

    def n_cells(self, n_rows: int) -> int:
        """Cells that `n_rows` rows fill or begin."""
        return -(-n_rows // self.cell_rows)

    def data_bytes(self, n_rows: int) -> int:
        """Bytes of the data section of `n_rows` rows."""
        return self.n_cells(n_rows) * self.cell_bytes

    def touched_rows(self, start: int, stop: int, n_rows: int) -> tuple[int, int]:
        """Half-open range of the rows that have a byte in `start` to `stop`, of `n_rows` in all; may be empty."""
        first = self._rows_begun(start, n_rows, whole=True)
        return first, max(self._rows_begun(stop, n_rows, whole=False), first) if start < stop else first

    def _rows_begun(self, offset: int, n_rows: int, *, whole: bool) -> int:
        cell, inside = divmod(offset, self.cell_bytes)
        in_cell = inside // self.row_bytes if whole else -(-inside // self.row_bytes)
        return min(cell * self.cell_rows + min(in_cell, self.cell_rows), n_rows)

    def place(self, records: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Lay whole cells into `out`.

        `records` uint8 (n, row_bytes) begins at a cell; `out` uint8 (data_bytes(n),) gets the spare bytes as zeros.
        """
        cells = out.reshape(-1, self.cell_bytes)
        used = self.cell_rows * self.row_bytes
        n_full, n_last = divmod(len(records), self.cell_rows)
        cells[:n_full, :used] = records[: n_full * self.cell_rows].reshape(n_full, used)
        cells[:n_full, used:] = 0
        if n_last:
            cells[n_full, : n_last * self.row_bytes] = records[n_full * self.cell_rows :].reshape(-1)
            cells[n_full, n_last * self.row_bytes :] = 0


def get_layout(name: str, row_bytes: int) -> Layout:
    """The layout called `name` for records of `row_bytes` bytes."""
    if name == PACKED:
        return Layout(name=name, row_bytes=row_bytes, cell_rows=1, cell_bytes=row_bytes)
    if name != PAGE:
        raise InvalidInput(f"layout {name!r}: not known, expected one of {', '.join(LAYOUT_NAMES)}; choose one of them")
    if row_bytes > PAGE_BYTES:
        raise InvalidInput(
            f"layout page: found records of {row_bytes} bytes, expected {PAGE_BYTES} or fewer; use the layout packed"
        )
    return Layout(name=name, row_bytes=row_bytes, cell_rows=PAGE_BYTES // row_bytes, cell_bytes=PAGE_BYTES)


def shard_path(layer_id: int, shard_idx: int, n_shards: int) -> str:
    """Path of a layer's `shard_idx`-th shard inside the table; counted from 1 in the name, as checkpoints do."""
    return f"layer-{layer_id:02d}/rows-{shard_idx + 1:05d}-of-{n_shards:05d}.safetensors"
