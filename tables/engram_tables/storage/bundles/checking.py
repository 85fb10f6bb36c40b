"""Are bundles what they should be? Every block against its digest, and every bundle against the rows it was made of."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.hashing import hash_ngrams
from engram_tables.files import read_at
from engram_tables.storage.bundles.bundle_manifest import DIRECTORY_NAME, BundleFile
from engram_tables.storage.bundles.files import BundleDirectory
from engram_tables.storage.bundles.index import KeyIndex
from engram_tables.storage.bundles.writing import rows_of
from engram_tables.storage.extents import Part
from engram_tables.storage.row_files import RowFiles, Spots
from engram_tables.threads import run_all, run_slices
from engram_tables.units import ProgressHook

_COMPARED_BYTES = 16 << 20
_GRAIN_ROWS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedBundleBlock:
    """A block whose bytes differ from its digest, or cannot be read; bytes are half-open, from the file's start."""

    path: str
    block_idx: int
    start_byte: int
    stop_byte: int
    expected: str
    found: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UnlikeBundles:
    """Bundles of a layer and order that are not their rows, or that the index does not find.

    Attributes
    ----------
    n_different
        Bundles with other bytes than the rows.
    first_ngram
        Ids of the first one's n-gram, oldest first; empty where none differs.
    n_unfound
        Bundles that no chosen n-gram finds.
    """

    layer_id: int
    order: int
    n_different: int
    first_ngram: tuple[int, ...]
    n_unfound: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlesReport:
    """One directory of bundles.

    Attributes
    ----------
    n_bundles, n_compared
        Of all layers, and those that were held against rows; 0 where no table was given.
    is_of_table
        Whether they name the table as their origin; None where none was given. Bundles of another table are not
        compared.
    """

    path: str
    n_blocks: int
    n_blocks_read: int
    bytes_read: int
    damaged: tuple[DamagedBundleBlock, ...]
    n_bundles: int
    n_compared: int
    is_of_table: bool | None
    unlike: tuple[UnlikeBundles, ...]

    @property
    def is_whole(self) -> bool:
        """Whether nothing was found; for a sample, nothing in the sample."""
        return not self.damaged and not self.unlike and self.is_of_table is not False


