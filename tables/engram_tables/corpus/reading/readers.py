"""A corpus: the documents of many files, in one order, read here or piece by piece elsewhere.

Owns the joining of sources and formats, and the rules over a whole corpus. Knows no tokens' meaning.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from engram_tables.corpus.reading.blocks import Counter, compression_of, look_ahead, read_blocks, standard_input
from engram_tables.corpus.reading.documents import (
    BadLine,
    BinDtype,
    DecodeErrors,
    Document,
    Format,
    ReadOptions,
    ReadOutcome,
    refuse_bad_lines,
    refuse_mixture,
)
from engram_tables.corpus.reading.pieces import TOKEN_FORMATS, Part, Piece, cut_file, format_of, whole_file
from engram_tables.corpus.reading.sources import STANDARD_INPUT, CorpusFile, Skipped, find_files
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    import hashlib

__all__ = [
    "STANDARD_INPUT",
    "BadLine",
    "BinDtype",
    "Corpus",
    "CorpusFile",
    "DecodeErrors",
    "Document",
    "Format",
    "Part",
    "Piece",
    "PieceReader",
    "ReadOptions",
    "ReadOutcome",
    "Skipped",
    "find_documents",
    "read_piece",
    "refuse_bad_lines",
]

_RECORD_FORMATS = (Format.JSONL, Format.PARQUET)


class PieceReader:
    """The documents of one piece, to be iterated once; afterwards, what was met in it.

    Malformed lines raise nothing here: they are gathered, and one more than `options.skip_bad` ends the reading.
    Whoever reads the pieces adds up their outcomes, and `ReadOutcome.check`s the sum.
    """

    def __init__(self, piece: Piece, options: ReadOptions, outcome: ReadOutcome | None = None) -> None:
        self._piece = piece
        self._options = options
        self.outcome = outcome if outcome is not None else ReadOutcome()

    def __iter__(self) -> Iterator[Document]:
        from engram_tables.corpus.reading.records import Enough

        outcome = self.outcome
        try:
            for part in self._piece.parts:
                before = outcome.read_bytes
                for document in self._documents(part):
                    outcome.n_documents += 1
                    yield document
                if part.stop is not None:
                    outcome.read_bytes = before + part.n_bytes
        except Enough:
            return

    def _documents(self, part: Part) -> Iterator[Document]:
        outcome, before = self.outcome, self.outcome.read_bytes

        def count(n_bytes: int) -> None:
            # A stretch reads a little beside its own bytes, to find where a document begins and ends.
            read_bytes = outcome.read_bytes + n_bytes
            outcome.read_bytes = read_bytes if part.stop is None else min(read_bytes, before + part.n_bytes)

        match part.format:
            case Format.TEXT:
                return self._text(part, count)
            case Format.JSONL:
                from engram_tables.corpus.reading.records import read_jsonl

                return read_jsonl(part, self._options, outcome, count)
            case Format.PARQUET:
                from engram_tables.corpus.reading.parquet_rows import read_parquet

                return read_parquet(part, self._options, outcome, count)
            case Format.NPY | Format.BIN:
                from engram_tables.corpus.reading.token_files import read_tokens

                return read_tokens(part, self._options, outcome, count)

    def _text(self, part: Part, counter: Counter) -> Iterator[Document]:
        source = part.file.source
        raw = b"".join(read_blocks(part.file, counter=counter))
        if "text" not in self.outcome.kinds:
            self.outcome.kinds["text"] = source
            if len(self.outcome.kinds) > 1:
                refuse_mixture(self.outcome.kinds)
        try:
            text = raw.decode()
        except UnicodeDecodeError as error:
            if self._options.decode_errors is DecodeErrors.STRICT:
                raise InvalidInput(
                    f"{source}: byte {error.start:,} is 0x{raw[error.start]:02x} ({error.reason}), expected UTF-8; "
                    "convert the file, leave it out by --exclude, or replace such bytes by U+FFFD with "
                    "--decode-errors replace"
                ) from None
            from engram_tables.corpus.reading.records import replaced

            text = replaced(raw, source, self.outcome)
        yield Document(source, text, len(raw))

    @property
    def read_bytes(self) -> int:
        """Stored bytes read so far; at the end the piece's share of its files."""
        return self.outcome.read_bytes

    @property
    def n_documents(self) -> int:
        """Documents given so far."""
        return self.outcome.n_documents

    @property
    def n_lines(self) -> int:
        """Lines and rows read so far, blank and malformed ones included."""
        return self.outcome.n_lines

    @property
    def replaced_files(self) -> int:
        """Files with bytes that are not UTF-8 and were replaced."""
        return self.outcome.replaced_files

    @property
    def replaced_bytes(self) -> int:
        """Those bytes."""
        return self.outcome.replaced_bytes

    @property
    def bad_lines(self) -> list[BadLine]:
        """Malformed lines, in their order."""
        return self.outcome.bad_lines


