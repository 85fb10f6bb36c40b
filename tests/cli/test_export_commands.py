"""`engram export` and `engram inspect header`: what they print, what they write, how they end."""

from __future__ import annotations

from pathlib import Path

import pytest

from engram_tables import open_table

from .conftest import Engram


@pytest.mark.parametrize("command", [("export",), ("inspect", "header")], ids=" ".join)
def test_help_has_examples_that_name_the_command(engram: Engram, command: tuple[str, ...]) -> None:
    ran = engram(*command, "--help")
    assert ran.code == 0
    assert "Examples:" in ran.out
    assert f"engram {' '.join(command)}" in ran.out


def test_a_dry_run_plans_what_is_written(engram: Engram, tiny_table: Path, tmp_path: Path) -> None:
    options = ("export", tiny_table, "--to", "deepseek", "-o", "out", "--file-bytes", "40KB", "--json")
    planned = engram(*options, "--dry-run")
    assert planned.code == 0, planned.err
    assert not (tmp_path / "out").exists()
    (record,) = planned.records()
    ran = engram(*options)
    assert ran.code == 0, ran.err
    assert ran.records() == [record | {"dry_run": False}]
    assert {path.name: path.stat().st_size for path in (tmp_path / "out").iterdir()} == {
        file["path"]: file["file_bytes"] for file in record["files"]
    }
    assert (record["form"], record["codec"], record["table_codec"]) == ("deepseek", "f32", "f32")
    tensors = [tensor for file in record["files"] for tensor in file["tensors"]]
    assert [tensor["name"] for tensor in tensors] == [f"layers.{n}.engram.embed.weight" for n in (1, 3)]
    again = engram(*options)
    assert again.code == 3
    assert "exists already" in again.err
    assert engram(*options, "--force").code == 0


def test_an_exported_gguf_is_inspected_and_agrees(engram: Engram, tiny_table: Path, tmp_path: Path) -> None:
    ran = engram("export", tiny_table, "--to", "gguf-q8_0", "--codec", "q8_0", "-o", "out.gguf")
    assert ran.code == 0, ran.err
    assert "q8_0, re-encoded from f32" in ran.out
    ran = engram("inspect", "header", "out.gguf", "--row", "3:17", "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.records()
    with open_table(tiny_table) as table:
        assert record["spec"]["fingerprint"] == table.spec.fingerprint
    assert record["agrees"] is True
    (part,) = record["rows"][0]["parts"]
    layer = record["files"][0]["tensors"][1]
    assert part["offset"] == layer["offset"] + 17 * 34
    shown = engram("inspect", "header", "out.gguf", "--row", "3:17")
    assert shown.code == 0
    for text in ("agrees       yes", "blk.3.engram_embd.weight", f"{part['offset']:,}", "pages a row"):
        assert text in shown.out


def test_wrong_words_are_refused(engram: Engram, tiny_table: Path) -> None:
    for arguments, text in (
        (("export", tiny_table, "-o", "out"), "found no source"),
        (("export", tiny_table, "-o", "out", "--to", "mlx"), "--codec int4-g32"),
        (("inspect", "header", tiny_table, "--row", "3"), "expected a layer and a row"),
        (("inspect", "header", tiny_table, "--row", "3:99999"), "not in"),
        (("inspect", "header", tiny_table / "engram.json", "--raw", "size=3"), "expected each of codec, row-bytes"),
    ):
        ran = engram(*arguments)
        assert ran.code == 3, ran.err
        assert text in ran.err


def test_a_contradiction_ends_with_6(engram: Engram, tiny_table: Path, tiny_vocab_file: Path) -> None:
    assert engram("export", tiny_table, "--to", "deepseek", "-o", "out").code == 0
    fits = engram("inspect", "header", "out", "--spec", tiny_table.parent / "spec.json")
    assert fits.code == 0, fits.err
    assert "all rows     " in fits.out
    other = engram("spec", "make", "--vocab", tiny_vocab_file, "--rows-per-head", "89", "--heads", "2",
                   "--row-width", "32", "--pad-token", "0", "--layers", "1,3", "-o", "other.json")  # fmt: skip
    assert other.code == 0, other.err
    ran = engram("inspect", "header", "out", "--spec", "other.json")
    assert ran.code == 6
    assert "check failed" in ran.err
    assert "agrees       no" in ran.out
    assert ("the spec other says" in ran.err, "other" in ran.out) == (True, False)


def test_raw_rows_are_inspected_with_their_geometry(engram: Engram, tiny_table: Path) -> None:
    assert engram("export", tiny_table, "--to", "raw", "--row-stride", "256", "-o", "out").code == 0
    ran = engram("inspect", "header", "out/layer-03.rows", "--spec", tiny_table.parent / "spec.json",
                 "--raw", "codec=f32,row-stride=256,layer=3", "--row", "3:5", "--json")  # fmt: skip
    assert ran.code == 0, ran.err
    (record,) = ran.records()
    assert record["rows"][0]["parts"][0]["offset"] == 5 * 256


def test_what_a_table_says_of_its_vocabulary(engram: Engram, tiny_table: Path) -> None:
    ran = engram("inspect", "table", tiny_table)
    assert " (inside)" in ran.out
    ran = engram("build-table", "--from", tiny_table, "--dry-run", "-o", "t")
    assert " (inside)" in ran.out
    spec = ("--spec", tiny_table.parent / "spec.json", "--codec", "f32")
    ran = engram("build-table", *spec, "-o", "without")
    assert "(not inside; build-table --vocab puts it there)" in ran.out
    (record,) = engram("inspect", "table", "without", "--json").records()
    (built,) = engram("build-table", *spec, "-o", "without", "--dry-run", "--json").records()
    for key in ("vocab_sha256", "has_vocabulary"):
        assert record[key] == built[key]
    assert (record["vocab_sha256"] is not None, record["has_vocabulary"]) == (True, False)


def test_ranks_are_planned_in_one_table_and_verified_by_their_directory(engram: Engram, tiny_table: Path) -> None:
    ran = engram("build-table", "--from", tiny_table, "--ranks", "3", "--by", "layer", "-o", "ranks")
    assert ran.code == 0, ran.err
    assert ran.out.count("fingerprint") == 1
    for text in ("Ranks by layer", "ranks/rank-2-of-3", "in all  "):
        assert text in ran.out
    assert "note: no rows in ranks/rank-2-of-3" in ran.err
    ran = engram("verify", "ranks")
    assert (ran.code, "every row is in exactly one" in ran.out) == (0, True)
    assert engram("export", "ranks", "--to", "deepseek", "-o", "out").code == 0
    ran = engram("verify", "ranks/rank-0-of-3", "ranks/rank-0-of-3")
    assert ran.code == 6
    assert "found no rank 1, 2 of 3, more than once rank 0 of 3, expected each once" in ran.err
