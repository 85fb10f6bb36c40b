from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from made_checkpoints import make_deepseek, make_gguf_deepseek
from numpy.typing import NDArray
from safetensors import TensorSpec, serialize
from small_tables import lay_table, names_in, random_records, small_manifest, small_spec, small_table

from engram_tables.address.relatives import LongCatRecipe
from engram_tables.address.spec import AddressSpec, HistoryRule
from engram_tables.errors import CapacityError, InvalidInput, SpecMismatch
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table, plan_table
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.export import exporting
from engram_tables.storage.export.exporting import export_table, plan_export
from engram_tables.storage.export.targets import Form
from engram_tables.storage.sides import open_side
from engram_tables.storage.sources.opening import RawGeometry, open_source
from engram_tables.storage.sources.source import closing
from engram_tables.storage.table.ranks import Rank, owned_rows
from engram_tables.storage.table.reader import StoredTable

Records = Mapping[int, NDArray[np.uint8]]
PACKAGE_DTYPES = {"F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu", "BF16": "bfloat16", "F16": "float16",
                  "F32": "float32", "U32": "uint32", "I64": "int64"}  # fmt: skip
QWEN = HistoryRule(fill_id=7, boundary_ids=(7,))
SCALE_BITS = 0x39510000


def by_package(tensors: Mapping[str, tuple[str, NDArray[Any]]], metadata: Mapping[str, str] | None = None) -> bytes:
    """The file that the safetensors package writes of arrays, whose last axis counts bytes."""
    kept = {name: np.ascontiguousarray(array) for name, (_, array) in tensors.items()}
    specs = {}
    for name, (dtype, _) in tensors.items():
        value_bytes = {"F8_E4M3": 1, "F8_E8M0": 1, "BF16": 2, "F16": 2, "F32": 4, "U32": 4, "I64": 8}[dtype]
        array = kept[name]
        specs[name] = TensorSpec(
            dtype=PACKAGE_DTYPES[dtype],
            shape=[*array.shape[:-1], array.shape[-1] // value_bytes],
            data_ptr=array.ctypes.data,
            data_len=array.nbytes,
        )
    return bytes(serialize(specs, dict(metadata) if metadata else None))


def integers(values: Sequence[int]) -> tuple[str, NDArray[np.uint8]]:
    return "I64", np.array(values, "<i8").view(np.uint8)


def made(path: Path, spec: AddressSpec | None = None, **options: Any) -> tuple[Path, Records]:
    manifest = small_manifest(spec, **options)
    records = random_records(manifest)
    return lay_table(path, manifest, records, shard_bytes=12_288), records


def export(
    tables: Path | Sequence[Path], output: Path, *, form: Form | None = None, threads: int = 2, **options: Any
) -> Path:
    opened = [StoredTable(path) for path in ([tables] if isinstance(tables, Path) else tables)]
    try:
        plan = plan_export(opened, form=form, **options)
        export_table(plan, output, threads=threads)
        written = {output.name: output.stat().st_size} if plan.is_file else {
            path.name: path.stat().st_size for path in output.iterdir()
        }  # fmt: skip
        planned = {output.name if plan.is_file else file.name: file.file_bytes for file in plan.files}
        assert written == planned
    finally:
        for table in opened:
            table.close()
    return output


def read_back(place: Path, spec: AddressSpec) -> Records:
    """All records as our own reader finds them."""
    with closing(open_source(place, spec=spec)) as source:
        return {
            layer.layer_id: np.stack([_record(source, layer.layer_id, row) for row in range(layer.n_rows)])
            for layer in spec.layers
        }


def _record(source: Any, layer_id: int, row: int) -> NDArray[np.uint8]:
    record = np.zeros(source.row_bytes, np.uint8)
    for extent in source.extents:
        if extent.layer_id == layer_id and extent.first_row <= row < extent.first_row + extent.n_rows:
            part = source.parts[extent.part_idx]
            offset = extent.offset + part.offset(row - extent.first_row)
            data = source.files[extent.file_idx].read(offset, part.n_bytes)
            record[part.start : part.start + part.n_bytes] = np.frombuffer(data, np.uint8)
    return record


def assert_same(found: Records, expected: Records) -> None:
    assert found.keys() == expected.keys()
    for layer_id, records in expected.items():
        assert np.array_equal(found[layer_id], records)


# Forms.


@pytest.mark.parametrize("layout", ["packed", "page", "aligned-64", "split"])
def test_deepseek_is_what_the_package_writes_whatever_the_layout(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_TILE_BYTES", 500)
    table, records = made(tmp_path / "table", codec="fp8-e4m3-e8m0", layout=layout)
    output = export(table, tmp_path / "out", to="deepseek")
    tensors = {}
    for layer_id, rows in records.items():
        tensors[f"layers.{layer_id}.engram.embed.weight"] = ("F8_E4M3", rows[:, :32])
        tensors[f"layers.{layer_id}.engram.embed.scale"] = ("F8_E8M0", rows[:, 32:])
    assert names_in(output) == ["model.safetensors"]
    assert (output / "model.safetensors").read_bytes() == by_package(tensors)
    assert_same(read_back(output, small_spec()), records)


def test_several_files_have_an_index(tmp_path: Path) -> None:
    table, records = made(tmp_path / "table", codec="bf16")
    output = export(table, tmp_path / "out", to="deepseek", form=Form(file_bytes=7000))
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert names_in(output) == [*names, "model.safetensors.index.json"]
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == {
        f"layers.{layer_id}.engram.embed.weight": name for layer_id, name in zip((1, 14), names, strict=True)
    }
    assert index["metadata"]["total_size"] == sum(rows.nbytes for rows in records.values())
    assert_same(read_back(output, small_spec()), records)


@pytest.mark.parametrize("codec", ["bf16", "f16", "f32", "fp8-e4m3-scalar"])
def test_qwen_cuts_the_table_and_ships_its_constants(codec: str, tmp_path: Path) -> None:
    spec = replace(small_spec(layer_ids=(1,)), history=QWEN, folded=False)
    scale_bits = SCALE_BITS if codec == "fp8-e4m3-scalar" else None
    table, records = made(tmp_path / "table", spec, codec=codec, scale_bits=scale_bits)
    output = export(table, tmp_path / "out", to="qwen", form=Form(n_parts=8))
    prefix = "model.language_model.layers.1.ple.ple_embedding"
    dtype = {"bf16": "BF16", "f16": "F16", "f32": "F32", "fp8-e4m3-scalar": "F8_E4M3"}[codec]
    tensors: dict[str, Any] = {
        f"{prefix}.ngram_embedding.shard_{part}.weight": (dtype, records[1][part * 13 : part * 13 + 13])
        for part in range(8)
    }
    layer = spec.layers[0]
    tensors[f"{prefix}.layer_multipliers"] = integers(layer.multipliers)
    tensors[f"{prefix}.ngram_heads_vocab_sizes"] = integers(layer.moduli[0])
    tensors[f"{prefix}.ngram_heads_offsets"] = integers(layer.offsets)
    if scale_bits is not None:
        scale = np.frombuffer((scale_bits >> 16).to_bytes(2, "little"), np.uint8)
        tensors[f"{prefix}.ngram_embedding.weight_scale"] = ("BF16", scale)
    assert (output / "model.safetensors").read_bytes() == by_package(tensors, {"format": "pt"})
    assert_same(read_back(output, spec), records)


@pytest.mark.parametrize("qwen", [False, True])
def test_mlx_keeps_codes_scales_and_biases_apart(qwen: bool, tmp_path: Path) -> None:
    spec = small_spec(layer_ids=(1,), row_width=64)
    spec = replace(spec, history=QWEN, folded=False) if qwen else spec
    table, records = made(tmp_path / "table", spec, codec="int4-g32", layout="page")
    output = export(table, tmp_path / "out", to="mlx", form=Form(n_parts=4))
    tensors: dict[str, Any] = {}
    names = [("layers.1.engram.embed", 0, 101)]
    prefix = "model.language_model.layers.1.ple.ple_embedding"
    if qwen:
        names = [(f"{prefix}.ngram_embedding.shards.{part}", part * 26, part * 26 + 26) for part in range(4)]
        layer = spec.layers[0]
        tensors[f"{prefix}.layer_multipliers"] = integers(layer.multipliers)
        tensors[f"{prefix}.ngram_heads_vocab_sizes"] = integers(layer.moduli[0])
        tensors[f"{prefix}.ngram_heads_offsets"] = integers(layer.offsets)
    for name, start, stop in names:
        rows = records[1][start:stop]
        tensors[f"{name}.weight"] = ("U32", rows[:, :32])
        tensors[f"{name}.scales"] = ("BF16", rows[:, 32:36])
        tensors[f"{name}.biases"] = ("BF16", rows[:, 36:])
    assert (output / "model.safetensors").read_bytes() == by_package(tensors, {"format": "mlx"})
    assert_same(read_back(output, spec), records)


def test_longcat_has_a_tensor_a_head(tmp_path: Path) -> None:
    spec = LongCatRecipe(
        name="small", provenance="test", vocab_size=50, hidden_size=128, neighbours=3, splits=2, ratio=1.5, eos_token=2
    ).resolve()
    table, records = made(tmp_path / "table", spec, codec="bf16")
    output = export(table, tmp_path / "out", to="longcat")
    sizes = [76, 78, 80, 82]
    bounds = [0, *accumulate(sizes)]
    tensors = {
        f"model.ngram_embeddings.embedders.{table}.weight": ("BF16", records[0][bounds[table] : bounds[table + 1]])
        for table in range(4)
    }
    assert (output / "model.safetensors").read_bytes() == by_package(tensors, {"format": "pt"})
    assert_same(read_back(output, spec), records)


def test_engram_peft_is_one_file_with_offsets(tmp_path: Path) -> None:
    table, records = made(tmp_path / "table", codec="f32")
    output = export(table, tmp_path / "out", to="engram-peft")
    tensors: dict[str, Any] = {}
    for layer_id, rows in records.items():
        tensors[f"{layer_id}.multi_head_embedding.embedding.weight"] = ("F32", rows)
        tensors[f"{layer_id}.multi_head_embedding.offsets"] = integers((0, 50))
    assert (output / "engram_adapters.safetensors").read_bytes() == by_package(tensors, {"format": "engram-peft"})
    assert_same(read_back(output, small_spec()), records)


@pytest.mark.parametrize("stride", [None, 264, 512])
def test_raw_rows_lie_at_their_stride(stride: int | None, tmp_path: Path) -> None:
    spec = small_spec(row_width=256)
    table, records = made(tmp_path / "table", spec, codec="fp8-e4m3-e8m0", layout="page")
    output = export(table, tmp_path / "out", to="raw", form=Form(row_stride=stride))
    assert names_in(output) == ["layer-01.rows", "layer-14.rows"]
    for layer_id, rows in records.items():
        cells = np.zeros((101, stride or 264), np.uint8)
        cells[:, :264] = rows
        file = output / f"layer-{layer_id:02d}.rows"
        assert file.read_bytes() == cells.tobytes()
        raw = RawGeometry(codec="fp8-e4m3-e8m0", row_stride=stride, layer_id=layer_id)
        with closing(open_source(file, spec=spec, raw=raw)) as source:
            assert source.owned(layer_id) == ((0, 101),)


def test_raw_takes_opaque_rows(tmp_path: Path) -> None:
    table, records = made(tmp_path / "table", codec="opaque-37")
    output = export(table, tmp_path / "out", to="raw")
    assert (output / "layer-14.rows").read_bytes() == records[14].tobytes()


def gguf_by_package(path: Path, architecture: str, name: str, values: Any, tensors: Any) -> bytes:
    writer = GGUFWriter(path, architecture)
    writer.add_string("general.name", name)
    kinds = {"u32": GGUFValueType.UINT32, "u64": GGUFValueType.UINT64, "string": GGUFValueType.STRING}
    for key, (kind, value) in values.items():
        if kind.endswith("[]"):
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=kinds[kind.removesuffix("[]")])
        else:
            writer.add_key_value(key, value, kinds[kind])
    for tensor, rows, raw_dtype in tensors:
        writer.add_tensor(tensor, rows, raw_dtype=raw_dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_gguf_row264_is_what_the_package_writes(tmp_path: Path) -> None:
    spec = replace(small_spec(row_width=256), folded=True)
    table, records = made(tmp_path / "table", spec, codec="fp8-e4m3-e8m0", layout="split")
    output = export(table, tmp_path / "out.gguf", to="gguf-row264")
    key = "deepseek41.engram"
    values = {
        f"{key}.encoding": ("string", "e4m3_e8m0_32_row264"),
        f"{key}.layer_ids": ("u32[]", [1, 14]),
        f"{key}.rows": ("u32[]", [101, 101]),
        f"{key}.compressed_vocab_size": ("u32", 1000),
        f"{key}.pad_id": ("u32", 2),
        f"{key}.primes": ("u32[]", [50, 51, 50, 51]),
        f"{key}.multipliers": ("u64[]", [3, 2**52 + 1, 3, 2**52 + 1]),
    }
    tensors = [(f"blk.{layer_id}.engram_embd.weight", rows.view(np.int8), None) for layer_id, rows in records.items()]
    assert output.read_bytes() == gguf_by_package(tmp_path / "p.gguf", "deepseek41", "small", values, tensors)
    assert_same(read_back(output, spec), records)
    tensor = GGUFReader(output).tensors[1]
    assert np.array_equal(np.asarray(tensor.data).view(np.uint8), records[14])


@pytest.mark.parametrize("qwen", [False, True])
def test_gguf_q8_0_is_read_by_the_package(qwen: bool, tmp_path: Path) -> None:
    spec = replace(small_spec(layer_ids=(1,), row_width=64), folded=not qwen)
    spec = replace(spec, history=QWEN) if qwen else spec
    table, records = made(tmp_path / "table", spec, codec="q8_0")
    output = export(table, tmp_path / "out.gguf", to="gguf-q8_0")
    reader = GGUFReader(output)
    (tensor,) = reader.tensors
    assert tensor.name == ("per_layer_token_embd.weight" if qwen else "blk.1.engram_embd.weight")
    assert (tensor.tensor_type, list(tensor.shape)) == (GGMLQuantizationType.Q8_0, [64, 101])
    assert np.array_equal(np.asarray(tensor.data).reshape(101, -1), records[1])
    multipliers = reader.fields["qwen4exp.ple.layer_multipliers" if qwen else "deepseek41.engram.multipliers"]
    assert multipliers.types == [GGUFValueType.ARRAY, GGUFValueType.UINT64]
    assert multipliers.contents() == [3, 2**52 + 1]
    assert_same(read_back(output, spec), records)


# Codecs, addressing, rows.


def test_another_codec_is_refused_unless_asked_for(tmp_path: Path) -> None:
    table = small_table(tmp_path / "table", codec="bf16")
    with pytest.raises(InvalidInput, match=r"found rows in bf16, expected int4-g32 for --to mlx.*--codec int4-g32"):
        export(table, tmp_path / "out", to="mlx")
    output = export(table, tmp_path / "out", to="mlx", codec="int4-g32")
    with StoredTable(table) as stored:
        values = stored.codec.decode(np.stack([_of_table(stored, 1, row) for row in range(101)]))
    assert np.array_equal(read_back(output, small_spec())[1], get_codec("int4-g32").encode(values))
    with pytest.raises(InvalidInput, match="--codec fp8-e4m3-scalar: found no scale for all rows"):
        export(table, tmp_path / "out3", to="raw", codec="fp8-e4m3-scalar")
    opaque, _ = made(tmp_path / "opaque", codec="opaque-37")
    with pytest.raises(InvalidInput, match="opaque-37 has no decoder"):
        export(opaque, tmp_path / "out2", to="mlx", codec="int4-g32")


def _of_table(stored: StoredTable, layer_id: int, row: int) -> NDArray[np.uint8]:
    spots = stored.locate(layer_id, np.array([row]))
    data = os.pread(stored.files[int(spots.file_idx[0])].fd, stored.row_bytes, int(spots.offsets[0]))
    return np.frombuffer(data, np.uint8)


def test_rows_that_cannot_be_encoded_are_named(tmp_path: Path) -> None:
    manifest = small_manifest(codec="f32")
    records = {layer_id: np.zeros_like(rows) for layer_id, rows in random_records(manifest).items()}
    records[14].view(np.float32)[77, 3] = np.inf
    table = lay_table(tmp_path / "table", manifest, records)
    with pytest.raises(InvalidInput, match="row 77, column 3") as raised:
        export(table, tmp_path / "out", to="deepseek", codec="bf16")
    assert raised.value.__notes__ == ["rows are counted from row 0 of layer 14"]
    assert names_in(tmp_path) == ["table"]


@pytest.mark.parametrize("to", ["qwen", "longcat"])
def test_another_hash_is_refused(to: str, tmp_path: Path) -> None:
    table, _ = made(tmp_path / "table", codec="bf16")
    with pytest.raises(InvalidInput, match=f"expected .* hash.*--to {to}.*export raw rows"):
        export(table, tmp_path / "out", to=to)


def test_a_fresh_table_has_no_source(tmp_path: Path) -> None:
    table, _ = made(tmp_path / "table")
    with pytest.raises(InvalidInput, match=r"found no source.*deepseek, qwen"):
        export(table, tmp_path / "out")
    with pytest.raises(InvalidInput, match="--to 'onnx': not known"):
        export(table, tmp_path / "out", to="onnx")


@pytest.mark.parametrize("by", ["head", "rows", "layer"])
def test_ranks_together_are_the_whole(by: str, tmp_path: Path) -> None:
    whole, records = made(tmp_path / "whole", codec="f32")
    manifest = small_manifest(codec="f32")
    ranks = []
    for number in range(3):
        rank = Rank(by=by, rank=number, n_ranks=3)
        owned = owned_rows(manifest.spec, by=by, rank=number, n_ranks=3)
        ranks.append(lay_table(tmp_path / f"rank-{number}", replace(manifest, rank=rank, owned=owned), records))
    together = export(ranks[::-1], tmp_path / "together", to="deepseek")
    expected = export(whole, tmp_path / "expected", to="deepseek")
    assert (together / "model.safetensors").read_bytes() == (expected / "model.safetensors").read_bytes()
    with pytest.raises(InvalidInput, match="in no table, expected each row in one table"):
        export(ranks[1:], tmp_path / "out", to="deepseek")
    with pytest.raises(InvalidInput, match=r"rows 0 to .* in .*rank-0 and .*whole"):
        export([ranks[0], whole], tmp_path / "out", to="deepseek")
    other, _ = made(tmp_path / "other", codec="bf16")
    with pytest.raises(SpecMismatch, match="found another codec"):
        export([whole, other], tmp_path / "out", to="deepseek")


# Output.


def test_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "_TILE_BYTES", 300)
    table, _ = made(tmp_path / "table", codec="f32", layout="page")
    one = export(table, tmp_path / "one", to="raw", threads=1)
    many = export(table, tmp_path / "many", to="raw", threads=5)
    for name in names_in(one):
        assert (one / name).read_bytes() == (many / name).read_bytes()


def test_existing_output_is_replaced_only_by_force_and_only_if_it_is_an_export(tmp_path: Path) -> None:
    table, _ = made(tmp_path / "table", codec="bf16")
    with StoredTable(table) as stored:
        plan = plan_export([stored], to="deepseek")
        output = tmp_path / "out"
        export_table(plan, output)
        with pytest.raises(InvalidInput, match="exists already"):
            export_table(plan, output)
        export_table(plan, output, force=True)
        (output / "letter.txt").write_text("dear")
        with pytest.raises(InvalidInput, match=r"letter.txt: found in the directory that --force would remove"):
            export_table(plan, output, force=True)
        with pytest.raises(InvalidInput, match="is or holds the table"):
            export_table(plan, table, force=True)
        with pytest.raises(InvalidInput, match="is or holds the table"):
            export_table(plan, table / "inside")
        with pytest.raises(InvalidInput, match="is or holds the table"):
            export_table(plan, tmp_path, force=True)
    assert (output / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("to", ["deepseek", "gguf-row264"])
@pytest.mark.parametrize("failing_call", [1, 2, 9, 20])
def test_whatever_fails_nothing_is_left(
    to: str, failing_call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(small_spec(row_width=256), folded=True)
    table, _ = made(tmp_path / "table", spec, codec="fp8-e4m3-e8m0")
    monkeypatch.setattr(exporting, "_TILE_BYTES", 3000)
    write, calls = os.pwrite, []

    def fail(fd: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) == failing_call:
            raise OSError(28, "No space left on device")
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(OSError, match="No space left"):
        export(table, tmp_path / "out", to=to)
    assert names_in(tmp_path) == ["table"]


def test_a_full_disk_is_met_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, _ = made(tmp_path / "table")
    monkeypatch.setattr(os, "statvfs", lambda _: type("Status", (), {"f_bavail": 1, "f_frsize": 4096}))
    with pytest.raises(CapacityError, match=r"found 4.00 KiB .* free, expected"):
        export(table, tmp_path / "out", to="raw")


@pytest.mark.parametrize("name", ["precious.gguf", "other.safetensors", "mine.rows"])
def test_force_removes_no_files_of_others(name: str, tmp_path: Path) -> None:
    """A directory of models is not an export because its files end alike."""
    table, _ = made(tmp_path / "table", codec="bf16")
    output = tmp_path / "models"
    output.mkdir()
    (output / name).write_bytes(b"dear")
    with StoredTable(table) as stored, pytest.raises(InvalidInput, match=rf"{name}: found in the directory"):
        export_table(plan_export([stored], to="deepseek"), output, force=True)
    assert (output / name).read_bytes() == b"dear"


def test_force_removes_no_model_that_holds_more_than_its_table(tmp_path: Path) -> None:
    """As it is when a table is exported over the very checkpoint that it was made from."""
    checkpoint = make_deepseek(tmp_path / "model")
    (checkpoint.path / "config.json").rename(tmp_path / "config.json")
    gguf = make_gguf_deepseek(tmp_path / "model.gguf")
    with closing(open_source(checkpoint.path, config=tmp_path / "config.json")) as source:
        build_table(plan_repack(source, layout="packed"), tmp_path / "table")
    with StoredTable(tmp_path / "table") as stored:
        plan = plan_export([stored])
        with pytest.raises(InvalidInput, match=r"tensors that are no tables, layers\.1\.engram\.q_weight"):
            export_table(plan, checkpoint.path, force=True)
        with pytest.raises(InvalidInput, match="tensors that are no tables"):
            export_table(plan_export([stored], to="gguf-q8_0", codec="q8_0"), gguf.path, force=True)
        for _ in range(2):
            export_table(plan, tmp_path / "again", force=True)
            export_table(plan_export([stored], to="raw"), tmp_path / "again", force=True)
            export_table(plan_export([stored], to="gguf-q8_0", codec="q8_0"), tmp_path / "again.gguf", force=True)


def test_ranks_of_tables_with_other_first_values_are_not_one(tmp_path: Path) -> None:
    for rank in (0, 1):
        plan = plan_table(small_spec(), codec="f32", layout="packed", init="normal", seed=rank)
        build_table(plan, tmp_path / f"whole-{rank}")
        with open_side(tmp_path / f"whole-{rank}") as side:
            share = Rank(by="rows", rank=rank, n_ranks=2)
            plan = plan_repack(side.source, layout="packed", rank=share, origin=side.manifest)
            build_table(plan, tmp_path / f"rank-{rank}")
    with (
        StoredTable(tmp_path / "rank-0") as one,
        StoredTable(tmp_path / "rank-1") as other,
        pytest.raises(SpecMismatch, match="another initialisation"),
    ):
        plan_export([one, other], to="raw")
