"""`engram build-table --bundles` and what the other commands make of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from engram_tables import open_table
from engram_tables.fetch.bundles import BundledTable

if TYPE_CHECKING:
    from .conftest import Engram

TEXT = "the cat sat. The cat sat the cat! " * 30 + "a cat, a the, a sat " * 5


@pytest.fixture
def counts(engram: Engram, tiny_vocab_file: Path, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    ran = engram("count", "text.txt", "--vocab", tiny_vocab_file, "--orders", "2,3,4", "-o", "counts")
    assert ran.code == 0, ran.err
    return tmp_path / "counts"


def contents(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in directory.rglob("*")
        if path.is_file()
    }


def test_a_table_is_built_with_its_bundles(engram: Engram, counts: Path, tiny_table: Path, tmp_path: Path) -> None:
    common = ("build-table", "--from", tiny_table, "--bundles", counts, "--bundle-budget", "40KiB", "-o", "with")
    planned = engram(*common, "--dry-run", "--json")
    assert planned.code == 0, planned.err
    assert not (tmp_path / "with").exists()
    ran = engram(*common, "--json")
    assert ran.code == 0, ran.err
    table, bundles = ran.records()
    assert [record["schema"] for record in (table, bundles)] == ["engram.build-table/2", "engram.build-bundles/1"]
    assert {**bundles, "dry_run": True} == planned.records()[1]
    found = {name: (tmp_path / "with/bundles" / name).stat().st_size for name in contents(tmp_path / "with/bundles")}
    assert found.pop("bundles.json")
    assert found == {file["path"]: file["file_bytes"] for file in bundles["files"]}
    assert 0 < bundles["counted_reads_with_bundles"] < bundles["counted_reads"]
    shown = engram("inspect", "table", "with", "--json").records()[0]["bundles"]
    assert shown["n_bundles"] == bundles["n_bundles"] > 0
    assert "bundles         " in engram("inspect", "table", "with").out
    with open_table("with") as bundled, open_table(tiny_table) as plain, open_table("with", bundles=False) as without:
        assert isinstance(bundled, BundledTable)
        assert not isinstance(without, BundledTable)
        vocabulary = plain.vocabulary
        assert vocabulary is not None
        addresses = plain.spec.address(vocabulary.canonical(np.array(vocabulary.encode("the cat sat. xyz The cat"))))
        expected = plain.fetch(addresses, None, "pread")
        assert (bundled.fetch(addresses, None, "pread") == expected).all()
        assert bundled.bundles.counts().n_found > 0


def test_bundles_alone_leave_the_table_as_it_is(engram: Engram, counts: Path, tiny_table: Path, tmp_path: Path) -> None:
    before = contents(tiny_table)
    common = ("build-table", "--from", tiny_table, "--bundles-only", "--bundles", counts, "--bundle-budget", "40KiB")
    assert "planned, nothing is written" in engram(*common, "-o", "b", "--dry-run").out
    assert not (tmp_path / "b").exists()
    for name in ("b", "c"):
        ran = engram(*common, "-o", name)
        assert ran.code == 0, ran.err
    assert contents(tiny_table) == before
    assert contents(tmp_path / "b") == contents(tmp_path / "c")
    assert engram(*common, "-o", "b").code == 3
    assert engram(*common, "-o", "b", "--force").code == 0
    with open_table(tiny_table, bundles=tmp_path / "b") as table:
        assert isinstance(table, BundledTable)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--bundles", "counts"), 2),
        (("--bundle-budget", "1MiB"), 2),
        (("--bundles-only",), 2),
        (("--bundles", "counts", "--bundle-budget", "1MiB", "--bundles-only", "--codec", "bf16"), 2),
        (("--bundles", "counts", "--bundle-budget", "1MiB", "--bundles-only", "--layout", "page"), 2),
        (("--bundles", "counts", "--bundle-budget", "1MiB", "--bundles-only", "--shard-bytes", "1GiB"), 2),
        (("--bundles", "counts", "--bundle-budget", "1MiB", "--bundles-only", "--vocab", "v.parquet"), 2),
        (("--bundles", "counts", "--bundle-budget", "1 potato"), 3),
        (("--bundles", "counts", "--bundle-budget", "10"), 3),
        (("--bundles", "nothing", "--bundle-budget", "1MiB"), 3),
        (("--bundles", "counts", "--bundle-budget", "1MiB", "--ranks", "2"), 3),
        (("--bundles", "counts", "--bundle-budget", "1MiB", "--memory", "100"), 5),
    ],
)
def test_what_does_not_go_together(
    options: tuple[str, ...], code: int, engram: Engram, counts: Path, tiny_table: Path, tmp_path: Path
) -> None:
    ran = engram("build-table", "--from", tiny_table, *options, "-o", "x")
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert not (tmp_path / "x").exists()


def test_verify_finds_what_is_wrong_with_bundles(
    engram: Engram, counts: Path, tiny_table: Path, tmp_path: Path
) -> None:
    assert (
        engram("build-table", "--from", tiny_table, "--bundles", counts, "--bundle-budget", "40KiB", "-o", "with").code
        == 0
    )
    ran = engram("verify", "with", "--json")
    assert ran.code == 0, ran.err
    (report,) = ran.records()[0]["tables"]
    assert report["bundles"]["n_compared"] == report["bundles"]["n_bundles"] > 0
    assert report["bundles"]["is_of_table"]
    assert "held against rows" in engram("verify", "with", "--sample", "3").out
    assert engram("verify", "with/bundles").code == 0

    bundle = tmp_path / "with/bundles/layer-01/order-2.safetensors"
    data = bytearray(bundle.read_bytes())
    data[4096 + 70] ^= 4
    bundle.write_bytes(data)
    ran = engram("verify", "with", "--json")
    assert ran.code == 6
    report = ran.records()[0]["tables"][0]["bundles"]
    assert [block["path"] for block in report["damaged"]] == ["layer-01/order-2.safetensors"]
    assert [(u["layer_id"], u["order"], u["n_different"]) for u in report["unlike"]] == [(1, 2, 1)]
    ran = engram("verify", "with/bundles", "--json")
    assert (ran.code, ran.records()[0]["schema"]) == (6, "engram.verify-bundles/1")
    assert "are not their rows" in engram("verify", "with").out

    data[4096 + 70] ^= 4
    bundle.write_bytes(data)
    index = tmp_path / "with/bundles/index.safetensors"
    whole = index.read_bytes()
    index.write_bytes(whole[:4096] + bytes(len(whole) - 4096))
    ran = engram("verify", "with", "--json")
    assert ran.code == 6
    assert sum(u["n_unfound"] for u in ran.records()[0]["tables"][0]["bundles"]["unlike"]) == report["n_bundles"]
    index.write_bytes(whole)

    made = engram("build-table", "--from", tiny_table, "--codec", "bf16", "-o", "other")
    assert made.code == 0, made.err
    (tmp_path / "with/bundles").rename(tmp_path / "other/bundles")
    ran = engram("verify", "other", "--json")
    assert ran.code == 6
    assert ran.records()[0]["tables"][0]["bundles"]["is_of_table"] is False
    ran = engram("inspect", "table", "other")
    assert ran.code == 3
    assert "build the bundles again" in ran.err


@pytest.mark.parametrize("place", ["table", "counts", "mine"])
def test_force_leaves_what_is_no_bundles(
    place: str, engram: Engram, counts: Path, tiny_table: Path, tmp_path: Path
) -> None:
    """The table that they are made of is one of them."""
    assert engram("build-table", "--from", tiny_table, "-o", "table").code == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    before = contents(tmp_path / place)
    for options in ((), ("--dry-run",)):
        ran = engram(
            "build-table", "--from", "table", "--bundles-only", "--bundles", counts, "--bundle-budget", "40KiB",
            "-o", place, "--force", *options,
        )  # fmt: skip
        assert (ran.code, ran.out) == (3, "")
        assert "expected bundles to replace" in ran.err
    assert contents(tmp_path / place) == before


def test_reads_of_a_rank_are_those_of_its_bundles(
    engram: Engram, counts: Path, tiny_table: Path, tmp_path: Path
) -> None:
    """A rank of one layer of two saves half of what the whole table saves."""
    bundled = ("--bundles", counts, "--bundle-budget", "40KiB", "--json")
    records: list[dict[str, Any]] = []
    for options in ((), ("--ranks", "2", "--by", "layer", "--rank", "0")):
        ran = engram("build-table", "--from", tiny_table, "-o", f"t{len(records)}", *bundled, *options)
        assert ran.code == 0, ran.err
        records.append(ran.records()[1])
    assert [[bool(sum(layer["n_bundles"])) for layer in record["layers"]] for record in records] == [
        [True, True],
        [True, False],
    ]
    saved = [record["counted_reads"] - record["counted_reads_with_bundles"] for record in records]
    assert saved[0] == 2 * saved[1] > 0


def test_force_replaces_a_table_and_its_bundles(engram: Engram, counts: Path, tiny_table: Path, tmp_path: Path) -> None:
    common = ("build-table", "--from", tiny_table, "-o", "with", "--force")
    bundled = ("--bundles", counts, "--bundle-budget", "40KiB")
    for options, has_bundles in ((bundled, True), (bundled, True), ((), False)):
        ran = engram(*common, *options)
        assert ran.code == 0, ran.err
        assert (tmp_path / "with/bundles").is_dir() is has_bundles
    assert engram(*common, *bundled).code == 0
    (tmp_path / "with/bundles/notes.txt").write_text("mine")
    assert engram(*common).code == 3
