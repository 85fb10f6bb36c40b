"""The file of a hot list: what is written comes back, and what breaks a rule is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engram_tables.errors import InvalidInput
from engram_tables.fetch.tiers.hot_list import SCHEMA, HotList, read_hot_list, write_hot_list

FIXTURES_ARE_FINE = [HealthCheck.function_scoped_fixture]


def test_a_hot_list_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "hot.parquet"
    for hot in (
        HotList.of([2, 1, 1, 14], [5, 2**40, 0, 7], [1.5, 3.0, 1.5, 0.0], fingerprint="ab" * 32),
        HotList.of([], [], []),
    ):
        write_hot_list(path, hot, force=True)
        found = read_hot_list(path)
        assert np.array_equal(found.layer_ids, hot.layer_ids)
        assert np.array_equal(found.rows, hot.rows)
        assert np.array_equal(found.weights, hot.weights)
        assert found.fingerprint == hot.fingerprint
    assert hot.rows.dtype == np.int64
    with pytest.raises(InvalidInput, match="exists"):
        write_hot_list(path, hot)


def test_equal_weights_are_ordered_by_layer_and_row() -> None:
    hot = HotList.of([2, 1, 1], [0, 9, 3], [1, 1, 1])
    assert hot.layer_ids.tolist() == [1, 1, 2]
    assert hot.rows.tolist() == [3, 9, 0]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"weight": [1.0, 2.0, 3.0]}, "descending"),
        ({"weight": [3.0, float("nan"), 1.0]}, "finite"),
        ({"weight": [3.0, 2.0, -1.0]}, "finite"),
        ({"weight": [3.0, None, 1.0]}, "1 nulls in weight"),
        ({"row": [1, -2, 3]}, "found row -2"),
        ({"row": [4, 3, 4]}, "each row of a layer once"),
        ({"row": pa.array([1, 2, 3], pa.int32())}, "found the columns"),
        ({"more": [1, 2, 3]}, "found the columns"),
    ],
)
def test_hot_lists_that_break_a_rule(tmp_path: Path, change: dict[str, Any], match: str) -> None:
    path = tmp_path / "hot.parquet"
    columns = {"layer_id": [1, 1, 1], "row": [1, 2, 3], "weight": [3.0, 2.0, 1.0], **change}
    table = pa.table(columns).replace_schema_metadata({"engram.schema": "engram.hot-list/1"})
    pq.write_table(table, path)
    with pytest.raises(InvalidInput, match=match) as raised:
        read_hot_list(path)
    assert str(path) in str(raised.value)


def test_files_that_are_no_hot_list(tmp_path: Path) -> None:
    path = tmp_path / "hot.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(InvalidInput, match="found the schema ''"):
        read_hot_list(path)
    path.write_bytes(b"PAR1 no")
    with pytest.raises(InvalidInput, match="no whole Parquet file"):
        read_hot_list(path)
    with pytest.raises(FileNotFoundError):
        read_hot_list(tmp_path / "none")


@given(data=st.data())
@settings(deadline=None, max_examples=60, suppress_health_check=FIXTURES_ARE_FINE)
def test_damage_is_refused_or_does_no_harm(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "hot.parquet"
    hot = HotList.of(np.ones(500), np.arange(500), np.arange(500))
    write_hot_list(path, hot, force=True)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    path.write_bytes(content)
    try:
        found = read_hot_list(path)
    except InvalidInput:
        return
    assert np.array_equal(found.rows, hot.rows)
    assert np.array_equal(found.weights, hot.weights)


@pytest.mark.parametrize("rows", [[1.7], [True], ["3"], [None], np.array([2**63], np.uint64)])
def test_rows_that_are_no_integers_are_not_made_into_some(rows: Any) -> None:
    with pytest.raises(InvalidInput, match=r"^hot list: found .*, expected .*; "):
        HotList.of([1], rows, [1.0])


def test_columns_of_other_types_are_refused() -> None:
    one = np.ones(1)
    with pytest.raises(InvalidInput, match="found columns of float64, float64, float64, expected int64"):
        HotList(layer_ids=one, rows=one, weights=one)  # type: ignore[arg-type]


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    path = tmp_path / "hot.parquet"
    columns = {"layer_id": pa.array([1]), "row": pa.array([2]), "weight": pa.array([1.0])}
    fields = [pa.field(name, column.type) for name, column in columns.items()]
    schema = pa.schema([*fields, fields[-1]], metadata={b"engram.schema": SCHEMA.encode()})
    pq.write_table(pa.Table.from_arrays([*columns.values(), columns["weight"]], schema=schema), path)
    with pytest.raises(InvalidInput, match=r"weight \(double\), weight \(double\), expected layer_id \(int64\)"):
        read_hot_list(path)
