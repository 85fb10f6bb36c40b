"""Documents from records: the fields asked for, what is wrong with a line, and the lines of JSONL.

Knows no directories, no tokenizer, and no Parquet, whose rows become records elsewhere.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator
from typing import Any, NoReturn, cast

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.reading.blocks import Counter, blocks_of_lines, count_lines, lines, read_blocks
from engram_tables.corpus.reading.documents import (
    LARGEST_TOKEN_ID,
    BadLine,
    DecodeErrors,
    Document,
    Format,
    ReadOptions,
    ReadOutcome,
    refuse_mixture,
)
from engram_tables.corpus.reading.pieces import Part
from engram_tables.corpus.reading.sources import CorpusFile
from engram_tables.errors import InvalidInput

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_REPLACEMENT = "\ufffd"
_MISSING = object()
_SCAN = cast(Any, json.JSONDecoder()).scan_once
"""The scanner under json.loads, without the two searches for white space that cost as much as a short line."""

Ids = npt.NDArray[np.uint32]


class Malformed(ValueError):
    """What is wrong with a line; never leaves this module's callers."""


class Enough(Exception):
    """More malformed lines than allowed."""


class RecordReader:
    """Turns the lines of one part of a file into documents, and notes in `outcome` what it meets."""

    def __init__(self, part: Part, options: ReadOptions, outcome: ReadOutcome) -> None:
        self._part = part
        self._options = options
        self._outcome = outcome
        self._source = part.file.source
        self._line = 0
        self._lines_before: int | None = None
        self._field = options.field.split(".")
        self._request = options.request_field.split(".") if options.request_field is not None else None
        self._dead = options.dead_field.split(".") if options.dead_field is not None else None

    def joined(self, documents: Iterable[Document]) -> Iterator[Document]:
        """`documents` as they come, or, with request ids, those of one request as one."""
        return iter(documents) if self._request is None else _grouped(documents)

    def json_documents(self, batches: Iterable[list[bytes]]) -> Iterator[Document]:
        """The document of every line that is neither blank nor malformed."""
        outcome, source = self._outcome, self._source
        key = self._field[0] if len(self._field) == 1 and self._request is None and self._dead is None else None
        for batch in batches:
            for line in batch:
                self._line += 1
                outcome.n_lines += 1
                if not line or (line.isspace() and not line.strip(b" \t\r")):
                    outcome.n_blank_lines += 1
                    continue
                try:
                    record = self._parsed(line)
                    if key is not None:
                        # What nearly every line is: plain text under one key. Everything else goes the long way.
                        text = record.get(key)
                        if type(text) is str and text.isascii() and "text" in outcome.kinds:
                            yield Document(source, text, len(text))
                            continue
                    document = self.document(_value(record, self._field), record)
                except Malformed as error:
                    self.bad(str(error))
                    continue
                yield document

    def _parsed(self, line: bytes) -> dict[str, Any]:
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            if self._options.decode_errors is DecodeErrors.STRICT:
                raise Malformed(
                    f"byte {error.start:,} of the line is 0x{line[error.start]:02x} ({error.reason}), expected UTF-8"
                ) from None
            text = replaced(line, self._source, self._outcome)
        try:
            record, end = _SCAN(text, 0)
            if end == len(text) and type(record) is dict:
                return record
        except (StopIteration, ValueError, RecursionError):
            pass
        return _parsed_slowly(text)

    def document(self, value: Any, record: dict[str, Any]) -> Document:
        """The document of a record with `value` in its field; uint32 arrays are taken as checked token ids.

        Raises
        ------
        Malformed
            A field is missing or not what it must be.
        InvalidInput
            The record shows that the whole corpus cannot be read this way: messages, or a second kind of content.
        """
        if type(value) is str:
            try:
                n_bytes = len(value) if value.isascii() else len(value.encode())
            except UnicodeEncodeError as error:
                raise Malformed(
                    f"field {self._options.field!r}: character {error.start:,} is half of a surrogate pair, "
                    "expected text that UTF-8 can hold"
                ) from None
            self.check_kind("text")
            if self._dead is not None and _value(record, self._dead, None) is not None:
                self._stop(f"field {self._options.dead_field!r} gives dead spans of token ids, but the line holds text")
            return Document(self._source, value, n_bytes, name=self._name(record))
        if isinstance(value, list):
            value = self._ids(value)
        if isinstance(value, np.ndarray):
            self.check_kind("token ids")
            dead = self._dead_positions(record, len(value))
            return Document(self._source, "", 4 * len(value), value, dead, self._name(record))
        raise Malformed(self._not_there(value))

    def _not_there(self, value: Any) -> str:
        wanted = "text (a string) or a list of token ids"
        if value is _MISSING:
            return f"field {self._options.field!r} is missing, expected {wanted}"
        return f"field {self._options.field!r} is {_named(value)}, expected {wanted}"

    def _ids(self, value: list[Any]) -> Ids:
        kinds = set(map(type, value))
        if not kinds <= {int}:
            at = next(nth for nth, item in enumerate(value) if type(item) is not int)
            if isinstance(value[at], dict):
                self._stop(
                    f"field {self._options.field!r} is a list of objects, as chat messages are, expected text or token "
                    "ids; no chat template is applied here: render each conversation with the model's own template "
                    "into a text field, or tokenise it so and give the token ids"
                )
            raise Malformed(f"field {self._options.field!r}: item {at:,} is {_named(value[at])}, expected a token id")
        try:
            found = np.frombuffer(array("q", value), dtype=np.int64)
        except OverflowError:
            found = None
        if found is None or (len(found) and (found.min() < 0 or found.max() > LARGEST_TOKEN_ID)):
            at = next(nth for nth, item in enumerate(value) if not 0 <= item <= LARGEST_TOKEN_ID)
            raise Malformed(
                f"field {self._options.field!r}: item {at:,} is {_named(value[at])}, expected a token id from 0 to "
                f"{LARGEST_TOKEN_ID:,}"
            )
        return found.astype(np.uint32)

    def _dead_positions(self, record: dict[str, Any], n_tokens: int) -> npt.NDArray[np.bool_] | None:
        if self._dead is None:
            return None
        spans = _value(record, self._dead, None)
        if spans is None:
            return None
        where = f"field {self._options.dead_field!r}"
        if not isinstance(spans, list):
            raise Malformed(f"{where} is {_named(spans)}, expected a list of spans [start, stop]")
        dead = np.zeros(n_tokens, dtype=np.bool_)
        for nth, span in enumerate(spans):
            if not isinstance(span, list) or len(span) != 2 or not set(map(type, span)) <= {int}:
                raise Malformed(f"{where}: span {nth:,} is {_named(span)}, expected [start, stop] of integers")
            start, stop = span
            if not 0 <= start <= stop <= n_tokens:
                raise Malformed(
                    f"{where}: span {nth:,} is {_named(span)}, expected 0 <= start <= stop <= {n_tokens:,}, the number "
                    "of token ids in its line"
                )
            dead[start:stop] = True
        return dead if dead.any() else None

    def _name(self, record: dict[str, Any]) -> str | None:
        if self._request is None:
            return None
        value = _value(record, self._request)
        if type(value) is str:
            return value
        if type(value) is int:
            return str(value)
        found = "missing" if value is _MISSING else _named(value)
        raise Malformed(f"field {self._options.request_field!r} is {found}, expected a string or an integer")

    def check_kind(self, kind: str) -> None:
        """Refuse text after token ids and the reverse."""
        kinds = self._outcome.kinds
        if kind in kinds:
            return
        if kinds or not self._part.start:
            kinds[kind] = f"{self._source}: line {self.line_number():,}"
        else:
            # Its line number would have every part of a file read all that stands before it.
            kinds[kind] = f"{self._source}: line {self._line:,} of those after byte {self._part.start:,}"
        if len(kinds) > 1:
            refuse_mixture(kinds)

    def bad(self, reason: str) -> None:
        """Note a malformed line; `Enough` if it is one too many."""
        self._outcome.bad_lines.append(BadLine(self._source, self.line_number(), reason))
        if len(self._outcome.bad_lines) > self._options.skip_bad:
            raise Enough

    def line_number(self) -> int:
        """The current line's, from 1. Only an error needs it: the lines before the part are counted once, then."""
        if self._lines_before is None:
            self._lines_before = self._part.lines_before
            if self._lines_before is None:
                self._lines_before = count_lines(self._part.file, self._part.start)
        return self._lines_before + self._line

    def next_line(self) -> None:
        """Go on to the next row, for a reader that has no lines."""
        self._line += 1
        self._outcome.n_lines += 1

    def _stop(self, what: str) -> NoReturn:
        raise InvalidInput(f"{self._source}: line {self.line_number():,}: {what}")


