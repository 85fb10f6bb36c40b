"""Counts to Parquet: parts, each a range of leading tokens, with one file an order.

Owns where files are cut and how they are encoded. Knows no run and no text.

Where parts are cut follows from how often each token leads, and from nothing else: any division of the work, any
merging of partial counts, gives the same files.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.counts_layout import footer_sha256, table_schema
from engram_tables.corpus.counts.ngram_counts import NO_NEXT, NgramCounts
from engram_tables.corpus.counts.unpacking import RowSink, named_columns

PART_TOKENS = 1 << 22
"""Occurrences of leading tokens that a part holds, unless one token alone has more."""
ROW_GROUP_ROWS = 1 << 17
"""Rows that a lookup reads for one n-gram."""

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def part_starts(occurrences: I64) -> I64:
    """int64 (n_parts,): the first leading token of each part; the first is 0.

    Parameters
    ----------
    occurrences
        int64 (canonical_size,): how often each id occurs, whatever orders are counted.
    """
    # Ids that do not occur have no say: a multiple may be passed just before one.
    tokens = np.flatnonzero(occurrences)
    before = np.cumsum(occurrences[tokens]) - occurrences[tokens]
    passed = before // PART_TOKENS
    begins = tokens[1:][passed[1:] != passed[:-1]]
    return np.concatenate([[0], begins]).astype(np.int64)


class OrderFile:
    """One order of one part, while it is written: rows are taken by `sink` and leave it a row group at a time."""

    def __init__(self, path: Path, order: int, *, next_size: int, least_total: int, room: int) -> None:
        """
        Parameters
        ----------
        least_total
            N-grams whose rows add up to less are left out, row by row.
        room
            The most rows that are added between two calls of `flush`.
        """
        self._order = order
        self._next_size = next_size
        self._sieve = _Sieve(least_total) if least_total > 1 else None
        n_columns = order + bool(next_size)
        # Rows that wait are of one n-gram, each with another follower.
        n_rows = ROW_GROUP_ROWS + room + min(least_total, next_size + 1)
        self.sink = RowSink(np.empty((n_columns, n_rows), dtype=np.uint32), np.empty(n_rows, np.uint64))
        self.writer = RowWriter(path, order, has_next=bool(next_size))

    def flush(self, *, is_last: bool = False) -> None:
        """Write the row groups that are full, and with `is_last` what is left."""
        sink = self.sink
        n_ready = sink.row if self._sieve is None else self._sieve.settle(sink, self._order, is_last=is_last)
        start = 0
        while n_ready - start >= ROW_GROUP_ROWS or (is_last and n_ready > start):
            stop = min(n_ready, start + ROW_GROUP_ROWS)
            rows = named_columns(self._order, sink.columns[:, start:stop], sink.totals[start:stop], self._next_size)
            self.writer.write(rows)
            start = stop
        if start:
            left = sink.row - start
            sink.columns[:, :left] = sink.columns[:, start : sink.row].copy()
            sink.totals[:left] = sink.totals[start : sink.row].copy()
            sink.row = left
            if self._sieve is not None:
                self._sieve.n_settled -= start

    def close(self) -> dict[str, Any]:
        """Write what is left; the file's entry in the manifest, with what was too rare to be written."""
        self.flush(is_last=True)
        return self.writer.close() | {
            "dropped_distinct": int(self.sink.dropped[0]),
            "dropped_total": int(self.sink.dropped[1]),
        }


