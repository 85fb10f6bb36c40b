"""Files mapped one after the other into one range of addresses. It knows no rows and reads no byte."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import weakref
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable
from engram_tables.memory import HUGE_PAGE_BYTES
from engram_tables.storage.row_files import RowFile

_PROT_NONE, _MAP_FIXED = 0, 0x10
# Addresses alone, which no memory stands behind; macOS has no such flag and needs none.
_RESERVE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_longlong]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_NOT_MAPPABLE = (errno.ENODEV, errno.EACCES, errno.EPERM)
_FAILED = ctypes.c_void_p(-1).value


class FileRegion:
    """Whole files, read-only and shared with the page cache, so that one subtraction tells an address's page.

    Attributes
    ----------
    start, n_bytes
        Address and length; `start` is a multiple of a huge page. The gaps behind files must not be touched.
    file_starts
        uint64 (files,): offset in the region of each file's byte 0, a multiple of a huge page, so that a file's own
        huge pages can be mapped as such.

    Raises
    ------
    BackendUnavailable
        A file's system does not map files.
    OSError
        The system refuses otherwise; a note names the file.
    """

    def __init__(self, files: Sequence[RowFile]) -> None:
        spans = [-(-file.file_bytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES for file in files]
        starts = np.concatenate(([0], np.cumsum(spans, dtype=np.int64)))
        self.n_bytes = max(int(starts[-1]), HUGE_PAGE_BYTES)
        self.file_starts: NDArray[np.uint64] = starts[:-1].astype(np.uint64)
        self._reserved_bytes = self.n_bytes + HUGE_PAGE_BYTES
        reserved = _map(0, self._reserved_bytes, _PROT_NONE, _RESERVE, -1)
        self.start = -(-reserved // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
        self._finalize = weakref.finalize(self, _libc.munmap, reserved, self._reserved_bytes)
        self._ranges = [
            (self.start + start, file.file_bytes) for start, file in zip(starts.tolist(), files, strict=False)
        ]
        try:
            for (address, n_bytes), file in zip(self._ranges, files, strict=True):
                _map_file(address, n_bytes, file)
        except BaseException:
            self.close()
            raise

    def advise(self, advice: int) -> None:
        """madvise for every file; a system that does not know the advice goes without."""
        for address, n_bytes in self._ranges:
            if n_bytes:
                _libc.madvise(address, n_bytes, advice)

    def close(self) -> None:
        """Give the addresses back: nobody may use one from now on. Called again, there is nothing left to do."""
        self._finalize()


def _map_file(address: int, n_bytes: int, file: RowFile) -> None:
    if not n_bytes:
        return
    try:
        _map(address, n_bytes, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED, file.fd)
    except OSError as error:
        if error.errno not in _NOT_MAPPABLE:
            error.add_note(f"{file.path}: mapping {n_bytes} bytes")
            raise
        raise BackendUnavailable(
            f"{file.path}: its filesystem does not let it be mapped ({os.strerror(error.errno)}), which the engines "
            "gather, mapping and willneed need; use pread, direct, uring or aio"
        ) from None


def _map(address: int, n_bytes: int, protection: int, flags: int, fd: int) -> int:
    found = _libc.mmap(address or None, n_bytes, protection, flags, fd, 0)
    if found == _FAILED or found is None:
        code = ctypes.get_errno() or errno.ENOMEM
        raise OSError(code, f"mmap of {n_bytes} bytes: {os.strerror(code)}")
    return int(found)
