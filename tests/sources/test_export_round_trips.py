"""Imported, exported, and the same files again, for every form; the files are written by others' packages."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_checkpoints import (
    MAKERS,
    Made,
    make_deepseek,
    make_gguf_deepseek,
    make_gguf_qwen,
    make_qwen,
    make_raw,
)

from engram_tables.address.spec import AddressSpec
from engram_tables.errors import InvalidInput
from engram_tables.storage.building.repack import plan_ranks, plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.export.exporting import export_table, plan_export
from engram_tables.storage.sources.opening import RawGeometry, open_source
from engram_tables.storage.sources.source import closing
from engram_tables.storage.table.reader import StoredTable

# Files that hold nothing but the table and what its hash needs.
ALONE = {
    "deepseek": lambda path: make_deepseek(path, extras=False),
    "deepseek-vllm": lambda path: make_deepseek(path, names="vllm", extras=False, metadata={"format": "pt"}),
    "deepseek-not-finite": lambda path: make_deepseek(path, extras=False, finite=False),
    "deepseek-mlx": lambda path: make_deepseek(path, names="mlx", codec="int4-g32", extras=False),
    "qwen-bf16": lambda path: make_qwen(path, extras=False, metadata={"format": "pt"}),
    "qwen-fp8": lambda path: make_qwen(path, codec="fp8-e4m3-scalar", extras=False),
    "qwen-mlx": lambda path: make_qwen(path, codec="int4-g32", extras=False, n_parts=7, n_files=3),
    "qwen-nvfp4": lambda path: make_qwen(path, codec="nvfp4", extras=False),
    "mtplx": MAKERS["mtplx"],
    "mtplx-bf16": MAKERS["mtplx-bf16"],
    "mtplx-interleaved": MAKERS["mtplx-interleaved"],
    "mlx-vlm-interleaved": MAKERS["mlx-vlm-interleaved"],
    "gguf-row264": lambda path: make_gguf_deepseek(path.with_suffix(".gguf"), extras=False),
    "gguf-row264-aligned": lambda path: make_gguf_deepseek(path.with_suffix(".gguf"), extras=False, alignment=4096),
    "gguf-q8_0": lambda path: make_gguf_deepseek(path.with_suffix(".gguf"), codec="q8_0", extras=False),
    "gguf-f16": lambda path: make_gguf_deepseek(path.with_suffix(".gguf"), codec="f16", extras=False),
    "gguf-qwen-q4_0": lambda path: make_gguf_qwen(path.with_suffix(".gguf"), codec="q4_0"),
    "gguf-qwen-iq4_nl": lambda path: make_gguf_qwen(path.with_suffix(".gguf")),
}  # fmt: skip


def imported(made: Made, path: Path, *, layout: str = "packed", codec: str | None = None) -> Path:
    """A table of the checkpoint's rows."""
    with closing(open_source(made.path, opaque=made.codec.startswith("opaque-"))) as source:
        build_table(
            plan_repack(source, layout=layout, codec=codec, block_bytes=4096, shard_bytes=32_768), path, threads=2
        )
    return path


def exported(table: Path, output: Path, **options: str) -> Path:
    with StoredTable(table) as stored:
        export_table(plan_export([stored], **options), output, threads=2)
    return output


def assert_same_files(made: Made, output: Path) -> None:
    found = {path.name: path.read_bytes() for path in output.iterdir() if not path.name.endswith(".index.json")}
    assert found == {path.name: path.read_bytes() for path in made.files}


@pytest.mark.parametrize("form", ALONE)
def test_files_that_hold_the_table_alone_come_out_again(form: str, tmp_path: Path) -> None:
    made = ALONE[form](tmp_path / "checkpoint")
    layout = "page" if made.row_bytes <= 4096 // 2 else "packed"
    table = imported(made, tmp_path / "table", layout=layout)
    assert_same_files(made, exported(table, tmp_path / "out"))


