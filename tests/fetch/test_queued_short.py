"""The short way of `uring` and `aio`: small batches in one compiled call, or an answer that sends them the long way."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_table import apart, make_files, make_table

from engram_tables.errors import BackendUnavailable, IncompleteTable, InvalidInput
from engram_tables.fetch.engines.aio import AioEngine
from engram_tables.fetch.engines.queue_kernels import FAILED
from engram_tables.fetch.engines.queued import SHORT_ROWS, QueueEngine
from engram_tables.fetch.engines.uring import UringEngine
from engram_tables.fetch.kernels import CLOSED, DONE, LARGE, MISFIT, OUTSIDE
from engram_tables.fetch.reference import read_batch, read_rows
from engram_tables.fetch.table import Table

ENGINES = pytest.mark.parametrize("engine_of", [UringEngine, AioEngine])


def usable(engine_of: Any, table: Table, **options: Any) -> QueueEngine:
    try:
        engine: QueueEngine = engine_of(table.stored, table.places, **options)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    return engine


@ENGINES
@given(data=st.data())
@settings(deadline=None, max_examples=25)
def test_the_long_and_the_slow_way_say_the_same(
    engine_of: Any, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Rows that are here, in cut layers, or not; duplicates; fewer slots than rows; every layout."""
    n_rows = [data.draw(st.integers(1, 300)) for _ in range(data.draw(st.integers(1, 3)))]
    cuts = []
    for n in n_rows:
        bounds = sorted(data.draw(st.sets(st.integers(0, n), max_size=4))) if data.draw(st.booleans()) else [0, n]
        cuts.append([[(start, stop - start) for start, stop in zip(bounds[::2], bounds[1::2], strict=False)]])
    if not any(of_layer[0] for of_layer in cuts):
        return
    parts = apart(data.draw(st.sampled_from([1, 63, 264, 9000])))
    rng, n_columns = np.random.default_rng(data.draw(st.integers(0, 2**32))), data.draw(st.integers(1, 4))
    root = tmp_path_factory.mktemp("table")
    with make_files(root, n_rows=n_rows, parts=parts, cuts=cuts, n_columns=n_columns) as table:
        engine = usable(engine_of, table, depth=data.draw(st.sampled_from([1, 3, 128])))
        assert engine.warm is not None
        shape = data.draw(st.integers(1, 10)), len(n_rows), n_columns
        rows = np.stack([rng.integers(0, n, (shape[0], n_columns)) for n in n_rows], axis=1)
        if data.draw(st.booleans()):
            rows.reshape(-1)[rng.integers(rows.size)] = data.draw(
                st.sampled_from([-1, 300, 2**62, -(2**63), 2**63 - 1])
            )
        owned = [table.stored.owned(layer_id) for layer_id in table.stored.layer_ids]
        is_here = [
            all(any(start <= row < stop for start, stop in owned[layer]) for row in rows[:, layer].flat)
            for layer in range(len(n_rows))
        ]
        out = np.full((*shape, table.row_bytes), 7, np.uint8)
        assert engine.warm.fetch_tokens(rows, out) == (DONE if all(is_here) else OUTSIDE)
        assert np.array_equal(out, read_batch(table.stored, rows) if all(is_here) else np.full_like(out, 7))
        layer = len(n_rows) - 1
        of_layer = np.ascontiguousarray(rows[:, layer]).reshape(-1)
        records = np.full((of_layer.size, table.row_bytes), 7, np.uint8)
        assert engine.warm.fetch_rows(layer, of_layer, records) == (DONE if is_here[layer] else OUTSIDE)
        if is_here[layer]:
            assert np.array_equal(records, read_rows(table.stored, layer + 1, of_layer))
        engine.close()


@ENGINES
@pytest.mark.parametrize("layout", ["packed", "page"])
@pytest.mark.parametrize("n_items", [1, 2, SHORT_ROWS, SHORT_ROWS + 1])
def test_sizes_about_the_limit(engine_of: Any, layout: str, n_items: int, tmp_path: Path) -> None:
    with make_table(tmp_path, layout=layout, n_rows=(3001,), rows_per_shard=1000) as table:
        engine = usable(engine_of, table)
        assert engine.warm is not None
        rows = np.random.default_rng(n_items).integers(0, 3001, n_items)
        out = np.full((n_items, 264), 7, np.uint8)
        assert engine.warm.fetch_rows(0, rows, out) == (DONE if n_items <= SHORT_ROWS else LARGE)
        assert np.array_equal(table.fetch_rows(1, rows, out, engine), read_rows(table.stored, 1, rows))
        engine.close()


