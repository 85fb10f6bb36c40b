from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from small_tables import lay_table, random_records, small_manifest, small_spec

from engram_tables.address.spec import LayerAddressing
from engram_tables.errors import InvalidInput, NotATable
from engram_tables.storage.checking import compare_rows
from engram_tables.storage.checking.compare import DiffReport, diff_tables
from engram_tables.storage.checking.compare_kernels import add_distances, mark_unequal_bytes, mark_unequal_values
from engram_tables.storage.checking.compare_reports import GroupDifference, Measure, common_rows, rows_without
from engram_tables.storage.row_groups import row_groups, split_by_group
from engram_tables.storage.sources.source import Source
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.ranks import Rank, owned_rows

FP8 = "fp8-e4m3-e8m0"
RANGES = st.lists(st.integers(0, 40), unique=True, max_size=10).map(
    lambda edges: tuple(zip(*[iter(sorted(edges)[: len(edges) // 2 * 2])] * 2, strict=True))
)
FLOATS = st.floats(width=32)


@given(left=hnp.arrays(np.uint8, (5, 9), elements=st.integers(0, 1)), start=st.integers(0, 9), data=st.data())
@settings(max_examples=30)
def test_unequal_bytes(left: NDArray[np.uint8], start: int, data: st.DataObject) -> None:
    right = data.draw(hnp.arrays(np.uint8, (5, 9), elements=st.integers(0, 1)))
    stop = data.draw(st.integers(start, 9))
    flags = np.full(5, 9, np.uint8)
    expected = [bytes(a[start:stop]) != bytes(b[start:stop]) for a, b in zip(left, right, strict=True)]
    assert mark_unequal_bytes(left, right, start, stop, flags) == sum(expected)
    assert flags.tolist() == expected


def same(x: float, y: float) -> bool:
    return x == y or (math.isnan(x) and math.isnan(y))


@given(left=hnp.arrays(np.float32, (3, 4), elements=FLOATS), data=st.data())
@settings(max_examples=40)
def test_unequal_values_and_their_distances(left: NDArray[np.float32], data: st.DataObject) -> None:
    right = data.draw(st.one_of(hnp.arrays(np.float32, (3, 4), elements=FLOATS), st.just(left)))
    right = np.where(data.draw(hnp.arrays(np.bool_, (3, 4))), left, right)
    flags = np.full(3, 9, np.uint8)
    expected = [not all(map(same, a, b)) for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    assert mark_unequal_values(left, right, flags) == sum(expected)
    assert flags.tolist() == expected
    pairs = list(zip(left.reshape(-1).tolist(), right.reshape(-1).tolist(), strict=True))
    finite = [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]
    sums = np.zeros(3)
    assert add_distances(left, right, sums) == len(pairs) - len(finite)
    squared_error = squared = 0.0
    for x, y in finite:
        squared_error += (x - y) * (x - y)
        squared += x * x
    assert sums[0] == max((abs(x - y) for x, y in finite), default=0.0)
    assert sums[1:].tolist() == pytest.approx([squared_error, squared], rel=1e-12)


@given(left=RANGES, right=RANGES)
def test_ranges_are_sets_of_rows(left: tuple[tuple[int, int], ...], right: tuple[tuple[int, int], ...]) -> None:
    def rows(ranges: tuple[tuple[int, int], ...]) -> list[int]:
        return [row for start, stop in ranges for row in range(start, stop)]

    assert rows(common_rows(left, right)) == sorted({*rows(left)} & {*rows(right)})
    assert rows(rows_without(left, right)) == sorted({*rows(left)} - {*rows(right)})


def test_rows_belong_to_heads_or_to_none() -> None:
    spec = small_spec(101)
    padded = LayerAddressing(layer_id=3, multipliers=(3, 5), moduli=((10, 12),), offsets=(20, 4), n_rows=32)
    shared = replace(padded, layer_id=4, offsets=(0, 0))
    spec = replace(spec, layers=(padded, shared))
    found = [(group.order, group.head, group.start, group.stop) for group in row_groups(spec, 3)]
    none = (None, None)
    assert found == [(*none, 0, 4), (2, 1, 4, 16), (*none, 16, 20), (2, 0, 20, 30), (*none, 30, 32)]
    assert [(group.order, group.start, group.stop) for group in row_groups(spec, 4)] == [(None, 0, 32)]
    assert list(split_by_group(row_groups(spec, 3), 10, 22)) == [(1, 10, 16), (2, 16, 20), (3, 20, 22)]


# Two tables.


def lay(path: Path, manifest: Manifest, records: dict[int, NDArray[np.uint8]]) -> Path:
    return lay_table(path, manifest, records)


def different(report: DiffReport) -> list[GroupDifference]:
    assert report.rows is not None
    return [group for group in report.rows.groups if group.n_rows_different]


def values_of(seed: int) -> dict[int, NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    return {layer_id: rng.standard_normal((101, 32)).astype(np.float32) for layer_id in (1, 14)}


def encoded(manifest: Manifest, values: dict[int, NDArray[np.float32]]) -> dict[int, NDArray[np.uint8]]:
    return {layer_id: manifest.get_codec().encode(rows) for layer_id, rows in values.items()}


@pytest.mark.parametrize("layout", ["packed", "page", "split"])
def test_equal_rows_are_equal_in_any_layout(tmp_path: Path, layout: str) -> None:
    packed = small_manifest(codec=FP8)
    records = random_records(packed)
    a = lay(tmp_path / "a", packed, records)
    b = lay(tmp_path / "b", replace(packed, layout=layout), records)
    report = diff_tables(a, b)
    assert report.is_equal
    assert report.rows is not None
    assert report.rows.n_rows_compared == 202
    assert {found.what for found in report.headers} <= {"layout", "parts"}
    assert (layout == "packed") == (not report.headers)
    assert (report.a.kind, report.b.layout, report.a.n_rows) == ("table", layout, 202)


def test_what_differs_is_named_and_measured(tmp_path: Path) -> None:
    manifest = small_manifest(codec="f32")
    left = values_of(1)
    right = {layer_id: rows.copy() for layer_id, rows in left.items()}
    right[14][60:80, 5] += np.float32(0.5)
    a, b = (lay(tmp_path / name, manifest, encoded(manifest, v)) for name, v in (("a", left), ("b", right)))
    report = diff_tables(a, b)
    (group,) = different(report)
    assert (group.layer_id, group.order, group.head) == (14, 2, 1)
    assert (group.n_rows_different, group.n_rows_compared) == (20, 51)
    assert group.first_rows == tuple(range(60, 68))
    assert group.max_abs == pytest.approx(0.5)
    error = right[14][60:80].astype(np.float64) - left[14][60:80]
    size = np.square(left[14][60:80].astype(np.float64)).sum()
    assert group.relative_rms == pytest.approx(float(np.sqrt(np.square(error).sum() / size)))
    assert not report.is_equal
    assert not report.headers


@pytest.mark.parametrize(("byte", "part"), [(0, "weights"), (31, "weights"), (32, "scales")])
@pytest.mark.parametrize("bit", [0, 7])
def test_a_single_bit_of_either_part_is_found(tmp_path: Path, byte: int, part: str, bit: int) -> None:
    manifest = small_manifest(codec=FP8, layout="split")
    records = encoded(manifest, values_of(2))
    a = lay(tmp_path / "a", manifest, records)
    records[1][100, byte] ^= 1 << bit
    report = diff_tables(a, lay(tmp_path / "b", manifest, records), threads=3)
    (group,) = different(report)
    assert (group.layer_id, group.head, group.first_rows) == (1, 1, (100,))
    assert [(p.part, p.n_rows_different) for p in group.parts if p.n_rows_different] == [(part, 1)]
    assert report.rows is not None
    assert [(d.row, d.byte, d.part) for d in report.rows.first] == [(100, byte, part)]


def test_two_codecs_are_compared_by_their_values(tmp_path: Path) -> None:
    fine, coarse = small_manifest(codec="f32"), small_manifest(codec=FP8)
    held = {layer_id: coarse.get_codec().decode(rows) for layer_id, rows in encoded(coarse, values_of(3)).items()}
    a, b = lay(tmp_path / "a", fine, encoded(fine, held)), lay(tmp_path / "b", coarse, encoded(coarse, held))
    report = diff_tables(a, b)
    assert report.rows is not None
    assert report.rows.measure is Measure.VALUES
    assert report.rows.n_rows_different == 0
    assert {found.what: found.matters for found in report.headers} == {
        "codec": True, "row_bytes": True,
    }  # fmt: skip
    assert not report.is_equal  # another codec is another table
    held[1][3, 3] += np.float32(0.01)
    (group,) = different(diff_tables(lay(tmp_path / "c", fine, encoded(fine, held)), b))
    assert (group.first_rows, group.parts) == ((3,), ())
    assert group.max_abs == pytest.approx(0.01, rel=1e-3)


def test_values_that_are_not_finite_are_counted_apart(tmp_path: Path) -> None:
    manifest = small_manifest(codec="f32")
    left = {layer_id: np.ones((101, 32), np.float32) for layer_id in (1, 14)}
    records = {layer_id: rows.copy().view(np.uint8) for layer_id, rows in left.items()}
    a = lay(tmp_path / "a", manifest, records)
    records[1].view(np.float32)[7, 0] = np.inf
    (group,) = different(diff_tables(a, lay(tmp_path / "b", manifest, records)))
    assert (group.n_values_not_finite, group.max_abs, group.relative_rms) == (1, 0.0, 0.0)


def test_rows_without_a_codec_are_compared_as_bytes(tmp_path: Path) -> None:
    manifest = small_manifest(codec="opaque-33")
    records = random_records(manifest)
    a = lay(tmp_path / "a", manifest, records)
    records[1][9, 9] ^= 1
    (group,) = different(diff_tables(a, lay(tmp_path / "b", manifest, records)))
    assert (group.first_rows, group.max_abs, group.relative_rms) == ((9,), None, None)
    other = small_manifest(codec=FP8)
    report = diff_tables(a, lay(tmp_path / "c", other, random_records(other)))
    assert report.rows is None
    assert "opaque-33" in str(report.not_compared)
    assert not report.is_equal


def test_another_addressing_is_told_by_its_constants(tmp_path: Path) -> None:
    manifest, longer = small_manifest(codec=FP8), small_manifest(small_spec(110), codec=FP8)
    records = random_records(longer)
    a = lay(tmp_path / "a", manifest, {layer_id: rows[:101] for layer_id, rows in records.items()})
    report = diff_tables(a, lay(tmp_path / "b", longer, records))
    found = {difference.what: (difference.a, difference.b) for difference in report.headers}
    assert found["layers"] == ("1: 101, 14: 101", "1: 110, 14: 110")
    assert found["layer 14: moduli"] == ("50, 51", "55, 55")
    assert "fingerprint" in found
    assert report.rows is not None
    assert (report.rows.n_rows_compared, report.rows.n_rows_different) == (202, 0)
    assert [(s.side, s.layer_id, s.start_row, s.stop_row) for s in report.one_sided] == [
        ("b", 1, 101, 110), ("b", 14, 101, 110),
    ]  # fmt: skip


def test_rows_are_compared_where_both_hold_them(tmp_path: Path) -> None:
    manifest = small_manifest(codec=FP8)
    ranks = [
        replace(
            manifest,
            owned=owned_rows(manifest.spec, by="head", rank=rank, n_ranks=2),
            rank=Rank(by="head", rank=rank, n_ranks=2),
        )
        for rank in range(2)
    ]
    whole, first, second = (lay(tmp_path / str(k), m, random_records(m)) for k, m in enumerate((manifest, *ranks)))
    report = diff_tables(first, whole)
    assert report.rows is not None
    assert (report.rows.n_rows_compared, report.rows.n_rows_different) == (100, 0)
    assert [(s.side, s.start_row, s.stop_row) for s in report.one_sided] == [("b", 50, 101)] * 2
    assert not report.is_equal
    apart = diff_tables(first, second)
    assert apart.rows is None
    assert apart.not_compared == "no row is held by both sides"


def test_rows_of_another_width_are_not_compared(tmp_path: Path) -> None:
    a, b = small_manifest(), small_manifest(small_spec(row_width=64))
    report = diff_tables(*(lay(tmp_path / str(k), m, random_records(m)) for k, m in enumerate((a, b))))
    assert report.rows is None
    assert report.not_compared == "rows of 32 and of 64 values"


def test_samples_are_seeded_and_any_number_of_threads_gives_one_report(tmp_path: Path) -> None:
    manifest = small_manifest(codec=FP8)
    records = encoded(manifest, values_of(4))
    a = lay(tmp_path / "a", manifest, records)
    for rows in records.values():
        rows[::3, 1] ^= 1
    b = lay(tmp_path / "b", manifest, records)
    assert diff_tables(a, b, threads=1) == diff_tables(a, b, threads=4)
    sampled = diff_tables(a, b, sample=50, seed=1)
    assert sampled == diff_tables(a, b, sample=50, seed=1, threads=1)
    assert sampled.rows is not None
    assert (sampled.rows.n_rows, sampled.rows.n_rows_compared) == (202, 50)
    assert sampled.rows.bytes_read == 50 * 66
    for options in ({"sample": 0}, {"sample": 3, "full": True}):
        with pytest.raises(InvalidInput, match="sample"):
            diff_tables(a, b, **options)  # type: ignore[arg-type]


def test_blocks_cut_anywhere_give_one_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = small_manifest(codec=FP8)
    records = encoded(manifest, values_of(5))
    a = lay(tmp_path / "a", manifest, records)
    records[14][40:60] ^= 1
    b = lay(tmp_path / "b", manifest, records)
    whole = diff_tables(a, b).rows
    monkeypatch.setattr("engram_tables.storage.checking.compare_rows.BLOCK_BYTES", 33 * 7)
    cut = diff_tables(a, b, threads=3).rows
    assert whole is not None
    assert cut is not None
    for left, right in zip(whole.groups, cut.groups, strict=True):
        assert replace(left, relative_rms=None) == replace(right, relative_rms=None)
        assert left.relative_rms == (right.relative_rms and pytest.approx(right.relative_rms))
    assert whole.first == cut.first


def test_a_file_that_changes_meanwhile_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = small_manifest()
    a, b = (lay(tmp_path / name, manifest, random_records(manifest)) for name in "ab")
    read = compare_rows.read_records

    def read_and_touch(source: Source, layer_id: int, first_row: int, *rest: Any, **more: Any) -> None:
        read(source, layer_id, first_row, *rest, **more)
        os.utime(next(b.rglob("*.safetensors")), ns=(1, 1))

    monkeypatch.setattr(compare_rows, "read_records", read_and_touch)
    with pytest.raises(InvalidInput, match="changed meanwhile"):
        diff_tables(a, b)


def test_nothing_is_no_side(tmp_path: Path) -> None:
    manifest = small_manifest()
    a = lay(tmp_path / "a", manifest, random_records(manifest))
    with pytest.raises(InvalidInput, match="nothing there"):
        diff_tables(a, tmp_path / "b")
    (a / "engram.json").write_bytes(b"{}")
    with pytest.raises(NotATable):
        diff_tables(a, a)
