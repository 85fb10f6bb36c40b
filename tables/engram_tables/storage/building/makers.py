"""Who makes a table's records: an initialisation, or a released table that is read. The writer asks, block by block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_tables.storage.building.initialise import Init, RowFiller
from engram_tables.storage.codecs.codec import Codec
from engram_tables.storage.table.layout import Layout
from engram_tables.units import Stage

if TYPE_CHECKING:
    from engram_tables.storage.codecs.fidelity import Fidelity

_TILE_BYTES = 2**20


class RecordWriter(Protocol):
    """One thread's share of a maker; keeps its working memory."""

    def begin(self, layer_id: int, rows: range) -> None:
        """A block begins, which answers for `rows` of the layer: they, and no others, are to be judged by it."""

    def fill(self, layer_id: int, part_idx: int | None, first_row: int, out: NDArray[np.uint8]) -> None:
        """Records of the rows from `first_row` on, numbered within the layer, into `out`.

        Parameters
        ----------
        part_idx
            Which part of the layout alone is wanted; None for whole records.
        out
            uint8 (n, bytes of the record or part), C-contiguous.
        """

    def end(self) -> Fidelity | None:
        """How far the rows that the block answers for are from what they were made of; None where nothing is lost."""


class RecordMaker(Protocol):
    """Makes any row of a table, always the same.

    Attributes
    ----------
    tile_bytes
        How many bytes of records are best asked for at a time.
    thread_bytes
        Memory that a thread's writer takes.
    """

    tile_bytes: int
    thread_bytes: int

    def identity(self) -> Mapping[str, Any]:
        """What must be the same for a build to go on where another stopped, as JSON values."""

    def check_output(self, path: Path) -> None:
        """Raise `InvalidInput` if a table at `path` would lie in what the records are made of, or over it."""

    def prepare(self, directory: Path, *, threads: int, stage: Stage) -> None:
        """Make what all threads need, before the first of them; files go into `directory`, which is removed later."""

    def for_thread(self) -> RecordWriter:
        """What one thread makes records with."""

    def check_unchanged(self) -> None:
        """Raise `InvalidInput` if what the records are made of is no longer what it was when the maker was made."""


class InitMaker:
    """First values, as `Init` says; raises as `RowFiller`."""

    tile_bytes = _TILE_BYTES
    # The tile of a `RowFiller` and what holds the part of a record, with room to spare.
    thread_bytes = 4 * _TILE_BYTES

    def __init__(self, init: Init, *, codec: Codec, layout: Layout, row_width: int) -> None:
        self.init = init
        self._codec = codec
        self._layout = layout
        self._row_width = row_width
        # What it refuses, a value too large for the codec, is refused with the plan.
        self._filler()

    def _filler(self) -> RowFiller:
        return RowFiller(self.init, self._codec, self._row_width)

    def identity(self) -> Mapping[str, Any]:
        """See `RecordMaker`."""
        return {"init": self.init.record()}

    def check_output(self, path: Path) -> None:
        """Nothing is read."""

    def prepare(self, directory: Path, *, threads: int, stage: Stage) -> None:
        """Nothing is shared."""

    def for_thread(self) -> RecordWriter:
        """See `RecordMaker`."""
        return _InitWriter(self._filler(), self._layout)

    def check_unchanged(self) -> None:
        """Nothing can change."""


class _InitWriter:
    def __init__(self, filler: RowFiller, layout: Layout) -> None:
        self._filler = filler
        self._layout = layout
        self._records = np.empty((max(_TILE_BYTES // layout.row_bytes, 1), layout.row_bytes), dtype=np.uint8)

    def begin(self, layer_id: int, rows: range) -> None:
        """Nothing is judged."""

    def fill(self, layer_id: int, part_idx: int | None, first_row: int, out: NDArray[np.uint8]) -> None:
        """See `RecordWriter`."""
        if part_idx is None:
            self._filler.fill(layer_id, first_row, out)
            return
        part = self._layout.parts[part_idx]
        for begin in range(0, len(out), len(self._records)):
            records = self._records[: len(out) - begin]
            self._filler.fill(layer_id, first_row + begin, records)
            out[begin : begin + len(records)] = records[:, part.start : part.start + part.n_bytes]

    def end(self) -> Fidelity | None:
        """See `RecordWriter`."""
        return None
