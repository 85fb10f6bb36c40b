"""Where a corpus lies: files, directories, patterns and URLs, and which of them are read.

Owns what is read and what is left out, and says both. Knows no format and reads no content.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from engram_tables.errors import InvalidInput
from engram_tables.remote import RemoteFilesystem, remote_filesystem, remote_noted

STANDARD_INPUT = "-"
_SEARCHING = "while looking for the corpus's files"
_PATTERN_CHARACTERS = frozenset("*?[")
_ANY_DEPTH = "**"


class Skipped(StrEnum):
    """Why an entry of a directory is not part of a corpus."""

    NO_MATCH = "name does not match the glob"
    EXCLUDED = "name is excluded"
    HIDDEN = "name begins with a dot"
    DANGLING = "link to nothing"
    NOT_A_FILE = "neither file nor directory"
    REPEATED = "directory reached a second time through a link"


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFile:
    """A file of a corpus: local (`path`), remote (`url`), or standard input where both are None.

    Attributes
    ----------
    file_bytes
        As stored; 0 where it is not known before the file is read.
    modified_ns
        When a local file was last written, in nanoseconds since 1970; 0 where it is not known.
    is_pipe
        Whether a local file is none that can be read twice: a pipe, a terminal.
    """

    path: Path | None
    file_bytes: int
    url: str | None = None
    modified_ns: int = 0
    is_pipe: bool = False

    @property
    def source(self) -> str:
        """The file's name in messages."""
        return self.url or ("standard input" if self.path is None else str(self.path))

    @property
    def is_standard_input(self) -> bool:
        """Only the process that found it can read it, and once."""
        return self.path is None and self.url is None

    @property
    def is_stream(self) -> bool:
        """Standard input or a pipe: it can be read once, and after a look at it by the same process alone."""
        return self.is_pipe or self.is_standard_input

    @property
    def name(self) -> str:
        """The last part of its path, in small letters, which decides its format; "" for standard input."""
        if self.url is not None:
            # A query or fragment is a web server's; elsewhere ? and # are part of a name.
            web = self.url.startswith(("http://", "https://"))
            return (urlsplit(self.url).path if web else self.url).rpartition("/")[2].lower()
        return "" if self.path is None else self.path.name.lower()


