"""Consecutive rows of a source as whole records or as one part of them, by few large reads.

Works for whatever has `files`, `parts` and `extents`. Many threads may read at once, each with scratch of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.byte_files import LocalFile
from engram_tables.errors import InvalidInput
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.sources.source import Source

DEFAULT_SCRATCH_BYTES = 2**20
# What lies in a processor's second-level cache is copied from there: larger pieces of a local file are slower.
_LOCAL_BYTES = 2**19


def read_records(
    source: Source, layer_id: int, first_row: int, out: NDArray[np.uint8], *, scratch: NDArray[np.uint8] | None = None
) -> None:
    """Fill `out` with the records of consecutive rows.

    Parameters
    ----------
    first_row
        Of the layer; `len(out)` rows from it on.
    out
        uint8 (n, row_bytes), C-contiguous.
    scratch
        uint8 (m,): the memory that this takes beside `out`; 1 MiB of its own by default. A cell must fit.

    Raises
    ------
    InvalidInput
        A row that the source does not hold, or a file that was cut short.
    """
    if out.ndim != 2 or out.shape[1] != source.row_bytes:
        raise TypeError(f"out: found {out.shape}, expected (n, {source.row_bytes})")
    if len(source.parts) == 1:
        read_part(source, layer_id, 0, first_row, out, scratch=scratch)
        return
    scratch = _scratch(source.parts, scratch)
    readers = [
        _PartReader(source, layer_id, part_idx, out, part.start, scratch) for part_idx, part in enumerate(source.parts)
    ]
    # All parts of a few rows at a time, so that their records are still in the cache for the second part.
    step = min(reader.step for reader in readers)
    for start in range(0, len(out), step):
        for reader in readers:
            reader.read(first_row, start, min(start + step, len(out)))


def read_part(
    source: Source,
    layer_id: int,
    part_idx: int,
    first_row: int,
    out: NDArray[np.uint8],
    *,
    scratch: NDArray[np.uint8] | None = None,
) -> None:
    """The same for one part alone: `out` is uint8 (n, part bytes), C-contiguous."""
    part = source.parts[part_idx]
    if out.ndim != 2 or out.shape[1] != part.n_bytes:
        raise TypeError(f"out: found {out.shape}, expected (n, {part.n_bytes})")
    _PartReader(source, layer_id, part_idx, out, 0, scratch).read(first_row, 0, len(out))


def place_plainly(data: bytes, in_cell: int, part: Part, out: NDArray[np.uint8], start: int) -> None:
    """What `kernels.place_stretches` does, obviously right: `data` begins with the `in_cell`-th row of a cell."""
    begin = part.offset(in_cell)
    for row in range(len(out)):
        offset = part.offset(in_cell + row) - begin
        stretch = data[offset : offset + part.n_bytes]
        out[row, start : start + part.n_bytes] = np.frombuffer(stretch, np.uint8)


class _PartReader:
    """One part of rows of one layer, read into columns `start` on of `out`; what all reads share is found once."""

    def __init__(
        self,
        source: Source,
        layer_id: int,
        part_idx: int,
        out: NDArray[np.uint8],
        start: int,
        scratch: NDArray[np.uint8] | None,
    ) -> None:
        if out.dtype != np.uint8 or not out.flags.c_contiguous:
            raise TypeError(f"out: found {out.dtype}, expected C-contiguous uint8")
        self.source, self.layer_id, self.part, self.out = source, layer_id, source.parts[part_idx], out
        self.extents = [e for e in source.extents if (e.layer_id, e.part_idx) == (layer_id, part_idx)]
        part = self.part
        self.is_direct = part.cell_bytes == part.cell_rows * part.n_bytes and out.shape[1] == part.n_bytes
        if self.is_direct:
            return
        from engram_tables.storage.sources.kernels import place_stretches

        scratch = _scratch((part,), scratch)
        # The first row may lie late in its cell: then the last one lies in another cell more.
        n_cells = _piece_bytes(source, scratch) // part.cell_bytes
        self.step = max(n_cells - 1, 0) * part.cell_rows + 1
        spare = part.cell_bytes - part.cell_rows * part.n_bytes
        word = _word(scratch, out, part.n_bytes, spare, start)
        size = word.itemsize
        self.bytes = scratch.data
        self.words, self.rows = scratch[: len(scratch) // size * size].view(word), out.view(word)
        self.in_words = part.cell_rows, spare // size, part.n_bytes // size
        self.start = start // size
        self.place = place_stretches

    def read(self, first_row: int, begin: int, end: int) -> None:
        """Fill rows `begin` to `end` of `out`, of which the first is row `first_row` of the layer."""
        done = begin
        for extent in self.extents:
            row = first_row + done
            if done < end and extent.first_row <= row < extent.first_row + extent.n_rows:
                stop = min(end, done + extent.first_row + extent.n_rows - row)
                self._read_run(extent, row - extent.first_row, done, stop)
                done = stop
        if done < end:
            raise InvalidInput(
                f"{self.source.where}: found no row {first_row + done} of layer {self.layer_id}, expected rows "
                f"{first_row} to {first_row + len(self.out) - 1}; it lies elsewhere, or the layer has no such row"
            )

    def _read_run(self, extent: Extent, row: int, begin: int, end: int) -> None:
        """Rows `begin` to `end` of `out` from an extent's `row`-th on."""
        part, file = self.part, self.source.files[extent.file_idx]
        if self.is_direct:
            file.read_into(extent.offset + part.offset(row), self.out[begin:end].reshape(-1).data)
            return
        cell_rows, spare, n_words = self.in_words
        for start in range(begin, end, self.step):
            stop = min(start + self.step, end)
            first = part.offset(row + start - begin)
            n_bytes = part.offset(row + stop - begin - 1) + part.n_bytes - first
            file.read_into(extent.offset + first, self.bytes[:n_bytes])
            in_cell = (row + start - begin) % cell_rows
            self.place(self.words, in_cell, cell_rows, spare, n_words, self.rows[start:stop], self.start)


def _word(scratch: NDArray[np.uint8], out: NDArray[np.uint8], n_bytes: int, spare: int, start: int) -> np.dtype[Any]:
    """The widest word in which everything is a whole number of words: bytes one by one are five times slower."""
    mixed = scratch.ctypes.data | out.ctypes.data | out.shape[1] | n_bytes | spare | start
    return np.dtype({0: np.uint64, 4: np.uint32}.get(mixed & 7, np.uint8 if mixed & 1 else np.uint16))


def _scratch(parts: tuple[Part, ...], scratch: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    least = max(part.cell_bytes for part in parts)
    if scratch is None:
        return np.empty(max(DEFAULT_SCRATCH_BYTES, least), np.uint8)
    if scratch.dtype != np.uint8 or scratch.ndim != 1 or not scratch.flags.c_contiguous or len(scratch) < least:
        raise TypeError(f"scratch: found {scratch.dtype} {scratch.shape}, expected contiguous uint8 of {least} or more")
    return scratch


def _piece_bytes(source: Source, scratch: NDArray[np.uint8]) -> int:
    """How much is read at a time: behind a URL all that fits, since every read is a request."""
    is_local = all(isinstance(file, LocalFile) for file in source.files)
    return min(len(scratch), _LOCAL_BYTES) if is_local else len(scratch)