def read_piece(piece: Piece, options: ReadOptions) -> PieceReader:
    """A reader of one piece of a corpus that was found with the same options; works in another process."""
    return PieceReader(piece, options)


@dataclass(slots=True, kw_only=True)
class Corpus:
    """The files of a corpus in reading order, and, while `documents` reads them, what was met in them.

    Attributes
    ----------
    files
        In the order of the paths given; inside a directory sorted by path.
    skipped
        Entries of directories that are left out, counted by reason. A hidden or repeated directory counts once,
        whatever it holds.
    options
        How they are read.
    outcome
        What `documents` has met so far; pieces have outcomes of their own.
    """

    files: tuple[CorpusFile, ...]
    skipped: dict[Skipped, int] = field(default_factory=dict)
    options: ReadOptions = field(default_factory=ReadOptions)
    outcome: ReadOutcome = field(default_factory=ReadOutcome)
    _digest: hashlib._Hash | None = None

    @property
    def total_bytes(self) -> int:
        """Stored bytes of all files whose size is known before they are read; streams count 0."""
        return sum(file.file_bytes for file in self.files)

    @property
    def n_skipped(self) -> int:
        """Entries of directories that are left out."""
        return sum(self.skipped.values())

    @property
    def read_bytes(self) -> int:
        """Stored bytes read so far."""
        return self.outcome.read_bytes

    @property
    def n_documents(self) -> int:
        """Documents given so far."""
        return self.outcome.n_documents

    @property
    def replaced_files(self) -> int:
        """Files with bytes that are not UTF-8 and were replaced, so far."""
        return self.outcome.replaced_files

    @property
    def replaced_bytes(self) -> int:
        """Those bytes."""
        return self.outcome.replaced_bytes

    @property
    def sha256(self) -> str:
        """SHA-256 over the documents read so far, each as its length (8 bytes, little-endian) and its bytes.

        They are the UTF-8 bytes of its text, or its token ids as little-endian uint32.
        """
        return self._hash().hexdigest()

    def _hash(self) -> hashlib._Hash:
        if self._digest is None:
            import hashlib

            self._digest = hashlib.sha256()
        return self._digest

    @property
    def is_tokenized(self) -> bool:
        """Whether the documents are token ids, so that no tokenizer is needed; False for an empty corpus.

        The names decide, or the first document of the first file that holds one. Of standard input and pipes the
        first line is looked at, and given again to whoever reads them in this process.

        Raises
        ------
        InvalidInput
            That document cannot be read.
        """
        options = replace(self.options, request_field=None, dead_field=None)
        for file in self.files:
            how = format_of(file, options)
            if how not in _RECORD_FORMATS:
                return how in TOKEN_FORMATS
            if how is Format.PARQUET:
                from engram_tables.corpus.reading.parquet_rows import inspect_parquet

                return inspect_parquet(file, self.options)[0]
            if file.is_stream:
                return _stream_holds_ids(file, options)
            reader = PieceReader(Piece(parts=(whole_file(file, options),)), options)
            for document in reader:
                return document.ids is not None
            reader.outcome.check(options.skip_bad)
        return False

    def documents(self) -> Iterator[Document]:
        """Read one file after the other.

        Raises
        ------
        InvalidInput
            Bytes that are not UTF-8, with file and offset, unless they are to be replaced; more malformed lines than
            `options.skip_bad`; text and token ids in one corpus; a file that is damaged.
        OSError
            A file that cannot be read.
        """
        parts = tuple(whole_file(file, self.options) for file in self.files)
        for document in PieceReader(Piece(parts=parts), self.options, self.outcome):
            raw = document.text.encode() if document.ids is None else document.ids.astype("<u4").tobytes()
            digest = self._hash()
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
            yield document
        self.outcome.check(self.options.skip_bad)

    def pieces(self, piece_bytes: int) -> list[Piece]:
        """The corpus cut into pieces of about `piece_bytes` stored bytes, whose documents in order are `documents`'.

        Small files share a piece. Cut are JSONL files, `.npy` and `.bin` files with a `document_end`, and Parquet
        files between row groups; not those that are compressed as a whole, read as text, or grouped by request ids.
        The cuts depend on nothing but the files, the options and `piece_bytes`.

        Raises
        ------
        InvalidInput
            A .npy or Parquet file that is none, since the cuts come from its header or footer.
        """
        pieces: list[Piece] = []
        small: list[Part] = []
        small_bytes = 0
        for file in self.files:
            parts = cut_file(file, self.options, max(piece_bytes, 1))
            # A stream is read by the process that found it, so it never shares a piece.
            alone = len(parts) > 1 or file.is_stream
            if small and (alone or small_bytes + parts[0].n_bytes > piece_bytes):
                pieces.append(Piece(parts=tuple(small)))
                small, small_bytes = [], 0
            if alone:
                pieces.extend(Piece(parts=(part,)) for part in parts)
            else:
                small.append(parts[0])
                small_bytes += parts[0].n_bytes
        return [*pieces, Piece(parts=tuple(small))] if small else pieces


