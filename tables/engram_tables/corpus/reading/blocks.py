"""The bytes of a corpus file, block by block, decompressed; and the lines in them.

Owns opening, decompression and the cutting at line ends. Knows no format. Memory stays near a block, whatever the
file's length, but for a line that is longer.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, TextIO, cast

from engram_tables.corpus.reading.sources import CorpusFile
from engram_tables.errors import InvalidInput
from engram_tables.remote import remote_filesystem, remote_noted

BLOCK_BYTES = 1 << 20
_STEP_BYTES = {"gzip": 1 << 14, "zstd": 1 << 13}
"""Compressed bytes a step: they can hold 16 MiB of zeros as gzip and 256 MiB as zstd, and nothing else bounds what a
step gives."""
_LONGEST_WINDOW = 1 << 31
"""Bytes, as `zstd --long=31` writes them."""
_GZIP_WINDOW = 31

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}

Counter = Callable[[int], None]
"""Called with the number of stored bytes of each block that is read."""

_ahead: dict[str, tuple[BinaryIO, bytes]] = {}
"""Streams that were looked at, by name: open, with what was taken from them, which their reader gets first."""


class _Inflater(Protocol):
    """A decompressor of one gzip member or one zstd frame, of zlib or zstandard."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def compression_of(name: str) -> str | None:
    """The compression that a file's name in small letters tells, "gzip" or "zstd", or None."""
    return next((kind for suffix, kind in COMPRESSIONS.items() if name.endswith(suffix)), None)


def stored_name(name: str) -> str:
    """`name` without the suffix of a compression."""
    return next((name.removesuffix(suffix) for suffix in COMPRESSIONS if name.endswith(suffix)), name)


def standard_input() -> BinaryIO:
    """The stream of standard input; InvalidInput if it is closed."""
    # A process that was started without one (`<&-`) has None there, against what the type says.
    stream: TextIO | None = sys.stdin
    if stream is None or stream.closed:
        raise InvalidInput(
            "standard input: found it closed, expected text to read (-); pipe some in, or give files instead"
        )
    return stream.buffer


@contextmanager
def open_file(file: CorpusFile) -> Iterator[BinaryIO]:
    """The file as it is stored, open for reading; standard input stays open afterwards."""
    with _noted(file):
        if file.url is not None:
            with remote_noted(file.url, _reading(file)):
                filesystem, path = remote_filesystem(file.url)
                stream = filesystem.open(path, "rb")
            with stream:
                yield stream
        elif file.path is None:
            yield standard_input()
        else:
            with _ahead[file.source][0] if file.source in _ahead else _opened(file.path) as stream:
                yield stream


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, path.open("rb", buffering=0))


def _reading(file: CorpusFile) -> str:
    return f"while reading the corpus file {file.source}"


