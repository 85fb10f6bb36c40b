"""Counts on disk, opened: look-ups and streams over a directory of sorted Parquet files.

Owns the reading. Knows no text and no tokenizer; a vocabulary is a digest and a size here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.counts_layout import column_names, footer_sha256, table_schema
from engram_tables.corpus.counts.counts_manifest import (
    ANY_VERSION,
    MANIFEST_NAME,
    CorpusFigures,
    CountsSubject,
    read_manifest,
    schema_of,
)
from engram_tables.corpus.counts.ngram_counts import NO_NEXT, NgramCounts
from engram_tables.corpus.counts.sorted_rows import first_above, first_not_below
from engram_tables.corpus.outputs import refuse_foreign_output
from engram_tables.errors import InvalidInput, SpecMismatch

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_OPEN_FILES = 64

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


def refuse_output(directory: Path, *, force: bool) -> None:
    """Raise `InvalidInput` if counts could not be written as `directory`.

    `force` removes what is there, so that must be a directory which is empty or holds counts of any version.
    """
    refuse_foreign_output(
        directory,
        force=force,
        what="counts directory",
        suggestion="counts",
        is_ours=lambda found: schema_of(found / MANIFEST_NAME).startswith(ANY_VERSION),
        names=r"counts\.json|order-\d",
    )


def open_counts(directory: str | Path) -> Counts:
    """Open a counts directory: its manifest and the length of every file are checked, no n-gram is read.

    Raises
    ------
    InvalidInput
        Not a counts directory, an unknown version, or a file that is missing or has another length.
    """
    return Counts(Path(directory))


class Counts:
    """An open counts directory; see `open_counts`.

    Attributes
    ----------
    row_groups_read
        Row groups that lookups have read so far.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = read_manifest(path)
        self.row_groups_read = 0
        self.orders: tuple[int, ...] = tuple(sorted(int(order) for order in self.manifest["orders"]))
        self._part_starts = np.array(self.manifest["part_starts"], dtype=np.int64)
        self._entries = {(entry["order"], entry["part"]): entry for entry in self.manifest["files"]}
        self._parts: dict[tuple[int, int], _PartFile] = {}
        for entry in self.manifest["files"]:
            _check_file(path / entry["name"], entry)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for part in self._parts.values():
            part.close()
        self._parts.clear()

    @property
    def subject(self) -> CountsSubject:
        """What was counted, and how."""
        vocabulary = self.manifest["vocabulary"]
        return CountsSubject(
            vocab_sha256=vocabulary["map_sha256"],
            canonical_size=vocabulary["canonical_size"],
            tokenizer_sha256=vocabulary["tokenizer_sha256"],
            next_size=self.manifest["next_size"],
            pad_id=self.manifest["pad_id"],
            min_count=self.manifest["min_count"],
        )

    @property
    def figures(self) -> CorpusFigures:
        """How much was counted."""
        return CorpusFigures(**self.manifest["corpus"])

    @property
    def vocab_sha256(self) -> str:
        """Digest of the vocabulary's map, whose canonical ids these are."""
        return str(self.manifest["vocabulary"]["map_sha256"])

    @property
    def canonical_size(self) -> int:
        """Bound of the canonical ids."""
        return int(self.manifest["vocabulary"]["canonical_size"])

    @property
    def next(self) -> str | None:
        """ "raw" if rows are told apart by the raw token that follows."""
        return "raw" if self.manifest["next"] else None

    @property
    def min_count(self) -> int:
        """N-grams that occur less often were left out, but for order 1."""
        return int(self.manifest["min_count"])

    @property
    def total_tokens(self) -> int:
        """Tokens of the counted corpus, dead ones left out."""
        return self.figures.n_tokens - self.figures.n_dead

    def n_rows(self, order: int) -> int:
        """Rows of an order: distinct n-grams, or pairs of n-gram and following token."""
        return self._figure(order, "n_rows")

    def n_distinct(self, order: int) -> int:
        """Distinct n-grams of an order."""
        return self._figure(order, "n_distinct")

    def n_total(self, order: int) -> int:
        """N-grams of an order, each occurrence counted."""
        return self._figure(order, "n_total")

    def check_vocabulary(self, map_sha256: str) -> None:
        """Raise `SpecMismatch` unless these counts were made with the vocabulary of this digest."""
        if map_sha256 != self.vocab_sha256:
            raise SpecMismatch(
                f"{self.path}: counted with the vocabulary {self.vocab_sha256}, the one in use is {map_sha256}; "
                "ids of one mean nothing in the other: count again with this vocabulary, or use the first one"
            )

    def batches(self, order: int) -> Iterator[NgramCounts]:
        """Every row of an order, ascending, a row group at a time; a followed n-gram may go on in the next one."""
        self._check_order(order)
        for part in range(len(self._part_starts)):
            file = self._part(order, part)
            for group in range(file.n_groups):
                yield file.read(group)

    def counts_of(self, order: int) -> Iterator[U64]:
        """uint64 (n_rows,) for each row group: how often its rows occur; no other column is read."""
        self._check_order(order)
        for part in range(len(self._part_starts)):
            file = self._part(order, part)
            for group in range(file.n_groups):
                yield file.read_counts(group)

    def load(self, order: int) -> NgramCounts:
        """All rows of an order, in memory: (4 x order + 8) bytes each, 8 more with a following token."""
        n_rows, row = self.n_rows(order), 0
        columns = np.empty((order, n_rows), dtype=np.uint32)
        counts = np.empty(n_rows, dtype=np.uint64)
        following = np.empty(n_rows, dtype=np.int64) if self.next else None
        for batch in self.batches(order):
            place = slice(row, row + len(batch.counts))
            columns[:, place], counts[place] = batch.columns, batch.counts
            if following is not None and batch.next_tokens is not None:
                following[place] = batch.next_tokens
            row = place.stop
        return NgramCounts(order=order, columns=columns, counts=counts, next_tokens=following)

    def lookup(self, ngrams: npt.ArrayLike) -> U64:
        """How often each n-gram occurs, whatever follows it.

        Parameters
        ----------
        ngrams
            uint32 (n, order): canonical ids, oldest token first.

        Returns
        -------
        uint64 (n,); 0 for an n-gram that the corpus does not hold. Reads only the row groups that may hold one.
        """
        wanted = np.ascontiguousarray(ngrams, dtype=np.uint32)
        if wanted.ndim != 2:
            raise InvalidInput(f"n-grams: found shape {wanted.shape}, expected (n, order)")
        result = np.zeros(len(wanted), dtype=np.uint64)
        for file, mine in self._files_of(wanted):
            for group in file.groups_of(wanted[mine]):
                rows = self._read(file, group)
                first, stop = first_not_below(rows.columns, wanted[mine]), first_above(rows.columns, wanted[mine])
                before = np.concatenate([[np.uint64(0)], np.cumsum(rows.counts)])
                result[mine] += before[stop] - before[first]
        return result

    def following(self, ngram: npt.ArrayLike) -> tuple[I64, U64]:
        """The raw tokens that follow an n-gram, ascending, NO_NEXT (-1) last for the document's end; their counts.

        Parameters
        ----------
        ngram
            uint32 (order,): canonical ids, oldest token first.

        Raises
        ------
        InvalidInput
            These counts do not tell followers apart.
        """
        if not self.next:
            raise InvalidInput(
                f"{self.path}: its n-grams are counted without the token that follows; count again with --next raw"
            )
        wanted = np.ascontiguousarray(ngram, dtype=np.uint32)[None, :]
        tokens, counts = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.uint64)]
        for file, _ in self._files_of(wanted):
            for group in file.groups_of(wanted):
                rows = self._read(file, group)
                equal = (rows.columns == wanted.T).all(axis=0)
                assert rows.next_tokens is not None
                tokens.append(rows.next_tokens[equal])
                counts.append(rows.counts[equal])
        return np.concatenate(tokens), np.concatenate(counts)

    def verify(self) -> None:
        """Read every byte of every file and compare it with the manifest's digests; InvalidInput names the file."""
        for entry in self.manifest["files"]:
            path = self.path / entry["name"]
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise _damaged(path, f"SHA-256 is {found}, expected {entry['sha256']}")

    def _figure(self, order: int, name: str) -> int:
        self._check_order(order)
        return int(self.manifest["orders"][str(order)][name])

    def _check_order(self, order: int) -> None:
        if order not in self.orders:
            raise InvalidInput(
                f"{self.path}: holds orders {', '.join(map(str, self.orders))}, expected {order}; "
                f"count again with --orders {','.join(map(str, sorted({*self.orders, order})))}"
            )

    def _files_of(self, ngrams: U32) -> Iterator[tuple[_PartFile, I64]]:
        """Each part that some of the n-grams lie in, with their positions."""
        order = ngrams.shape[1]
        self._check_order(order)
        parts = np.searchsorted(self._part_starts, ngrams[:, 0], side="right") - 1
        for part in np.unique(parts).tolist():
            yield self._part(order, part), np.flatnonzero(parts == part)

    def _part(self, order: int, part: int) -> _PartFile:
        key = (order, part)
        if key not in self._parts:
            if len(self._parts) >= _OPEN_FILES:
                self._parts.pop(next(iter(self._parts))).close()
            entry = self._entries[key]
            self._parts[key] = _PartFile(self.path / entry["name"], entry, has_next=self.next is not None)
        return self._parts[key]

    def _read(self, file: _PartFile, group: int) -> NgramCounts:
        self.row_groups_read += 1
        return file.read(group)


