"""Tables against checkpoints of others, here and behind a URL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_checkpoints import MAKERS, Made, make_deepseek, make_longcat, make_qwen, make_raw
from range_server import RangeServer
from small_tables import lay_table, random_records, small_manifest
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables.address.spec_files import spec_to_json
from engram_tables.errors import CorruptTable, IncompleteTable, InvalidInput, NotATable
from engram_tables.storage.building.repack import plan_repack
from engram_tables.storage.building.writer import build_table
from engram_tables.storage.checking.compare import diff_tables
from engram_tables.storage.checking.verify import AgainstReport, verify_tables
from engram_tables.storage.sides import Opening
from engram_tables.storage.sources.opening import open_source
from engram_tables.storage.sources.record import source_record
from engram_tables.storage.sources.source import closing
from engram_tables.storage.table.manifest import Manifest
from engram_tables.storage.table.ranks import Rank, owned_rows

# One of each way in which rows lie: two planar tensors, a tensor a shard with one scale, three regions, a tensor a
# head, blocks of GGUF, rows that no codec reads.
FORMS = ("deepseek", "qwen-fp8", "qwen-mlx", "qwen-nvfp4", "longcat", "gguf-q8_0")


def manifest_of(made: Made, **options: Any) -> Manifest:
    with closing(open_source(made.path, opaque=True)) as source:
        return Manifest(
            spec=source.spec,
            codec=source.codec.name,
            codec_scale_bits=source.codec.scale_bits,
            row_width=made.row_width,
            row_bytes=source.row_bytes,
            shards=(),
            source=source_record(source),
            **{"layout": "packed", "block_bytes": 4096, **options},
        )


def table_of(path: Path, made: Made, **options: Any) -> Path:
    return lay_table(path, manifest_of(made, **options), made.records, shard_bytes=20_000)


def flip_in_part(made: Made, layer_id: int, row: int, part: int, byte: int, bit: int = 3) -> None:
    """Change one bit of a row where it lies, found by its bytes."""
    start = sum(n_bytes for _, n_bytes in made.parts[:part])
    n_bytes = made.parts[part][1]
    stretch = made.records[layer_id][row, start : start + n_bytes].tobytes()
    around = stretch
    if n_bytes < 8:  # short parts repeat: with their neighbours they do not
        around = made.records[layer_id][row : row + 8, start : start + n_bytes].tobytes()
    for file in made.files:
        data = bytearray(file.read_bytes())
        if (at := data.find(around)) >= 0:
            assert data.find(around, at + 1) < 0
            data[at + byte] ^= 1 << bit
            file.write_bytes(data)
            return
    raise AssertionError("no such row")


def held_against(path: Path, made: Made, **options: Any) -> AgainstReport:
    with closing(open_source(made.path, opaque=True)) as source:
        held = verify_tables([path], against=source, **options).tables[0].against
    assert held is not None
    return held


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["page", "split"])
def test_a_table_is_its_source(tmp_path: Path, form: str, layout: str) -> None:
    made = MAKERS[form](tmp_path / "made")
    if layout == "split" and form not in ("deepseek", "qwen-mlx"):
        layout = "aligned-16"
    path = table_of(tmp_path / "table", made, layout=layout)
    held = held_against(path, made)
    assert held.is_equal
    assert held.rows.n_rows_compared == sum(map(len, made.records.values()))
    report = diff_tables(path, made.path)
    assert report.is_equal
    assert (report.a.kind, report.b.kind) == ("table", "checkpoint")
    assert diff_tables(made.path, path, opening=Opening(opaque=True)).is_equal


@pytest.mark.parametrize("form", ["deepseek", "qwen-mlx", "qwen-nvfp4"])
def test_a_single_bit_in_any_part_of_a_source_is_found(tmp_path: Path, form: str) -> None:
    made = MAKERS[form](tmp_path / "made")
    path = table_of(tmp_path / "table", made)
    layer_id, row = max(made.records), 77
    whole = [file.read_bytes() for file in made.files]
    for part, (name, n_bytes) in enumerate(made.parts):
        for byte in (0, n_bytes - 1):
            flip_in_part(made, layer_id, row, part, byte)
            held = held_against(path, made, threads=1)
            (found,) = held.rows.first
            start = sum(n_bytes for _, n_bytes in made.parts[:part])
            assert (found.layer_id, found.row, found.byte, found.part) == (layer_id, row, start + byte, name)
            assert found.expected ^ found.found == 8
            report = diff_tables(made.path, path, opening=Opening(opaque=True))
            assert report.rows is not None
            assert [(d.row, d.byte, d.part) for d in report.rows.first] == [(row, start + byte, name)]
            for file, data in zip(made.files, whole, strict=True):
                file.write_bytes(data)
    assert held_against(path, made).is_equal


def test_a_re_encoded_table_is_held_to_its_encoding(tmp_path: Path) -> None:
    made = make_qwen(tmp_path / "made", codec="bf16")
    empty = replace(manifest_of(made), codec="q8_0", row_bytes=68)
    with closing(open_source(made.path)) as source:
        records = {k: empty.get_codec().encode(source.codec.decode(rows)) for k, rows in made.records.items()}
    path = lay_table(tmp_path / "table", empty, records)
    assert held_against(path, made).is_equal
    report = diff_tables(made.path, path)
    assert report.rows is not None
    assert report.rows.measure == "values"
    assert all(0 < (group.relative_rms or 0) < 0.02 for group in report.rows.groups if group.order)


@pytest.mark.parametrize("codec", ["int8-row", "fp8-e4m3-e8m0"])
def test_what_a_repack_re_encodes_is_held_to_its_source(tmp_path: Path, codec: str) -> None:
    made = make_qwen(tmp_path / "made", codec="fp8-e4m3-scalar")
    path = tmp_path / "table"
    with closing(open_source(made.path)) as source:
        build_table(plan_repack(source, layout="page", codec=codec, block_bytes=4096), path, threads=2)
    assert held_against(path, made).is_equal
    # The sign of the largest value: smaller changes may round to the same code.
    largest = int(np.argmax(made.records[1][300] & 0x7F))
    flip_in_part(made, 1, 300, 0, largest, bit=7)
    held = held_against(path, made)
    assert [difference.row for difference in held.rows.first] == [300]


def test_ranks_against_their_checkpoint(tmp_path: Path) -> None:
    made = make_longcat(tmp_path / "made")
    whole = manifest_of(made)
    paths = []
    for rank in range(2):
        owned = owned_rows(whole.spec, by="head", rank=rank, n_ranks=2)
        empty = replace(whole, owned=owned, rank=Rank(by="head", rank=rank, n_ranks=2))
        paths.append(lay_table(tmp_path / f"rank-{rank}", empty, made.records))
    with closing(open_source(made.path)) as source:
        report = verify_tables(paths, against=source)
    assert report.is_whole
    assert report.ranks is not None
    other = make_longcat(tmp_path / "other", seed=1)
    with closing(open_source(other.path)) as source:
        report = verify_tables(paths, against=source)
    assert not any(table.against is not None and table.against.is_equal for table in report.tables)


def test_a_checkpoint_without_its_addressing_is_read_by_the_tables(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    path = table_of(tmp_path / "table", made)
    (made.path / "config.json").unlink()
    report = diff_tables(made.path, path)
    assert report.is_equal
    assert (report.a.states_spec, report.b.states_spec) == (False, True)
    with pytest.raises(InvalidInput):
        diff_tables(made.path, made.path)


# Behind a URL.


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with RangeServer() as server:
        yield server


def serve(server: RangeServer, name: str, path: Path) -> str:
    for file in path.rglob("*"):
        if file.is_file():
            server.files[f"/{name}/{file.relative_to(path).as_posix()}"] = file.read_bytes()
    return f"{server.url}/{name}/"


def rows_asked_for(server: RangeServer, path: Path, name: str) -> int:
    """Bytes of data sections that were fetched."""
    manifest = json.loads((path / "engram.json").read_bytes())
    return sum(
        max(0, stop - max(start, shard["data_offset"]))
        for shard in manifest["shards"]
        for start, stop in server.spans(f"/{name}/{shard['path']}")
    )


def test_of_remote_sides_only_headers_are_read(tmp_path: Path, server: RangeServer) -> None:
    manifest = small_manifest(codec="fp8-e4m3-e8m0", layout="split")
    records = random_records(manifest)
    here = lay_table(tmp_path / "here", manifest, records)
    records[1][5, 5] ^= 1
    there = lay_table(tmp_path / "there", replace(manifest, layout="packed"), records)
    url = serve(server, "there", there)
    report = diff_tables(here, url)
    assert report.rows is None
    assert "remote" in str(report.not_compared)
    assert {found.what for found in report.headers} == {"layout", "parts"}
    assert (report.b.n_rows, report.b.codec) == (202, "fp8-e4m3-e8m0")
    assert rows_asked_for(server, there, "there") == 0
    sampled = diff_tables(here, url, sample=20)
    assert sampled.rows is not None
    assert sampled.rows.n_rows_compared == 20
    assert rows_asked_for(server, there, "there") == 20 * 33
    full = diff_tables(url, here, full=True)
    assert full.rows is not None
    assert [(d.row, d.byte) for d in full.rows.first] == [(5, 5)]


def test_a_file_url_is_no_remote_side(tmp_path: Path) -> None:
    manifest = small_manifest()
    path = lay_table(tmp_path / "t", manifest, random_records(manifest))
    report = diff_tables(path, path.as_uri())
    assert report.rows is not None
    assert report.is_equal


def test_a_remote_checkpoint(tmp_path: Path, server: RangeServer) -> None:
    made = make_deepseek(tmp_path / "made")
    path = table_of(tmp_path / "table", made)
    url = serve(server, "made", made.path)
    report = diff_tables(path, url)
    assert report.not_compared is not None
    assert report.is_equal
    assert diff_tables(path, url, full=True).is_equal
    with closing(open_source(url)) as source:
        held = verify_tables([path], against=source, sample=50).tables[0].against
    assert held is not None
    assert held.rows.n_rows_compared == 50
    assert held.is_equal


def test_a_remote_file_that_changes_meanwhile_is_refused(tmp_path: Path, server: RangeServer) -> None:
    manifest = small_manifest()
    path = lay_table(tmp_path / "t", manifest, random_records(manifest))
    url = serve(server, "t", path)
    shards = [name for name in server.files if name.endswith(".safetensors")]
    server.tags |= dict.fromkeys(shards, '"one"')

    def change(done: int, total: int) -> None:
        server.tags |= dict.fromkeys(shards, '"two"')

    with pytest.raises(InvalidInput, match="changed"):
        diff_tables(path, url, full=True, progress=change)


def test_a_remote_table_is_checked_as_a_local_one(tmp_path: Path, server: RangeServer) -> None:
    manifest = small_manifest()
    path = lay_table(tmp_path / "t", manifest, random_records(manifest))
    url = serve(server, "t", path)
    shard = next(name for name in server.files if name.endswith(".safetensors"))
    whole = server.files[shard]
    server.files[shard] = whole[:-1]
    with pytest.raises(IncompleteTable, match=str(len(whole) - 1)):
        diff_tables(path, url)
    server.files[shard] = whole + b"0"
    with pytest.raises(CorruptTable):
        diff_tables(path, url)
    server.files[shard] = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    with pytest.raises(CorruptTable, match="header"):
        diff_tables(path, url)
    del server.files[shard]
    with pytest.raises(IncompleteTable, match="no layer-01"):
        diff_tables(path, url)
    server.files["/t/engram.json"] = b"{}"
    with pytest.raises(NotATable):
        diff_tables(path, url)


# The commands.


def run(*words: object) -> tuple[int, Any, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def diff_record(*words: object) -> dict[str, Any]:
    _, out, _ = run("diff", "--json", *words)
    record: dict[str, Any] = json.loads(out)
    return record


def test_the_diff_command(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    path = table_of(tmp_path / "table", made, layout="split")
    code, out, _ = run("diff", path, made.path)
    assert code == 0
    assert "928 of 928 compared are equal" in out
    made.records[3][200, 3] ^= 1
    other = table_of(tmp_path / "other", made)
    code, out, err = run("diff", path, other)
    assert code == 6
    assert "weights 1" in out
    assert "1 of 928 rows" in err
    record = diff_record(path, other)
    assert record["schema"] == "engram.diff/1"
    (group,) = (group for group in record["rows"]["groups"] if group["n_rows_different"])
    assert (group["layer_id"], group["first_rows"]) == (3, [200])
    assert not record["is_equal"]
    assert diff_record(path, other, "--sample", 5)["rows"]["n_rows_compared"] == 5
    assert run("diff", path, other, "--sample", 5, "--full")[0] == 2
    assert run("diff", path, tmp_path / "nothing")[0] == 3


def test_the_diff_command_says_what_was_not_compared(tmp_path: Path, server: RangeServer) -> None:
    manifest = small_manifest()
    path = lay_table(tmp_path / "t", manifest, random_records(manifest))
    code, out, _ = run("diff", path, serve(server, "t", path))
    assert code == 0
    assert "not compared: a side is remote" in out
    wider = small_manifest(replace(manifest.spec, row_width=64))
    code, out, _ = run("diff", path, lay_table(tmp_path / "w", wider, random_records(wider)))
    assert code == 6
    assert "not compared: rows of 32 and of 64 values" in out


def test_the_verify_command_against_a_source(tmp_path: Path, server: RangeServer) -> None:
    made = make_deepseek(tmp_path / "made")
    path = table_of(tmp_path / "table", made)
    code, out, _ = run("verify", path, "--against", made.path)
    assert code == 0
    assert "928 of 928 rows compared" in out
    url = serve(server, "made", made.path)
    code, _, err = run("verify", path, "--against", url)
    assert code == 3
    assert "--sample N or --full" in err
    assert run("verify", path, "--against", url, "--full")[0] == 0
    code, out, _ = run("verify", path, "--against", url, "--sample", 9, "--json")
    record = json.loads(out)
    assert record["schema"] == "engram.verify/2"
    assert record["tables"][0]["against"]["rows"]["n_rows_compared"] == 9
    flip_in_part(made, 1, 11, 1, 1)
    code, out, err = run("verify", path, "--against", made.path)
    assert code == 6
    assert "scales" in out
    assert "1 of 928 rows differ" in err
    assert run("verify", path, "--revision", "main")[0] == 2
    assert run("verify", path, "--sample", 3, "--full")[0] == 2


def test_the_verify_command_against_rows_without_a_container(tmp_path: Path) -> None:
    manifest = replace(small_manifest(), spec=replace(small_manifest().spec, layers=small_manifest().spec.layers[:1]))
    records = random_records(manifest)
    path = lay_table(tmp_path / "t", manifest, records)
    rows = make_raw(tmp_path / "rows.bin", records[1], row_stride=80, first_byte=16)
    geometry = "codec=bf16,row-stride=80,first-byte=16"
    assert run("verify", path, "--against", rows, "--raw", geometry)[0] == 0
    assert run("diff", path, rows, "--raw", geometry)[0] == 0
    (tmp_path / "spec.json").write_text(json.dumps(spec_to_json(manifest.spec)))
    assert run("diff", rows, rows, "--raw", geometry, "--spec", tmp_path / "spec.json")[0] == 0
    assert run("verify", path, "--raw", geometry)[0] == 2


def test_the_verify_command_on_ranks(tmp_path: Path) -> None:
    whole = small_manifest()
    paths = []
    for rank in range(3):
        owned = owned_rows(whole.spec, by="rows", rank=rank, n_ranks=3)
        empty = replace(whole, owned=owned, rank=Rank(by="rows", rank=rank, n_ranks=3))
        paths.append(lay_table(tmp_path / f"rank-{rank}", empty, random_records(whole)))
    code, out, _ = run("verify", *paths)
    assert code == 0
    assert "every row is in exactly one" in out
    code, out, err = run("verify", *paths[:2])
    assert code == 6
    assert "rows 68 to 100: in none" in out
    assert "ranks" in err
    code, _, err = run("verify", paths[0])
    assert code == 0
    assert "give the tables of all ranks" in err
    record = json.loads(run("verify", *paths[:2], paths[1], "--json")[1])
    assert [len(span["paths"]) for span in record["ranks"]["rows"]] == [2, 0, 2, 0]
