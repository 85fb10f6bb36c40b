"""`engram build-table --from-counts … --init next-token`: from a text to rows that know what follows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from engram_tables import open_table
from engram_tables.address.hashing import hash_ngrams
from engram_tables.storage.next_token.reading import reader_of
from engram_tables.storage.table.reader import StoredTable

if TYPE_CHECKING:
    from .conftest import Engram

TEXT = "the cat sat. The cat sat the cat! " * 30 + "a cat, a the, a sat " * 5


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


@pytest.fixture
def spec(tiny_table: Path) -> Path:
    return tiny_table.parent / "spec.json"


def count(engram: Engram, vocab: Path, *options: str) -> Path:
    ran = engram("count", "text.txt", "--vocab", vocab, "-o", "counts", *options)
    assert ran.code == 0, ran.err
    return Path("counts")


def test_a_table_knows_what_followed_in_the_text(
    engram: Engram, text: Path, tiny_vocab_file: Path, spec: Path, tmp_path: Path
) -> None:
    counts = count(engram, tiny_vocab_file, "--orders", "2,3,4", "--next", "raw")
    shape = ("build-table", "--spec", spec, "--vocab", tiny_vocab_file, "--codec", "f32", "-o", "t")
    common = (*shape, "--from-counts", counts, "--init", "next-token", "--seed", "3")
    ran = engram(*common, "--dry-run", "--json")
    assert ran.code == 0, ran.err
    (planned,) = ran.records()
    assert not (tmp_path / "t").exists()
    ran = engram(*common, "--json")
    assert ran.code == 0, ran.err
    (built,) = ran.records()
    assert {**built, "dry_run": True, "n_blocks_reused": None} == planned
    assert built["init"]["kind"] == "next-token"
    assert built["init"]["seed"] == 3
    assert "first values  kind next-token, seed 3, sketch count-sketch-8" in engram(*common, "--force").out
    assert engram("verify", "t").code == 0
    with StoredTable("t") as stored, open_table("t") as table:
        reader, vocabulary = reader_of(stored), table.vocabulary
        assert vocabulary is not None
        ids = np.array(vocabulary.encode(TEXT))
        ngram = vocabulary.canonical(ids[:2]).astype(np.uint32)[None, :]
        followers = [
            int(ids[at + 2]) for at in range(len(ids) - 2) if (vocabulary.canonical(ids[at : at + 2]) == ngram).all()
        ]
        for layer_id in (1, 3):
            rows = hash_ngrams(table.spec, layer_id, 2, ngram)[1]
            top = reader.top(table.decode(table.fetch_rows(layer_id, rows[0]))[None], order=2, layer=layer_id, k=1)
            assert int(top.ids[0, 0]) in followers
            assert top.known.tolist() == [True]


def test_what_does_not_go_together_is_refused(
    engram: Engram, text: Path, tiny_vocab_file: Path, spec: Path, tiny_table: Path, tmp_path: Path
) -> None:
    counts = count(engram, tiny_vocab_file, "--orders", "2")
    common = ("build-table", "--spec", spec, "--codec", "f32", "-o", "t")
    for options, code, message in (
        (("--init", "next-token"), 2, "--init next-token and --from-counts go together"),
        (("--from-counts", counts), 2, "--init next-token and --from-counts go together"),
        (("--from-counts", counts, "--init", "next-token", "--std", "1"), 2, "--std goes only with --init normal"),
        (("--from-counts", counts, "--init", "next-token"), 3, "count again with --next raw"),
        (("--from-counts", "nowhere", "--init", "next-token"), 3, "this is no counts directory"),
    ):
        ran = engram(*common, *options)
        assert (ran.code, message in " ".join(ran.err.split())) == (code, True), ran.err
    ran = engram("build-table", "--from", tiny_table, "--from-counts", counts, "--init", "next-token", "-o", "t")
    assert ran.code == 2
    assert "goes only without --from" in ran.err
    ran = engram("count", "text.txt", "--vocab", tiny_vocab_file, "-o", "followed", "--orders", "2", "--next", "raw")
    assert ran.code == 0, ran.err
    ran = engram(*common, "--from-counts", "followed", "--init", "next-token")
    assert ran.code == 3
    assert "count again with --orders 2,3,4" in ran.err
    assert not (tmp_path / "t").exists()
