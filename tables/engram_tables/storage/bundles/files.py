"""A directory of bundles, opened: every file held open and checked against the manifest, the index mapped.

Like a table it is not read here beyond its headers; `storage.checking` holds blocks against their digests.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import CorruptTable, IncompleteTable, NotATable
from engram_tables.storage.bundles.bundle_manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    NGRAMS_NAME,
    BundleFile,
    BundleManifest,
)
from engram_tables.storage.row_files import RowFile
from engram_tables.storage.sealed_files import open_below, open_sealed

_COPY_AGAIN = "copy the bundles again, or build them again"


class BundleDirectory:
    """Open bundles; closing them closes their files.

    Parameters
    ----------
    path
        The directory; nothing inside it may be a symbolic link.

    Attributes
    ----------
    manifest
        What `bundles.json` says.
    files
        By path below the directory.

    Raises
    ------
    NotATable
        No directory, or no manifest in it.
    IncompleteTable, CorruptTable
        A file is missing or too short; too long, or its header is another one.
    UnsupportedTable
        A later schema, or something that is no regular file.

    Notes
    -----
    Not checked when opening: the blocks' digests, those of the index among them. A damaged index finds nothing, or a
    bundle of other rows, which the check in its slot refuses but for one in 2^32. An index that is cut after it was
    opened ends a process that looks into it there with SIGBUS, as a mapped table does.

    When the directory is exchanged for another while it is being opened, the new one is opened; bundles that are open
    keep serving their old bytes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._fds: list[int] = []
        self.files: dict[str, RowFile] = {}
        try:
            open_sealed(self.path, self._open, self.close, expected="a directory of bundles")
        except OSError as error:
            error.add_note(f"while opening the bundles {self.path}")
            raise

    def _open(self, root: int) -> None:
        self.files = {}
        try:
            fd = open_below(self.path, root, MANIFEST_NAME, None, mend=_COPY_AGAIN)
        except FileNotFoundError:
            raise NotATable(
                f"{self.path}: found no {MANIFEST_NAME}, which all bundles have; give a directory of bundles, or build "
                "one",
                path=str(self.path),
            ) from None
        with os.fdopen(fd, "rb") as file:
            data = file.read()
        self.manifest = BundleManifest.from_bytes(data, path=str(self.path / MANIFEST_NAME))
        for entry in self.manifest.files:
            try:
                fd = open_below(self.path, root, entry.path, entry.file_bytes, mend=_COPY_AGAIN)
            except FileNotFoundError:
                raise IncompleteTable(
                    f"{self.path / entry.path}: found no such file, expected {entry.file_bytes} bytes; {_COPY_AGAIN}",
                    path=str(self.path),
                ) from None
            self._fds.append(fd)
            self._check_header(fd, entry)
            self.files[entry.path] = RowFile(path=self.path / entry.path, file_bytes=entry.file_bytes, fd=fd)

    def _check_header(self, fd: int, entry: BundleFile) -> None:
        header = os.pread(fd, entry.data_offset, 0)
        found = hashlib.sha256(header).hexdigest()
        if found != entry.header_sha256 or header != self.manifest.header(entry):
            raise CorruptTable(
                f"{self.path / entry.path}: its header hashes to {found}, expected {entry.header_sha256} and what the "
                f"manifest says; {_COPY_AGAIN}",
                path=str(self.path),
            )

    @cached_property
    def slots(self) -> NDArray[np.uint64]:
        """uint64 (slots, key words + 1), mapped: those of all layers, one after the other, order by order."""
        entry = self._entry(INDEX_NAME)
        view = mmap.mmap(self.files[INDEX_NAME].fd, entry.file_bytes, prot=mmap.PROT_READ)
        words = np.frombuffer(view, np.uint64, offset=entry.data_offset)
        return words.reshape(-1, self.manifest.key_words + 1)

    @cached_property
    def n_slots(self) -> NDArray[np.int64]:
        """int64 (layers, orders): slots of each."""
        shapes = [tensor.shape[0] for tensor in self._entry(INDEX_NAME).tensors]
        return np.array(shapes, np.int64).reshape(len(self.manifest.layer_ids), -1)

    def ngrams(self, order: int) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
        """The chosen n-grams of an order, uint32 (n, order), and their counts, uint64 (n,), read from the disk."""
        entry = self._entry(NGRAMS_NAME)
        found: dict[str, NDArray[np.uint8]] = {}
        offset = entry.data_offset
        for tensor in entry.tensors:
            if tensor.name.startswith(f"order-{order}."):
                found[tensor.name] = np.empty(tensor.n_bytes, np.uint8)
                self.files[NGRAMS_NAME].read_into(offset, found[tensor.name])
            offset += tensor.n_bytes
        ids = found[f"order-{order}.ngrams"].view(np.uint32)
        return ids.reshape(-1, order), found[f"order-{order}.counts"].view(np.uint64)

    def _entry(self, path: str) -> BundleFile:
        return next(file for file in self.manifest.files if file.path == path)

    def close(self) -> None:
        """Close every file; the index stays readable to whoever holds it."""
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
