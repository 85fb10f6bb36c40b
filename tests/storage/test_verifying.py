from __future__ import annotations

from pathlib import Path

import pytest
from small_tables import small_spec, small_table

from engram_tables.errors import IncompleteTable, InvalidInput
from engram_tables.storage import verify
from engram_tables.storage.reader import StoredTable
from engram_tables.storage.verify import verify_table


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        byte = file.read(1)[0]
        file.seek(position)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("layout", ["packed", "page"])
@pytest.mark.parametrize("threads", [1, 4])
def test_a_whole_table_is_whole(tmp_path: Path, layout: str, threads: int) -> None:
    path = small_table(tmp_path / "t", layout=layout, shard_bytes=9000)
    seen: list[tuple[int, int]] = []
    report = verify_table(path, threads=threads, progress=lambda done, total: seen.append((done, total)))
    assert report.is_whole
    assert report.n_blocks == report.n_blocks_read > 4
    assert report.bytes_read == report.table_bytes == sum(f.stat().st_size for f in path.rglob("*.safetensors"))
    assert seen[-1] == (report.bytes_read, report.bytes_read)


@pytest.mark.parametrize("layout", ["packed", "page"])
def test_every_flipped_data_byte_is_found_and_located(tmp_path: Path, layout: str) -> None:
    path = small_table(tmp_path / "t", small_spec(400), layout=layout, codec="fp8-e4m3-e8m0", shard_bytes=12288)
    with StoredTable(path) as table:
        shards, layout_of = table.shards, table.layout
    for shard in (shards[1], shards[-1]):
        for position in range(shard.data_offset, shard.file_bytes, 61):
            flip(shard.path, position)
            (damage,) = verify_table(path).damaged
            flip(shard.path, position)
            assert path / damage.path == shard.path
            assert damage.start_byte <= position < damage.stop_byte
            assert damage.block_idx == position // 4096
            assert damage.found != damage.expected
            for row in range(shard.n_rows):
                start = shard.data_offset + layout_of.record_offset(row)
                if start <= position < start + layout_of.row_bytes:
                    assert damage.start_row <= shard.first_row + row < damage.stop_row
    assert verify_table(path).is_whole


def test_spare_bytes_of_pages_are_covered(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t", codec="fp8-e4m3-e8m0", layout="page")
    with StoredTable(path) as table:
        shard = table.shards[0]
    flip(shard.path, shard.data_offset + 4095)
    assert not verify_table(path).is_whole


def test_several_damaged_blocks_are_all_reported_in_order(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t", small_spec(1000))
    with StoredTable(path) as table:
        shard = table.shards[1]
    for block in (3, 1, 7):
        flip(shard.path, block * 4096 + 100)
    assert [damage.block_idx for damage in verify_table(path, threads=3).damaged] == [1, 3, 7]


def test_samples(tmp_path: Path) -> None:
    path = small_table(tmp_path / "t", small_spec(3000))
    with StoredTable(path) as table:
        shard = table.shards[0]
    whole = verify_table(path)
    flip(shard.path, 5 * 4096)
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
    read = verify._read

    def fail_once(fd: int, buffer: memoryview, offset: int) -> memoryview:
        if offset == 4096:
            raise OSError(5, "Input/output error")
        return read(fd, buffer, offset)

    monkeypatch.setattr(verify, "_read", fail_once)
    assert {damage.found for damage in verify_table(path).damaged} == {"unreadable (Input/output error)"}
