"""`engram golden`: what it writes, what it prints, how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_tables.address.golden.cases import golden_bytes, make_golden, read_golden
from engram_tables.address.spec_files import read_spec

from .conftest import Engram


@pytest.fixture
def golden(engram: Engram, tiny_table: Path, tmp_path: Path) -> Path:
    """Golden vectors of the tiny table's spec, two layers and twelve columns."""
    assert engram("golden", "emit", "--spec", tiny_table.with_name("spec.json"), "-o", "golden.json").code == 0
    return tmp_path / "golden.json"


def _rows(golden: Path) -> np.ndarray[Any, Any]:
    cases = json.loads(golden.read_bytes())["cases"]
    return np.concatenate([np.array(case["rows"], dtype=np.int64) for case in cases])


@pytest.mark.parametrize("command", ["emit", "check"])
def test_help_has_examples_that_name_the_command(engram: Engram, command: str) -> None:
    ran = engram("golden", command, "--help")
    assert ran.code == 0
    assert "Examples:" in ran.out
    assert f"engram golden {command}" in ran.out


def test_emit_writes_the_library_s_bytes_and_replaces_nothing_unasked(
    engram: Engram, golden: Path, tiny_table: Path
) -> None:
    spec = tiny_table.with_name("spec.json")
    expected = golden_bytes(make_golden(read_spec(spec)))
    assert golden.read_bytes() == expected
    golden.write_text("mine")
    again = engram("golden", "emit", "--spec", spec, "-o", golden)
    assert again.code == 3
    assert "exists already" in again.err
    assert golden.read_text() == "mine"
    forced = engram("golden", "emit", "--spec", spec, "-o", golden, "--force")
    assert (forced.code, forced.out) == (0, "")
    assert "rows, fingerprint " in forced.err
    assert golden.read_bytes() == expected


def test_emit_takes_a_spec_as_the_other_commands_do(engram: Engram, tmp_path: Path) -> None:
    assert engram("golden", "emit", "-o", "g.json").code == 2
    assert engram("golden", "emit", "--preset", "no-such", "-o", "g.json").code == 3
    assert engram("golden", "emit", "--preset", "engram-27b", "-o", "g.json").code == 3
    assert engram("golden", "emit", "--preset", "engram-27b", "--layers", "2,15", "-o", "g.json").code == 0
    assert read_golden(tmp_path / "g.json").spec.layer_ids == (2, 15)


def test_a_right_answer_ends_with_0(engram: Engram, golden: Path) -> None:
    rows = _rows(golden)
    np.save("rows.npy", rows)
    ran = engram("golden", "check", golden, "rows.npy")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(f"{rows.size:,} of {rows.size:,} rows agree")
    cases = json.loads(golden.read_bytes())["cases"]
    lines = [json.dumps({"case": case["name"], "rows": case["rows"]}) for case in cases]
    Path("rows.jsonl").write_text("\n".join(lines))
    ran = engram("golden", "check", golden, "rows.jsonl", "--json")
    assert ran.code == 0
    (record,) = ran.records()
    assert record["schema"] == "engram.golden-check/1"
    assert (record["is_equal"], record["n_rows"], record["n_rows_differing"]) == (True, rows.size, 0)
    assert (record["first"], record["causes"], record["hints"]) == (None, [], [])


def test_local_rows_are_named_and_with_local_they_pass(engram: Engram, golden: Path) -> None:
    layers = json.loads(golden.read_bytes())["spec"]["addressing"]["layers"]
    np.save("local.npy", _rows(golden) - np.array([layer["offsets"] for layer in layers]))
    ran = engram("golden", "check", golden, "local.npy")
    assert ran.code == 6
    assert "\ncause      rows are counted within each head: its offset is not added (local-rows)\n" in ran.out
    assert "local.npy" in ran.err
    assert engram("golden", "check", golden, "local.npy", "--local").code == 0


def test_a_row_that_differs_ends_with_6_and_its_place(engram: Engram, golden: Path) -> None:
    rows = _rows(golden)
    rows[1, 1, 4] += 1
    np.save("rows.npy", rows)
    ran = engram("golden", "check", golden, "rows.npy")
    assert ran.code == 6
    expected = f"case start, position 1, layer 3, order 4, head 0: expected {rows[1, 1, 4] - 1}, found {rows[1, 1, 4]}"
    assert expected in ran.out
    assert "none of the known mistakes" in ran.out
    assert f"1 of {rows.size:,} rows differ" in ran.err
    (record,) = engram("golden", "check", golden, "rows.npy", "--json").records()
    assert record["first"] == {"case": "start", "position": 1, "layer_id": 3, "order": 4, "head": 0,
                               "expected": rows[1, 1, 4] - 1, "found": rows[1, 1, 4]}  # fmt: skip


