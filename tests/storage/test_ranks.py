from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_tables import lay_table, random_records, small_manifest, small_spec

from engram_tables.address.presets import load_spec
from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput
from engram_tables.storage.extents import Ranges, n_rows_of
from engram_tables.storage.table.ranks import Rank, check_ranks, owned_rows
from engram_tables.storage.table.reader import StoredTable

BY = ["head", "rows", "layer"]


@pytest.fixture(scope="module")
def deepseek() -> AddressSpec:
    return load_spec("deepseek-v4.1-flash")


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 8, 48])
def test_every_row_has_one_owner(by: str, n_ranks: int, deepseek: AddressSpec) -> None:
    for spec in (deepseek, small_spec(7)):
        owned = [owned_rows(spec, by=by, rank=rank, n_ranks=n_ranks) for rank in range(n_ranks)]
        assert check_ranks(spec, owned) == []
        assert sum(map(n_rows_of, owned)) == spec.n_rows


def test_heads_are_divided_as_vllm_does_and_rows_as_the_reference_does(deepseek: AddressSpec) -> None:
    n_columns, layer = deepseek.n_columns, deepseek.layers[0]
    each = -(-n_columns // 5)
    for rank in range(5):
        columns = range(min(rank * each, n_columns), min((rank + 1) * each, n_columns))
        ranges = owned_rows(deepseek, by="head", rank=rank, n_ranks=5)[layer.layer_id]
        stop = layer.offsets[columns.stop] if columns.stop < n_columns else layer.n_rows
        assert ranges == (((layer.offsets[columns.start], stop),) if columns else ())
        each_rows = -(-layer.n_rows // 5)
        expected = (rank * each_rows, min((rank + 1) * each_rows, layer.n_rows))
        assert owned_rows(deepseek, by="rows", rank=rank, n_ranks=5)[layer.layer_id] == (expected,)


def test_spare_rows_belong_to_the_column_before_them() -> None:
    spec = small_spec(101, layer_ids=(1,))
    (layer,) = spec.layers
    spec = replace(spec, layers=(replace(layer, offsets=(60, 3), n_rows=200),))
    assert owned_rows(spec, by="head", rank=0, n_ranks=2) == {1: ((60, 200),)}
    assert owned_rows(spec, by="head", rank=1, n_ranks=2) == {1: ((0, 60),)}
    assert owned_rows(spec, by="head", rank=0, n_ranks=1) == {1: ((0, 200),)}


def test_refusals() -> None:
    spec = small_spec(101, layer_ids=(1,))
    (layer,) = spec.layers
    for offsets in ((0, 0), (0, 49)):
        shared = replace(spec, layers=(replace(layer, offsets=offsets),))
        with pytest.raises(InvalidInput, match="ranks by head"):
            owned_rows(shared, by="head", rank=0, n_ranks=2)
        assert owned_rows(shared, by="rows", rank=1, n_ranks=2) == {1: ((51, 101),)}
    for by, rank, n_ranks in (("column", 0, 1), ("head", 2, 2), ("head", -1, 2), ("rows", 0, 0)):
        with pytest.raises(InvalidInput):
            owned_rows(spec, by=by, rank=rank, n_ranks=n_ranks)


def ranges_within(n_rows: int) -> st.SearchStrategy[Ranges]:
    def build(ends: set[int]) -> Ranges:
        ordered = sorted(ends)[: len(ends) // 2 * 2]
        return tuple(zip(ordered[::2], ordered[1::2], strict=True))

    return st.sets(st.integers(0, n_rows)).map(build)


@given(owned=st.lists(ranges_within(30), max_size=4))
def test_gaps_are_the_rows_without_exactly_one_owner(owned: list[Ranges]) -> None:
    spec = small_spec(30, layer_ids=(5,))
    found = check_ranks(spec, [{5: ranges} for ranges in owned])
    for row in range(30):
        owners = tuple(k for k, ranges in enumerate(owned) if any(start <= row < stop for start, stop in ranges))
        named = [gap.owners for gap in found if gap.start <= row < gap.stop]
        assert named == ([] if len(owners) == 1 else [owners])


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("layout", ["packed", "page", "aligned-512", "split"])
def test_tables_of_ranks_hold_their_rows_under_their_numbers(tmp_path: Path, by: str, layout: str) -> None:
    whole = small_manifest(codec="fp8-e4m3-e8m0", layout=layout)
    records = random_records(whole)
    found = {layer_id: np.zeros_like(rows) for layer_id, rows in records.items()}
    tables = []
    shard_bytes = 8192 if layout == "page" else 5000
    for rank in range(3):
        owned = owned_rows(whole.spec, by=by, rank=rank, n_ranks=3)
        mine = replace(whole, owned=owned, rank=Rank(by=by, rank=rank, n_ranks=3))
        with StoredTable(lay_table(tmp_path / str(rank), mine, records, shard_bytes=shard_bytes)) as table:
            tables.append({layer_id: table.owned(layer_id) for layer_id in table.layer_ids})
            assert tables[-1] == owned
            for layer_id, ranges in owned.items():
                for start, stop in ranges:
                    found[layer_id][start:stop] = read_rows(table, layer_id, np.arange(start, stop))
                others = np.setdiff1d(np.arange(101), [row for ends in ranges for row in range(*ends)])
                if others.size:
                    with pytest.raises(InvalidInput, match=f"row {others[0]} at position 0"):
                        table.locate(layer_id, others)
    assert check_ranks(whole.spec, tables) == []
    for layer_id, rows in records.items():
        assert np.array_equal(found[layer_id], rows)


def read_rows(table: StoredTable, layer_id: int, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Records of `rows`, part by part, as `locate` says."""
    out = np.empty((len(rows), table.row_bytes), np.uint8)
    for part_idx, part in enumerate(table.parts):
        for k, (file_idx, offset) in enumerate(zip(*table.locate(layer_id, rows, part_idx), strict=True)):
            out[k, part.start : part.start + part.n_bytes] = table.mapping(file_idx)[offset : offset + part.n_bytes]
    return out
