"""The engine that knows where the rows are: those in memory are copied while the others are read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.engines.engine import DONE, Engine, Items, Pending
from engram_tables.fetch.engines.ladder import Rung, first_usable
from engram_tables.fetch.engines.queue_kernels import STALE
from engram_tables.fetch.engines.queued import SHORT_ROWS, ShortReads
from engram_tables.fetch.engines.residency import Residency
from engram_tables.fetch.engines.residency_kernels import AGAIN, MISSING, WAITING
from engram_tables.fetch.kernels import CLOSED
from engram_tables.fetch.kernels import DONE as READ
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.warm import WarmPath
from engram_tables.storage.row_files import RowFiles

# In this order the first one that reads takes the rows that are not in memory.
READ_ORDER = ("uring", "aio", "direct", "willneed", "pread")
# What these engines read is in memory afterwards.
_FILLING = ("willneed", "pread")
_KEEPING = "willneed"
_WHERE_UNKNOWN = "pread"

# One record in so many that are believed in memory is looked up before it is copied, and no more than 8 of a batch:
# at 1 to 8 us each, by what is in the processor's caches, that costs 1 to 2 % of a warm batch (2-core VM, 2026-11).
ROWS_A_CHECK = 2048
_MOST_CHECKED = 8
# A look at a missing record costs as much as reading two: in so many it is 2 %.
_MISSED_A_CHECK = 128
_MOST_MISSED_CHECKED = 32
# Up to so many records one thread sorts before any is copied, which costs less than to look block by block.
_MOST_AT_ONCE = 8192
# So few missing records of a batch that is in memory for the most part are asked for in one compiled call and copied
# with the others, since everything more would last longer than their reading. What else such a caller reads is in
# memory, so they are kept there too.
_FEW_MISSING = 64
_NONE = np.empty(0, np.int64)


class AutoEngine(Engine):
    """Rows in memory are gathered while the missing ones are in flight.

    Where the rows are is an estimate (`Residency`): a map of the pages in memory, renewed in the background. Of the
    rows believed in memory about one in `ROWS_A_CHECK` is looked up before the copy; of those believed out one in 128.
    When a look contradicts the map, the whole batch is looked up, and a refresh is asked for. A wrong estimate costs
    time and never a byte.

    Missing rows are read past the page cache, by the first engine of `READ_ORDER` that reads. Those in a page that was
    missed before are read into memory instead (`willneed`), so that what is used again becomes warm, and a scan leaves
    memory as it is; so are the few that a batch misses which is in memory for the most part. Where files cannot be
    mapped, or the system does not say what is in memory, `pread` reads everything.

    `engine_of` gives the table's engines by name; they are the table's to close.

    Attributes
    ----------
    residency
        The estimate; None before the first read.
    rungs
        The engines that were tried for missing rows, the refused ones with the reason; empty before the first miss.
    """

    name = "auto"

    def __init__(self, table: RowFiles, engine_of: Callable[[str], Engine]) -> None:
        super().__init__(table)
        self._table = table
        self._engine_of = engine_of
        # Made at the first read: the table closes its engines in the order in which they came, and this one waits for
        # reads that still want the others.
        self._made: dict[str, tuple[GatherEngine, Residency]] = {}
        self.residency: Residency | None = None
        self.rungs: tuple[Rung, ...] = ()
        self._is_unmapped = False
        self._missing_engine: str | None = None
        self._warm_path: WarmPath | None = None
        self._first_misses: FirstMisses | None = None
        self._rows_until_check = 0
        self._missed_until_check = 0
        self._n_first_misses = 0
        self._n_checks = 0
        self._n_contradicted = 0

    @property
    def engine_names(self) -> tuple[str, ...]:
        """What has read so far, or will: for rows in memory first, then for missing ones."""
        if self._is_unmapped or (self.residency is not None and not self.residency.is_answered):
            return (_WHERE_UNKNOWN,)
        return (GatherEngine.name, *([] if self._missing_engine is None else [self._missing_engine]))

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        self._go(_Flights(is_waited_for=True), batch, out, threads, items).finish()

    def _begin(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> Pending:
        return self._go(_Flights(), batch, out, threads, items)

    def _go(
        self, flights: _Flights, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None
    ) -> Pending:
        """The missing rows are in flight when it returns; the others are copied, but for batches that miss a few."""
        made = self._open()
        if made is None or not made[1].is_answered:
            return self._engine_of(_WHERE_UNKNOWN).begin(batch, out, threads, items)
        gather, residency = made
        self._check(batch, items, residency)
        residency.count(batch.rows.size, self._leases)
        if residency.is_whole:
            gather.read(batch, out, threads, items)
            return DONE
        is_large = items is None and batch.rows.size > _MOST_AT_ONCE
        if is_large and gather.begins_resident(batch, residency.pages):
            missing, resident = gather.copy_resident(batch, out, residency.pages, threads)
            come = self._begin_missing(flights, batch, out, threads, missing) if missing.size else missing
            waiting = np.concatenate((resident, come))
        else:
            waiting = self._begin_missing(flights, batch, out, threads, items)
        if waiting.size:
            flights.attempt(lambda: gather.read(batch, out, threads, waiting))
        return flights

    def _begin_missing(
        self, flights: _Flights, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None
    ) -> Items:
        """Begin to read what is out of memory among some records, or all; gives those that are in memory."""
        gather, residency = self._made[self.name]
        addresses = gather.placed.addresses(batch)
        if items is not None:
            addresses = np.ascontiguousarray(addresses[:, items])
        kinds, n_missing, n_again = residency.part(addresses)
        if n_missing and self._is_outdated(addresses, kinds, n_missing, residency):
            kinds, n_missing, _ = residency.part(addresses)
            # The second look is no second miss.
            kinds[kinds == AGAIN], n_again = MISSING, 0
        if n_missing == kinds.size and not n_again:
            self._read_missing(flights, batch, out, threads, items, _NONE)
            if items is None and type(batch) is Batch and n_missing <= SHORT_ROWS:
                self._expect_first_misses(residency)
            return _NONE
        if n_missing <= _FEW_MISSING and 3 * n_missing <= 2 * kinds.size:
            residency.fetch_pages(addresses, kinds)
            flights.landed = lambda: gather.read(batch, out, threads, items)
            return _NONE
        missing, again, waiting = (np.flatnonzero(kinds == kind) for kind in (MISSING, AGAIN, WAITING))
        if items is not None:
            missing, again, waiting = items[missing], items[again], items[waiting]
        if n_missing:
            self._read_missing(flights, batch, out, threads, missing, again)
        return waiting

    def _open(self) -> tuple[GatherEngine, Residency] | None:
        """The mapping and what is in memory of it; None where files cannot be mapped."""
        made = self._made.get(self.name)
        if made is None and not self._is_unmapped:
            try:
                gather = self._engine_of(GatherEngine.name)
            except BackendUnavailable:
                self._is_unmapped = True
                return None
            assert isinstance(gather, GatherEngine)
            residency = Residency(self._table, gather)
            if residency.is_answered:
                residency.first_look()
            # Two threads may have made one each: the first to arrive is kept.
            made = self._made.setdefault(self.name, (gather, residency))
            self.residency = made[1]
            if residency.is_answered:
                self._warm_path = gather.warm_path(made[1].pages, made[1].whole, rows_a_check=ROWS_A_CHECK)
                self.warm = self._warm_path
        return made

    def _expect_first_misses(self, residency: Residency) -> None:
        """The next small batch is tried as one of which nothing is in memory, as this one; and so on until one is
        not."""
        short = self._engine_for_missing().warm
        if self._first_misses is None and isinstance(short, ShortReads) and self._warm_path is not None:
            first = short.of_first_misses(*residency.maps)
            self._first_misses = None if first is None else FirstMisses(self, first)
        if self._first_misses is not None and residency.is_known:
            self.warm = self._first_misses

    def expect_anything(self) -> None:
        """The next small batch is tried as one that is in memory."""
        self.warm = self._warm_path

    def count_first_misses(self, n_rows: int) -> None:
        """So many rows were read by `FirstMisses`."""
        self._n_first_misses += n_rows
        if self._n_first_misses < _MISSED_A_CHECK:
            return
        n_rows, self._n_first_misses = self._n_first_misses, 0
        _, residency = self._made[self.name]
        residency.count_missed(n_rows)
        residency.count(n_rows, self._leases)

    def look_up_misses(self, batch: Batch) -> None:
        """A record of this batch was believed out of memory and is in it: look the others up too, and ask for a
        refresh."""
        self.expect_anything()
        _, residency = self._made[self.name]
        # Closed meanwhile: nobody will ask.
        with contextlib.suppress(InvalidInput), self._leases:
            residency.look_up(batch)
            residency.ask()

    def _check(self, batch: Batch, items: Items | None, residency: Residency) -> None:
        """Hold the map against the system: every row while nothing else is known, then one now and again."""
        n_rows = batch.rows.size
        self._rows_until_check -= n_rows
        if not residency.is_known:
            residency.look_up(batch, items)
            return
        n_contradicted = self._warm_contradictions()
        # It is asked once in so many rows, none of which has come this way.
        residency.count(n_contradicted * ROWS_A_CHECK, self._leases)
        is_contradicted = n_contradicted > 0
        if self._rows_until_check <= 0:
            n_samples = min(_MOST_CHECKED, 1 + n_rows // ROWS_A_CHECK)
            self._rows_until_check = ROWS_A_CHECK
            self._n_checks += 1
            is_contradicted |= residency.is_contradicted(batch, n_samples, self._n_checks)
        if is_contradicted:
            residency.look_up(batch, items)
            residency.ask()

    def _warm_contradictions(self) -> int:
        """How often, since it was last asked, the compiled path for small batches met a record that is not where the
        map says."""
        before, warm = self._n_contradicted, self._warm_path
        self._n_contradicted = 0 if warm is None else warm.n_contradicted
        return max(0, self._n_contradicted - before)

    def _is_outdated(
        self, addresses: NDArray[np.uint64], kinds: NDArray[np.uint8], n_missing: int, residency: Residency
    ) -> bool:
        """Look some missing rows up; if one is in memory after all, the others too, and ask for a refresh."""
        self._missed_until_check -= n_missing
        if self._missed_until_check > 0 or not residency.is_known:
            return False
        self._missed_until_check = _MISSED_A_CHECK
        missing = np.flatnonzero(kinds != WAITING)
        step = max(_MISSED_A_CHECK, n_missing // _MOST_MISSED_CHECKED)
        chosen = missing[self._n_checks % min(step, n_missing) :: step]
        _, n_come = residency.look_up_at(np.ascontiguousarray(addresses[:, chosen]))
        if n_come:
            residency.look_up_at(np.ascontiguousarray(addresses[:, missing]))
            residency.ask()
        return n_come > 0

    def _read_missing(
        self, flights: _Flights, batch: Batch, out: NDArray[np.uint8], threads: int | None, missing: Items | None,
        again: Items,
    ) -> None:  # fmt: skip
        """Begin to read records, all where `missing` is None; those of `again` so that they are in memory then."""
        _, residency = self._made[self.name]
        reader = self._engine_for_missing()
        if reader.name in _FILLING:
            kept = None if missing is None else np.concatenate((missing, again))
            flights.begin(reader, batch, out, threads, kept)
        else:
            kept = again
            flights.begin(reader, batch, out, threads, missing)
            flights.begin(self._engine_of(_KEEPING), batch, out, threads, again)
        if kept is None or kept.size:
            flights.landed = lambda: residency.mark(batch, kept)

    def close(self) -> None:
        """See `Engine`. A refresh under way ends early."""
        if self.residency is not None:
            self.residency.stop()
        super().close()

    def _release(self) -> None:
        self.warm = self._warm_path = self._first_misses = None

    def _engine_for_missing(self) -> Engine:
        if self._missing_engine is None:
            rungs = first_usable(self._table, self._engine_of, READ_ORDER)
            if not rungs[-1].is_usable:
                reasons = "; ".join(f"{rung.reason}" for rung in rungs)
                raise BackendUnavailable(
                    f"engine {self.name}: found no way to read {self._table.path}, expected one of "
                    f"{', '.join(READ_ORDER)} to work ({reasons}); copy the table to a local disk"
                )
            self.rungs, self._missing_engine = rungs, rungs[-1].engine
        return self._engine_of(self._missing_engine)


class FirstMisses:
    """The short way to small batches of which nothing is in memory and nothing was missed before, as the maps have it:
    one compiled call, which looks at the maps and reads. `AutoEngine` has it in place of that to resident ones while
    such batches come. Whatever it declines puts the other one back, and goes the long way.
    """

    def __init__(self, auto: AutoEngine, short: ShortReads) -> None:
        self._auto, self._short = auto, short

    def fetch_tokens(self, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> int:
        """As `ShortReads.fetch_tokens`."""
        if self._auto.warm is None:
            return CLOSED
        answer = self._short.fetch_tokens(rows, out)
        if answer == STALE:
            self._auto.look_up_misses(Batch(rows.reshape(-1), rows.shape[2], 0, rows.shape[1]))
        return self._ended(answer, rows.size)

    def fetch_rows(self, layer: int, rows: NDArray[np.int64], out: NDArray[np.uint8]) -> int:
        """As `ShortReads.fetch_rows`."""
        if self._auto.warm is None:
            return CLOSED
        answer = self._short.fetch_rows(layer, rows, out)
        if answer == STALE:
            self._auto.look_up_misses(Batch(rows, rows.size, layer, 1))
        return self._ended(answer, rows.size)

    def _ended(self, answer: int, n_rows: int) -> int:
        if answer not in (READ, STALE):
            self._auto.expect_anything()
            return answer
        self._auto.count_first_misses(n_rows)
        return READ


class _Flights:
    """Reads under way together. Whatever fails, each is finished once, and the first error is raised.

    Where its caller waits for them anyway, a whole batch that one engine reads is read at once, since engines have
    shorter ways for that than to begin and to finish.
    """

    def __init__(self, *, is_waited_for: bool = False) -> None:
        self._is_waited_for = is_waited_for
        self._under_way: list[Pending] = []
        self.landed: Callable[[], object] | None = None

    def begin(
        self, engine: Engine, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None
    ) -> None:
        """Begin one more."""
        if items is None and self._is_waited_for:
            self.attempt(lambda: engine.read(batch, out, threads))
        elif items is None or items.size:
            self.attempt(lambda: self._under_way.append(engine.begin(batch, out, threads, items)))

    def attempt(self, function: Callable[[], object]) -> None:
        """Call a function; if it fails, finish what is under way."""
        try:
            function()
        except BaseException:
            with contextlib.suppress(Exception):
                self.finish()
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
        if self.landed is not None:
            self.landed()