@ENGINES
def test_what_is_unusual_is_declined_and_keeps_the_queue(engine_of: Any, tmp_path: Path) -> None:
    with make_table(tmp_path, n_columns=3) as table:
        engine = usable(engine_of, table)
        warm = engine.warm
        assert warm is not None
        rows, out = np.zeros((4, 2, 3), np.int64), np.full((4, 2, 3, 264), 7, np.uint8)
        assert warm.fetch_tokens(rows[:0], out[:0]) == LARGE
        for shape in ((4, 2, 3, 263), (4, 3, 2, 264), (3, 2, 3, 264)):
            assert warm.fetch_tokens(rows, np.empty(shape, np.uint8)) == MISFIT
        assert warm.fetch_tokens(np.zeros((4, 3, 2), np.int64), np.empty((4, 3, 2, 264), np.uint8)) == MISFIT
        for odd in (rows.astype(np.int32), rows[..., ::-1]):
            with pytest.raises(TypeError):
                warm.fetch_tokens(odd, out)
        assert (out == 7).all()
        (queue,) = engine._idle
        # Another thread has the only queue.
        assert engine.borrow() is queue
        assert warm.fetch_tokens(rows, out) not in (DONE, FAILED)
        engine.keep(queue)
        assert warm.fetch_tokens(rows, out) == DONE
        borrowed = engine.borrow()
        engine.close()
        assert borrowed is not None
        engine.keep(borrowed)
        assert engine._idle == []
        assert warm.fetch_tokens(rows, out) not in (DONE, FAILED)
        with pytest.raises(InvalidInput, match="closed already"):
            table.fetch_rows(1, np.zeros(3, np.int64), engine=engine)


@ENGINES
def test_a_read_that_fails_is_named_by_the_long_way(engine_of: Any, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(3000,)) as table:
        engine = usable(engine_of, table)
        assert engine.warm is not None
        rows, out = np.array([0, 2999]), np.full((2, 264), 7, np.uint8)
        os.truncate(table.stored.files[0].path, 8192)
        assert engine.warm.fetch_rows(0, rows, out) == FAILED
        with pytest.raises(IncompleteTable, match="was cut after the table was opened"):
            table.fetch_rows(1, rows, out, engine)
        assert np.array_equal(table.fetch_rows(1, rows[:1], engine=engine), read_rows(table.stored, 1, rows[:1]))
        engine.close()


@ENGINES
def test_closing_waits_for_the_kernels_behind_the_gate(engine_of: Any, tmp_path: Path) -> None:
    with make_table(tmp_path) as table:
        engine = usable(engine_of, table)
        gate = engine._leases.gate()
        gate[0] += 1  # as a kernel does
        closing = threading.Thread(target=engine.close)
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
        assert engine.warm is not None
        out = np.full((1, 264), 7, np.uint8)
        assert engine.warm.fetch_rows(0, np.zeros(1, np.int64), out) == CLOSED
        gate[0] -= 1
        closing.join(10)
        assert not closing.is_alive()
        assert (out == 7).all()


def test_records_in_several_parts_have_none(tmp_path: Path) -> None:
    with make_files(tmp_path, n_rows=[60], parts=apart(256, 8), cuts=[[[(0, 60)], [(0, 60)]]]) as table:
        engine = usable(UringEngine, table)
        assert engine.warm is None
        engine.close()


@ENGINES
def test_a_small_batch_that_comes_past_the_table_goes_the_short_way(
    engine_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `auto` has it read where nothing is in memory; parts of a batch go the long way."""
    rows = np.random.default_rng(0).integers(0, 333, (5, 2, 3))
    with make_table(tmp_path, n_rows=(500, 333), n_columns=3) as table:
        engine = usable(engine_of, table)
        n_long = []
        read_all = engine._read_all
        monkeypatch.setattr(engine, "_read_all", lambda *asked: (n_long.append(1), read_all(*asked)))
        batch = table.places.check(rows, n_columns=3, first_layer=0, n_layers=2)
        out = np.zeros((rows.size, table.row_bytes), np.uint8)
        engine.read(batch, out)
        assert not n_long
        assert np.array_equal(out.reshape(*rows.shape, -1), read_batch(table.stored, rows))
        engine.read(batch, out, items=np.arange(3))
        assert n_long
        engine.close()
