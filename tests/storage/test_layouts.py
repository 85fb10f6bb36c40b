from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_tables.errors import InvalidInput
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.extents import Part
from engram_tables.storage.table.layout import LAYOUT_NAMES, get_layout, shard_path

names = st.sampled_from([name for name in LAYOUT_NAMES if name != "split"])
row_sizes = st.integers(1, 4096)


def part_of(name: str, row_bytes: int) -> Part:
    """The one part of records of `row_bytes` bytes."""
    layout = get_layout(name, get_codec(f"opaque-{row_bytes}"), 7)
    (part,) = layout.parts
    assert (layout.name, layout.row_bytes, part.name, part.start, part.n_bytes) == (
        name, row_bytes, "records", 0, row_bytes,
    )  # fmt: skip
    return part


def test_page_layout_of_264_bytes() -> None:
    part = part_of("page", 264)
    assert (part.cell_rows, part.cell_bytes) == (15, 4096)
    assert [part.offset(row) for row in (0, 1, 14, 15, 30)] == [0, 264, 3696, 4096, 8192]
    assert [part.data_bytes(n) for n in (0, 1, 15, 16)] == [0, 4096, 4096, 8192]


@pytest.mark.parametrize(
    ("name", "stride"), [("aligned-8", 264), ("aligned-16", 272), ("aligned-512", 512), ("aligned-4096", 4096)]
)
def test_aligned_layouts_of_264_bytes(name: str, stride: int) -> None:
    part = part_of(name, 264)
    assert (part.cell_rows, part.cell_bytes) == (1, stride)
    assert part.data_bytes(3) == 3 * stride


def test_split_keeps_the_sections_of_the_codec_apart() -> None:
    layout = get_layout("split", get_codec("fp8-e4m3-e8m0"), 256)
    assert layout.row_bytes == 264
    assert [(part.name, part.start, part.n_bytes, part.cell_rows, part.cell_bytes) for part in layout.parts] == [
        ("weights", 0, 256, 1, 256),
        ("scales", 256, 8, 1, 8),
    ]
    names = [part.name for part in get_layout("split", get_codec("int4-g32"), 64).parts]
    assert names == ["weights", "scales", "biases"]


@given(name=names, row_bytes=row_sizes, row=st.integers(0, 2**40))
def test_no_record_overlaps_another_and_arrays_agree_with_numbers(name: str, row_bytes: int, row: int) -> None:
    part = part_of(name, row_bytes)
    offset = part.offset(row)
    assert part.offset(np.array([row], dtype=np.int64)).tolist() == [offset]
    assert offset + row_bytes <= part.offset(row + 1)
    assert offset + row_bytes <= part.data_bytes(row + 1)
    if name == "page":
        assert offset // 4096 == (offset + row_bytes - 1) // 4096
    if name.startswith("aligned"):
        assert offset % int(name.partition("-")[2]) == 0


@given(
    name=names,
    row_bytes=row_sizes,
    n_rows=st.integers(1, 60),
    start=st.integers(0, 70_000),
    n_bytes=st.integers(0, 9000),
)
def test_touched_rows_are_those_with_a_byte_in_the_range(
    name: str, row_bytes: int, n_rows: int, start: int, n_bytes: int
) -> None:
    part = part_of(name, row_bytes)
    stop = start + n_bytes
    expected = [row for row in range(n_rows) if max(part.offset(row), start) < min(part.offset(row) + row_bytes, stop)]
    assert list(range(*part.touched_rows(start, stop, n_rows))) == expected


@given(name=names, row_bytes=row_sizes, n_rows=st.integers(0, 40))
def test_place_lays_every_record_at_its_offset_and_zeros_elsewhere(name: str, row_bytes: int, n_rows: int) -> None:
    part = part_of(name, row_bytes)
    records = np.arange(n_rows * row_bytes, dtype=np.uint64).astype(np.uint8).reshape(n_rows, row_bytes) | 1
    out = np.full(part.data_bytes(n_rows), 255, dtype=np.uint8)
    part.place(records, out)
    expected = np.zeros_like(out)
    for row in range(n_rows):
        expected[part.offset(row) : part.offset(row) + row_bytes] = records[row]
    assert np.array_equal(out, expected)


def test_refusals_and_names() -> None:
    with pytest.raises(InvalidInput, match="4097"):
        part_of("page", 4097)
    with pytest.raises(InvalidInput, match="one piece"):
        get_layout("split", get_codec("bf16"), 32)
    for name in ("planar", "aligned-24", "aligned-4", "aligned-8192", "aligned-", "aligned-٨"):
        with pytest.raises(InvalidInput, match=name):
            part_of(name, 264)
    assert shard_path(1, "records", 0, 3) == "layer-01/rows-00001-of-00003.safetensors"
    assert shard_path(140, "scales", 2, 3) == "layer-140/scales-00003-of-00003.safetensors"
