"""Where a corpus lies: patterns and URLs beside files and directories."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engram_tables.corpus.reading.readers import (
    Corpus,
    CorpusFile,
    Format,
    ReadOptions,
    Skipped,
    find_documents,
    read_piece,
)
from engram_tables.errors import BackendUnavailable, InvalidInput

FILES = [
    "a.txt",
    "b/c.txt",
    "b/d/e.txt",
    "b/d/f.jsonl",
    "b/.hidden/g.txt",
    ".h.txt",
    "test/i.txt",
    "x1/j.txt",
    "x2.txt",
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    return tmp_path


@pytest.fixture
def memory() -> Iterator[Any]:
    filesystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    yield filesystem
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]


@pytest.fixture
def remote(memory: Any) -> str:
    for name in FILES:
        memory.pipe(f"/shelf/{name}", name.encode())
    return "memory://shelf"


def found_below(corpus: Corpus, root: str) -> list[str]:
    return [file.source.removeprefix("memory:///").removeprefix(root).lstrip("/") for file in corpus.files]


PATTERNS = [
    ("*.txt", ["a.txt", "x2.txt"]),
    ("**/*.txt", ["a.txt", "b/c.txt", "b/d/e.txt", "test/i.txt", "x1/j.txt", "x2.txt"]),
    ("**", ["a.txt", "b/c.txt", "b/d/e.txt", "b/d/f.jsonl", "test/i.txt", "x1/j.txt", "x2.txt"]),
    ("b/**/e.txt", ["b/d/e.txt"]),
    ("b/**/**/c.txt", ["b/c.txt"]),
    ("**/d/*", ["b/d/e.txt", "b/d/f.jsonl"]),
    ("*/d/*.jsonl", ["b/d/f.jsonl"]),
    ("x[1-9]*", ["x1/j.txt", "x2.txt"]),
    ("b/?", ["b/d/e.txt", "b/d/f.jsonl"]),
    (".*.txt", [".h.txt"]),
    ("b/.h*/*", ["b/.hidden/g.txt"]),
    ("./b//c.*", ["b/c.txt"]),
]


@pytest.mark.parametrize(("pattern", "expected"), PATTERNS)
def test_patterns_name_files_and_directories_as_a_shell_does(tree: Path, pattern: str, expected: list[str]) -> None:
    assert found_below(find_documents([f"{tree}/{pattern}"]), str(tree)) == expected


@pytest.mark.parametrize(("pattern", "expected"), PATTERNS[:-1])
def test_patterns_of_urls_name_the_same(remote: str, pattern: str, expected: list[str]) -> None:
    assert found_below(find_documents([f"{remote}/{pattern}"]), "shelf") == expected


def test_a_pattern_without_a_folder_is_relative(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    assert found_below(find_documents(["*.txt"]), "") == ["a.txt", "x2.txt"]
    assert found_below(find_documents(["b/*.txt"]), "") == ["b/c.txt"]


def test_a_file_whose_name_looks_like_a_pattern_is_that_file(tree: Path, memory: Any) -> None:
    (tree / "[a].txt").write_text("itself", encoding="utf-8")
    assert [d.text for d in find_documents([tree / "[a].txt"]).documents()] == ["itself"]
    memory.pipe("/q/a?.txt", b"itself")
    memory.pipe("/q/ab.txt", b"other")
    assert [d.text for d in find_documents(["memory://q/a?.txt"]).documents()] == ["itself"]


@pytest.mark.parametrize("root", ["tree", "remote"])
def test_exclude_and_glob_hold_in_directories_and_exclude_below_patterns(
    root: str, request: pytest.FixtureRequest
) -> None:
    place = str(request.getfixturevalue(root))
    below = place if root == "tree" else "shelf"
    corpus = find_documents([f"{place}/**/*.txt"], exclude=("test", "x*"))
    assert found_below(corpus, below) == ["a.txt", "b/c.txt", "b/d/e.txt"]
    assert corpus.skipped == {Skipped.EXCLUDED: 3}
    corpus = find_documents([place], exclude=("test",), glob="*.txt")
    assert found_below(corpus, below) == ["a.txt", "b/c.txt", "b/d/e.txt", "x1/j.txt", "x2.txt"]
    assert corpus.skipped == {Skipped.EXCLUDED: 1, Skipped.HIDDEN: 2, Skipped.NO_MATCH: 1}


def test_patterns_count_what_they_name_and_cannot_read(tree: Path) -> None:
    (tree / "gone.txt").symlink_to(tree / "nowhere")
    (tree / "b" / "up").symlink_to(tree)
    corpus = find_documents([f"{tree}/**/*.txt"])
    assert len(corpus.files) == 6
    assert corpus.skipped == {Skipped.DANGLING: 1, Skipped.REPEATED: 1}


@pytest.mark.parametrize("path", ["{}/no*", "{}/no/*.txt", "{}/a.txt/*", "memory://shelf/no*", "memory://nowhere/*"])
def test_a_pattern_that_names_nothing_is_refused(tree: Path, remote: str, path: str) -> None:
    with pytest.raises(InvalidInput, match="none matches it as a pattern"):
        find_documents([path.format(tree)])


def test_urls_are_read_as_files_are(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/data/a.jsonl", b'{"text": "one"}\n{"text": "two"}\n' * 50)
    memory.pipe("/data/b.txt.gz", gzip.compress(b"three"))
    pq.write_table(pa.table({"text": ["four", "five"] * 30}), tmp_path / "c.parquet", row_group_size=10)
    memory.pipe("/data/c.parquet", (tmp_path / "c.parquet").read_bytes())
    for name in ("a.jsonl", "b.txt.gz"):
        (tmp_path / name).write_bytes(memory.cat(f"/data/{name}"))
    for url in ("memory://data", f"file://{tmp_path}", "memory://data/*"):
        corpus = find_documents([url])
        assert corpus.total_bytes == find_documents([tmp_path]).total_bytes
        expected = [document.text for document in find_documents([tmp_path]).documents()]
        assert [document.text for document in corpus.documents()] == expected
        pieces = corpus.pieces(200)
        assert len(pieces) > 5
        read = [document.text for piece in pieces for document in read_piece(piece, corpus.options)]
        assert read == expected
        assert all(file.path is None and file.url and "://" in file.url for file in corpus.files)
    assert find_documents(["memory://data/a.jsonl"]).files[0].name == "a.jsonl"


def test_token_files_behind_urls_are_cut_too(memory: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(1000) % 10)
    memory.pipe("/t/a.npy", (tmp_path / "a.npy").read_bytes())
    corpus = find_documents(["memory://t/a.npy"], options=ReadOptions(document_end=9))
    pieces = corpus.pieces(1000)
    assert len(pieces) == 9
    assert sum(1 for piece in pieces for _ in read_piece(piece, corpus.options)) == 100


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("bogus://x/y", InvalidInput, "found the protocol 'bogus'.*expected one that fsspec knows"),
        ("memory://nowhere", InvalidInput, "no such file or directory"),
        ("memory://shelf/a.txt/b", InvalidInput, "no such file or directory"),
    ],
)
def test_urls_that_name_nothing_are_refused(remote: str, url: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_documents([url])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BackendUnavailable, match=r"the package for s3:// is not installed \(Install s3fs.*install it"):
        find_documents(["s3://bucket/key"])


@pytest.mark.parametrize("method", ["info", "find", "open"])
@pytest.mark.parametrize(("raised", "expected"), [(RuntimeError, InvalidInput), (PermissionError, PermissionError)])
def test_failures_of_a_filesystem_are_ours_and_name_the_url(
    remote: str, memory: Any, monkeypatch: pytest.MonkeyPatch, method: str, raised: Any, expected: Any
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised("made to fail")

    monkeypatch.setattr(type(memory), method, fail)
    with pytest.raises(expected) as caught:
        list(find_documents([remote]).documents())
    assert "made to fail" in str(caught.value)
    assert "memory://" in str(caught.value) or "corpus" in " ".join(caught.value.__notes__)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a/B.JSONL.GZ?token=1/2#x", "b.jsonl.gz"),
        ("s3://bucket/what?.parquet", "what?.parquet"),
        ("https://host", ""),
    ],
)
def test_the_name_in_a_url_decides_its_format(url: str, name: str) -> None:
    assert CorpusFile(path=None, url=url, file_bytes=0).name == name


def test_an_unknown_size_is_one_piece(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe("/data/a.jsonl", b'{"text": "one"}\n' * 50)
    monkeypatch.setattr(type(memory), "info", lambda *_, **__: {"type": "file", "size": None})
    corpus = find_documents(["memory://data/a.jsonl"], options=ReadOptions(format=Format.JSONL))
    (piece,) = corpus.pieces(10)
    reader = read_piece(piece, corpus.options)
    assert (len(list(reader)), reader.read_bytes, piece.n_bytes) == (50, 800, 0)
