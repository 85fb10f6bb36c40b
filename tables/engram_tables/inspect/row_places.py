"""Where the parts of a row's record lie, which pages they touch, and which of those pages are in memory.

Reads no row, and touches no page of a file: what it looks at stays as it was.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.inspect.table import file_name
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.units import PAGE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class PartView:
    """Where one part of a record lies; a record in one piece has one, `records`.

    Attributes
    ----------
    file
        Its name within the table's or checkpoint's directory.
    offset
        Byte offset from the start of that file.
    first_page, n_pages
        The 4096-byte pages of the file that hold it.
    """

    part: str
    file: str
    offset: int
    n_bytes: int
    first_page: int
    n_pages: int


class Stretch(NamedTuple):
    """Bytes of a file that one read asks for."""

    file: RowFile
    offset: int
    n_bytes: int

    @property
    def pages(self) -> range:
        """The 4096-byte pages of the file that hold it."""
        return range(self.offset // PAGE_BYTES, (self.offset + self.n_bytes - 1) // PAGE_BYTES + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCost:
    """What a set of reads costs now.

    Attributes
    ----------
    n_reads
        Stretches of bytes that lie apart: each is a read.
    n_bytes
        That are asked for.
    n_pages
        Distinct 4096-byte pages that hold them: what a disk delivers at least.
    n_resident_pages
        Of those, pages that the page cache holds at this moment; None where the system does not say.
    """

    n_reads: int
    n_bytes: int
    n_pages: int
    n_resident_pages: int | None


def is_here(stored: RowFiles, layer_id: int, row: int) -> bool:
    """Whether these files hold the row; another rank may."""
    return any(start <= row < stop for start, stop in stored.owned(layer_id))


def stretches_of(stored: RowFiles, layer_id: int, row: int) -> list[Stretch]:
    """The parts of a row's record, in the order of its bytes; empty where it is not here."""
    if not is_here(stored, layer_id, row):
        return []
    found = []
    for part_idx, part in enumerate(stored.parts):
        spots = stored.locate(layer_id, np.array([row]), part_idx)
        found.append(Stretch(stored.files[int(spots.file_idx[0])], int(spots.offsets[0]), part.n_bytes))
    return found


def part_views(stored: RowFiles, layer_id: int, row: int) -> tuple[PartView, ...]:
    """The same for people and records."""
    stretches = stretches_of(stored, layer_id, row)
    return tuple(
        PartView(
            part=part.name,
            file=file_name(stored, stored.files.index(stretch.file)),
            offset=stretch.offset,
            n_bytes=stretch.n_bytes,
            first_page=stretch.pages.start,
            n_pages=len(stretch.pages),
        )
        for part, stretch in zip(stored.parts, stretches, strict=False)
    )


def cost_of(stretches: Iterable[Stretch]) -> ReadCost:
    """What reading them costs now; pages that several of them touch are counted once."""
    distinct = list(dict.fromkeys(stretches))
    pages: dict[RowFile, set[int]] = {}
    for stretch in distinct:
        pages.setdefault(stretch.file, set()).update(stretch.pages)
    resident = [resident_pages(file, sorted(of_file)) for file, of_file in pages.items()]
    return ReadCost(
        n_reads=len(distinct),
        n_bytes=sum(stretch.n_bytes for stretch in distinct),
        n_pages=sum(map(len, pages.values())),
        n_resident_pages=None if any(n is None for n in resident) else sum(n or 0 for n in resident),
    )


def resident_pages(file: RowFile, pages: Iterable[int]) -> int | None:
    """How many of some 4096-byte pages of a file are in memory, by `mincore`; None where the system has none.

    Notes
    -----
    The file is mapped a system page at a time and not touched. Linux calls every page resident to a user who neither
    owns the file nor may write to it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mincore"):
        return None
    n_resident, unit, state = 0, mmap.ALLOCATIONGRANULARITY, np.empty(1, np.uint8)
    for page in pages:
        start = page * PAGE_BYTES // unit * unit
        with mmap.mmap(file.fd, min(unit, file.file_bytes - start), prot=mmap.PROT_READ, offset=start) as mapping:
            is_in = _is_in_memory(libc, mapping, state)
        if is_in is None:
            return None
        n_resident += is_in
    return n_resident


def _is_in_memory(libc: ctypes.CDLL, mapping: mmap.mmap, state: npt.NDArray[np.uint8]) -> bool | None:
    view = np.frombuffer(mapping, np.uint8)
    address, target = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(state.ctypes.data)
    # The mapping cannot be closed while an array looks into it.
    del view
    if libc.mincore(address, ctypes.c_size_t(1), target) != 0:
        return None
    return bool(state[0] & 1)
