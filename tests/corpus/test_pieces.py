"""Blocks, lines and pieces: cut anywhere, they hold what the corpus holds; compressed files, standard input, pipes."""

from __future__ import annotations

import gzip
import io
import json
import os
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import zstandard
from corpus_files import check_pieces, corpus_of, ids, npy, packed, parquet, texts
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables.corpus.reading import blocks
from engram_tables.corpus.reading.blocks import blocks_of_lines, count_lines, lines
from engram_tables.corpus.reading.readers import (
    CorpusFile,
    Document,
    Format,
    ReadOptions,
    find_documents,
    read_piece,
)
from engram_tables.errors import InvalidInput

PER_TEST = settings(deadline=None, max_examples=60)


# Lines and blocks ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 7)
    monkeypatch.setattr(blocks, "_STEP_BYTES", {"gzip": 3, "zstd": 5})


@pytest.mark.usefixtures("small_blocks")
@PER_TEST
@given(st.lists(st.sampled_from([b"\n", b"\n\n", b"a", b"bcdefghijk", b"\r\n"])).map(b"".join), st.data())
def test_ranges_of_bytes_give_each_line_once(tmp_path_factory: pytest.TempPathFactory, raw: bytes, data: Any) -> None:
    path = tmp_path_factory.mktemp("lines") / "a"
    path.write_bytes(raw)
    file = CorpusFile(path=path, file_bytes=len(raw))
    expected = raw.split(b"\n")[:-1] if raw.endswith(b"\n") or not raw else raw.split(b"\n")
    cuts = data.draw(st.lists(st.integers(0, len(raw)), max_size=4).map(sorted))
    found: list[bytes] = []
    for start, stop in zip([0, *cuts], [*cuts, len(raw)], strict=True):
        part = [line for batch in lines(blocks_of_lines(file, start, stop)) for line in batch]
        if part:
            assert count_lines(file, start) == len(found)
        found += part
    assert found == expected


def test_a_line_of_many_blocks_is_read_in_time_and_a_stream_in_little_memory(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(32):
            file.write(b'{"text": "' + b"x" * (1 << 20) + b'"}\n')
    tracemalloc.start()
    n_documents = sum(1 for _ in corpus_of(tmp_path / "a.jsonl.gz").documents())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_documents == 32
    assert peak_bytes < 24 << 20
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'{"text": "' + b"y" * (100 << 20) + b'"}\n{"text": "z"}')
    corpus = corpus_of(path)
    assert [len(document.text) for document in corpus.documents()] == [100 << 20, 1]
    pieces = corpus.pieces(10 << 20)
    assert len(pieces) == 11
    assert [sum(1 for _ in read_piece(piece, corpus.options)) for piece in pieces] == [1, *[0] * 9, 1]


