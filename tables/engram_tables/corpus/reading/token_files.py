"""Documents from token ids on disk: `.npy` and raw `.bin` files, whole or cut at a token that ends documents."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.reading.blocks import Counter, compression_of, read_blocks
from engram_tables.corpus.reading.documents import (
    LARGEST_TOKEN_ID,
    Document,
    Format,
    ReadOptions,
    ReadOutcome,
    refuse_mixture,
)
from engram_tables.corpus.reading.pieces import Part
from engram_tables.corpus.reading.sources import CorpusFile
from engram_tables.errors import InvalidInput

_NPY_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER_BYTES = 1 << 16

Ids = npt.NDArray[np.uint32]


class TokenFile(NamedTuple):
    """Where the tokens of a file lie; `n_tokens` is None where only reading it to the end tells."""

    data_start: int
    dtype: np.dtype[Any]
    n_tokens: int | None


def inspect_tokens(file: CorpusFile, format_: Format, options: ReadOptions) -> TokenFile:
    """What the beginning and the size of a file tell of its tokens; standard input is not touched.

    Raises
    ------
    InvalidInput
        No .npy file of one dimension of integers, or a size that does not fit.
    """
    known_bytes = None if compression_of(file.name) or not file.file_bytes else file.file_bytes
    if format_ is Format.BIN:
        dtype = _bin_dtype(file, options)
        if known_bytes is not None:
            _refuse_rest(file, known_bytes % dtype.itemsize, dtype)
        return TokenFile(0, dtype, None if known_bytes is None else known_bytes // dtype.itemsize)
    return _npy_header(file, read_blocks(file))[0]


def _bin_dtype(file: CorpusFile, options: ReadOptions) -> np.dtype[Any]:
    if options.bin_dtype is None:
        raise InvalidInput(
            f"{file.source}: found raw token ids of unknown size, expected --dtype uint16 or uint32; give it, or "
            "--format if the file holds something else, or leave it out by --exclude"
        )
    return np.dtype(str(options.bin_dtype)).newbyteorder("<")


def _refuse_rest(file: CorpusFile, rest_bytes: int, dtype: np.dtype[Any]) -> None:
    if rest_bytes:
        raise InvalidInput(
            f"{file.source}: found {rest_bytes} bytes after the last whole token, expected a multiple of "
            f"{dtype.itemsize} bytes ({dtype.name}); give another --dtype, or copy the file again"
        )


def _npy_header(file: CorpusFile, blocks: Iterator[bytes]) -> tuple[TokenFile, bytes]:
    """The header of a .npy file, and what was read behind it."""
    head = b""
    while len(head) < 12 or len(head) < _header_stop(head):
        block = next(blocks, b"")
        if not block:
            break
        head += block
    where = f"{file.source}: found no .npy file of one dimension of integers"
    advice = "save the ids with numpy.save, or give --format"
    if not head.startswith(_NPY_MAGIC) or len(head) < 12:
        raise InvalidInput(f"{where} (it begins with {head[:6]!r}), expected the bytes {_NPY_MAGIC!r}; {advice}")
    stream = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version[0]}.{version[1]}, expected 1.0 or 2.0")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream, max_header_size=_LONGEST_HEADER_BYTES)
    except Exception as error:  # whatever Python's own tokenizer says of a header that is none
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidInput(f"{where} ({why}); {advice}") from None
    if len(shape) != 1 or dtype.kind not in "iu":
        raise InvalidInput(f"{where} (it holds {dtype} of shape {shape}); save it as a flat array of integers")
    found = TokenFile(stream.tell(), dtype, shape[0])
    stored_bytes = found.data_start + shape[0] * dtype.itemsize
    if compression_of(file.name) is None and file.file_bytes and file.file_bytes != stored_bytes:
        raise InvalidInput(_wrong_length(file, file.file_bytes, stored_bytes))
    return found, head[found.data_start :]


def _wrong_length(file: CorpusFile, found_bytes: int, expected_bytes: int) -> str:
    return (
        f"{file.source}: found {found_bytes:,} bytes, expected {expected_bytes:,} as its header says; "
        "it was cut or written over: copy it again"
    )


def _header_stop(head: bytes) -> int:
    """Where a .npy header ends that begins with `head`; never far behind what a sound one needs."""
    n_bytes = int.from_bytes(head[8:10] if head[6] == 1 else head[8:12], "little")
    return (10 if head[6] == 1 else 12) + min(n_bytes, _LONGEST_HEADER_BYTES)


def read_tokens(part: Part, options: ReadOptions, outcome: ReadOutcome, counter: Counter) -> Iterator[Document]:
    """The documents that begin inside `part`.

    Raises
    ------
    InvalidInput
        As `inspect_tokens`; a value that is no token id, with its position; a file that ends early.
    """
    source = part.file.source
    if "token ids" not in outcome.kinds:
        outcome.kinds["token ids"] = source
        if len(outcome.kinds) > 1:
            refuse_mixture(outcome.kinds)
    first = 0 if part.stop is None else max(part.start - 1, 0)
    blocks = _token_blocks(part, options, first, counter)
    if options.document_end is None:
        parts = list(blocks)
        ids = np.concatenate(parts) if len(parts) != 1 else parts[0]
        yield Document(source, "", 4 * len(ids), ids)
        return
    if part.stop is not None:
        blocks = _whole_documents(blocks, part.start, part.stop, options.document_end)
    for ids in _split(blocks, options.document_end):
        yield Document(source, "", 4 * len(ids), ids)


def _token_blocks(part: Part, options: ReadOptions, first: int, counter: Counter) -> Iterator[Ids]:
    """Checked token ids from token `first` on, at least one block."""
    file = part.file
    if first:
        about, carry = inspect_tokens(file, part.format, options), b""
        blocks = read_blocks(file, start=about.data_start + first * about.dtype.itemsize, counter=counter)
    elif part.format is Format.BIN:
        about, carry = TokenFile(0, _bin_dtype(file, options), None), b""
        blocks = read_blocks(file, counter=counter)
    else:
        blocks = read_blocks(file, counter=counter)
        about, carry = _npy_header(file, blocks)
    at, width = first, about.dtype.itemsize
    yield np.empty(0, dtype=np.uint32)
    for block in _with_head(carry, blocks):
        data = carry + block if carry else block
        n_whole = len(data) // width
        carry = data[n_whole * width :]
        yield _checked(np.frombuffer(data, dtype=about.dtype, count=n_whole), at, file)
        at += n_whole
    if about.n_tokens is not None and (at != about.n_tokens or carry):
        found_bytes = about.data_start + at * width + len(carry)
        raise InvalidInput(_wrong_length(file, found_bytes, about.data_start + about.n_tokens * width))
    _refuse_rest(file, len(carry), about.dtype)


def _with_head(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield b""
    yield from blocks


def _checked(values: npt.NDArray[np.integer[Any]], at: int, file: CorpusFile) -> Ids:
    """`values` as uint32; `at` is the position of the first in the file."""
    if len(values) and (values.dtype.kind == "i" or values.dtype.itemsize >= 4):
        least, most = int(values.min()), int(values.max())
        if least < 0 or most > LARGEST_TOKEN_ID:
            wrong = (values < 0) | (values > LARGEST_TOKEN_ID) if least < 0 else values > LARGEST_TOKEN_ID
            nth = int(np.flatnonzero(wrong)[0])
            raise InvalidInput(
                f"{file.source}: token {at + nth:,} is {int(values[nth]):,}, expected 0 to {LARGEST_TOKEN_ID:,}; "
                "save token ids, without padding values"
            )
    return values.astype(np.uint32)


def _whole_documents(blocks: Iterator[Ids], start: int, stop: int, end: int) -> Iterator[Ids]:
    """From the blocks after token start - 1, those of the documents that begin in tokens `start` to `stop`, whole."""
    at = max(start - 1, 0)
    begun = start == 0
    for block in blocks:
        block_stop = at + len(block)
        if not begun:
            ends = np.flatnonzero(block[: max(stop - 1 - at, 0)] == end)
            if not len(ends):
                if block_stop >= stop - 1:
                    return
                at = block_stop
                continue
            begun = True
            block = block[ends[0] + 1 :]
            at += int(ends[0]) + 1
        if block_stop >= stop:
            seen = max(stop - 1 - at, 0)
            ends = np.flatnonzero(block[seen:] == end)
            if len(ends):
                yield block[: seen + int(ends[0]) + 1]
                return
        yield block
        at = block_stop


def _split(blocks: Iterator[Ids], end: int) -> Iterator[Ids]:
    """The documents between the tokens `end`; an empty one where two of them meet."""
    carry: list[Ids] = []
    for block in blocks:
        begin = 0
        for at in np.flatnonzero(block == end).tolist():
            yield np.concatenate([*carry, block[begin:at]]) if carry else block[begin:at]
            carry, begin = [], at + 1
        if begin < len(block):
            carry.append(block[begin:])
    if carry:
        yield np.concatenate(carry)
