"""Rows found in files of any cut, held against a search of all of them; offsets as large as released tables have."""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_tables import small_manifest, small_spec

from engram_tables.errors import InvalidInput
from engram_tables.storage.extents import Extent, Part, n_rows_of, ranges_of
from engram_tables.storage.row_files import RowFiles
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.reader import StoredTable
from engram_tables.storage.table.shards import plan_shards, shard_header

FLASH_ROWS = 384_006_168


class MadeRows(RowFiles):
    """Rows of one layer, 7, in files that nobody opens."""

    def __init__(self, extents: list[Extent], parts: tuple[Part, ...], n_rows: int) -> None:
        super().__init__()
        layer: Any = SimpleNamespace(layer_id=7, n_rows=n_rows)
        spec: Any = SimpleNamespace(layer_ids=(7,), layer={7: layer}.__getitem__)
        self.path, self.spec = Path("made"), spec
        self.parts, self.extents = parts, tuple(extents)

    def _close_files(self) -> None:
        """Nothing is open."""


@st.composite
def made_rows(draw: st.DrawFn) -> MadeRows:
    """Two parts of other cells, each cut in its own way over the same rows."""
    parts = []
    start = 0
    for name in ("weights", "scales"):
        n_bytes, cell_rows = draw(st.integers(1, 40)), draw(st.integers(1, 5))
        cell_bytes = cell_rows * n_bytes + draw(st.integers(0, 30))
        parts.append(Part(name=name, start=start, n_bytes=n_bytes, cell_rows=cell_rows, cell_bytes=cell_bytes))
        start += n_bytes
    owned = [
        (10 * k + draw(st.integers(0, 3)), 10 * k + draw(st.integers(5, 10))) for k in range(draw(st.integers(0, 4)))
    ]
    extents = []
    for part_idx in range(2):
        for start, stop in owned:
            cuts = sorted({start, stop, *draw(st.lists(st.integers(start, stop), max_size=3))})
            for first, last in itertools.pairwise(cuts):
                extents.append(
                    Extent(
                        file_idx=len(extents), layer_id=7, part_idx=part_idx, first_row=first, n_rows=last - first,
                        offset=draw(st.integers(0, 2**40)),
                    )
                )  # fmt: skip
    return MadeRows(extents, tuple(parts), 50)


@given(rows=made_rows())
def test_a_row_lies_where_a_search_of_all_extents_finds_it(rows: MadeRows) -> None:
    owned = [row for start, stop in rows.owned(7) for row in range(start, stop)]
    assert n_rows_of({7: rows.owned(7)}) == len(owned)
    for part_idx, part in enumerate(rows.parts):
        spots = rows.locate(7, np.array(owned, np.int64), part_idx)
        for row, file_idx, offset in zip(owned, *spots, strict=True):
            (extent,) = (
                extent for extent in rows.extents
                if extent.part_idx == part_idx and 0 <= row - extent.first_row < extent.n_rows
            )  # fmt: skip
            cell, within = divmod(row - extent.first_row, part.cell_rows)
            assert (file_idx, offset) == (
                extent.file_idx,
                extent.offset + cell * part.cell_bytes + within * part.n_bytes,
            )
    for row in set(range(50)) - set(owned):
        with pytest.raises(InvalidInput, match=f"row {row} at position 0"):
            rows.locate(7, np.array([row]))
    for row in (-1, 50, 2**62):
        with pytest.raises(InvalidInput, match="expected 0 to 49"):
            rows.locate(7, np.array([row]))


def test_ranges_join_extents_that_touch() -> None:
    extents = [
        Extent(file_idx=0, layer_id=1, part_idx=part_idx, first_row=first, n_rows=n_rows, offset=0)
        for part_idx, first, n_rows in ((0, 20, 5), (0, 0, 10), (0, 10, 3), (1, 0, 25))
    ]
    assert ranges_of(extents, 1) == ((0, 13), (20, 25))
    assert ranges_of(extents, 2) == ()


def sparse_table(path: Path, empty: Manifest, records: dict[int, bytes]) -> Path:
    """A table of holes with a few records in it; the digests of its blocks are not theirs."""
    shards = []
    for shard in plan_shards(empty, 2**40):
        part = empty.parts[empty.part_idx(shard.part)]
        header = shard_header(empty, shard)
        (path / shard.path).parent.mkdir(parents=True, exist_ok=True)
        with (path / shard.path).open("wb") as file:
            file.write(header)
            for row, record in records.items():
                file.seek(shard.data_offset + part.offset(row))
                file.write(record[part.start : part.start + part.n_bytes])
            file.truncate(shard.file_bytes)
        shards.append(replace(shard, header_sha256=hashlib.sha256(header).hexdigest()))
    (path / "engram.json").write_bytes(replace(empty, shards=tuple(shards)).to_bytes())
    return path


@pytest.mark.parametrize("layout", ["packed", "page", "aligned-512", "split"])
def test_offsets_past_2_to_the_36(tmp_path: Path, layout: str) -> None:
    spec = small_spec(FLASH_ROWS, layer_ids=(1,), row_width=256)
    empty = small_manifest(spec, codec="fp8-e4m3-e8m0", layout=layout, block_bytes=2**30)
    rows = [0, 2**32 // 264, 2**32 // 264 + 1, 2**36 // 256 + 1, FLASH_ROWS - 1]
    records = {row: np.random.default_rng(row).bytes(264) for row in rows}
    with StoredTable(sparse_table(tmp_path, empty, records)) as table:
        assert max(file.file_bytes for file in table.files) > 2**36
        assert sum(file.path.stat().st_blocks for file in table.files) * 512 < 2**24
        for row, record in records.items():
            found = b""
            for part_idx, part in enumerate(table.parts):
                ((file_idx,), (offset,)) = table.locate(1, np.array([row]), part_idx)
                found += os.pread(table.files[file_idx].fd, part.n_bytes, offset)
                assert table.mapping(file_idx)[offset : offset + part.n_bytes].tobytes() == found[part.start :]
            assert found == record