@contextmanager
def _noted(file: CorpusFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if _reading(file) not in getattr(error, "__notes__", ()):
            error.add_note(_reading(file))
        raise


def read_blocks(file: CorpusFile, *, start: int = 0, counter: Counter | None = None) -> Iterator[bytes]:
    """The content from byte `start` on, decompressed where its name says so; `start` is 0 for such a file.

    Raises
    ------
    InvalidInput
        A compressed file that is cut short or damaged, with how far it was read; a file that has become shorter.
    OSError
        A file that cannot be read, with a note.
    """
    stored = _stored_blocks(file, start, counter)
    compression = compression_of(file.name)
    return stored if compression is None else _inflated(file.source, compression, stored)


def _stored_blocks(file: CorpusFile, start: int, counter: Counter | None) -> Iterator[bytes]:
    with open_file(file) as stream:
        if start:
            stream.seek(start)
        stop = start
        block = _taken_ahead(file, stream)
        while block or (block := _read(stream, file)):
            if counter is not None:
                counter(len(block))
            stop += len(block)
            yield block
            block = b""
        if stop < file.file_bytes:
            raise InvalidInput(
                f"{file.source}: found its end before byte {stop:,}, expected {file.file_bytes:,} bytes as when the "
                "corpus was listed; it was written over or cut: run again when it no longer changes"
            )


def _taken_ahead(file: CorpusFile, stream: BinaryIO) -> bytes:
    of_stream, block = _ahead.pop(file.source, (None, b""))
    return block if of_stream is stream else b""


def _read(stream: BinaryIO, file: CorpusFile) -> bytes:
    if file.url is None:
        return stream.read(BLOCK_BYTES)
    with remote_noted(file.url, _reading(file)):
        return stream.read(BLOCK_BYTES)


def look_ahead(file: CorpusFile, enough: Callable[[bytes], bool]) -> bytes:
    """What a stream begins with, read until `enough` says so or it ends; whoever reads it here gets it again."""
    source = file.source
    if source in _ahead and file.is_standard_input and _ahead[source][0] is not standard_input():
        del _ahead[source]
    if source not in _ahead:
        with _noted(file):
            _ahead[source] = (standard_input() if file.path is None else _opened(file.path), b"")
    stream, head = _ahead[source]
    # What a pipe holds so far is enough to look at, and waiting for a whole block might be long.
    read = cast(Callable[[int], bytes], getattr(stream, "read1", stream.read))
    with _noted(file):
        while not enough(head) and (block := read(BLOCK_BYTES)):
            head += block
    _ahead[source] = (stream, head)
    return head


def _inflated(source: str, compression: str, stored: Iterator[bytes]) -> Iterator[bytes]:
    """Members or frames one after the other, as `cat` joins them; zero bytes after the last gzip member are padding."""
    inflater: _Inflater | None = None
    n_stored = n_given = n_ended = 0
    step_bytes = _STEP_BYTES[compression]
    for block in stored:
        for at in range(0, len(block), step_bytes):
            data = block[at : at + step_bytes]
            n_stored += len(data)
            while data:
                if inflater is None:
                    if compression == "gzip" and n_ended and not data.strip(b"\0"):
                        break
                    inflater = _new_inflater(compression)
                try:
                    given = inflater.decompress(data)
                except MemoryError:
                    raise
                except Exception as error:  # zlib.error, zstandard.ZstdError: neither module names it in one place
                    raise _damaged(source, compression, n_stored, n_given, str(error)) from None
                n_given += len(given)
                if given:
                    yield given
                if not inflater.eof:
                    break
                data, inflater, n_ended = inflater.unused_data, None, n_ended + 1
    if inflater is not None or not n_ended:
        raise _damaged(source, compression, n_stored, n_given, "it ends before its stream does")


def _new_inflater(compression: str) -> _Inflater:
    if compression == "gzip":
        return zlib.decompressobj(wbits=_GZIP_WINDOW)
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=_LONGEST_WINDOW).decompressobj()


def _damaged(source: str, compression: str, n_stored: int, n_given: int, why: str) -> InvalidInput:
    return InvalidInput(
        f"{source}: found it damaged within its first {n_stored:,} bytes ({why}; {n_given:,} bytes were decompressed), "
        f"expected a whole {compression} file; copy it again, or leave it out by --exclude"
    )


def lines(blocks: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Batches of lines, without their line feeds; the last one need not have any."""
    carry: list[bytes] = []
    for block in blocks:
        cut = block.rfind(b"\n")
        if cut < 0:
            carry.append(block)
            continue
        batch = block[:cut].split(b"\n")
        if carry:
            carry.append(batch[0])
            batch[0] = b"".join(carry)
        carry = [block[cut + 1 :]] if cut + 1 < len(block) else []
        yield batch
    if carry:
        yield [b"".join(carry)]


def blocks_of_lines(file: CorpusFile, start: int, stop: int, *, counter: Counter | None = None) -> Iterator[bytes]:
    """The lines that begin in bytes `start` to `stop` of a file that is not compressed, whole, as blocks.

    Every line begins in one of the ranges that cover a file, so that ranges may be cut anywhere.
    """
    if start >= stop:
        return
    # A line begins after a line feed: one before `start` is looked for, so that a line at `start` is seen to begin.
    at = max(start - 1, 0)
    begun = start == 0
    for block in read_blocks(file, start=at, counter=counter):
        block_stop = at + len(block)
        if not begun:
            feed = block.find(b"\n", 0, max(stop - 1 - at, 0))
            if feed < 0:
                if block_stop >= stop - 1:
                    return
                at = block_stop
                continue
            begun = True
            block = block[feed + 1 :]
            at += feed + 1
        if block_stop >= stop:
            feed = block.find(b"\n", max(stop - 1 - at, 0))
            if feed >= 0:
                yield block[: feed + 1]
                return
        if block:
            yield block
        at = block_stop


def count_lines(file: CorpusFile, start: int) -> int:
    """The number of lines of a file that is not compressed that begin before byte `start`, where `start` is in a line.

    A line that `start` lies inside counts: it is the lines before the first that begins at `start` or after.
    """
    if start == 0:
        return 0
    n_feeds, left, last = 0, start, b""
    for block in read_blocks(file):
        part = block[:left]
        n_feeds += part.count(b"\n")
        left -= len(part)
        last = part[-1:]
        if not left:
            break
    return n_feeds + (last != b"\n")
