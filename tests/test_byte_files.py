"""Local files as ranges of bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engram_tables.byte_files import Folder, LocalFile, LocalFolder, as_file, as_place, is_url, open_place
from engram_tables.errors import InvalidInput

DATA = bytes(range(256)) * 5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "x.bin"
    path.write_bytes(DATA)
    return path


@pytest.mark.parametrize("span", [(0, 0), (0, 1), (0, 1280), (1, 7), (1279, 1280), (1280, 1280)])
def test_ranges(span: tuple[int, int], path: Path) -> None:
    start, stop = span
    file = LocalFile(path)
    assert file.read(start, stop - start) == DATA[start:stop]
    buffer = bytearray(stop - start)
    file.read_into(start, memoryview(buffer))
    assert buffer == DATA[start:stop]


@pytest.mark.parametrize("span", [(-1, 1), (0, -1), (0, 1281), (1280, 1), (1281, 0), (2**63, 2**63), (0, 2**64)])
def test_ranges_outside_are_refused_before_anything_is_allocated(span: tuple[int, int], path: Path) -> None:
    file = LocalFile(path)
    with pytest.raises(InvalidInput, match=rf"{path}: asked for bytes {span[0]} to .*within its 1280 bytes"):
        file.read(*span)
    if 0 <= span[1] < 2**20:
        with pytest.raises(InvalidInput, match="within its 1280 bytes"):
            file.read_into(span[0], memoryview(bytearray(span[1])))


def test_a_file_that_is_cut_or_changed(path: Path) -> None:
    file = LocalFile(path)
    before = file.identity()
    assert before == file.identity()
    os.truncate(path, 100)
    assert file.identity() != before
    assert file.read(0, 100) == DATA[:100]
    with pytest.raises(InvalidInput, match="ends at byte 100, expected 1280; it was cut short"):
        file.read(50, 100)
    path.write_bytes(DATA)
    os.utime(path, ns=(5, 5))
    assert file.identity() != before
    file.close()
    file.close()
    with path.open("rb"), pytest.raises(InvalidInput, match="closed already"):
        file.read(0, 1)  # the descriptor is another file's now


def test_a_file_that_was_replaced_stays_itself(path: Path) -> None:
    file = LocalFile(path)
    before = file.identity()
    path.with_name("new").write_bytes(bytes(2000))
    path.with_name("new").replace(path)
    assert file.read(0, 1280) == DATA
    assert file.identity() == before
    assert LocalFile(path).identity() != before


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidInput, match="found no regular file"):
            LocalFile(path)
    with pytest.raises(FileNotFoundError):
        LocalFile(tmp_path / "missing")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        LocalFile(tmp_path / "loop")


def test_folders(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = LocalFolder(path.parent)
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "y").write_bytes(b"y")
    (path.parent / "gone").symlink_to("nowhere")
    assert folder.names() == ["x.bin"]
    assert folder.open("sub/y").read(0, 1) == b"y"
    assert folder.open("sub/y").folder().names() == ["y"]
    for name in ("sub", "gone", "missing", "nul\0"):
        assert folder.find(name) is None
    with pytest.raises(InvalidInput, match="missing: found no such file"):
        folder.open("missing")
    monkeypatch.chdir(path.parent)
    beside = LocalFile(Path("x.bin")).folder()
    assert (beside.name, beside.where, beside.names()) == (path.parent.name, ".", ["x.bin"])


def test_places(path: Path) -> None:
    file, folder = LocalFile(path), LocalFolder(path.parent)
    assert as_file(file) is file
    assert isinstance(as_file(path), LocalFile)
    assert as_place(folder) is folder
    assert isinstance(as_place(path.parent), LocalFolder)
    assert isinstance(open_place(str(path)), LocalFile)
    assert isinstance(folder, Folder)
    assert not isinstance(file, Folder)
    with pytest.raises(InvalidInput, match="found nothing there"):
        as_place(path / "missing")
    assert is_url("hf://a/b")
    assert not is_url("/a:b//c")
