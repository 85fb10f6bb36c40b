"""Counts on disk: a directory of sorted Parquet files and a manifest, `counts.json`.

Owns the directory's layout. Knows no text and no tokenizer; a vocabulary is a digest and a size here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from engram_tables.corpus import kernels
from engram_tables.corpus.counting import NgramCounts
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.files import fsync_directory, new_directory, refuse_existing
from engram_tables.units import ProgressHook, canonical_json

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

SCHEMA = "engram.counts/1"
MANIFEST_NAME = "counts.json"
ROW_GROUP_ROWS = 1 << 17
"""Rows that a lookup reads for one n-gram."""
PART_ROWS = 1 << 24
"""Rows of one Parquet file: parts are written side by side, and a bound here keeps the bytes free of `threads`."""
_ANY_VERSION = "engram.counts/"
_MAX_MANIFEST_BYTES = 1 << 26

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountsProvenance:
    """What was counted: sizes and digests, no path and no date, so that equal input gives equal bytes.

    `vocab_sha256` is the digest of the vocabulary's map, `corpus_sha256` that of the documents' bytes (None where
    unknown).
    """

    vocab_sha256: str
    canonical_size: int
    tokenizer_sha256: str | None = None
    n_tokens: int
    n_documents: int
    corpus_bytes: int | None = None
    corpus_sha256: str | None = None
    replaced_files: int = 0
    replaced_bytes: int = 0


def column_names(order: int) -> list[str]:
    """The token columns of an order, oldest first.

    >>> column_names(3)
    ['back_2', 'back_1', 'back_0']
    """
    return [f"back_{back}" for back in reversed(range(order))]


def write_counts(
    directory: Path,
    counts: Mapping[int, NgramCounts],
    *,
    provenance: CountsProvenance,
    threads: int = 1,
    progress: ProgressHook | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write a counts directory, whole or not at all; returns its manifest.

    Parameters
    ----------
    directory
        Must not exist unless `force`, which replaces counts or an empty directory in one step.
    threads
        Files written side by side; never changes a byte.
    progress
        Called with distinct n-grams written.

    Raises
    ------
    InvalidInput
        `directory` is taken, or with `force` by something that is no counts directory.
    OSError
        Of the filesystem; nothing is left behind.
    """
    try:
        refuse_output(directory, force=force)
        with new_directory(directory, force=force) as target:
            jobs = _part_jobs(target, counts)
            files = _write_parts(jobs, threads=threads, progress=progress)
            for order in counts:
                fsync_directory(target / f"order-{order}")
            manifest = _manifest(counts, provenance, files)
            _write_flushed(target / MANIFEST_NAME, json.dumps(manifest, indent=2, sort_keys=True).encode() + b"\n")
    except OSError as error:
        error.add_note(f"while writing the counts {directory}")
        raise
    return manifest


def refuse_output(directory: Path, *, force: bool) -> None:
    """Raise `InvalidInput` if counts could not be written as `directory`.

    `force` removes what is there, so that must be a directory which is empty or holds counts of any version.
    """
    here = Path.cwd()
    if directory.name in ("", "..") or Path(os.path.realpath(directory)) in (here, *here.parents):
        raise InvalidInput(
            f"{directory}: found the current directory or one that holds it, expected a name for a directory of "
            "its own; choose one, for instance counts"
        )
    refuse_existing(directory, force=force)
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise InvalidInput(
            f"{directory}: found no directory of its own but a link or a file, expected counts to replace; "
            "remove it yourself or choose another name"
        )
    if not directory.is_dir() or not any(directory.iterdir()):
        return
    schema = _schema_of(directory / MANIFEST_NAME)
    if not schema.startswith(_ANY_VERSION):
        raise InvalidInput(
            f"{directory}: found something that is no counts directory (no {MANIFEST_NAME} of `engram count` in it), "
            "expected one to replace; remove it yourself or choose another name"
        )