class _PartFile:
    """One open Parquet file."""

    def __init__(self, path: Path, entry: Mapping[str, Any], *, has_next: bool) -> None:
        self._path = path
        self._order: int = entry["order"]
        self._has_next = has_next
        self._file = _open_part(path, entry, has_next=has_next)
        self.n_groups: int = self._file.metadata.num_row_groups

    def close(self) -> None:
        self._file.close()

    def read(self, group: int) -> NgramCounts:
        import pyarrow as pa

        table = self._table(group)
        columns = np.empty((self._order, table.num_rows), dtype=np.uint32)
        for place, name in enumerate(column_names(self._order)):
            columns[place] = table[name].to_numpy()
        following = None
        if self._has_next:
            following = table["next_token"].cast(pa.int64()).fill_null(NO_NEXT).to_numpy()
        return NgramCounts(order=self._order, columns=columns, counts=table["count"].to_numpy(), next_tokens=following)

    def read_counts(self, group: int) -> U64:
        counts: U64 = self._table(group, ["count"])["count"].to_numpy()
        return counts

    def _table(self, group: int, columns: list[str] | None = None) -> pa.Table:
        import pyarrow as pa

        try:
            return self._file.read_row_group(group, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self._path, f"row group {group} cannot be read ({_first_line(error)})") from None

    def groups_of(self, ngrams: U32) -> list[int]:
        """Row groups that may hold one of the n-grams, ascending."""
        if not self.n_groups:
            return []
        lowest, highest = self._bounds
        # Groups whose bounds enclose an n-gram: from the first that does not end below it to the last that does not
        # begin above it. Bounds are looser than the groups, so there may be several.
        return _groups_between(first_not_below(highest, ngrams), first_above(lowest, ngrams) - 1, self.n_groups)

    @cached_property
    def _bounds(self) -> tuple[U32, U32]:
        """uint32 (order, n_groups) twice: n-grams not above, and not below, any of each group, from its statistics."""
        lowest = np.zeros((self._order, self.n_groups), dtype=np.uint32)
        highest = np.full((self._order, self.n_groups), np.iinfo(np.uint32).max, dtype=np.uint32)
        for group in range(self.n_groups):
            for place in range(self._order):
                statistics = self._file.metadata.row_group(group).column(place).statistics
                if statistics is None or not statistics.has_min_max:
                    name = column_names(self._order)[place]
                    raise _damaged(self._path, f"row group {group} has no statistics for {name}")
                lowest[place, group], highest[place, group] = statistics.min, statistics.max
                if statistics.min != statistics.max:
                    # Later columns are sorted only within equal values of this one.
                    break
        return lowest, highest


