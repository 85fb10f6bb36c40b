"""A tier of host memory in front of an engine: rows that are hot are copied from here, the others are read behind.

It knows no clock, and nothing of how the engine behind reads.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from engram_tables.fetch.engines.engine import DONE, Engine, Items, Pending
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.fetch.tiers.budget import MemoryTier, TierPlan, shape_for
from engram_tables.fetch.tiers.cache_kernels import STATE_LAYERS, look_up_kernel, store_kernel
from engram_tables.fetch.tiers.hot_list import HotList, read_hot_list
from engram_tables.fetch.tiers.placed_memory import PlacedMemory
from engram_tables.fetch.tiers.sets import ADMIT, ALL_ITEMS, PIN, PRELOAD, Sets, TierCounts, kernel_shape
from engram_tables.storage.row_files import RowFiles
from engram_tables.threads import resolve_threads, run_slices

_GRAIN = 4096
_ROWS_PRELOADED_AT_ONCE = 65_536


class Preloaded(NamedTuple):
    """What became of a hot list, in rows."""

    pinned: int
    """Stay for good"""
    warm: int
    """Lie in free ways, from which use may drive them"""
    left_out: int
    """Found their set full"""
    not_here: int
    """Are not among the rows that the table holds"""


class TieredEngine(Engine):
    """Records of a byte budget in host memory, and an engine behind for the others.

    What is missed is read as one list by the engine behind, straight into the caller's buffer, and then competes for a
    place here: `tiers.cache_kernels` states the rules. With one thread at a time the same batches leave the same rows
    here; the records are the same bytes with any number.

    Attributes
    ----------
    behind
        The engine that reads what is not here. The hot list is read through it, unless there is `preload_through`.
    preloaded
        What became of the hot list.

    Raises
    ------
    InvalidInput
        A budget under what `shape_for` needs, or a hot list with rows that the table does not have.
    SpecMismatch
        A hot list of another spec.
    BackendUnavailable, CapacityError
        See `PlacedMemory`.
    """

    name = "tiered"

    def __init__(
        self,
        table: RowFiles,
        places: Placements,
        behind: Engine,
        tier: MemoryTier,
        *,
        hot_list: HotList | None = None,
        preload_through: Engine | None = None,
        owns_behind: bool = False,
    ) -> None:
        super().__init__(table)
        n_rows = places.n_rows.tolist()
        self.tier, self.behind, self._owns_behind = tier, behind, owns_behind
        self.shape = shape_for(tier.budget_bytes, n_rows=n_rows, row_bytes=table.row_bytes)
        self._look_up, self._store = look_up_kernel(table.row_bytes), store_kernel(table.row_bytes)
        if hot_list is not None:
            fingerprint = getattr(table.spec, "fingerprint", None)
            hot_list.check_against(layer_ids=table.layer_ids, n_rows=places.n_rows, fingerprint=fingerprint)
        self.memory = PlacedMemory(
            self.shape.total_bytes, node=tier.node, is_locked=tier.is_locked, huge_pages=tier.huge_pages,
            register=tier.register,
        )  # fmt: skip
        address = self.memory.address
        self._sets = Sets(self.shape, n_rows=n_rows, headers=address, slots=address + self.shape.header_bytes)
        self._state = self._sets.state
        self._writers = _Writers()
        _all.add(self)
        self.preloaded = Preloaded(0, 0, 0, 0)
        try:
            if hot_list is not None:
                self.preloaded = self._preload(table, hot_list, preload_through or behind)
        except BaseException:
            self.memory.close()
            raise

    def counts(self) -> TierCounts:
        """What has been done so far."""
        return self._sets.counts()

    def tiers(self) -> tuple[TieredEngine, ...]:
        """This tier and those behind it, the nearest first."""
        return (self, *(self.behind.tiers() if isinstance(self.behind, TieredEngine) else ()))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        missing = self._copy_hits(batch, out, threads, items)
        if missing.size:
            self.behind.read(batch, out, threads, missing)
            self._admit(batch, out, threads, missing)

    def _begin(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> Pending:
        missing = self._copy_hits(batch, out, threads, items)
        if not missing.size:
            return DONE
        pending = self.behind.begin(batch, out, threads, missing)
        return _Filling(pending, lambda: self._admit(batch, out, threads, missing))

    def _copy_hits(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> Items:
        """Copy what is here; the items that are not, in order."""
        n_items = batch.rows.size if items is None else items.size
        if not n_items:
            return ALL_ITEMS
        chosen, output = ALL_ITEMS if items is None else items, np.uint64(out.ctypes.data)
        missing, shape = np.empty(n_items, np.int64), kernel_shape(batch)
        if n_items < 2 * _GRAIN:
            n = self._look_up(batch.rows, chosen, 0, n_items, shape, self._state, output, missing)
            return missing[:n]
        found: list[tuple[int, int]] = []

        def look_up(start: int, stop: int) -> None:
            n = self._look_up(batch.rows, chosen, start, stop, shape, self._state, output, missing)
            found.append((start, int(n)))

        run_slices(look_up, n_items, threads=resolve_threads(threads), grain=_GRAIN)
        if len(found) == 1:
            return missing[: found[0][1]]
        return np.concatenate([missing[start : start + n] for start, n in sorted(found)])

    def _admit(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items) -> None:
        records, shape = np.uint64(out.ctypes.data), kernel_shape(batch)

        def store(start: int, stop: int) -> None:
            self._store(batch.rows, items, start, stop, shape, self._state, records, ADMIT, _NO_OUTCOME, stop)

        with self._writers.at_work():
            run_slices(store, items.size, threads=resolve_threads(threads), grain=_GRAIN)

    def _preload(self, table: RowFiles, hot: HotList, source: Engine) -> Preloaded:
        """Pin rows while the budget for that lasts, then fill free ways, in the list's order."""
        order = np.flatnonzero(_is_owned(table, hot))
        most_pinned = min(self.tier.most_pinned_bytes // self.shape.slot_bytes, self.shape.n_slots)
        n_pinned, done = self._take_in(table, hot, order, source, PIN, most_pinned)
        n_warm, _ = self._take_in(table, hot, order[done:], source, PRELOAD, self.shape.n_slots - n_pinned)
        return Preloaded(n_pinned, n_warm, order.size - n_pinned - n_warm, len(hot) - order.size)

    def _take_in(
        self, table: RowFiles, hot: HotList, order: NDArray[np.intp], source: Engine, mode: int, limit: int
    ) -> tuple[int, int]:
        """Read and store rows of the list until `limit` are in; how many are, and how many were looked at."""
        n_in = done = 0
        first_keys = self._state[STATE_LAYERS:].astype(np.int64)
        while done < order.size and n_in < limit:
            chosen = order[done : done + _ROWS_PRELOADED_AT_ONCE]
            records = np.empty((chosen.size, table.row_bytes), np.uint8)
            keys = hot.rows[chosen]
            for layer, layer_id in enumerate(table.layer_ids):
                of_layer = np.flatnonzero(hot.layer_ids[chosen] == layer_id)
                if of_layer.size:
                    found = np.empty((of_layer.size, table.row_bytes), np.uint8)
                    source.read(Batch(keys[of_layer], of_layer.size, layer, 1), found)
                    records[of_layer] = found
                    keys[of_layer] += first_keys[layer]
            outcome = np.zeros(chosen.size, np.uint8)
            # Keys count from the first layer's first row: so the kernel takes all layers in one call, in order.
            looked_at = self._store(
                keys, np.arange(chosen.size), 0, chosen.size, (1, 0, 1), self._state, np.uint64(records.ctypes.data),
                mode, outcome, limit - n_in,
            )  # fmt: skip
            n_in, done = n_in + int(outcome.sum()), done + int(looked_at)
        return n_in, done

    def _release(self) -> None:
        self.memory.close()
        if self._owns_behind:
            self.behind.close()


def make_tiers(table: RowFiles, places: Placements, behind: Engine, plan: TierPlan) -> TieredEngine:
    """The plan's tiers in front of `behind`, which stays the caller's to close; the nearest one owns the others.

    Raises as `TieredEngine` and `read_hot_list`; then nothing is left open.
    """
    hot = read_hot_list(plan.hot_list) if isinstance(plan.hot_list, (str, Path)) else plan.hot_list
    # The nearest tier chooses from the list first, but the one behind it must be there to be read through.
    made: TieredEngine | None = None
    try:
        for nth, tier in reversed(list(enumerate(plan.tiers))):
            of_tier = hot if nth == 0 else _after(hot, plan.tiers[:nth], places, table.row_bytes)
            made = TieredEngine(
                table, places, made or behind, tier, hot_list=of_tier, preload_through=behind,
                owns_behind=made is not None,
            )  # fmt: skip
    except BaseException:
        if made is not None:
            made.close()
        raise
    assert made is not None
    return made


def _after(hot: HotList | None, nearer: tuple[MemoryTier, ...], places: Placements, row_bytes: int) -> HotList | None:
    """The part of the list that nearer tiers have no slots for, were their sets filled evenly."""
    if hot is None:
        return None
    n_rows = places.n_rows.tolist()
    start = sum(shape_for(tier.budget_bytes, n_rows=n_rows, row_bytes=row_bytes).n_slots for tier in nearer)
    return HotList(
        layer_ids=hot.layer_ids[start:], rows=hot.rows[start:], weights=hot.weights[start:],
        fingerprint=hot.fingerprint,
    )  # fmt: skip


def _is_owned(table: RowFiles, hot: HotList) -> NDArray[np.bool_]:
    is_here = np.zeros(len(hot), np.bool_)
    for layer_id in table.layer_ids:
        bounds = np.array(table.owned(layer_id), np.int64).reshape(-1)
        is_here |= (hot.layer_ids == layer_id) & (np.searchsorted(bounds, hot.rows, side="right") % 2 == 1)
    return is_here


_NO_OUTCOME = np.empty(0, np.uint8)


class _Filling:
    """A read under way behind a tier, whose records then compete for a place in it."""

    def __init__(self, pending: Pending, admit: Callable[[], None]) -> None:
        self._pending, self._admit = pending, admit

    def finish(self) -> None:
        """See `Pending`."""
        self._pending.finish()
        self._admit()


class _Writers:
    """Who is writing into the sets. A fork waits for them: the pages of a child are copied one by one, so that it
    might see a set's header from before a write and its slots from after it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_at_work = 0
        self._is_held = False

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around every write."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_held)
            self._n_at_work += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_at_work -= 1
                self._changed.notify_all()

    def hold(self) -> None:
        """Let no new writer in, and wait for those at work."""
        with self._changed:
            self._is_held = True
            self._changed.wait_for(lambda: self._n_at_work == 0)

    def let_go(self) -> None:
        """Let writers in again."""
        with self._changed:
            self._is_held = False
            self._changed.notify_all()

    def start_anew(self) -> None:
        """In a child, which has none of the parent's threads."""
        self.__init__()  # type: ignore[misc]


_all: weakref.WeakSet[TieredEngine] = weakref.WeakSet()
_held: list[_Writers] = []
_forks_at_a_time = threading.Lock()


def _before_fork() -> None:
    _forks_at_a_time.acquire()
    for engine in list(_all):
        engine._writers.hold()
        _held.append(engine._writers)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().let_go()
    _forks_at_a_time.release()


def _after_fork_in_child() -> None:
    while _held:
        _held.pop().start_anew()
    _forks_at_a_time.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
