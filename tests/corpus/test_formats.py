"""Documents in each format: what is read, what is malformed and where, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_files import check_pieces, corpus_of, ids, npy, packed, parquet, plain, texts

from engram_tables.corpus.reading.readers import (
    BadLine,
    Format,
    ReadOptions,
    ReadOutcome,
    find_documents,
    read_piece,
)
from engram_tables.errors import InvalidInput

# Lines of JSONL -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_jsonl_gives_one_document_a_line(tmp_path: Path, suffix: str) -> None:
    raw = '{"text": "né", "x": 1}\r\n\n{"text": ""}\n  \t\r\n{"text": "a\\u0000b\\nc"}'.encode()
    corpus = corpus_of(tmp_path / f"a.jsonl{suffix}", packed(raw, suffix))
    assert [plain(document)[1:3] for document in corpus.documents()] == [("né", 3), ("", 0), ("a\0b\nc", 5)]
    assert (corpus.n_documents, corpus.outcome.n_lines, corpus.outcome.n_blank_lines) == (3, 5, 2)
    assert corpus.read_bytes == corpus.total_bytes == len(packed(raw, suffix))
    assert not corpus.is_tokenized


@pytest.mark.parametrize(("content", "n_lines"), [(b"", 0), (b"\n", 1), (b"\xef\xbb\xbf", 1), (b"\n\n\r\n", 3)])
def test_files_without_a_line_that_says_anything_hold_no_document(tmp_path: Path, content: bytes, n_lines: int) -> None:
    corpus = corpus_of(tmp_path / "a.jsonl", content)
    assert texts(corpus) == []
    assert (corpus.outcome.n_lines, corpus.outcome.n_blank_lines) == (n_lines, n_lines)
    assert not corpus.is_tokenized


def test_a_byte_order_mark_is_no_part_of_jsonl_and_one_character_of_text(tmp_path: Path) -> None:
    assert texts(corpus_of(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n{"text": "b"}')) == ["a", "b"]
    assert texts(corpus_of(tmp_path / "a.txt", b"\xef\xbb\xbfa")) == ["\ufeffa"]
    with pytest.raises(InvalidInput, match="line 2: no JSON"):
        texts(corpus_of(tmp_path / "b.jsonl", b'{"text": "a"}\n\xef\xbb\xbf{"text": "b"}'))


def test_a_field_is_a_key_or_a_path_of_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"m": {"c": "inner"}}\n{"m": {"c": "inner"}, "m.c": "outer"}\n', encoding="utf-8")
    assert texts(corpus_of(path, field="m.c")) == ["inner", "outer"]


MALFORMED = {
    b"{": "no JSON .Expecting property name",
    b'{"text": "a"} x': "no JSON .Extra data at character 14",
    b'["a"]': "found a list .*, expected a JSON object",
    b"null": "found null, expected a JSON object",
    b'{"txt": "a"}': "field 'text' is missing",
    b'{"text": null}': "field 'text' is null",
    b'{"text": 1.0}': "field 'text' is a number .1.0., expected text",
    b'{"text": true}': "field 'text' is true",
    b'{"text": {"a": 1}}': "field 'text' is an object",
    b'{"text": ["a"]}': "item 0 is a string",
    b'{"text": "\\ud800"}': "half of a surrogate pair",
    b'{"text": "a\0b"}': "Invalid control character",
    b'{"text": "caf\xe9"}': "byte 13 of the line is 0xe9",
    b'{"text": [1, 2.0]}': "item 1 is a number .2.0., expected a token id",
    b'{"text": [true]}': "item 0 is true",
    b'{"text": [1, null]}': "item 1 is null",
    b'{"text": [-1]}': "item 0 is an integer .-1., expected a token id from 0 to 4,294,967,294",
    b'{"text": [4294967295]}': "item 0 is an integer",
    b'{"text": [1099511627776]}': "item 0 is an integer",
    b'{"text": [[1]]}': "item 0 is a list",
    b'{"text": [' + b"9" * 100 + b"]}": "item 0 is an integer of 333 bits",
    b'{"text": [' + b"9" * 5000 + b"]}": "JSON that cannot be read",
    b"[" * 100_000: "JSON that cannot be read",
}


@pytest.mark.parametrize(("line", "reason"), list(MALFORMED.items()), ids=range(len(MALFORMED)))
def test_malformed_lines_are_named_and_counted(tmp_path: Path, line: bytes, reason: str) -> None:
    raw = b'{"text": "first"}\n\n' + line + b'\n{"text": "last"}\n'
    with pytest.raises(InvalidInput, match=rf"(?s)1 malformed .* 0 at most; .*a\.jsonl: line 3: .*{reason}"):
        list(corpus_of(tmp_path / "a.jsonl", raw).documents())
    corpus = corpus_of(tmp_path / "a.jsonl", raw, skip_bad=1)
    assert texts(corpus) == ["first", "last"]
    assert [(bad.line, bad.source) for bad in corpus.outcome.bad_lines] == [(3, str(tmp_path / "a.jsonl"))]
    check_pieces(corpus_of(tmp_path / "a.jsonl", skip_bad=1), max(7, len(raw) // 50))


def test_malformed_lines_are_allowed_over_the_whole_corpus(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n\n?\n' * 3, encoding="utf-8")
    allowed = find_documents([tmp_path], options=ReadOptions(skip_bad=9))
    assert len(texts(allowed)) == 9
    refused = find_documents([tmp_path], options=ReadOptions(skip_bad=8))
    given = []
    with pytest.raises(InvalidInput, match="9 malformed lines so far, expected 8") as caught:
        given.extend(refused.documents())
    assert len(given) == 9
    assert str(caught.value).count("\n") == 6
    assert "and 4 more so far" in str(caught.value)
    # Each piece alone is within the limit; their sum is not.
    total = ReadOutcome()
    for piece in refused.pieces(1):
        reader = read_piece(piece, refused.options)
        assert len(list(reader)) + len(reader.bad_lines) <= 2
        total.add(reader.outcome)
    with pytest.raises(InvalidInput, match=r"9 malformed lines[^$]*a.jsonl: line 3: [^$]*a.jsonl: line 6: "):
        total.check(8)


def test_a_piece_stops_at_one_malformed_line_too_many(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "a.jsonl", b'?\n{"text": "a"}\n?\n?\n{"text": "b"}\n', skip_bad=1)
    (piece,) = corpus.pieces(1000)
    reader = read_piece(piece, corpus.options)
    assert [document.text for document in reader] == ["a"]
    assert reader.bad_lines == [
        BadLine(str(tmp_path / "a.jsonl"), at, "no JSON (Expecting value at character 0), expected one object a line")
        for at in (1, 3)
    ]


def test_chat_messages_are_refused_even_where_malformed_lines_are_allowed(tmp_path: Path) -> None:
    raw = b'{"text": "a"}\n{"text": [{"role": "user", "content": "hello"}]}\n'
    with pytest.raises(InvalidInput, match=r"a\.jsonl: line 2: .*chat messages.*no chat template is applied"):
        texts(corpus_of(tmp_path / "a.jsonl", raw, skip_bad=5))


def test_text_and_token_ids_in_one_corpus_are_refused(tmp_path: Path) -> None:
    raw = b'{"text": "a"}\n{"text": [1]}\n'
    mixed = corpus_of(tmp_path / "a.jsonl", raw, skip_bad=5)
    with pytest.raises(InvalidInput, match=r"text \(.*a\.jsonl: line 1\), token ids \(.*a\.jsonl: line 2\)"):
        texts(mixed)
    total = ReadOutcome()
    for piece in mixed.pieces(14):
        reader = read_piece(piece, mixed.options)
        list(reader)
        total.add(reader.outcome)
    with pytest.raises(InvalidInput, match=r"line 1\), token ids \(.*line 1 of those after byte 14"):
        total.check(0)
    (tmp_path / "b.npy").write_bytes(npy(np.arange(3)))
    with pytest.raises(InvalidInput, match=r"token ids .*text"):
        list(find_documents([tmp_path / "b.npy", tmp_path / "a.jsonl"]).documents())
    (tmp_path / "c.txt").write_text("c", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"token ids .*text"):
        list(find_documents([tmp_path / "b.npy", tmp_path / "c.txt"]).documents())


def test_token_ids_come_from_lists_of_integers(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "a.jsonl", b'{"ids": [0, 4294967294]}\n{"ids": []}\n', field="ids")
    assert corpus.is_tokenized
    assert ids(corpus) == [[0, 2**32 - 2], []]


def test_dead_spans_follow_their_line(tmp_path: Path) -> None:
    rows = [
        {"ids": [5, 6, 7, 8], "mm": [[1, 3]]},
        {"ids": [5, 6], "mm": [[0, 0], [2, 2]]},
        {"ids": [5, 6], "mm": None},
        {"ids": [5]},
        {"ids": [5, 6, 7], "mm": [[0, 1], [2, 3], [2, 3]]},
    ]
    raw = "\n".join(map(json.dumps, rows)).encode()
    corpus = corpus_of(tmp_path / "a.jsonl", raw, field="ids", dead_field="mm")
    found = [plain(document)[4] for document in corpus.documents()]
    assert found == [[False, True, True, False], None, None, None, [True, False, True]]


@pytest.mark.parametrize(
    ("spans", "reason"),
    [
        ("3", "is an integer"),
        ("[3]", "span 0 is an integer"),
        ("[[0]]", "span 0 is a list"),
        ("[[0, 1], [0, 1.0]]", "span 1 is a list"),
        ("[[false, 1]]", "of integers"),
        ("[[-1, 1]]", "0 <= start <= stop <= 2"),
        ("[[1, 3]]", "0 <= start <= stop <= 2"),
        ("[[2, 1]]", "0 <= start <= stop <= 2"),
    ],
)
def test_dead_spans_outside_their_line_are_malformed(tmp_path: Path, spans: str, reason: str) -> None:
    raw = f'{{"ids": [1, 2], "mm": {spans}}}'.encode()
    with pytest.raises(InvalidInput, match=f"line 1: field 'mm'.*{reason}"):
        ids(corpus_of(tmp_path / "a.jsonl", raw, field="ids", dead_field="mm"))


def test_dead_spans_beside_text_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="line 1: field 'mm' gives dead spans"):
        texts(corpus_of(tmp_path / "a.jsonl", b'{"text": "a", "mm": [[0, 1]]}', dead_field="mm"))


def test_lines_of_one_request_are_one_document_even_interleaved(tmp_path: Path) -> None:
    rows = [
        {"id": "b", "ids": [1, 2], "mm": [[0, 1]]},
        {"id": 7, "ids": [9]},
        {"id": "b", "ids": [3]},
        {"id": "c", "ids": []},
        {"id": "b", "ids": [4, 5], "mm": [[1, 2]]},
    ]
    raw = "\n".join(map(json.dumps, rows)).encode()
    wanted = {"field": "ids", "dead_field": "mm", "request_field": "id"}
    corpus = corpus_of(tmp_path / "a.jsonl", raw, **wanted)
    assert [plain(document)[3:] for document in corpus.documents()] == [
        ([1, 2, 3, 4, 5], [True, False, False, False, True], "b"),
        ([9], None, "7"),
        ([], None, "c"),
    ]
    assert len(corpus.pieces(1)) == 1
    check_pieces(corpus_of(tmp_path / "a.jsonl", **wanted), 1)
    text = corpus_of(tmp_path / "b.jsonl", b'{"id":1,"text":"a"}\n{"id":2,"text":"b"}\n{"id":1,"text":"c"}')
    assert texts(text) == ["a", "b", "c"]
    text = corpus_of(tmp_path / "b.jsonl", request_field="id")
    assert [plain(document)[1:] for document in text.documents()] == [
        ("ac", 2, None, None, "1"),
        ("b", 1, None, None, "2"),
    ]


@pytest.mark.parametrize("value", ["null", "1.5", "true", "[1]"])
def test_a_request_without_an_id_is_malformed(tmp_path: Path, value: str) -> None:
    raw = f'{{"text": "a", "id": {value}}}'.encode()
    with pytest.raises(InvalidInput, match=r"line 1: field 'id' is .*, expected a string or an integer"):
        texts(corpus_of(tmp_path / "a.jsonl", raw, request_field="id"))
    with pytest.raises(InvalidInput, match="line 1: field 'no' is missing"):
        texts(corpus_of(tmp_path / "a.jsonl", raw, request_field="no"))


def test_bytes_that_are_not_utf8_are_replaced_in_lines_too(tmp_path: Path) -> None:
    raw = b'{"text": "caf\xe9"}\n{"text": "ok"}\n{"text": "\xff\xfe"}\n'
    corpus = corpus_of(tmp_path / "a.jsonl", raw, decode_errors="replace")
    assert texts(corpus) == ["caf\ufffd", "ok", "\ufffd\ufffd"]
    assert (corpus.replaced_files, corpus.replaced_bytes) == (1, 3)
    check_pieces(corpus_of(tmp_path / "a.jsonl", decode_errors="replace"), 9)


# Parquet ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]
)
def test_parquet_gives_one_document_a_row(tmp_path: Path, kind: pa.DataType) -> None:
    values = ["né", "", "x" * 10] * 5
    column = pa.array(values).cast(kind) if kind != pa.string_view() else pa.array(values, type=kind)
    path = parquet(tmp_path / "a.parquet", {"n": list(range(15)), "text": column}, row_group_size=4)
    corpus = corpus_of(path)
    assert not corpus.is_tokenized
    assert texts(corpus) == values
    assert len(corpus.pieces(1)) == 4
    check_pieces(corpus_of(path), 1)


@pytest.mark.parametrize(
    "kind",
    [pa.list_(pa.int64()), pa.large_list(pa.uint16()), pa.list_(pa.uint64()), pa.list_(pa.int32(), 2)],
)
def test_parquet_lists_of_integers_are_token_ids(tmp_path: Path, kind: pa.DataType) -> None:
    values = [[1, 2], [0, 7], [3, 3]] if pa.types.is_fixed_size_list(kind) else [[1, 2], [], [2**16 - 1]]
    path = parquet(tmp_path / "a.parquet", {"ids": pa.array(values, type=kind)}, row_group_size=2)
    corpus = corpus_of(path, field="ids")
    assert corpus.is_tokenized
    assert ids(corpus) == values
    check_pieces(corpus_of(path, field="ids"), 1)


def test_malformed_rows_of_parquet_have_their_number(tmp_path: Path) -> None:
    values = pa.array([[1], None, [2, -1], [None], [2**32 - 1], [3]], type=pa.list_(pa.int64()))
    path = parquet(tmp_path / "a.parquet", {"ids": values}, row_group_size=2)
    corpus = corpus_of(path, field="ids", skip_bad=4)
    assert ids(corpus) == [[1], [3]]
    assert [bad.line for bad in corpus.outcome.bad_lines] == [2, 3, 4, 5]
    assert "item 1 is -1" in corpus.outcome.bad_lines[1].reason
    assert "item 0 is null" in corpus.outcome.bad_lines[2].reason
    check_pieces(corpus_of(path, field="ids", skip_bad=4), 1)
    path = parquet(tmp_path / "b.parquet", {"text": pa.array([b"a", b"\xff", None], type=pa.binary())})
    corpus = corpus_of(path, skip_bad=2)
    assert texts(corpus) == ["a"]
    assert [bad.line for bad in corpus.outcome.bad_lines] == [2, 3]
    assert texts(corpus_of(path, skip_bad=1, decode_errors="replace")) == ["a", "\ufffd"]


def test_invalid_text_inside_a_string_column_is_a_malformed_row(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(2, pa.py_buffer(np.array([0, 1, 2], np.int32)), pa.py_buffer(b"a\xff"))
    corpus = corpus_of(parquet(tmp_path / "a.parquet", {"text": broken}), skip_bad=1)
    assert texts(corpus) == ["a"]
    assert [bad.line for bad in corpus.outcome.bad_lines] == [2]


def test_requests_and_dead_spans_come_from_parquet_as_from_jsonl(tmp_path: Path) -> None:
    rows = [
        {"q": {"id": "a"}, "ids": [1, 2], "mm": [[0, 1]]},
        {"q": {"id": "b"}, "ids": [3], "mm": None},
        {"q": {"id": "a"}, "ids": [4], "mm": []},
    ]
    wanted = {"field": "ids", "dead_field": "mm", "request_field": "q.id"}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=1)
    raw = "\n".join(map(json.dumps, rows)).encode()
    expected = [plain(document)[1:] for document in corpus_of(tmp_path / "a.jsonl", raw, **wanted).documents()]
    corpus = corpus_of(tmp_path / "a.parquet", **wanted)
    assert [plain(document)[1:] for document in corpus.documents()] == expected
    assert len(corpus.pieces(1)) == 1
    assert ids(corpus_of(tmp_path / "a.parquet", field="ids")) == [[1, 2], [3], [4]]


def test_columns_that_hold_no_documents_are_refused(tmp_path: Path) -> None:
    messages = pa.array([[{"role": "user", "content": "x"}]])
    path = parquet(tmp_path / "a.parquet", {"n": [1], "messages": messages, "text": ["x"], "floats": [[1.0]]})
    for field, reason in (
        ("absent", "is missing, expected one of n, messages, text, floats"),
        ("n.m", "is missing"),
        ("n", "of type int64"),
        ("floats", "of type list"),
        ("messages", "chat messages.*no chat template"),
    ):
        with pytest.raises(InvalidInput, match=reason):
            texts(corpus_of(path, field=field))
    with pytest.raises(InvalidInput, match="column 'no' is missing"):
        texts(corpus_of(path, request_field="no"))
    with pytest.raises(InvalidInput, match="dead spans count token ids"):
        texts(corpus_of(path, dead_field="n"))


def test_columns_with_dots_and_twins_in_parquet(tmp_path: Path) -> None:
    rows = {"a.b": ["whole"], "a": [{"b": "inside", "c": 1}]}
    assert texts(corpus_of(parquet(tmp_path / "a.parquet", rows), field="a.b")) == ["whole"]
    inside = parquet(tmp_path / "b.parquet", {"a": [{"b": "x", "c": 1}, None, {"b": None, "c": 1}]})
    corpus = corpus_of(inside, field="a.b", skip_bad=2)
    assert texts(corpus) == ["x"]
    assert [bad.line for bad in corpus.outcome.bad_lines] == [2, 3]
    pq.write_table(pa.table([["a"], ["b"]], names=["text", "text"]), tmp_path / "c.parquet")
    with pytest.raises(InvalidInput, match="found 2 columns 'text', expected one"):
        texts(corpus_of(tmp_path / "c.parquet"))


def test_damaged_parquet_is_refused_and_so_is_a_second_compression(tmp_path: Path) -> None:
    raw = parquet(tmp_path / "a.parquet", {"text": ["some text"] * 100}).read_bytes()
    renamed = raw.replace(b"text", b"te\xfft")
    for content in (b"", b"PAR1", raw[:-1], raw[: len(raw) // 2], raw[:4] + b"\xff" * 60 + raw[64:], renamed):
        with pytest.raises(InvalidInput, match=r"b\.parquet: found no sound Parquet"):
            texts(corpus_of(tmp_path / "b.parquet", content))
    checked = parquet(tmp_path / "d.parquet", {"text": ["plain"]}, compression="none", write_page_checksum=True)
    with pytest.raises(InvalidInput, match="CRC"):
        texts(corpus_of(checked, checked.read_bytes().replace(b"plain", b"plane", 1)))
    for suffix in (".gz", ".zst"):
        with pytest.raises(InvalidInput, match="Parquet inside another compression"):
            corpus_of(tmp_path / f"c.parquet{suffix}", packed(raw, suffix))


# Token files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4", ">i8", "<u4", "<u8", "<i8"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_npy_of_any_integer_type_is_token_ids(tmp_path: Path, dtype: str, suffix: str) -> None:
    values = np.array([0, 7, 100, 7, 7, 5], dtype=dtype)
    path = tmp_path / f"a.npy{suffix}"
    corpus = corpus_of(path, packed(npy(values), suffix))
    assert corpus.is_tokenized
    assert ids(corpus) == [values.tolist()]
    assert ids(corpus_of(path, document_end=7)) == [[0], [100], [], [5]]
    assert ids(corpus_of(path, document_end=5)) == [values[:-1].tolist()]
    for piece_bytes in (1, 3, 8, 1000):
        check_pieces(corpus_of(path, document_end=7), piece_bytes)


@pytest.mark.parametrize(("dtype", "largest"), [("uint16", 2**16 - 1), ("uint32", 2**32 - 2)])
def test_bin_is_little_endian_token_ids(tmp_path: Path, dtype: str, largest: int) -> None:
    values = np.array([1, largest, 2, 258], dtype=dtype).astype(np.dtype(dtype).newbyteorder("<"))
    corpus = corpus_of(tmp_path / "a.bin", values.tobytes(), bin_dtype=dtype)
    assert ids(corpus) == [[1, largest, 2, 258]]
    assert ids(corpus_of(tmp_path / "a.bin", bin_dtype=dtype, document_end=2)) == [[1, largest], [258]]
    with pytest.raises(InvalidInput, match=r"expected --dtype uint16 or uint32"):
        corpus_of(tmp_path / "a.bin")
    with pytest.raises(InvalidInput, match="1 bytes after the last whole token"):
        ids(corpus_of(tmp_path / "a.bin", values.tobytes() + b"\0", bin_dtype=dtype))


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_empty_token_files_are_one_document_or_none(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.npy{suffix}").write_bytes(packed(npy(np.empty(0, np.int64)), suffix))
    (tmp_path / f"b.bin{suffix}").write_bytes(packed(b"", suffix))
    wanted: dict[str, Any] = {"bin_dtype": "uint16"}
    corpus = find_documents([tmp_path], options=ReadOptions(**wanted))
    assert ids(corpus) == [[], []]
    ended = find_documents([tmp_path], options=ReadOptions(document_end=0, **wanted))
    assert ids(ended) == []
    check_pieces(find_documents([tmp_path], options=ReadOptions(document_end=0, **wanted)), 1)


@pytest.mark.parametrize("value", [-1, 2**32 - 1, 2**40, -(2**63)])
def test_values_that_are_no_token_ids_are_refused_with_their_position(tmp_path: Path, value: int) -> None:
    raw = npy(np.array([1, 2, value, 3], dtype=np.int64))
    with pytest.raises(InvalidInput, match=rf"a\.npy: token 2 is {value:,}, expected 0 to 4,294,967,294"):
        ids(corpus_of(tmp_path / "a.npy", raw))
    ended = corpus_of(tmp_path / "a.npy", document_end=1)
    with pytest.raises(InvalidInput, match="token 2 is"):
        list(itertools.chain.from_iterable(read_piece(piece, ended.options) for piece in ended.pieces(40)))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros((2, 2), np.int64), r"holds int64 of shape \(2, 2\)"),
        (np.array(3), r"shape \(\)"),
        (np.zeros(3), "holds float64"),
        (np.zeros(3, np.bool_), "holds bool"),
        (np.zeros(3, "S4"), r"holds \|S4"),
        (np.zeros(3, [("a", "i4")]), "one dimension of integers"),
        (np.array([None, 1]), "holds object"),
    ],
)
def test_npy_files_of_other_things_are_refused(tmp_path: Path, values: Any, reason: str) -> None:
    with pytest.raises(InvalidInput, match=reason):
        ids(corpus_of(tmp_path / "a.npy", npy(values, allow_pickle=values.dtype == object)))


def test_npy_files_that_were_cut_or_changed_are_refused(tmp_path: Path) -> None:
    raw = npy(np.arange(5, dtype=np.int32))
    for content in [raw[:n_bytes] for n_bytes in range(len(raw))] + [raw + b"\0", raw + raw]:
        for path in (tmp_path / "a.npy", tmp_path / "a.npy.gz"):
            packed_content = packed(content, ".gz") if path.suffix == ".gz" else content
            with pytest.raises(InvalidInput, match=r"a\.npy(\.gz)?: found"):
                ids(corpus_of(path, packed_content))
    for at in range(128):
        changed = bytearray(raw)
        changed[at] ^= 0xFF
        try:
            assert ids(corpus_of(tmp_path / "a.npy", bytes(changed))) == [[0, 1, 2, 3, 4]]
        except InvalidInput:
            continue


# What the options say -----------------------------------------------------------------------------------------------


def test_the_format_given_goes_before_the_name(tmp_path: Path) -> None:
    assert texts(corpus_of(tmp_path / "a.jsonl", b'{"text": "x"}', format="text")) == ['{"text": "x"}']
    assert texts(corpus_of(tmp_path / "a.log", b'{"text": "x"}', format=Format.JSONL)) == ["x"]
    assert ids(corpus_of(tmp_path / "a.tokens", b"\1\0\2\0", format="bin", bin_dtype="uint16")) == [[1, 2]]


@pytest.mark.parametrize(
    "options",
    [
        {"document_end": 5},
        {"bin_dtype": "uint16"},
        {"request_field": "id"},
        {"dead_field": "mm"},
        {"field": "content"},
    ],
)
def test_options_that_no_file_heeds_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="found only text files"):
        corpus_of(tmp_path / "a.txt", b"x", **options)


@pytest.mark.parametrize(
    "options",
    [{"field": ""}, {"field": "a..b"}, {"request_field": "."}, {"document_end": 2**32 - 1}, {"skip_bad": -1}],
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        ReadOptions(**options)
