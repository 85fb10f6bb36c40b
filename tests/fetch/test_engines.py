"""Every engine gives the bytes of the slow twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_table import make_table

from engram_tables.address.spec import Addresses
from engram_tables.fetch.engines import ENGINES
from engram_tables.fetch.reference import read_batch, read_rows
from engram_tables.fetch.table import AUTO

NAMES = (*ENGINES, AUTO)
ROW_BYTES = {"page": [1, 8, 63, 264, 1024, 1365, 4096], "packed": [1, 8, 63, 264, 1024, 4096, 5000]}


def addresses(rows: Any) -> Addresses:
    rows = np.asarray(rows, np.int64)
    return Addresses(rows=rows, keys=np.zeros((*rows.shape[:2], 1), np.uint64))


@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("engine", NAMES)
def test_same_bytes_as_the_slow_twin(
    engine: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    layout = data.draw(st.sampled_from(["packed", "page"]))
    table = make_table(
        tmp_path_factory.mktemp("table"),
        layout=layout,
        row_bytes=data.draw(st.sampled_from([1, 8, 63, 264, 1024, 1365, 4096] + [5000] * (layout == "packed"))),
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
