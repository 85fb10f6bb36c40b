"""Counts on disk: a directory of sorted Parquet files and a manifest, `counts.json`.

Owns the directory's manifest and its reading. Knows no text and no tokenizer; a vocabulary is a digest and a size here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from engram_tables.corpus import kernels
from engram_tables.corpus.counts_writer import column_names, part_name, table_schema
from engram_tables.corpus.ngram_counts import NO_NEXT, NgramCounts
from engram_tables.corpus.outputs import refuse_foreign_output
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.units import canonical_json

if TYPE_CHECKING:
    import pyarrow.parquet as pq

SCHEMA = "engram.counts/2"
MANIFEST_NAME = "counts.json"
_ANY_VERSION = "engram.counts/"
_MAX_MANIFEST_BYTES = 1 << 28
_OPEN_FILES = 64

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountsSubject:
    """What was counted, and how: the same for every part of one count, and what two counts must share to be merged.

    Attributes
    ----------
    vocab_sha256, canonical_size, tokenizer_sha256
        The vocabulary: the digest of its map, the bound of its canonical ids, and its tokenizer's digest.
    next_size
        Bound of the raw token that follows, where it was counted; 0 otherwise.
    pad_id
        Canonical id that stands before a document, where the windows that reach there were counted.
    min_count
        N-grams that occur less often were left out; order 1 is whole always.
    """

    vocab_sha256: str
    canonical_size: int
    tokenizer_sha256: str | None = None
    next_size: int = 0
    pad_id: int | None = None
    min_count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusFigures:
    """How much was counted: sums over documents, so that any division of a corpus gives the same."""

    n_tokens: int = 0
    n_documents: int = 0
    n_dead: int = 0
    read_bytes: int = 0
    n_bad_lines: int = 0
    replaced_bytes: int = 0

    def __add__(self, other: CorpusFigures) -> CorpusFigures:
        mine, theirs = asdict(self), asdict(other)
        return CorpusFigures(**{name: mine[name] + theirs[name] for name in mine})


def build_manifest(
    subject: CountsSubject, figures: CorpusFigures, starts: I64, files: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest of finished files.

    Parameters
    ----------
    starts
        int64 (n_parts,): the first leading token of each part.
    files
        Entries as `RowWriter.close` gives them, with their `part`.
    """
    entries = sorted(files, key=lambda entry: (entry["order"], entry["part"]))
    orders: dict[str, dict[str, int]] = {}
    for entry in entries:
        totals = orders.setdefault(str(entry["order"]), dict.fromkeys(_SUMS, 0))
        for name in _SUMS:
            totals[name] += entry.get(name, 0)
    manifest = {
        "schema": SCHEMA,
        "vocabulary": {
            "map_sha256": subject.vocab_sha256,
            "canonical_size": subject.canonical_size,
            "tokenizer_sha256": subject.tokenizer_sha256,
        },
        "corpus": asdict(figures),
        "next": "raw" if subject.next_size else None,
        "next_size": subject.next_size,
        "pad_id": subject.pad_id,
        "min_count": subject.min_count,
        "part_starts": starts.tolist(),
        "orders": orders,
        "files": [
            {
                "name": part_name(entry["order"], entry["part"]),
                "order": entry["order"],
                "part": entry["part"],
                "n_rows": entry["n_rows"],
                "file_bytes": entry["file_bytes"],
                "sha256": entry["sha256"],
            }
            for entry in entries
        ],
    }
    return manifest | {"manifest_sha256": _manifest_digest(manifest)}


_SUMS = ("n_rows", "n_distinct", "n_total", "dropped_distinct", "dropped_total")


def manifest_bytes(manifest: Mapping[str, Any]) -> bytes:
    """The content of counts.json."""
    return json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n"


def refuse_output(directory: Path, *, force: bool) -> None:
    """Raise `InvalidInput` if counts could not be written as `directory`.

    `force` removes what is there, so that must be a directory which is empty or holds counts of any version.
    """
    refuse_foreign_output(
        directory,
        force=force,
        what="counts directory",
        suggestion="counts",
        is_ours=lambda found: _schema_of(found / MANIFEST_NAME).startswith(_ANY_VERSION),
    )