class Choice(NamedTuple):
    """Which names inside a directory belong to a corpus."""

    glob: str
    exclude: tuple[str, ...]

    def refusal(self, name: str, *, is_directory: bool) -> Skipped | None:
        """Why an entry is left out, if its name is the reason."""
        if name.startswith(".") and not (self.glob.startswith(".") and fnmatch.fnmatchcase(name, self.glob)):
            return Skipped.HIDDEN
        if self.excludes(name):
            return Skipped.EXCLUDED
        if not is_directory and not fnmatch.fnmatchcase(name, self.glob):
            return Skipped.NO_MATCH
        return None

    def excludes(self, name: str) -> bool:
        """Whether a pattern of `exclude` matches."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.exclude)


class _Pattern(NamedTuple):
    """A path with wildcards below a fixed root, matched name by name; states are positions in `parts`."""

    parts: tuple[str, ...]

    def start(self) -> frozenset[int]:
        return self._closed({0})

    def step(self, states: frozenset[int], name: str) -> frozenset[int]:
        """The states after one more name of a path; none: nothing below can match."""
        found: set[int] = set()
        hidden = name.startswith(".")
        for state in states:
            part = self.parts[state] if state < len(self.parts) else ""
            if part == _ANY_DEPTH:
                found |= set() if hidden else {state}
            elif part and fnmatch.fnmatchcase(name, part) and (not hidden or part.startswith(".")):
                found.add(state + 1)
        return self._closed(found)

    def matches(self, states: frozenset[int]) -> bool:
        return len(self.parts) in states

    def _closed(self, states: set[int]) -> frozenset[int]:
        """`states`, and those reached where ** stands for no directory at all."""
        for state in sorted(states):
            while state < len(self.parts) and self.parts[state] == _ANY_DEPTH:
                state += 1
                states.add(state)
        return frozenset(states)


class _Finder:
    """One search: its choice, and what it has left out so far."""

    def __init__(self, choice: Choice, skipped: dict[Skipped, int]) -> None:
        self.choice = choice
        self.skipped = skipped

    def skip(self, why: Skipped) -> None:
        self.skipped[why] = self.skipped.get(why, 0) + 1


def find_files(
    paths: Sequence[str | Path], *, glob: str = "*", exclude: Sequence[str] = ()
) -> tuple[tuple[CorpusFile, ...], dict[Skipped, int]]:
    """The files that `paths` name, in reading order, and the entries of directories that are left out, by reason.

    See `readers.find_documents` for the rules. Whether standard input is open is not checked.

    Raises
    ------
    InvalidInput
        No path, one that names nothing, a directory or pattern without a matching file, standard input twice, an
        unknown kind of URL.
    BackendUnavailable
        The package that a URL's protocol needs is missing.
    """
    if not paths:
        raise InvalidInput("corpus: found no path, expected files, directories, patterns, URLs or - (standard input)")
    for pattern in (glob, *exclude):
        if "/" in pattern or not pattern:
            raise InvalidInput(f"glob {pattern!r}: it is matched against names, expected a pattern without /, as *.py")
    files: list[CorpusFile] = []
    skipped: dict[Skipped, int] = {}
    finder = _Finder(Choice(glob, tuple(exclude)), skipped)
    for path in paths:
        if str(path) == STANDARD_INPUT:
            if any(file.is_standard_input for file in files):
                raise InvalidInput("corpus: standard input (-) is given twice, and can be read once; name it once")
            files.append(CorpusFile(path=None, file_bytes=0))
            continue
        before = dict(skipped)
        found = list(_remote(str(path), finder) if is_url(path) else _local(Path(path), finder))
        if not found:
            passed = [f"{n - before.get(why, 0):,} with: {why}" for why, n in skipped.items() if n > before.get(why, 0)]
            raise InvalidInput(
                f"{path}: no file in this directory matches {glob!r} ({'; '.join(passed) or 'it is empty'}); "
                "give another --glob or directory"
            )
        files.extend(found)
    _refuse_repeated(files)
    return tuple(files), skipped


def _refuse_repeated(files: Sequence[CorpusFile]) -> None:
    """A file that two of the paths name would count double."""
    seen: set[str] = set()
    for file in files:
        if file.is_stream:
            continue
        place = file.url or os.path.abspath(str(file.path))  # noqa: PTH100 (links keep their names)
        if place in seen:
            raise InvalidInput(f"{file.source}: found it twice among the inputs, expected each once; name it once")
        seen.add(place)


def is_url(path: str | Path) -> bool:
    """Whether a path given is a URL, which a filesystem of fsspec opens."""
    return "://" in str(path)


def _has_wildcards(path: str) -> bool:
    return not _PATTERN_CHARACTERS.isdisjoint(path)


def _split_pattern(path: str) -> tuple[str, _Pattern]:
    """The longest root of `path` without wildcards, with its final slash, and the pattern below it."""
    parts = path.split("/")
    first = next(at for at, part in enumerate(parts) if _has_wildcards(part))
    # Python's fnmatch has no meaning for an empty name: a//b and a/./b are a/b, as everywhere.
    below = tuple(part for part in parts[first:] if part not in ("", "."))
    return "/".join(parts[:first]) + ("/" if first else ""), _Pattern(below)


def _local(path: Path, finder: _Finder) -> Iterator[CorpusFile]:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if _has_wildcards(str(path)):
            yield from _local_pattern(str(path), finder)
            return
        raise InvalidInput(f"{path}: no such file or directory; give files, directories, patterns, URLs or -") from None
    except OSError as error:
        error.add_note(_SEARCHING)
        raise
    if stat.S_ISDIR(status.st_mode):
        yield from _walk(path, finder, {(status.st_dev, status.st_ino)})
    else:
        yield _corpus_file(path, status)


def _corpus_file(path: Path, status: os.stat_result) -> CorpusFile:
    if not stat.S_ISREG(status.st_mode):
        return CorpusFile(path=path, file_bytes=0, is_pipe=True)
    return CorpusFile(path=path, file_bytes=status.st_size, modified_ns=status.st_mtime_ns)


def _entries(directory: Path) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            return sorted(entry.name for entry in entries)
    except OSError as error:
        error.add_note(_SEARCHING)
        raise


def _stat(path: Path, finder: _Finder) -> os.stat_result | None:
    """The status of what `path` leads to, or None for a link to nothing, which is counted."""
    try:
        return path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):
            finder.skip(Skipped.DANGLING)
            return None
        error.add_note(_SEARCHING)
        raise


def _walk(directory: Path, finder: _Finder, seen: set[tuple[int, int]]) -> Iterator[CorpusFile]:
    """Files below `directory`, sorted by name at each level; `seen` holds device and inode of directories entered."""
    for name in _entries(directory):
        path = directory / name
        status = _stat(path, finder)
        if status is None:
            continue
        identity, is_directory = (status.st_dev, status.st_ino), stat.S_ISDIR(status.st_mode)
        refusal = finder.choice.refusal(name, is_directory=is_directory)
        if refusal is not None:
            finder.skip(refusal)
        elif is_directory:
            if identity in seen:
                finder.skip(Skipped.REPEATED)
            else:
                seen.add(identity)
                yield from _walk(path, finder, seen)
        elif not stat.S_ISREG(status.st_mode):
            finder.skip(Skipped.NOT_A_FILE)
        else:
            yield _corpus_file(path, status)


def _local_pattern(path: str, finder: _Finder) -> Iterator[CorpusFile]:
    root, pattern = _split_pattern(path)
    directory = Path(root or ".")
    found = False
    if directory.is_dir():
        status = directory.stat()
        for file in _walk_pattern(Path(root), pattern, pattern.start(), finder, {(status.st_dev, status.st_ino)}):
            found = True
            yield file
    if not found:
        raise InvalidInput(_no_match(path))


def _no_match(path: str) -> str:
    return f"{path}: no file by this name, and none matches it as a pattern; give another path or pattern"


def _walk_pattern(
    directory: Path, pattern: _Pattern, states: frozenset[int], finder: _Finder, seen: set[tuple[int, int]]
) -> Iterator[CorpusFile]:
    """Files below `directory` that the pattern names, and all files of a directory that it names, as in a shell."""
    for name in _entries(directory):
        after = pattern.step(states, name)
        if not after:
            continue
        path = directory / name
        status = _stat(path, finder)
        if status is None:
            continue
        if finder.choice.excludes(name):
            finder.skip(Skipped.EXCLUDED)
        elif stat.S_ISDIR(status.st_mode):
            identity = (status.st_dev, status.st_ino)
            if identity in seen:
                finder.skip(Skipped.REPEATED)
                continue
            seen.add(identity)
            if pattern.matches(after):
                yield from _walk(path, finder, seen)
            else:
                yield from _walk_pattern(path, pattern, after, finder, seen)
        elif pattern.matches(after):
            if stat.S_ISREG(status.st_mode):
                yield _corpus_file(path, status)
            else:
                finder.skip(Skipped.NOT_A_FILE)


def _remote(url: str, finder: _Finder) -> Iterator[CorpusFile]:
    filesystem, path = remote_filesystem(url)
    with remote_noted(url, _SEARCHING):
        try:
            information = filesystem.info(path)
        except FileNotFoundError:
            information = None
    if information is None:
        if not _has_wildcards(url):
            raise InvalidInput(f"{url}: no such file or directory; give another URL")
        root, pattern = _split_pattern(path)
        found = list(_remote_below(url, filesystem, root.rstrip("/"), finder, pattern))
        if not found:
            raise InvalidInput(_no_match(url))
        yield from found
    elif information.get("type") == "directory":
        yield from _remote_below(url, filesystem, path, finder, None)
    else:
        # A size that a web server does not tell is None.
        yield CorpusFile(path=None, url=url, file_bytes=int(information.get("size") or 0))


def _remote_below(
    url: str, filesystem: RemoteFilesystem, root: str, finder: _Finder, pattern: _Pattern | None
) -> Iterator[CorpusFile]:
    """Files below `root` in the order that `_walk` would give."""
    with remote_noted(url, _SEARCHING):
        listing = filesystem.find(root, detail=True)
    prefix = root.rstrip("/") + "/"
    by_names = sorted((tuple(name.removeprefix(prefix).split("/")), name) for name in listing)
    judged: dict[tuple[str, ...], bool] = {}
    for names, name in by_names:
        if _remote_entered(names, pattern, finder, judged):
            size = int(listing[name].get("size") or 0)
            yield CorpusFile(path=None, url=filesystem.unstrip_protocol(name), file_bytes=size)


def _remote_entered(
    names: tuple[str, ...], pattern: _Pattern | None, finder: _Finder, judged: dict[tuple[str, ...], bool]
) -> bool:
    """Whether the file at `names` is part of the corpus; each directory on the way is judged, and counted, once."""
    states = pattern.start() if pattern else frozenset()
    within = pattern is None
    for depth, name in enumerate(names, start=1):
        is_directory = depth < len(names)
        if within:
            refusal = finder.choice.refusal(name, is_directory=is_directory)
        else:
            assert pattern is not None
            states = pattern.step(states, name)
            if not states:
                return False
            within = pattern.matches(states)
            if not is_directory and not within:
                return False
            refusal = Skipped.EXCLUDED if finder.choice.excludes(name) else None
        if refusal is not None:
            if judged.setdefault(names[:depth], True):
                finder.skip(refusal)
                judged[names[:depth]] = False
            return False
    return True