class BundleCheck:
    """One pass over an open directory of bundles.

    Parameters
    ----------
    stored
        The table that they should be of; None to look at digests alone.
    sample
        How many blocks, and how many bundles of each layer and order, chosen by `seed`; all by default.

    Attributes
    ----------
    total_bytes
        Of the blocks to read, and of the bundles to compare.
    """

    def __init__(
        self, bundles: BundleDirectory, stored: RowFiles | None, *, sample: int | None = None, seed: int = 0
    ) -> None:
        self._bundles, self._stored, self._sample, self._seed = bundles, stored, sample, seed
        self._manifest = manifest = bundles.manifest
        blocks = [(file, k) for file in manifest.files for k in range(len(file.block_sha256))]
        self._n_blocks = len(blocks)
        if sample is not None and sample < len(blocks):
            blocks = [blocks[k] for k in sorted(random.Random(seed).sample(range(len(blocks)), sample))]
        self._blocks = blocks
        self._is_of_table = None if stored is None else rows_of(stored) == manifest.rows_of
        if stored is not None and self._is_of_table:
            manifest.check_spec(
                stored.spec, row_bytes=stored.row_bytes, codec=stored.codec.name, path=str(bundles.path)
            )
        self._read_bytes = sum(stop - start for start, stop in (self._range(*block) for block in blocks))
        self._record_files = [file for file in manifest.files if file.order is not None]
        compared = self._record_files if self._is_of_table else []
        self._n_compared = {file.path: min(file.tensors[0].shape[0], sample or 2**62) for file in compared}
        per_bundle = {file.path: file.tensors[0].shape[1] for file in compared}
        self.total_bytes = self._read_bytes + sum(n * per_bundle[path] for path, n in self._n_compared.items())
        self._done_bytes = 0

    def run(self, *, threads: int, progress: ProgressHook | None) -> BundlesReport:
        """Read and compare; `progress` is called with bytes."""

        def add(n_bytes: int) -> None:
            self._done_bytes += n_bytes
            if progress is not None:
                progress(min(self._done_bytes, self.total_bytes), self.total_bytes)

        found: list[DamagedBundleBlock | None] = [None] * len(self._blocks)

        def check(k: int) -> None:
            found[k] = self._check(*self._blocks[k])
            start, stop = self._range(*self._blocks[k])
            add(stop - start)

        run_all(check, range(len(self._blocks)), threads=max(1, min(threads, len(self._blocks))))
        unlike = [
            different
            for file in self._record_files
            if file.path in self._n_compared and (different := self._compare(file, threads, add)) is not None
        ]
        return BundlesReport(
            path=str(self._bundles.path),
            n_blocks=self._n_blocks,
            n_blocks_read=len(self._blocks),
            bytes_read=self._read_bytes,
            damaged=tuple(block for block in found if block is not None),
            n_bundles=sum(map(sum, self._manifest.n_bundles)),
            n_compared=sum(self._n_compared.values()),
            is_of_table=self._is_of_table,
            unlike=tuple(unlike),
        )

    def _range(self, file: BundleFile, block_idx: int) -> tuple[int, int]:
        start = block_idx * self._manifest.block_bytes
        return start, min(start + self._manifest.block_bytes, file.file_bytes)

    def _check(self, file: BundleFile, block_idx: int) -> DamagedBundleBlock | None:
        start, stop = self._range(file, block_idx)
        try:
            data = read_at(self._bundles.files[file.path].fd, np.empty(stop - start, np.uint8).data, start)
            found = hashlib.sha256(data).hexdigest()
        except OSError as error:
            found = f"unreadable ({error.strerror})"
        if found == file.block_sha256[block_idx]:
            return None
        return DamagedBundleBlock(
            path=file.path,
            block_idx=block_idx,
            start_byte=start,
            stop_byte=stop,
            expected=file.block_sha256[block_idx],
            found=found,
        )

    def _compare(self, file: BundleFile, threads: int, add: Callable[[int], None]) -> UnlikeBundles | None:
        """Hold the bundles of one layer and order against the rows of their n-grams."""
        stored = self._stored
        assert stored is not None
        assert file.layer_id is not None
        assert file.order is not None
        n_bundles, bundle_bytes = file.tensors[0].shape
        ngrams, _ = self._bundles.ngrams(file.order)
        which = self._ngrams_of(file, ngrams)
        n_unfound = int((which < 0).sum())
        chosen = np.flatnonzero(which >= 0)
        n_wanted = self._n_compared[file.path]
        if n_wanted < n_bundles:
            chosen = np.sort(np.random.default_rng(self._seed).permutation(chosen)[:n_wanted])
        n_at_once = max(1, _COMPARED_BYTES // bundle_bytes)
        n_different, first = 0, -1
        for start in range(0, len(chosen), n_at_once):
            mine = chosen[start : start + n_at_once]
            rows = hash_ngrams(stored.spec, file.layer_id, file.order, ngrams[which[mine]], threads=threads)[1]
            expected = read_records(stored, file.layer_id, rows.reshape(-1), threads).reshape(len(mine), -1)
            records = np.empty((len(mine), bundle_bytes), np.uint8)
            for record, number in zip(records, mine.tolist(), strict=True):
                self._bundles.files[file.path].read_into(file.data_offset + number * bundle_bytes, record)
            different = np.flatnonzero((records != expected).any(axis=1))
            if different.size and first < 0:
                first = int(which[mine[different[0]]])
            n_different += different.size
            add(len(mine) * bundle_bytes)
        if not n_different and not n_unfound:
            return None
        return UnlikeBundles(
            layer_id=file.layer_id,
            order=file.order,
            n_different=n_different,
            first_ngram=() if first < 0 else tuple(ngrams[first].tolist()),
            n_unfound=n_unfound,
        )

    def _ngrams_of(self, file: BundleFile, ngrams: NDArray[np.uint32]) -> NDArray[np.int64]:
        """int64 (bundles,): the n-gram that finds each bundle, or -1."""
        assert self._stored is not None
        assert file.layer_id is not None
        assert file.order is not None
        place = self._manifest.layer_ids.index(file.layer_id), self._manifest.orders.index(file.order)
        n_slots = self._bundles.n_slots
        first = int(n_slots.reshape(-1)[: place[0] * n_slots.shape[1] + place[1]].sum())
        slots = self._bundles.slots[first : first + int(n_slots[place])]
        index = KeyIndex(slots, n_bundles=file.tensors[0].shape[0])
        which = np.full(index.n_bundles, -1, np.int64)
        n_at_once = 1 << 18
        # Backwards, so that of several n-grams that are one to the hash the first one stays.
        for start in reversed(range(0, len(ngrams), n_at_once)):
            some = ngrams[start : start + n_at_once]
            numbers = index.find(hash_ngrams(self._stored.spec, file.layer_id, file.order, some)[0])
            here = np.flatnonzero(numbers >= 0)[::-1]
            which[numbers[here]] = start + here
        return which


def read_records(stored: RowFiles, layer_id: int, rows: NDArray[np.int64], threads: int) -> NDArray[np.uint8]:
    """Records uint8 (n, row_bytes) by plain reads in the order of the files, by `threads` threads."""
    out = np.empty((len(rows), stored.row_bytes), np.uint8)
    for part_idx, part in enumerate(stored.parts):
        spots = stored.locate(layer_id, rows, part_idx)
        order = np.lexsort((spots.offsets, spots.file_idx))

        def read(start: int, stop: int, part: Part = part, spots: Spots = spots, order: Any = order) -> None:
            for k in order[start:stop].tolist():
                file = stored.files[int(spots.file_idx[k])]
                file.read_into(int(spots.offsets[k]), out[k, part.start : part.start + part.n_bytes])

        run_slices(read, len(rows), threads=threads, grain=_GRAIN_ROWS)
    return out


def find_bundles(stored: RowFiles) -> BundleDirectory | None:
    """The bundles that stand in a table's directory, open; None where there are none."""
    place = stored.path / DIRECTORY_NAME
    return BundleDirectory(place) if place.is_dir() else None