# Compressed files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_text_is_decompressed(tmp_path: Path, suffix: str) -> None:
    raw = "line é\n".encode() * 9000
    corpus = corpus_of(tmp_path / f"a.TXT{suffix.upper()}", packed(raw, suffix))
    assert texts(corpus) == [raw.decode()]
    assert corpus.read_bytes == (tmp_path / f"a.TXT{suffix.upper()}").stat().st_size
    empty = corpus_of(tmp_path / f"b{suffix}", packed(b"", suffix))
    assert texts(empty) == [""]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_cut_short_anywhere_is_refused(tmp_path: Path, suffix: str) -> None:
    whole = gzip.compress(b"some text") if suffix == ".gz" else zstandard.ZstdCompressor().compress(b"some text")
    for n_bytes in range(len(whole)):
        with pytest.raises(InvalidInput, match=rf"a{suffix}: found it damaged within its first {n_bytes} bytes"):
            texts(corpus_of(tmp_path / f"a{suffix}", whole[:n_bytes]))
    with pytest.raises(InvalidInput, match="damaged"):
        texts(corpus_of(tmp_path / f"a{suffix}", whole + b"rest"))
    with pytest.raises(InvalidInput, match="damaged within its first 5 bytes"):
        texts(corpus_of(tmp_path / f"a{suffix}", b"plain"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_flipped_bit_never_passes_unseen(tmp_path: Path, suffix: str) -> None:
    raw = b"some text that repeats, some text that repeats"
    compress = zstandard.ZstdCompressor(write_checksum=True).compress if suffix == ".zst" else gzip.compress
    whole = compress(raw)
    for bit in range(len(whole) * 8):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            found = texts(corpus_of(tmp_path / f"a{suffix}", bytes(flipped)))
        except InvalidInput:
            continue
        assert found == [raw.decode()]  # as the modification time and the system in a gzip header may


# Pieces -------------------------------------------------------------------------------------------------------------

_words = st.text(st.characters(codec="utf-8"), max_size=8)
_end_ids = st.lists(st.sampled_from([0, 1, 2, 3]), max_size=30)


def _jsonl(rows: list[Any], separator: str, mark: str, end: str) -> bytes:
    return (mark + separator.join(json.dumps(row, ensure_ascii=False) for row in rows) + end).encode()


_contents: dict[str, st.SearchStrategy[bytes]] = {
    "a.txt": _words.map(str.encode),
    "a.jsonl": st.builds(
        _jsonl,
        st.lists(st.builds(lambda text: {"text": text}, _words) | st.just(["bad"]), max_size=6),
        st.sampled_from(["\n", "\r\n", "\n\n"]),
        st.sampled_from(["", "\ufeff"]),
        st.sampled_from(["", "\n", "\r\n", " "]),
    ),
}


@pytest.mark.usefixtures("small_blocks")
@PER_TEST
@given(
    files=st.lists(
        st.sampled_from(sorted(_contents)).flatmap(lambda name: st.tuples(st.just(name), _contents[name])), min_size=1
    ),
    suffix=st.sampled_from(["", "", ".gz", ".zst"]),
    piece_bytes=st.integers(1, 40),
)
def test_pieces_of_text_hold_what_the_corpus_holds(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, bytes]], suffix: str, piece_bytes: int
) -> None:
    root = tmp_path_factory.mktemp("pieces")
    for nth, (name, content) in enumerate(files):
        (root / f"{nth:03}-{name}{suffix}").write_bytes(packed(content, suffix))
    check_pieces(find_documents([root], options=ReadOptions(skip_bad=10**6)), piece_bytes)


@pytest.mark.usefixtures("small_blocks")
@PER_TEST
@given(
    values=_end_ids,
    dtype=st.sampled_from(["uint16", "uint32"]),
    name=st.sampled_from(["a.npy", "a.bin", "a.npy.gz", "a.bin.zst"]),
    document_end=st.sampled_from([None, 0, 3]),
    piece_bytes=st.integers(1, 60),
)
def test_pieces_of_token_files_hold_what_the_corpus_holds(
    tmp_path_factory: pytest.TempPathFactory,
    values: list[int],
    dtype: str,
    name: str,
    document_end: int | None,
    piece_bytes: int,
) -> None:
    array = np.array(values, dtype=dtype)
    is_bin, suffix = name.startswith("a.bin"), Path(name).suffix
    content = packed(array.tobytes() if is_bin else npy(array), suffix)
    options: dict[str, Any] = {"document_end": document_end, "bin_dtype": dtype if is_bin else None}
    path = tmp_path_factory.mktemp("tokens") / name
    corpus = corpus_of(path, content, **options)
    check_pieces(corpus, piece_bytes)
    expected: list[list[int]] = [[]]
    for value in values:
        if value == document_end:
            expected.append([])
        else:
            expected[-1].append(value)
    if document_end is not None and not expected[-1]:
        expected.pop()
    assert ids(corpus_of(path, **options)) == expected


@PER_TEST
@given(rows=st.lists(_words | st.none(), max_size=20), group_rows=st.integers(1, 7), piece_bytes=st.integers(1, 2000))
def test_pieces_of_parquet_hold_what_the_corpus_holds(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str | None], group_rows: int, piece_bytes: int
) -> None:
    column = pa.array(rows, type=pa.string())
    path = parquet(tmp_path_factory.mktemp("rows") / "a.parquet", {"text": column}, row_group_size=group_rows)
    check_pieces(corpus_of(path, skip_bad=100), piece_bytes)


