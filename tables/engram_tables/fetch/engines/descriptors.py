"""A table's files reopened for an engine's own reads, and a batch as reads of them. It reads no record."""

from __future__ import annotations

import errno
import os
import weakref
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable, IncompleteTable
from engram_tables.fetch.engines.engine import Items
from engram_tables.fetch.engines.queue_kernels import END_OF_FILE, group_reads
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.memory import aligned_bytes
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.units import PAGE_BYTES


class Reads(NamedTuple):
    """A batch as reads, sorted by file and offset; what is asked for twice is read once.

    Parts are named by spots (see `queue_kernels`). Read k fetches what `spots[starts[k]:starts[k + 1]]` need.
    """

    spots: NDArray[np.uint64]
    """(parts x items,), ascending"""
    order: NDArray[np.int64]
    """(parts x items,): `part * n_records + record` of each spot"""
    starts: NDArray[np.int64]
    """(n_reads + 1 or more,)"""
    windows: NDArray[np.int64]
    """(n_reads or more, 3): file, offset in it, and bytes that are needed from there"""
    n_reads: int
    n_records: int
    """Records of the whole batch, chosen or not"""


class ReadFiles:
    """Descriptors of one's own for the very files that a table holds open, whatever their names hold by now.

    Attributes
    ----------
    unit
        Reads begin and end at multiples of it: the smallest that direct reads of every file take, or 1.
    spots, fds
        uint64 and int64 (files,): spot of each file's byte 0, and its descriptor.
    part_starts, part_bytes, row_bytes
        As in `Placements`.

    Raises
    ------
    BackendUnavailable
        Direct reads are wanted, and a file's system refuses them.
    """

    def __init__(self, engine: str, table: RowFiles, places: Placements, *, direct: bool) -> None:
        self._engine = engine
        self._paths = [str(file.path) for file in table.files]
        self._file_bytes = places.file_bytes
        self.part_starts, self.part_bytes, self.row_bytes = places.part_starts, places.part_bytes, places.row_bytes
        self.spots = places.file_spots()
        self._placed = places.in_files(self.spots)
        opened: list[int] = []
        self._finalize = weakref.finalize(self, _close_all, opened)
        try:
            for file in table.files:
                opened.append(_reopen(engine, file, direct=direct))
            units = [_direct_unit(engine, fd, file) for fd, file in zip(opened, table.files, strict=True) if direct]
        except BaseException as error:
            self.close()
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                n_files = len(table.files)
                error.add_note(
                    f"engine {engine}: opening {n_files} files a second time; raise the limit of open files "
                    "(ulimit -n), or use the engine gather, which opens none"
                )
            raise
        self.unit = max(units, default=1)
        self.fds = np.array(opened, np.int64)

    def plan(self, batch: Batch, items: Items | None, limit_bytes: int) -> Reads:
        """The batch, or the records that `items` names, as reads of `limit_bytes` at most.

        All parts of all records are one list of reads, so that a record's second part does not wait for its first.
        """
        n_records = batch.rows.size
        addresses = self._placed.addresses(batch)
        if items is not None:
            addresses = addresses[:, items]
        spots = addresses.reshape(-1)
        order = np.argsort(spots)
        spots = spots[order]
        starts = np.empty(spots.size + 1, np.int64)
        n_chosen = max(addresses.shape[1], 1)
        windows = np.empty((spots.size, 3), np.int64)
        n_reads = int(
            group_reads(
                spots, order, n_chosen, self.part_bytes, self.spots, self.unit, limit_bytes, starts, windows
            )
        )  # fmt: skip
        if items is not None:
            order = order // n_chosen * n_records + items[order % n_chosen]
        return Reads(spots=spots, order=order, starts=starts, windows=windows, n_reads=n_reads, n_records=n_records)

    def fail(self, code: int, file_idx: int, file_offset: int, n_bytes: int) -> NoReturn:
        """Raise what reading `n_bytes` at `file_offset` met: an errno, or `END_OF_FILE`."""
        path = self._paths[file_idx]
        if code == END_OF_FILE:
            raise IncompleteTable(
                f"{path}: ends before byte {file_offset + n_bytes}, expected {self._file_bytes[file_idx]} bytes; it "
                "was cut after the table was opened, copy it again",
                path=path,
            )
        error = OSError(code, os.strerror(code), path)
        error.add_note(f"{path}: reading {n_bytes} bytes at byte {file_offset} (engine {self._engine})")
        raise error

    def close(self) -> None:
        """Close the descriptors; called again, there is nothing left to close."""
        self._finalize()


def _close_all(fds: list[int]) -> None:
    while fds:
        os.close(fds.pop())


def _reopen(engine: str, file: RowFile, *, direct: bool) -> int:
    if not direct:
        fd = _open_again(file, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return fd
    if not hasattr(os, "O_DIRECT"):
        raise BackendUnavailable(f"engine {engine}: this system has no O_DIRECT; use the engine pread")
    try:
        return _open_again(file, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        raise BackendUnavailable(
            f"engine {engine}: the filesystem of {file.path} refuses O_DIRECT ({error.strerror}); use the engine pread"
        ) from None


def _open_again(file: RowFile, flags: int) -> int:
    try:
        return os.open(f"/proc/self/fd/{file.fd}", flags | os.O_CLOEXEC)
    except FileNotFoundError:
        fd = os.open(file.path, flags | os.O_CLOEXEC)
    if not os.path.sameopenfile(fd, file.fd):
        os.close(fd)
        raise BackendUnavailable(f"{file.path}: was replaced after the table was opened; open the table again")
    return fd


def _direct_unit(engine: str, fd: int, file: RowFile) -> int:
    """The smallest unit of direct reads that the file accepts, found by reading one."""
    buffer: Any = aligned_bytes(PAGE_BYTES, PAGE_BYTES)
    for unit in (512, PAGE_BYTES):
        try:
            os.preadv(fd, [buffer[:unit]], unit if file.file_bytes > unit else 0)
        except OSError as error:
            if error.errno != errno.EINVAL:
                error.add_note(f"{file.path}: trying a direct read of {unit} bytes")
                raise
        else:
            return unit
    raise BackendUnavailable(
        f"engine {engine}: the filesystem of {file.path} takes no direct reads of 512 or {PAGE_BYTES} bytes; "
        "use the engine pread"
    )
