"""A table, or the tables of all ranks together, written as files of another form: planned to the byte, then streamed.

Rows are read once and laid wherever the form wants their bytes. The output appears whole or not at all.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import CapacityError, InvalidInput, SpecMismatch
from engram_tables.files import allocate, fsync_directory, new_directory, new_file, refuse_existing, write_at
from engram_tables.storage.codecs.codec import FP8_SCALAR, Codec, get_codec
from engram_tables.storage.export.placed_files import PlacedFile, Stretch
from engram_tables.storage.export.replacing import check_directory, check_file
from engram_tables.storage.export.source_files import GGUF, source_files
from engram_tables.storage.export.targets import TARGETS, Form, Rows, files_of
from engram_tables.storage.sources.reading import read_records
from engram_tables.storage.sources.record import SourceRecord
from engram_tables.storage.table.ranks import check_ranks
from engram_tables.storage.table.reader import StoredTable
from engram_tables.storage.table.table_source import table_source
from engram_tables.threads import resolve_threads, run_all
from engram_tables.units import ProgressHook, format_bytes

SOURCE = "source"
TARGET_NAMES = (SOURCE, *TARGETS)
_TILE_BYTES = 2**21


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan:
    """Files to be.

    Attributes
    ----------
    target
        One of `TARGET_NAMES`.
    tables
        Open; between them they hold every row that the files want.
    codec
        Of the rows in the files; another than the tables' if they are re-encoded.
    is_file
        Whether the output is the one file, rather than a directory of them.
    left_out
        Tensors of the source's files that are not written, since no table holds them.
    """

    target: str
    tables: tuple[StoredTable, ...]
    codec: Codec
    files: tuple[PlacedFile, ...]
    is_file: bool
    left_out: int = 0

    @property
    def total_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.file_bytes for file in self.files)

    @property
    def n_rows(self) -> int:
        """Rows that are read."""
        return sum(stop - start for spans in _row_spans(self.files).values() for start, stop in spans)


def plan_export(
    tables: Sequence[StoredTable], *, to: str | None = None, codec: str | None = None, form: Form | None = None
) -> ExportPlan:
    """The exact files that `export_table` would write.

    Parameters
    ----------
    tables
        One, or those of several ranks.
    to
        One of `TARGET_NAMES`; by default `source`, which are the very files that the table was made from.
    codec
        Re-encode the rows; without it the table's codec must suit the form.

    Raises
    ------
    UnsupportedTable
        A table that says more of its rows than is known here.
    InvalidInput
        An unknown form, a codec or addressing that it cannot hold, or rows that are missing or held twice.
    SpecMismatch
        The tables are not shares of one.
    """
    first = tables[0]
    first.manifest.check_writer_features(str(first.path))
    _check_shares(tables)
    to = SOURCE if to is None else to
    if to not in TARGET_NAMES:
        raise InvalidInput(f"--to {to!r}: not known, expected one of {', '.join(TARGET_NAMES)}; choose one of them")
    record = None if first.manifest.source is None else SourceRecord.from_json(first.manifest.source)
    chosen = _codec(first, record, codec)
    rows = Rows(
        where=str(first.path),
        spec=first.spec,
        codec=chosen,
        row_width=first.manifest.row_width,
        vocabulary=first.vocabulary() if _is_gguf(to, record) else None,
    )
    if to == SOURCE:
        files, is_file = _source(record, rows), False
    else:
        files, is_file = files_of(TARGETS[to], rows, form or Form()), TARGETS[to].is_file
    _check_rows(tables, files)
    return ExportPlan(
        target=to,
        tables=tuple(tables),
        codec=chosen,
        files=tuple(files),
        is_file=is_file,
        left_out=record.left_out if record is not None and to == SOURCE else 0,
    )


def export_table(
    plan: ExportPlan,
    output: Path,
    *,
    force: bool = False,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> None:
    """Write the files of `plan` as the file or into the directory `output`.

    Parameters
    ----------
    force
        Replace what is there in one step: a file, or a directory that holds an export alone.
    threads
        Worker threads, all usable CPUs by default; never changes a byte. Each takes some MiB.
    progress
        Called with bytes of rows as they are written.

    Raises
    ------
    InvalidInput
        `output` is taken, is or holds a table, or a row cannot be re-encoded.
    CapacityError
        The filesystem has too little room; nothing was written.
    CorruptTable
        A block that is read is not what the manifest says; nothing is left behind.
    OSError
        Of the filesystem; nothing is left behind.
    """
    n_threads = resolve_threads(threads)
    output = Path.cwd() / output
    refuse_existing(output, force=force)
    _refuse_foreign(plan, output)
    _check_room(plan, output.parent)
    try:
        if plan.is_file:
            with new_file(output, force=force) as stream:
                _Export(plan, [stream.fileno()], progress).run(n_threads)
            return
        with new_directory(output, force=force) as directory, ExitStack() as opened:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            fds = []
            for file in plan.files:
                fds.append(os.open(directory / file.name, flags, 0o666))
                opened.callback(os.close, fds[-1])
            _Export(plan, fds, progress).run(n_threads)
            for fd in fds:
                os.fsync(fd)
            fsync_directory(directory)
    except OSError as error:
        error.add_note(f"while exporting to {output}")
        raise


class _Tile(NamedTuple):
    layer_id: int
    start: int
    stop: int


class _Place(NamedTuple):
    """Where a stretch's first row goes."""

    stretch: Stretch
    fd: int
    offset: int


