"""Figures about a table's rows are right, every planted fault is named, and a sound table has none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import make_deepseek
from planted_faults import FAULTS, HEAD_ROWS, N_ROWS, Fault, lay, repeated_rows, sound_records, zeroed_head
from small_tables import lay_table, small_manifest, small_spec, small_table

from engram_tables.errors import InvalidInput, SpecMismatch
from engram_tables.fetch.table import open_table
from engram_tables.inspect.stats import StatsReport, table_stats
from engram_tables.inspect.stats_findings import Severity
from engram_tables.inspect.stats_record import stats_record
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.extents import n_rows_of
from engram_tables.storage.table.ranks import Rank, owned_rows

CODECS = ("bf16", "fp8-e4m3-e8m0", "int8-row")
SUSPECT = {"constant-rows", "zero-rows", "norms-out-of-line", "alike-neighbours"}


def stats_of(path: Path, **options: object) -> StatsReport:
    with open_table(path) as table:
        return table_stats(table, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("codec", CODECS)
def test_a_sound_table_has_no_finding(tmp_path: Path, codec: str) -> None:
    drawn = small_table(tmp_path / "drawn", small_spec(N_ROWS), codec=codec)
    laid = lay(tmp_path / "laid", codec, sound_records(codec))
    for path in (drawn, laid):
        for seed in range(2):
            assert stats_of(path, sample=512, seed=seed).findings == ()
        whole = stats_of(path, sample=None)
        assert whole.findings == ()
        assert whole.total.n_rows == 2 * N_ROWS
        assert whole.is_sound
    assert stats_of(drawn, sample=512, against=None).init == "normal"


@pytest.mark.parametrize(
    ("codec", "sample"),
    [
        *(pytest.param(codec, 1024, marks=() if codec == "fp8-e4m3-e8m0" else pytest.mark.slow) for codec in CODECS),
        ("bf16", None),
    ],
)
@pytest.mark.parametrize(("fault", "check", "where"), FAULTS, ids=lambda value: getattr(value, "__name__", None))
def test_each_fault_is_found_and_named(
    tmp_path: Path, fault: Fault, check: str, where: str, codec: str, sample: int | None
) -> None:
    records = sound_records(codec)
    fault(codec, records)
    report = stats_of(lay(tmp_path / "t", codec, records), sample=sample, seed=3)
    check = check or ("bad-scales" if codec == "int8-row" else "nan-codes")
    (finding,) = [finding for finding in report.findings if finding.check == check][:1]
    assert where in finding.where
    assert finding.severity is (Severity.SUSPECT if check in SUSPECT else Severity.FAULT)
    if check != "copied-head":
        assert [found.check for found in report.findings] == [check]
    else:
        assert [found.check for found in report.findings] == [check, check]
    if check == "shifted-copy":
        assert "moved by +1 row," in finding.found
    assert report.is_sound is (check in SUSPECT)


def test_what_was_drawn_may_not_hold_zeros(tmp_path: Path) -> None:
    zeros = small_table(tmp_path / "zeros", small_spec(N_ROWS), init="zeros")
    assert stats_of(zeros, sample=512).findings == ()
    records = sound_records("bf16")
    for layer in records.values():
        layer[:] = 0
    (finding,) = stats_of(lay(tmp_path / "laid", "bf16", records), sample=512).findings
    assert (finding.check, finding.where) == ("zero-table", "every head")


@pytest.mark.parametrize(("codec", "moved_by"), [("bf16", 1), ("int8-row", -3)])
def test_a_moved_head_is_seen_beside_the_right_table(tmp_path: Path, codec: str, moved_by: int) -> None:
    records = sound_records(codec)
    right = lay(tmp_path / "right", codec, records)
    other_codec = small_codec_copy(tmp_path / "f32", codec)
    records[14][HEAD_ROWS:] = np.roll(records[14][HEAD_ROWS:], moved_by, axis=0)
    wrong = lay(tmp_path / "wrong", codec, records)
    assert stats_of(wrong, sample=512).findings == ()
    for reference in (right, other_codec):
        with open_table(reference) as table:
            assert stats_of(right, sample=512, against=table).findings == ()
            report = stats_of(wrong, sample=512 if reference == right else None, against=table)
            (finding,) = report.findings
            assert (finding.check, finding.where) == ("shifted-head", "layer 14, order 2, head 1")
            assert f"row r is row r {'-' if moved_by > 0 else '+'} {abs(moved_by)} of" in finding.found
            assert not report.is_sound


def small_codec_copy(path: Path, codec: str) -> Path:
    """The sound records of a codec, as float32."""
    values = {layer: get_codec(codec).decode(records) for layer, records in sound_records(codec).items()}
    return lay(path, "f32", {layer: get_codec("f32").encode(rows) for layer, rows in values.items()})


def test_other_rows_are_not_called_moved(tmp_path: Path) -> None:
    left = lay(tmp_path / "left", "bf16", sound_records("bf16"))
    records = sound_records("bf16")
    records[1][:HEAD_ROWS] = sound_records("bf16", seed=7)[1][:HEAD_ROWS]
    with open_table(left) as reference:
        (finding,) = stats_of(lay(tmp_path / "right", "bf16", records), sample=512, against=reference).findings
        assert (finding.check, finding.where) == ("unlike-reference", "layer 1, order 2, head 0")
        other = small_table(tmp_path / "other", small_spec(N_ROWS + 1))
        with pytest.raises(SpecMismatch, match="addressing"):
            stats_of(other, sample=512, against=reference)


def test_equal_continuations_are_no_fault_of_a_next_token_table(tmp_path: Path) -> None:
    records = sound_records("bf16")
    zero = get_codec("bf16").encode(np.zeros((1, 32), np.float32))
    chooser = np.random.default_rng(5)
    for layer in records.values():
        for head in (layer[:HEAD_ROWS], layer[HEAD_ROWS:]):
            head[:1500] = head[chooser.integers(0, 100, 1500)]
            head[1500:] = zero
            chooser.shuffle(head)
    path = lay(tmp_path / "t", "bf16", records)
    assert {finding.check for finding in stats_of(path).findings} >= {"repeated-rows", "zero-rows"}
    assert stats_of(path, init="next-token").findings == ()
    records[14][HEAD_ROWS : HEAD_ROWS + 600 : 2] = zero
    (finding,) = stats_of(lay(tmp_path / "less", "bf16", records), init="next-token").findings
    assert (finding.check, finding.where) == (
        "zero-rows",
        "2 heads (layer 14, order 2, head 0; … layer 14, order 2, head 1)",
    )
    with pytest.raises(InvalidInput, match="not known"):
        stats_of(path, init="uniform")
    with pytest.raises(InvalidInput, match="as its manifest says"):
        stats_of(small_table(tmp_path / "drawn", small_spec(N_ROWS)), init="zeros")


def test_threads_and_seeds(tmp_path: Path) -> None:
    records = sound_records("bf16")
    repeated_rows("bf16", records)
    zeroed_head("bf16", records)
    path = lay(tmp_path / "t", "bf16", records)
    for sample in (512, None):
        one, three = (stats_record(stats_of(path, sample=sample, seed=5, threads=threads)) for threads in (1, 3))
        assert {**one, "device_bytes": 0} == {**three, "device_bytes": 0}
    groups = [stats_record(stats_of(path, sample=512, seed=seed))["groups"] for seed in (6, 7)]
    assert groups[0] != groups[1]
    with pytest.raises(InvalidInput, match="expected 64 rows"):
        stats_of(path, sample=63)


def test_figures_of_a_table_that_is_read_whole(tmp_path: Path) -> None:
    records = sound_records("fp8-e4m3-e8m0")
    path = lay(tmp_path / "t", "fp8-e4m3-e8m0", records)
    with open_table(path) as table:
        record = stats_record(table_stats(table, sample=None))
        norms = np.linalg.norm(table.decode(records[1][:HEAD_ROWS]).astype(np.float64), axis=1)
    head = record["groups"][0]
    for share, norm in head["norms"].items():
        assert norm == pytest.approx(np.quantile(norms, float(share[1:]) / 100, method="lower"), rel=0.01)
    assert record["page_bytes"] is None
    assert record["requested_bytes"] == 2 * N_ROWS * 33
    bytes_found = np.bincount(np.concatenate([layer[:, :32].reshape(-1) for layer in records.values()]), minlength=256)
    shares = bytes_found[bytes_found > 0] / bytes_found.sum()
    named = {section["section"]: section for section in record["sections"]}
    assert named["codes"]["entropy_bits_per_byte"] == pytest.approx(-(shares * np.log2(shares)).sum())
    scales = np.concatenate([layer[:, 32] for layer in records.values()])
    expected = {str(int(scale) - 127): int((scales == scale).sum()) for scale in np.unique(scales)}
    assert record["scales"]["by_power_of_two"] == expected
    assert head["limits"] == {"rows": 0.0, "neighbours": 0.0, "repeated": 0.0}


@pytest.mark.parametrize("by", ["rows", "head"])
def test_rows_that_are_elsewhere_are_left_alone(tmp_path: Path, by: str) -> None:
    spec, records = small_spec(N_ROWS), sound_records("bf16")
    owned = owned_rows(spec, by=by, rank=1, n_ranks=3)
    empty = replace(small_manifest(spec), owned=owned, rank=Rank(by=by, rank=1, n_ranks=3))
    path = lay_table(tmp_path / "rank", empty, records, shard_bytes=100_000)
    for sample in (128, None):
        report = stats_of(path, sample=sample)
        assert report.findings == ()
        assert sum(head.n_here for head in report.heads) == n_rows_of(owned)
        assert report.total.n_rows == n_rows_of(owned) or sample is not None


def test_a_checkpoint_is_read_where_it_lies(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    with open_table(made.path) as table:
        report = table_stats(table, sample=None)
        assert report.total.n_rows == sum(len(records) for records in made.records.values())
        assert table_stats(table, sample=64).total.n_rows > 0
