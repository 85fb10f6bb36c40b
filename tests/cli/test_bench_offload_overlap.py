"""`engram bench-offload TABLE --overlap` as a command, on a small shape, and its record against its documentation."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from engram_cli.app import app
from engram_tables.measure import overlap as overlap_module

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "records.md"
SMALL = {"width_divisor": 64, "n_sequences": 3, "chunk_tokens": 16, "steps": 2}
"""The sizes that the command would choose for a host, made small: the steps, fetches and products are the real ones."""


@pytest.fixture
def table(tiny_vocab_file: Path, tmp_path: Path) -> Path:
    _run("spec", "make", "--vocab", tiny_vocab_file, "--rows-per-head", "997", "--heads", "2", "--row-width", "32",
         "--pad-token", "0", "--layers", "1,3", "-o", tmp_path / "spec.json")  # fmt: skip
    _run("build-table", "--spec", tmp_path / "spec.json", "--vocab", tiny_vocab_file, "--codec", "fp8-e4m3-e8m0",
         "-o", tmp_path / "table")  # fmt: skip
    (tmp_path / "text.txt").write_text("The cat sat. The cat sat on the cat.\n" * 60)
    return tmp_path / "table"


def _run(*words: object) -> str:
    ended = CliRunner().invoke(app, [str(word) for word in words])
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def _documented() -> tuple[str, set[str]]:
    """The page's part on the record, the one on the keys it shares with `engram.bench-offload`, and its keys."""
    page = PAGE.read_text(encoding="utf-8")
    body = re.search(r"^## `engram\.overlap/1`\n(.*?)(?=^## |\Z)", page, flags=re.DOTALL | re.MULTILINE)
    assert body is not None
    first = re.findall(r"^\| (`[^|]*?) \|", body[1], flags=re.MULTILINE)
    return page, {key for cell in first for key in re.findall(r"`([a-z_]+)`", cell)}


def _keys(value: Any) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_keys, value)) if value else set()
    if not isinstance(value, dict):
        return set()
    return set(value).union(*(_keys(item) for key, item in value.items() if key != "packages"))


def test_the_record_and_the_table_of_a_real_run(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(overlap_module._DEFAULTS, "host", SMALL)
    given = ("bench-offload", table, "--overlap", "--corpus", tmp_path / "text.txt", "--from", "dram")
    record = json.loads(_run(*given, "--json", "--record", tmp_path / "run.json"))
    assert json.loads((tmp_path / "run.json").read_text()) == record
    page, at_the_top = _documented()
    assert set(record) - {"schema"} <= at_the_top, set(record) - at_the_top
    part = page[page.index("## `engram.bench-offload/2`") :]
    for key in _keys(record) - {"schema"}:
        assert f"`{key}`" in part, f"{key} is not documented"
    assert (record["schema"], record["status"], record["mismatches"]) == ("engram.overlap/1", "measured", [])
    assert (record["to"], record["from"], record["trace"]["kind"]) == ("host", "dram", "text")
    assert (record["model"]["width_divisor"], record["model"]["is_scaled"]) == (64, True)
    assert [load["load_share"] for load in record["loads"]] == [0.25, 0.5, 1.0]
    for load in record["loads"]:
        ways = {way["way"]: way for way in load["ways"]}
        assert list(ways) == ["no table", "resident", "gather, in pass", "gather, ahead"]
        for way in ways.values():
            assert way["status"] == "measured"
            assert len(way["samples"]) == 3
            assert way["tokens_per_s"] > 0
        # Every way is held against the resident one of the same rounds.
        lost = ways["gather, ahead"]["loss_against_resident"]
        assert lost["min"] <= lost["median"] <= lost["max"] < 1
        slack = ways["gather, ahead"]["slack"]
        assert slack["steps_issued"] == slack["steps_taken"] > 0
        assert slack["steps_rejected"] == 0


@pytest.mark.slow
def test_the_human_form(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(overlap_module._DEFAULTS, "host", SMALL)
    shown = _run("bench-offload", table, "--overlap", "--model", "deepseek-v4.1-flash", "--engine", "pread")
    assert "deepseek-v4.1-flash on host" in shown
    assert "NOT the model's own size" in " ".join(shown.split())
    assert "pread, ahead" in shown
    assert max(map(len, shown.splitlines())) <= 120
