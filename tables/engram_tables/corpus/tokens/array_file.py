"""One-dimensional .npy files whose header always has 128 bytes: appended to without knowing the length, mapped back.

Owns those bytes. Knows no tokens: whoever opens a file says what it must hold, and anything else is refused before
a byte of it is mapped.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import weakref
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engram_tables.errors import InvalidInput

HEADER_BYTES = 128
_MAGIC = b"\x93NUMPY\x01\x00"
_PROT_READ = 1
_MAP_SHARED = 1
_MAP_FAILED = ctypes.c_void_p(-1).value
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def npy_header(dtype: npt.DTypeLike, n_items: int) -> bytes:
    """The first `HEADER_BYTES` of a .npy file of version 1.0 that holds `n_items` of `dtype` in one dimension.

    NumPy's own writer pads by rules that changed between its releases; here one content has one spelling.
    """
    spelled = f"{{'descr': '{np.dtype(dtype).str}', 'fortran_order': False, 'shape': ({n_items},), }}"
    body_bytes = HEADER_BYTES - len(_MAGIC) - 2
    return _MAGIC + body_bytes.to_bytes(2, "little") + spelled.ljust(body_bytes - 1).encode() + b"\n"


class ArrayWriter:
    """A new .npy file that grows by appending; its header is written when it is finished.

    Every write goes to the system at once, so that a full disk is an `OSError` with its number, here and not later.
    """

    def __init__(self, path: Path, dtype: npt.DTypeLike) -> None:
        self.path = path
        self.dtype = np.dtype(dtype)
        self.n_items = 0
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            os.lseek(self._fd, HEADER_BYTES, os.SEEK_SET)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def append(self, items: npt.NDArray[Any]) -> None:
        """Add `items`, (n,) of the file's dtype."""
        self._write(np.ascontiguousarray(items, dtype=self.dtype).view(np.uint8).data)
        self.n_items += len(items)

    def finish(self) -> None:
        """Write the header and flush all to the disk."""
        os.lseek(self._fd, 0, os.SEEK_SET)
        self._write(memoryview(npy_header(self.dtype, self.n_items)))
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file, finished or not."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _write(self, data: memoryview) -> None:
        done = 0
        try:
            while done < len(data):
                done += os.write(self._fd, data[done:])
        except OSError as error:
            error.filename = str(self.path)
            raise


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_array(path: Path, dtype: npt.DTypeLike, n_items: int) -> npt.NDArray[Any]:
    """Map the `n_items` of `dtype` in a file of `ArrayWriter`: a read-only array (n_items,).

    The mapping holds no file descriptor, lives as long as an array on it, and outlives the file's name.

    Raises
    ------
    InvalidInput
        A file that is missing, shorter or longer, or whose header is another one.
    """
    kind = np.dtype(dtype)
    data = map_file(path, HEADER_BYTES + n_items * kind.itemsize)
    found, expected = data[:HEADER_BYTES].tobytes(), npy_header(kind, n_items)
    if found != expected:
        raise damaged(path, f"header {_readable(found)}, expected {_readable(expected)}")
    return data[HEADER_BYTES:].view(kind)


def map_file(path: Path, file_bytes: int) -> npt.NDArray[np.uint8]:
    """Map a file, which must have `file_bytes`, at least one: read-only uint8 (file_bytes,). See `map_array`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise damaged(path, f"the file is missing, expected {file_bytes:,} bytes") from None
    try:
        found_bytes = os.fstat(fd).st_size
        if found_bytes != file_bytes:
            raise damaged(path, f"{found_bytes:,} bytes, expected {file_bytes:,}")
        return _mapped(fd, file_bytes)
    except OSError as error:
        error.filename = str(path)
        raise
    finally:
        os.close(fd)


def _mapped(fd: int, n_bytes: int) -> npt.NDArray[np.uint8]:
    # Python's mmap keeps a descriptor for every mapping: a store of a thousand files would pass the usual limit.
    address = _LIBC.mmap(None, n_bytes, _PROT_READ, _MAP_SHARED, fd, 0)
    if address == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    block = (ctypes.c_uint8 * n_bytes).from_address(address)
    weakref.finalize(block, _LIBC.munmap, address, n_bytes).atexit = False
    array: npt.NDArray[np.uint8] = np.frombuffer(memoryview(block), dtype=np.uint8)
    array.setflags(write=False)
    return array


def damaged(path: Path, found: str) -> InvalidInput:
    """The error for a file of a token store that is not what its manifest says."""
    return InvalidInput(f"{path}: {found}; the token store is damaged: copy it again or tokenise again")


def _readable(header: bytes) -> str:
    return repr(header[len(_MAGIC) + 2 :].rstrip().decode("ascii", "backslashreplace")[:120])
