"""Opening a directory whose manifest says what lies in it: by one descriptor, following no link, lengths held.

It knows no manifest: who opens says what he expects, and how to mend what is not so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from engram_tables.errors import CorruptTable, IncompleteTable, NotATable, TableError, UnsupportedTable

MAX_MANIFEST_BYTES = 2**30
_OPEN_ATTEMPTS = 3


def open_sealed(path: Path, open_all: Callable[[int], None], let_go: Callable[[], None], *, expected: str) -> None:
    """Have `open_all` open what lies below the directory's descriptor, which is closed afterwards.

    Parameters
    ----------
    open_all
        Given the descriptor. When the directory is exchanged for another meanwhile, it is called again for that one,
        three times at most.
    let_go
        Closes what a call that failed had opened.
    expected
        What the path should name, for messages.

    Raises
    ------
    NotATable
        The path names no directory.
    """
    for attempt in range(_OPEN_ATTEMPTS):
        root = _open_root(path, expected)
        try:
            open_all(root)
            return
        except TableError:
            let_go()
            if attempt == _OPEN_ATTEMPTS - 1 or not _was_exchanged(root, path):
                raise
        except BaseException:
            let_go()
            raise
        finally:
            os.close(root)


def open_below(path: Path, root: int, name: str, file_bytes: int | None, *, mend: str) -> int:
    """A descriptor of the file `name` below the directory `path`, which is open as `root`; nothing is read.

    Parameters
    ----------
    file_bytes
        Its length; None for a manifest, which has any length up to `MAX_MANIFEST_BYTES`.
    mend
        What to do about a file that is not so, for messages.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    UnsupportedTable
        A link, or no regular file.
    IncompleteTable, CorruptTable
        It is shorter, or longer.
    """
    where = path / name
    directory, _, base = name.rpartition("/")
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        parent = os.open(directory, flags | os.O_DIRECTORY, dir_fd=root) if directory else os.dup(root)
        try:
            fd = os.open(base, flags, dir_fd=parent)
        finally:
            os.close(parent)
    except FileNotFoundError:
        raise
    except OSError as error:
        if where.is_symlink() or (directory and where.parent.is_symlink()):
            raise UnsupportedTable(
                f"{where}: found a symbolic link ({error.strerror}), expected files inside the directory; replace the "
                "link by the file",
                path=str(path),
            ) from None
        if isinstance(error, NotADirectoryError):
            raise IncompleteTable(
                f"{where.parent}: found a file, expected a directory; {mend}", path=str(path)
            ) from None
        raise
    try:
        _check_length(path, where, os.fstat(fd), file_bytes, mend)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_length(path: Path, where: Path, status: os.stat_result, file_bytes: int | None, mend: str) -> None:
    found = status.st_size
    if not stat.S_ISREG(status.st_mode):
        raise UnsupportedTable(f"{where}: found no regular file, expected one; replace it by the file", path=str(path))
    if file_bytes is None:
        if found > MAX_MANIFEST_BYTES:
            raise NotATable(
                f"{where}: found {found} bytes, expected {MAX_MANIFEST_BYTES} at most; mend the path", path=str(path)
            )
    elif found < file_bytes:
        raise IncompleteTable(
            f"{where}: found {found} bytes, expected {file_bytes}; the file is cut short: {mend}", path=str(path)
        )
    elif found > file_bytes:
        raise CorruptTable(f"{where}: found {found} bytes, expected {file_bytes}; {mend}", path=str(path))


def _open_root(path: Path, expected: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotATable(f"{path}: found nothing there, expected {expected}; mend the path", path=str(path)) from None
    except NotADirectoryError:
        raise NotATable(f"{path}: found a file, expected {expected}; mend the path", path=str(path)) from None


def _was_exchanged(root: int, path: Path) -> bool:
    """Whether `path` now names another directory than the one held open as `root`."""
    try:
        return not os.path.samestat(os.fstat(root), path.stat())
    except OSError:
        return False
