"""How large tables are, what a row of them costs to read, and what a budget of parameters buys."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st
from planning_cases import V41

from engram_tables.address.presets import PRESETS
from engram_tables.address.recipes import DeepSeekRecipe
from engram_tables.errors import InvalidInput
from engram_tables.fetch.table import open_table
from engram_tables.measure.offload.lookups import Asked, batch_facts
from engram_tables.measure.planning.allocate import Budget, TableShape, allocate
from engram_tables.measure.planning.sizes import mean_units, sizes_of_preset, sizes_of_spec
from engram_tables.storage.building.writer import build_table, plan_table
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.extents import Part
from engram_tables.storage.table.layout import get_layout


def test_the_published_sizes_come_out() -> None:
    assert (V41.n_rows, V41.row_bytes, V41.table_bytes) == (768_022_850, 264, 202_758_032_400)
    assert V41.rows_per_table == (384_006_168, 384_016_682)
    assert (V41.rows_per_token, V41.lookups_per_token, V41.layer_ids) == (48, 6, (1, 14))
    qwen = sizes_of_preset("qwen3.8-flash-next")
    assert (qwen.n_rows, qwen.row_bytes, qwen.rows_per_token) == (320_001_536, 320, 16)
    assert sizes_of_preset("longcat-flash-lite").n_rows == 122_683_536
    assert sizes_of_preset("engram-27b").n_rows * 80 == 5_792_338_560
    assert sizes_of_preset("engram-40b").n_rows * 80 == 18_534_311_360


def test_pages_a_row_are_those_that_were_measured() -> None:
    packed, planar, page = (V41.row_cost(layout) for layout in ("packed", "split", "page"))
    # Of 512 rows in 33 pages 32 cross into the next one.
    assert (packed.reads, packed.pages) == (1, 1.0625)
    assert (planar.reads, planar.pages) == (2, 2.0)
    assert (page.reads, page.pages) == (1, 1.0)
    assert page.table_bytes == sum(-(-n // 15) * 4096 for n in V41.rows_per_table)
    assert packed.table_bytes == planar.table_bytes == V41.table_bytes


@settings(deadline=None)
@given_values(
    st.integers(1, 700), st.integers(1, 5), st.integers(0, 60), st.sampled_from([64, 512, 4096]), st.integers(0, 8)
)
def test_mean_units_are_those_of_every_row(n_bytes: int, cell_rows: int, spare: int, unit: int, start: int) -> None:
    part = Part(
        name="records", start=start, n_bytes=n_bytes, cell_rows=cell_rows, cell_bytes=cell_rows * n_bytes + spare
    )
    # A whole period, and it alone.
    first = part.offset(np.arange(cell_rows * unit))
    touched = (first + n_bytes - 1) // unit - first // unit + 1
    assert mean_units(part, unit) == pytest.approx(float(touched.mean()))


def test_row_costs_are_those_of_a_real_table(tmp_path: Path) -> None:
    spec = DeepSeekRecipe(
        name="small", provenance="a test", canonical_size=99, orders=(2, 3), heads=2, bases=(7000, 7000),
        layer_ids=(1,), n_layers=1, fill_id=0, row_width=256,
    ).resolve()  # fmt: skip
    for layout in ("packed", "page", "split"):
        build_table(plan_table(spec, codec="fp8-e4m3-e8m0", layout=layout, init="zeros"), tmp_path / layout)
        cost = sizes_of_spec(spec, codec="fp8-e4m3-e8m0").row_cost(layout)
        with open_table(tmp_path / layout) as table:
            rows = np.arange(spec.n_rows)
            facts = batch_facts(table, Asked(((1, rows),), None))
            data_bytes = sum(file.file_bytes for file in table.stored.files)
        assert facts["pages_per_row"] == pytest.approx(cost.pages, rel=0.002)
        assert facts["line_bytes"] / 64 / rows.size == pytest.approx(cost.lines, rel=0.002)
        # Headers of 4 KiB a shard stand before the rows.
        assert 0 <= data_bytes - cost.table_bytes <= 3 * 4096


def test_a_codec_comes_from_the_release_or_from_whoever_asks() -> None:
    spec = PRESETS["engram-demo"].resolve()
    assert sizes_of_spec(spec).codec == "f32"
    assert sizes_of_spec(spec, codec="bf16").row_bytes == 128
    opaque = sizes_of_spec(spec, row_bytes=100)
    assert (opaque.codec, opaque.row_bytes, opaque.row_cost("packed").table_bytes) == (
        "opaque-100",
        100,
        spec.n_rows * 100,
    )
    with pytest.raises(InvalidInput, match="expected one of them"):
        sizes_of_spec(spec, codec="bf16", row_bytes=100)
    with pytest.raises(InvalidInput, match="preset 'nobody'"):
        sizes_of_preset("nobody")


def test_layouts_and_codecs_stand_for_what_the_library_has() -> None:
    """The planar placement is the layout `split`, which some codecs do not have."""
    assert len(get_layout("split", get_codec("fp8-e4m3-e8m0"), 256).parts) == 2


# Allocation


def test_budgets_of_the_paper_buy_the_papers_tables() -> None:
    (exact,) = allocate(Budget(table_parameters=5_792_338_560), TableShape())["tables"]
    assert (exact["n_rows"], exact["rows_per_table"]) == (72_404_232, [36_199_972, 36_204_260])
    (v41,) = allocate(
        Budget(), TableShape(orders=(2, 3, 4), row_width=256), codecs=["fp8-e4m3-e8m0"], rows_per_head=16_000_000
    )["tables"]
    assert v41["rows_per_table"] == [384_006_168, 384_016_682]
    assert v41["codecs"][0]["table_bytes"] == 202_758_032_400
    assert v41["slots_against_sweep"] == "beyond"
    low, high = allocate(Budget(total_parameters=26_700_000_000, active_parameters=3_800_000_000), TableShape())[
        "tables"
    ]
    assert (low["budget_parameters"], high["budget_parameters"]) == (4_580_000_000, 5_725_000_000)
    assert high["slots_against_sweep"] == "inside"


@settings(deadline=None)
@given_values(st.integers(10_000, 10**9), st.integers(1, 4), st.integers(1, 3), st.sampled_from([8, 80, 256]))
def test_a_budget_is_never_passed_and_nearly_spent(parameters: int, heads: int, layers: int, width: int) -> None:
    shape = TableShape(heads=heads, n_layers=layers, row_width=width)
    try:
        (table,) = allocate(Budget(table_parameters=parameters), shape, codecs=())["tables"]
    except InvalidInput:
        assert parameters < 200 * shape.n_columns * width
        return
    assert table["parameters"] == table["n_rows"] * width <= parameters
    # Primes of so many heads lie within a few hundred of each other.
    assert parameters - table["parameters"] < 1000 * shape.n_columns * width


def test_budgets_that_say_too_little_or_too_much_are_refused() -> None:
    for budget in (
        Budget(), Budget(total_parameters=5), Budget(total_parameters=5, active_parameters=5),
        Budget(table_parameters=0), Budget(table_parameters=100),
        Budget(total_parameters=10**9, active_parameters=0, shares=(1.5,)),
    ):  # fmt: skip
        with pytest.raises(InvalidInput):
            allocate(budget, TableShape())
