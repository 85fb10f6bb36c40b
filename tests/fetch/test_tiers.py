"""Tiers give the bytes of the engine behind them, and keep the rows that the plain-Python policy keeps."""

from __future__ import annotations

import os
import threading
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_table import make_table

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.fetch.engines.engine import DONE, Engine
from engram_tables.fetch.placement import Batch
from engram_tables.fetch.reference import read_rows
from engram_tables.fetch.table import Table
from engram_tables.fetch.tiers.budget import CacheShape, MemoryTier, TierPlan, shape_for
from engram_tables.fetch.tiers.cache_kernels import EMPTY, HEADER_BYTES, WAYS
from engram_tables.fetch.tiers.hot_list import HotList, write_hot_list
from engram_tables.fetch.tiers.reference import ReferenceCache
from engram_tables.fetch.tiers.sets import PIN, PRELOAD, SlotMap
from engram_tables.fetch.tiers.tiered import TieredEngine, make_tiers

ROW_BYTES = 264
SET_BYTES = HEADER_BYTES + WAYS * ROW_BYTES
FIXTURES_ARE_FINE = [HealthCheck.function_scoped_fixture]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with make_table(tmp_path_factory.mktemp("table"), n_rows=(1000, 777), rows_per_shard=300) as made:
        yield made
    _read.clear()


_read: dict[int, list[Any]] = {}


def records_of(table: Table, rows: Any) -> Any:
    """What the slow twin reads, uint8 (tokens, layers, columns, row_bytes); every row is read once only."""
    if id(table) not in _read:
        layers = table.spec.layers
        _read[id(table)] = [read_rows(table.stored, of.layer_id, np.arange(of.n_rows)) for of in layers]
    return np.stack([of_layer[rows[:, layer]] for layer, of_layer in enumerate(_read[id(table)])], axis=1)


def tier_of(table: Table, n_sets: int, *, behind: str = "pread", hot: HotList | None = None, **options: Any) -> Any:
    tier = MemoryTier(budget_bytes=n_sets * SET_BYTES, huge_pages=False, **options)
    return TieredEngine(table.stored, table.places, table.engine(behind), tier, hot_list=hot)


def addresses(rows: Any) -> Addresses:
    rows = np.asarray(rows, np.int64)
    return Addresses(rows=rows, keys=np.zeros((*rows.shape[:2], 1), np.uint64))


def draw_rows(table: Table, rng: np.random.Generator, n_tokens: int, *, skew: float = 3.0) -> Any:
    """int64 (tokens, layers, columns): few rows often, many seldom."""
    shape = n_tokens, table.spec.n_columns
    return np.stack(
        [(layer.n_rows * rng.random(shape) ** skew).astype(np.int64) for layer in table.spec.layers], axis=1
    )


def described(engine: TieredEngine | SlotMap) -> list[tuple[Any, ...]]:
    """Every set as its 64 bytes say: tags, uses, pinned, ghosts, hand, misses; no set is being written."""
    shape = engine.shape
    if isinstance(engine, SlotMap):
        headers = engine._headers.reshape(-1, HEADER_BYTES)
    else:
        start = engine.memory.address - np.frombuffer(engine.memory._block, np.uint8).ctypes.data
        headers = np.frombuffer(engine.memory._block, np.uint8)[start : start + shape.header_bytes].reshape(-1, 64)
    found = []
    for header in headers:
        words = header.view(np.uint16)
        uses = int(header[48:56].view(np.uint64)[0])
        assert header[56:60].view(np.uint32)[0] % 2 == 0
        tags = [None if tag == EMPTY else tag for tag in words[:16].tolist()]
        ghosts = [tag for tag in words[16:24].tolist() if tag != EMPTY]
        pinned = [bool(words[30] >> way & 1) for way in range(WAYS)]
        of_way = [uses >> 4 * way & 15 for way in range(WAYS)]
        found.append((tags, of_way, pinned, ghosts, int(words[31]) & 15, int(words[31]) >> 4))
    return found


def expected(cache: ReferenceCache) -> list[tuple[Any, ...]]:
    return [(s.tags, s.uses, s.pinned, s.ghosts, s.hand, s.n_misses) for s in cache.sets]


# The policy, access by access.