def _groups_between(first: I64, last: I64, n_groups: int) -> list[int]:
    """Groups that lie in [first, last] of at least one n-gram, ascending."""
    some = first <= last
    steps = np.zeros(n_groups + 1, dtype=np.int64)
    np.add.at(steps, first[some], 1)
    np.add.at(steps, last[some] + 1, -1)
    groups: list[int] = np.flatnonzero(np.cumsum(steps)[:-1]).tolist()
    return groups


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise _damaged(path, "the file is missing")
    if path.stat().st_size != entry["file_bytes"]:
        raise _damaged(path, f"{path.stat().st_size:,} bytes, expected {entry['file_bytes']:,}")


def _open_part(path: Path, entry: Mapping[str, Any], *, has_next: bool) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found_sha256 = footer_sha256(path)
    if found_sha256 != entry["footer_sha256"]:
        raise _damaged(path, f"its footer has SHA-256 {found_sha256}, expected {entry['footer_sha256']}")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, f"not a whole Parquet file ({_first_line(error)})") from None
    wanted = table_schema(entry["order"], has_next=has_next)
    if file.metadata.num_rows != entry["n_rows"] or not file.schema_arrow.equals(wanted):
        found = f"{file.metadata.num_rows:,} rows of {', '.join(file.schema_arrow.names)}"
        file.close()
        raise _damaged(path, f"{found}; expected {entry['n_rows']:,} of {', '.join(wanted.names)}")
    return file


def _damaged(path: Path, found: str) -> InvalidInput:
    return InvalidInput(f"{path}: {found}; the counts are damaged: copy them again or count again")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
