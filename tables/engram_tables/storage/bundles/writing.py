"""Bundles written: a plan, made before a row is read, and the directory that it becomes.

Owns which chosen n-grams become bundles of each layer, and the files. How rows are read is the caller's business.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.hashing import hash_ngrams
from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput
from engram_tables.files import allocate, new_directory, refuse_existing, write_at
from engram_tables.storage.bundles.bundle_manifest import (
    INDEX_NAME,
    MANIFEST_NAME,
    NGRAMS_NAME,
    BundleFile,
    BundleManifest,
    RowsOf,
)
from engram_tables.storage.bundles.choosing import Chosen
from engram_tables.storage.bundles.index import KeyIndex
from engram_tables.storage.codecs.codec import Codec
from engram_tables.storage.extents import Ranges
from engram_tables.storage.row_files import RowFiles
from engram_tables.storage.sources.opening import SourceRows
from engram_tables.storage.sources.record import SourceRecord
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.reader import StoredTable
from engram_tables.storage.table.shards import NO_DIGEST
from engram_tables.storage.table.table_source import TABLE_FORM
from engram_tables.units import Stage, canonical_json, unwatched

_HASHED_NGRAMS = 1 << 18
_READ_BYTES = 64 << 20
# What lies in a directory of bundles; `force` removes nothing else.
_OURS = re.compile(
    "|".join((*map(re.escape, (MANIFEST_NAME, INDEX_NAME, NGRAMS_NAME)), r"layer-\d+(/order-\d+\.safetensors)?"))
)

ReadRows = Callable[[int, NDArray[np.int64], NDArray[np.uint8]], object]
"""(layer id, rows int64 (n,), out uint8 (n, row_bytes)): fill `out` with the records."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BundlePlan:
    """What would be written; made without reading a row.

    Attributes
    ----------
    manifest
        Its digests are still missing.
    spec, chosen
        Addressing of the rows, and the n-grams.
    indexes
        By layer id and order.
    kept
        By layer id and order: int64, which of the order's chosen n-grams are bundled, in sequence.
    n_found
        By layer id and order: the counted text's lookups that bundles hold; those of n-grams that are one to the hash
        with a bundled one among them, those of n-grams whose rows are not all here not.
    """

    manifest: BundleManifest
    spec: AddressSpec
    chosen: Chosen
    indexes: dict[tuple[int, int], KeyIndex]
    kept: dict[tuple[int, int], NDArray[np.int64]]
    n_found: dict[tuple[int, int], int]

    def of_rows(self, origin: RowsOf) -> BundlePlan:
        """The same plan for the table that has become of a planned one."""
        manifest = replace(self.manifest, rows_of=origin).with_files()
        return replace(self, manifest=manifest)

    @property
    def n_bundles(self) -> int:
        """Bundles of all layers."""
        return sum(map(sum, self.manifest.n_bundles))


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenBundles:
    """A finished directory: its manifest."""

    path: Path
    manifest: BundleManifest


def rows_of(stored: RowFiles) -> RowsOf:
    """What bundles of these rows name as their origin."""
    if isinstance(stored, StoredTable):
        return RowsOf(form=TABLE_FORM, sha256=json.loads(stored.manifest.to_bytes())["manifest_sha256"])
    if isinstance(stored, SourceRows):
        record = SourceRecord.of(stored.source)
        digest = hashlib.sha256(canonical_json(record.to_json())).hexdigest()
        return RowsOf(form=record.form, sha256=digest)
    raise InvalidInput(f"{stored.path}: found {type(stored).__name__}, expected a table or a checkpoint")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowsToBundle:
    """The rows of a table that is there, or of one that is only planned.

    Attributes
    ----------
    where
        For messages.
    owned
        The rows of every layer that are here.
    """

    where: str
    spec: AddressSpec
    codec: Codec
    row_bytes: int
    owned: Mapping[int, Ranges]
    rows_of: RowsOf

    @classmethod
    def of(cls, stored: RowFiles) -> Self:
        """Those of an open table or checkpoint."""
        return cls(
            where=str(stored.path),
            spec=stored.spec,
            codec=stored.codec,
            row_bytes=stored.row_bytes,
            owned={layer_id: stored.owned(layer_id) for layer_id in stored.layer_ids},
            rows_of=rows_of(stored),
        )

    @classmethod
    def planned(cls, manifest: Manifest, where: str) -> Self:
        """Those of a table to be, whose digest is not known yet."""
        return cls(
            where=where,
            spec=manifest.spec,
            codec=manifest.get_codec(),
            row_bytes=manifest.row_bytes,
            owned={layer_id: manifest.owned_rows(layer_id) for layer_id in manifest.spec.layer_ids},
            rows_of=RowsOf(form=TABLE_FORM, sha256=NO_DIGEST),
        )


