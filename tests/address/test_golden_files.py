"""No golden file and no answer is trusted: what is refused, and that the message says where."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden_programs import Program, Rows, file_of, golden_of, write_lines
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engram_tables.address.golden.cases import golden_bytes, read_golden
from engram_tables.address.golden.check import check_rows, load_answer
from engram_tables.errors import InvalidInput


def _altered(data: dict[str, Any], change: Callable[[dict[str, Any]], None]) -> bytes:
    copy = json.loads(json.dumps(data))
    change(copy)
    return json.dumps(copy).encode()


def _set(value: Any, *path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def _delete(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        del data[path[-1]]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("engram.golden/2", "schema"), "schema 'engram.golden/2', expected 'engram.golden/1'"),
        (_delete("spec"), "spec: found schema 'NoneType'"),
        (_set(9, "spec", "addressing", "fill_id"), "a constant was changed"),
        (_set([], "cases"), "cases are a list of 0"),
        (_set({}, "cases"), "cases are"),
        (_set(7, "cases", 1), "case 1: found '7' (int), expected an object"),
        (_delete("cases", 1, "about"), "case 1: about is nothing, expected a text"),
        (_set("", "cases", 1, "name"), "case 1: a name of 0 characters"),
        (_set("start", "cases", 1, "name"), "two cases are named 'start'"),
        (_set([], "cases", 0, "ids"), "case 0 (start): ids: found a list of 0"),
        (_set(60, "cases", 0, "ids", 2), "case 0 (start): ids[2]: found 60, expected 0 to 59"),
        (_set(-2, "cases", 0, "ids", 2), "case 0 (start): ids[2]: found -2"),
        (_set(1.0, "cases", 0, "ids", 2), "case 0 (start): ids[2]: found 1.0"),
        (_set([1, 2, 3], "cases", 0, "history"), "history: found a list of 3, expected 0 to 2 ids"),
        (_set(5, "cases", 0, "rows", 3, 1, 2), "case 0 (start): rows differ from those that its spec gives (at [3]"),
        (_set(5.0, "cases", 0, "rows", 3, 1, 2), "case 0 (start): rows[3][1][2]: found 5.0, a float"),
        (_set(True, "cases", 0, "rows", 3, 1, 2), "case 0 (start): rows[3][1][2]: found True"),
        (_delete("cases", 0, "rows", 3), "case 0 (start): rows: found a list of 7, expected a list of 8"),
        (_delete("cases", 0, "rows", 3, 1, 2), "case 0 (start): rows[3][1]: found a list of 3, expected a list of 4"),
        (_set("5", "cases", 0, "keys", 3, 1, 1), "case 0 (start): keys differ"),
        (_set("0" * 64, "rows_sha256"), "rows_sha256 is '000"),
        (_delete("cases", 4), "shape is"),
        (_set([1, 2, 3], "shape"), "shape is [1, 2, 3]"),
    ],
)  # fmt: skip
def test_a_golden_file_that_was_changed_is_refused(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "golden.json"
    path.write_bytes(_altered(file_of("small"), change))
    with pytest.raises(InvalidInput, match=re.escape(message)) as caught:
        read_golden(path)
    assert str(caught.value).startswith(str(path))


def test_a_golden_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path, data = tmp_path / "golden.json", golden_bytes(golden_of("small"))
    for n_bytes in (*range(0, 2000, 97), *range(2000, len(data) - 2, 499), len(data) - 3):
        path.write_bytes(data[:n_bytes])
        with pytest.raises(InvalidInput, match=re.escape(str(path))):
            read_golden(path)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_no_changed_byte_changes_an_answer(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is read is refused, or asks and answers the same: names and words for people are free."""
    golden = golden_of("small")
    written = bytearray(golden_bytes(golden))
    position = data.draw(st.integers(0, len(written) - 1))
    byte = data.draw(st.integers(0, 255))
    assume(written[position] != byte)
    written[position] = byte
    path = tmp_path_factory.getbasetemp() / "changed.json"
    path.write_bytes(written)
    try:
        read = read_golden(path)
    except InvalidInput:
        return
    assert [(case.history, case.ids, case.rows, case.keys) for case in read.cases] == [
        (case.history, case.ids, case.rows, case.keys) for case in golden.cases
    ]
    assert read.spec.fingerprint == golden.spec.fingerprint


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (lambda rows: rows.astype(np.float64), "found dtype float64, expected int32, uint32, int64 or uint64"),
        (lambda rows: rows.astype(np.float32), "keep integers from the hash on"),
        (lambda rows: rows[1:], "expected {shape}"),
        (lambda rows: rows[:, :1], "expected {shape}"),
        (lambda rows: rows.swapaxes(0, 1), "expected {shape}"),
        (lambda rows: rows.reshape(-1), "expected {shape}"),
        (lambda rows: rows == 0, "found dtype bool"),
        (lambda rows: rows.astype(str), "found dtype"),
    ],
)
def test_an_array_of_another_kind_or_shape_is_refused(
    array: Callable[[Rows], Any], message: str, tmp_path: Path
) -> None:
    golden, rows = golden_of("small"), Program(file_of("small")).answer()
    path = tmp_path / "rows.npy"
    np.save(path, array(rows))
    with pytest.raises(InvalidInput, match=re.escape(message.format(shape=rows.shape))) as caught:
        load_answer(path, golden)
    assert str(caught.value).startswith(str(path))


