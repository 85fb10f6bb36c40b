"""Pieces of a corpus: what one worker reads at a time. Knows where they begin and end, not what they hold."""

from __future__ import annotations

from dataclasses import dataclass

from engram_tables.corpus.documents import Format
from engram_tables.corpus.sources import CorpusFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A stretch of one file, or all of it.

    Attributes
    ----------
    start, stop
        `stop` is None for the whole file. Else, half-open: the bytes in which a line of JSONL begins, the row groups
        of a Parquet file, the tokens of a .npy or .bin in which a document begins.
    n_bytes
        Its share of the file's stored bytes, so that the parts of a file add up to it.
    lines_before
        Rows of a Parquet file before this part; None where they are counted when they are needed.
    """

    file: CorpusFile
    format: Format
    start: int = 0
    stop: int | None = None
    n_bytes: int = 0
    lines_before: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Parts that are read one after the other. Can be pickled, and read in any process that sees the same files."""

    parts: tuple[Part, ...]

    @property
    def n_bytes(self) -> int:
        """Stored bytes; 0 for standard input and for what tells no size."""
        return sum(part.n_bytes for part in self.parts)

    @property
    def is_stream(self) -> bool:
        """Whether only the process that found the corpus can read this piece, and once."""
        return any(part.file.is_stream for part in self.parts)
