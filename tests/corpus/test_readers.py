"""Documents from paths: what is read, what is left out, what is refused."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_tables.corpus.reading.readers import Corpus, CorpusFile, DecodeErrors, ReadOptions, Skipped, find_documents
from engram_tables.errors import InvalidInput


def names(corpus: Corpus, root: Path) -> list[str]:
    return [str(file.path.relative_to(root)) for file in corpus.files if file.path is not None]


def write(root: Path, *files: str) -> None:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def test_directories_are_searched_to_their_depth_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path, "b.py", "a/z.py", "a/a.py", "c.txt", "a/d/e/f.py")
    corpus = find_documents([tmp_path], glob="*.py")
    assert names(corpus, tmp_path) == ["a/a.py", "a/d/e/f.py", "a/z.py", "b.py"]
    assert corpus.skipped == {Skipped.NO_MATCH: 1}
    assert [document.text for document in corpus.documents()] == ["a/a.py", "a/d/e/f.py", "a/z.py", "b.py"]


def test_paths_keep_the_order_given_and_a_named_file_needs_no_match(tmp_path: Path) -> None:
    write(tmp_path, "one.txt", "two/b.py", ".hidden")
    corpus = find_documents([tmp_path / "two", tmp_path / "one.txt", tmp_path / ".hidden"], glob="*.py")
    assert names(corpus, tmp_path) == ["two/b.py", "one.txt", ".hidden"]
    assert corpus.n_skipped == 0


def test_hidden_entries_links_to_nothing_and_pipes_are_counted(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".b.txt", ".git/c.txt", ".git/d.txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    corpus = find_documents([tmp_path])
    assert names(corpus, tmp_path) == ["a.txt"]
    assert corpus.skipped == {Skipped.HIDDEN: 2, Skipped.DANGLING: 1, Skipped.NOT_A_FILE: 1}


def test_a_pattern_with_a_dot_finds_hidden_files(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", ".b.txt")
    assert names(find_documents([tmp_path], glob=".*.txt"), tmp_path) == [".b.txt"]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    write(tmp_path, "a/x.txt", "b/y.txt")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "c").symlink_to(tmp_path / "b")
    (tmp_path / "d.txt").symlink_to(tmp_path / "a" / "x.txt")
    (tmp_path / "loop").symlink_to(tmp_path / "loop2")
    (tmp_path / "loop2").symlink_to(tmp_path / "loop")
    corpus = find_documents([tmp_path])
    assert names(corpus, tmp_path) == ["a/x.txt", "b/y.txt", "d.txt"]
    assert corpus.skipped == {Skipped.REPEATED: 2, Skipped.DANGLING: 2}


def test_an_empty_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    corpus = find_documents([tmp_path / "empty"])
    assert [(document.text, document.n_bytes) for document in corpus.documents()] == [("", 0)]
    assert corpus.n_documents == 1


def test_standard_input_is_one_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("né\r\n".encode())))
    assert [document.text for document in find_documents(["-"]).documents()] == ["né\r\n"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "no path"),
        (["nowhere"], "no such file"),
        (["-", "-"], "given twice"),
        (["empty"], r"matches '\*\.py' \(it is empty\)"),
        (["texts"], r"matches '\*\.py' \(1 with: name does not match"),
        (["texts/a.txt/b"], "no such file"),
    ],
)
def test_what_cannot_be_a_corpus_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, paths: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write(tmp_path, "texts/a.txt")
    with pytest.raises(InvalidInput, match=message):
        find_documents(paths, glob="*.py")


@pytest.mark.parametrize("glob", ["", "a/*.py"])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, glob: str) -> None:
    with pytest.raises(InvalidInput, match="glob"):
        find_documents([tmp_path], glob=glob)


def test_bytes_that_are_not_utf8_are_named_with_their_offset(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(InvalidInput, match=r"latin\.txt: byte 3 is 0xe9 .*--decode-errors replace"):
        list(find_documents([tmp_path]).documents())


@given(st.lists(st.binary(max_size=12) | st.sampled_from([b"\xef\xbf\xbd", b"\xef\xbf", b"\xf0\x9f", "é😀".encode()])))
def test_replaced_bytes_are_exactly_those_outside_valid_characters(parts: list[bytes]) -> None:
    raw = b"".join(parts)
    options = ReadOptions(decode_errors=DecodeErrors.REPLACE)
    corpus = Corpus(files=(CorpusFile(path=None, file_bytes=0),), options=options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        (document,) = corpus.documents()
    expected, rest = 0, raw
    while True:
        try:
            rest.decode()
            break
        except UnicodeDecodeError as error:
            expected += error.end - error.start
            rest = rest[error.end :]
    assert document.text == raw.decode(errors="replace")
    assert (corpus.replaced_bytes, corpus.replaced_files) == (expected, int(expected > 0))


def test_the_digest_covers_where_documents_end(tmp_path: Path) -> None:
    digests = set()
    for contents in (["ab", "c"], ["a", "bc"], ["abc"], ["abc", ""]):
        for at, content in enumerate(contents):
            (tmp_path / f"{at}").write_text(content)
        corpus = find_documents([tmp_path / f"{at}" for at in range(len(contents))])
        list(corpus.documents())
        digests.add(corpus.sha256)
    assert len(digests) == 4
    expected = b"\x03" + b"\0" * 7 + b"abc" + b"\0" * 8
    assert corpus.sha256 == hashlib.sha256(expected).hexdigest()


def test_excluded_names_are_left_out_with_all_they_hold(tmp_path: Path) -> None:
    for name in ("a.py", "test/b.py", "lib/test/c.py", "lib/d.py", "lib/site-packages/e.py", "test.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x", encoding="utf-8")
    corpus = find_documents([tmp_path], glob="*.py", exclude=("test", "*-packages"))
    assert [file.path.relative_to(tmp_path).as_posix() for file in corpus.files if file.path] == [
        "a.py",
        "lib/d.py",
        "test.py",
    ]
    assert corpus.skipped == {Skipped.EXCLUDED: 3}
    with pytest.raises(InvalidInput, match="without /"):
        find_documents([tmp_path], exclude=("a/b",))


def test_a_closed_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = find_documents(["-"])
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(InvalidInput, match="standard input: found it closed"):
        find_documents(["-"])
    with pytest.raises(InvalidInput, match="standard input: found it closed"):
        list(opened.documents())


@pytest.mark.parametrize("name", ["scandir", "open"])
def test_errors_of_the_system_name_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "made to fail")

    write(tmp_path, "a.txt")
    monkeypatch.setattr(os, "scandir", fail) if name == "scandir" else monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(PermissionError) as caught:
        list(find_documents([tmp_path]).documents())
    assert "corpus" in " ".join(caught.value.__notes__)


def test_two_ways_to_say_how_bytes_are_decoded_must_agree(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff")
    replacing = ReadOptions(decode_errors=DecodeErrors.REPLACE)
    for options in (None, replacing):
        corpus = find_documents([tmp_path], decode_errors="replace", options=options)
        assert [document.text for document in corpus.documents()] == ["\ufffd"]
    with pytest.raises(TypeError, match="decode_errors=replace"):
        find_documents([tmp_path], decode_errors="replace", options=ReadOptions())
