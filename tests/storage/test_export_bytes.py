"""Headers of exported files against what the containers' own packages write."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import TensorSpec, serialize
from small_tables import lay_table, random_records, small_manifest

from engram_tables.errors import InvalidInput
from engram_tables.storage.export.exporting import plan_export
from engram_tables.storage.export.gguf_bytes import key_value_bytes, place_gguf
from engram_tables.storage.export.placed_files import ExportTensor, PlacedFile
from engram_tables.storage.export.safetensors_bytes import package_order, place_safetensors
from engram_tables.storage.table.reader import StoredTable

SAFETENSORS = {
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "F8_E5M2": ("float8_e5m2", 1),
    "F8_E4M3": ("float8_e4m3fn", 1), "F8_E8M0": ("float8_e8m0fnu", 1), "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1), "I16": ("int16", 2), "U16": ("uint16", 2), "F16": ("float16", 2),
    "BF16": ("bfloat16", 2), "I32": ("int32", 4), "U32": ("uint32", 4), "F32": ("float32", 4), "F64": ("float64", 8),
    "I64": ("int64", 8), "U64": ("uint64", 8), "C64": ("complex64", 8),
}  # fmt: skip
GGUF = {"I8": (GGMLQuantizationType.I8, 1, 1), "Q8_0": (GGMLQuantizationType.Q8_0, 32, 34),
        "Q4_0": (GGMLQuantizationType.Q4_0, 32, 18), "IQ4_NL": (GGMLQuantizationType.IQ4_NL, 32, 18),
        "BF16": (GGMLQuantizationType.BF16, 1, 2), "F16": (GGMLQuantizationType.F16, 1, 2),
        "F32": (GGMLQuantizationType.F32, 1, 4)}  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(lambda s: s != "__metadata__")


def bytes_of(placed: PlacedFile) -> bytes:
    data = bytearray(placed.file_bytes)
    data[: len(placed.head)] = placed.head
    for tensor, offset in placed.tensors:
        assert isinstance(tensor.content, bytes)
        data[offset : offset + tensor.n_bytes] = tensor.content
    return bytes(data)


@given(st.data())
def test_safetensors_are_the_packages(data: st.DataObject) -> None:
    tensors, kept = [], []
    for name in data.draw(st.lists(NAMES, unique=True, max_size=6)):
        dtype = data.draw(st.sampled_from(sorted(SAFETENSORS)))
        shape = tuple(data.draw(st.lists(st.integers(0, 5), max_size=3)))
        content = data.draw(st.binary(min_size=1, max_size=1)) * (math.prod(shape) * SAFETENSORS[dtype][1])
        tensors.append(ExportTensor(name=name, dtype=dtype, shape=shape, content=content))
        kept.append(np.frombuffer(content + b"\0", np.uint8))
    metadata = data.draw(st.none() | st.tuples(NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=9)))
    specs = {
        tensor.name: TensorSpec(
            dtype=SAFETENSORS[tensor.dtype][0],
            shape=list(tensor.shape),
            data_ptr=array.ctypes.data,
            data_len=tensor.n_bytes,
        )
        for tensor, array in zip(tensors, kept, strict=True)
    }
    expected = serialize(specs, None if metadata is None else dict([metadata]))
    placed = place_safetensors("a", package_order(tensors), metadata=() if metadata is None else (metadata,))
    assert bytes_of(placed) == bytes(expected)


@settings(max_examples=30)
@given(data=st.data())
def test_gguf_is_the_packages(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("gguf") / "a.gguf"
    writer = GGUFWriter(path, "deepseek41")
    entries: dict[str, Any] = {"general.architecture": {"type": "string", "value": "deepseek41"}}
    kinds = {"u32": (GGUFValueType.UINT32, 0, 2**32 - 1), "u64": (GGUFValueType.UINT64, 0, 2**64 - 1),
             "i32": (GGUFValueType.INT32, -(2**31), 2**31 - 1)}  # fmt: skip
    for key in data.draw(st.lists(st.text("abc.", min_size=1, max_size=9), unique=True, max_size=5)):
        kind = data.draw(st.sampled_from(["string", *kinds]))
        if kind == "string":
            value: Any = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
            writer.add_key_value(key, value, GGUFValueType.STRING)
        elif data.draw(st.booleans()):
            value = data.draw(st.lists(st.integers(*kinds[kind][1:]), min_size=1, max_size=9))
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub_type=kinds[kind][0])
            kind += "[]"
            value = [str(number) for number in value]
        else:
            value = data.draw(st.integers(*kinds[kind][1:]))
            writer.add_key_value(key, value, kinds[kind][0])
        entries[key] = {"type": kind, "value": value}
    tensors = []
    for number in range(data.draw(st.integers(1, 4))):
        dtype = data.draw(st.sampled_from(sorted(GGUF)))
        package_type, block_values, block_bytes = GGUF[dtype]
        n_rows, n_blocks = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 3))
        content = bytes(range(256))[: n_blocks * block_bytes] * n_rows
        rows = np.frombuffer(content, np.uint8).reshape(n_rows, -1)
        name = f"t{number}"
        if dtype == "I8":
            writer.add_tensor(name, rows.view(np.int8))
        elif dtype in ("F16", "F32"):
            writer.add_tensor(name, rows.view(np.float16 if dtype == "F16" else np.float32))
        else:
            writer.add_tensor(name, rows, raw_dtype=package_type)
        tensors.append(
            ExportTensor(name=name, dtype=dtype, shape=(n_blocks * block_values, n_rows), content=rows.tobytes())
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    placed = place_gguf("a", tensors, key_values=key_value_bytes(entries), n_key_values=len(entries))
    assert bytes_of(placed) == path.read_bytes()


def test_what_no_reader_would_take_is_refused() -> None:
    plain = ExportTensor(name="a", dtype="U8", shape=(2, 3), content=bytes(6))
    for tensors in ([plain, plain], [replace(plain, name="__metadata__")], [replace(plain, dtype="F4")],
                    [replace(plain, shape=(7,))]):  # fmt: skip
        with pytest.raises(InvalidInput, match="export raw rows"):
            place_safetensors("x", tensors)
    for tensor in (plain, replace(plain, dtype="I8", shape=(7,)), replace(plain, dtype="Q8_0", shape=(3, 2)),
                   replace(plain, dtype="I8", shape=())):  # fmt: skip
        with pytest.raises(InvalidInput, match="export safetensors or raw rows"):
            place_gguf("x", [tensor], key_values=b"", n_key_values=0)


SOURCE = {
    "form": "gguf", "container": "gguf", "codec": "f32", "codec_scale": None, "row_bytes": 128,
    "files": [{"name": "a.gguf", "alignment": 32, "metadata": []}],
    "parts": [{"name": "records", "start": 0, "n_bytes": 128, "cell_rows": 1, "cell_bytes": 128}],
    "tensors": [{"name": "blk.1.engram_embd.weight", "dtype": "F32", "shape": [32, 101], "file": 0, "start": 64,
                 "layer_id": 1, "part": 0, "first_row": 0, "n_rows": 101}],
    "scale_tensors": [], "left_out": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"files": [{"name": "a.gguf", "alignment": str(2**60), "metadata": []}]}, "aligned to 1152921504606846976"),
        ({"files": [{"name": "a.gguf", "alignment": 32, "metadata": [["key_values", "0g"], ["n_key_values", "1"]]}]},
         "found no key-values"),
        ({"files": [{"name": "a.gguf", "alignment": 32, "metadata": [["key_values", "00"]]}]}, "found no key-values"),
        ({"tensors": SOURCE["tensors"] * 2}, "found one name for two"),
        ({"container": "zip"}, "made from a gguf in zip"),
        ({"form": "table", "container": "safetensors"}, "made from a table"),
        ({"container": "safetensors", "tensors": [SOURCE["tensors"][0] | {"dtype": "F7"}]}, "of F7"),
    ],
)  # fmt: skip
def test_a_manifest_that_tells_tales_of_its_source_is_refused(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    manifest = replace(small_manifest(codec="f32"), source=SOURCE | changes)
    table = StoredTable(lay_table(tmp_path / "table", manifest, random_records(manifest)))
    with table, pytest.raises(InvalidInput, match=expected):
        plan_export([table])
