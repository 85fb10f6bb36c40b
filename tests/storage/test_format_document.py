"""docs/reference/format.md, held to its word: the reader in it, the tools, the keys, the tests that it names."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file
from small_tables import lay_table, random_records, small_manifest, small_spec, small_table

from engram_tables.errors import InvalidInput
from engram_tables.fetch.table import open_table
from engram_tables.storage.building.quantiles import MAGNITUDES_SHA256, normal_magnitudes
from engram_tables.storage.codecs.codec import CODEC_NAMES, get_codec
from engram_tables.storage.sources.record import SourceRecord
from engram_tables.storage.table.features import WRITER_WORDS
from engram_tables.storage.table.layout import LAYOUT_NAMES
from engram_tables.storage.table.manifest import BLOCK_BYTES, Manifest
from engram_tables.storage.table.ranks import Rank, owned_rows
from engram_tables.storage.table.reader import StoredTable

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "reference" / "format.md"
ROWS = np.array([0, 1, 63, 64, 500, 995, 996])
LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
CODECS = [*CODEC_NAMES, "opaque-19"]


@pytest.fixture(scope="module")
def document() -> str:
    return DOCUMENT.read_text()


@pytest.fixture(scope="module")
def reader(document: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The printed program as a file."""
    (code,) = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)
    assert len(code.splitlines()) <= 40
    path = tmp_path_factory.mktemp("reader") / "reader.py"
    path.write_text(code)
    return path


