"""Every engine gives the bytes of the slow twin."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_table import PAGE_BYTES, apart, make_files, make_table

from engram_tables.address.spec import Addresses
from engram_tables.errors import InvalidInput
from engram_tables.fetch.engines.copying import MemoryEngine
from engram_tables.fetch.engines.ladder import ENGINES
from engram_tables.fetch.reference import read_batch, read_rows
from engram_tables.fetch.table import AUTO, Table
from engram_tables.storage.extents import Part

NAMES = (*ENGINES, AUTO)
MEMORY = "memory"
# Few, because each length has a kernel of its own.
PART_BYTES = ((264,), (256, 8), (63, 1, 600), (8, 4096, 8, 2))


def addresses(rows: Any) -> Addresses:
    rows = np.asarray(rows, np.int64)
    return Addresses(rows=rows, keys=np.zeros((*rows.shape[:2], 1), np.uint64))


@given(data=st.data())
@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("engine", NAMES)
def test_same_bytes_as_the_slow_twin(
    engine: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    layout = data.draw(st.sampled_from(["packed", "page", "aligned-8", "aligned-512", "aligned-4096"]))
    table = make_table(
        tmp_path_factory.mktemp("table"),
        layout=layout,
        row_bytes=data.draw(st.sampled_from([1, 8, 63, 264, 1024, 1365, 4096] + [5000] * (layout != "page"))),
        n_rows=tuple(data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=3))),
        rows_per_shard=data.draw(st.sampled_from([1, 7, 64, 10**9]) if engine != "direct" else st.just(100)),
        n_columns=data.draw(st.integers(1, 5)),
    )
    n_tokens = data.draw(st.sampled_from([0, 1, 2, 31, 64, 257]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    rows = np.stack(
        [rng.integers(0, layer.n_rows, (n_tokens, table.spec.n_columns)) for layer in table.spec.layers],
        axis=1,
    )
    if n_tokens > 1:
        rows[0] = 0
        rows[-1] = np.array([[layer.n_rows - 1] for layer in table.spec.layers])
    threads = data.draw(st.sampled_from([None, 1, 2, 5]))
    with table:
        given_out = np.empty((*rows.shape, table.row_bytes), np.uint8)
        found = table.fetch(addresses(rows), given_out, engine, threads=threads)
        assert found is given_out
        assert np.array_equal(found, read_batch(table.stored, rows))
        layer_id = table.spec.layer_ids[-1]
        of_layer = rows[:, -1].reshape(-1)
        found = table.fetch_rows(layer_id, of_layer, engine=engine, threads=threads)
        assert np.array_equal(found, read_rows(table.stored, layer_id, of_layer))


@st.composite
def geometries(draw: st.DrawFn) -> dict[str, Any]:
    """Parts of any lengths and cells, cut into extents of their own, of all rows or of some."""
    parts, start = [], 0
    for k, n_bytes in enumerate(draw(st.sampled_from(PART_BYTES))):
        cell_rows = draw(st.sampled_from([1, 1, 3, max(1, PAGE_BYTES // n_bytes)]))
        cell_bytes = cell_rows * n_bytes + draw(st.sampled_from([0, 0, 1, 8, 136]))
        parts.append(Part(name=f"part-{k}", start=start, n_bytes=n_bytes, cell_rows=cell_rows, cell_bytes=cell_bytes))
        start += n_bytes
    n_rows = draw(st.lists(st.integers(1, 300), min_size=1, max_size=3))
    cuts = []
    for n in n_rows:
        bounds = sorted(draw(st.sets(st.integers(0, n), max_size=4))) if draw(st.booleans()) else [0, n]
        ranges = list(zip(bounds[::2], bounds[1::2], strict=False))
        cuts.append([_cut(draw, ranges) for _ in parts])
    return {
        "n_rows": n_rows,
        "parts": tuple(parts),
        "cuts": cuts,
        "n_columns": draw(st.integers(1, 5)),
        "data_offset": draw(st.sampled_from([0, 7, 4096])),
        "extents_per_file": draw(st.sampled_from([1, 2, 100])),
        "seed": draw(st.integers(0, 2**32)),
    }


def _cut(draw: st.DrawFn, ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    cut = []
    for start, stop in ranges:
        step = draw(st.integers(max(1, (stop - start) // 5), 300))
        inner = draw(st.sets(st.integers(start, stop), max_size=3)) if draw(st.booleans()) else range(start, stop, step)
        bounds = sorted({start, stop, *inner})
        cut += [(first, last - first) for first, last in pairwise(bounds)]
    return cut


def _engine(table: Table, name: str) -> Any:
    return MemoryEngine(table.stored, table.places) if name == MEMORY else table.engine(name)


@given(geometry=geometries(), seed=st.integers(0, 2**32), n_tokens=st.sampled_from([1, 2, 31, 257]))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.slow
@pytest.mark.parametrize("engine", [*NAMES, MEMORY])
def test_records_in_any_geometry(
    engine: str, tmp_path_factory: pytest.TempPathFactory, geometry: dict[str, Any], seed: int, n_tokens: int
) -> None:
    rng = np.random.default_rng(seed)
    with make_files(tmp_path_factory.mktemp("files"), **geometry) as table:
        held = [
            np.concatenate([np.arange(0), *(np.arange(*bounds) for bounds in table.stored.owned(layer_id))])
            for layer_id in table.spec.layer_ids
        ]
        for layer_id, here in zip(table.spec.layer_ids, held, strict=True):
            missing = np.setdiff1d(np.arange(table.spec.layer(layer_id).n_rows), here)
            if missing.size:
                wanted = np.concatenate([here, missing])
                out = np.full((wanted.size, table.row_bytes), 7, np.uint8)
                with pytest.raises(InvalidInput, match=f"found row {missing[0]} at position {here.size}, expected one"):
                    table.fetch_rows(layer_id, wanted, out, AUTO if engine == MEMORY else engine)
                assert (out == 7).all()
        if not all(here.size for here in held):
            return
        rows = np.stack([rng.choice(here, (n_tokens, table.spec.n_columns)) for here in held], axis=1)
        expected = read_batch(table.stored, rows)
        found = np.empty_like(expected)
        if engine == AUTO:
            table.fetch(addresses(rows), found)
        else:
            batch = table.places.check(rows, n_columns=rows.shape[2], first_layer=0, n_layers=rows.shape[1])
            reader = _engine(table, engine)
            reader.read(batch, found.reshape(-1, table.row_bytes), 2)
            reader.close()
        assert np.array_equal(found, expected)


@pytest.mark.parametrize("engine", NAMES)
def test_a_planar_checkpoint(engine: str, tmp_path: Path) -> None:
    n = 4000
    geometry: dict[str, Any] = {"n_rows": [n, n], "parts": apart(256, 8), "extents_per_file": 2, "data_offset": 584}
    # One shard a layer: all weights, then all scales.
    with make_files(tmp_path, cuts=[[[(0, n)], [(0, n)]]] * 2, **geometry) as table:
        rows = np.random.default_rng(0).integers(0, n, (300, 2, 3))
        assert np.array_equal(table.fetch(addresses(rows), engine=engine), read_batch(table.stored, rows))
        content = (tmp_path / "file-1").read_bytes()
        weights, scales = 584 + 256 * 77, 584 + 256 * n + 584 + 8 * 77
        (found,) = table.fetch_rows(2, [77], engine=engine)
        assert found.tobytes() == content[weights : weights + 256] + content[scales : scales + 8]


@pytest.mark.parametrize("engine", NAMES)
def test_a_tensor_for_each_head(engine: str, tmp_path: Path) -> None:
    heads = [101, 103, 107, 1, 109]
    firsts = np.cumsum([0, *heads]).tolist()
    cuts = [[list(zip(firsts, heads, strict=False))]]
    with make_files(tmp_path, n_rows=[sum(heads)], parts=apart(96), cuts=cuts, n_columns=5) as table:
        rows = np.array([[[first, first + n - 1] for first, n in zip(firsts, heads, strict=False)]])
        rows = rows.transpose(2, 0, 1)
        assert np.array_equal(table.fetch(addresses(rows), engine=engine), read_batch(table.stored, rows))


@pytest.mark.parametrize("engine", NAMES)
@pytest.mark.parametrize("n_items", [0, 1, 2, 1021, 1023, 1024, 1025, 2047, 2048, 2049, 8192, 10_007, 40_000])
def test_sizes_about_the_block(engine: str, n_items: int, tmp_path: Path) -> None:
    with make_table(tmp_path, layout="page", n_rows=(3001,), rows_per_shard=1000) as table:
        rows = np.random.default_rng(n_items).integers(0, 3001, n_items)
        expected = read_rows(table.stored, 1, np.arange(3001))[rows]
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine), expected)
        assert np.array_equal(table.fetch_rows(1, rows, engine=engine, threads=2), expected)


@pytest.mark.parametrize("engine", NAMES)
def test_many_copies_of_one_row_and_reads_longer_than_a_buffer(engine: str, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(2000,), row_bytes=264) as table:
        everything = np.arange(2000)
        expected = read_rows(table.stored, 1, everything)
        assert np.array_equal(table.fetch_rows(1, everything, engine=engine), expected)
        assert np.array_equal(table.fetch_rows(1, np.full(5000, 1999), engine=engine), expected[np.full(5000, 1999)])


@pytest.mark.parametrize("data_offset", [0, 4096, 8192])
@pytest.mark.parametrize("engine", NAMES)
def test_data_offset_of_each_file(engine: str, data_offset: int, tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(50, 60), rows_per_shard=20, data_offset=data_offset) as table:
        rows = np.arange(60)
        assert np.array_equal(table.fetch_rows(2, rows, engine=engine), read_rows(table.stored, 2, rows))


def test_row_ids_of_any_integer_type(tmp_path: Path) -> None:
    with make_table(tmp_path, n_rows=(200,)) as table:
        expected = read_rows(table.stored, 1, np.array([0, 199, 5]))
        for kind in (np.uint8, np.int16, np.int32, np.uint32, np.uint64):
            assert np.array_equal(table.fetch_rows(1, np.array([0, 199, 5], kind)), expected)
        assert np.array_equal(table.fetch_rows(1, [0, 199, 5]), expected)
        assert table.fetch_rows(1, []).shape == (0, 264)


@pytest.mark.parametrize("engine", NAMES)
def test_parts_that_share_bytes(engine: str, tmp_path: Path) -> None:
    """The last part of a read to begin is not the last to end."""
    with make_files(tmp_path, n_rows=[3], parts=apart(4096, 8), cuts=[[[(0, 3)], [(0, 3)]]]) as made:
        stored = made.stored
        shared = replace(stored.extents[1], file_idx=0, offset=stored.extents[0].offset + 100)
        stored.extents = (stored.extents[0], shared)
        rows = np.array([2, 0, 1])
        assert np.array_equal(Table(stored).fetch_rows(1, rows, engine=engine), read_rows(stored, 1, rows))


@given(geometry=geometries(), seed=st.integers(0, 2**32), n_tokens=st.sampled_from([1, 2, 31, 257]))
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("engine", [*ENGINES, MEMORY])
@pytest.mark.parametrize("call", ["read", "begin"])
def test_some_records_of_a_batch_and_no_others(
    call: str, engine: str, tmp_path_factory: pytest.TempPathFactory, geometry: dict[str, Any], seed: int, n_tokens: int
) -> None:
    rng = np.random.default_rng(seed)
    with make_files(tmp_path_factory.mktemp("files"), **geometry) as table:
        held = [
            np.concatenate([np.arange(0), *(np.arange(*bounds) for bounds in table.stored.owned(layer_id))])
            for layer_id in table.spec.layer_ids
        ]
        if not all(here.size for here in held):
            return
        rows = np.stack([rng.choice(here, (n_tokens, table.spec.n_columns)) for here in held], axis=1)
        batch = table.places.check(rows, n_columns=rows.shape[2], first_layer=0, n_layers=rows.shape[1])
        items = rng.permutation(rows.size)[: rng.integers(0, rows.size + 1)]
        expected = read_batch(table.stored, rows).reshape(-1, table.row_bytes)
        found = np.full_like(expected, 7)
        reader = _engine(table, engine)
        if call == "read":
            reader.read(batch, found, 2, items)
        else:
            reader.begin(batch, found, 2, items).finish()
        reader.close()
        expected[np.setdiff1d(np.arange(rows.size), items)] = 7
        assert np.array_equal(found, expected)
