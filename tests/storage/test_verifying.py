from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from small_tables import lay_table, random_records, small_manifest, small_spec, small_table

from engram_tables.errors import IncompleteTable, InvalidInput, SpecMismatch
from engram_tables.storage.checking import verify_blocks
from engram_tables.storage.checking.compare_reports import Measure
from engram_tables.storage.checking.verify import VerifyReport, verify_table, verify_tables
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.ranks import Rank, owned_rows
from engram_tables.storage.table.reader import StoredTable
from engram_tables.storage.table.table_source import table_source

FP8 = "fp8-e4m3-e8m0"


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("layout", ["packed", "page", "split"])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_whole_table_is_whole(tmp_path: Path, layout: str, threads: int) -> None:
    path = tmp_path / "t"
    manifest = small_manifest(codec=FP8, layout=layout)
    lay_table(path, manifest, random_records(manifest), shard_bytes=9000)
    seen: list[tuple[int, int]] = []
    report = verify_table(path, threads=threads, progress=lambda done, total: seen.append((done, total)))
    assert report.is_whole
    assert report.n_rows == manifest.spec.n_rows
    assert report.n_blocks == report.n_blocks_read > 3
    assert report.bytes_read == report.table_bytes == sum(f.stat().st_size for f in path.rglob("*.safetensors"))
    assert seen[-1] == (report.bytes_read, report.bytes_read)


@pytest.mark.parametrize("layout", ["packed", "page", "aligned-64", "split"])
def test_every_flipped_data_byte_is_found_and_located(tmp_path: Path, layout: str) -> None:
    manifest = small_manifest(small_spec(400), codec=FP8, layout=layout)
    path = lay_table(tmp_path / "t", manifest, random_records(manifest), shard_bytes=12288)
    with StoredTable(path) as table:
        files, shards, parts = table.files, table.manifest.shards, table.parts
    for file, shard in ((files[1], shards[1]), (files[-1], shards[-1])):
        part = parts[table.manifest.part_idx(shard.part)]
        for position in range(shard.data_offset, shard.file_bytes, 101):
            flip(file.path, position)
            (damage,) = verify_table(path, threads=1).damaged
            flip(file.path, position)
            assert (path / damage.path, damage.part) == (file.path, shard.part)
            assert damage.start_byte <= position < damage.stop_byte
            assert damage.block_idx == position // 4096
            assert damage.found != damage.expected
            for row in range(shard.n_rows):
                start = shard.data_offset + part.offset(row)
                if start <= position < start + part.n_bytes:
                    assert damage.start_row <= shard.first_row + row < damage.stop_row
    assert verify_table(path).is_whole


