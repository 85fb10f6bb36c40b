"""Compiled calls that read array objects where they lie: the same answers as numba's own, whatever they are given."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_table import make_table

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput
from engram_tables.fetch import kernels
from engram_tables.fetch import warm as warm_module
from engram_tables.fetch.array_calls import knows_arrays
from engram_tables.fetch.engines.copying import GatherEngine
from engram_tables.fetch.kernels import ABSENT, CLOSED, DONE, MISFIT, first_outside
from engram_tables.fetch.reference import read_batch, read_rows
from engram_tables.fetch.table import Table
from engram_tables.fetch.warm import WarmPath

ROWS = np.random.default_rng(0).integers(0, 333, (5, 2, 3))


@pytest.fixture
def table(tmp_path: Path) -> Iterator[Table]:
    with make_table(tmp_path, n_rows=(500, 333), n_columns=3) as made:
        yield made


@pytest.fixture(params=["object", "dispatcher"])
def warm(table: Table, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> WarmPath:
    monkeypatch.setattr(warm_module, "knows_arrays", lambda: request.param == "object")
    made = gather_of(table).warm_path()
    assert made is not None
    return made


def gather_of(table: Table) -> GatherEngine:
    engine = table.engine("gather")
    assert isinstance(engine, GatherEngine)
    return engine


class Subclass(np.ndarray[Any, Any]):
    """Its header is an array's, its `shape` could be anything."""


def test_the_same_answers(table: Table, warm: WarmPath) -> None:
    out = np.full((5, 2, 3, 264), 7, np.uint8)
    assert warm.fetch_tokens(ROWS, out) == DONE
    assert np.array_equal(out, read_batch(table.stored, ROWS))
    frozen = ROWS.copy()
    frozen.flags.writeable = False
    out.fill(7)
    assert warm.fetch_tokens(frozen, out) == DONE
    assert np.array_equal(out, read_batch(table.stored, ROWS))
    of_layer = np.ascontiguousarray(ROWS[:, 1]).reshape(-1)
    records = np.full((15, 264), 7, np.uint8)
    assert warm.fetch_rows(1, of_layer, records) == DONE
    assert np.array_equal(records, read_rows(table.stored, 2, of_layer))


def test_what_is_no_such_array_is_declined(warm: WarmPath) -> None:
    out, flat = np.full((5, 2, 3, 264), 7, np.uint8), np.zeros(15, np.int64)
    records = np.full((15, 264), 7, np.uint8)
    read_only = out.copy()
    read_only.flags.writeable = False
    raw = np.zeros(ROWS.nbytes + 8, np.uint8)
    askew = raw[1 : 1 + ROWS.nbytes].view(np.int64).reshape(ROWS.shape)
    wrong_rows: list[Any] = [
        None, 5, "rows", ROWS.tolist(), ROWS.astype(np.int32), ROWS.astype(np.uint64), ROWS.astype(">i8"),
        ROWS.astype(np.float64), np.asfortranarray(ROWS), ROWS[..., ::-1], ROWS[0], ROWS[None], ROWS[:, :, :2].copy(),
        ROWS[:4], np.int64(3), askew,
    ]  # fmt: skip
    wrong_out: list[Any] = [
        None, bytearray(out.size), out.view(np.int8), out[..., :263], out[..., ::-1], np.asfortranarray(out), read_only,
        out[:4], out.reshape(5, 2, -1), out.reshape(5, 3, 2, 264), out.view("S264"),
    ]  # fmt: skip
    calls: list[tuple[Any, ...]] = [(warm.fetch_tokens, rows, out) for rows in wrong_rows]
    calls += [(warm.fetch_tokens, ROWS, given) for given in wrong_out]
    calls += [(warm.fetch_rows, layer, flat, records) for layer in (-1, 2, 2**40, -(2**63), 2**70, "0", None)]
    calls += [(warm.fetch_rows, 0, flat, records[:14]), (warm.fetch_rows, 0, flat[:, None], records)]
    calls += [(warm.fetch_tokens, ROWS), (warm.fetch_tokens, ROWS, out, out), (warm.fetch_rows, flat, records)]
    for call, *arguments in calls:
        try:
            assert call(*arguments) == MISFIT
        except (TypeError, OverflowError):
            # Only numba's dispatcher raises.
            assert "fetch" not in getattr(call, "__name__", "")
    assert (out == 7).all()
    assert (records == 7).all()


def test_an_object_is_read_as_what_it_is(table: Table) -> None:
    """Only arrays themselves: a subclass may mean something else by its memory."""
    warm = gather_of(table).warm
    assert warm is not None
    assert knows_arrays()
    out = np.full((5, 2, 3, 264), 7, np.uint8)
    assert warm.fetch_tokens(ROWS.view(Subclass), out) == MISFIT
    assert warm.fetch_tokens(ROWS, out.view(Subclass)) == MISFIT
    assert warm.fetch_rows(0.5, np.zeros(15, np.int64), out.reshape(-1, 264)[:15]) == MISFIT  # type: ignore[arg-type]
    addresses = Addresses(rows=ROWS.view(Subclass), keys=np.zeros((5, 2, 1), np.uint64))
    assert np.array_equal(table.fetch(addresses, engine="gather"), read_batch(table.stored, ROWS))


