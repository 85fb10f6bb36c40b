"""An open table: every file held open and checked against the manifest; rows located, vocabulary at hand.

No record is read here: `fetch` does that through the descriptors and mappings, `verify` hashes the data blocks.
What is not checked when opening: the data blocks' digests. A file that someone cuts short after the table was
opened ends a process that reads the mapping there with SIGBUS; tables are never changed in place by this package.
"""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Self

from engram_tables.errors import CorruptTable, IncompleteTable, InvalidInput, NotATable
from engram_tables.storage.extents import Extent
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.storage.sealed_files import open_below, open_sealed
from engram_tables.storage.table.layout import MANIFEST_NAME, VOCABULARY_NAME, Layout
from engram_tables.storage.table.manifest import Manifest, VocabularyRecord
from engram_tables.storage.table.ranks import refuse_ranks
from engram_tables.storage.table.shards import ShardRecord, shard_header

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary

_COPY_AGAIN = "copy it or build the table again"


class StoredTable(RowFiles):
    """A table directory, opened and checked; `files[k]` and `extents[k]` belong to `manifest.shards[k]`.

    Parameters
    ----------
    path
        The directory; it may be a symbolic link itself, nothing inside it may be one.

    Raises
    ------
    NotATable
        There is no directory or no manifest there.
    IncompleteTable
        A file that the manifest names is missing or shorter than it must be.
    UnsupportedTable
        A later schema, another codec or layout, or something that is no regular file.
    CorruptTable
        Manifest, header or vocabulary differ from their digests, or a file is too long.

    Notes
    -----
    Cost: one open a shard, and the hashes of manifest, headers and vocabulary. When the directory is exchanged for
    another while it is being opened, the new one is opened; a table that is open keeps serving its old bytes.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._fds: list[int] = []
        self._vocabulary_fd = -1
        try:
            open_sealed(self.path, self._open, self._close_files, expected="the directory of a table")
        except OSError as error:
            error.add_note(f"while opening the table {self.path}")
            raise

    def _open(self, root: int) -> None:
        manifest_path = str(self.path / MANIFEST_NAME)
        self.manifest = manifest = Manifest.from_bytes(self._read(root, MANIFEST_NAME, None), path=manifest_path)
        self.spec = manifest.spec
        self.codec = manifest.get_codec()
        self.layout: Layout = manifest.get_layout()
        self.row_bytes = manifest.row_bytes
        self.parts = manifest.parts
        self._check_vocabulary(root)
        self.files = [self._open_shard(root, record) for record in manifest.shards]
        self.extents = tuple(
            Extent(
                file_idx=file_idx, layer_id=shard.layer_id, part_idx=manifest.part_idx(shard.part),
                first_row=shard.first_row, n_rows=shard.n_rows, offset=shard.data_offset,
            )
            for file_idx, shard in enumerate(manifest.shards)
        )  # fmt: skip

    def vocabulary(self) -> Vocabulary | None:
        """The table's own copy of its vocabulary, or None if it has none.

        It is read from the file that was opened with the table, whatever the directory holds by now.

        Raises
        ------
        CorruptTable
            The file was changed since, or its content is no vocabulary, or not the one of the manifest.
        InvalidInput
            The table is closed.
        """
        self.check_open()
        record = self.manifest.vocabulary
        if record is None:
            return None
        from engram_tables.address.vocabulary import read_vocabulary

        data = self._checked_vocabulary(record)
        try:
            vocabulary = read_vocabulary(io.BytesIO(data), str(self.path / VOCABULARY_NAME))
        except InvalidInput as error:
            raise CorruptTable(str(error), path=str(self.path)) from None
        if vocabulary.map_sha256 != record.map_sha256:
            raise self._corrupt(
                VOCABULARY_NAME, f"its map has digest {vocabulary.map_sha256}, expected {record.map_sha256}"
            )
        return vocabulary

    def _refuse_ranks(self) -> None:
        try:
            refuse_ranks(self.path)
        except InvalidInput as error:
            raise NotATable(str(error), path=str(self.path)) from None

    def _close_files(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_vocabulary(self, root: int) -> None:
        record = self.manifest.vocabulary
        if record is None:
            return
        if self.spec.vocab_sha256 not in (None, record.map_sha256):
            raise self._corrupt(
                MANIFEST_NAME,
                f"its spec addresses the vocabulary {self.spec.vocab_sha256}, the table holds {record.map_sha256}, "
                "so every row would be another token's",
            )
        self._vocabulary_fd = self._open_file(root, VOCABULARY_NAME, record.file_bytes)
        self._fds.append(self._vocabulary_fd)
        self._checked_vocabulary(record)

    def _checked_vocabulary(self, record: VocabularyRecord) -> bytes:
        data = _read_at(self._vocabulary_fd, record.file_bytes)
        found = hashlib.sha256(data).hexdigest()
        if found != record.sha256:
            raise self._corrupt(VOCABULARY_NAME, f"hashes to {found}, expected {record.sha256}")
        return data

    def _open_shard(self, root: int, record: ShardRecord) -> RowFile:
        fd = self._open_file(root, record.path, record.file_bytes)
        self._fds.append(fd)
        header = os.pread(fd, record.data_offset, 0)
        found = hashlib.sha256(header).hexdigest()
        if found != record.header_sha256:
            raise self._corrupt(record.path, f"its header hashes to {found}, expected {record.header_sha256}")
        if header != shard_header(self.manifest, record):
            raise self._corrupt(
                record.path, "its header contradicts the manifest, expected the tensor that follows from it"
            )
        return RowFile(path=self.path / record.path, file_bytes=record.file_bytes, fd=fd)

    def _read(self, root: int, name: str, file_bytes: int | None) -> bytes:
        """The whole of a small file, which is closed again."""
        with os.fdopen(self._open_file(root, name, file_bytes), "rb") as file:
            return file.read()

    def _open_file(self, root: int, name: str, file_bytes: int | None) -> int:
        """Open `name` below `root` without following a link, and hold it to its length before any use."""
        try:
            return open_below(self.path, root, name, file_bytes, mend=_COPY_AGAIN)
        except FileNotFoundError:
            if name == MANIFEST_NAME:
                self._refuse_ranks()
                raise NotATable(
                    f"{self.path}: found no {MANIFEST_NAME}, which every whole table has; "
                    "give the directory of a table, or build one",
                    path=str(self.path),
                ) from None
            raise IncompleteTable(
                f"{self.path / name}: found no such file, expected {file_bytes} bytes; {_COPY_AGAIN}",
                path=str(self.path),
            ) from None

    def _corrupt(self, name: str | Path, what: str) -> CorruptTable:
        return CorruptTable(f"{self.path / name}: {what}; {_COPY_AGAIN}", path=str(self.path))


def _read_at(fd: int, n_bytes: int) -> bytes:
    """The first `n_bytes` of a file, fewer if it ends before; moves no file position, so threads may share it."""
    data = b""
    while len(data) < n_bytes and (more := os.pread(fd, n_bytes - len(data), len(data))):
        data += more
    return data