def _value(record: Any, keys: list[str], missing: Any = _MISSING) -> Any:
    """The value under `keys`; a key that holds the dots itself comes first."""
    if len(keys) > 1:
        whole = ".".join(keys)
        if isinstance(record, dict) and whole in record:
            return record[whole]
    for key in keys:
        if not isinstance(record, dict) or key not in record:
            return missing
        record = record[key]
    return record


def _named(value: Any) -> str:
    """A value in a message: JSON's words, and short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > 200:
        return f"an integer of {value.bit_length():,} bits"
    kind = {dict: "an object", list: "a list", str: "a string", float: "a number", int: "an integer"}.get(type(value))
    shown = repr(value) if isinstance(value, int | float) else json.dumps(value, default=str)[:40]
    return f"{kind or type(value).__name__} ({shown})"


def _parsed_slowly(text: str) -> dict[str, Any]:
    """As the scanner, which takes no white space around a value and does not say what is wrong."""
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise Malformed(f"no JSON ({error.msg} at character {error.pos:,}), expected one object a line") from None
    except (ValueError, RecursionError) as error:
        # Python bounds the digits of an integer and the depth of lists.
        raise Malformed(f"JSON that cannot be read ({error})") from None
    if not isinstance(record, dict):
        raise Malformed(f"found {_named(record)}, expected a JSON object")
    return record


def _grouped(documents: Iterable[Document]) -> Iterator[Document]:
    requests: dict[str | None, list[Document]] = {}
    for document in documents:
        requests.setdefault(document.name, []).append(document)
    for parts in requests.values():
        yield parts[0] if len(parts) == 1 else _concatenated(parts)


def _concatenated(parts: list[Document]) -> Document:
    """The documents of one request, one after the other."""
    n_bytes = sum(part.n_bytes for part in parts)
    each_ids = [part.ids for part in parts if part.ids is not None]
    if not each_ids:
        return parts[0]._replace(text="".join(part.text for part in parts), n_bytes=n_bytes)
    dead = None
    if any(part.dead is not None for part in parts):
        pairs = zip(parts, each_ids, strict=True)
        dead = np.concatenate([np.zeros(len(ids), np.bool_) if p.dead is None else p.dead for p, ids in pairs])
    return parts[0]._replace(n_bytes=n_bytes, ids=np.concatenate(each_ids), dead=dead)


def replaced(raw: bytes, source: str, outcome: ReadOutcome) -> str:
    """`raw` with U+FFFD for what is not UTF-8; the bytes that this takes away are counted in `outcome`."""
    text = raw.decode(errors="replace")
    n_replacements = text.count(_REPLACEMENT) - raw.count(_REPLACEMENT.encode())
    kept_bytes = len(text.encode()) - n_replacements * len(_REPLACEMENT.encode())
    outcome.replaced_sources[source] = None
    outcome.replaced_bytes += len(raw) - kept_bytes
    return text


def read_jsonl(part: Part, options: ReadOptions, outcome: ReadOutcome, counter: Counter) -> Iterator[Document]:
    """The documents of the lines that begin inside `part`; a byte-order mark before the first one is passed over."""
    if part.stop is None:
        blocks = read_blocks(part.file, counter=counter)
    else:
        blocks = blocks_of_lines(part.file, part.start, part.stop, counter=counter)
    batches = lines(blocks)
    if part.start == 0:
        batches = _without_mark(batches)
    reader = RecordReader(part, options, outcome)
    return reader.joined(reader.json_documents(batches))


def _without_mark(batches: Iterator[list[bytes]]) -> Iterator[list[bytes]]:
    for first in batches:
        first[0] = first[0].removeprefix(_BYTE_ORDER_MARK)
        yield first
        yield from batches


def first_line_holds_ids(head: bytes, file: CorpusFile, options: ReadOptions) -> bool:
    """Whether the first line of `head` that is not blank gives token ids; InvalidInput if it is malformed."""
    part = Part(file=file, format=Format.JSONL)
    outcome = ReadOutcome()
    reader = RecordReader(part, options, outcome)
    batches = ([line] for line in head.removeprefix(_BYTE_ORDER_MARK).split(b"\n"))
    try:
        for document in reader.json_documents(batches):
            return document.ids is not None
    except Enough:
        outcome.check(options.skip_bad)
    return False
