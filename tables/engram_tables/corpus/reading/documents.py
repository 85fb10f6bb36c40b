"""What a corpus is made of: documents, how they are read, and what was met on the way.

Owns the words that readers share, and the rules about malformed lines and mixed content. Opens no file, and imports
nothing heavy: the command line reads its choices here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

LARGEST_TOKEN_ID = 2**32 - 2
"""2^32 - 1 marks dead positions, so no token has it."""
_SHOWN_BAD_LINES = 5


class DecodeErrors(StrEnum):
    """What happens to bytes that are not UTF-8."""

    STRICT = "strict"
    """The first one stops the run; in a file of lines it makes its line a malformed one."""
    REPLACE = "replace"
    """Each becomes U+FFFD, and is counted."""


class Format(StrEnum):
    """How documents lie in a file; `.zst` and `.gz` around it are taken off first."""

    TEXT = "text"
    """One file, one document; every name without a format of its own."""
    JSONL = "jsonl"
    """One JSON object a line: `.jsonl`, `.ndjson`."""
    PARQUET = "parquet"
    """One document a row."""
    NPY = "npy"
    """Token ids: a NumPy file of one dimension of integers."""
    BIN = "bin"
    """Token ids: nothing but little-endian integers."""


class BinDtype(StrEnum):
    """What a `.bin` file consists of, little-endian."""

    UINT16 = "uint16"
    UINT32 = "uint32"


class Document(NamedTuple):
    """One document: its text, or its token ids.

    Attributes
    ----------
    source
        The file's name in messages.
    text
        Empty where `ids` are given.
    n_bytes
        The text's UTF-8 bytes (of a text file, as they were before any was replaced); 4 a token where `ids` are given.
    ids
        uint32 (n_tokens,), each at most `LARGEST_TOKEN_ID`, or None for text.
    dead
        bool (n_tokens,), true where the token takes no part; None where all do.
    name
        The request id, where one was asked for.
    """

    source: str
    text: str
    n_bytes: int
    ids: npt.NDArray[np.uint32] | None = None
    dead: npt.NDArray[np.bool_] | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How the files of a corpus are read.

    Attributes
    ----------
    format
        Of every file; None decides for each by its name.
    field
        Where a JSONL object or a Parquet row holds its text or token ids: a key, or a path of keys with dots between.
    request_field
        Where it holds the id of its request. Lines of one file with the same id are one document, joined in their
        order without anything between, which stands where its first line stood. A string, or an integer, which is the
        same as its decimal digits.
    dead_field
        Where it holds the spans of token ids that take no part: [[start, stop], ...], half-open, counted from the
        line's own first token. Missing or null: none.
    document_end
        The token id that ends a document in `.npy` and `.bin` files. It belongs to no document; what follows the last
        one is a document if it holds a token. None: one file is one document.
    bin_dtype
        What a `.bin` file consists of.
    decode_errors
        See `DecodeErrors`.
    skip_bad
        Malformed lines that are left out before the run stops, over the whole corpus.

    Raises
    ------
    InvalidInput
        A value outside what is described here.
    """

    format: Format | None = None
    field: str = "text"
    request_field: str | None = None
    dead_field: str | None = None
    document_end: int | None = None
    bin_dtype: BinDtype | Literal["uint16", "uint32"] | None = None
    decode_errors: DecodeErrors = DecodeErrors.STRICT
    skip_bad: int = 0

    def __post_init__(self) -> None:
        for what, value in (("field", self.field), ("request field", self.request_field), ("dead", self.dead_field)):
            if value is not None and not all(value.split(".")):
                raise InvalidInput(f"{what} {value!r}: found an empty key, expected keys with dots between, as a.b")
        if self.document_end is not None and not 0 <= self.document_end <= LARGEST_TOKEN_ID:
            raise InvalidInput(
                f"document end {self.document_end:,}: expected a token id from 0 to {LARGEST_TOKEN_ID:,}; "
                "give the id that the tokenised files hold after each document"
            )
        if self.skip_bad < 0:
            raise InvalidInput(f"skip bad {self.skip_bad:,}: expected 0 or more malformed lines to leave out")
        # Plain strings are taken as well; anything else is the caller's mistake, and a ValueError of the enumeration.
        object.__setattr__(self, "decode_errors", DecodeErrors(self.decode_errors))
        if self.format is not None:
            object.__setattr__(self, "format", Format(self.format))
        if self.bin_dtype is not None:
            object.__setattr__(self, "bin_dtype", BinDtype(self.bin_dtype))


class BadLine(NamedTuple):
    """A malformed line, or a malformed row of a Parquet file; `line` counts from 1."""

    source: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.source}: line {self.line:,}: {self.reason}"


@dataclass(slots=True, kw_only=True)
class ReadOutcome:
    """What was met while documents were read; outcomes of several pieces add up to the corpus's.

    Attributes
    ----------
    read_bytes
        Of the files as they are stored; a stretch of a file counts its own bytes once it is read to the end.
    n_documents, n_lines, n_blank_lines
        Lines are those of JSONL files, blank and malformed ones included, and rows of Parquet files.
    replaced_sources, replaced_bytes
        The files with bytes that became U+FFFD, as keys, and the number of those bytes.
    bad_lines
        Malformed lines that were left out; one more than allowed, and reading has stopped there.
    kinds
        "text" and "token ids", each with the place where it was first met.
    """

    read_bytes: int = 0
    n_documents: int = 0
    n_lines: int = 0
    n_blank_lines: int = 0
    replaced_sources: dict[str, None] = field(default_factory=dict)
    replaced_bytes: int = 0
    bad_lines: list[BadLine] = field(default_factory=list)
    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def replaced_files(self) -> int:
        """Files with bytes that were replaced."""
        return len(self.replaced_sources)

    def add(self, other: ReadOutcome) -> Self:
        """Add what another piece met, in the order of the pieces; `check` it afterwards."""
        self.read_bytes += other.read_bytes
        self.n_documents += other.n_documents
        self.n_lines += other.n_lines
        self.n_blank_lines += other.n_blank_lines
        self.replaced_sources |= other.replaced_sources
        self.replaced_bytes += other.replaced_bytes
        self.bad_lines += other.bad_lines
        for kind, place in other.kinds.items():
            self.kinds.setdefault(kind, place)
        return self

    def check(self, skip_bad: int) -> None:
        """Raise `InvalidInput` for more malformed lines than allowed, or for text and token ids in one corpus."""
        refuse_bad_lines(self.bad_lines, skip_bad)
        if len(self.kinds) > 1:
            refuse_mixture(self.kinds)


def refuse_bad_lines(bad_lines: Iterable[BadLine], skip_bad: int) -> None:
    """Raise `InvalidInput`, which names the first malformed lines, if there are more than `skip_bad`."""
    found = list(bad_lines)
    if len(found) <= skip_bad:
        return
    shown = "".join(f"\n  {line}" for line in found[:_SHOWN_BAD_LINES])
    more = "" if len(found) <= _SHOWN_BAD_LINES else f"\n  and {len(found) - _SHOWN_BAD_LINES:,} more so far"
    raise InvalidInput(
        f"corpus: found {len(found):,} malformed lines so far, expected {skip_bad:,} at most; repair the lines, name "
        f"another --field, or allow more by --skip-bad N{shown}{more}"
    )


def refuse_mixture(kinds: dict[str, str]) -> None:
    """Raise `InvalidInput` for documents of two kinds in one corpus."""
    met = ", ".join(f"{kind} ({place})" for kind, place in kinds.items())
    raise InvalidInput(f"corpus: found {met}, expected one kind throughout; read them as two corpora")
