"""What headers alone tell of every form."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import MAKERS, Made, make_deepseek, make_raw, write_tensors
from made_gguf import make_gguf_deepseek

from engram_tables.byte_files import LocalFile
from engram_tables.errors import CorruptTable, InvalidInput
from engram_tables.inspect.counted_files import CountedFile, ReadCount
from engram_tables.inspect.header import Asked, inspect_header
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.sources.opening import RawGeometry, open_source
from engram_tables.storage.sources.source import closing


def bytes_of(row: dict[str, Any]) -> bytes:
    """The record that a row of the report points at."""
    data = b""
    for part in row["parts"]:
        with Path(part["file"]).open("rb") as file:
            file.seek(part["offset"])
            data += file.read(part["n_bytes"])
    return data


def check(made: Made, record: dict[str, Any]) -> None:
    """Everything that a report says against what was written."""
    assert (record["agrees"], record["difference"], record["problem"]) == (True, None, None)
    assert (record["codec"], record["row_bytes"], record["row_width"]) == (made.codec, made.row_bytes, made.row_width)
    for row in record["rows"]:
        assert bytes_of(row) == made.records[row["layer_id"]][row["row"]].tobytes()
    for layer in record["layers"]:
        n_rows = len(made.records[layer["layer_id"]])
        assert (layer["n_rows"], layer["n_rows_here"], layer["reads_per_row"]) == (n_rows, n_rows, len(record["parts"]))
        assert layer["pages_per_row"] == layer["n_pages"] / n_rows


def every_row(made: Made) -> list[tuple[int, int]]:
    return [(layer_id, row) for layer_id, records in made.records.items() for row in range(len(records))]


@pytest.mark.parametrize("form", MAKERS)
def test_every_form_is_understood_from_its_headers(form: str, tmp_path: Path) -> None:
    made = MAKERS[form](tmp_path / "checkpoint")
    record = inspect_header(made.path, asked=Asked(opaque=made.codec.startswith("opaque-")), rows=every_row(made))
    check(made, record)
    n_pages = {layer["layer_id"]: layer["n_pages"] for layer in record["layers"]}
    for layer_id, total in n_pages.items():
        assert total == sum(p["n_pages"] for r in record["rows"] if r["layer_id"] == layer_id for p in r["parts"])


@pytest.mark.parametrize("layout", ["packed", "page", "aligned-64", "split"])
def test_a_table_of_ours_too(layout: str, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    with closing(open_source(made.path)) as source:
        build_table(plan_repack(source, layout=layout, shard_bytes=16_384), tmp_path / "table", threads=2)
    record = inspect_header(tmp_path / "table", rows=every_row(made))
    check(made, record)
    assert (record["form"], record["layout"]) == ("table", layout)
    manifest = (tmp_path / "table" / "engram.json").stat().st_size
    assert record["bytes_read"] == manifest + 4096 * len(record["files"])
    shard = Path(record["files"][0]["where"])
    data = bytearray(shard.read_bytes())
    data[20] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptTable, match="its header hashes to"):
        inspect_header(tmp_path / "table")


def test_no_row_is_read(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint", base=5003)
    record = inspect_header(made.path)
    headers = [file.read_bytes()[:8] for file in made.path.glob("*.safetensors")]
    config = [made.path / "config.json"]
    most = sum(8 + int.from_bytes(header, "little") for header in headers)
    most += sum(path.stat().st_size for path in (*config, made.path / "model.safetensors.index.json"))
    assert 0 < record["bytes_read"] <= most
    assert sum(file["file_bytes"] for file in record["files"]) > 1_000_000


def test_a_sparse_file_of_the_published_size(tmp_path: Path) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, dtype, width in (("weight", "F8_E4M3", 256), ("scale", "F8_E8M0", 8)):
        offsets = [end, end + 384_006_168 * width]
        header[f"layers.1.engram.embed.{name}"] = {
            "dtype": dtype, "shape": [384_006_168, width], "data_offsets": offsets
        }  # fmt: skip
        end = offsets[1]
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
    record = inspect_header(path, rows=[(1, 384_006_167)])
    assert record["agrees"] is True
    assert record["spec"]["name"] == "deepseek-v4.1-flash"
    weights, scales = record["rows"][0]["parts"]
    assert weights["offset"] == 8 + len(text) + 384_006_167 * 256 > 2**36
    assert scales["offset"] == 8 + len(text) + end - 8
    layer = record["layers"][0]
    assert layer["n_rows_here"] == 384_006_168
    assert 2.0 < layer["pages_per_row"] < 2.1
    assert record["layers"][1]["pages_per_row"] is None
    assert record["bytes_read"] < 10_000


def test_raw_rows_need_their_geometry(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint", layers=(1,))
    file = make_raw(tmp_path / "rows.bin", made.records[1], row_stride=128, first_byte=4096)
    with closing(open_source(made.path)) as source:
        spec = source.spec
    raw = RawGeometry(codec="fp8-e4m3-e8m0", row_stride=128, first_byte=4096)
    record = inspect_header(file, asked=Asked(spec=spec, raw=raw), rows=every_row(made))
    check(replace(made, path=file), record)
    assert (record["form"], record["bytes_read"], record["layers"][0]["pages_per_row"]) == ("raw", 0, 1.0)


def test_a_contradiction_is_told_with_what_is_inside(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    config = json.loads((made.path / "config.json").read_text())
    config["text_config"]["engram_vocab_size"] += 20
    del config["text_config"]["engram_num_embeddings"]
    (made.path / "config.json").write_text(json.dumps(config))
    record = inspect_header(made.path)
    assert record["agrees"] is False
    assert "embed.weight" in record["difference"]
    assert record["spec"] is None
    names = [tensor["name"] for file in record["files"] for tensor in file["tensors"]]
    assert "layers.1.engram.embed.weight" in names
    with pytest.raises(InvalidInput, match="found no rows whose place is known"):
        inspect_header(made.path, rows=[(1, 0)])


def test_what_holds_no_table_is_listed(tmp_path: Path) -> None:
    matrix = np.zeros((4, 8), np.uint8)
    path = write_tensors(tmp_path / "a.safetensors", {f"w{k}": ("U8", (4, 8), matrix) for k in range(20)})
    record = inspect_header(path)
    assert (record["agrees"], record["spec"], record["layers"]) == (None, None, [])
    assert "expected a table" in record["problem"]
    assert (len(record["files"][0]["tensors"]), record["n_left_out"]) == (16, 4)


def test_rows_that_are_not_there_are_refused(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    for row in ((1, len(made.records[1])), (2, 0)):
        with pytest.raises(InvalidInput, match=f"row {row[0]}:{row[1]}: not in"):
            inspect_header(made.path, rows=[row])
    with pytest.raises(InvalidInput, match="holds other rows of this layer"):
        inspect_header(made.files[1], rows=[(1, 0)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match=r"no \.safetensors file"):
        inspect_header(tmp_path / "empty")


def test_a_link_out_of_the_directory_is_refused_here_too(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    made.files[1].rename(tmp_path / "elsewhere.safetensors")
    made.files[1].symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InvalidInput, match="found a link to"):
        inspect_header(made.path)


def test_every_byte_is_read_once(tmp_path: Path) -> None:
    made = make_gguf_deepseek(tmp_path / "model.gguf")
    record = inspect_header(made.path)
    assert record["agrees"] is True
    assert 0 < record["bytes_read"] <= made.path.stat().st_size
    counted = ReadCount()
    file = CountedFile(LocalFile(made.path), counted)
    data = made.path.read_bytes()
    reads = [(10, 20), (0, 5), (25, 10), (0, 40), (7, 0), (12, 3), (30, 20)]
    assert [file.read(*span) for span in reads] == [data[start : start + n_bytes] for start, n_bytes in reads]
    assert counted.bytes_read == 50
    file.close()


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (RawGeometry(codec="fp8-e4m3-e8m0", layer_id=1), "found 16384 bytes from byte 0 on, expected records of 66"),
        (RawGeometry(codec="fp8-e4m3-e8m0", row_stride=128), "found a geometry without a layer, expected one of 1, 3"),
    ],
)
def test_what_is_wrong_with_a_geometry_is_what_is_told(raw: RawGeometry, message: str, tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    with closing(open_source(made.path)) as source:
        spec = source.spec
    file = make_raw(tmp_path / "rows.bin", made.records[1][:128], row_stride=128, first_byte=0)
    os.truncate(file, 16384)
    with pytest.raises(InvalidInput, match=message):
        inspect_header(file, asked=Asked(spec=spec, raw=raw))
    with pytest.raises(InvalidInput, match="found rows without a container"):
        inspect_header(file, asked=Asked(raw=raw))


def test_files_of_other_kinds_are_not_called_damaged(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "checkpoint")
    with pytest.raises(InvalidInput, match=r"found no safetensors header at its start .*the directory of the checkpo"):
        inspect_header(made.path / "config.json")
    with pytest.raises(InvalidInput, match="path: found an empty one"):
        inspect_header("")
