"""Rows leave files for records: every geometry of cells against the plain twin, and offsets of the released sizes."""

from __future__ import annotations

import errno
import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_checkpoints import make_deepseek

from engram_tables.errors import InvalidInput
from engram_tables.storage.extents import Part
from engram_tables.storage.sources.kernels import place_stretches
from engram_tables.storage.sources.opening import RawGeometry, open_rows, open_source
from engram_tables.storage.sources.reading import place_plainly, read_part, read_records
from engram_tables.storage.sources.source import closing

V4_CONFIG = {
    "engram_layer_ids": [1, 14], "engram_num_embeddings": [384_006_168, 384_016_682], "engram_max_ngram_size": 4,
    "engram_vocab_size": 16_000_000, "engram_n_heads": 8, "engram_head_dim": 256, "engram_pad_token_id": 2,
    "engram_compressed_vocab_size": 99_092,
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_stretches_are_placed_as_the_plain_twin_does(data: st.DataObject) -> None:
    word = data.draw(st.sampled_from([1, 2, 4, 8]))
    n_words, cell_rows, spare = (data.draw(st.integers(low, high)) for low, high in ((1, 5), (1, 4), (0, 3)))
    start, after, n_rows = (data.draw(st.integers(0, high)) for high in (3, 3, 9))
    n_bytes = n_words * word
    part = Part(name="x", start=0, n_bytes=n_bytes, cell_rows=cell_rows, cell_bytes=cell_rows * n_bytes + spare * word)
    in_cell = data.draw(st.integers(0, cell_rows - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    file = rng.integers(0, 256, part.data_bytes(in_cell + n_rows) or word, dtype=np.uint8)[part.offset(in_cell) :]
    plain = np.zeros((n_rows, (start + after) * word + n_bytes), np.uint8)
    placed = plain.copy()
    place_plainly(file.tobytes(), in_cell, part, plain, start * word)
    as_words = np.dtype(f"<u{word}")
    place_stretches(
        np.ascontiguousarray(file).view(as_words), in_cell, cell_rows, spare, n_words, placed.view(as_words), start
    )
    assert np.array_equal(placed, plain)


@pytest.mark.parametrize("scratch_bytes", [66, 100, 1000, 2**20])
def test_any_scratch_gives_the_same_records(scratch_bytes: int, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    scratch = np.zeros(scratch_bytes, np.uint8)
    with closing(open_source(made.path)) as source:
        out = np.zeros((200, source.row_bytes), np.uint8)
        read_records(source, 1, 11, out, scratch=scratch)
        assert np.array_equal(out, made.records[1][11:211])
        with pytest.raises(TypeError, match="scratch"):
            read_records(source, 1, 0, out, scratch=scratch[:8])


@pytest.mark.parametrize("scratch_bytes", [12, 40, 2**12])
def test_strides_are_stepped_over_in_any_scratch(scratch_bytes: int, tmp_path: Path) -> None:
    with closing(open_source(make_deepseek(tmp_path / "model").path)) as source:
        spec = source.spec
    cells = np.random.default_rng(3).integers(0, 256, (100, 12), dtype=np.uint8)
    (tmp_path / "rows").write_bytes(cells.tobytes())
    geometry = RawGeometry(row_bytes=9, row_stride=12, layer_id=1)
    with closing(open_source(tmp_path / "rows", spec=spec, raw=geometry)) as source:
        out = np.zeros((61, 9), np.uint8)
        read_part(source, 1, 0, 30, out, scratch=np.zeros(scratch_bytes, np.uint8))
        assert np.array_equal(out, cells[30:91, :9])


def test_a_file_cut_while_it_is_open_is_told(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "model")
    with closing(open_source(made.path)) as source:
        before = source.identities()
        with made.files[0].open("r+b") as file:
            file.truncate(made.files[0].stat().st_size // 2)
        assert source.identities() != before
        with pytest.raises(InvalidInput, match="cut short"):
            read_records(source, 1, 0, np.zeros((len(made.records[1]), source.row_bytes), np.uint8))


def _write_sparse(path: Path, layer_id: int, n_rows: int, planted: dict[int, bytes]) -> None:
    """A file of the released layer's tensors and size that is a hole but for the planted rows of 264 bytes."""
    shapes = {
        "embed.weight": ("F8_E4M3", (n_rows, 256)), "embed.scale": ("F8_E8M0", (n_rows, 8)),
        "wkv.weight": ("F8_E4M3", (25_600, 6144)), "wkv.scale": ("F8_E8M0", (800, 192)),
        "q_weight": ("BF16", (4, 5120)), "k_weight": ("BF16", (4, 5120)),
    }  # fmt: skip
    header, end = {}, 0
    for name, (dtype, shape) in shapes.items():
        n_bytes = math.prod(shape) * (2 if dtype == "BF16" else 1)
        header[f"layers.{layer_id}.engram.{name}"] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [end, end + n_bytes],
        }
        end += n_bytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    start = 8 + len(encoded)
    try:
        with path.open("wb") as file:
            file.write(struct.pack("<Q", len(encoded)) + encoded)
            file.truncate(start + end)
            for row, record in planted.items():
                file.seek(start + 256 * row)
                file.write(record[:256])
                file.seek(start + 256 * n_rows + 8 * row)
                file.write(record[256:])
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in (errno.EFBIG, errno.ENOSPC, errno.EINVAL):
            pytest.skip(f"this filesystem holds no sparse file of {start + end} bytes: {error}")
        raise


def test_files_of_the_released_sizes_are_read_past_two_to_the_36(tmp_path: Path) -> None:
    """Offsets of 384 million rows, in sparse files as long as the released ones."""
    rng = np.random.default_rng(0)
    planted: dict[int, dict[int, bytes]] = {}
    sizes = dict(zip(V4_CONFIG["engram_layer_ids"], V4_CONFIG["engram_num_embeddings"], strict=True))
    lengths = {1: 101_535_150_936, 14: 101_537_926_640}
    for number, (layer_id, n_rows) in enumerate(sizes.items()):
        rows = [0, 1, 2**24 - 1, 2**24, 2**28 - 1, 2**28, n_rows // 2, n_rows - 2, n_rows - 1]
        planted[layer_id] = {row: rng.integers(0, 256, 264, dtype=np.uint8).tobytes() for row in rows}
        path = tmp_path / f"model-{47 + number:05d}-of-00048.safetensors"
        _write_sparse(path, layer_id, n_rows, planted[layer_id])
        assert path.stat().st_size == lengths[layer_id]
    (tmp_path / "config.json").write_text(json.dumps({"text_config": V4_CONFIG}))
    table = open_rows(tmp_path)
    source = table.source
    assert (source.row_bytes, source.codec.name) == (264, "fp8-e4m3-e8m0")
    assert max(extent.offset for extent in source.extents) > 2**36
    for layer_id, records in planted.items():
        assert source.owned(layer_id) == ((0, sizes[layer_id]),)
        for row, record in records.items():
            out = np.zeros((1, 264), np.uint8)
            read_records(source, layer_id, row, out)
            assert out.tobytes() == record
        rows = np.array(list(records))
        for part_idx, part in enumerate(table.parts):
            spots = table.locate(layer_id, rows, part_idx)
            for row, file_idx, offset in zip(rows.tolist(), *spots, strict=True):
                data = source.files[int(file_idx)].read(int(offset), part.n_bytes)
                assert data == records[row][part.start : part.start + part.n_bytes]
        with pytest.raises(InvalidInput, match="found no row"):
            read_records(source, layer_id, sizes[layer_id], np.zeros((1, 264), np.uint8))
    table.close()