class _Sieve:
    """Leaves out the rows of n-grams that are too rare in all; rows wait until their n-gram is known not to be."""

    def __init__(self, least_total: int) -> None:
        self._least = np.uint64(least_total)
        self.n_settled = 0
        """Rows of the sink that stay."""
        self._last: U32 | None = None
        """The n-gram of the last row that stays, which may go on."""

    def settle(self, sink: RowSink, order: int, *, is_last: bool) -> int:
        """Decide on the sink's rows; how many of them can be written. At most `least_total` - 1 are left to wait."""
        start, stop = self.n_settled, sink.row
        if start == stop:
            return start
        ngrams = sink.columns[:order, start:stop]
        begins = np.ones(stop - start, dtype=bool)
        begins[1:] = (ngrams[:, 1:] != ngrams[:, :-1]).any(axis=0)
        firsts = np.flatnonzero(begins)
        totals = np.add.reduceat(sink.totals[start:stop], firsts)
        stays = totals >= self._least
        # What has been let through is frequent enough, whatever is still to come of it.
        stays[0] |= self._last is not None and bool((self._last == ngrams[:, 0]).all())
        waits = not is_last and not stays[-1]
        if not waits:
            self._last = ngrams[:, -1].copy()
        decided = np.append(firsts, stop - start)
        gone = ~stays
        gone[-1] &= not waits
        sink.dropped += (int(gone.sum()), int(totals[gone].sum()))
        kept = start + np.flatnonzero(np.repeat(~gone, np.diff(decided)))
        sink.columns[:, start : start + len(kept)] = sink.columns[:, kept]
        sink.totals[start : start + len(kept)] = sink.totals[kept]
        sink.row = start + len(kept)
        n_waiting = int(decided[-1] - decided[-2]) if waits else 0
        self.n_settled = sink.row - n_waiting
        return self.n_settled


class RowWriter:
    """A Parquet file of one order that is written row group by row group, and flushed when it is closed."""

    def __init__(self, path: Path, order: int, *, has_next: bool) -> None:
        import pyarrow.parquet as pq

        self._path = path
        self._order = order
        self._has_next = has_next
        self._schema = table_schema(order, has_next=has_next)
        self._n_rows = self._n_distinct = self._n_total = 0
        self._last: U32 | None = None
        # Sorted columns leave nothing to a dictionary or a compressor; checksums let a reader refuse a flipped bit.
        self._writer = pq.ParquetWriter(
            path, self._schema, compression="none", use_dictionary=False, write_statistics=True,
            write_page_checksum=True, column_encoding=dict.fromkeys(self._schema.names, "DELTA_BINARY_PACKED"),
        )  # fmt: skip

    def write(self, rows: NgramCounts) -> None:
        """Write a row group."""
        import pyarrow as pa

        arrays = [pa.array(column) for column in rows.columns]
        if rows.next_tokens is not None:
            ends = rows.next_tokens == NO_NEXT
            arrays.append(pa.array(np.where(ends, 0, rows.next_tokens).astype(np.uint32), mask=ends))
        table = pa.Table.from_arrays([*arrays, pa.array(rows.counts)], schema=self._schema)
        self._writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        self._n_rows += len(rows.counts)
        self._n_total += int(rows.counts.sum())
        self._n_distinct += self._distinct(rows) if self._has_next else len(rows.counts)

    def _distinct(self, rows: NgramCounts) -> int:
        """N-grams that begin in these rows, of which each may have several."""
        begins = (rows.columns[:, 1:] != rows.columns[:, :-1]).any(axis=0)
        first = self._last is None or (self._last != rows.columns[:, 0]).any()
        self._last = rows.columns[:, -1].copy()
        return int(begins.sum()) + int(first)

    def close(self) -> dict[str, Any]:
        """End the file; its entry in the manifest."""
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {
            "order": self._order,
            "file_bytes": self._path.stat().st_size,
            "sha256": digest,
            "footer_sha256": footer_sha256(self._path),
            "n_rows": self._n_rows,
            "n_distinct": self._n_distinct,
            "n_total": self._n_total,
        }

    def abandon(self) -> None:
        """Close an unfinished file, which its owner removes."""
        try:
            self._writer.close()
        except OSError:
            # The disk that is full is why it is abandoned.
            return


@contextmanager
def order_files(
    directory: Path, orders: Sequence[int], *, next_size: int, least_total: int, room: int
) -> Iterator[Mapping[int, OrderFile]]:
    """Files order-N.parquet in `directory`, abandoned if the block ends with an exception."""
    files: dict[int, OrderFile] = {}
    try:
        for order in orders:
            files[order] = OrderFile(
                directory / f"order-{order}.parquet", order, next_size=next_size, least_total=least_total, room=room
            )
        yield files
    except BaseException:
        for file in files.values():
            file.writer.abandon()
        raise
