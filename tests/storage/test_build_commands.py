from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from made_checkpoints import make_deepseek, make_raw
from small_tables import names_in, small_spec, small_table
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables.units import canonical_json


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.json"
    path.write_bytes(canonical_json(small_spec(5000).to_json()))
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_plan_is_what_is_written(spec: Path, tmp_path: Path) -> None:
    target = tmp_path / "t"
    common = ("build-table", "--spec", spec, "--codec", "fp8-e4m3-e8m0", "--layout", "page", "--shard-bytes", "64KiB")
    status, out, _ = run(*common, "-o", target, "--dry-run", "--json")
    assert status == 0
    assert not target.exists()
    planned = json.loads(out)
    assert planned["schema"] == "engram.build-table/2"
    status, out, err = run(*common, "-o", target, "--json")
    assert status == 0, err
    assert {**json.loads(out), "dry_run": True, "n_blocks_reused": None} == planned
    found = {str(f.relative_to(target)): f.stat().st_size for f in target.rglob("*") if f.is_file()}
    assert found == {file["path"]: file["file_bytes"] for file in planned["files"]}
    status, out, err = run(*common, "-o", target)
    assert (status, out) == (3, "")
    assert "exists already" in err
    assert run(*common, "-o", target, "--force", "--seed", 3)[0] == 0


def test_human_output_has_the_same_figures(spec: Path, tmp_path: Path) -> None:
    status, out, _ = run("build-table", "--spec", spec, "--codec", "bf16", "-o", tmp_path / "t", "--dry-run")
    assert status == 0
    assert "10,000 of 32 values, 64 bytes each" in out
    assert "layer-14/rows-00001-of-00001.safetensors" in out
    assert "324,096" in out


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (("--codec", "f17"), 3),
        (("--codec", "f32", "--layout", "planar"), 3),
        (("--codec", "f32", "--init", "ones"), 3),
        (("--codec", "f32", "--std", "-1"), 3),
        (("--codec", "f32", "--shard-bytes", "12 parsec"), 3),
        (("--codec", "f32", "--shard-bytes", "1KiB"), 3),
        (("--codec", "f32", "--row-width", "0"), 2),
        (("--codec", "f32", "--preset", "engram-demo"), 2),
        ((), 2),
        (("--codec", "f32", "--rows", "1:2"), 2),
        (("--codec", "f32", "--ranks", "2"), 2),
        (("--codec", "f32", "--counts", "c"), 2),
        (("--codec", "f32", "--raw", "codec=f32"), 2),
        (("--codec", "f32", "--opaque"), 2),
        (("--codec", "f32", "--memory", "1MiB"), 5),
        (("--from", "nothing"), 3),
        (("--from", "nothing", "--seed", "0"), 2),
        (("--from", "nothing", "--init", "zeros"), 2),
    ],
)
def test_usage_and_input_that_are_refused(spec: Path, tmp_path: Path, options: tuple[str, ...], status: int) -> None:
    code, out, err = run("build-table", "--spec", spec, "-o", tmp_path / "t", *options)
    assert (code, out) == (status, "")
    assert err
    assert names_in(tmp_path) == ["spec.json"]


