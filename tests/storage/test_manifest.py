"""What version 2 of the manifest says beyond a fresh table: features, a source, owned rows, a rank, parts, a scale."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from damage import NONSENSE, leaves, rewrite
from made_checkpoints import MAKERS
from small_tables import lay_table, random_records, small_manifest, small_spec

from engram_tables.byte_files import LocalFile
from engram_tables.errors import CorruptTable, IncompleteTable, InvalidInput, TableError, UnsupportedTable
from engram_tables.storage.codecs.codec import get_codec
from engram_tables.storage.extents import Extent, Part
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.record import SourceRecord, source_record
from engram_tables.storage.sources.source import ScaleTensor, Source, SourceTensor, closing
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.ranks import Rank, owned_rows
from engram_tables.storage.table.reader import StoredTable
from engram_tables.storage.table.shards import plan_shards, shard_header

Change = Callable[[dict[str, Any]], object]

RANK = Rank(by="rows", rank=1, n_ranks=4)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """A planar source of one layer, as a reader would describe it."""
    path = tmp_path_factory.mktemp("source") / "model-00001-of-00001.safetensors"
    path.write_bytes(bytes(5000))
    spec = small_spec(layer_ids=(1,))
    shared = {"file_idx": 0, "layer_id": 1, "first_row": 0, "n_rows": 101}
    return Source(
        where=str(path),
        form="qwen",
        container="safetensors",
        files=(LocalFile(path),),
        metadata=({"format": "pt", "a": "b"},),
        alignments=(8,),
        spec=spec,
        codec=get_codec("int8-row"),
        row_bytes=34,
        parts=(
            Part(name="weights", start=0, n_bytes=32, cell_rows=1, cell_bytes=32),
            Part(name="scales", start=32, n_bytes=2, cell_rows=1, cell_bytes=2),
        ),
        extents=(Extent(part_idx=0, offset=104, **shared), Extent(part_idx=1, offset=3336, **shared)),
        tensors=(
            SourceTensor(name="w", dtype="I8", shape=(101, 32), start=104, stop=3336, part_idx=0, **shared),
            SourceTensor(name="s", dtype="F16", shape=(101, 1), start=3336, stop=3538, part_idx=1, **shared),
        ),
        left_out=("lm_head",),
        scale_tensors=(ScaleTensor("scale", "F32", (1,), "0000803f", 0, 3538),),
    )


@pytest.fixture(scope="module")
def manifest(source: Source) -> Manifest:
    """Everything at once: split, a quarter of the rows, made from a source."""
    empty = small_manifest(
        source.spec, codec="int8-row", layout="split", source=source_record(source),
        owned=owned_rows(source.spec, by=RANK.by, rank=RANK.rank, n_ranks=RANK.n_ranks), rank=RANK,
    )  # fmt: skip
    return replace(empty, shards=tuple(plan_shards(empty, 4096 + 400)))


@pytest.fixture
def table(tmp_path: Path, manifest: Manifest) -> Path:
    empty = replace(manifest, shards=())
    return lay_table(tmp_path / "t", empty, random_records(empty), shard_bytes=4096 + 400)


def test_it_comes_back_as_it_was(manifest: Manifest, source: Source) -> None:
    again = Manifest.from_bytes(manifest.to_bytes(), path="t")
    assert again == manifest
    assert manifest.reader_features == ("codec:int8-row", "layout:split", "owned")
    assert manifest.writer_features == ("source",)
    assert [(shard.path, shard.first_row, shard.n_rows) for shard in manifest.shards] == [
        ("layer-01/weights-00001-of-00003.safetensors", 26, 12),
        ("layer-01/weights-00002-of-00003.safetensors", 38, 12),
        ("layer-01/weights-00003-of-00003.safetensors", 50, 2),
        ("layer-01/scales-00001-of-00001.safetensors", 26, 26),
    ]
    assert again.source is not None
    record = SourceRecord.from_json(again.source)
    assert record == SourceRecord.of(source)
    assert record.files[0].metadata == (("format", "pt"), ("a", "b"))
    assert source.where not in str(again.source)


def test_the_scale_of_a_table_is_exact() -> None:
    empty = small_manifest(codec="fp8-e4m3-scalar", scale_bits=0x3A83126F)
    manifest = replace(empty, shards=tuple(plan_shards(empty, 8192)))
    body = json.loads(manifest.to_bytes())
    assert body["codec_scale"] == "3a83126f"
    assert body["shards"][0]["n_rows"] == 101
    again = Manifest.from_bytes(manifest.to_bytes(), path="t")
    assert again.get_codec().scale_bits == 0x3A83126F


@pytest.mark.parametrize("codec", ["opaque-7", "opaque-100"])
def test_opaque_records_have_any_width(codec: str) -> None:
    empty = small_manifest(codec=codec, layout="aligned-64")
    manifest = replace(empty, shards=tuple(plan_shards(empty, 2**20)))
    assert Manifest.from_bytes(manifest.to_bytes(), path="t") == manifest
    assert manifest.reader_features == ("codec:opaque", "layout:aligned")


def test_an_unknown_writer_word_bars_new_tables_and_nothing_else(table: Path) -> None:
    def add(body: dict[str, Any]) -> None:
        body["writer_features"] = ["source", "trained"]
        body["trained"] = {"steps": 7}

    rewrite(table, add)
    with StoredTable(table) as opened:
        assert opened.manifest.more == {"trained": {"steps": 7}}
        assert opened.manifest.to_bytes() == (table / "engram.json").read_bytes()
        with pytest.raises(UnsupportedTable, match="trained"):
            opened.manifest.check_writer_features("t")


def in_source(*keys: Any, value: Any) -> Change:
    """Set what stands at `keys` inside the source record."""

    def change(body: dict[str, Any]) -> None:
        inner = body["source"]
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


def one_part_of_32_bytes(body: dict[str, Any]) -> None:
    """A source record that agrees with itself, but not with the table of its codec."""
    record = body["source"]
    record.update(row_bytes=32, parts=record["parts"][:1], tensors=record["tensors"][:1])


def in_shard(idx: int, **values: Any) -> Change:
    return lambda body: body["shards"][idx].update(values)


@pytest.mark.parametrize(
    ("change", "kind", "match"),
    [
        (lambda b: b.update(reader_features=[*b["reader_features"], "zstd"]), UnsupportedTable, "zstd"),
        (lambda b: b.update(reader_features=["codec:q9", "layout:split", "owned"]), UnsupportedTable, "codec:q9"),
        (lambda b: b.update(reader_features=b["reader_features"][1:]), CorruptTable, "reader_features"),
        (lambda b: b.update(reader_features=b["reader_features"][::-1]), CorruptTable, "reader_features"),
        (lambda b: b.update(reader_features=b["reader_features"] * 2), CorruptTable, "reader_features"),
        (lambda b: b.update(reader_features="owned"), CorruptTable, "list of words"),
        (lambda b: b.update(reader_features=["A b"]), CorruptTable, "list of words"),
        (lambda b: b.update(writer_features=[]), CorruptTable, "writer_features"),
        (lambda b: b.update(writer_features=["source", "trained"]), CorruptTable, "trained"),
        (lambda b: b.update(writer_features=["rank", "source"]), CorruptTable, "rank"),
        (lambda b: b.update(trained=1), UnsupportedTable, "trained"),
        (lambda b: b.update(codec="bf16"), CorruptTable, "."),
        (lambda b: b.update(codec_scale="3f800000"), CorruptTable, "int8-row"),
        (lambda b: b.update(codec_scale="3F800000"), CorruptTable, "codec_scale"),
        (lambda b: b.update(codec_scale=1), CorruptTable, "codec_scale"),
        (lambda b: b.update(init={"kind": "zeros"}, writer_features=["init", "source"]), CorruptTable, "one of the"),
        (lambda b: b.update(owned=None, reader_features=b["reader_features"][:2]), CorruptTable, "the rank's rows"),
        (lambda b: b.update(owned={}), CorruptTable, "other layers"),
        (lambda b: b.update(owned={"01": [[26, 52]]}), CorruptTable, "other layers"),
        (lambda b: b.update(owned={"1": [[26, 52]], "2": []}), CorruptTable, "other layers"),
        (lambda b: b.update(owned={"1": [[26, 52, 60]]}), CorruptTable, "."),
        (lambda b: b.update(owned={"1": [[26, 26], [26, 52]]}), CorruptTable, "owned rows"),
        (lambda b: b.update(owned={"1": [[26, 40], [40, 52]]}), CorruptTable, "owned rows"),
        (lambda b: b.update(owned={"1": [[40, 52], [26, 39]]}), CorruptTable, "owned rows"),
        (lambda b: b.update(owned={"1": [[-1, 52]]}), CorruptTable, "owned rows"),
        (lambda b: b.update(owned={"1": [[26, 102]]}), CorruptTable, "owned rows"),
        (lambda b: b.update(owned={"1": [[25, 52]]}), CorruptTable, "rank 1 of 4"),
        (lambda b: b.update(owned={"1": [[26, str(2**63)]]}), CorruptTable, "owned rows"),
        (lambda b: b.update(owned={"1": [[26, 51]]}), CorruptTable, "n_rows"),
        (lambda b: b.update(owned={"1": [[26, 40], [41, 52]]}), CorruptTable, "."),
        (lambda b: b.update(owned={"1": []}), CorruptTable, "shards"),
        (lambda b: b.update(rank=None, owned={"1": [[0, 101]]}), CorruptTable, "without a rank"),
        (lambda b: b["rank"].update(rank=4), CorruptTable, "rank"),
        (lambda b: b["rank"].update(n_ranks=0), CorruptTable, "rank"),
        (lambda b: b["rank"].update(by="column"), CorruptTable, "column"),
        (lambda b: b["rank"].update(by=["rows"]), CorruptTable, "rank"),
        (lambda b: b["rank"].update(more=1), UnsupportedTable, "inside its records"),
        (in_shard(0, part="scales"), CorruptTable, "."),
        (in_shard(0, part="records"), CorruptTable, "."),
        (in_shard(3, part="biases"), CorruptTable, "."),
        (in_shard(1, n_rows=13), CorruptTable, "n_rows"),
        (in_shard(0, n_rows=11), CorruptTable, "file_bytes"),
        (in_shard(3, n_rows=25), CorruptTable, "file_bytes"),
        (in_shard(0, n_rows=str(2**60)), CorruptTable, "n_rows"),
        (lambda b: b["shards"].pop(), CorruptTable, "scales"),
        (lambda b: b["shards"].pop(0), CorruptTable, "path"),
        (lambda b: b["shards"].append(b["shards"][3]), CorruptTable, "path"),
        (lambda b: b.update(shards=[*b["shards"][3:], *b["shards"][:3]]), CorruptTable, "."),
        (lambda b: b["source"].pop("form"), CorruptTable, "form"),
        (lambda b: b["source"].update(host="h"), UnsupportedTable, "inside its records"),
        (lambda b: b.update(source=[]), CorruptTable, "."),
        (in_source("files", 0, "name", value="../model"), CorruptTable, "no directory"),
        (in_source("files", 0, "name", value=".."), CorruptTable, "no directory"),
        (in_source("files", 0, "metadata", value=[["a"]]), CorruptTable, "."),
        (in_source("files", 0, "metadata", value=[["a", 1]]), CorruptTable, "a text"),
        (in_source("tensors", 0, "file", value=1), CorruptTable, "'w'"),
        (in_source("tensors", 0, "part", value=2), CorruptTable, "'w'"),
        (in_source("tensors", 0, "part", value=-1), CorruptTable, "0 or more"),
        (in_source("tensors", 0, "n_rows", value=102), CorruptTable, "row 101 of layer 1"),
        (in_source("tensors", 0, "layer_id", value=2), CorruptTable, "of layer 2"),
        (in_source("tensors", 0, "n_rows", value=0), CorruptTable, "'w'"),
        (in_source("parts", 1, "start", value=33), CorruptTable, "scales"),
        (in_source("parts", 1, "cell_bytes", value=1), CorruptTable, "scales"),
        (in_source("parts", 1, "cell_rows", value=0), CorruptTable, "scales"),
        (in_source("row_bytes", value=35), CorruptTable, "records of 35"),
        (lambda b: b["source"].update(row_bytes=32, parts=b["source"]["parts"][:1]), CorruptTable, "'s'"),
        (one_part_of_32_bytes, CorruptTable, "row_bytes of the source is 32, expected 34"),
        (in_source("scale_tensors", 0, "file", value=1), CorruptTable, "scale"),
        (in_source("scale_tensors", 0, "data", value="0"), CorruptTable, "fromhex"),
        (in_source("codec_scale", value="xx"), CorruptTable, "fromhex"),
    ],
)
def test_contradictions_are_refused(table: Path, change: Change, kind: type[TableError], match: str) -> None:
    rewrite(table, change)
    with pytest.raises(kind, match=match):
        StoredTable(table)


def test_rewriting_nothing_opens(table: Path) -> None:
    rewrite(table, lambda _body: None)
    with StoredTable(table) as opened:
        assert [part.name for part in opened.parts] == ["weights", "scales"]
        assert opened.owned(1) == ((26, 52),)


@pytest.mark.parametrize("n_bits", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_every_cut_and_flipped_bits_of_the_manifest_are_refused(manifest: Manifest, n_bits: int) -> None:
    data = manifest.to_bytes()
    for position in range(len(data)):
        with pytest.raises(TableError):
            Manifest.from_bytes(data[:position], path="t")
        for bit in range(position, position + n_bits):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit % 8
            with pytest.raises(TableError):
                Manifest.from_bytes(bytes(damaged), path="t")


@pytest.mark.parametrize("step", [37, pytest.param(1, marks=pytest.mark.slow)])
def test_cuts_and_flipped_bits_of_every_file_are_refused(table: Path, step: int) -> None:
    with StoredTable(table) as opened:
        paths = [file.path for file in opened.files]
    for path in paths:
        data = path.read_bytes()
        for position in range(0, 4096, step):
            path.write_bytes(data[:position] + bytes([data[position] ^ 1 << position % 8]) + data[position + 1 :])
            with pytest.raises(CorruptTable, match="header"):
                StoredTable(table)
        for n_bytes in range(0, len(data), step):
            path.write_bytes(data[:n_bytes])
            with pytest.raises(IncompleteTable):
                StoredTable(table)
        path.write_bytes(data)
    with StoredTable(table):
        pass


def test_nonsense_in_any_place_is_the_tables_fault(manifest: Manifest) -> None:
    body = json.loads(manifest.to_bytes())
    del body["manifest_sha256"]
    n_open = 0
    for place in leaves({key: body[key] for key in body if key not in ("spec", "schema")}):
        for nonsense in NONSENSE:
            changed = copy.deepcopy(body)
            inner: Any = changed
            for key in place[:-1]:
                inner = inner[key]
            inner[place[-1]] = nonsense
            data = {**changed, "manifest_sha256": hashlib.sha256(canonical(changed)).hexdigest()}
            with contextlib.suppress(TableError):
                Manifest.from_bytes(canonical(data), path="t")
                n_open += 1
    assert n_open > 0  # names and texts of a source are free


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_plans_refuse_shards_that_hold_nothing(manifest: Manifest) -> None:
    with pytest.raises(InvalidInput, match="a header and one row"):
        list(plan_shards(replace(manifest, shards=()), 4096))
    many = small_manifest(small_spec(300_001))
    with pytest.raises(InvalidInput, match="99999 at most"):
        list(plan_shards(many, 4096 + 64))


def test_the_bytes_of_a_header() -> None:
    empty = small_manifest(small_spec(7, layer_ids=(3,)), codec="fp8-e4m3-e8m0", layout="split")
    (_, scales) = plan_shards(empty, 8192)
    header = shard_header(empty, scales)
    text = (
        '{"__metadata__":{"codec":"fp8-e4m3-e8m0","fingerprint":"' + empty.spec.fingerprint + '","first_row":"0",'
        '"layer_id":"3","layout":"split","n_rows":"7","part":"scales","row_bytes":"33","row_width":"32",'
        '"schema":"engram.rows/2"},"scales":{"data_offsets":[0,7],"dtype":"U8","shape":[7,1]}}'
    )
    assert header == b"\xf8\x0f\0\0\0\0\0\0" + text.encode().ljust(4088)


@pytest.mark.parametrize("form", sorted(MAKERS))
def test_the_record_of_every_form_of_source_comes_back(tmp_path: Path, form: str) -> None:
    made = MAKERS[form](tmp_path / "source")
    with closing(open_source(made.path, opaque=True)) as source:
        record = source_record(source)
        again = SourceRecord.from_json(json.loads(canonical(record)))
        again.check_rows(source.spec)
        assert again.to_json() == record
        assert len(again.tensors) == len(source.tensors)
        assert str(tmp_path) not in canonical(record).decode()
