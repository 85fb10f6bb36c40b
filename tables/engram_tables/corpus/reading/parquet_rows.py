"""Documents from the rows of a Parquet file: a column of strings or of lists of integers. Knows no other format."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engram_tables.corpus.reading.blocks import Counter, open_file
from engram_tables.corpus.reading.documents import LARGEST_TOKEN_ID, DecodeErrors, Document, ReadOptions, ReadOutcome
from engram_tables.corpus.reading.records import Malformed, RecordReader, replaced
from engram_tables.corpus.reading.sources import CorpusFile
from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    from engram_tables.corpus.reading.pieces import Part

_BATCH_ROWS = 1024


class RowGroup(NamedTuple):
    """One row group: its rows, and its share of the file's stored bytes, footer and all."""

    n_rows: int
    n_bytes: int


def inspect_parquet(file: CorpusFile, options: ReadOptions) -> tuple[bool, list[RowGroup]]:
    """Whether the column holds token ids (else text), and the file's row groups, from its footer.

    Raises
    ------
    InvalidInput
        No Parquet file, no such column, or one of another type.
    """
    with _opened(file) as parquet:
        tokenized = _holds_ids(file, parquet.schema_arrow, options)
        # Shares come from the groups' decompressed sizes: Arrow aborts the process where it is asked for the columns'
        # compressed ones and the footer is damaged (26.0.1).
        groups = [parquet.metadata.row_group(nth) for nth in range(parquet.metadata.num_row_groups)]
        sizes = [max(int(group.total_byte_size), 1) for group in groups]
        ends = [file.file_bytes * end // sum(sizes) for end in accumulate(sizes, initial=0)]
        shares = [stop - start for start, stop in pairwise(ends)]
        return tokenized, [RowGroup(group.num_rows, share) for group, share in zip(groups, shares, strict=True)]


@contextmanager
def _opened(file: CorpusFile) -> Iterator[Any]:
    if file.is_stream:
        raise InvalidInput(
            f"{file.source}: found a stream, expected a file, since Parquet is read from its end; save it, and name "
            "the file"
        )
    with open_file(file) as stream:
        try:
            # A local file is opened once more, by Arrow, whose reads then need no Python.
            where = stream if file.path is None else file.path
            with pq.ParquetFile(where, page_checksum_verification=True) as parquet:
                yield parquet
        except pa.ArrowMemoryError:
            raise
        except (pa.ArrowException, UnicodeDecodeError) as error:
            _damaged(file, error)
        except OSError as error:
            # Arrow raises a bare OSError, without an errno, for pages that cannot be decompressed or do not fit.
            if error.errno is None:
                _damaged(file, error)
            raise


def _damaged(file: CorpusFile, error: Exception) -> NoReturn:
    what = str(error).splitlines()[0] if str(error) else type(error).__name__
    raise InvalidInput(
        f"{file.source}: found no sound Parquet file ({what}); copy it again, or give --format if it is something else"
    ) from None


def _column_type(schema: Any, field: str) -> tuple[Any, list[str]]:
    """The type of a column, and the keys that lead to it: its own name, or a path through structs."""
    if field in schema.names:
        return schema.field(field).type, [field]
    first, *rest = field.split(".")
    kind: Any = schema.field(first).type if first in schema.names else None
    for key in rest:
        at = kind.get_field_index(key) if kind is not None and pa.types.is_struct(kind) else -1
        kind = kind.field(at).type if at >= 0 else None
    return kind, [first, *rest]


def _holds_ids(file: CorpusFile, schema: Any, options: ReadOptions) -> bool:
    where = f"{file.source}: column {options.field!r}"
    for field in (options.field, options.request_field, options.dead_field):
        if field is not None and schema.names.count(field) > 1:
            raise InvalidInput(
                f"{file.source}: found {schema.names.count(field)} columns {field!r}, expected one; write the file "
                "with distinct names"
            )
    kind, _ = _column_type(schema, options.field)
    if kind is None:
        raise InvalidInput(f"{where} is missing, expected one of {', '.join(schema.names)}; name it by --field")
    for other in (options.request_field, options.dead_field):
        if other is not None and _column_type(schema, other)[0] is None:
            raise InvalidInput(f"{file.source}: column {other!r} is missing, expected one of {', '.join(schema.names)}")
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if _is_text(kind):
        if options.dead_field is not None:
            raise InvalidInput(f"{where} holds text, and dead spans count token ids; name a column of token ids")
        return False
    if _is_list(kind):
        if pa.types.is_integer(kind.value_type):
            return True
        if pa.types.is_struct(kind.value_type):
            raise InvalidInput(
                f"{where} is a list of structs, as chat messages are, expected text or token ids; no chat template is "
                "applied here: render each conversation with the model's own template into a text column"
            )
    raise InvalidInput(f"{where} is of type {kind}, expected strings or lists of integers; name another by --field")


def _is_text(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)) or _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: Any) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def read_parquet(part: Part, options: ReadOptions, outcome: ReadOutcome, counter: Counter) -> Iterator[Document]:
    """The documents of the row groups of `part`; a row that is null or no token ids is a malformed line."""
    reader = RecordReader(part, options, outcome)
    yield from reader.joined(_documents(part, options, outcome, reader))
    counter(part.n_bytes)