def printed(reader: Path, table: Path, layer_id: int, rows: NDArray[np.int64]) -> list[str]:
    """What the program says of rows, run as a user would, without any package."""
    command = [sys.executable, "-I", "-S", str(reader), str(table), str(layer_id), *map(str, rows)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def loaded(reader: Path) -> dict[str, Any]:
    """The program's functions, for many tables in one process."""
    names: dict[str, Any] = {"__name__": "reader"}
    exec(reader.read_text(), names)
    return names


@pytest.mark.parametrize("layout", ["packed", "page", "aligned-512", "split"])
def test_the_printed_reader_reads_what_fetch_reads(tmp_path: Path, reader: Path, layout: str) -> None:
    path = small_table(tmp_path / "t", small_spec(997), codec="int8-row", layout=layout, shard_bytes=30_000)
    for layer_id in (1, 14):
        with open_table(path) as table:
            records = table.fetch_rows(layer_id, ROWS)
        assert printed(reader, path, layer_id, ROWS) == [bytes(record).hex() for record in records]


def manifests() -> list[Manifest]:
    """Every layout with every codec that it takes."""
    found = []
    for codec in CODECS:
        scale_bits = 0x3F800000 if codec == "fp8-e4m3-scalar" else None
        for layout in ("packed", "page", "aligned-8", "aligned-512", "split"):
            manifest = small_manifest(small_spec(997), codec=codec, layout=layout, scale_bits=scale_bits)
            try:
                manifest.get_layout()
            except InvalidInput:
                assert layout == "split"
                continue
            found.append(manifest)
    return found


@pytest.mark.parametrize("empty", manifests(), ids=lambda manifest: f"{manifest.codec}-{manifest.layout}")
def test_the_printed_reader_reads_every_table(tmp_path: Path, reader: Path, empty: Manifest) -> None:
    records = random_records(empty)
    names = loaded(reader)
    path = lay_table(tmp_path / "t", empty, records, shard_bytes=20_000)
    table = names["open_table"](path)
    for layer_id in (1, 14):
        for row in ROWS:
            assert names["read_row"](path, table, layer_id, int(row)) == records[layer_id][row].tobytes()
    with pytest.raises(AssertionError, match="row 997 of layer 1"):
        names["read_row"](path, table, 1, 997)


@pytest.mark.parametrize("by", ["head", "rows", "layer"])
@pytest.mark.parametrize("layout", ["page", "split"])
def test_the_printed_reader_reads_ranks(tmp_path: Path, reader: Path, by: str, layout: str) -> None:
    whole = small_manifest(small_spec(997), codec="fp8-e4m3-e8m0", layout=layout)
    records = random_records(whole)
    names = loaded(reader)
    n_found = 0
    for rank in range(2):
        owned = owned_rows(whole.spec, by=by, rank=rank, n_ranks=2)
        mine = replace(whole, owned=owned, rank=Rank(by=by, rank=rank, n_ranks=2))
        path = lay_table(tmp_path / str(rank), mine, records, shard_bytes=20_000)
        table = names["open_table"](path)
        for layer_id, ranges in owned.items():
            for row in ROWS:
                if any(start <= row < stop for start, stop in ranges):
                    n_found += 1
                    assert names["read_row"](path, table, layer_id, int(row)) == records[layer_id][row].tobytes()
                else:
                    with pytest.raises(AssertionError, match=f"row {row} of layer {layer_id}"):
                        names["read_row"](path, table, layer_id, int(row))
    assert n_found == 2 * len(ROWS)


def test_the_printed_reader_refuses_what_it_does_not_know(tmp_path: Path, reader: Path) -> None:
    path = lay_table(tmp_path / "t", small_manifest(), random_records(small_manifest()))
    names = loaded(reader)
    data = (path / "engram.json").read_bytes()
    body = json.loads(data)
    del body["manifest_sha256"]
    body["reader_features"].append("zstd")
    body["manifest_sha256"] = hashlib.sha256(names["canonical"](body).encode()).hexdigest()
    for damaged in (names["canonical"](body).encode(), data.replace(b"packed", b"page"), data + b"\n"):
        (path / "engram.json").write_bytes(damaged)
        with pytest.raises(AssertionError):
            names["open_table"](path)


@pytest.mark.parametrize("empty", manifests(), ids=lambda manifest: f"{manifest.codec}-{manifest.layout}")
def test_other_tools_open_the_files(tmp_path: Path, empty: Manifest) -> None:
    records = random_records(empty)
    with StoredTable(lay_table(tmp_path / "t", empty, records, shard_bytes=20_000)) as table:
        shards, files, parts = table.manifest.shards, table.files, table.parts
        blocks = table.manifest.block_bytes
    for shard, file in zip(shards, files, strict=True):
        part = next(part for part in parts if part.name == shard.part)
        rows = records[shard.layer_id][shard.first_row : shard.first_row + shard.n_rows]
        stretches = rows[:, part.start : part.start + part.n_bytes]
        (tensor,) = load_file(file.path).values()
        with safe_open(file.path, framework="np") as opened:
            assert list(opened.keys()) == [shard.part]
            assert opened.metadata()["n_rows"] == str(shard.n_rows)
            assert np.array_equal(opened.get_slice(shard.part)[:1], tensor[:1])
        shape = (part.n_cells(shard.n_rows), part.cell_bytes)
        mapped = np.memmap(file.path, np.uint8, "r", shard.data_offset, shape)
        assert np.array_equal(mapped, tensor)
        used = mapped[:, : part.cell_rows * part.n_bytes].reshape(-1, part.n_bytes)[: shard.n_rows]
        assert np.array_equal(used, stretches)
        if (empty.layout, empty.codec) in (("packed", "f32"), ("packed", "f16")):
            dtype = np.dtype("<f4" if empty.codec == "f32" else "<f2")
            values = np.memmap(file.path, dtype, "r", shard.data_offset, (shard.n_rows, empty.row_width))
            decoded = get_codec(empty.codec).decode(np.ascontiguousarray(rows))
            assert np.array_equal(values.astype(np.float32), decoded, equal_nan=True)
    for start, digest in zip((1, blocks + 1), shards[0].block_sha256[:2], strict=True):
        command = f"tail -c +{start} {files[0].path} | head -c {blocks} | sha256sum"
        assert subprocess.run(command, shell=True, check=True, capture_output=True, text=True).stdout[:64] == digest


def test_pyarrow_reads_the_vocabulary(tmp_path: Path, vocabulary_file: Path) -> None:
    import pyarrow.parquet as pq

    from engram_tables.address.vocabulary import load_vocabulary

    spec = replace(small_spec(), canonical_size=load_vocabulary(vocabulary_file).canonical_size)
    path = small_table(tmp_path / "t", spec, vocabulary_file=vocabulary_file)
    assert pq.read_table(path / "vocab.parquet").equals(pq.read_table(vocabulary_file))
    assert json.loads((path / "engram.json").read_text())["writer_features"] == ["init", "vocabulary"]


def source_of_every_key() -> dict[str, Any]:
    """A source record with something in every list."""
    tensor = {"name": "w", "dtype": "U8", "shape": [101, 64], "file": 0, "start": 8}
    return {
        "form": "raw", "container": "raw", "codec": "bf16", "codec_scale": None, "row_bytes": 64,
        "files": [{"name": "rows.bin", "alignment": 1, "metadata": [["a", "b"]]}],
        "parts": [{"name": "records", "start": 0, "n_bytes": 64, "cell_rows": 1, "cell_bytes": 64}],
        "tensors": [{**tensor, "layer_id": 1, "part": 0, "first_row": 0, "n_rows": 101}],
        "scale_tensors": [{**tensor, "data": "00"}], "left_out": 3,
    }  # fmt: skip


def keys_of(value: Any) -> set[str]:
    """Every key at any depth, but those of the spec, which has a page of its own, and layer ids."""
    if isinstance(value, list):
        return set().union(*map(keys_of, value))
    if not isinstance(value, dict):
        return set()
    inner = (keys_of(item) for key, item in value.items() if key != "spec")
    return {key for key in value if not key.isdigit()}.union(*inner)


def test_every_key_is_documented(tmp_path: Path, document: str) -> None:
    source = source_of_every_key()
    assert SourceRecord.from_json(source).to_json() == source
    rank = Rank(by="rows", rank=0, n_ranks=2)
    owned = owned_rows(small_spec(), by=rank.by, rank=rank.rank, n_ranks=rank.n_ranks)
    empty = small_manifest(source=source, owned=owned, rank=rank)
    path = lay_table(tmp_path / "t", empty, random_records(empty))
    body = json.loads((path / "engram.json").read_text())
    fresh = json.loads((small_table(tmp_path / "fresh") / "engram.json").read_text())
    header = json.loads((path / body["shards"][0]["path"]).read_bytes()[8:4096])
    keys = keys_of(body) | keys_of(fresh) | set(header["__metadata__"]) | {"file_bytes", "map_sha256", "codec_scale"}
    for key in keys:
        assert f"`{key}`" in document or f'"{key}"' in document, key


def test_every_word_is_documented(document: str) -> None:
    assert ", ".join(f"{level:.0f}" for level in LEVELS).replace("-", "−") in document.replace("\n", " ")
    assert f"{BLOCK_BYTES:,}" in document
    for name in (*CODEC_NAMES, *(name.partition("-")[0] for name in LAYOUT_NAMES), *WRITER_WORDS):
        assert f"`{name}`" in document or f"`{name}-N`" in document, name


def test_record_sizes_are_the_documented_ones(document: str) -> None:
    table = document.partition("## Codecs")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", table, flags=re.MULTILINE))
    assert set(rows) == {*CODEC_NAMES, "opaque-N"}
    for name in CODEC_NAMES:
        codec = get_codec(name, scale_bits=0x3F800000 if name == "fp8-e4m3-scalar" else None)
        for width in (32, 256):
            assert codec.row_bytes(width) == eval(re.sub(r"(\d) n", r"\1 * n", rows[name]), {"n": width}), name
    assert get_codec("opaque-7").row_bytes(99) == 7


def e4m3(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """As the document says, but for the NaN codes."""
    exponent, mantissa = codes >> 3 & 15, codes & 7
    small, large = mantissa * 2.0**-9, (8.0 + mantissa) * 2.0 ** (exponent - 10.0)
    return np.where(codes >> 7, -1, 1) * np.where(exponent == 0, small, large).astype(np.float32)


def bf16(raw: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The upper halves of float32."""
    return (raw.view("<u2").astype("<u4") << 16).view("<f4")


def documented_values(codec: str, record: NDArray[np.uint8], n: int) -> NDArray[np.float32]:
    """A record decoded as the table of codecs says, one line a codec; `codec_scale` is 0.75."""
    match codec:
        case "f32" | "f16":
            return record.view("<f4" if codec == "f32" else "<f2").astype(np.float32)
        case "bf16":
            return bf16(record)
        case "fp8-e4m3-e8m0":
            return e4m3(record[:n]).reshape(-1, 32) * np.float32(2) ** (record[n:, None] - np.float32(127))
        case "fp8-e4m3-scalar":
            return e4m3(record) * np.float32(0.75)
        case "int8-row":
            return record[:n].view(np.int8) * record[n:].view("<f2").astype(np.float32)
        case "int4-g32":
            codes = np.stack([record[: n // 2] & 15, record[: n // 2] >> 4], axis=1).reshape(-1, 32)
            scales, biases = np.split(bf16(record[n // 2 :]), 2)
            return codes * scales[:, None] + biases[:, None]
    blocks = record.reshape(n // 32, -1)
    scales, codes = blocks[:, :2].view("<f2").astype(np.float32), blocks[:, 2:]
    if codec == "q8_0":
        return codes.view(np.int8) * scales
    nibbles = np.hstack([codes & 15, codes >> 4]).astype(np.int8)
    return (nibbles - 8 if codec == "q4_0" else LEVELS[nibbles]) * scales


@pytest.mark.parametrize("name", CODEC_NAMES)
def test_values_are_the_documented_ones(name: str) -> None:
    codec = get_codec(name, scale_bits=0x3F400000 if name == "fp8-e4m3-scalar" else None)
    # Bytes of 0x30 to 0x3F are ordinary numbers in every codec's scales and codes.
    records = np.random.default_rng(0).integers(0x30, 0x40, (20, codec.row_bytes(64)), np.uint8)
    for record in records:
        expected = documented_values(name, record, 64).reshape(-1).astype(np.float32)
        assert np.array_equal(codec.decode(record), expected)


def test_every_rule_has_its_tests(document: str) -> None:
    table = document.partition("## Conformance")[2].partition("\n## ")[0]
    named = re.findall(r"`(test_\w+)`", table)
    assert len(named) > 20
    written = "\n".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    missing = [name for name in named if f"def {name}(" not in written]
    assert not missing
    for row in table.splitlines()[6:]:
        assert not row or re.fullmatch(r"\| .+ \| `test_.+` \|", row), row


def test_magnitudes_are_the_documented_ones(document: str) -> None:
    table = normal_magnitudes()
    assert MAGNITUDES_SHA256 in document
    assert table[0] > 0
    assert (np.diff(table) > 0).all()
    assert 4.00 < table[-1] < 4.01
