from __future__ import annotations

import json
from pathlib import Path

import pytest
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
    assert planned["schema"] == "engram.build-table/1"
    status, out, err = run(*common, "-o", target, "--json")
    assert status == 0, err
    assert {**json.loads(out), "dry_run": True} == planned
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
        (("--codec", "f16"), 3),
        (("--codec", "f32", "--layout", "planar"), 3),
        (("--codec", "f32", "--init", "ones"), 3),
        (("--codec", "f32", "--std", "-1"), 3),
        (("--codec", "f32", "--shard-bytes", "12 parsec"), 3),
        (("--codec", "f32", "--shard-bytes", "1KiB"), 3),
        (("--codec", "f32", "--row-width", "0"), 2),
        (("--codec", "f32", "--preset", "engram-demo"), 2),
        ((), 2),
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


def test_verify_exit_codes(tmp_path: Path) -> None:
    table = small_table(tmp_path / "t", small_spec(1000))
    status, out, _ = run("verify", table, "--json")
    report = json.loads(out)
    assert status == 0
    assert (report["schema"], report["is_whole"], report["damaged"]) == ("engram.verify/1", True, [])
    shard = table / "layer-14" / "rows-00001-of-00001.safetensors"
    with shard.open("r+b") as file:
        file.seek(4096 * 2 + 64 * 3)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    status, out, err = run("verify", table, "--json")
    (damage,) = json.loads(out)["damaged"]
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