@pytest.mark.filterwarnings("ignore:::numpy")  # it warns of headers that it can only just read
def test_an_array_file_with_any_damage_to_its_header_is_refused_or_read_whole(tmp_path: Path) -> None:
    golden, rows = golden_of("small"), Program(file_of("small")).answer()
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    data = path.read_bytes()
    for n_bytes in (*range(128), len(data) - 1):
        path.write_bytes(data[:n_bytes])
        with pytest.raises(InvalidInput, match=re.escape(str(path))):
            load_answer(path, golden)
    path.write_bytes(data + b"\0")
    with pytest.raises(InvalidInput, match=f"found {len(data) + 1} bytes, expected {len(data)} by its header"):
        load_answer(path, golden)
    for bit in range(128 * 8):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with suppress(InvalidInput):
            assert np.array(load_answer(path, golden)).shape == rows.shape


@pytest.mark.parametrize("name", ["rows.csv", "rows", "rows.npz", "rows.json"])
def test_an_answer_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"expected \.npy or \.jsonl"):
        load_answer(tmp_path / name, golden_of("small"))


def _line(change: Callable[[dict[str, Any]], None]) -> Callable[[list[str]], list[str]]:
    """The first line with a change; it answers the last case, which has three tokens."""
    return lambda lines: [_altered(json.loads(lines[0]), change).decode(), *lines[1:]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[1:], " of {n} cases, expected all; add a line for each of usual-specials"),
        (lambda lines: lines[:1], "found 1 of {n} cases"),
        (lambda lines: [], "found 0 of {n} cases"),
        (lambda lines: [*lines, lines[0]], " line {next}: found case usual-specials for the second time"),
        (lambda lines: [lines[0][:-9], *lines[1:]], " line 1: not JSON"),
        (lambda lines: [*lines, "nonsense"], " line {next}: not JSON"),
        (lambda lines: ["[" * 100_000, *lines], " line 1: not JSON"),
        (lambda lines: ["[]", *lines], " line 1: found list, expected an object"),
        (_line(_delete("rows")), " line 1: found the keys 'case'"),
        (_line(_set(1, "extra")), " line 1: found the keys 'case', 'extra', 'rows'"),
        (_line(_set("no-such", "case")), " line 1: found case 'no-such'"),
        (_line(_set(["start"], "case")), " line 1: found case ['start']"),
        (_line(_set(1.0, "rows", 2, 1, 3)), "rows[2][1][3]: found 1.0, a float, expected an integer"),
        (_line(_set("1.0", "rows", 2, 1, 3)), "rows[2][1][3]: found '1.0' (str)"),
        (_line(_set(None, "rows", 2, 1, 3)), "rows[2][1][3]: found None"),
        (_line(_set(True, "rows", 2, 1, 3)), "rows[2][1][3]: found True"),
        (_line(_set(math.nan, "rows", 2, 1, 3)), "rows[2][1][3]: found nan, a float"),
        (_line(_delete("rows", 2)), "rows: found a list of 16, expected a list of 17"),
        (_line(_delete("rows", 2, 1)), "rows[2]: found a list of 1, expected a list of 2"),
        (_line(_set([1, 2, 3, 4, 5], "rows", 2, 1)), "rows[2][1]: found a list of 5, expected a list of 4"),
        (_line(_set({}, "rows", 2, 1)), "rows[2][1]: found '{{}}' (dict)"),
    ],
)  # fmt: skip
def test_lines_that_are_no_whole_answer_are_refused(
    change: Callable[[list[str]], Sequence[str]], message: str, tmp_path: Path
) -> None:
    golden, path = golden_of("small"), tmp_path / "answer.jsonl"
    write_lines(path, golden, Program(file_of("small")).answer())
    lines = path.read_text().splitlines()
    path.write_text("\n".join(change(lines)))
    with pytest.raises(InvalidInput, match=re.escape(message.format(n=len(lines), next=len(lines) + 1))) as caught:
        load_answer(path, golden)
    assert str(caught.value).startswith(str(path))


def test_rows_past_every_word_are_compared_as_they_are() -> None:
    golden = golden_of("small")
    rows: list[Any] = Program(file_of("small")).answer().tolist()
    rows[0][0][0] = str(10**38)
    report = check_rows(golden, rows)
    assert report.first is not None
    assert report.first.found == 10**38
    assert (
        check_rows(golden, np.full((golden.n_tokens, 2, 4), 2**64 - 1, dtype=np.uint64)).n_rows_differing
        == golden.n_rows
    )