def plan_bundles(
    chosen: Chosen, rows: RowsToBundle, *, counts_sha256: str, threads: int | None = None, stage: Stage = unwatched
) -> BundlePlan:
    """Hash the chosen n-grams, and keep those whose rows are all here; of n-grams that are one to the hash, the first.

    Parameters
    ----------
    rows
        Of the table or checkpoint.
    counts_sha256
        Of the counts' manifest.

    Raises
    ------
    InvalidInput
        No chosen n-gram has all its rows here, as in a rank's table that is divided by heads.

    Notes
    -----
    Memory: 24 bytes an n-gram and layer for the index with keys of one word, 8 for what is kept.
    """
    spec, scale_bits = rows.spec, rows.codec.scale_bits
    indexes, kept, n_found = {}, {}, {}
    total, done = len(chosen.orders) * len(spec.layers), 0
    with stage("hashing n-grams", "n-grams") as progress:
        for layer_id in spec.layer_ids:
            for order in spec.orders:
                place = layer_id, order
                indexes[place], kept[place], n_found[place] = _index(chosen, rows, layer_id, order, threads)
                done += len(chosen.ngrams[order])
                progress(done, total)
    if not any(map(len, kept.values())):
        raise InvalidInput(
            f"{rows.where}: found no n-gram of which every row is here, expected some; bundle the whole table, or a "
            "rank's that is divided by layers or rows"
        )
    manifest = BundleManifest(
        fingerprint=spec.fingerprint,
        codec=rows.codec.name,
        codec_scale=None if scale_bits is None else f"{scale_bits:08x}",
        row_bytes=rows.row_bytes,
        orders=spec.orders,
        heads=spec.heads,
        layer_ids=spec.layer_ids,
        key_words=spec.key_words,
        rows_of=rows.rows_of,
        counts_sha256=counts_sha256,
        budget_bytes=chosen.budget_bytes,
        least_count=chosen.least_count,
        n_ngrams=tuple(len(chosen.ngrams[order]) for order in spec.orders),
        n_bundles=tuple(tuple(len(kept[layer_id, order]) for order in spec.orders) for layer_id in spec.layer_ids),
    )
    return BundlePlan(
        manifest=manifest.with_files(), spec=spec, chosen=chosen, indexes=indexes, kept=kept, n_found=n_found
    )


def _index(
    chosen: Chosen, rows: RowsToBundle, layer_id: int, order: int, threads: int | None
) -> tuple[KeyIndex, NDArray[np.int64], int]:
    """The index of one layer and order, which n-grams are in it, and how often it was asked for in the counted text."""
    ngrams, bounds = chosen.ngrams[order], np.array(rows.owned[layer_id], np.int64).reshape(-1)
    wanted: NDArray[np.int64] = np.arange(len(ngrams))
    counts, n_found = chosen.counts[chosen.orders == order], 0
    is_first = True
    # The first pass finds n-grams that are left out, after which an index of the exact size has all that come.
    while True:
        index = KeyIndex.empty(len(wanted), rows.spec.key_words)
        kept = [np.empty(0, np.int64)]
        for start in range(0, len(wanted), _HASHED_NGRAMS):
            mine = wanted[start : start + _HASHED_NGRAMS]
            keys, found = hash_ngrams(rows.spec, layer_id, order, ngrams[mine], threads=threads)
            here = (np.searchsorted(bounds, found, side="right") % 2 == 1).all(axis=1)
            if is_first:
                n_found += int(counts[mine[here]].sum())
            numbers = index.insert(keys[here], found[here])
            kept.append(mine[here][numbers >= 0])
        entered = np.concatenate(kept)
        if len(entered) == len(wanted):
            return index, entered, n_found
        wanted, is_first = entered, False


def write_bundles(
    plan: BundlePlan,
    path: Path,
    read_rows: ReadRows,
    *,
    force: bool = False,
    threads: int | None = None,
    stage: Stage = unwatched,
) -> WrittenBundles:
    """Write the bundles of a plan as the directory `path`.

    It is written beside its place and appears whole; a run that is stopped leaves nothing, and the next one begins
    anew: records are read in batches, each in the order of its rows, so that a second run costs what the first did.

    Parameters
    ----------
    read_rows
        Gives records, of the very rows that the plan was made for.

    Raises
    ------
    InvalidInput
        `path` exists and `force` is not set, or it is something else than bundles.
    OSError
        Of the filesystem; a full disk is met before the first row is read.
    """
    refuse_taken(path, force=force)
    try:
        with new_directory(path, force=force) as directory:
            whole = _write_files(plan, directory, read_rows, threads, stage)
            _write_whole(directory / MANIFEST_NAME, whole.to_bytes())
            # It may have been filled meanwhile by somebody else.
            refuse_taken(path, force=force)
    except OSError as error:
        error.add_note(f"while writing {path}, {plan.manifest.total_bytes:,} bytes")
        raise
    return WrittenBundles(path=path, manifest=whole)


