"""Documents from files, directories and a stream: one file, one document.

Owns what is read and what is left out, and says both. Knows no tokens.
"""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, NamedTuple, TextIO

from engram_tables.errors import InvalidInput

STANDARD_INPUT = "-"
_SEARCHING = "while looking for the corpus's files"
_REPLACEMENT = "\ufffd"


class DecodeErrors(StrEnum):
    """What happens to bytes that are not UTF-8."""

    STRICT = "strict"
    """The first one stops the run."""
    REPLACE = "replace"
    """Each becomes U+FFFD, and is counted."""


class Skipped(StrEnum):
    """Why an entry of a directory is not part of a corpus."""

    NO_MATCH = "name does not match the glob"
    EXCLUDED = "name is excluded"
    HIDDEN = "name begins with a dot"
    DANGLING = "link to nothing"
    NOT_A_FILE = "neither file nor directory"
    REPEATED = "directory reached a second time through a link"


class Document(NamedTuple):
    """The text of one file."""

    source: str
    text: str
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFile:
    """A file that will be read as one document; `path` is None for standard input."""

    path: Path | None
    file_bytes: int

    @property
    def source(self) -> str:
        """The file's name in messages."""
        return "standard input" if self.path is None else str(self.path)


@dataclass(slots=True, kw_only=True)
class Corpus:
    """The files of a corpus in reading order, and, while they are read, what was met in them.

    Attributes
    ----------
    files
        In the order of the paths given; inside a directory sorted by path.
    skipped
        Entries of directories that are left out, counted by reason. A hidden or repeated directory counts once,
        whatever it holds.
    read_bytes, n_documents
        So far.
    replaced_files, replaced_bytes
        Files with bytes that are not UTF-8, and those bytes, so far; 0 unless they are replaced.
    """

    files: tuple[CorpusFile, ...]
    skipped: dict[Skipped, int] = field(default_factory=dict)
    decode_errors: DecodeErrors = DecodeErrors.STRICT
    read_bytes: int = 0
    n_documents: int = 0
    replaced_files: int = 0
    replaced_bytes: int = 0
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    @property
    def total_bytes(self) -> int:
        """Bytes of all files whose size is known before they are read; streams count 0."""
        return sum(file.file_bytes for file in self.files)

    @property
    def n_skipped(self) -> int:
        """Entries of directories that are left out."""
        return sum(self.skipped.values())

    @property
    def sha256(self) -> str:
        """SHA-256 over the documents read so far, each as its length (8 bytes, little-endian) and its bytes."""
        return self._digest.hexdigest()

    def documents(self) -> Iterator[Document]:
        """Read one file after the other.

        Raises
        ------
        InvalidInput
            Bytes that are not UTF-8, with file and offset, unless they are to be replaced.
        OSError
            A file that cannot be read.
        """
        for file in self.files:
            raw = _read(file)
            self._digest.update(len(raw).to_bytes(8, "little"))
            self._digest.update(raw)
            text = self._decode(raw, file.source)
            self.read_bytes += len(raw)
            self.n_documents += 1
            yield Document(file.source, text, len(raw))

    def _decode(self, raw: bytes, source: str) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            if self.decode_errors is DecodeErrors.STRICT:
                raise InvalidInput(
                    f"{source}: byte {error.start:,} is 0x{raw[error.start]:02x} ({error.reason}), expected UTF-8; "
                    "convert the file, leave it out by --exclude, or replace such bytes by U+FFFD with "
                    "--decode-errors replace"
                ) from None
        text = raw.decode(errors="replace")
        n_replacements = text.count(_REPLACEMENT) - raw.count(_REPLACEMENT.encode())
        kept_bytes = len(text.encode()) - n_replacements * len(_REPLACEMENT.encode())
        self.replaced_files += 1
        self.replaced_bytes += len(raw) - kept_bytes
        return text


