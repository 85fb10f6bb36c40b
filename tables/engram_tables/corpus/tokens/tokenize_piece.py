"""One piece of a corpus to the files of one shard, in this process or in a worker.

Owns batches, and the check that ids are those of the tokenizer. Knows no other piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.reading.documents import Document, ReadOptions, ReadOutcome
from engram_tables.corpus.reading.pieces import Piece
from engram_tables.corpus.reading.readers import PieceReader, read_piece
from engram_tables.corpus.tokens.token_manifest import DEAD
from engram_tables.corpus.tokens.token_shards import ShardWriter
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    from engram_tables.corpus.tokens.encoders import Encoder

BATCH_BYTES = 1 << 23
"""Text that is encoded at a time: bounds memory, and the wait until Ctrl-C is answered."""
LITTLE_TEXT_BYTES = 1 << 21
"""Below this the library has encoded all before a fast encoder has read the tokenizer."""
_BATCH_DOCUMENTS = 1 << 16

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


class Numbered(NamedTuple):
    """A piece and the shard that it becomes."""

    shard: int
    piece: Piece


class Step(NamedTuple):
    """What has been done since the last step."""

    n_bytes: int
    n_tokens: int


class EncoderChoice(NamedTuple):
    """What makes ids of text: `kind` and `reason` of `encoders.Encoder`."""

    kind: str
    reason: str


class PieceResult(NamedTuple):
    """What became of a piece: the shard's entry in the manifest, what was met, and what encoded.

    `entry` is None if reading stopped early, at more malformed lines than are allowed.
    """

    entry: dict[str, Any] | None
    outcome: ReadOutcome
    encoder: EncoderChoice | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceTask:
    """What is the same for all pieces; can be pickled.

    Attributes
    ----------
    tokenizer_file
        The tokenizer.json; not read where the corpus holds token ids.
    token_size
        Bound of the ids.
    directory
        Where the shards' files are made.
    threads
        Of the encoder.
    """

    tokenizer_file: Path
    token_size: int
    options: ReadOptions
    directory: Path
    threads: int

    def start(self) -> Callable[[Numbered, Callable[[Step], None]], PieceResult]:
        """The function that tokenises a piece."""
        return _PieceTokenizer(self).tokenize


class _PieceTokenizer:
    def __init__(self, task: PieceTask) -> None:
        self._task = task
        self._encoder: Encoder | None = None
        self._text_bytes = 0

    def _encode(self, batch: Sequence[Document]) -> tuple[U32, I64]:
        before = self._text_bytes
        self._text_bytes += sum(document.n_bytes for document in batch)
        if self._encoder is None or before < LITTLE_TEXT_BYTES <= self._text_bytes:
            self._encoder = self._new_encoder()
        return self._encoder.encode([document.text for document in batch])

    def _new_encoder(self) -> Encoder:
        from tokenizers import Tokenizer

        from engram_tables.corpus.tokens.encoders import make_encoder

        tokenizer = Tokenizer.from_buffer(self._task.tokenizer_file.read_bytes())
        return make_encoder(tokenizer, threads=self._task.threads, fast=self._text_bytes >= LITTLE_TEXT_BYTES)

    def tokenize(self, job: Numbered, report: Callable[[Step], None]) -> PieceResult:
        """Read, encode and write one piece; the files are on the disk when this returns."""
        task = self._task
        reader = read_piece(job.piece, task.options)
        checked = _IdCheck(job.piece, task.token_size)
        told_bytes = 0
        with ShardWriter(task.directory, job.shard, token_size=task.token_size) as writer:
            for batch in _batches(reader):
                before = writer.n_tokens
                names = [document.name for document in batch]
                writer.add(*self._ids(batch, checked), names)
                done_bytes = _done_bytes(reader, job.piece, told_bytes)
                report(Step(done_bytes - told_bytes, writer.n_tokens - before))
                told_bytes = done_bytes
            if len(reader.outcome.bad_lines) > task.options.skip_bad:
                return PieceResult(None, reader.outcome, None)
            entry = writer.finish()
        report(Step(job.piece.n_bytes - told_bytes, 0))
        used = self._encoder
        choice = None if used is None else EncoderChoice(str(used.kind), used.reason)
        return PieceResult(entry, reader.outcome, choice)

    def _ids(self, batch: Sequence[Document], checked: _IdCheck) -> tuple[U32, I64]:
        """Ids of all documents, DEAD where dead, and how many each has."""
        if batch[0].ids is None:
            # A reader gives documents of one kind, so all of them are text.
            for document in batch:
                checked.count(document)
            return self._encode(batch)
        each = [checked.ids(document) for document in batch]
        return np.concatenate(each), np.array([len(ids) for ids in each], dtype=np.int64)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    batch_bytes = 0
    for document in documents:
        batch.append(document)
        batch_bytes += document.n_bytes
        if batch_bytes >= BATCH_BYTES or len(batch) >= _BATCH_DOCUMENTS:
            yield batch
            batch, batch_bytes = [], 0
    if batch:
        yield batch


def _done_bytes(reader: PieceReader, piece: Piece, told_bytes: int) -> int:
    """Stored bytes that are behind us, never falling and never more than the piece has."""
    return max(told_bytes, min(reader.outcome.read_bytes, piece.n_bytes))


class _IdCheck:
    """Refuses ids that the tokenizer does not have, by document and position."""

    def __init__(self, piece: Piece, token_size: int) -> None:
        self._stretches = {part.file.source: part.start for part in piece.parts if part.start}
        self._token_size = token_size
        self._source = ""
        self._n_before = 0

    def count(self, document: Document) -> None:
        """Note that a document went by."""
        if document.source != self._source:
            self._source, self._n_before = document.source, 0
        self._n_before += 1

    def ids(self, document: Document) -> U32:
        """The ids of a document that has them, DEAD where dead."""
        self.count(document)
        assert document.ids is not None
        ids = document.ids
        outside = ids >= self._token_size
        if document.dead is not None:
            outside &= ~document.dead
        if outside.any():
            at = int(np.flatnonzero(outside)[0])
            start = self._stretches.get(document.source)
            after = "" if start is None else f" of the stretch that begins at {start:,}"
            raise InvalidInput(
                f"{document.source}: document {self._n_before:,}{after}, position {at:,}: found token id "
                f"{int(ids[at]):,}, expected 0 to {self._token_size - 1:,}; was it made with another tokenizer?"
            )
        return ids if document.dead is None else np.where(document.dead, np.uint32(DEAD), ids)