def _schema_of(path: Path) -> str:
    """The schema that a manifest states, or "" where nothing can be made out."""
    try:
        manifest = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_MANIFEST_BYTES else None
    except (FileNotFoundError, IsADirectoryError, ValueError, RecursionError):
        return ""
    return str(manifest.get("schema")) if isinstance(manifest, dict) else ""


def open_counts(directory: str | Path) -> Counts:
    """Open a counts directory: its manifest and the footer of every file are checked, no n-gram is read.

    Raises
    ------
    InvalidInput
        Not a counts directory, an unknown version, or a file that is missing, cut or damaged at its end.
    """
    return Counts(Path(directory))


class Counts:
    """An open counts directory; see `open_counts`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest = _read_manifest(path)
        self.orders: tuple[int, ...] = tuple(sorted(int(order) for order in self.manifest["orders"]))
        self._orders = {order: _Order.open(path, order, self.manifest) for order in self.orders}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        for order in self._orders.values():
            order.close()

    @property
    def vocab_sha256(self) -> str:
        """Digest of the vocabulary's map, whose canonical ids these are."""
        return str(self.manifest["vocabulary"]["map_sha256"])

    @property
    def canonical_size(self) -> int:
        """Bound of the canonical ids."""
        return int(self.manifest["vocabulary"]["canonical_size"])

    @property
    def total_tokens(self) -> int:
        """Tokens of the counted corpus."""
        return int(self.manifest["corpus"]["n_tokens"])

    def n_distinct(self, order: int) -> int:
        """Distinct n-grams of an order."""
        return self._order(order).n_distinct

    def n_total(self, order: int) -> int:
        """N-grams of an order, each occurrence counted."""
        return self._order(order).n_total

    def check_vocabulary(self, map_sha256: str) -> None:
        """Raise `SpecMismatch` unless these counts were made with the vocabulary of this digest."""
        if map_sha256 != self.vocab_sha256:
            raise SpecMismatch(
                f"{self.path}: counted with the vocabulary {self.vocab_sha256}, the one in use is {map_sha256}; "
                "ids of one mean nothing in the other: count again with this vocabulary, or use the first one"
            )

    def load(self, order: int) -> NgramCounts:
        """All n-grams of an order, in memory: (4 x order + 8) bytes each."""
        return self._order(order).load()

    def lookup(self, ngrams: npt.ArrayLike) -> U64:
        """How often each n-gram occurs.

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
        return self._order(wanted.shape[1]).lookup(wanted)

    def verify(self) -> None:
        """Read every byte of every file and compare it with the manifest's digests; InvalidInput names the file."""
        for entry in self.manifest["files"]:
            path = self.path / entry["name"]
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != entry["sha256"]:
                raise _damaged(path, f"SHA-256 is {found}, expected {entry['sha256']}")

    def _order(self, order: int) -> _Order:
        if order not in self._orders:
            raise InvalidInput(
                f"{self.path}: holds orders {', '.join(map(str, self.orders))}, expected {order}; "
                f"count again with --orders {','.join(map(str, sorted({*self.orders, order})))}"
            )
        return self._orders[order]