def test_spare_bytes_of_pages_are_covered(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t", codec=FP8, layout="page")
    with StoredTable(path) as table:
        file, data_offset = table.files[0], table.manifest.shards[0].data_offset
    flip(file.path, data_offset + 4095)
    assert not verify_table(path).is_whole


def test_several_damaged_blocks_are_all_reported_in_order(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t", small_spec(1000))
    with StoredTable(path) as table:
        file = table.files[1]
    for block in (3, 1, 7):
        flip(file.path, block * 4096 + 100)
    assert [damage.block_idx for damage in verify_table(path, threads=3).damaged] == [1, 3, 7]


def test_samples(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t", small_spec(3000))
    with StoredTable(path) as table:
        file = table.files[0]
    whole = verify_table(path)
    flip(file.path, 5 * 4096)
    found = [not verify_table(path, sample=10, seed=seed).is_whole for seed in range(60)]
    assert any(found)
    assert not all(found)
    assert [not verify_table(path, sample=10, seed=seed).is_whole for seed in range(60)] == found
    report = verify_table(path, sample=10)
    assert (report.n_blocks_read, report.n_blocks) == (10, whole.n_blocks)
    assert verify_table(path, sample=10**9).n_blocks_read == whole.n_blocks
    with pytest.raises(InvalidInput, match="sample"):
        verify_table(path, sample=0)


def test_what_does_not_open_is_not_verified(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t")
    next(path.rglob("*.safetensors")).unlink()
    with pytest.raises(IncompleteTable):
        verify_table(path)


def test_blocks_that_cannot_be_read_are_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = small_table(tmp_path / "t")
    read = verify_blocks.read_at

    def fail_once(fd: int, buffer: memoryview, offset: int) -> memoryview:
        if offset == 4096:
            raise OSError(5, "Input/output error")
        return read(fd, buffer, offset)

    monkeypatch.setattr(verify_blocks, "read_at", fail_once)
    assert {damage.found for damage in verify_table(path).damaged} == {"unreadable (Input/output error)"}


# Against what it was made from.


def against(path: Path, source: Path, **options: object) -> VerifyReport:
    with StoredTable(source) as table:
        return verify_tables([path], against=table_source(table), **options)  # type: ignore[arg-type]


def two_tables(
    root: Path, records: dict[int, NDArray[np.uint8]], changed: dict[int, NDArray[np.uint8]], layout: str = "split"
) -> tuple[Path, Path]:
    """The same rows packed, and in another layout with the changed ones."""
    manifest = small_manifest(codec=FP8)
    return (
        lay_table(root / "packed", manifest, records),
        lay_table(root / layout, replace(manifest, layout=layout), changed, shard_bytes=9000),
    )


@pytest.mark.parametrize("layout", ["page", "aligned-8", "split"])
def test_equal_rows_in_another_layout_are_equal(tmp_path: Path, layout: str) -> None:
    records = random_records(small_manifest(codec=FP8))
    source, path = two_tables(tmp_path, records, records, layout)
    seen: list[tuple[int, int]] = []
    report = against(path, source, progress=lambda done, total: seen.append((done, total)))
    held = report.tables[0].against
    assert report.is_whole
    assert held is not None
    assert (held.rows.n_rows_compared, held.rows.measure) == (202, Measure.BYTES)
    assert seen[-1] == (report.tables[0].bytes_read + held.rows.bytes_read,) * 2


@pytest.mark.parametrize(
    ("row", "byte", "bit", "part", "head"),
    [(0, 0, 0, "weights", 0), (49, 31, 7, "weights", 0), (50, 17, 3, "weights", 1), (100, 32, 6, "scales", 1)],
)
def test_a_single_bit_is_found_and_named(tmp_path: Path, row: int, byte: int, bit: int, part: str, head: int) -> None:
    records = random_records(small_manifest(codec=FP8))
    changed = {layer_id: rows.copy() for layer_id, rows in records.items()}
    changed[14][row, byte] ^= 1 << bit
    source, path = two_tables(tmp_path, records, changed)
    report = against(path, source)
    (table,) = report.tables
    assert table.against is not None
    assert not report.is_whole
    assert not table.damaged  # its digests are those of what was written
    (difference,) = table.against.rows.first
    assert (difference.layer_id, difference.order, difference.head) == (14, 2, head)
    assert (difference.row, difference.byte, difference.part) == (row, byte, part)
    assert difference.expected ^ difference.found == 1 << bit
    groups = [group for group in table.against.rows.groups if group.n_rows_different]
    assert [(group.layer_id, group.head, group.first_rows) for group in groups] == [(14, head, (row,))]
    assert [p.part for p in groups[0].parts if p.n_rows_different] == [part]


def test_a_shifted_head_is_all_different(tmp_path: Path) -> None:
    records = random_records(small_manifest(codec=FP8))
    changed = {layer_id: rows.copy() for layer_id, rows in records.items()}
    changed[1][50:101] = np.roll(changed[1][50:101], 1, axis=0)
    source, path = two_tables(tmp_path, records, changed)
    held = against(path, source).tables[0].against
    assert held is not None
    counts = [(group.layer_id, group.head, group.n_rows_different) for group in held.rows.groups]
    assert counts == [(1, 0, 0), (1, 1, 51), (14, 0, 0), (14, 1, 0)]
    assert [difference.row for difference in held.rows.first] == list(range(50, 66))


def test_rows_are_held_against_the_same_re_encoding(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    fine, coarse = small_manifest(codec="f32"), small_manifest(codec=FP8)
    values = {layer_id: rng.standard_normal((101, 32)).astype(np.float32) for layer_id in (1, 14)}
    encoded = {layer_id: coarse.get_codec().encode(rows) for layer_id, rows in values.items()}
    source = lay_table(tmp_path / "fine", fine, {layer_id: rows.view(np.uint8) for layer_id, rows in values.items()})
    report = against(lay_table(tmp_path / "coarse", coarse, encoded), source)
    assert report.tables[0].against is not None
    assert report.tables[0].against.rows.measure is Measure.RECODED
    assert report.is_whole
    encoded[1][7, 32] ^= 1
    report = against(lay_table(tmp_path / "changed", coarse, encoded), source)
    assert report.tables[0].against is not None
    assert [(d.row, d.byte) for d in report.tables[0].against.rows.first] == [(7, 32)]


def test_a_row_that_cannot_be_encoded_is_named(tmp_path: Path) -> None:
    fine, coarse = small_manifest(codec="f32"), small_manifest(codec=FP8)
    records = {layer_id: np.zeros((101, 128), np.uint8) for layer_id in (1, 14)}
    records[14][33, 2:4] = 0xFF  # NaN
    source = lay_table(tmp_path / "fine", fine, records)
    path = lay_table(tmp_path / "coarse", coarse, random_records(coarse))
    with pytest.raises(InvalidInput, match="finite") as caught:
        against(path, source, threads=1)
    assert "layer 14" in caught.value.__notes__[0]


def test_samples_of_rows(tmp_path: Path) -> None:
    records = random_records(small_manifest(codec=FP8))
    changed = {layer_id: rows.copy() for layer_id, rows in records.items()}
    changed[1][:, 0] ^= 1
    source, path = two_tables(tmp_path, records, changed)
    counts = set()
    for seed in range(8):
        held = against(path, source, sample=30, seed=seed).tables[0].against
        assert held is not None
        assert (held.rows.n_rows, held.rows.n_rows_compared) == (202, 30)
        counts.add(held.rows.n_rows_different)
    assert len(counts) > 1
    assert all(0 < n < 30 for n in counts)
    assert against(path, source, sample=30, seed=3) == against(path, source, sample=30, seed=3, threads=1)


def test_another_addressing_or_codec_is_refused(tmp_path: Path) -> None:
    small = small_manifest(codec=FP8)
    other = small_manifest(small_spec(102), codec=FP8)
    opaque = small_manifest(codec="opaque-33")
    paths = [lay_table(tmp_path / str(k), m, random_records(m)) for k, m in enumerate((small, other, opaque))]
    with pytest.raises(SpecMismatch):
        against(paths[0], paths[1])
    with pytest.raises(InvalidInput, match="opaque-33"):
        against(paths[0], paths[2])
    assert against(paths[2], paths[2]).is_whole


# Ranks.


def rank_manifests(by: str, n_ranks: int, **options: object) -> list[Manifest]:
    whole = small_manifest(codec=FP8, **options)
    return [
        replace(
            whole,
            owned=owned_rows(whole.spec, by=by, rank=rank, n_ranks=n_ranks),
            rank=Rank(by=by, rank=rank, n_ranks=n_ranks),
        )
        for rank in range(n_ranks)
    ]


def rank_tables(root: Path, manifests: list[Manifest], seed: int = 0) -> list[Path]:
    return [lay_table(root / f"rank-{k}", m, random_records(m, seed)) for k, m in enumerate(manifests)]


@pytest.mark.parametrize(("by", "n_ranks"), [("head", 2), ("rows", 4), ("layer", 2), ("head", 3)])
def test_all_ranks_are_disjoint_complete_and_their_source(tmp_path: Path, by: str, n_ranks: int) -> None:
    whole = small_manifest(codec=FP8)
    source = lay_table(tmp_path / "whole", whole, random_records(whole))
    paths = rank_tables(tmp_path, rank_manifests(by, n_ranks))
    with StoredTable(source) as table:
        report = verify_tables(paths, against=table_source(table))
    assert report.is_whole
    assert report.ranks is not None
    assert report.ranks.is_complete
    assert sum(table.n_rows for table in report.tables) == whole.spec.n_rows
    assert [t.against.rows.n_rows_compared for t in report.tables if t.against] == [t.n_rows for t in report.tables]


def test_missing_and_overlapping_ranks_are_named(tmp_path: Path) -> None:
    paths = rank_tables(tmp_path, rank_manifests("rows", 4))
    missing = verify_tables([paths[0], paths[1], paths[3]])
    assert missing.ranks is not None
    found = [(span.layer_id, span.start_row, span.stop_row, span.paths) for span in missing.ranks.rows]
    assert found == [(1, 52, 78, ()), (14, 52, 78, ())]
    assert not missing.is_whole
    twice = verify_tables([*paths, paths[2]])
    assert twice.ranks is not None
    assert {span.paths for span in twice.ranks.rows} == {(str(paths[2]),) * 2}
    assert verify_tables(paths[:1]).ranks is None


def test_a_rank_of_another_table_is_named(tmp_path: Path) -> None:
    first = rank_manifests("rows", 2)
    other = rank_manifests("rows", 2, layout="page")
    other = [replace(manifest, init={"kind": "zeros"}) for manifest in other]
    paths = rank_tables(tmp_path / "a", first) + rank_tables(tmp_path / "b", other)
    report = verify_tables([paths[0], paths[3]])
    assert report.ranks is not None
    assert {unlike.what for unlike in report.ranks.unlike} == {"layout", "init"}
    assert not report.ranks.rows
    assert not report.is_whole
    halves = rank_tables(tmp_path / "c", rank_manifests("head", 2))
    report = verify_tables([paths[0], halves[1]])
    assert report.ranks is not None
    assert {unlike.what for unlike in report.ranks.unlike} == {"divided"}


def test_a_rank_of_another_addressing_does_not_count(tmp_path: Path) -> None:
    first = rank_manifests("rows", 2)
    spec = small_spec(110)
    other = replace(first[1], spec=spec, owned=owned_rows(spec, by="rows", rank=1, n_ranks=2))
    report = verify_tables(rank_tables(tmp_path, [first[0], other]))
    assert report.ranks is not None
    assert [unlike.what for unlike in report.ranks.unlike] == ["fingerprint"]
    assert [(span.layer_id, span.paths) for span in report.ranks.rows] == [(1, ()), (14, ())]


def test_rows_that_the_source_lacks_are_named(tmp_path: Path) -> None:
    whole = small_manifest(codec=FP8)
    path = lay_table(tmp_path / "whole", whole, random_records(whole))
    (part, _) = rank_tables(tmp_path, rank_manifests("rows", 2))
    report = against(path, part)
    held = report.tables[0].against
    assert held is not None
    assert not held.rows.n_rows_different
    assert held.rows.n_rows_compared == 102
    assert [(span.layer_id, span.start_row, span.stop_row) for span in held.missing] == [(1, 51, 101), (14, 51, 101)]
    assert not report.is_whole


def test_whole_tables_are_no_ranks(tmp_path: Path) -> None:
    report = verify_tables([small_table(tmp_path / "a"), small_table(tmp_path / "b")])
    assert report.ranks is None
    assert report.is_whole
