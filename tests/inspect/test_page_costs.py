from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engram_tables.inspect.page_costs import floor_sum, touched_pages
from engram_tables.storage.extents import Extent, Part


@given(st.integers(0, 60), st.integers(1, 50), st.integers(0, 200), st.integers(0, 200))
def test_floor_sum_is_the_sum(n_terms: int, divisor: int, step: int, first: int) -> None:
    assert floor_sum(n_terms, divisor, step, first) == sum((first + k * step) // divisor for k in range(n_terms))


@st.composite
def parts(draw: st.DrawFn) -> Part:
    n_bytes, cell_rows = draw(st.integers(1, 9000)), draw(st.integers(1, 20))
    cell_bytes = n_bytes * cell_rows + draw(st.integers(0, 500))
    return Part(name="records", start=0, n_bytes=n_bytes, cell_rows=cell_rows, cell_bytes=cell_bytes)


@given(parts(), st.integers(1, 300), st.integers(0, 20_000))
def test_pages_are_those_of_every_row_summed(part: Part, n_rows: int, offset: int) -> None:
    extent = Extent(file_idx=0, layer_id=1, part_idx=0, first_row=5, n_rows=n_rows, offset=offset)
    expected = 0
    for row in range(n_rows):
        first = offset + part.offset(row)
        expected += (first + part.n_bytes - 1) // 4096 - first // 4096 + 1
    assert touched_pages([part], [extent]) == expected


def test_the_published_table_costs_what_its_arithmetic_says() -> None:
    # 384,006,168 rows of 256 bytes from byte 664 on, and their 8 scales from byte 98,305,579,672 on.
    weights = Part(name="weights", start=0, n_bytes=256, cell_rows=1, cell_bytes=256)
    scales = Part(name="scales", start=256, n_bytes=8, cell_rows=1, cell_bytes=8)
    extents = [
        Extent(file_idx=0, layer_id=1, part_idx=part_idx, first_row=0, n_rows=384_006_168, offset=offset)
        for part_idx, offset in ((0, 664), (1, 98_305_579_672))
    ]
    n_pages = touched_pages([weights, scales], extents)
    # One row of weights in 16 crosses a page, no row of scales does.
    crossing = sum((664 + 256 * row) % 4096 > 4096 - 256 for row in range(384_006_168 % 16)) + 384_006_168 // 16
    assert n_pages == 2 * 384_006_168 + crossing


def test_records_of_the_page_layout_cost_one_page() -> None:
    part = Part(name="records", start=0, n_bytes=264, cell_rows=15, cell_bytes=4096)
    extent = Extent(file_idx=0, layer_id=1, part_idx=0, first_row=0, n_rows=384_006_168, offset=4096)
    assert touched_pages([part], [extent]) == 384_006_168