def test_vocabulary_of_another_spec(tmp_path: Path, vocabulary_file: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_bytes(canonical_json(small_spec(vocab="c" * 64).to_json()))
    code, _, err = run(
        "build-table", "--spec", path, "--vocab", vocabulary_file, "--codec", "bf16", "-o", tmp_path / "t"
    )
    assert code == 3
    assert "spec small" in err
    assert not (tmp_path / "t").exists()


def test_a_checkpoint_in_one_command(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    common = ("build-table", "--from", made.path, "--layout", "page")
    status, out, err = run(*common, "-o", tmp_path / "t", "--dry-run", "--json")
    assert status == 0, err
    planned = json.loads(out)
    assert not (tmp_path / "t").exists()
    status, out, err = run(*common, "-o", tmp_path / "t", "--json")
    assert status == 0, err
    record = json.loads(out)
    assert {**record, "dry_run": True, "n_blocks_reused": None} == planned
    assert (record["init"], record["owned"], record["fidelity"]) == (None, None, None)
    assert record["source"]["form"] == "deepseek"
    assert record["source"]["parts"] == ["weights", "scales"]
    found = {str(f.relative_to(tmp_path / "t")): f.stat().st_size for f in (tmp_path / "t").rglob("*") if f.is_file()}
    assert found == {file["path"]: file["file_bytes"] for file in record["files"]}
    assert run("verify", tmp_path / "t", "--against", made.path)[0] == 0
    status, out, err = run("build-table", "--from", tmp_path / "t", "--layout", "split", "-o", tmp_path / "split")
    assert status == 0, err
    assert run("verify", tmp_path / "split", "--against", made.path)[0] == 0


def test_all_ranks_or_one(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    common = ("build-table", "--from", made.path, "--ranks", 2, "--by", "rows")
    status, out, err = run(*common, "-o", tmp_path / "both", "--json")
    assert status == 0, err
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["rank"]["rank"] for record in records] == [0, 1]
    assert [record["path"] for record in records] == [str(tmp_path / "both" / f"rank-{k}-of-2") for k in range(2)]
    assert records[0]["owned"][0] == {"layer_id": 1, "start": 0, "stop": -(-len(made.records[1]) // 2)}
    assert run(*common, "-o", tmp_path / "both")[0] == 3
    assert run(*common, "-o", tmp_path / "both", "--force")[0] == 0
    status, out, err = run(*common, "--rank", 1, "-o", tmp_path / "one")
    assert status == 0, err
    assert "rank          1 of 2 by rows" in out
    assert run("verify", tmp_path / "both" / "rank-0-of-2", tmp_path / "one")[0] == 0
    assert run(*common, "--rank", 2, "-o", tmp_path / "two")[0] == 3
    # A directory of tables that are no ranks is not replaced.
    (tmp_path / "both" / "rank-0-of-2").rename(tmp_path / "both" / "mine")
    assert run(*common, "-o", tmp_path / "both", "--force")[0] == 3


def test_a_re_encoding_says_what_it_lost(tmp_path: Path) -> None:
    made = make_deepseek(tmp_path / "made")
    common = ("build-table", "--from", made.path, "--codec", "int4-g32", "--layers", "3")
    status, out, err = run(*common, "-o", tmp_path / "t", "--json")
    assert status == 0, err
    record = json.loads(out)
    assert [group["layer_id"] for group in record["fidelity"]] == [3] * 4
    assert sum(group["rows"]["n"] for group in record["fidelity"]) == record["n_rows"] == len(made.records[3])
    assert all(0.01 < group["rows"]["relative_rms_error"] < 0.3 for group in record["fidelity"])
    assert {group["lookups"] for group in record["fidelity"]} == {None}
    status, out, _ = run(*common, "-o", tmp_path / "u")
    assert status == 0
    assert "layer 3, order 2, head 0" in out


def test_rows_without_a_container(tmp_path: Path, spec: Path) -> None:
    records = np.random.default_rng(0).integers(0, 256, (5000, 64), np.uint8)
    raw = make_raw(tmp_path / "rows.bin", records, row_stride=80, first_byte=16)
    options = ("--from", raw, "--spec", spec, "--raw", "codec=bf16,row-stride=80,first-byte=16,layer=14")
    code, _, err = run("build-table", *options, "-o", tmp_path / "t")
    assert code == 3
    assert "found no row 0 of layer 1" in err
    code, out, err = run("build-table", *options, "--layers", "14", "-o", tmp_path / "t", "--json")
    assert code == 0, err
    assert json.loads(out)["owned"] == [{"layer_id": 14, "start": 0, "stop": 5000}]
    shard = tmp_path / "t" / "layer-14" / "rows-00001-of-00001.safetensors"
    assert shard.read_bytes()[4096:] == records.tobytes()


def test_verify_exit_codes(tmp_path: Path) -> None:
    table = small_table(tmp_path / "t", small_spec(1000))
    status, out, _ = run("verify", table, "--json")
    report = json.loads(out)
    assert status == 0
    (checked,) = report["tables"]
    assert (report["schema"], report["is_whole"], checked["damaged"]) == ("engram.verify/2", True, [])
    shard = table / "layer-14" / "rows-00001-of-00001.safetensors"
    with shard.open("r+b") as file:
        file.seek(4096 * 2 + 64 * 3)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    status, out, err = run("verify", table, "--json")
    (damage,) = json.loads(out)["tables"][0]["damaged"]
    assert status == 6
    assert "blocks differ from their digests" in err
    assert (damage["layer_id"], damage["block_idx"], damage["start_row"], damage["stop_row"]) == (14, 2, 64, 128)
    status, out, _ = run("verify", table)
    assert status == 6
    assert "64-128" in out
    shard.unlink()
    status, out, err = run("verify", table)
    assert (status, out) == (4, "")
    assert "no such file" in err
    assert run("verify", tmp_path)[0] == 4
