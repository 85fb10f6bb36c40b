"""Which bytes are in memory: page cache of files, huge pages of ranges; and how to get files out of it, and
to check.

No system setting is changed: files are evicted one by one, by advice, and what stayed is reported.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable
from engram_tables.storage.row_files import RowFile

File = Path | RowFile
"""A file by its name, or one that a table has open: the very one that it reads, whatever bears its name by now."""

_CACHESTAT = 451
_CHUNK_BYTES = 1 << 30
# Private memory, and files of filesystems that keep large folios in the page cache.
_HUGE_FIELDS = ("AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:")


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("n_bytes", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted"))


def resident_bytes(files: Iterable[File]) -> int:
    """Bytes of the files that the page cache holds, in whole pages: by `cachestat`, or by `mincore` without
    it."""
    return sum(_resident_bytes(file) for file in files)


def evict(files: Iterable[File]) -> int:
    """Ask the system to forget the files' pages; returns the bytes that are still in memory.

    This process's own mappings of the files let go of their pages first, and fault them in anew when they are touched.
    Pages that another process has mapped and touched stay.

    Raises
    ------
    BackendUnavailable
        The system has no such advice.
    """
    if not hasattr(os, "posix_fadvise"):
        raise BackendUnavailable("evicting files: this system has no posix_fadvise; cold reads cannot be measured")
    files = list(files)
    _let_go(files)
    for file in files:
        with _opened(file) as fd:
            # Dirty pages are not dropped; flushing what is clean takes milliseconds all the same.
            found = _cachestat(fd)
            if found is None or found.dirty or found.writeback:
                os.fsync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_bytes(files)


@contextlib.contextmanager
def _opened(file: File) -> Iterator[int]:
    if isinstance(file, RowFile):
        yield file.fd
        return
    fd = os.open(file, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _identity(file: File) -> tuple[int, int]:
    """Device and inode."""
    with _opened(file) as fd:
        status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _let_go(files: Iterable[File]) -> None:
    """Empty the page tables of this process's shared mappings of the files; their content is the files', so none is
    lost."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    wanted = {_identity(file) for file in files}
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        span, flags, _, device, inode, *_ = line.split(maxsplit=5)
        major, minor = (int(number, 16) for number in device.split(":"))
        if flags.endswith("s") and (os.makedev(major, minor), int(inode)) in wanted:
            start, stop = (int(bound, 16) for bound in span.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_DONTNEED)


def preload(files: Iterable[File]) -> None:
    """Read the files once from start to end, so that they are in memory if they fit."""
    block = bytearray(16 << 20)
    for file in files:
        with _opened(file) as fd:
            offset = 0
            while n_read := os.preadv(fd, [block], offset):
                offset += n_read


def huge_page_bytes(arrays: Sequence[NDArray[Any]]) -> int | None:
    """Bytes in huge pages of the mappings in which the arrays begin; None where the system does not say.

    The system may have joined neighbouring ranges into one mapping: each counts once, with all that lies in it.
    """
    addresses = [array.ctypes.data for array in arrays]
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return None
    total, inside = 0, False
    for line in lines:
        first = line.split(maxsplit=1)[0]
        if "-" in first and not first.endswith(":"):
            start, stop = (int(bound, 16) for bound in first.split("-"))
            inside = any(start <= address < stop for address in addresses)
        elif inside and first in _HUGE_FIELDS:
            total += int(line.split()[1]) * 1024
    return total


def _resident_bytes(file: File) -> int:
    with _opened(file) as fd:
        file_bytes = os.fstat(fd).st_size
        if file_bytes == 0:
            return 0
        pages = _cachestat_pages(fd)
        return (_mincore_pages(fd, file_bytes) if pages is None else pages) * mmap.PAGESIZE


def _cachestat_pages(fd: int) -> int | None:
    found = _cachestat(fd)
    return None if found is None else int(found.cache)


def _cachestat(fd: int) -> _Cachestat | None:
    if os.uname().sysname != "Linux":
        return None
    everything, found = _Range(0, 0), _Cachestat()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(_CACHESTAT, fd, ctypes.byref(everything), ctypes.byref(found), 0) != 0:
        return None
    return found


def _mincore_pages(fd: int, file_bytes: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    n_pages = 0
    for offset in range(0, file_bytes, _CHUNK_BYTES):
        n_bytes = min(_CHUNK_BYTES, file_bytes - offset)
        with mmap.mmap(fd, n_bytes, prot=mmap.PROT_READ, offset=offset) as mapping:
            states = np.empty(-(-n_bytes // mmap.PAGESIZE), np.uint8)
            view = np.frombuffer(mapping, np.uint8)
            address, target = ctypes.c_void_p(view.ctypes.data), ctypes.c_void_p(states.ctypes.data)
            del view
            if libc.mincore(address, ctypes.c_size_t(n_bytes), target) != 0:
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code), "mincore")
            n_pages += int((states & 1).sum())
    return n_pages