def find_documents(
    paths: Sequence[str | Path],
    *,
    glob: str = "*",
    exclude: Sequence[str] = (),
    decode_errors: DecodeErrors | str = DecodeErrors.STRICT,
) -> Corpus:
    """The corpus that `paths` name.

    Parameters
    ----------
    paths
        Files, directories (searched to their depth, links followed, each directory once), and "-" for standard input.
    glob
        Pattern that a file's name inside a directory must match, case and all; a file that is named itself is read
        whatever its name. Names that begin with a dot match only a pattern that does.
    exclude
        Patterns of names inside directories that are left out, directories with all that they hold.
    decode_errors
        See `DecodeErrors`.

    Raises
    ------
    InvalidInput
        No path, a path that does not exist, a directory without a matching file, standard input twice.
    """
    if not paths:
        raise InvalidInput("corpus: found no path, expected files, directories or - for standard input")
    for pattern in (glob, *exclude):
        if "/" in pattern or not pattern:
            raise InvalidInput(f"glob {pattern!r}: it is matched against names, expected a pattern without /, as *.py")
    files: list[CorpusFile] = []
    skipped: dict[Skipped, int] = {}
    for path in paths:
        if str(path) == STANDARD_INPUT:
            if any(file.path is None for file in files):
                raise InvalidInput("corpus: standard input (-) is given twice, and can be read once; name it once")
            _standard_input()
            files.append(CorpusFile(path=None, file_bytes=0))
            continue
        files.extend(_find(Path(path), _Choice(glob, tuple(exclude)), skipped))
    return Corpus(files=tuple(files), skipped=skipped, decode_errors=DecodeErrors(decode_errors))


class _Choice(NamedTuple):
    """Which names inside a directory belong to a corpus."""

    glob: str
    exclude: tuple[str, ...]

    def refusal(self, name: str, *, is_directory: bool) -> Skipped | None:
        """Why an entry is left out, if its name is the reason."""
        if name.startswith(".") and not (self.glob.startswith(".") and fnmatch.fnmatchcase(name, self.glob)):
            return Skipped.HIDDEN
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude):
            return Skipped.EXCLUDED
        if not is_directory and not fnmatch.fnmatchcase(name, self.glob):
            return Skipped.NO_MATCH
        return None


def _find(path: Path, choice: _Choice, skipped: dict[Skipped, int]) -> list[CorpusFile]:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InvalidInput(f"{path}: no such file or directory; give text files, directories, or -") from None
    except OSError as error:
        error.add_note(_SEARCHING)
        raise
    if not stat.S_ISDIR(status.st_mode):
        return [CorpusFile(path=path, file_bytes=status.st_size if stat.S_ISREG(status.st_mode) else 0)]
    before = dict(skipped)
    files = list(_walk(path, choice, skipped, {(status.st_dev, status.st_ino)}))
    if not files:
        passed = [f"{n - before.get(why, 0):,} with: {why}" for why, n in skipped.items() if n > before.get(why, 0)]
        raise InvalidInput(
            f"{path}: no file in this directory matches {choice.glob!r} ({'; '.join(passed) or 'it is empty'}); "
            "give another --glob or directory"
        )
    return files


def _walk(
    directory: Path, choice: _Choice, skipped: dict[Skipped, int], seen: set[tuple[int, int]]
) -> Iterator[CorpusFile]:
    """Files below `directory`, sorted by name at each level; `seen` holds device and inode of directories entered."""
    try:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError as error:
        error.add_note(_SEARCHING)
        raise
    for name in names:
        path = directory / name
        try:
            status = path.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):
                _skip(skipped, Skipped.DANGLING)
                continue
            error.add_note(_SEARCHING)
            raise
        identity, is_directory = (status.st_dev, status.st_ino), stat.S_ISDIR(status.st_mode)
        refusal = choice.refusal(name, is_directory=is_directory)
        if refusal is not None:
            _skip(skipped, refusal)
        elif is_directory:
            if identity in seen:
                _skip(skipped, Skipped.REPEATED)
            else:
                seen.add(identity)
                yield from _walk(path, choice, skipped, seen)
        elif not stat.S_ISREG(status.st_mode):
            _skip(skipped, Skipped.NOT_A_FILE)
        else:
            yield CorpusFile(path=path, file_bytes=status.st_size)


def _skip(skipped: dict[Skipped, int], why: Skipped) -> None:
    skipped[why] = skipped.get(why, 0) + 1


def _read(file: CorpusFile) -> bytes:
    try:
        return _standard_input().read() if file.path is None else file.path.read_bytes()
    except OSError as error:
        error.add_note(f"while reading the corpus file {file.source}")
        raise


def _standard_input() -> BinaryIO:
    # A process that was started without one (`<&-`) has None there, against what the type says.
    stream: TextIO | None = sys.stdin
    if stream is None or stream.closed:
        raise InvalidInput(
            "standard input: found it closed, expected text to read (-); pipe some in, or give files instead"
        )
    return stream.buffer
