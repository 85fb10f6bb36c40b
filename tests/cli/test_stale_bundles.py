"""A table beside whose rows bundles of another one stand: what reads rows alone goes on, the rest says which."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Engram

TEXT = "the cat sat. The cat sat the cat! " * 30


@pytest.fixture
def stale(engram: Engram, tiny_table: Path, tiny_vocab_file: Path, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    for command in (
        ("count", "text.txt", "--vocab", tiny_vocab_file, "--orders", "2,3,4", "-o", "counts"),
        ("build-table", "--from", tiny_table, "--bundles-only", "--bundles", "counts", "--bundle-budget", "40KiB",
         "-o", "bundles"),
        ("build-table", "--from", tiny_table, "--layout", "page", "-o", "stale"),
    ):  # fmt: skip
        ran = engram(*command)
        assert ran.code == 0, ran.err
    shutil.copytree("bundles", "stale/bundles")
    return tmp_path / "stale"


def test_what_reads_rows_alone_does_not_look_at_them(engram: Engram, stale: Path, tiny_table: Path) -> None:
    assert engram("diff", stale, tiny_table).code == 0
    exported = engram("export", stale, "--to", "raw", "-o", "rows")
    assert exported.code == 0, exported.err
    assert engram("export", tiny_table, "--to", "raw", "-o", "expected").code == 0
    files = sorted(path.name for path in Path("expected").iterdir())
    assert files
    for name in files:
        assert Path("rows", name).read_bytes() == Path("expected", name).read_bytes()


def test_what_looks_for_damage_tells_them(engram: Engram, stale: Path) -> None:
    verified = engram("verify", stale)
    assert (verified.code, "bundles of another table" in verified.err) == (6, True)
    looked = engram("doctor", stale, "--json")
    (record,) = looked.records()
    check = next(check for check in record["checks"] if check["check"] == "bundles")
    assert (looked.code, check["severity"]) == (6, "will-fail")
    assert "found bundles of" in check["found"]
    shutil.move(stale / "bundles", f"{stale}.bundles")
    (record,) = engram("doctor", stale, "--json").records()
    assert next(c for c in record["checks"] if c["check"] == "bundles")["severity"] == "not-applicable"


def test_what_would_fetch_by_them_is_refused_by_name(engram: Engram, stale: Path) -> None:
    """Slower without a word would be worse than an error that names the way on."""
    ran = engram("bench-offload", stale)
    assert ran.code == 3
    assert "found bundles of" in ran.err
    assert "without them" in ran.err