@pytest.mark.parametrize("layout", ["packed", "page", "aligned-256", "split"])
def test_the_layout_of_the_table_does_not_matter(layout: str, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint", extras=False)
    assert_same_files(made, exported(imported(made, tmp_path / "table", layout=layout), tmp_path / "out"))


@pytest.mark.parametrize("form", ["deepseek", "qwen-fp8", "longcat", "longcat-oe", "engram-peft", "gguf-row264"])
def test_what_was_left_out_stays_out_and_the_rows_are_the_same(form: str, tmp_path: Path) -> None:
    made = MAKERS[form](tmp_path / "checkpoint")
    table = imported(made, tmp_path / "table")
    output = exported(table, tmp_path / "out")
    with StoredTable(table) as stored:
        assert plan_export([stored]).left_out > 0
        spec = stored.spec
    again = imported_again(output, spec, tmp_path / "again")
    with StoredTable(again) as stored:
        for layer_id, records in made.records.items():
            extents = [extent for extent in stored.extents if extent.layer_id == layer_id]
            found = b"".join(
                bytes(stored.mapping(extent.file_idx)[extent.offset : extent.offset + extent.n_rows * made.row_bytes])
                for extent in extents
            )
            assert found == records.tobytes()


def imported_again(output: Path, spec: AddressSpec, path: Path) -> Path:
    with closing(open_source(output, spec=spec)) as source:
        build_table(plan_repack(source, layout="packed"), path, threads=2)
    return path


def test_ranks_come_out_as_one(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "checkpoint", codec="int4-g32", extras=False)
    with closing(open_source(made.path)) as source:
        for name, plan in plan_ranks(source, by="rows", n_ranks=3, layout="page").items():
            build_table(plan, tmp_path / name, threads=2)
    tables = [StoredTable(path) for path in sorted(tmp_path.glob("rank*"))]
    export_table(plan_export(tables), tmp_path / "out", threads=2)
    assert_same_files(made, tmp_path / "out")
    with pytest.raises(InvalidInput, match="in no table"):
        plan_export(tables[:2])
    for table in tables:
        table.close()


def test_a_part_of_a_checkpoint_is_exported_as_that_part(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint", extras=False)
    with closing(open_source(made.files[1])) as source:
        build_table(plan_repack(source, layout="packed", layers=[3]), tmp_path / "table", threads=2)
    output = exported(tmp_path / "table", tmp_path / "out")
    assert [path.name for path in output.iterdir()] == [made.files[1].name]
    assert (output / made.files[1].name).read_bytes() == made.files[1].read_bytes()


def test_a_re_encoded_table_says_what_its_source_was(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "checkpoint", codec="fp8-e4m3-scalar", extras=False)
    table = imported(made, tmp_path / "table", codec="f32")
    with pytest.raises(InvalidInput, match=r"found rows in f32, expected fp8-e4m3-scalar.*--codec fp8-e4m3-scalar"):
        exported(table, tmp_path / "out")
    # Every E4M3 value is exact in float32, and so is its quotient by the scale.
    assert_same_files(made, exported(table, tmp_path / "out", codec="fp8-e4m3-scalar"))


@pytest.mark.parametrize(("row_stride", "first_byte"), [(66, 0), (72, 100)])
def test_raw_rows_come_out_where_they_were(row_stride: int, first_byte: int, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint", layers=(1,))
    file = make_raw(tmp_path / "rows.bin", made.records[1], row_stride=row_stride, first_byte=first_byte)
    with closing(open_source(made.path)) as source:
        spec = source.spec
    raw = RawGeometry(codec="fp8-e4m3-e8m0", row_stride=row_stride, first_byte=first_byte)
    with closing(open_source(file, spec=spec, raw=raw)) as source:
        build_table(plan_repack(source, layout="packed"), tmp_path / "table", threads=2)
    found = (exported(tmp_path / "table", tmp_path / "out") / "rows.bin").read_bytes()
    # Whatever lies before and between rows is no row's, and zero here.
    assert found == bytes(first_byte) + cells(made, row_stride)
    if row_stride == made.row_bytes:
        assert found == file.read_bytes()


def cells(made: Made, row_stride: int) -> bytes:
    spare = bytes(row_stride - made.row_bytes)
    return b"".join(record.tobytes() + spare for record in made.records[1])