def _undocumented(record: dict[str, Any]) -> set[str]:
    """Keys of a record that its section in records.md does not name."""
    page = (Path(__file__).parents[2] / "docs" / "reference" / "records.md").read_text(encoding="utf-8")
    section = page.partition("## `engram.golden-check/1`")[2].partition("\n## ")[0]
    nested = [record, record["first"], *record["causes"], *record["hints"]]
    return {key for part in nested for key in part if f"`{key}`" not in section} - {"schema"}


def test_hints_and_values_reach_the_output(engram: Engram, golden: Path) -> None:
    rows = _rows(golden)
    np.save("shifted.npy", rows + 2**53)
    (record,) = engram("golden", "check", golden, "shifted.npy", "--json").records()
    (cause,) = record["causes"]
    assert (cause["name"], cause["values"]) == ("shifted", [str(2**53)] * 2)
    assert record["first"]["found"] == str(rows[0, 0, 0] + 2**53)
    assert _undocumented(record) == set()
    rows[:, 1] = rows[::-1, 1]
    np.save("layer.npy", rows)
    (record,) = engram("golden", "check", golden, "layer.npy", "--json").records()
    assert (record["causes"], record["hints"][0]["name"]) == ([], "layer")
    assert _undocumented(record) == set()
    ran = engram("golden", "check", golden, "layer.npy")
    assert ran.code == 6
    assert "hint       every row that differs belongs to layer 3 (layer)\n" in ran.out


def test_lines_are_read_from_standard_input(engram: Engram, golden: Path) -> None:
    cases = json.loads(golden.read_bytes())["cases"]
    lines = [json.dumps({"case": case["name"], "rows": case["rows"]}) for case in cases]
    ran = engram("golden", "check", golden, "-", stdin="\n".join(lines))
    assert (ran.code, ran.err) == (0, "")
    ran = engram("golden", "check", golden, "-", stdin="\n".join(lines[1:]))
    assert ran.code == 3
    assert f"standard input: found {len(lines) - 1} of {len(lines)} cases" in ran.err
    cases[0]["rows"][0][0][0] += 1
    lines[0] = json.dumps({"case": cases[0]["name"], "rows": cases[0]["rows"]})
    ran = engram("golden", "check", golden, "-", stdin="\n".join(lines))
    assert ran.code == 6
    assert "standard input: 1 of " in ran.err


def test_no_dead_leaves_out_cases_with_dead_tokens(engram: Engram, golden: Path, tiny_table: Path) -> None:
    spec = tiny_table.with_name("spec.json")
    assert engram("golden", "emit", "--spec", spec, "--no-dead", "-o", "live.json").code == 0
    whole, live = (json.loads(path.read_bytes()) for path in (golden, Path("live.json")))
    assert live["cases"] == [case for case in whole["cases"] if -1 not in (*case["history"], *case["ids"])]
    assert len(live["cases"]) < len(whole["cases"])
    np.save("rows.npy", _rows(Path("live.json")))
    assert engram("golden", "check", "live.json", "rows.npy").code == 0


def test_arguments_in_the_other_order_are_told_apart(engram: Engram, golden: Path) -> None:
    np.save("rows.npy", _rows(golden))
    Path("rows.jsonl").write_text('{"case": "start", "rows": []}\n')
    for answer in ("rows.npy", "rows.jsonl"):
        ran = engram("golden", "check", answer, golden)
        assert ran.code == 3
        assert "the first argument is the golden file, the second the answer" in ran.err


def test_files_that_cannot_be_used_end_with_3(engram: Engram, golden: Path) -> None:
    np.save("float.npy", _rows(golden).astype(float))
    ran = engram("golden", "check", golden, "float.npy")
    assert (ran.code, ran.out) == (3, "")
    assert "float.npy: found dtype float64" in ran.err
    assert engram("golden", "check", golden, "no-such.npy").code == 3
    assert engram("golden", "check", "no-such.json", "float.npy").code == 3
    data = golden.read_bytes()
    golden.write_bytes(data.replace(b'"ids":[', b'"ids":[0,', 1))
    ran = engram("golden", "check", golden, "float.npy")
    assert ran.code == 3
    assert "case 0 (start)" in ran.err
