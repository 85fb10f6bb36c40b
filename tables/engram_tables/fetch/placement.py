"""Batches of row ids, and where a table's records lie in a space of addresses. It reads no record."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import InvalidInput
from engram_tables.fetch.kernels import Placement, first_missing, first_outside, locate_some
from engram_tables.storage.extents import ranges_of
from engram_tables.storage.row_files import RowFiles
from engram_tables.units import PAGE_BYTES

_MEND = "fetch or build the files again"


class Batch(NamedTuple):
    """Checked row ids: int64 (tokens x layers x columns,) in C order, for layers `first_layer` and on."""

    rows: NDArray[np.int64]
    n_columns: int
    first_layer: int
    n_layers: int


class Placements:
    """The extents of one table or checkpoint as arrays.

    Attributes
    ----------
    parts
        Of every record.
    is_whole
        Every row of every layer is here.
    part_starts, part_bytes
        uint64 (parts,): which bytes of the record.
    file_idx, offsets
        int64 (extents,): the file of each extent, and bytes from its start to the extent's first row.

    Raises
    ------
    InvalidInput
        The extents contradict each other, the parts or their files, so that a kernel would read other bytes.
    """

    def __init__(self, stored: RowFiles) -> None:
        _check(stored)
        self._stored = stored
        self.layer_ids = stored.layer_ids
        self.row_bytes = stored.row_bytes
        self.parts = stored.parts
        self.part_starts = np.array([part.start for part in stored.parts], np.uint64)
        self.part_bytes = np.array([part.n_bytes for part in stored.parts], np.uint64)
        extents = stored.extents
        self.file_idx = np.array([extent.file_idx for extent in extents], np.int64)
        self.offsets = np.array([extent.offset for extent in extents], np.int64)
        self.file_bytes = np.array([file.file_bytes for file in stored.files], np.int64)
        self.n_rows = np.array([stored.spec.layer(layer_id).n_rows for layer_id in self.layer_ids], np.int64)
        self._first_rows = np.array([extent.first_row for extent in extents], np.int64)
        self._stops = np.array([extent.first_row + extent.n_rows for extent in extents], np.int64)
        # By part and layer: the first extent and how many there are, which follow each other; rows of equal ones.
        self._extents = np.zeros((len(self.parts), len(self.layer_ids), 2), np.int64)
        self._extent_rows = np.zeros(self._extents.shape[:2], np.int64)
        position = {layer_id: layer for layer, layer_id in enumerate(self.layer_ids)}
        for idx, extent in reversed(list(enumerate(extents))):
            spot = extent.part_idx, position[extent.layer_id]
            self._extents[spot] = idx, self._extents[spot][1] + 1
        for part_idx, layer in np.ndindex(self._extent_rows.shape):
            self._extent_rows[part_idx, layer] = self._equal_rows(self.extents_of(part_idx, layer))
        self.is_whole = all(
            stored.owned(layer_id) == ((0, n_rows),)
            for layer_id, n_rows in zip(self.layer_ids, self.n_rows.tolist(), strict=True)
        )

    def extents_of(self, part_idx: int, layer: int) -> range:
        """Positions of the extents with a part of the `layer`-th layer's rows."""
        first, n_extents = self._extents[part_idx, layer].tolist()
        return range(first, first + n_extents)

    def extent_of_rows(self, part_idx: int, layer: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which extent each of `rows`, int64 (n,) and all owned, lies in, counted from the layer's first one."""
        extent_rows = int(self._extent_rows[part_idx, layer])
        if extent_rows:
            return rows // extent_rows
        extents = self.extents_of(part_idx, layer)
        return np.searchsorted(self._first_rows[extents.start : extents.stop], rows, side="right") - 1

    def check(self, rows: NDArray[np.int64], *, n_columns: int, first_layer: int, n_layers: int) -> Batch:
        """A batch, after every row id has been held against what its layer has and what of it is here.

        Raises
        ------
        InvalidInput
            A row id that its layer does not have, or else one that is not here; the first one is named.
        """
        flat = rows.reshape(-1)
        layers = slice(first_layer, first_layer + n_layers)
        limits = self.n_rows[layers]
        position = int(first_outside(flat, n_columns, limits))
        if position >= 0:
            layer = position // n_columns % n_layers
            raise InvalidInput(
                f"rows: found row {flat[position]} at position {_where(position, rows)}, expected 0 to "
                f"{limits[layer] - 1} in layer {self.layer_ids[first_layer + layer]}; were the rows computed with "
                "another spec?"
            )
        if not self.is_whole:
            extents = self._extents[0, layers]
            position = int(first_missing(flat, n_columns, extents, self._first_rows, self._stops))
            if position >= 0:
                layer_id = self.layer_ids[first_layer + position // n_columns % n_layers]
                raise InvalidInput(self._not_here(int(flat[position]), layer_id, _where(position, rows)))
        return Batch(rows=flat, n_columns=n_columns, first_layer=first_layer, n_layers=n_layers)

    def in_files(self, file_starts: NDArray[np.uint64]) -> Placed:
        """The records in a space where byte 0 of file k is at `file_starts[k]`."""
        return Placed(self, file_starts[self.file_idx] + self.offsets.astype(np.uint64))

    def place(self, first_layer: int, n_layers: int, bases: NDArray[np.uint64]) -> tuple[Placement, ...]:
        """The kernel's view of some layers, for each part; extent k's first row is at `bases[k]`."""
        layers = slice(first_layer, first_layer + n_layers)
        return tuple(
            Placement(
                extents=self._extents[part_idx, layers],
                extent_rows=self._extent_rows[part_idx, layers],
                first_rows=self._first_rows,
                bases=bases,
                cell_rows=part.cell_rows,
                cell_bytes=part.cell_bytes,
                part_bytes=part.n_bytes,
            )
            for part_idx, part in enumerate(self.parts)
        )

    def extent_words(self, bases: NDArray[np.uint64]) -> NDArray[np.int64]:
        """What the tail of a kernel's plan holds of records in one part: rows of each layer, rows of its equal extents,
        its extents; first rows, bases and stops of all extents. int64 (4 x layers + 3 x extents,)."""
        of_layers = self.n_rows, self._extent_rows[0], self._extents[0].reshape(-1)
        return np.concatenate([*of_layers, self._first_rows, bases.view(np.int64), self._stops])

    def file_spots(self) -> NDArray[np.uint64]:
        """Where each file's byte 0 is in a space in which they follow each other, a page or more apart."""
        pages = -(-self.file_bytes // PAGE_BYTES) + 1
        return (np.concatenate(([0], np.cumsum(pages)[:-1])) * PAGE_BYTES).astype(np.uint64)

    def _equal_rows(self, extents: range) -> int:
        """Rows of each of these extents but the last, if the first begins with row 0 and none is longer; or 0."""
        if not extents or self._first_rows[extents.start] != 0:
            return 0
        n_rows = self._stops[extents.start]
        firsts = self._first_rows[extents.start : extents.stop]
        stops = np.minimum(firsts + n_rows, self._stops[extents.stop - 1])
        is_equal = np.array_equal(firsts, np.arange(len(extents)) * n_rows)
        return int(n_rows) if is_equal and np.array_equal(stops, self._stops[extents.start : extents.stop]) else 0

    def _not_here(self, row: int, layer_id: int, where: object) -> str:
        owned = self._stored.owned(layer_id)
        here = ", ".join(f"{start} to {stop - 1}" for start, stop in owned[:4]) or "none"
        return (
            f"rows: found row {row} at position {where}, expected one of layer {layer_id} that {self._stored.path} "
            f"holds ({here}{', …' if len(owned) > 4 else ''}); ask the rank that owns it"
        )


class Placed:
    """Records in a space of addresses, where extent k's first row is at `bases[k]`, uint64 (extents,)."""

    def __init__(self, places: Placements, bases: NDArray[np.uint64]) -> None:
        self.places, self.bases = places, bases
        self._made: dict[tuple[int, int], tuple[Placement, ...]] = {}

    def of(self, batch: Batch) -> tuple[Placement, ...]:
        """The kernel's view of the batch's layers, for each part."""
        layers = batch.first_layer, batch.n_layers
        made = self._made.get(layers)
        if made is None:
            made = self._made[layers] = self.places.place(*layers, self.bases)
        return made

    def addresses(self, batch: Batch, start: int = 0, stop: int | None = None) -> NDArray[np.uint64]:
        """Address of every part of the batch's records from `start` to `stop`, uint64 (parts, stop - start)."""
        made = self.of(batch)
        stop = batch.rows.size if stop is None else stop
        addresses = np.empty((len(made), stop - start), np.uint64)
        for part_idx, place in enumerate(made):
            locate_some(batch.rows, start, stop, batch.n_columns, place, addresses[part_idx])
        return addresses


def _where(position: int, rows: NDArray[np.int64]) -> int | tuple[int, ...]:
    return position if rows.ndim == 1 else tuple(int(k) for k in np.unravel_index(position, rows.shape))


def _check(stored: RowFiles) -> None:
    """What kernels take for granted: the parts are the record, extents lie in order and in their files, and all parts
    have the same rows."""
    start = 0
    for part in stored.parts:
        where = f"{stored.path}: part {part.name}"
        if part.start != start:
            raise InvalidInput(f"{where}: begins at byte {part.start} of the record, expected {start}; {_MEND}")
        if part.n_bytes < 1 or part.cell_rows < 1 or part.cell_rows * part.n_bytes > part.cell_bytes:
            cell = f"{part.cell_rows} x {part.n_bytes} bytes in cells of {part.cell_bytes}"
            raise InvalidInput(f"{where}: found {cell}, expected cells that hold them; {_MEND}")
        start += part.n_bytes
    if start != stored.row_bytes:
        raise InvalidInput(f"{stored.path}: found {start} bytes in all parts, expected {stored.row_bytes}; {_MEND}")
    _check_extents(stored)
    for layer_id in stored.layer_ids:
        for part_idx, part in enumerate(stored.parts):
            of_part = [replace(extent, part_idx=0) for extent in stored.extents if extent.part_idx == part_idx]
            if ranges_of(of_part, layer_id) != stored.owned(layer_id):
                raise InvalidInput(
                    f"{stored.path}: layer {layer_id} has other rows in its part {part.name} than in "
                    f"{stored.parts[0].name}, expected the same in all; {_MEND}"
                )


def _check_extents(stored: RowFiles) -> None:
    order = {layer_id: layer for layer, layer_id in enumerate(stored.layer_ids)}
    free = (-1, 0, 0)
    for extent in stored.extents:
        part, file = stored.parts[extent.part_idx], stored.files[extent.file_idx]
        stop = extent.first_row + extent.n_rows
        where = f"{file.path}: rows {extent.first_row} to {stop - 1} of layer {extent.layer_id}"
        if extent.n_rows < 1 or stop > stored.spec.layer(extent.layer_id).n_rows:
            raise InvalidInput(f"{where}: found {extent.n_rows} rows, expected some that the layer has; {_MEND}")
        place = order[extent.layer_id], extent.part_idx
        if (*place, extent.first_row) < free:
            raise InvalidInput(f"{where}: found them a second time or out of order, expected each row once; {_MEND}")
        free = (*place, stop)
        end = extent.offset + part.offset(extent.n_rows - 1) + part.n_bytes
        if extent.offset < 0 or end > file.file_bytes:
            raise InvalidInput(
                f"{where}: found bytes {extent.offset} to {end}, expected {file.file_bytes} at most; {_MEND}"
            )