def _documents(part: Part, options: ReadOptions, outcome: ReadOutcome, reader: RecordReader) -> Iterator[Document]:
    with _opened(part.file) as parquet:
        tokenized = _holds_ids(part.file, parquet.schema_arrow, options)
        fields = [field for field in (options.field, options.request_field, options.dead_field) if field is not None]
        paths = {field: _column_type(parquet.schema_arrow, field)[1] for field in fields}
        stop = parquet.num_row_groups if part.stop is None else part.stop
        batches = parquet.iter_batches(
            batch_size=_BATCH_ROWS, row_groups=list(range(part.start, stop)), columns=sorted(set(fields))
        )
        for batch in batches:
            columns = {field: _column(batch, paths[field]) for field in fields}
            values = columns.pop(options.field)
            for row, value in enumerate(_ids(values) if tokenized else _texts(values)):
                reader.next_line()
                try:
                    if isinstance(value, Malformed):
                        raise value
                    if isinstance(value, bytes):
                        value = _decoded(value, part.file.source, options, outcome)
                    others = {field: column[row].as_py() for field, column in columns.items()} if columns else columns
                    yield reader.document(value, others)
                except Malformed as error:
                    reader.bad(str(error))


def _column(batch: Any, path: list[str]) -> Any:
    column = batch.column(path[0])
    for key in path[1:]:
        column = pc.struct_field(column, key)
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _texts(column: Any) -> Iterator[Any]:
    """Each row as str, as bytes where it is not known to be UTF-8, or None."""
    try:
        yield from column.to_pylist()
    except UnicodeDecodeError:
        yield from column.cast(pa.large_binary()).to_pylist()


def _ids(column: Any) -> Iterator[Any]:
    """Each row as uint32, as `Malformed`, or None."""
    lengths = column.value_lengths().to_pylist()
    values = column.flatten()
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    wrong = np.asarray(values.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)
    wrong |= (numbers < 0) | (numbers > LARGEST_TOKEN_ID) if numbers.dtype.kind == "i" else numbers > LARGEST_TOKEN_ID
    any_wrong = bool(wrong.any())
    ids = numbers.astype(np.uint32)
    at = 0
    for length in lengths:
        stop = at + (length or 0)
        if length is None:
            yield None
        elif any_wrong and wrong[at:stop].any():
            nth = int(np.flatnonzero(wrong[at:stop])[0])
            found = values[at + nth].as_py()
            yield Malformed(
                f"item {nth:,} is {'null' if found is None else format(found, ',')}, expected a token id from 0 to "
                f"{LARGEST_TOKEN_ID:,}"
            )
        else:
            yield ids[at:stop]
        at = stop


def _decoded(raw: bytes, source: str, options: ReadOptions, outcome: ReadOutcome) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        if options.decode_errors is DecodeErrors.STRICT:
            raise Malformed(
                f"byte {error.start:,} is 0x{raw[error.start]:02x} ({error.reason}), expected UTF-8"
            ) from None
        return replaced(raw, source, outcome)
