"""Files as ranges of bytes, wherever they lie: beside us or behind a URL. Knows no format.

Readers of checkpoints see `ByteFile` and `Folder` alone, so that what reads a local header reads a remote one.
"""

from __future__ import annotations

import os
import stat
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from engram_tables.errors import InvalidInput


class ByteFile(Protocol):
    """One file, open for reading. Safe from many threads.

    Attributes
    ----------
    name
        Without directories.
    where
        For messages: its path or URL.
    file_bytes
        Its length when it was opened; nobody reads past it.
    """

    name: str
    where: str
    file_bytes: int

    def folder(self) -> Folder:
        """The folder that it lies in."""

    def identity(self) -> Mapping[str, str | int]:
        """What must stay the same for the file to be the same: length and time, or entity tag and revision.

        Looked up anew at each call, so that two calls tell whether the file changed between them.
        """

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer` (bytes, contiguous) from `offset` on.

        Raises
        ------
        InvalidInput
            The range is not in the file, or the file was cut short since it was opened.
        OSError
            The read failed; a note says where.
        """

    def read(self, offset: int, n_bytes: int) -> bytes:
        """The same as new bytes; `InvalidInput` before anything is allocated if the range is not in the file."""

    def close(self) -> None:
        """Give back what is held; reads fail then."""


@runtime_checkable
class Folder(Protocol):
    """A directory of files, here or behind a URL.

    Attributes
    ----------
    name, where
        As for `ByteFile`.
    local_path
        Where it is on this machine, whatever wraps it; None behind a URL.
    """

    name: str
    where: str
    local_path: Path | None

    def names(self) -> list[str]:
        """Names of the files directly in it, sorted; `InvalidInput` where a server lists none."""

    def find(self, name: str) -> ByteFile | None:
        """One of them, or one of a folder below, by its path with `/`; None if it is not there."""

    def open(self, name: str) -> ByteFile:
        """The same; `InvalidInput` if it is not there."""


class LocalFile:
    """A file of this machine; links are followed, and what is no regular file is refused before it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.where = str(path)
        # Looked at before it is opened: a named pipe would wait for its writer.
        if not stat.S_ISREG(path.stat().st_mode):
            raise InvalidInput(f"{path}: found no regular file, expected one; mend the path")
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        self._close = weakref.finalize(self, os.close, self.fd)
        self.file_bytes = os.fstat(self.fd).st_size

    def folder(self) -> LocalFolder:
        """See `ByteFile`."""
        return LocalFolder(self.path.parent)

    def identity(self) -> Mapping[str, str | int]:
        """See `ByteFile`."""
        status = os.fstat(self.fd)
        return {"file_bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteFile`."""
        self._check(offset, len(buffer))
        done = 0
        try:
            while done < len(buffer):
                n_bytes = os.preadv(self.fd, [buffer[done:]], offset + done)
                if n_bytes == 0:
                    raise InvalidInput(
                        f"{self.where}: ends at byte {offset + done}, expected {self.file_bytes}; it was cut short "
                        "while it was being read: copy it again"
                    )
                done += n_bytes
        except OSError as error:
            error.add_note(f"{self.where}: reading {len(buffer)} bytes at byte {offset}")
            raise

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See `ByteFile`."""
        self._check(offset, n_bytes)
        buffer = bytearray(n_bytes)
        self.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    def close(self) -> None:
        """See `ByteFile`."""
        self._close()

    def _check(self, offset: int, n_bytes: int) -> None:
        # A closed file's descriptor may be another file's by now.
        if not self._close.alive:
            raise InvalidInput(f"{self.where}: closed already, expected an open file; open it again")
        if offset < 0 or n_bytes < 0 or offset + n_bytes > self.file_bytes:
            raise InvalidInput(
                f"{self.where}: asked for bytes {offset} to {offset + n_bytes}, expected a range within its "
                f"{self.file_bytes} bytes; is it a whole file? copy it again"
            )


class LocalFolder:
    """A directory of this machine."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.local_path: Path | None = path
        self.name = path.absolute().name
        self.where = str(path)

    def names(self) -> list[str]:
        """See `Folder`."""
        return sorted(entry.name for entry in self.path.iterdir() if entry.is_file())

    def find(self, name: str) -> LocalFile | None:
        """See `Folder`."""
        path = self.path / name
        return LocalFile(path) if path.is_file() else None

    def open(self, name: str) -> LocalFile:
        """See `Folder`."""
        file = self.find(name)
        if file is None:
            raise InvalidInput(f"{self.path / name}: found no such file, expected one; is the directory whole?")
        return file


def as_file(file: ByteFile | Path) -> ByteFile:
    """`file` itself, or the file at a path, opened."""
    return LocalFile(file) if isinstance(file, Path) else file


def as_place(place: ByteFile | Folder | Path) -> ByteFile | Folder:
    """`place` itself, or what is at a path; `InvalidInput` if nothing is there."""
    return open_place(place) if isinstance(place, Path) else place


def is_url(where: str) -> bool:
    """Whether `where` names something behind a protocol, as `https://…` or `hf://…` do."""
    return "://" in where


def open_place(where: str | Path, *, revision: str | None = None) -> ByteFile | Folder:
    """The file or folder at a path or URL.

    Parameters
    ----------
    revision
        Of a repository behind `hf://`; `InvalidInput` for others.

    Raises
    ------
    InvalidInput
        Nothing is there, or no filesystem is known by the URL's protocol.
    BackendUnavailable
        The package that the URL's protocol needs is missing.
    """
    if not str(where):
        raise InvalidInput("path: found an empty one, expected a file, a directory or a URL; name it")
    if is_url(str(where)):
        from engram_tables.remote import open_remote

        return open_remote(str(where), revision=revision)
    if revision is not None:
        raise InvalidInput(f"revision: found {revision!r} for the path {where}, expected a URL; drop it")
    path = Path(where)
    if not path.exists():
        raise InvalidInput(f"{path}: found nothing there, expected a file or a directory; mend the path")
    return LocalFolder(path) if path.is_dir() else LocalFile(path)