class _Export:
    """One run over all rows; threads take the next tile of them as they come free."""

    def __init__(self, plan: ExportPlan, fds: Sequence[int], progress: ProgressHook | None) -> None:
        self._plan, self._fds, self._progress = plan, fds, progress
        self._sources = [table_source(table, is_checked=True) for table in plan.tables]
        self._places: dict[int, list[_Place]] = defaultdict(list)
        for file, fd in zip(plan.files, fds, strict=True):
            for tensor, offset in file.tensors:
                if isinstance(tensor.content, Stretch):
                    self._places[tensor.content.layer_id].append(_Place(tensor.content, fd, offset))
        self._row_bytes = plan.tables[0].row_bytes
        self._total_bytes = sum(place.stretch.total_bytes for places in self._places.values() for place in places)
        self._done_bytes = 0
        self._lock = threading.Lock()

    def run(self, n_threads: int) -> None:
        for file, fd in zip(self._plan.files, self._fds, strict=True):
            allocate(fd, file.file_bytes)
            write_at(fd, memoryview(file.head), 0)
            for tensor, offset in file.tensors:
                if isinstance(tensor.content, bytes):
                    write_at(fd, memoryview(tensor.content), offset)
        run_all(self._write_tile, self._tiles(), threads=n_threads)

    def _tiles(self) -> Iterator[_Tile]:
        n_rows = max(_TILE_BYTES // self._row_bytes, 1)
        for layer_id, spans in _row_spans(self._plan.files).items():
            for start, stop in spans:
                for first in range(start, stop, n_rows):
                    yield _Tile(layer_id, first, min(first + n_rows, stop))

    def _write_tile(self, tile: _Tile) -> None:
        records = self._records(tile)
        n_bytes = 0
        for stretch, fd, offset in self._places[tile.layer_id]:
            start = max(tile.start, stretch.first_row)
            stop = min(tile.stop, stretch.first_row + stretch.n_rows)
            if start >= stop:
                continue
            data = _laid(records[start - tile.start : stop - tile.start], stretch)
            write_at(fd, data, offset + (start - stretch.first_row) * stretch.stride)
            n_bytes += len(data)
        with self._lock:
            self._done_bytes += n_bytes
            if self._progress is not None:
                self._progress(self._done_bytes, self._total_bytes)

    def _records(self, tile: _Tile) -> NDArray[np.uint8]:
        """uint8 (rows of the tile, row bytes), in the plan's codec."""
        records = np.empty((tile.stop - tile.start, self._row_bytes), dtype=np.uint8)
        for source in self._sources:
            for start, stop in source.owned(tile.layer_id):
                first, last = max(start, tile.start), min(stop, tile.stop)
                if first < last:
                    read_records(source, tile.layer_id, first, records[first - tile.start : last - tile.start])
        codec = self._plan.tables[0].codec
        if codec == self._plan.codec:
            return records
        try:
            return self._plan.codec.encode(codec.decode(records))
        except InvalidInput as error:
            error.add_note(f"rows are counted from row {tile.start} of layer {tile.layer_id}")
            raise


def _laid(records: NDArray[np.uint8], stretch: Stretch) -> memoryview:
    """The stretch's bytes of some records as they follow each other in a file."""
    if stretch.stride == stretch.n_bytes == records.shape[1]:
        return memoryview(records.reshape(-1))  # type: ignore[arg-type]
    make = np.empty if stretch.stride == stretch.n_bytes else np.zeros
    cells = make((len(records), stretch.stride), dtype=np.uint8)
    cells[:, : stretch.n_bytes] = records[:, stretch.start : stretch.start + stretch.n_bytes]
    return memoryview(cells.reshape(-1))  # type: ignore[arg-type]


def _row_spans(files: Sequence[PlacedFile]) -> dict[int, list[tuple[int, int]]]:
    """By layer the rows that any tensor wants, as ranges that are ascending and apart."""
    wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for file in files:
        for tensor, _ in file.tensors:
            if isinstance(tensor.content, Stretch):
                first = tensor.content.first_row
                wanted[tensor.content.layer_id].append((first, first + tensor.content.n_rows))
    spans: dict[int, list[tuple[int, int]]] = {}
    for layer_id, ranges in wanted.items():
        merged: list[tuple[int, int]] = []
        for start, stop in sorted(ranges):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        spans[layer_id] = merged
    return spans


# Checks.


def _check_shares(tables: Sequence[StoredTable]) -> None:
    """Several tables are one only if they agree about everything but which rows they hold."""
    first = tables[0]
    for table in tables[1:]:
        for what, mine, theirs in (
            ("addressing", first.spec.fingerprint, table.spec.fingerprint),
            ("codec", first.codec, table.codec),
            ("row width", first.manifest.row_width, table.manifest.row_width),
            ("source", first.manifest.source, table.manifest.source),
            ("initialisation", first.manifest.init, table.manifest.init),
        ):
            if mine != theirs:
                shown = ("", "") if what in ("source", "codec", "initialisation") else (f" {mine}", f" {theirs}")
                raise SpecMismatch(
                    f"{table.path}: found another {what}{shown[1]} than {first.path}{shown[0]}, expected shares of one "
                    "table; name the tables of one build"
                )


def _codec(table: StoredTable, record: SourceRecord | None, name: str | None) -> Codec:
    """The codec of the output; a table-wide scale comes from the table itself or from its source."""
    if name is None or name == table.codec.name:
        return table.codec
    scale_bits = None
    if record is not None and record.codec == name and record.codec_scale is not None:
        scale_bits = int(record.codec_scale, 16)
    if name == FP8_SCALAR and scale_bits is None:
        raise InvalidInput(
            f"--codec {name}: found no scale for all rows of {table.path}, expected a table whose source had one; "
            "choose another codec"
        )
    codec = get_codec(name, scale_bits=scale_bits)
    for which, can in ((table.codec, table.codec.can_decode), (codec, codec.can_encode)):
        if not can:
            raise InvalidInput(
                f"--codec {name}: found that {which.name} has no {'decoder' if which is table.codec else 'encoder'}, "
                "expected one; leave --codec out and choose a form that holds the rows as they are"
            )
    codec.row_bytes(table.manifest.row_width)
    return codec


def _is_gguf(to: str, record: SourceRecord | None) -> bool:
    """Whether the output is GGUF, which carries the map of a vocabulary."""
    return record is not None and record.container == GGUF if to == SOURCE else TARGETS[to].is_file


def _source(record: SourceRecord | None, rows: Rows) -> list[PlacedFile]:
    if record is None:
        raise InvalidInput(
            f"{rows.where}: found no source, since it was not made from files of others, expected one for --to source; "
            f"name a form: {', '.join(TARGETS)}"
        )
    scale = None if rows.codec.scale_bits is None else f"{rows.codec.scale_bits:08x}"
    if (rows.codec.name, scale) != (record.codec, record.codec_scale):
        raise InvalidInput(
            f"{rows.where}: found rows in {rows.codec.name}, expected {record.codec} as its source had; re-encode them "
            f"with --codec {record.codec}, or name another form with --to"
        )
    return source_files(record, rows)


def _check_rows(tables: Sequence[StoredTable], files: Sequence[PlacedFile]) -> None:
    spans = _row_spans(files)
    owned = [{layer_id: table.owned(layer_id) for layer_id in table.layer_ids} for table in tables]
    for gap in check_ranks(tables[0].spec, owned):
        wanted = any(start < gap.stop and gap.start < stop for start, stop in spans.get(gap.layer_id, ()))
        if gap.owners or wanted:
            owners = " and ".join(str(tables[owner].path) for owner in gap.owners) or "no table"
            raise InvalidInput(
                f"{tables[0].path}: found rows {gap.start} to {gap.stop - 1} of layer {gap.layer_id} in {owners}, "
                "expected each row in one table; name the tables of all ranks, each once"
            )


def _refuse_foreign(plan: ExportPlan, output: Path) -> None:
    """What `force` removes must be an export itself: no table, and nothing that an export does not write."""
    resolved = output.resolve()
    for table in plan.tables:
        if resolved.is_relative_to(table.path.resolve()) or table.path.resolve().is_relative_to(resolved):
            raise InvalidInput(f"{output}: is or holds the table {table.path}, expected another place; choose one")
    if output.is_dir() and not plan.is_file:
        check_directory(output, {file.name for file in plan.files})
    elif output.is_file() and plan.is_file:
        check_file(output)


def _check_room(plan: ExportPlan, parent: Path) -> None:
    status = os.statvfs(parent)
    free_bytes = status.f_bavail * status.f_frsize
    if plan.total_bytes > free_bytes:
        raise CapacityError(
            f"{parent}: found {format_bytes(free_bytes)} free, expected {format_bytes(plan.total_bytes)} for this "
            "export; free some space or choose another disk"
        )
