"""Hot n-grams by one read each: a table whose bundles stand beside its rows.

An n-gram whose rows are bundled is found by its key and read as one record; the rows of the others are read as ever,
at the same time. Both give the same bytes. It knows no clock, and nothing of how an engine reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import Addresses
from engram_tables.errors import CorruptTable, SpecMismatch
from engram_tables.fetch.engines.auto import AutoEngine
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import DONE, Engine, Items, Pending
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.kernels import DONE as WARM_DONE
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import Table
from engram_tables.fetch.warm import WarmPath
from engram_tables.storage.bundles.files import BundleDirectory
from engram_tables.storage.bundles.index_kernels import sort_out
from engram_tables.storage.bundles.writing import rows_of
from engram_tables.storage.row_files import RowFiles
from engram_tables.storage.table.reader import StoredTable

if TYPE_CHECKING:
    from engram_tables.fetch.tiers.budget import TierPlan
    from engram_tables.fetch.tiers.tiered import TieredEngine

_ALL = np.empty(0, np.bool_)
_SAMPLED = 2


class BundleCounts(NamedTuple):
    """What fetches have asked for so far: lookups are (token, layer, order)."""

    n_lookups: int
    """That came to be read; batches copied from memory as they are have not been looked up."""
    n_found: int
    """Of them, those that a bundle held."""


class KeyedBatch(Batch):
    """A batch that says which n-grams its rows are of.

    Attributes
    ----------
    keys
        uint64 (tokens x layers x orders x words of a key,).
    """

    keys: NDArray[np.uint64]


class Bundles:
    """Open bundles of a table: what they hold of a batch, and the reads of it.

    Parameters
    ----------
    stored
        The table's rows.
    path
        The directory of bundles.

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
        self.directory = directory = BundleDirectory(path)
        self._tables: dict[int, Table] = {}
        try:
            self._check(stored)
            manifest = directory.manifest
            spec = stored.spec
            self._columns = np.concatenate(([0], np.cumsum(spec.heads))).astype(np.int64)
            self._heads = np.array(spec.heads, np.int64)
            self._spans = np.zeros((len(spec.layers), len(spec.orders), 4), np.int64)
            self._spans[..., 0] = (np.cumsum(directory.n_slots) - directory.n_slots.reshape(-1)).reshape(
                directory.n_slots.shape
            )
            self._spans[..., 1] = directory.n_slots
            self._spans[..., 2] = np.array(manifest.n_bundles, np.int64)
            for n_heads in sorted(set(spec.heads)):
                rows = directory.rows(n_heads, stored.codec)
                if rows.extents:
                    self._tables[n_heads] = Table(rows)
                    self._spans[..., 3] = np.where(rows.first_numbers >= 0, rows.first_numbers, self._spans[..., 3])
            if not isinstance(stored, StoredTable):
                self._compare_some(stored)
        except BaseException:
            self.close()
            raise
        self._slots = directory.slots
        self._counting = threading.Lock()
        self._n_lookups = self._n_found = 0

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
        from engram_tables.address.hashing import hash_ngrams

        for layer, layer_id in enumerate(stored.layer_ids):
            for place, order in enumerate(stored.spec.orders):
                ngrams, _ = self.directory.ngrams(order)
                some = np.unique(np.linspace(0, max(len(ngrams) - 1, 0), _SAMPLED).astype(np.int64))
                if not len(ngrams):
                    continue
                keys, rows = hash_ngrams(stored.spec, layer_id, order, ngrams[some], threads=1)
                numbers = self.find(layer, place, keys, rows)
                here = numbers >= 0
                if not here.any():
                    continue
                n_heads = rows.shape[1]
                expected = read_rows(stored, layer_id, rows[here].reshape(-1)).reshape(-1, n_heads * stored.row_bytes)
                if (read_rows(self._tables[n_heads].stored, 0, numbers[here]) != expected).any():
                    raise CorruptTable(
                        f"{self.directory.path}: found bundles of layer {layer_id}, order {order} that differ from "
                        f"the rows of {stored.path}, expected the same bytes; build the bundles again",
                        path=str(self.directory.path),
                    )

    def find(self, layer: int, place: int, keys: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where bundles of the `layer`-th layer and `place`-th order are among those of as many heads, or -1.

        Parameters
        ----------
        keys, rows
            (n,) of the spec's `key_dtype`, and int64 (n, heads).
        """
        n_ngrams, n_heads = rows.shape
        numbers, found = np.empty(n_ngrams, np.int64), np.empty(n_ngrams, np.int64)
        words, flat = np.ascontiguousarray(keys).view(np.uint64), np.ascontiguousarray(rows).reshape(-1)
        span, columns = self._spans[layer : layer + 1, place : place + 1], np.array([0, n_heads], np.int64)
        n_found, _ = sort_out(
            flat, words.reshape(-1), _ALL, columns, span, self.directory.slots, numbers, found, np.empty_like(flat)
        )
        missing = np.ones(n_ngrams, np.bool_)
        missing[found[:n_found]] = False
        numbers[missing] = -1
        return numbers

    def begin(
        self, behind: Engine, engine: str, batch: KeyedBatch, out: NDArray[np.uint8], threads: int | None,
        items: Items | None,
    ) -> Pending:  # fmt: skip
        """Begin to read what bundles hold of a batch, and the other rows through `behind`."""
        n_lookups = batch.rows.size // int(self._columns[-1]) * len(self._heads)
        numbers, found = np.empty(n_lookups, np.int64), np.empty(n_lookups, np.int64)
        rest, is_wanted = np.empty(batch.rows.size, np.int64), _ALL
        if items is not None:
            is_wanted = np.zeros(batch.rows.size, np.bool_)
            is_wanted[items] = True
        n_found, n_rest = sort_out(
            batch.rows, batch.keys, is_wanted, self._columns, self._spans, self._slots, numbers, found, rest
        )
        with self._counting:
            self._n_lookups += n_lookups
            self._n_found += int(n_found)
        if not n_found:
            return behind.begin(batch, out, threads, items)
        together = _Together()
        order = found[:n_found] % len(self._heads)
        for n_heads, table in self._tables.items():
            mine = found[:n_found] if len(self._tables) == 1 else found[:n_found][self._heads[order] == n_heads]
            if mine.size:
                together.attempt(partial(self._begin, table, engine, numbers, mine, out, threads))
        if n_rest:
            together.attempt(partial(behind.begin, batch, out, threads, rest[:n_rest]))
        return together

    def _begin(
        self, table: Table, engine: str, numbers: NDArray[np.int64], mine: NDArray[np.int64],
        out: NDArray[np.uint8], threads: int | None,
    ) -> Pending:  # fmt: skip
        """Begin to read bundles of one length: straight into `out` where they lie there at multiples of it."""
        n_orders, n_columns = len(self._heads), int(self._columns[-1])
        n_heads = table.row_bytes // out.shape[1]
        starts = self._columns[:-1][self._heads == n_heads]
        reader = table.engine(engine)
        first = mine // n_orders * n_columns + self._columns[mine % n_orders]
        if n_columns % n_heads == 0 and not (starts % n_heads).any():
            places = first // n_heads
            rows = np.zeros(len(out) // n_heads, np.int64)
            rows[places] = numbers[mine]
            return reader.begin(_batch(rows), out.reshape(-1, table.row_bytes), threads, places)
        records = np.empty((mine.size, table.row_bytes), np.uint8)
        pending = reader.begin(_batch(numbers[mine]), records, threads)

        def scatter() -> None:
            pieces = records.reshape(mine.size, n_heads, -1)
            for head in range(n_heads):
                out[first + head] = pieces[:, head]

        return _Followed(pending, scatter)

    def counts(self) -> BundleCounts:
        """What has been asked for so far."""
        with self._counting:
            return BundleCounts(self._n_lookups, self._n_found)

    def close(self) -> None:
        """Close engines and files; nothing may be under way."""
        for table in self._tables.values():
            table.close()
        self.directory.close()


def _batch(rows: NDArray[np.int64]) -> Batch:
    return Batch(rows=rows, n_columns=rows.size, first_layer=0, n_layers=1)


class BundledEngine(Engine):
    """An engine, with bundles for the n-grams that have one. Batches without keys it passes on.

    `behind` reads the other rows and stays the caller's to close.
    """

    name: ClassVar[str] = "bundled"

    def __init__(self, table: RowFiles, behind: Engine, bundles: Bundles) -> None:
        super().__init__(table)
        self.behind, self._bundles = behind, bundles
        self._engine = behind.name if behind.name in (AutoEngine.name, *ENGINES) else AutoEngine.name

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        self._begin(batch, out, threads, items).finish()

    def _begin(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> Pending:
        if not isinstance(batch, KeyedBatch) or self._is_in_memory():
            return self.behind.begin(batch, out, threads, items)
        return self._bundles.begin(self.behind, self._engine, batch, out, threads, items)

    def _is_in_memory(self) -> bool:
        """Whether all rows are there anyway."""
        behind = self.behind
        if behind.name == GatherEngine.name:
            return True
        return isinstance(behind, AutoEngine) and behind.residency is not None and behind.residency.is_whole


class BundledTable(Table):
    """A table with bundles: `fetch` and `begin` use them, `fetch_rows` does not.

    Rows that are known to lie in memory are copied from there as they are, and the engine `gather` uses no bundles.

    Attributes
    ----------
    bundles
        What they hold, and how often they held it.
    """

    def __init__(self, stored: RowFiles, path: str | Path) -> None:
        super().__init__(stored)
        self.bundles = Bundles(stored, path)
        self._bundled: dict[int, BundledEngine] = {}

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
        if engine == GatherEngine.name:
            return super().fetch(addresses, out, engine, threads=threads)
        if engine == AutoEngine.name and threads in (None, 1):
            made = self._engines.get(AutoEngine.name)
            if made is not None and made.warm is not None:
                out = self._room(addresses.rows) if out is None else out
                if _is_copied(made.warm, addresses, out):
                    return out
        batch, records = self._keyed(addresses, out)
        if batch.rows.size:
            self._with_bundles(engine).read(batch, records.reshape(-1, self.row_bytes), threads)
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
        reader = self._with_bundles(self._default if engine is None else engine)
        return reader.begin(batch, records.reshape(-1, self.row_bytes), threads)

    def add_tiers(self, plan: TierPlan) -> TieredEngine:
        """See `Table.add_tiers`; what the tiers miss is read with bundles."""
        from engram_tables.fetch.tiers.tiered import make_tiers

        if isinstance(self._default, Engine):
            return super().add_tiers(plan)  # raises
        made = make_tiers(self.stored, self.places, self._with_bundles(self.engine(plan.behind)), plan)
        self._default = made
        return made

    def close(self) -> None:
        """See `Table.close`."""
        self._leases.close()
        if isinstance(self._default, Engine):
            self._default.close()
        for engine in list(self._bundled.values()):
            engine.close()
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

    def _with_bundles(self, engine: str | Engine) -> Engine:
        """The engine with bundles in front of it; tiers have them behind."""
        behind = self._engine(engine)
        if behind is self._default or isinstance(behind, BundledEngine):
            return behind
        made = self._bundled.get(id(behind))
        if made is None or made.behind is not behind:
            made = self._bundled.setdefault(id(behind), BundledEngine(self.stored, behind, self.bundles))
        return made


def _is_copied(warm: WarmPath, addresses: Addresses, out: NDArray[np.uint8]) -> bool:
    """Copy a batch that lies in memory, in one compiled call; False if it does not, or that is not known."""
    try:
        return bool(warm.fetch_tokens(addresses.rows, out) == WARM_DONE)
    except TypeError:
        return False


class _Together:
    """Reads under way together: whatever fails, each is finished once, and the first error is raised."""

    def __init__(self) -> None:
        self._under_way: list[Pending] = []

    def attempt(self, begin: Callable[[], Pending]) -> None:
        """Begin one more; if that fails, finish the others."""
        try:
            self._under_way.append(begin())
        except BaseException as error:
            try:
                self.finish()
            except Exception:
                error.add_note("and a read that was under way failed, too")
            raise

    def finish(self) -> None:
        """See `Pending`."""
        errors: list[BaseException] = []
        for pending in self._under_way:
            try:
                pending.finish()
            except BaseException as error:
                errors.append(error)
        self._under_way.clear()
        if errors:
            raise errors[0]


class _Followed:
    """A read under way, and what is done with it then."""

    def __init__(self, pending: Pending, then: Callable[[], None]) -> None:
        self._pending, self._then = pending, then

    def finish(self) -> None:
        """See `Pending`."""
        self._pending.finish()
        self._then()
