"""Files and directories that appear whole or not at all: written aside, flushed, then renamed."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from engram_tables.errors import BackendUnavailable, InvalidInput

_AT_FDCWD = -100
_RENAME_NOREPLACE = 1
_RENAME_EXCHANGE = 2
_NO_LINKS = (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV)


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[BinaryIO]:
    """A binary file that takes the name `path` when the block ends without an exception."""
    refuse_existing(path, force=force)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InvalidInput(f"{path}: is no plain file, which alone is replaced; write under another name")
    temporary = _sibling(path)
    try:
        with _noted(f"while writing {path}"), temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if force:
            temporary.replace(path)
        else:
            _rename_to_free_name(temporary, path)
        fsync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_directory(path: Path, *, force: bool = False) -> Iterator[Path]:
    """A fresh sibling directory that takes the name `path` when the block ends without an exception.

    With `force` an existing `path` is exchanged for the new directory in one step, then removed; a reader that
    holds its files open keeps reading the old bytes. Files inside must have been flushed by whoever wrote them.

    Raises
    ------
    InvalidInput
        `path` exists and `force` is not set, or its parent does not exist.
    BackendUnavailable
        `force` is set and the filesystem cannot exchange two directories; nothing was changed.
    """
    refuse_existing(path, force=force)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InvalidInput(f"{path}: is no directory, which alone is replaced; write under another name")
    temporary = _sibling(path)
    with _noted(f"while making {path}"):
        temporary.mkdir()
    try:
        if path.exists():
            check_exchange(temporary, path)
        yield temporary
        fsync_directory(temporary)
        rename_directory(temporary, path, force=force)
        fsync_directory(path.parent)
    finally:
        # After an exchange the temporary name holds the old directory.
        shutil.rmtree(temporary, ignore_errors=True)


def rename_directory(source: Path, target: Path, *, force: bool) -> None:
    """Give `source` the name `target` in one step; with `force` what is there takes the name `source` instead.

    Raises
    ------
    InvalidInput
        Without `force`, something has appeared at `target` in the meantime.
    """
    if force and target.exists():
        _rename(source, target, _RENAME_EXCHANGE)
    else:
        _rename_to_free_name(source, target)


def check_exchange(directory: Path, target: Path) -> None:
    """Raise `BackendUnavailable` unless `target` could be exchanged for another directory; two throw-away ones in
    `directory`, on the same filesystem, show it, so that a refusal comes before the work and not after it."""
    one, two = directory / "exchange-a", directory / "exchange-b"
    one.mkdir()
    two.mkdir()
    try:
        _rename(one, two, _RENAME_EXCHANGE)
    except OSError as error:
        raise BackendUnavailable(
            f"{target}: this filesystem cannot exchange two directories ({error.strerror}); "
            "remove the old one first, or write under another name"
        ) from None
    finally:
        one.rmdir()
        two.rmdir()


def give_second_name(source: Path, target: Path) -> None:
    """Name a file a second time, so that it is still under the first if this run is killed; where a filesystem
    knows no second names, it moves."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        source.replace(target)


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raise `InvalidInput` if `path` could not be written."""
    if not path.name:
        raise InvalidInput(f"{path}: is the place of other files, expected a name for a new one")
    if not path.parent.is_dir():
        raise InvalidInput(f"{path}: its directory {path.parent} does not exist; create it first")
    if not force and (path.exists() or path.is_symlink()):
        raise InvalidInput(f"{path}: exists already, expected a free name; choose another or give --force")


def fsync_directory(path: Path) -> None:
    """Make renames inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_at(fd: int, buffer: memoryview, offset: int) -> memoryview:
    """Fill `buffer` from the file; what is returned is shorter where the file ends before."""
    done = 0
    while done < len(buffer):
        n_bytes = os.preadv(fd, [buffer[done:]], offset + done)
        if n_bytes == 0:
            break
        done += n_bytes
    return buffer[:done]


def write_at(fd: int, data: memoryview, offset: int) -> None:
    """All of `data` into the file, however many calls it takes."""
    done = 0
    while done < len(data):
        done += os.pwrite(fd, data[done:], offset + done)


def allocate(fd: int, file_bytes: int) -> None:
    """Give the file its length; its blocks too where the filesystem can, so that a full disk is met before the work."""
    if hasattr(os, "posix_fallocate") and file_bytes:
        try:
            os.posix_fallocate(fd, 0, file_bytes)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    os.ftruncate(fd, file_bytes)


def _sibling(path: Path) -> Path:
    # The name is cut so that even the longest one leaves room for the rest.
    return path.with_name(f".{path.name[:50]}.{os.getpid()}-{secrets.token_hex(4)}.partial")


@contextmanager
def _noted(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        error.add_note(what)
        raise


def _rename_to_free_name(source: Path, target: Path) -> None:
    """Rename, but never over something that has appeared in the meantime."""
    try:
        _rename(source, target, _RENAME_NOREPLACE)
    except FileExistsError:
        raise InvalidInput(
            f"{target}: another process made it in the meantime; choose another name, or give --force"
        ) from None


def _rename(source: Path, target: Path, flags: int) -> None:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
            return
        code = ctypes.get_errno()
    else:
        code = errno.ENOSYS
    if flags == _RENAME_NOREPLACE and code in (errno.ENOSYS, errno.EINVAL):
        # No such system call here: look first. What appears between the two steps is not seen.
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.rename(target)
        return
    raise OSError(code, os.strerror(code), str(source), None, str(target))
