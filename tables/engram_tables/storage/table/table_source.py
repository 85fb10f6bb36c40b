"""A table as a source: the same rows, extents and reading as a checkpoint's, beside us or behind a URL.

Of a remote table the manifest and the shards' headers are fetched and checked, as opening a local one does; the
vocabulary is left alone. Local tables are opened and checked by `reader`.
"""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

from engram_tables.byte_files import ByteFile, Folder, LocalFile, LocalFolder, open_place
from engram_tables.errors import CorruptTable, IncompleteTable, NotATable
from engram_tables.storage.extents import Extent
from engram_tables.storage.row_files import RowFile
from engram_tables.storage.sources.source import Source, SourceTensor
from engram_tables.storage.table.layout import MANIFEST_NAME
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.reader import StoredTable
from engram_tables.storage.table.shards import ShardRecord, shard_header

TABLE_FORM = "table"
_MAX_MANIFEST_BYTES = 2**30
_PIECE_BYTES = 2**18
_N_LOCKS = 16


class HeldFile(LocalFile):
    """A file that a table holds open: closing this one ends its use, closing the table closes it."""

    def __init__(self, table: StoredTable, file: RowFile) -> None:
        self._table = table
        self.path = file.path
        self.name = file.path.name
        self.where = str(file.path)
        self.fd = file.fd
        self.file_bytes = file.file_bytes
        self._close = weakref.finalize(self, _leave_open, file.fd)

    def _check(self, offset: int, n_bytes: int) -> None:
        self._table.check_open()
        super()._check(offset, n_bytes)


