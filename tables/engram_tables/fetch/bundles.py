"""Hot n-grams by one read each: a table whose bundles stand beside its rows.

To the engines that read files a bundle is another place where rows lie: an n-gram that has one is found by its key,
and its rows are looked for there, where they follow each other and are one read. So one engine reads both at once, and
both give the same bytes. It knows no clock, and nothing of how an engine reads.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.hashing import hash_ngrams
from engram_tables.address.spec import Addresses
from engram_tables.errors import CorruptTable, SpecMismatch
from engram_tables.fetch.engines.auto import AutoEngine
from engram_tables.fetch.engines.engine import DONE, Engine, Pending
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.engines.queue_memory import Bundled
from engram_tables.fetch.engines.queued import ShortReads
from engram_tables.fetch.kernels import DONE as WARM_DONE
from engram_tables.fetch.placement import Batch, Placed, Placements
from engram_tables.fetch.table import Table
from engram_tables.fetch.warm import ShortWay
from engram_tables.storage.bundles.checking import read_records
from engram_tables.storage.bundles.files import BundleDirectory
from engram_tables.storage.bundles.index_kernels import look_up, redirect
from engram_tables.storage.bundles.writing import rows_of
from engram_tables.storage.row_files import RowFiles
from engram_tables.storage.table.reader import StoredTable

READERS = ("uring", "aio", "direct", "pread")
"""The engines that read bundles; the others copy rows from memory, or fault them in, where they are."""

_COMPARED = 2


class BundleCounts(NamedTuple):
    """What fetches have asked for so far: lookups are (token, layer, order)."""

    n_lookups: int
    """Of the batches that were not copied from memory as a whole."""
    n_found: int
    """Of them, those that a bundle holds."""


class KeyedBatch(Batch):
    """A batch that says which n-grams its rows are of.

    Attributes
    ----------
    keys
        uint64 (tokens x layers x orders x words of a key,).
    numbers
        Their bundles, as `look_up` fills it, once somebody has asked.
    """

    keys: NDArray[np.uint64]
    numbers: NDArray[np.int64] | None = None


class Bundles:
    """Open bundles of a table.

    Parameters
    ----------
    stored
        The table's rows.
    path
        The directory of bundles.

    Attributes
    ----------
    directory
        Its files and manifest.
    columns
        int64 (orders + 1,): the first column of each order, and the number of columns.

    Raises
    ------
    TableError
        See `BundleDirectory`.
    SpecMismatch
        Bundles of another table, or of this one before it was built anew.
    CorruptTable
        Bundles of a checkpoint whose rows are not the ones that were bundled; a few are compared, since a checkpoint
        has no digest.
    """

    def __init__(self, stored: RowFiles, path: str | Path) -> None:
        self.directory = BundleDirectory(path)
        try:
            self._check(stored)
            n_slots = self.directory.n_slots
            self.columns = np.concatenate(([0], np.cumsum(stored.spec.heads))).astype(np.int64)
            first_slots = (np.cumsum(n_slots) - n_slots.reshape(-1)).reshape(n_slots.shape)
            n_bundles = np.array(self.directory.manifest.n_bundles, np.int64)
            self._spans = np.ascontiguousarray(np.stack([first_slots, n_slots, n_bundles], axis=2))
            self._slots = self.directory.slots
            self._counting = threading.Lock()
            self._n_lookups = self._n_found = 0
            # Those of the compiled short way, which adds to them without a lock.
            self._short_counts = np.zeros(2, np.int64)
            if not isinstance(stored, StoredTable):
                self._compare_some(stored)
        except BaseException:
            self.directory.close()
            raise

    def _check(self, stored: RowFiles) -> None:
        path, manifest = str(self.directory.path), self.directory.manifest
        manifest.check_spec(stored.spec, row_bytes=stored.row_bytes, codec=stored.codec.name, path=path)
        found = rows_of(stored)
        if found != manifest.rows_of:
            raise SpecMismatch(
                f"{path}: found bundles of the {manifest.rows_of.form} {manifest.rows_of.sha256}, expected those of "
                f"{stored.path}, which is the {found.form} {found.sha256}; build the bundles again, or open the table "
                "without them"
            )

    def _compare_some(self, stored: RowFiles) -> None:
        """Hold the first and the last bundle of each layer and order against the rows."""
        manifest = self.directory.manifest
        for file in manifest.files:
            if file.order is None or file.layer_id is None:
                continue
            ngrams, _ = self.directory.ngrams(file.order)
            some = ngrams[np.unique(np.linspace(0, len(ngrams) - 1, _COMPARED).astype(np.int64))]
            keys, rows = hash_ngrams(stored.spec, file.layer_id, file.order, some, threads=1)
            layer, place = manifest.layer_ids.index(file.layer_id), manifest.orders.index(file.order)
            numbers = np.empty(len(some), np.int64)
            columns, span = np.array([0, rows.shape[1]]), self._spans[layer : layer + 1, place : place + 1]
            look_up(rows.reshape(-1), keys.view(np.uint64).reshape(-1), columns, span, self._slots, numbers)
            for number, of_ngram in zip(numbers.tolist(), rows, strict=True):
                record = np.empty(of_ngram.size * stored.row_bytes, np.uint8)
                self.directory.files[file.path].read_into(file.data_offset + max(number, 0) * record.size, record)
                if number >= 0 and (record != read_records(stored, file.layer_id, of_ngram, 1).reshape(-1)).any():
                    raise CorruptTable(
                        f"{self.directory.path}: found bundles of layer {file.layer_id}, order {file.order} that "
                        f"differ from the rows of {stored.path}, expected the same bytes; build the bundles again",
                        path=str(self.directory.path),
                    )

    def numbers(self, batch: KeyedBatch) -> NDArray[np.int64]:
        """int64 (tokens x layers x orders,): each n-gram's bundle, or -1. Looked up and counted once a batch."""
        if batch.numbers is None:
            numbers = np.empty(batch.rows.size // int(self.columns[-1]) * (len(self.columns) - 1), np.int64)
            n_found = look_up(batch.rows, batch.keys, self.columns, self._spans, self._slots, numbers)
            with self._counting:
                if batch.numbers is None:
                    self._n_lookups += numbers.size
                    self._n_found += int(n_found)
                    batch.numbers = numbers
        return batch.numbers

    def found(self, addresses: Addresses) -> NDArray[np.int64]:
        """How many of a batch's n-grams have bundles, int64 (orders,), by the keys of `addresses`; not counted."""
        n_orders = len(self.columns) - 1
        numbers = np.empty(addresses.rows.size // int(self.columns[-1]) * n_orders, np.int64)
        keys = np.ascontiguousarray(addresses.keys).view(np.uint64).reshape(-1)
        look_up(np.ascontiguousarray(addresses.rows).reshape(-1), keys, self.columns, self._spans, self._slots, numbers)
        found: NDArray[np.int64] = (numbers.reshape(-1, n_orders) >= 0).sum(axis=0, dtype=np.int64)
        return found

    def counts(self) -> BundleCounts:
        """What has been asked for so far."""
        with self._counting:
            n_lookups, n_found = self._short_counts.tolist()
            return BundleCounts(self._n_lookups + n_lookups, self._n_found + n_found)

    def at(self, bases: NDArray[np.uint64]) -> Bundled:
        """What a kernel needs where the first bundle of each layer and order is at `bases`, uint64 (layers, orders)."""
        return Bundled(
            columns=self.columns, spans=self._spans, slots=self._slots, bases=bases, counts=self._short_counts
        )

    def close(self) -> None:
        """Close the files."""
        self.directory.close()


class _Joined(RowFiles):
    """A table's rows, with the files of its bundles behind its own."""

    def __init__(self, stored: RowFiles, directory: BundleDirectory) -> None:
        super().__init__()
        self.path, self.spec, self.codec = stored.path, stored.spec, stored.codec
        self.row_bytes, self.parts, self.extents = stored.row_bytes, stored.parts, stored.extents
        self.first_file = len(stored.files)
        records = [directory.files[file.path] for file in directory.manifest.files if file.order is not None]
        self.files = [*stored.files, *records]

    def _close_files(self) -> None:
        """They are the table's and the directory's."""


class _BundledPlacements(Placements):
    """Where records lie, those of bundled n-grams in their bundles."""

    def __init__(self, joined: _Joined, bundles: Bundles) -> None:
        super().__init__(joined)
        self._bundles, self._first_file = bundles, joined.first_file

    def in_files(self, file_starts: NDArray[np.uint64]) -> Placed:
        """See `Placements.in_files`."""
        bases = file_starts[self.file_idx] + self.offsets.astype(np.uint64)
        return _BundledPlaced(self, bases, self.first_bundles(file_starts))

    def first_bundles(self, file_starts: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Where the first bundle of each layer and order is, uint64 (layers, orders), in the space of `in_files`."""
        manifest = self._bundles.directory.manifest
        bases = np.zeros((len(manifest.layer_ids), len(manifest.orders)), np.uint64)
        records = [file for file in manifest.files if file.order is not None]
        for start, file in zip(file_starts[self._first_file :].tolist(), records, strict=True):
            place = manifest.layer_ids.index(file.layer_id or 0), manifest.orders.index(file.order or 0)
            bases[place] = start + file.data_offset
        return bases


class _BundledPlaced(Placed):
    def __init__(self, places: _BundledPlacements, bases: NDArray[np.uint64], bundle_bases: NDArray[np.uint64]) -> None:
        super().__init__(places, bases)
        self._bundles, self._bundle_bases = places._bundles, bundle_bases

    def addresses(self, batch: Batch, start: int = 0, stop: int | None = None) -> NDArray[np.uint64]:
        """See `Placed.addresses`."""
        if not isinstance(batch, KeyedBatch):
            return super().addresses(batch, start, stop)
        found, places = super().addresses(batch), self.places
        numbers = self._bundles.numbers(batch)
        redirect(numbers, self._bundles.columns, self._bundle_bases, places.row_bytes, places.part_starts, found)
        return found[:, start:stop]


class BundledTable(Table):
    """A table with bundles: `fetch` and `begin` use them, `fetch_rows` does not.

    `READERS` read them, and so do `auto` and tiers, which leave what is not in memory to one of these.

    Attributes
    ----------
    bundles
        What they hold, and how often they held it.
    """

    def __init__(self, stored: RowFiles, path: str | Path) -> None:
        super().__init__(stored)
        self.bundles = Bundles(stored, path)
        try:
            joined = _Joined(stored, self.bundles.directory)
            self._joined, self._bundled_places = joined, _BundledPlacements(joined, self.bundles)
        except BaseException:
            self.bundles.close()
            raise

    def fetch(
        self,
        addresses: Addresses,
        out: NDArray[np.uint8] | None = None,
        engine: str | Engine | None = None,
        *,
        threads: int | None = None,
    ) -> NDArray[np.uint8]:
        """See `Table.fetch`; the keys of `addresses` say which bundles hold their rows.

        Raises
        ------
        SpecMismatch
            Keys of another shape or kind than the spec's, too. Without keys (an empty array) rows are read one by one.
        """
        engine = self._default if engine is None else engine
        if threads is None or threads == 1:
            made: Engine | None = self._engines.get(engine) if isinstance(engine, str) else engine
            short = made.warm if made is not None and made.stored is self.stored else None
            if short is not None and (isinstance(short, ShortReads) or engine == AutoEngine.name):
                out = self._room(addresses.rows) if out is None else out
                # Arrays that are not the kernel's are declined by an error, and refused by name below.
                try:
                    if _fetch_short(short, addresses, out) == WARM_DONE:
                        return out
                except TypeError:
                    pass
        batch, records = self._keyed(addresses, out)
        if batch.rows.size:
            self._engine(engine).read(batch, records.reshape(-1, self.row_bytes), threads)
        return records

    def begin(
        self,
        addresses: Addresses,
        out: NDArray[np.uint8],
        engine: str | Engine | None = None,
        *,
        threads: int | None = None,
    ) -> Pending:
        """See `Table.begin`."""
        batch, records = self._keyed(addresses, out)
        if not batch.rows.size:
            return DONE
        reader = self._engine(self._default if engine is None else engine)
        return reader.begin(batch, records.reshape(-1, self.row_bytes), threads)

    def engine(self, name: str) -> Engine:
        """See `Table.engine`."""
        made = self._engines.get(name)
        if made is None and name in READERS:
            with self._leases:
                made = ENGINES[name](self._joined, self._bundled_places)
                if isinstance(made.warm, ShortReads):
                    first_bundles = self._bundled_places.first_bundles(made.warm.file_spots)
                    made.warm.look_in(self.bundles.at(first_bundles), self.spec.key_dtype)
                # To whoever asks it is an engine of the table.
                made.stored = self.stored
                if self._engines.setdefault(name, made) is not made:
                    made.close()
        return super().engine(name)

    def close(self) -> None:
        """See `Table.close`."""
        super().close()
        self.bundles.close()

    def _keyed(self, addresses: Addresses, out: NDArray[np.uint8] | None) -> tuple[Batch, NDArray[np.uint8]]:
        rows, keys = self._checked_rows(addresses), addresses.keys
        batch, records = self._prepare(rows, rows.shape[2], 0, out)
        if not keys.size:
            return batch, records
        expected = (*rows.shape[:2], len(self.spec.orders))
        if keys.shape != expected or keys.dtype != self.spec.key_dtype:
            raise SpecMismatch(
                f"addresses: found keys {keys.dtype} {keys.shape}, expected {self.spec.key_dtype} {expected} as "
                f"{self.spec.name} has; compute them with this table's spec"
            )
        keyed = KeyedBatch(*batch)
        keyed.keys = np.ascontiguousarray(keys).view(np.uint64).reshape(-1)
        return keyed, records


def _fetch_short(short: ShortWay, addresses: Addresses, out: NDArray[np.uint8]) -> int:
    if isinstance(short, ShortReads) and addresses.keys.size:
        return short.fetch_keyed(addresses.rows, addresses.keys, out)
    return short.fetch_tokens(addresses.rows, out)