class _Order:
    """The files of one order."""

    def __init__(self, order: int, files: list[tuple[Path, pq.ParquetFile]], n_distinct: int, n_total: int) -> None:
        self.order = order
        self.n_distinct = n_distinct
        self.n_total = n_total
        self._files = files

    @classmethod
    def open(cls, directory: Path, order: int, manifest: dict[str, Any]) -> Self:
        told = manifest["orders"][str(order)]
        entries = [entry for entry in manifest["files"] if entry["order"] == order]
        files = [_open_part(directory / entry["name"], entry, order) for entry in entries]
        return cls(order, files, told["n_distinct"], told["n_total"])

    def close(self) -> None:
        for _, file in self._files:
            file.close()

    def load(self) -> NgramCounts:
        columns = np.empty((self.order, self.n_distinct), dtype=np.uint32)
        counts = np.empty(self.n_distinct, dtype=np.uint64)
        row = 0
        for which, group in self._groups:
            ngrams, found = self._read(which, group)
            columns[:, row : row + len(found)] = ngrams
            counts[row : row + len(found)] = found
            row += len(found)
        return NgramCounts(order=self.order, columns=columns, counts=counts)

    def lookup(self, ngrams: U32) -> U64:
        result = np.zeros(len(ngrams), dtype=np.uint64)
        if not len(self._groups) or not len(ngrams):
            return result
        lowest, highest = self._bounds
        # Groups whose bounds enclose an n-gram: from the first that does not end below it to the last that does not
        # begin above it. Bounds are looser than the groups, so there may be several.
        first, last = np.empty((2, len(ngrams)), dtype=np.int64)
        kernels.lower_bounds(highest, ngrams, first)
        kernels.lower_bounds(lowest, ngrams, last)
        n_groups = len(self._groups)
        equal = (last < n_groups) & (ngrams == lowest[:, np.minimum(last, n_groups - 1)].T).all(axis=1)
        last = last - 1 + equal
        for at in _groups_between(first, last, n_groups):
            mine = np.flatnonzero((first <= at) & (at <= last))
            columns, counts = self._read(*self._groups[at])
            rows = np.empty(len(mine), dtype=np.int64)
            kernels.lower_bounds(columns, np.ascontiguousarray(ngrams[mine]), rows)
            inside = np.minimum(rows, len(counts) - 1)
            hit = (rows < len(counts)) & (ngrams[mine] == columns[:, inside].T).all(axis=1)
            result[mine[hit]] = counts[inside[hit]]
        return result

    @cached_property
    def _groups(self) -> list[tuple[int, int]]:
        """Position of the file and of the row group in it, in the order of their n-grams; empty ones left out."""
        return [
            (which, group)
            for which, (_, file) in enumerate(self._files)
            for group in range(file.metadata.num_row_groups)
            if file.metadata.row_group(group).num_rows
        ]

    @cached_property
    def _bounds(self) -> tuple[U32, U32]:
        """uint32 (order, n_groups) twice: n-grams not above, and not below, any of each group, from its statistics."""
        lowest = np.zeros((self.order, len(self._groups)), dtype=np.uint32)
        highest = np.full((self.order, len(self._groups)), np.iinfo(np.uint32).max, dtype=np.uint32)
        for at, (which, group) in enumerate(self._groups):
            path, file = self._files[which]
            for place in range(self.order):
                statistics = file.metadata.row_group(group).column(place).statistics
                if statistics is None or not statistics.has_min_max:
                    raise _damaged(path, f"row group {group} has no statistics for {column_names(self.order)[place]}")
                lowest[place, at], highest[place, at] = statistics.min, statistics.max
                if statistics.min != statistics.max:
                    # Later columns are sorted only within equal values of this one.
                    break
        return lowest, highest

    def _read(self, which: int, group: int) -> tuple[U32, U64]:
        import pyarrow as pa

        path, file = self._files[which]
        try:
            table = file.read_row_group(group, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, f"row group {group} cannot be read ({_first_line(error)})") from None
        columns = np.empty((self.order, table.num_rows), dtype=np.uint32)
        for place, name in enumerate(column_names(self.order)):
            columns[place] = table[name].to_numpy()
        return columns, table["count"].to_numpy()


def _groups_between(first: I64, last: I64, n_groups: int) -> list[int]:
    """Groups that lie in [first, last] of at least one n-gram, ascending."""
    some = first <= last
    steps = np.zeros(n_groups + 1, dtype=np.int64)
    np.add.at(steps, first[some], 1)
    np.add.at(steps, last[some] + 1, -1)
    groups: list[int] = np.flatnonzero(np.cumsum(steps)[:-1]).tolist()
    return groups


def _table_schema(order: int) -> pa.Schema:
    import pyarrow as pa

    tokens = [pa.field(name, pa.uint32(), nullable=False) for name in column_names(order)]
    return pa.schema([*tokens, pa.field("count", pa.uint64(), nullable=False)])