@given(
    n_sets=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    batches=st.lists(st.integers(1, 60), min_size=1, max_size=40),
    skew=st.sampled_from([1.0, 3.0, 8.0]),
    n_hot=st.sampled_from([0, 0, 5, 200]),
)
@settings(deadline=None, max_examples=12, suppress_health_check=FIXTURES_ARE_FINE)
@example(n_sets=1, seed=0, batches=[20] * 40, skew=1.0, n_hot=200)
def test_keeps_the_rows_that_the_slow_twin_keeps(
    table: Table, n_sets: int, seed: int, batches: list[int], skew: float, n_hot: int
) -> None:
    rng = np.random.default_rng(seed)
    n_rows = [layer.n_rows for layer in table.spec.layers]
    twin = ReferenceCache(n_sets=n_sets, n_rows=n_rows)
    hot = None
    if n_hot:
        layers = rng.integers(0, 2, n_hot)
        pairs = np.unique(np.stack([layers, rng.integers(0, np.array(n_rows)[layers])], axis=1), axis=0)
        hot = HotList.of(pairs[:, 0] + 1, pairs[:, 1], rng.integers(0, 9, len(pairs)))
    with tier_of(table, n_sets, hot=hot) as engine:
        if hot is not None:
            preload_twin(twin, hot, n_pinned=engine.tier.most_pinned_bytes // ROW_BYTES, n_slots=n_sets * WAYS)
        assert described(engine) == expected(twin)
        n_found = n_asked = 0
        for nth, n_tokens in enumerate(batches):
            rows = draw_rows(table, rng, n_tokens, skew=skew)
            out = table.fetch(addresses(rows), engine=engine, threads=1)
            assert np.array_equal(out, records_of(table, rows))
            order = [
                (layer, row) for token in rows.tolist() for layer, of_layer in enumerate(token) for row in of_layer
            ]
            n_found, n_asked = n_found + sum(twin.fetch(order)), n_asked + len(order)
            if nth % 5 == 0:
                assert described(engine) == expected(twin)
        assert described(engine) == expected(twin)
        counts = engine.counts()
        assert (counts.hits_pinned + counts.hits_cached, counts.misses) == (n_found, n_asked - n_found)
        assert counts.busy == 0
        n_here = sum(tag is not None for of_set in twin.sets for tag in of_set.tags)
        assert counts.stored - counts.thrown_out == n_here


def preload_twin(twin: ReferenceCache, hot: HotList, *, n_pinned: int, n_slots: int) -> None:
    rows = list(zip((hot.layer_ids - 1).tolist(), hot.rows.tolist(), strict=True))
    done = n_in = 0
    while done < len(rows) and n_in < min(n_pinned, n_slots):
        n_in += twin.pin(*rows[done])
        done += 1
    for row in rows[done:]:
        if n_in == n_slots:
            break
        n_in += twin.preload(*row)


@given(n_sets=st.integers(1, 30), seed=st.integers(0, 2**32), n_batches=st.integers(1, 30))
@settings(deadline=None, max_examples=15)
def test_a_slot_map_keeps_them_too_and_names_no_slot_twice(n_sets: int, seed: int, n_batches: int) -> None:
    rng = np.random.default_rng(seed)
    n_rows = (400, 300)
    twin = ReferenceCache(n_sets=n_sets, n_rows=n_rows)
    slot_map = SlotMap(CacheShape(n_sets=n_sets, slot_bytes=16), n_rows=n_rows)
    memory = np.full((n_sets * WAYS, 2), -1, np.int64)
    for _ in range(n_batches):
        layers = np.tile([0, 0, 1, 1], rng.integers(1, 20))
        rows = rng.integers(0, 300, layers.size)
        pairs = np.stack([layers, rows], axis=1)
        batch = Batch(rows, 2, 0, 2)
        slots = slot_map.find(batch)
        is_here = slots >= 0
        assert np.array_equal(memory[slots[is_here]], pairs[is_here])
        assert twin.fetch(map(tuple, pairs.tolist())) == is_here.tolist()
        missing = np.flatnonzero(~is_here)
        some = slot_map.find(batch, missing[:0])
        assert some.size == 0
        claimed = slot_map.claim(batch, missing)
        kept = claimed >= 0
        assert np.unique(claimed[kept]).size == np.count_nonzero(kept)
        memory[claimed[kept]] = pairs[missing[kept]]
    assert described(slot_map) == expected(twin)
    assert slot_map.counts().busy == 0


def test_a_slot_map_pins_and_preloads() -> None:
    slot_map = SlotMap(CacheShape(n_sets=1, slot_bytes=16), n_rows=(100,))
    rows = np.arange(20)
    batch = Batch(rows, 20, 0, 1)
    assert slot_map.claim(batch, rows[:4], PIN).tolist() == [0, 1, 2, 3]
    assert slot_map.claim(batch, rows[2:20], PRELOAD).tolist() == [-1, -1, *range(4, 16), -1, -1, -1, -1]
    slot_map.claim(batch, rows[:0])
    assert slot_map.find(batch, np.array([19, 3])).tolist() == [-1, 3]
    assert slot_map.counts()[:3] == (1, 0, 1)


def test_every_row_has_a_place_of_its_own() -> None:
    for n_rows, n_sets in (((1,), 1), ((65_535,), 1), ((1000, 777), 112), ((50_000, 60_001), 7), ((2_000_003,), 31)):
        twin = ReferenceCache(n_sets=n_sets, n_rows=n_rows)
        seen = set()
        for layer, n in enumerate(n_rows):
            for row in range(0, n, max(1, n // 5000)):
                of_set, tag = twin._home(layer, row)
                assert 0 <= tag < EMPTY
                seen.add((id(of_set), tag))
        assert len(seen) == sum(len(range(0, n, max(1, n // 5000))) for n in n_rows)


def test_a_scan_drives_out_nothing_that_is_used_often(table: Table) -> None:
    rng = np.random.default_rng(1)
    hot = rng.choice(300, 100, replace=False)
    with tier_of(table, 16) as engine:
        for _ in range(20):
            table.fetch_rows(1, hot, engine=engine, threads=1)
        before = engine.counts()
        # Three times what the tier holds, each row once.
        table.fetch_rows(1, np.arange(300, 1000), engine=engine, threads=1)
        assert engine.counts().misses - before.misses == 700
        before = engine.counts()
        table.fetch_rows(1, hot, engine=engine, threads=1)
        assert engine.counts().hits_cached - before.hits_cached >= 95


def test_a_tier_that_holds_the_whole_table_misses_each_row_once(table: Table) -> None:
    with tier_of(table, 10_000) as engine:
        assert engine.shape.n_sets == -(-1777 // WAYS)
        for layer_id, n_rows in ((1, 1000), (2, 777)):
            for _ in range(3):
                table.fetch_rows(layer_id, np.arange(n_rows), engine=engine)
        counts = engine.counts()
        assert (counts.misses, counts.thrown_out, counts.hits_cached) == (1777, 0, 2 * 1777)


# The same bytes, however they are asked for.


@given(
    row_bytes=st.sampled_from([63, 264]),
    seed=st.integers(0, 2**32),
    n_sets=st.integers(1, 30),
    behind=st.sampled_from(["gather", "pread", "mapping", "auto"]),
    threads=st.sampled_from([None, 1, 3]),
)
@settings(deadline=None, max_examples=8, suppress_health_check=FIXTURES_ARE_FINE)
def test_same_bytes_as_the_slow_twin(
    tmp_path_factory: pytest.TempPathFactory, row_bytes: int, seed: int, n_sets: int, behind: str, threads: int | None
) -> None:
    rng = np.random.default_rng(seed)
    root = tmp_path_factory.mktemp("table")
    _read.clear()
    with make_table(root, row_bytes=row_bytes, n_rows=(300, 1, 200), seed=seed) as table:
        tier = MemoryTier(budget_bytes=n_sets * (64 + 16 * (row_bytes + 7)), huge_pages=False)
        with TieredEngine(table.stored, table.places, table.engine(behind), tier) as engine:
            for n_tokens in (0, 1, 5, 31, 2000):
                rows = draw_rows(table, rng, n_tokens)
                records = records_of(table, rows)
                assert np.array_equal(table.fetch(addresses(rows), engine=engine, threads=threads), records)
                out = np.zeros_like(records)
                table.begin(addresses(rows), out, engine, threads=threads).finish()
                assert np.array_equal(out, records)
                flat = np.ascontiguousarray(rows).reshape(-1)
                items = rng.permutation(flat.size)[: flat.size // 2]
                out = np.zeros((flat.size, row_bytes), np.uint8)
                engine.read(Batch(flat, table.spec.n_columns, 0, 3), out, threads, items)
                others = np.setdiff1d(np.arange(flat.size), items)
                assert np.array_equal(out[items], records.reshape(out.shape)[items])
                assert not out[others].any()
    _read.clear()


def test_more_rows_than_one_thread_takes(table: Table) -> None:
    rng = np.random.default_rng(3)
    with tier_of(table, 60) as engine:
        for _ in range(4):
            rows = draw_rows(table, rng, 9000)
            assert np.array_equal(table.fetch(addresses(rows), engine=engine, threads=4), records_of(table, rows))
        counts = engine.counts()
        assert counts.hits_pinned + counts.hits_cached + counts.misses == 4 * 9000 * 6


def test_threads_share_a_tier_under_pressure(table: Table) -> None:
    wrong: list[str] = []
    with tier_of(table, 3, behind="gather") as engine:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(60):
                rows = draw_rows(table, rng, int(rng.integers(1, 400)), skew=float(rng.integers(1, 6)))
                found = table.fetch(addresses(rows), engine=engine, threads=1)
                if not np.array_equal(found, records_of(table, rows)):
                    wrong.append(f"seed {seed}")

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        described(engine)
        counts = engine.counts()
        assert counts.stored - counts.thrown_out <= 3 * WAYS


class TornBehind(Engine):
    """Another thread's write, put into the very middle of a read: it rewrites sets while their rows are missed."""

    name = "torn"

    def __init__(self, table: Table, meanwhile: Any) -> None:
        super().__init__(table.stored)
        self._inner, self._meanwhile = table.engine("pread"), meanwhile

    def _read(self, batch: Batch, out: Any, threads: int | None, items: Any) -> None:
        self._inner.read(batch, out, threads, items)
        self._meanwhile()


def test_a_set_that_is_being_written_is_neither_read_nor_written(table: Table) -> None:
    rows = np.arange(100)
    with tier_of(table, 1) as engine:
        records = table.fetch_rows(1, rows[:16], engine=engine)
        view = np.frombuffer(engine.memory._block, np.uint8)
        version = view[engine.memory.address - view.ctypes.data + 56 :][:4].view(np.uint32)
        version[0] += 1
        before = engine.counts()
        assert np.array_equal(table.fetch_rows(1, rows[:16], engine=engine), records)
        counts = engine.counts()
        assert (counts.misses - before.misses, counts.busy - before.busy) == (16, 16)
        assert counts.stored == before.stored
        version[0] += 1
        table.fetch_rows(1, rows[:16], engine=engine)
        assert engine.counts().hits_cached - before.hits_cached == 16
        del view, version


def test_rows_that_come_in_while_they_are_read_are_kept_once(table: Table) -> None:
    tier = MemoryTier(budget_bytes=SET_BYTES, huge_pages=False)
    rows = np.arange(8)

    calls: list[int] = []

    def meanwhile() -> None:
        calls.append(1)
        if len(calls) == 1:
            table.fetch_rows(1, rows[4:], engine=engine, threads=1)

    behind = TornBehind(table, meanwhile)
    with closing(behind), TieredEngine(table.stored, table.places, behind, tier) as engine:
        expected_records = table.fetch_rows(1, rows, engine="mapping")
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine, threads=1), expected_records)
        ((tags, uses, *_),) = described(engine)
        assert sorted(tag for tag in tags if tag is not None) == rows.tolist()
        assert sum(uses) == 4


# Forks, closing, errors.


def test_a_child_has_the_rows_and_the_right_bytes(table: Table) -> None:
    rng = np.random.default_rng(5)
    stop = threading.Event()
    wrong: list[int] = []
    with tier_of(table, 20, behind="gather") as engine:

        def churn(seed: int) -> None:
            own = np.random.default_rng(seed)
            while not stop.is_set():
                rows = draw_rows(table, own, 200, skew=1.0)
                if not np.array_equal(table.fetch(addresses(rows), engine=engine), records_of(table, rows)):
                    wrong.append(seed)

        threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(8):
                rows = draw_rows(table, rng, 100)
                records = records_of(table, rows)
                pid = os.fork()
                if pid == 0:
                    code = 3
                    try:
                        described(engine)
                        found = table.fetch(addresses(rows), engine=engine)
                        again = table.fetch(addresses(rows), engine=engine)
                        code = 0 if np.array_equal(found, records) and np.array_equal(again, records) else 4
                    finally:
                        os._exit(code)
                assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not wrong


def test_closed_at_once_and_for_good(table: Table) -> None:
    undone: list[tuple[int, int]] = []

    def register(address: int, n_bytes: int) -> Any:
        return lambda: undone.append((address, n_bytes))

    engine = tier_of(table, 4, register=register)
    span = engine.memory.address, engine.shape.total_bytes
    table.fetch_rows(1, [1, 2, 3], engine=engine)
    engine.close()
    assert undone == [span]
    assert engine.memory._block.closed
    engine.close()
    assert undone == [span]
    with pytest.raises(InvalidInput, match="closed already"):
        table.fetch_rows(1, [1], engine=engine)
    table.fetch_rows(1, [1], engine="pread")
    assert engine.counts().misses == 3


def test_what_the_engine_behind_raises_leaves_the_tier_whole(table: Table) -> None:
    class Failing(Engine):
        name = "failing"
        is_broken = True

        def _read(self, batch: Batch, out: Any, threads: int | None, items: Any) -> None:
            if self.is_broken:
                out[items] = 77
                raise OSError(5, "Input/output error")
            table.engine("pread").read(batch, out, threads, items)

        def _begin(self, batch: Batch, out: Any, threads: int | None, items: Any) -> Any:
            return SimpleNamespace(finish=lambda: self._read(batch, out, threads, items))

    tier = MemoryTier(budget_bytes=4 * SET_BYTES, huge_pages=False)
    behind = Failing(table.stored)
    rows = np.arange(20).reshape(-1)
    with TieredEngine(table.stored, table.places, behind, tier, owns_behind=True) as engine:
        with pytest.raises(OSError, match="Input/output"):
            table.fetch_rows(1, rows, engine=engine)
        out = np.zeros((20, ROW_BYTES), np.uint8)
        pending = engine.begin(Batch(rows, 20, 0, 1), out)
        with pytest.raises(OSError, match="Input/output"):
            pending.finish()
        assert engine.counts().stored == 0
        behind.is_broken = False
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine), table.fetch_rows(1, rows, engine="mapping"))
        pending = engine.begin(Batch(rows, 20, 0, 1), out)
        assert pending._pending is DONE  # type: ignore[attr-defined]
        pending.finish()
    with pytest.raises(InvalidInput, match="closed already"):
        behind.read(Batch(rows, 20, 0, 1), out)


# Plans: budgets, several tiers, hot lists.


def test_budgets_that_cannot_be() -> None:
    with pytest.raises(InvalidInput, match="budget of 0 bytes"):
        MemoryTier(budget_bytes=0)
    with pytest.raises(InvalidInput, match="expected 0 to the budget"):
        MemoryTier(budget_bytes=10, pinned_bytes=11)
    with pytest.raises(InvalidInput, match="memory node -1"):
        MemoryTier(budget_bytes=10, node=-1)
    with pytest.raises(InvalidInput, match="found none"):
        TierPlan(tiers=())
    rows = 10 * EMPTY
    with pytest.raises(InvalidInput, match=f"expected {10 * SET_BYTES} or more"):
        shape_for(10 * SET_BYTES - 1, n_rows=[rows], row_bytes=ROW_BYTES)
    assert shape_for(10 * SET_BYTES, n_rows=[rows], row_bytes=ROW_BYTES).n_sets == 10
    with pytest.raises(InvalidInput, match=f"expected {11 * SET_BYTES} or more"):
        shape_for(10 * SET_BYTES, n_rows=[rows, 1], row_bytes=ROW_BYTES)
    for budget in (SET_BYTES, SET_BYTES + 1, 12345678):
        shape = shape_for(budget, n_rows=[10**6], row_bytes=ROW_BYTES) if budget > 16 * SET_BYTES else None
        assert shape is None or budget - SET_BYTES < shape.total_bytes <= budget


@pytest.mark.parametrize("pinned_bytes", [0, None, 12 * SET_BYTES])
def test_several_tiers_and_a_hot_list(table: Table, tmp_path: Path, pinned_bytes: int | None) -> None:
    rng = np.random.default_rng(2)
    order = rng.permutation(1000)
    hot = HotList.of(np.ones(1000), order, np.arange(1000)[::-1])
    path = tmp_path / "hot.parquet"
    write_hot_list(path, hot)
    near = MemoryTier(budget_bytes=12 * SET_BYTES, pinned_bytes=pinned_bytes, huge_pages=False)
    far = MemoryTier(budget_bytes=40 * SET_BYTES, huge_pages=False)
    plan = TierPlan(tiers=(near, far), hot_list=path)
    with make_tiers(table.stored, table.places, table.engine("pread"), plan) as engine:
        nearest, behind = engine.tiers()
        assert behind.counts()[:3] == (0, 0, 0)
        n_pinned = 0 if pinned_bytes == 0 else 12 * SET_BYTES // ROW_BYTES // (2 if pinned_bytes is None else 1)
        assert nearest.preloaded.pinned <= n_pinned
        assert nearest.preloaded.pinned >= 0.85 * min(n_pinned, 12 * WAYS)
        assert nearest.preloaded.pinned + nearest.preloaded.warm > 0.85 * 12 * WAYS
        assert sum(nearest.preloaded) == 1000
        records = table.fetch_rows(1, order, engine="mapping")
        for batch in (order[:100], order[100:192], order[192:600]):
            assert np.array_equal(
                table.fetch_rows(1, batch, engine=engine), table.fetch_rows(1, batch, engine="gather")
            )
        counts = engine.counts()
        n_hits = counts.hits_pinned + counts.hits_cached
        assert n_hits > 0.8 * 192
        assert behind.counts().hits_pinned + behind.counts().hits_cached > 0.5 * 408
        assert np.array_equal(table.fetch_rows(1, order, engine=engine), records)
    with pytest.raises(InvalidInput, match="closed already"):
        behind.read(Batch(order, 1000, 0, 1), records)
    table.engine("pread")


def test_rows_that_are_not_here_are_left_out_of_a_hot_list(tmp_path: Path) -> None:
    from made_table import make_files, one_part

    parts = one_part("packed", ROW_BYTES)
    with make_files(tmp_path, n_rows=[100], parts=parts, cuts=[[[(10, 20), (50, 5)]]]) as part:
        hot = HotList.of(np.ones(100), np.arange(100), np.ones(100))
        tier = MemoryTier(budget_bytes=10 * SET_BYTES, huge_pages=False)
        with TieredEngine(part.stored, part.places, part.engine("pread"), tier, hot_list=hot) as engine:
            assert engine.preloaded.not_here == 75
            assert engine.preloaded.pinned + engine.preloaded.warm == 25
            here = np.array([*range(10, 30), *range(50, 55)])
            found = part.fetch_rows(1, here, engine=engine)
            assert np.array_equal(found, part.fetch_rows(1, here, engine="mapping"))
            assert engine.counts().misses == 0


def test_a_hot_list_of_another_spec_or_table_is_refused(table: Table) -> None:
    hot = HotList.of([1, 2], [999, 777], [2, 1])
    with pytest.raises(InvalidInput, match="found row 777 of layer 2 at position 1"):
        tier_of(table, 4, hot=hot)
    with pytest.raises(InvalidInput, match="layer 3"):
        tier_of(table, 4, hot=HotList.of([3], [0], [1]))
    with pytest.raises(SpecMismatch, match="made for the spec of fingerprint abc"):
        HotList.of([1], [0], [1], fingerprint="abc").check_against(
            layer_ids=(1,), n_rows=np.array([5]), fingerprint="def"
        )


# Memory of a kind.


def test_a_tag_is_found_among_sixteen_wherever_it_stands() -> None:
    slot_map = SlotMap(CacheShape(n_sets=1, slot_bytes=8), n_rows=(EMPTY,))
    rows = np.array([0, 1, 65_534, 255, 256, 32_767, 32_768, 65_280, *range(1000, 1008)])
    batch = Batch(rows, rows.size, 0, 1)
    assert slot_map.claim(batch, np.arange(16)).tolist() == list(range(16))
    assert slot_map.find(batch).tolist() == list(range(16))
    others = np.setdiff1d(np.arange(EMPTY), rows)
    assert (slot_map.find(Batch(others, others.size, 0, 1)) == -1).all()