@pytest.mark.parametrize(
    "word", ["OBJECT_TYPE", "ARRAY_DATA", "ARRAY_N_DIMS", "ARRAY_SHAPE", "ARRAY_DTYPE", "ARRAY_FLAGS"]
)
def test_another_layout_is_noticed(word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    knows_arrays.cache_clear()
    try:
        monkeypatch.setattr(kernels, word, getattr(kernels, word) + (-1 if word == "ARRAY_FLAGS" else 1))
        assert not knows_arrays()
    finally:
        knows_arrays.cache_clear()
        monkeypatch.undo()
        assert knows_arrays()


def test_nothing_is_kept_and_nothing_lost(table: Table) -> None:
    warm = gather_of(table).warm_path()
    assert warm is not None
    out = np.full((5, 2, 3, 264), 7, np.uint8)
    call = warm.fetch_tokens
    call(ROWS, out)
    before = [sys.getrefcount(each) for each in (ROWS, out, call, np.ndarray, ROWS.dtype)]
    for _ in range(1000):
        call(ROWS, out)
        call(None, out)
    assert [sys.getrefcount(each) for each in (ROWS, out, call, np.ndarray, ROWS.dtype)] == before
    plan = weakref.ref(call.__self__)  # type: ignore[attr-defined]
    del warm
    gc.collect()
    assert call(ROWS, out) == DONE
    del call
    gc.collect()
    assert plan() is None


def test_a_call_outlives_its_table(table: Table, warm: WarmPath) -> None:
    out = np.full((5, 2, 3, 264), 7, np.uint8)
    call = warm.fetch_tokens
    assert call(ROWS, out) == DONE
    table.close()
    del warm
    gc.collect()
    out.fill(7)
    assert call(ROWS, out) == CLOSED
    assert (out == 7).all()


def test_a_flag_says_that_all_is_there(table: Table) -> None:
    gather = gather_of(table)
    pages, is_all = np.zeros((gather.n_pages + 7) // 8, np.uint8), np.ones(1, np.uint8)
    warm = gather.warm_path(pages, is_all)
    assert warm is not None
    out = np.full((5, 2, 3, 264), 7, np.uint8)
    assert warm.fetch_tokens(ROWS, out) == DONE
    assert np.array_equal(out, read_batch(table.stored, ROWS))
    is_all[0] = 0
    out.fill(7)
    assert warm.fetch_tokens(ROWS, out) == ABSENT
    assert (out == 7).all()
    pages[:] = 255
    assert warm.fetch_tokens(ROWS, out) == DONE


def test_one_look_a_batch(table: Table) -> None:
    gather = gather_of(table)
    pages, is_all = np.full((gather.n_pages + 7) // 8, 255, np.uint8), np.ones(1, np.uint8)
    warm = gather.warm_path(pages, is_all, rows_a_check=100)
    assert warm is not None
    plan = warm._plan
    for n_rows, n_looks in ((60, 1), (60, 1), (60, 2), (450, 3), (60, 3), (40, 4)):
        rows = np.arange(n_rows)
        assert warm.fetch_rows(0, rows, np.empty((n_rows, 264), np.uint8)) == DONE
        assert plan[kernels.CHECKED] == n_looks
    assert warm.n_contradicted == 0


@given(
    limits=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    n_columns=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    n_wrong=st.integers(0, 2),
)
def test_the_first_row_that_is_outside(limits: list[int], n_columns: int, seed: int, n_wrong: int) -> None:
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.integers(0, n, (6, n_columns)) for n in limits], axis=1)
    for _ in range(n_wrong):
        rows.reshape(-1)[rng.integers(rows.size)] = rng.choice([-1, 49, 50, 2**62, -(2**63)])
    outside = (rows < 0) | (rows >= np.array(limits)[:, None])
    expected = int(np.flatnonzero(outside)[0]) if outside.any() else -1
    assert first_outside(rows.reshape(-1), n_columns, np.array(limits)) == expected


@pytest.mark.parametrize("engine", [5, None, "nothing", b"auto", object()])
def test_engines_that_are_none(table: Table, engine: Any) -> None:
    table.fetch_rows(1, np.arange(5))
    if engine is None:
        return
    with pytest.raises(InvalidInput, match="not known, expected one of"):
        table.fetch_rows(1, np.arange(5), engine=engine)


def test_another_tables_engine_is_refused_after_both_have_read(table: Table, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    addresses = Addresses(rows=ROWS, keys=np.zeros((5, 2, 1), np.uint64))
    with make_table(tmp_path / "other", n_rows=(500, 333), n_columns=3) as other:
        foreign = gather_of(other)
        for _ in range(3):
            other.fetch(addresses, engine="gather")
            table.fetch(addresses, engine="gather")
            with pytest.raises(InvalidInput, match="expected one that was made for table"):
                table.fetch(addresses, engine=foreign)


@pytest.mark.parametrize("engine", ["gather", "auto", "willneed", "mapping", "pread"])
@pytest.mark.parametrize("n_rows", [40, 400, 20_000])
def test_row_ids_may_lie_in_the_output(table: Table, engine: str, n_rows: int) -> None:
    layer = table.spec.layers[0]
    given = np.random.default_rng(0).integers(0, layer.n_rows, n_rows)
    expected = np.zeros((n_rows, table.row_bytes), np.uint8)
    for _ in range(4):
        table.fetch_rows(layer.layer_id, given, expected, engine)
    room = np.zeros(n_rows * table.row_bytes, np.uint8)
    rows = room[: n_rows * 8].view(np.int64)
    rows[:] = given
    assert np.array_equal(table.fetch_rows(layer.layer_id, rows, room.reshape(n_rows, -1), engine), expected)