def _write_files(
    plan: BundlePlan, directory: Path, read_rows: ReadRows, threads: int | None, stage: Stage
) -> BundleManifest:
    """All files but the manifest, which is returned with their digests."""
    manifest = plan.manifest
    for file in manifest.files:
        (directory / file.path).parent.mkdir(exist_ok=True)
        with (directory / file.path).open("xb") as empty:
            allocate(empty.fileno(), file.file_bytes)
    finished, done = [], 0
    with stage("bundling rows", "B") as progress:
        for file in manifest.files:
            writer = _HashedFile(directory / file.path, manifest.block_bytes)
            with writer:
                header = manifest.header(file)
                writer.write(memoryview(header))
                for piece in _contents(plan, file, read_rows, threads):
                    writer.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
                    progress(done + writer.n_bytes, manifest.total_bytes)
            done += writer.n_bytes
            digest = hashlib.sha256(header).hexdigest()
            finished.append(replace(file, header_sha256=digest, block_sha256=tuple(writer.digests)))
    return replace(manifest, files=tuple(finished))


def refuse_taken(path: Path, *, force: bool) -> None:
    """Raise `InvalidInput` if bundles could not be written as `path`; `force` replaces bundles, or an empty directory,
    and nothing else."""
    refuse_existing(path, force=force)
    if not path.exists() and not path.is_symlink():
        return
    if path.is_symlink() or not path.is_dir():
        raise InvalidInput(
            f"{path}: found something else than a directory, expected bundles to replace; choose another"
        )
    entries = sorted(path.rglob("*"))
    if entries and not (path / MANIFEST_NAME).is_file():
        raise InvalidInput(
            f"{path}: found no {MANIFEST_NAME} in it, expected bundles to replace; remove it yourself, or choose "
            "another name"
        )
    for entry in entries:
        if _OURS.fullmatch(str(entry.relative_to(path))) is None or entry.is_symlink():
            raise InvalidInput(
                f"{entry}: found in the bundles that would be replaced, expected their own files alone; move it away, "
                "or choose another name"
            )


def _contents(plan: BundlePlan, file: BundleFile, read_rows: ReadRows, threads: int | None) -> Iterator[NDArray[Any]]:
    """The data of one file, in order."""
    if file.order is not None and file.layer_id is not None:
        yield from _records(plan, file.layer_id, file.order, read_rows, threads)
    elif file.path == INDEX_NAME:
        for layer_id in plan.manifest.layer_ids:
            for order in plan.manifest.orders:
                yield plan.indexes[layer_id, order].slots
    else:
        chosen = plan.chosen
        for order in plan.manifest.orders:
            yield chosen.counts[chosen.orders == order].astype("<u8")
        for order in plan.manifest.orders:
            yield chosen.ngrams[order].astype("<u4")


def _records(
    plan: BundlePlan, layer_id: int, order: int, read_rows: ReadRows, threads: int | None
) -> Iterator[NDArray[np.uint8]]:
    manifest, kept = plan.manifest, plan.kept[layer_id, order]
    ngrams = plan.chosen.ngrams[order]
    n_heads = manifest.heads[manifest.orders.index(order)]
    n_at_once = max(1, _READ_BYTES // (n_heads * manifest.row_bytes))
    room = np.empty((min(n_at_once, len(kept)) * n_heads, manifest.row_bytes), np.uint8)
    for start in range(0, len(kept), n_at_once):
        mine = kept[start : start + n_at_once]
        rows = hash_ngrams(plan.spec, layer_id, order, ngrams[mine], threads=threads)[1]
        records = room[: rows.size]
        read_rows(layer_id, rows.reshape(-1), records)
        yield records


class _HashedFile:
    """A file that has its length already, written from its beginning and hashed block by block.

    Attributes
    ----------
    n_bytes
        Written so far.
    digests
        Of every block; whole when the file is closed.
    """

    def __init__(self, path: Path, block_bytes: int) -> None:
        self._block_bytes = block_bytes
        self._file = path.open("r+b", buffering=0)
        self._digest = hashlib.sha256()
        self.n_bytes = 0
        self.digests: list[str] = []

    def write(self, data: memoryview) -> None:
        """All of `data`, as bytes."""
        write_at(self._file.fileno(), data, self.n_bytes)
        done = 0
        while done < len(data):
            piece = data[done : done + self._block_bytes - self.n_bytes % self._block_bytes]
            self._digest.update(piece)
            done += len(piece)
            self.n_bytes += len(piece)
            if self.n_bytes % self._block_bytes == 0:
                self._end_block()

    def _end_block(self) -> None:
        self.digests.append(self._digest.hexdigest())
        self._digest = hashlib.sha256()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                if self.n_bytes % self._block_bytes:
                    self._end_block()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def _write_whole(path: Path, data: bytes) -> None:
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
