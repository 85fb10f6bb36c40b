from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_tables.errors import InvalidInput
from engram_tables.storage.layout import get_layout, shard_path

names = st.sampled_from(["packed", "page"])


def test_page_layout_of_264_bytes() -> None:
    layout = get_layout("page", 264)
    assert (layout.cell_rows, layout.cell_bytes) == (15, 4096)
    assert [layout.record_offset(row) for row in (0, 1, 14, 15, 30)] == [0, 264, 3696, 4096, 8192]
    assert [layout.data_bytes(n) for n in (0, 1, 15, 16)] == [0, 4096, 4096, 8192]


@given(name=names, row_bytes=st.integers(1, 4096), row=st.integers(0, 2**40))
def test_no_record_crosses_a_page_and_arrays_agree_with_numbers(name: str, row_bytes: int, row: int) -> None:
    layout = get_layout(name, row_bytes)
    offset = layout.record_offset(row)
    assert layout.record_offset(np.array([row], dtype=np.int64)).tolist() == [offset]
    assert offset + row_bytes <= layout.record_offset(row + 1)
    assert offset + row_bytes <= layout.data_bytes(row + 1)
    if name == "page":
        assert offset // 4096 == (offset + row_bytes - 1) // 4096


@given(
    name=names,
    row_bytes=st.integers(1, 4096),
    n_rows=st.integers(1, 60),
    start=st.integers(0, 70_000),
    n_bytes=st.integers(0, 9000),
)
def test_touched_rows_are_those_with_a_byte_in_the_range(
    name: str, row_bytes: int, n_rows: int, start: int, n_bytes: int
) -> None:
    layout = get_layout(name, row_bytes)
    stop = start + n_bytes
    expected = [
        row
        for row in range(n_rows)
        if max(layout.record_offset(row), start) < min(layout.record_offset(row) + row_bytes, stop)
    ]
    assert list(range(*layout.touched_rows(start, stop, n_rows))) == expected


@given(name=names, row_bytes=st.integers(1, 4096), n_rows=st.integers(0, 40))
def test_place_lays_every_record_at_its_offset_and_zeros_elsewhere(name: str, row_bytes: int, n_rows: int) -> None:
    layout = get_layout(name, row_bytes)
    records = np.arange(n_rows * row_bytes, dtype=np.uint64).astype(np.uint8).reshape(n_rows, row_bytes) | 1
    out = np.full(layout.data_bytes(n_rows), 255, dtype=np.uint8)
    layout.place(records, out)
    expected = np.zeros_like(out)
    for row in range(n_rows):
        expected[layout.record_offset(row) : layout.record_offset(row) + row_bytes] = records[row]
    assert np.array_equal(out, expected)


def test_refusals_and_names() -> None:
    with pytest.raises(InvalidInput, match="4097"):
        get_layout("page", 4097)
    with pytest.raises(InvalidInput, match="planar"):
        get_layout("planar", 264)
    assert shard_path(1, 0, 3) == "layer-01/rows-00001-of-00003.safetensors"
    assert shard_path(140, 2, 3) == "layer-140/rows-00003-of-00003.safetensors"