class _PartJob(NamedTuple):
    """Rows [start, stop) of one order, to be written to one file."""

    path: Path
    counts: NgramCounts
    start: int
    stop: int


def _part_jobs(target: Path, counts: Mapping[int, NgramCounts]) -> list[_PartJob]:
    jobs = []
    for order, found in sorted(counts.items()):
        directory = target / f"order-{order}"
        directory.mkdir()
        for part, start in enumerate(range(0, max(found.n_distinct, 1), PART_ROWS)):
            path = directory / f"part-{part:05}.parquet"
            jobs.append(_PartJob(path, found, start, min(start + PART_ROWS, found.n_distinct)))
    return jobs


def _write_parts(jobs: list[_PartJob], *, threads: int, progress: ProgressHook | None) -> list[dict[str, Any]]:
    """Write every part; the files' entries in the manifest, in the order of `jobs`."""
    n_rows = sum(job.stop - job.start for job in jobs)
    written = 0
    files = []
    with ThreadPoolExecutor(max_workers=threads) as pool:
        futures = [pool.submit(_write_part, *job) for job in jobs]
        try:
            for future in futures:
                files.append(future.result())
                written += files[-1]["n_rows"]
                if progress is not None:
                    progress(written, n_rows)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return files


def _write_part(path: Path, counts: NgramCounts, start: int, stop: int) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = [
        *(pa.array(column[start:stop]) for column in counts.columns),
        pa.array(counts.counts[start:stop]),
    ]
    table = pa.Table.from_arrays(arrays, schema=_table_schema(counts.order))
    with path.open("xb") as file:
        # Sorted columns leave nothing to a dictionary; checksums let a reader refuse a flipped bit.
        pq.write_table(
            table, file, compression="zstd", row_group_size=ROW_GROUP_ROWS, use_dictionary=False,
            write_statistics=True, write_page_checksum=True,
        )  # fmt: skip
        file.flush()
        os.fsync(file.fileno())
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "name": f"{path.parent.name}/{path.name}",
        "order": counts.order,
        "file_bytes": path.stat().st_size,
        "n_rows": stop - start,
        "sha256": digest,
    }


def _manifest(
    counts: Mapping[int, NgramCounts], provenance: CountsProvenance, files: list[dict[str, Any]]
) -> dict[str, Any]:
    about = asdict(provenance)
    manifest = {
        "schema": SCHEMA,
        "vocabulary": {
            "map_sha256": about.pop("vocab_sha256"),
            "canonical_size": about.pop("canonical_size"),
            "tokenizer_sha256": about.pop("tokenizer_sha256"),
        },
        "corpus": about,
        "orders": {
            str(order): {"n_distinct": found.n_distinct, "n_total": found.n_total}
            for order, found in sorted(counts.items())
        },
        "files": files,
    }
    return manifest | {"manifest_sha256": _manifest_digest(manifest)}


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


def _open_part(path: Path, entry: dict[str, Any], order: int) -> tuple[Path, pq.ParquetFile]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        raise _damaged(path, "the file is missing")
    if path.stat().st_size != entry["file_bytes"]:
        raise _damaged(path, f"{path.stat().st_size:,} bytes, expected {entry['file_bytes']:,}")
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, f"not a whole Parquet file ({_first_line(error)})") from None
    if file.metadata.num_rows != entry["n_rows"] or not file.schema_arrow.equals(_table_schema(order)):
        found = f"{file.metadata.num_rows:,} rows of {', '.join(file.schema_arrow.names)}"
        file.close()
        raise _damaged(path, f"{found}; expected {entry['n_rows']:,} of {', '.join([*column_names(order), 'count'])}")
    return path, file


def _damaged(path: Path, found: str) -> InvalidInput:
    return InvalidInput(f"{path}: {found}; the counts are damaged: copy them again or count again")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _write_flushed(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
