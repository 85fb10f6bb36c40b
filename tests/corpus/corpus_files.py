"""Files of a corpus in every format, and what is read from them, for the tests beside this file."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from engram_tables.corpus.reading.readers import (
    Corpus,
    Document,
    ReadOptions,
    ReadOutcome,
    find_documents,
    read_piece,
)


def corpus_of(path: Path, content: bytes | None = None, **options: Any) -> Corpus:
    if content is not None:
        path.write_bytes(content)
    return find_documents([path], options=ReadOptions(**options))


def plain(document: Document) -> tuple[Any, ...]:
    """A document that can be compared."""
    ids = None if document.ids is None else document.ids.tolist()
    dead = None if document.dead is None else document.dead.tolist()
    return (document.source, document.text, document.n_bytes, ids, dead, document.name)


def texts(corpus: Corpus) -> list[str]:
    return [document.text for document in corpus.documents()]


def ids(corpus: Corpus) -> list[list[int]]:
    found = []
    for document in corpus.documents():
        assert document.ids is not None
        assert document.ids.dtype == np.uint32
        assert document.text == ""
        assert document.n_bytes == 4 * len(document.ids)
        found.append(document.ids.tolist())
    return found


def check_pieces(corpus: Corpus, piece_bytes: int) -> None:
    """The pieces' documents are the corpus's own, and so are what was met and the bytes."""
    whole = [plain(document) for document in corpus.documents()]
    found, outcome = [], ReadOutcome()
    pieces = corpus.pieces(piece_bytes)
    for piece in pieces:
        reader = read_piece(pickle.loads(pickle.dumps(piece)), corpus.options)
        found += [plain(document) for document in reader]
        assert reader.read_bytes == piece.n_bytes
        assert reader.n_documents == reader.outcome.n_documents
        outcome.add(pickle.loads(pickle.dumps(reader.outcome)))
    outcome.check(corpus.options.skip_bad)
    assert found == whole
    assert outcome.kinds.keys() == corpus.outcome.kinds.keys()
    outcome.kinds = corpus.outcome.kinds
    assert outcome == corpus.outcome
    assert sum(piece.n_bytes for piece in pieces) == corpus.total_bytes


def packed(raw: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        half = len(raw) // 2
        return gzip.compress(raw[:half]) + gzip.compress(raw[half:]) + b"\0" * 5
    if suffix == ".zst":
        third = len(raw) // 3
        # No content size and a frame to skip: what a stream compressor writes, and what pzstd adds.
        streamed = zstandard.ZstdCompressor(write_content_size=False).compress
        skipped = b"\x50\x2a\x4d\x18" + (3).to_bytes(4, "little") + b"abc"
        return streamed(raw[:third]) + skipped + streamed(raw[third:])
    return raw


def parquet(path: Path, columns: dict[str, Any], **how: Any) -> Path:
    pq.write_table(pa.table(columns), path, **how)
    return path


def npy(values: Any, **how: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, values, **how)
    return stream.getvalue()
