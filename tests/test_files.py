"""Files and directories that appear whole or not at all, and never over what was not theirs."""

from __future__ import annotations

from pathlib import Path

import pytest

from engram_tables.errors import InvalidInput
from engram_tables.files import new_directory, new_file


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    with new_file(tmp_path / "f") as file:
        file.write(b"one")
        assert not (tmp_path / "f").exists()
    assert (tmp_path / "f").read_bytes() == b"one"

    def interrupted() -> None:
        with new_file(tmp_path / "f", force=True) as file:
            file.write(b"two")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert (tmp_path / "f").read_bytes() == b"one"
    assert _names(tmp_path) == ["f"]


def test_what_appears_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def write_file() -> None:
        with new_file(tmp_path / "f") as file:
            (tmp_path / "f").write_bytes(b"theirs")
            file.write(b"ours")

    def write_directory() -> None:
        with new_directory(tmp_path / "d") as directory:
            (directory / "ours").touch()
            (tmp_path / "d").mkdir()
            (tmp_path / "d" / "theirs").touch()

    for write in (write_file, write_directory):
        with pytest.raises(InvalidInput, match="in the meantime"):
            write()
    assert (tmp_path / "f").read_bytes() == b"theirs"
    assert _names(tmp_path) == ["d", "f"]
    assert _names(tmp_path / "d") == ["theirs"]


def test_only_files_replace_files_and_directories_directories(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to("directory")
    before = _names(tmp_path)
    for name in ("directory", "link", "loop"):
        with pytest.raises(InvalidInput, match="no plain file"), new_file(tmp_path / name, force=True):
            pass
    for name in ("file", "link", "loop"):
        with pytest.raises(InvalidInput, match="no directory"), new_directory(tmp_path / name, force=True):
            pass
    with pytest.raises(InvalidInput, match="no plain file"), new_file(Path("/dev/null"), force=True):
        pass
    with pytest.raises(InvalidInput, match="expected a name"), new_directory(Path("/"), force=True):
        pass
    assert _names(tmp_path) == before


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    name = "n" * 255
    with new_file(tmp_path / name) as file:
        file.write(b"x")
    assert _names(tmp_path) == [name]


def test_a_directory_is_exchanged_in_one_step(tmp_path: Path) -> None:
    with new_directory(tmp_path / "d") as directory:
        (directory / "old").write_bytes(b"old")
    with (tmp_path / "d" / "old").open("rb") as held:
        with new_directory(tmp_path / "d", force=True) as directory:
            (directory / "new").touch()
            assert _names(tmp_path / "d") == ["old"]
        assert held.read() == b"old"
    assert _names(tmp_path) == ["d"]
    assert _names(tmp_path / "d") == ["new"]


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="does not exist"), new_file(tmp_path / "no" / "f"):
        pass
