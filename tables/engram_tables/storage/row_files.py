"""Open files with rows in them, and where each row lies: what a table and a checkpoint are to whoever fetches."""

from __future__ import annotations

import mmap
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import IncompleteTable, InvalidInput
from engram_tables.storage.codecs.codec import Codec
from engram_tables.storage.extents import Extent, Part, Ranges, ranges_of


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFile:
    """One open file; `fd` belongs to whoever opened it."""

    path: Path
    file_bytes: int
    fd: int

    def read_into(self, offset: int, out: Any) -> None:
        """Fill `out`, uint8 (n,), with the file's bytes from `offset` on; `IncompleteTable` if it ends before."""
        done = 0
        while done < len(out):
            got = os.preadv(self.fd, [out[done:]], offset + done)
            if got == 0:
                raise IncompleteTable(
                    f"{self.path}: ends at byte {offset + done}, expected {self.file_bytes}; it was cut after the "
                    "table was opened, copy it again",
                    path=str(self.path),
                )
            done += got


class Spots(NamedTuple):
    """Where parts of records lie: int64 (n,) each, position in `files` and bytes from the start of that file."""

    file_idx: NDArray[np.int64]
    offsets: NDArray[np.int64]


class RowFiles(ABC):
    """Rows in open local files; a table or a checkpoint that is read where it lies.

    Attributes
    ----------
    path
        For messages, and what it was opened by.
    spec, codec, row_bytes
        Addressing, record format and bytes of a whole record.
    parts
        Of every record, in the order of its bytes; together they are the record.
    files, extents
        Extents are sorted by layer (in the spec's order), part and first row, and do not overlap. Every part of a
        layer has the same rows.

    Subclasses open files, set the attributes, and close the files.
    """

    path: Path
    spec: AddressSpec
    codec: Codec
    row_bytes: int
    parts: tuple[Part, ...]
    files: Sequence[RowFile]
    extents: tuple[Extent, ...]

    def __init__(self) -> None:
        self._is_closed = False
        self._mappings: dict[int, NDArray[np.uint8]] = {}
        self._owned: dict[int, Ranges] = {}

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Layer ids in the spec's order, those without a row here included."""
        return self.spec.layer_ids

    def owned(self, layer_id: int) -> Ranges:
        """The rows of a layer that are here: all of them, but for a rank's table or a part of a checkpoint."""
        if layer_id not in self._owned:
            if layer_id not in self.layer_ids:
                known = ", ".join(map(str, self.layer_ids))
                raise InvalidInput(f"layer {layer_id}: {self.path} has no such layer, expected one of {known}")
            self._owned[layer_id] = ranges_of(self.extents, layer_id)
        return self._owned[layer_id]

    def check_rows(self, layer_id: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """`rows` as int64 (n,), every one of them owned.

        Raises
        ------
        InvalidInput
            An unknown layer, other than integers (n,), or a row that the layer does not have or that is not here;
            the first one is named.
        """
        owned, n_rows = self.owned(layer_id), self.spec.layer(layer_id).n_rows
        rows = np.asarray(rows)
        if rows.ndim != 1 or rows.dtype.kind not in "iu":
            raise InvalidInput(f"rows: found {rows.dtype} {rows.shape}, expected integers (n,); convert them first")
        if rows.size and not (int(rows.min()) >= 0 and int(rows.max()) < n_rows):
            position = int(np.flatnonzero((rows < 0) | (rows >= n_rows))[0])
            raise InvalidInput(
                f"rows: found row {rows[position]} at position {position}, expected 0 to {n_rows - 1} in layer "
                f"{layer_id}; were the rows computed with another spec?"
            )
        rows = rows.astype(np.int64, copy=False)
        if owned != ((0, n_rows),):
            bounds = np.array(owned, np.int64).reshape(-1)
            outside = np.flatnonzero(np.searchsorted(bounds, rows, side="right") % 2 == 0)
            if outside.size:
                here = ", ".join(f"{start} to {stop - 1}" for start, stop in owned[:4]) or "none"
                raise InvalidInput(
                    f"rows: found row {rows[outside[0]]} at position {outside[0]}, expected one of layer {layer_id} "
                    f"that {self.path} holds ({here}{', …' if len(owned) > 4 else ''}); ask the rank that owns it"
                )
        return rows

    def locate(self, layer_id: int, rows: NDArray[np.int64], part_idx: int = 0) -> Spots:
        """Where one part of the records of `rows`, integers (n,), lies; raises as `check_rows`."""
        rows = self.check_rows(layer_id, rows)
        extents = [e for e in self.extents if (e.layer_id, e.part_idx) == (layer_id, part_idx)]
        firsts = np.array([extent.first_row for extent in extents], np.int64)
        nth = np.searchsorted(firsts, rows, side="right") - 1
        offsets = self.parts[part_idx].offset(rows - firsts[nth])
        return Spots(
            np.array([extent.file_idx for extent in extents], np.int64)[nth],
            offsets + np.array([extent.offset for extent in extents], np.int64)[nth],
        )

    def mapping(self, file_idx: int) -> NDArray[np.uint8]:
        """The whole file as a read-only shared mapping, uint8 (file_bytes,); made when first asked for."""
        self.check_open()
        if file_idx not in self._mappings:
            file = self.files[file_idx]
            view = mmap.mmap(file.fd, file.file_bytes, prot=mmap.PROT_READ)
            self._mappings[file_idx] = np.frombuffer(view, dtype=np.uint8)
        return self._mappings[file_idx]

    def check_open(self) -> None:
        """A closed table's descriptors may be another file's by now."""
        if self._is_closed:
            raise InvalidInput(f"{self.path}: closed already, expected an open table; open it again")

    def close(self) -> None:
        """Close every file. Mappings that the caller still holds stay readable."""
        self._is_closed = True
        self._mappings.clear()
        self._close_files()

    @abstractmethod
    def _close_files(self) -> None:
        """Close what the subclass opened; called again, there is nothing left to close."""
