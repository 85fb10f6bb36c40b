"""Files that count what is read of them: how little a look at headers costs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from engram_tables.byte_files import ByteFile, Folder


@dataclass(slots=True)
class ReadCount:
    """What was read so far, of all files together."""

    bytes_read: int = 0
    n_reads: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, n_bytes: int) -> None:
        """One more read."""
        with self._lock:
            self.bytes_read += n_bytes
            self.n_reads += 1


class CountedFile:
    """A file whose reads are counted."""

    def __init__(self, file: ByteFile, counted: ReadCount) -> None:
        self.file, self.counted = file, counted
        self.name, self.where, self.file_bytes = file.name, file.where, file.file_bytes

    def folder(self) -> Folder:
        """See `ByteFile`."""
        return CountedFolder(self.file.folder(), self.counted)

    def identity(self) -> Mapping[str, str | int]:
        """See `ByteFile`."""
        return self.file.identity()

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteFile`."""
        self.file.read_into(offset, buffer)
        self.counted.add(len(buffer))

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See `ByteFile`."""
        data = self.file.read(offset, n_bytes)
        self.counted.add(len(data))
        return data

    def close(self) -> None:
        """See `ByteFile`."""
        self.file.close()


class CountedFolder:
    """A folder whose files count what is read of them."""

    def __init__(self, folder: Folder, counted: ReadCount) -> None:
        self.inner, self.counted = folder, counted
        self.name, self.where = folder.name, folder.where

    def names(self) -> list[str]:
        """See `Folder`."""
        return self.inner.names()

    def find(self, name: str) -> ByteFile | None:
        """See `Folder`."""
        found = self.inner.find(name)
        return None if found is None else CountedFile(found, self.counted)

    def open(self, name: str) -> ByteFile:
        """See `Folder`."""
        return CountedFile(self.inner.open(name), self.counted)
