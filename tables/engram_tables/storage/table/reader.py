"""An open table: every file held open and checked against the manifest; rows located, vocabulary at hand.

No record is read here: `fetch` does that through the descriptors and mappings, `verify` hashes the data blocks.
What is not checked when opening: the data blocks' digests. A file that someone cuts short after the table was
opened ends a process that reads the mapping there with SIGBUS; tables are never changed in place by this package.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Self

from engram_tables.errors import (
    CorruptTable,
    IncompleteTable,
    InvalidInput,
    NotATable,
    TableError,
    UnsupportedTable,
)
from engram_tables.storage.extents import Extent
from engram_tables.storage.row_files import RowFile, RowFiles
from engram_tables.storage.table.layout import MANIFEST_NAME, VOCABULARY_NAME, Layout
from engram_tables.storage.table.manifest import Manifest, VocabularyRecord
from engram_tables.storage.table.ranks import refuse_ranks
from engram_tables.storage.table.shards import ShardRecord, shard_header

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary

_MAX_MANIFEST_BYTES = 2**30
_OPEN_ATTEMPTS = 3


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
            for attempt in range(_OPEN_ATTEMPTS):
                if self._try_to_open(is_last=attempt == _OPEN_ATTEMPTS - 1):
                    return
        except OSError as error:
            error.add_note(f"while opening the table {self.path}")
            raise

    def _try_to_open(self, *, is_last: bool) -> bool:
        """Open everything; False if the directory was exchanged in the meantime, and it is not the last attempt."""
        root = _open_root(self.path)
        try:
            self._open(root)
        except TableError:
            self._close_files()
            if is_last or not _was_exchanged(root, self.path):
                raise
            return False
        except BaseException:
            self._close_files()
            raise
        finally:
            os.close(root)
        return True

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
        where = self.path / name
        directory, _, base = name.rpartition("/")
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            parent = os.open(directory, flags | os.O_DIRECTORY, dir_fd=root) if directory else os.dup(root)
            try:
                fd = os.open(base, flags, dir_fd=parent)
            finally:
                os.close(parent)
        except FileNotFoundError:
            if name == MANIFEST_NAME:
                self._refuse_ranks()
                raise NotATable(
                    f"{self.path}: found no {MANIFEST_NAME}, which every whole table has; "
                    "give the directory of a table, or build one",
                    path=str(self.path),
                ) from None
            raise IncompleteTable(
                f"{where}: found no such file, expected {file_bytes} bytes; copy it or build the table again",
                path=str(self.path),
            ) from None
        except OSError as error:
            if not any(part.is_symlink() for part in (where.parent, where)):
                raise
            raise UnsupportedTable(
                f"{where}: found a symbolic link ({error.strerror}), expected files inside the table; "
                "replace the link by the file",
                path=str(self.path),
            ) from None
        try:
            self._check_length(os.fstat(fd), where, file_bytes)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _check_length(self, status: os.stat_result, where: Path, file_bytes: int | None) -> None:
        path = str(self.path)
        if not stat.S_ISREG(status.st_mode):
            raise UnsupportedTable(f"{where}: found no regular file, expected one; replace it by the file", path=path)
        if file_bytes is None:
            if status.st_size > _MAX_MANIFEST_BYTES:
                raise NotATable(
                    f"{where}: found {status.st_size} bytes, expected {_MAX_MANIFEST_BYTES} at most; "
                    "give the directory of a table",
                    path=path,
                )
        elif status.st_size < file_bytes:
            raise IncompleteTable(
                f"{where}: found {status.st_size} bytes, expected {file_bytes}; the file is cut short: "
                "copy it or build the table again",
                path=path,
            )
        elif status.st_size > file_bytes:
            raise self._corrupt(where.relative_to(self.path), f"found {status.st_size} bytes, expected {file_bytes}")

    def _corrupt(self, name: str | Path, what: str) -> CorruptTable:
        return CorruptTable(f"{self.path / name}: {what}; copy it or build the table again", path=str(self.path))


def _open_root(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotATable(
            f"{path}: found nothing there, expected the directory of a table; mend the path", path=str(path)
        ) from None
    except NotADirectoryError:
        raise NotATable(
            f"{path}: found a file, expected the directory of a table; mend the path", path=str(path)
        ) from None


def _read_at(fd: int, n_bytes: int) -> bytes:
    """The first `n_bytes` of a file, fewer if it ends before; moves no file position, so threads may share it."""
    data = b""
    while len(data) < n_bytes and (more := os.pread(fd, n_bytes - len(data), len(data))):
        data += more
    return data


def _was_exchanged(root: int, path: Path) -> bool:
    """Whether `path` now names another directory than the one held open as `root`."""
    try:
        return not os.path.samestat(os.fstat(root), path.stat())
    except OSError:
        return False
