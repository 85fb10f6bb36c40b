"""Pieces of a corpus: what one worker reads at a time, and where files may be cut. Reads headers and footers alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engram_tables.corpus.reading.blocks import compression_of, stored_name
from engram_tables.corpus.reading.documents import Format, ReadOptions
from engram_tables.corpus.reading.sources import CorpusFile

_SUFFIXES = {
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".parquet": Format.PARQUET,
    ".npy": Format.NPY,
    ".bin": Format.BIN,
}
TOKEN_FORMATS = (Format.NPY, Format.BIN)


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


def format_of(file: CorpusFile, options: ReadOptions) -> Format:
    """How a file is read: as the options say, else by its name, else as text."""
    if options.format is not None:
        return options.format
    name = stored_name(file.name)
    return next((found for suffix, found in _SUFFIXES.items() if name.endswith(suffix)), Format.TEXT)


def whole_file(file: CorpusFile, options: ReadOptions) -> Part:
    """All of a file as one part."""
    return Part(file=file, format=format_of(file, options), n_bytes=file.file_bytes)


def cut_file(file: CorpusFile, options: ReadOptions, piece_bytes: int) -> list[Part]:
    """A file's parts, of about `piece_bytes` each; one where it cannot be cut or need not be."""
    whole = whole_file(file, options)
    if file.file_bytes <= piece_bytes or compression_of(file.name) or options.request_field is not None:
        return [whole]
    n_parts = -(-file.file_bytes // piece_bytes)
    if whole.format is Format.JSONL:
        return _cut(whole, file.file_bytes, n_parts)
    if whole.format in TOKEN_FORMATS and options.document_end is not None:
        from engram_tables.corpus.reading.token_files import inspect_tokens

        about = inspect_tokens(file, whole.format, options)
        n_tokens = about.n_tokens or 0
        return _cut(whole, n_tokens, min(n_parts, n_tokens)) if n_tokens else [whole]
    if whole.format is Format.PARQUET:
        return _row_groups(whole, options, piece_bytes)
    return [whole]


def _cut(whole: Part, n_units: int, n_parts: int) -> list[Part]:
    """`n_parts` near-equal stretches of `n_units` bytes or tokens."""
    bounds = [n_units * nth // n_parts for nth in range(n_parts + 1)]
    shares = [whole.n_bytes * nth // n_parts for nth in range(n_parts + 1)]
    return [
        replace(whole, start=bounds[nth], stop=bounds[nth + 1], n_bytes=shares[nth + 1] - shares[nth])
        for nth in range(n_parts)
    ]


def _row_groups(whole: Part, options: ReadOptions, piece_bytes: int) -> list[Part]:
    from engram_tables.corpus.reading.parquet_rows import inspect_parquet

    _, groups = inspect_parquet(whole.file, options)
    parts: list[Part] = []
    start = n_rows = n_bytes = rows_before = 0
    for stop, group in enumerate(groups, start=1):
        n_rows += group.n_rows
        n_bytes += group.n_bytes
        if n_bytes >= piece_bytes or stop == len(groups):
            parts.append(replace(whole, start=start, stop=stop, n_bytes=n_bytes, lines_before=rows_before))
            start, rows_before, n_rows, n_bytes = stop, rows_before + n_rows, 0, 0
    return parts or [whole]