def _schema_of(path: Path) -> str:
    """The schema that a manifest states, or "" where nothing can be made out."""
    try:
        manifest = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_MANIFEST_BYTES else None
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return ""
    return str(manifest.get("schema")) if isinstance(manifest, dict) else ""


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
        self.manifest = _read_manifest(path)
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
                totals = result[mine]
                kernels.add_equal(rows.columns, rows.counts, np.ascontiguousarray(wanted[mine]), totals)
                result[mine] = totals
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

        try:
            table = self._file.read_row_group(group, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self._path, f"row group {group} cannot be read ({_first_line(error)})") from None
        columns = np.empty((self._order, table.num_rows), dtype=np.uint32)
        for place, name in enumerate(column_names(self._order)):
            columns[place] = table[name].to_numpy()
        following = None
        if self._has_next:
            following = table["next_token"].cast(pa.int64()).fill_null(NO_NEXT).to_numpy()
        return NgramCounts(order=self._order, columns=columns, counts=table["count"].to_numpy(), next_tokens=following)

    def groups_of(self, ngrams: U32) -> list[int]:
        """Row groups that may hold one of the n-grams, ascending."""
        if not self.n_groups:
            return []
        lowest, highest = self._bounds
        # Groups whose bounds enclose an n-gram: from the first that does not end below it to the last that does not
        # begin above it. Bounds are looser than the groups, so there may be several.
        first, last = np.empty((2, len(ngrams)), dtype=np.int64)
        wanted = np.ascontiguousarray(ngrams)
        kernels.lower_bounds(highest, wanted, first)
        kernels.lower_bounds(lowest, wanted, last)
        # Several groups may begin with the very n-gram.
        while (equal := self._begins(wanted, last)).any():
            last += equal
        return _groups_between(first, last - 1, self.n_groups)

    def _begins(self, ngrams: U32, groups: I64) -> npt.NDArray[np.bool_]:
        inside = groups < self.n_groups
        lowest = self._bounds[0][:, np.minimum(groups, self.n_groups - 1)]
        equal: npt.NDArray[np.bool_] = (ngrams == lowest.T).all(axis=1)
        return inside & equal

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


def _manifest_digest(manifest: dict[str, Any]) -> str:
    body = {key: value for key, value in manifest.items() if key != "manifest_sha256"}
    return hashlib.sha256(canonical_json(body)).hexdigest()


def _read_manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST_NAME
    if not path.is_file():
        raise InvalidInput(
            f"{directory}: no {MANIFEST_NAME} there, so this is no counts directory; make one with `engram count`"
        )
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise InvalidInput(f"{path}: {path.stat().st_size:,} bytes, expected a manifest of a few thousand")
    try:
        manifest: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidInput(
            f"{path}: not JSON ({error}), expected the manifest of `engram count`; count again"
        ) from None
    schema = manifest.get("schema") if isinstance(manifest, dict) else None
    if not isinstance(manifest, dict) or schema != SCHEMA:
        raise InvalidInput(f"{path}: found schema {schema!r}, expected {SCHEMA!r}; count again with this version")
    try:
        digest = _manifest_digest(manifest)
    except (TypeError, RecursionError):
        digest = "undefined"
    if manifest.get("manifest_sha256") != digest:
        raise InvalidInput(
            f"{path}: its content has SHA-256 {digest}, it says {manifest.get('manifest_sha256')!r}; "
            "it was changed or damaged: copy it again or count again"
        )
    return manifest


def _check_file(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise _damaged(path, "the file is missing")
    if path.stat().st_size != entry["file_bytes"]:
        raise _damaged(path, f"{path.stat().st_size:,} bytes, expected {entry['file_bytes']:,}")


def _open_part(path: Path, entry: Mapping[str, Any], *, has_next: bool) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
