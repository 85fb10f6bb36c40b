"""Writing token stores: one shard at a time, and whole ones from arrays that are in memory.

Owns how a shard comes to be. Knows no text, and not in which order or by whom shards are written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.outputs import refuse_foreign_output
from engram_tables.corpus.tokens.array_file import ArrayWriter, file_digest
from engram_tables.corpus.tokens.token_manifest import (
    CORPUS_FIGURES,
    DEAD,
    FILE_KINDS,
    MANIFEST_NAME,
    STARTS_DTYPE,
    build_manifest,
    has_manifest,
    ids_dtype,
    manifest_bytes,
    names_schema,
    shard_file,
)
from engram_tables.errors import InvalidInput
from engram_tables.files import new_directory

_NAMES_ROWS = 1 << 16
"""Rows of a row group of names: fixed, so that the bytes do not follow the batches in which names come."""

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


class ShardWriter:
    """The files of one shard, appended to document by document; what is in memory at a time is one batch.

    Leaving the block without `finish` leaves files that nothing points to.
    """

    def __init__(self, directory: Path, shard: int, *, token_size: int) -> None:
        self.shard = shard
        self._paths = {kind: directory / shard_file(shard, suffix) for kind, suffix in FILE_KINDS.items()}
        self._ids = ArrayWriter(self._paths["ids"], ids_dtype(token_size))
        try:
            self._starts = ArrayWriter(self._paths["starts"], STARTS_DTYPE)
        except BaseException:
            self._ids.close()
            raise
        self._names: _NamesWriter | None = None
        self._n_dead = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        self._starts.close()
        if self._names is not None:
            self._names.close()

    @property
    def n_tokens(self) -> int:
        """Positions so far."""
        return self._ids.n_items

    @property
    def n_documents(self) -> int:
        """Documents so far."""
        return self._starts.n_items

    def add(self, ids: U32, n_tokens_each: I64, names: Sequence[str | None] | None = None) -> None:
        """Append documents.

        Parameters
        ----------
        ids
            uint32 (n_tokens,), each below the token size or DEAD, which the caller has made sure of.
        n_tokens_each
            int64 (n_documents,), their sum n_tokens.
        names
            (n_documents,): request ids; None where there is none.
        """
        before = self.n_tokens
        self._n_dead += int(np.count_nonzero(ids == np.uint32(DEAD)))
        if names is not None and self._names is None and any(name is not None for name in names):
            self._names = _NamesWriter(self._paths["names"])
            self._names.add_nothing(self.n_documents)
        if self._names is not None:
            self._names.add([None] * len(n_tokens_each) if names is None else names)
        self._ids.append(ids.astype(self._ids.dtype, copy=False))
        self._starts.append(before + np.cumsum(n_tokens_each) - n_tokens_each)

    def finish(self) -> dict[str, Any]:
        """Flush all files to the disk; the shard's entry in the manifest."""
        n_documents = self.n_documents
        self._starts.append(np.array([self.n_tokens], dtype=np.int64))
        self._ids.finish()
        self._starts.finish()
        kinds = ["ids", "starts"]
        if self._names is not None:
            self._names.finish()
            kinds.append("names")
        counted = {"n_tokens": self.n_tokens, "n_documents": n_documents, "n_dead": self._n_dead}
        return counted | {"names": None} | {kind: _file_entry(self._paths[kind]) for kind in kinds}


class _NamesWriter:
    """A Parquet file of request ids."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        self._file = path.open("xb")
        self._writer = pq.ParquetWriter(
            self._file, names_schema(), compression="zstd", store_schema=False, write_page_checksum=True
        )
        self._waiting: list[str | None] = []
        self._open = True

    def add_nothing(self, n_documents: int) -> None:
        """Append documents without a name."""
        while n_documents:
            block = min(n_documents, _NAMES_ROWS)
            self.add([None] * block)
            n_documents -= block

    def add(self, names: Sequence[str | None]) -> None:
        self._waiting.extend(names)
        while len(self._waiting) >= _NAMES_ROWS:
            self._write(self._waiting[:_NAMES_ROWS])
            del self._waiting[:_NAMES_ROWS]

    def finish(self) -> None:
        if self._waiting:
            self._write(self._waiting)
            self._waiting = []
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self.close()

    def close(self) -> None:
        if not self._open:
            return
        self._open = False
        try:
            self._writer.close()
        except OSError:
            # The disk is full, which the write before said already.
            pass
        finally:
            self._file.close()

    def _write(self, names: list[str | None]) -> None:
        import pyarrow as pa

        self._writer.write_table(pa.table([pa.array(names, pa.string())], schema=names_schema()))


def _file_entry(path: Path) -> dict[str, Any]:
    return {"name": path.name, "file_bytes": path.stat().st_size, "sha256": file_digest(path)}


def write_tokens(
    directory: Path,
    documents: Iterable[npt.ArrayLike],
    *,
    token_size: int,
    tokenizer_sha256: str | None = None,
    names: Sequence[str | None] | None = None,
    shard_documents: int | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write documents that are in memory as a token store, whole or not at all; returns its manifest.

    Parameters
    ----------
    documents
        Integers (n_tokens,) each: ids below `token_size`, DEAD where dead.
    names
        A request id for each document, or None.
    shard_documents
        Documents of one shard; all in one by default.

    Raises
    ------
    InvalidInput
        An id that is too large, as many names as there are not documents, or a `directory` that is taken.
    """
    arrays = [_checked(np.asarray(document), at, token_size) for at, document in enumerate(documents)]
    if names is not None and len(names) != len(arrays):
        raise InvalidInput(f"names: found {len(names):,}, expected one for each of {len(arrays):,} documents")
    refuse_output(directory, force=force)
    block = shard_documents or max(len(arrays), 1)
    corpus = dict.fromkeys(CORPUS_FIGURES, 0)
    with new_directory(directory, force=force) as target:
        shards = []
        for shard, first in enumerate(range(0, max(len(arrays), 1), block)):
            with ShardWriter(target, shard, token_size=token_size) as writer:
                for at in range(first, min(first + block, len(arrays))):
                    each = np.array([len(arrays[at])], dtype=np.int64)
                    writer.add(arrays[at], each, None if names is None else names[at : at + 1])
                shards.append(writer.finish())
        manifest = build_manifest(shards, token_size=token_size, tokenizer_sha256=tokenizer_sha256, corpus=corpus)
        write_flushed(target / MANIFEST_NAME, manifest_bytes(manifest))
    return manifest


def _checked(ids: npt.NDArray[Any], document: int, token_size: int) -> U32:
    if ids.size and (ids.dtype.kind not in "iu" or ids.ndim != 1):
        raise InvalidInput(f"document {document:,}: found {ids.dtype} {ids.shape}, expected integers (n,)")
    outside = ((ids < 0) | (ids >= token_size)) & (ids != DEAD)
    if outside.any():
        at = int(np.flatnonzero(outside)[0])
        raise InvalidInput(
            f"document {document:,}, position {at:,}: found token id {ids[at]:,}, expected 0 to {token_size - 1:,}"
        )
    return ids.astype(np.uint32)


def refuse_output(directory: Path, *, force: bool) -> None:
    """Raise `InvalidInput` if a token store could not be written as `directory`.

    `force` removes what is there, so that must be a directory which is empty or holds a token store of any version.
    """
    refuse_foreign_output(
        directory,
        force=force,
        what="token store",
        suggestion="tokens",
        is_ours=has_manifest,
        names=r"tokens\.json|shard-\d+\..*",
    )


def write_flushed(path: Path, content: bytes) -> None:
    """A new file with `content`, on the disk when this returns."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