def _stream_holds_ids(file: CorpusFile, options: ReadOptions) -> bool:
    """Whether the first line of JSONL that is not blank gives token ids; the stream still begins there afterwards."""
    from engram_tables.corpus.reading.records import first_line_holds_ids

    if compression_of(file.name):
        raise InvalidInput(
            f"{file.source}: found a compressed pipe, expected lines to look at; decompress into the pipe instead"
        )
    return first_line_holds_ids(look_ahead(file, lambda head: b"\n" in head.lstrip(b" \t\r\n")), file, options)


def find_documents(
    paths: Sequence[str | Path],
    *,
    glob: str = "*",
    exclude: Sequence[str] = (),
    decode_errors: DecodeErrors | str = DecodeErrors.STRICT,
    options: ReadOptions | None = None,
) -> Corpus:
    """The corpus that `paths` name.

    Parameters
    ----------
    paths
        Files; directories (searched to their depth, links followed, each directory once); "-" for standard input;
        URLs (anything with ://, which fsspec opens: files, and where the protocol lists them directories). A path with
        * ? or [ that does not exist is a pattern: * ? and [...] match within a name, ** any number of directories, a
        name that begins with a dot only what does; a directory that it matches is searched as one that is named.
    glob
        Pattern that a file's name inside a directory must match, case and all; a file that is named itself or matches
        a pattern among `paths` is read whatever its name. Names that begin with a dot match only a pattern that does.
    exclude
        Patterns of names inside directories, and below the fixed part of patterns, that are left out; directories
        with all that they hold.
    decode_errors
        See `DecodeErrors`; short for the same field of `options`.
    options
        How the files are read; by their names, if not given.

    Raises
    ------
    InvalidInput
        No path, a path that names nothing, a directory or pattern without a matching file, standard input twice, or
        options that no file can follow.
    BackendUnavailable
        The package that a URL's protocol needs is missing.
    """
    how_decoded = DecodeErrors(decode_errors)
    if options is None:
        options = ReadOptions(decode_errors=how_decoded)
    elif how_decoded not in (DecodeErrors.STRICT, options.decode_errors):
        raise TypeError(f"decode_errors={how_decoded.value} beside options that say {options.decode_errors.value}")
    files, skipped = find_files(paths, glob=glob, exclude=exclude)
    if any(file.is_standard_input for file in files):
        standard_input()
    _refuse_idle_options(files, options)
    return Corpus(files=files, skipped=skipped, options=options)


def _refuse_idle_options(files: Sequence[CorpusFile], options: ReadOptions) -> None:
    """Refuse what no file of the corpus heeds: an option without effect is a mistake, and it would be silent."""
    formats = set()
    for file in files:
        how = format_of(file, options)
        formats.add(how)
        if how is Format.PARQUET and compression_of(file.name):
            raise InvalidInput(
                f"{file.source}: found Parquet inside another compression, expected a plain .parquet, which is "
                "compressed inside and read by pieces; decompress it first"
            )
        if how is Format.BIN and options.bin_dtype is None:
            raise InvalidInput(
                f"{file.source}: found raw token ids of unknown size, expected --dtype uint16 or uint32; give it, or "
                "--format if it holds something else, or leave it out by --exclude"
            )
    for what, value, wanted in (
        ("--document-end", options.document_end, TOKEN_FORMATS),
        ("--dtype", options.bin_dtype, (Format.BIN,)),
        ("--request-field", options.request_field, _RECORD_FORMATS),
        ("--dead-field", options.dead_field, _RECORD_FORMATS),
        ("--field", None if options.field == "text" else options.field, _RECORD_FORMATS),
    ):
        if value is not None and formats.isdisjoint(wanted):
            raise InvalidInput(
                f"{what} {value}: found only {', '.join(sorted(formats))} files, expected {' or '.join(wanted)}; "
                "leave it out, or give --format"
            )