def test_small_files_share_pieces_and_cuts_are_even(tmp_path: Path) -> None:
    for nth in range(10):
        (tmp_path / f"{nth}.txt").write_bytes(b"x" * 30)
    (tmp_path / "4.jsonl").write_bytes(b'{"text": "x"}\n' * 100)
    pieces = find_documents([tmp_path]).pieces(100)
    assert [len(piece.parts) for piece in pieces] == [3, 1, *[1] * 14, 3, 3]
    assert {piece.n_bytes for piece in pieces[2:-2]} == {100}
    assert [piece.parts[0].start for piece in pieces[2:5]] == [0, 100, 200]


def test_a_file_that_shrinks_after_it_was_found_is_refused(tmp_path: Path) -> None:
    for name, content in (("a.jsonl", b'{"text": "x"}\n' * 9), ("b.txt", b"text"), ("c.npy", npy(np.arange(9) % 2))):
        options: dict[str, Any] = {"document_end": 1} if name == "c.npy" else {}
        corpus = corpus_of(tmp_path / name, content, **options)
        pieces = corpus.pieces(30)
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
        with pytest.raises(InvalidInput, match=rf"{name}: found"):
            list(corpus.documents())
        with pytest.raises(InvalidInput, match=rf"{name}: found"):
            list(read_piece(pieces[-1], corpus.options))


def test_documents_can_be_left_early_and_counters_say_how_far(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path / "a.jsonl", b'{"text": "x"}\n' * 1000)
    documents: Iterator[Document] = corpus.documents()
    next(documents)
    documents.close()  # type: ignore[attr-defined]
    assert corpus.n_documents == 1
    assert 0 < corpus.read_bytes <= 14_000


def _standard_input(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    return lambda raw: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))


def test_standard_input_has_every_format_but_parquet(monkeypatch: pytest.MonkeyPatch) -> None:
    give = _standard_input(monkeypatch)
    give(b'\n{"text": "a"}\n{"text": "b"}')
    corpus = find_documents(["-"], options=ReadOptions(format=Format.JSONL))
    assert not corpus.is_tokenized
    assert not corpus.is_tokenized
    (piece,) = corpus.pieces(1)
    assert piece.is_stream
    assert [document.text for document in read_piece(piece, corpus.options)] == ["a", "b"]
    give(b'{"t": [1, 2]}')
    corpus = find_documents(["-"], options=ReadOptions(format=Format.JSONL, field="t"))
    assert corpus.is_tokenized
    assert ids(corpus) == [[1, 2]]
    give(npy(np.arange(4)))
    corpus = find_documents(["-"], options=ReadOptions(format=Format.NPY, document_end=2))
    assert corpus.is_tokenized
    assert ids(corpus) == [[0, 1], [3]]
    give(b"\1\0\2\0")
    assert ids(find_documents(["-"], options=ReadOptions(format=Format.BIN, bin_dtype="uint16"))) == [[1, 2]]
    give(b"PAR1")
    with pytest.raises(InvalidInput, match="expected a file"):
        texts(find_documents(["-"], options=ReadOptions(format=Format.PARQUET)))
    give(b"{")
    with pytest.raises(InvalidInput, match="standard input: line 1: no JSON"):
        _ = find_documents(["-"], options=ReadOptions(format=Format.JSONL)).is_tokenized


@pytest.mark.parametrize("content", [b'{"text": [{"role": "u"}]}', b"?"])
def test_looking_for_the_kind_fails_as_reading_does(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidInput, match="line 1"):
        _ = corpus_of(tmp_path / "a.jsonl", content).is_tokenized


def test_a_pipe_that_was_looked_at_is_read_whole_afterwards(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    (tmp_path / "a.jsonl").write_bytes(b'{"text": [0]}\n')
    writer = threading.Thread(target=pipe.write_bytes, args=(b'\n{"text": [1]}\n{"text": [2]}\n',))
    corpus = find_documents([pipe, tmp_path / "a.jsonl"])
    writer.start()
    assert corpus.is_tokenized
    assert corpus.is_tokenized
    assert [piece.is_stream for piece in corpus.pieces(10**6)] == [True, False]
    assert ids(corpus) == [[1], [2], [0]]
    writer.join()
    os.mkfifo(tmp_path / "pipe.jsonl.gz")
    with pytest.raises(InvalidInput, match="compressed pipe"):
        _ = find_documents([tmp_path / "pipe.jsonl.gz"]).is_tokenized
