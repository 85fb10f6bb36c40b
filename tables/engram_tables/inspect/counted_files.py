"""Files that read every byte once at most and count them: how little a look at headers costs."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from engram_tables.byte_files import ByteFile, Folder


@dataclass(slots=True)
class ReadCount:
    """What was read so far, of all files together, and the bytes themselves.

    Headers are walked by one reader for the tensors, by another for the addressing; behind a URL each walk would be
    fetched anew.
    """

    bytes_read: int = 0
    n_reads: int = 0
    _kept: dict[str, dict[int, bytes]] = field(default_factory=dict)
    """By file: disjoint stretches by their first byte."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self, file: ByteFile, offset: int, n_bytes: int) -> bytes:
        """The same as `file.read`, of which only what is missing is asked for."""
        with self._lock:
            kept = self._kept.setdefault(file.where, {})
            found, position, stop = [], offset, offset + n_bytes
            for start, data in sorted(kept.items()):
                end = start + len(data)
                if end <= position or start >= stop:
                    continue
                if start > position:
                    found.append(self._fetch(file, position, start - position))
                    position = start
                found.append(data[position - start : min(end, stop) - start])
                position = min(end, stop)
            if position < stop or not found:
                found.append(self._fetch(file, position, stop - position))
            return b"".join(found)

    def _fetch(self, file: ByteFile, offset: int, n_bytes: int) -> bytes:
        data = file.read(offset, n_bytes)
        self._kept[file.where][offset] = data
        self.bytes_read += len(data)
        self.n_reads += 1
        return data


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
        buffer[:] = self.read(offset, len(buffer))

    def read(self, offset: int, n_bytes: int) -> bytes:
        """See `ByteFile`."""
        return self.counted.read(self.file, offset, n_bytes)

    def close(self) -> None:
        """See `ByteFile`."""
        self.file.close()


class CountedFolder:
    """A folder whose files count what is read of them."""

    def __init__(self, folder: Folder, counted: ReadCount) -> None:
        self.inner, self.counted = folder, counted
        self.name, self.where = folder.name, folder.where
        self.local_path: Path | None = folder.local_path

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
