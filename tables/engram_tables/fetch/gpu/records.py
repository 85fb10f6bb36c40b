"""A block of records in memory that kernels read: where each row lies in it, and how it is filled. It knows no bus.

Records stand at a stride that is a multiple of 16 bytes, since a kernel loads 16 at a time: 264 bytes at 272.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.fetch.gpu.host_memory import HostMemory
from engram_tables.fetch.gpu.position_kernels import RangeArrays, place_rows
from engram_tables.storage.codecs.codec import Codec
from engram_tables.storage.extents import Extent, Part, Ranges
from engram_tables.storage.row_files import RowFiles
from engram_tables.threads import resolve_threads, run_all

STRIDE_UNIT_BYTES = 16
_PIECE_BYTES = 4 << 20
_SCRATCH_BYTES = 1 << 20


class Span(NamedTuple):
    """Consecutive rows of one layer, at consecutive positions."""

    layer: int
    start: int
    stop: int
    first_position: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Which rows a block holds, in which order: layer after layer, range after range.

    Attributes
    ----------
    name
        Of the table, for messages.
    ranges
        The rows of each layer, ascending and apart.
    n_columns
        Of the batches whose positions are asked for.
    codec
        None where records are only copied.
    """

    name: str
    layer_ids: tuple[int, ...]
    ranges: tuple[Ranges, ...]
    n_columns: int
    row_bytes: int
    codec: Codec | None

    @classmethod
    def of_stored(cls, stored: RowFiles) -> Layout:
        """All rows of a table that are here."""
        return cls(
            name=str(stored.path),
            layer_ids=stored.layer_ids,
            ranges=tuple(stored.owned(layer_id) for layer_id in stored.layer_ids),
            n_columns=stored.spec.n_columns,
            row_bytes=stored.row_bytes,
            codec=stored.codec,
        )

    @classmethod
    def of_spec(cls, spec: AddressSpec, codec: Codec) -> Layout:
        """All rows of a spec, whose table need not exist."""
        if spec.row_width is None:
            raise InvalidInput(f"{spec.name}: found no row width, expected one; give a spec that says it")
        return cls(
            name=spec.name,
            layer_ids=spec.layer_ids,
            ranges=tuple(((0, layer.n_rows),) for layer in spec.layers),
            n_columns=spec.n_columns,
            row_bytes=codec.row_bytes(spec.row_width),
            codec=codec,
        )

    def of_columns(self, spec: AddressSpec, columns: Sequence[int]) -> Layout:
        """Those of these rows that some columns of every layer own, for batches of these columns alone."""
        kept = []
        for layer, ranges in zip(spec.layers, self.ranges, strict=True):
            moduli = [modulus for heads in layer.moduli for modulus in heads]
            owned = [(layer.offsets[column], layer.offsets[column] + moduli[column]) for column in columns]
            kept.append(_common(_merged(owned), ranges))
        return replace(self, ranges=tuple(kept), n_columns=len(columns))

    @property
    def stride_bytes(self) -> int:
        """Bytes from one record to the next."""
        return -(-self.row_bytes // STRIDE_UNIT_BYTES) * STRIDE_UNIT_BYTES

    @cached_property
    def n_rows(self) -> int:
        """Rows of all layers."""
        return sum(stop - start for ranges in self.ranges for start, stop in ranges)

    @property
    def n_bytes(self) -> int:
        """Of the whole block."""
        return self.n_rows * self.stride_bytes

    @cached_property
    def spans(self) -> tuple[Span, ...]:
        """Every range with its first position, in the order of positions."""
        spans, position = [], 0
        for layer, ranges in enumerate(self.ranges):
            for start, stop in ranges:
                spans.append(Span(layer, start, stop, position))
                position += stop - start
        return tuple(spans)

    def position_of(self, layer: int, row: int) -> int:
        """Of one row that the block holds."""
        return next(
            span.first_position + row - span.start
            for span in self.spans
            if span.layer == layer and span.start <= row < span.stop
        )

    def check_shape(self, rows: NDArray[np.int64]) -> None:
        """Raise `SpecMismatch` unless `rows` is int64 (tokens, layers, columns) with this block's numbers."""
        expected = len(self.layer_ids), self.n_columns
        if rows.ndim != 3 or rows.dtype != np.int64 or rows.shape[1:] != expected:
            raise SpecMismatch(
                f"addresses: found {rows.dtype} {rows.shape}, expected int64 (tokens, {expected[0]} layers, "
                f"{expected[1]} columns) as {self.name} has; compute them with this table's spec"
            )

    def check(self, rows: NDArray[np.int64]) -> None:
        """Raise what `positions` raises."""
        self.positions(rows, np.empty((rows.shape[1], rows.shape[0], rows.shape[2]), np.int64))

    def positions(self, rows: NDArray[np.int64], out: NDArray[np.int64]) -> None:
        """Positions of a batch's rows, checked by `check_shape`, into `out`, int64 (layers, tokens, columns).

        Raises
        ------
        InvalidInput
            A row that is not in the block; the first one is named.
        """
        bad = place_rows(np.ascontiguousarray(rows), self._arrays, out)
        if bad >= 0:
            token, layer, column = (int(k) for k in np.unravel_index(bad, rows.shape))
            ranges = self.ranges[layer]
            here = ", ".join(f"{start} to {stop - 1}" for start, stop in ranges[:4]) or "none"
            raise InvalidInput(
                f"rows: found row {rows[token, layer, column]} at position {(token, layer, column)}, expected one of "
                f"layer {self.layer_ids[layer]} in {self.name} ({here}{', …' if len(ranges) > 4 else ''}); were the "
                "rows computed with another spec?"
            )

    @cached_property
    def _arrays(self) -> RangeArrays:
        counts = [len(ranges) for ranges in self.ranges]
        firsts = np.cumsum([0, *counts])[:-1]
        spans = np.array(self.spans, np.int64).reshape(-1, 4)
        layers = np.stack([firsts, np.array(counts)], axis=1).astype(np.int64)
        return RangeArrays(layers, *(np.ascontiguousarray(spans[:, k]) for k in (1, 2, 3)))


class HostRecords:
    """A layout's records in host memory, zeros until somebody fills them.

    Attributes
    ----------
    layout
        What lies where.
    memory
        The memory below, to be registered.
    array
        uint8 (n_rows, stride_bytes); a record's bytes come first, the rest is never read.

    Raises
    ------
    CapacityError
        The system has less memory left.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.memory = HostMemory(layout.n_bytes)
        self.array = self.memory.bytes.reshape(layout.n_rows, layout.stride_bytes)

    @classmethod
    def of_stored(cls, stored: RowFiles, layout: Layout | None = None, threads: int | None = None) -> HostRecords:
        """The rows of a table, or those of `layout`, read once, in parallel."""
        records = cls(layout or Layout.of_stored(stored))
        fill(stored, records.layout, records.array, records.layout.spans, threads=threads)
        return records


def fill(
    stored: RowFiles,
    layout: Layout,
    out: NDArray[np.uint8],
    spans: Sequence[Span],
    *,
    first_position: int = 0,
    threads: int | None = None,
) -> None:
    """Read `spans` of a table into `out`, uint8 (n, stride_bytes), whose first record has position `first_position`.

    Pieces of 4 MiB are taken by all threads; every byte of the files is read once, in order.

    Raises
    ------
    IncompleteTable
        A file ends before its rows do.
    """
    pieces = tuple(cut(spans, max(_PIECE_BYTES // layout.stride_bytes, 1)))

    def read(piece: Span) -> None:
        begin = piece.first_position - first_position
        target = out[begin : begin + piece.stop - piece.start]
        for extent in stored.extents:
            if extent.layer_id == layout.layer_ids[piece.layer]:
                _read_extent(stored, extent, piece, target)

    run_all(read, pieces, threads=min(resolve_threads(threads), max(len(pieces), 1)))


def cut(spans: Sequence[Span], piece_rows: int) -> Iterator[Span]:
    """The spans in pieces of at most `piece_rows` rows."""
    for span in spans:
        for start in range(span.start, span.stop, piece_rows):
            stop = min(start + piece_rows, span.stop)
            yield Span(span.layer, start, stop, span.first_position + start - span.start)


def _read_extent(stored: RowFiles, extent: Extent, piece: Span, target: NDArray[np.uint8]) -> None:
    """Those rows of the piece that the extent has a part of, scratch by scratch, into their columns of `target`."""
    part, file = stored.parts[extent.part_idx], stored.files[extent.file_idx]
    row, stop = max(piece.start, extent.first_row), min(piece.stop, extent.first_row + extent.n_rows)
    if row >= stop:
        return
    scratch = np.empty(max(_SCRATCH_BYTES // part.cell_bytes, 1) * part.cell_bytes, np.uint8)
    columns = slice(part.start, part.start + part.n_bytes)
    while row < stop:
        in_cell = (row - extent.first_row) % part.cell_rows
        n_rows = min(len(scratch) // part.cell_bytes * part.cell_rows - in_cell, stop - row)
        begin = part.offset(row - extent.first_row)
        n_bytes = part.offset(row - extent.first_row + n_rows - 1) + part.n_bytes - begin
        file.read_into(extent.offset + begin, scratch[:n_bytes])
        _place(scratch, part, in_cell, target[row - piece.start : row - piece.start + n_rows, columns])
        row += n_rows


def _place(scratch: NDArray[np.uint8], part: Part, in_cell: int, out: NDArray[np.uint8]) -> None:
    """Stretches that begin with the `in_cell`-th of a cell, into the rows of `out`."""
    done, begin = 0, 0
    if in_cell:
        done = min(part.cell_rows - in_cell, len(out))
        out[:done] = scratch[: done * part.n_bytes].reshape(done, part.n_bytes)
        begin = part.cell_bytes - in_cell * part.n_bytes
    for nth in range(min(part.cell_rows, len(out) - done)):
        # The nth stretch of every cell; of the last one there may be none, and its spare bytes are never looked at.
        target = out[done + nth :: part.cell_rows]
        first = scratch[begin + nth * part.n_bytes :]
        target[:] = np.lib.stride_tricks.as_strided(first, target.shape, (part.cell_bytes, 1), writeable=False)


def _merged(ranges: Sequence[tuple[int, int]]) -> Ranges:
    merged: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(stop, merged[-1][1])
        else:
            merged.append((start, stop))
    return tuple(merged)


def _common(one: Ranges, other: Ranges) -> Ranges:
    """Rows in both."""
    both = ((max(start, first), min(stop, last)) for start, stop in one for first, last in other)
    return tuple((start, stop) for start, stop in both if start < stop)