class CheckedFile(HeldFile):
    """The same, but nothing is handed out of a block before its bytes were held against the manifest's digest.

    For whoever makes a new table or files of these rows: digests of their own would vouch for damage. Each block is
    hashed once, when it is first read; safe from many threads.
    """

    def __init__(self, table: StoredTable, file: RowFile, shard: ShardRecord) -> None:
        super().__init__(table, file)
        self._digests = shard.block_sha256
        self._block_bytes = table.manifest.block_bytes
        self._is_whole = bytearray(len(self._digests))
        self._locks = tuple(threading.Lock() for _ in range(_N_LOCKS))

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """See `ByteFile`; raises `CorruptTable` too."""
        self._check(offset, len(buffer))
        for block_idx in range(offset // self._block_bytes, -(-(offset + len(buffer)) // self._block_bytes)):
            if not self._is_whole[block_idx]:
                with self._locks[block_idx % _N_LOCKS]:
                    self._check_block(block_idx)
        super().read_into(offset, buffer)

    def _check_block(self, block_idx: int) -> None:
        if self._is_whole[block_idx]:
            return
        start = block_idx * self._block_bytes
        stop = min(start + self._block_bytes, self.file_bytes)
        digest = hashlib.sha256()
        scratch = memoryview(bytearray(min(_PIECE_BYTES, stop - start)))
        for offset in range(start, stop, _PIECE_BYTES):
            piece = scratch[: min(_PIECE_BYTES, stop - offset)]
            super().read_into(offset, piece)
            digest.update(piece)
        if digest.hexdigest() != self._digests[block_idx]:
            raise CorruptTable(
                f"{self.where}: bytes {start} to {stop - 1} hash to {digest.hexdigest()}, expected "
                f"{self._digests[block_idx]}; the table is damaged: `engram verify` names its rows, copy or build it "
                "again",
                path=self.where,
            )
        self._is_whole[block_idx] = 1


def _leave_open(fd: int) -> None:
    """The table closes it."""


def table_source(table: StoredTable, *, is_checked: bool = False) -> Source:
    """The rows of an open table; usable as long as it is open.

    Parameters
    ----------
    is_checked
        Whether what is read is held against the manifest's digests first; see `CheckedFile`.
    """
    pairs = zip(table.files, table.manifest.shards, strict=True)
    files = tuple(CheckedFile(table, file, shard) if is_checked else HeldFile(table, file) for file, shard in pairs)
    return _source(str(table.path), table.manifest, files)


def open_remote_table(folder: Folder) -> tuple[Manifest, Source]:
    """The table in a folder behind a URL: manifest and shard headers are read, nothing else.

    Raises
    ------
    NotATable
        The folder has no manifest.
    TableError
        As for a local table.
    """
    found = folder.find(MANIFEST_NAME)
    if found is None:
        raise NotATable(f"{folder.where}: found no {MANIFEST_NAME}, expected one; give a table", path=folder.where)
    try:
        if found.file_bytes > _MAX_MANIFEST_BYTES:
            raise NotATable(
                f"{found.where}: found {found.file_bytes} bytes, expected {_MAX_MANIFEST_BYTES} at most; give a table",
                path=folder.where,
            )
        manifest = Manifest.from_bytes(found.read(0, found.file_bytes), path=found.where)
    finally:
        found.close()
    files: list[ByteFile] = []
    try:
        for shard in manifest.shards:
            files.append(_remote_shard(folder, manifest, shard))
    except BaseException:
        for file in files:
            file.close()
        raise
    return manifest, _source(folder.where, manifest, tuple(files))


def find_table(where: str | Path, *, revision: str | None = None) -> Folder | None:
    """The folder at a path or URL if it has a table's manifest, else None."""
    place = open_place(where, revision=revision)
    if isinstance(place, LocalFolder):
        return place if os.path.lexists(place.path / MANIFEST_NAME) else None
    if not isinstance(place, Folder):
        place.close()
        return None
    manifest = place.find(MANIFEST_NAME)
    if manifest is None:
        return None
    manifest.close()
    return place


def _remote_shard(folder: Folder, manifest: Manifest, shard: ShardRecord) -> ByteFile:
    file = folder.find(shard.path)
    if file is None:
        raise IncompleteTable(
            f"{folder.where}: found no {shard.path}, expected {shard.file_bytes} bytes; copy the table again",
            path=folder.where,
        )
    try:
        if file.file_bytes != shard.file_bytes:
            kind = IncompleteTable if file.file_bytes < shard.file_bytes else CorruptTable
            raise kind(
                f"{file.where}: found {file.file_bytes} bytes, expected {shard.file_bytes}; copy the table again",
                path=folder.where,
            )
        header = file.read(0, shard.data_offset)
        found = hashlib.sha256(header).hexdigest()
        if found != shard.header_sha256 or header != shard_header(manifest, shard):
            raise CorruptTable(
                f"{file.where}: its header hashes to {found}, expected {shard.header_sha256} and what the manifest "
                "says; copy the table again",
                path=folder.where,
            )
    except BaseException:
        file.close()
        raise
    return file


def _source(where: str, manifest: Manifest, files: tuple[ByteFile, ...]) -> Source:
    parts = manifest.parts
    extents, tensors = [], []
    for file_idx, shard in enumerate(manifest.shards):
        part_idx = manifest.part_idx(shard.part)
        part = parts[part_idx]
        place: Mapping[str, int] = {
            "file_idx": file_idx, "layer_id": shard.layer_id, "part_idx": part_idx, "first_row": shard.first_row,
            "n_rows": shard.n_rows,
        }  # fmt: skip
        extents.append(Extent(**place, offset=shard.data_offset))
        tensors.append(
            SourceTensor(
                **place,
                name=shard.part,
                dtype="U8",
                shape=(part.n_cells(shard.n_rows), part.cell_bytes),
                start=shard.data_offset,
                stop=shard.file_bytes,
            )
        )
    return Source(
        where=where,
        form=TABLE_FORM,
        container="safetensors",
        files=files,
        metadata=({},) * len(files),
        alignments=(8,) * len(files),
        spec=manifest.spec,
        codec=manifest.get_codec(),
        row_bytes=manifest.row_bytes,
        parts=parts,
        extents=tuple(extents),
        tensors=tuple(tensors),
    )
