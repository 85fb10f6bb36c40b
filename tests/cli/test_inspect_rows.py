"""`engram inspect ngram`, `row`, `coverage` and `collisions` as they are run: records against the library's parts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engram_tables import open_table
from engram_tables.address.hashing import hash_ngrams
from engram_tables.address.vocabulary import load_vocabulary
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.fetch.tiers.hot_list import HotList, write_hot_list
from engram_tables.storage.building.writer import build_table, plan_table

from .conftest import Engram, Ran, _run


@pytest.fixture(scope="module")
def counts(tiny_vocab_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Counts with followers of a text of a few words and many letters."""
    home = tmp_path_factory.mktemp("counts")
    letters = "".join(np.random.default_rng(0).choice(list("abcdefghijk"), 2000))
    (home / "corpus.txt").write_text(" the cat sat\nThe cat sat\n" * 50 + letters, encoding="utf-8")
    ran = _run("count", home / "corpus.txt", "--vocab", tiny_vocab_file, "--orders", "2,3,4", "--next", "raw",
               "-o", home / "counts")  # fmt: skip
    assert ran.code == 0, ran.err
    return home / "counts"


@pytest.fixture(scope="module")
def bundled_table(tiny_table: Path, counts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny table again, with bundles."""
    output = tmp_path_factory.mktemp("bundled") / "table"
    ran = _run("build-table", "--from", tiny_table, "--bundles", counts, "--bundle-budget", "64KiB", "-o", output)
    assert ran.code == 0, ran.err
    return output


def records(ran: Ran) -> Iterator[dict[str, Any]]:
    assert ran.code == 0, ran.err
    assert "NaN" not in ran.out
    return iter(ran.records())


def test_shares_of_a_row_add_up(engram: Engram, tiny_table: Path, counts: Path) -> None:
    views = engram("inspect", "ngram", tiny_table, " the cat sat", "--counts", counts, "--sharers", 500, "--json")
    with open_counts(counts) as counted, open_table(tiny_table) as table:
        for view in records(views):
            order, ids = view["order"], [token["canonical_id"] for token in view["tokens"]]
            whole = counted.load(order).whole()
            for row in view["rows"]:
                keys, rows = hash_ngrams(table.spec, row["layer_id"], order, np.ascontiguousarray(whole.ngrams))
                mine = rows[:, row["head"]] == row["row"]
                assert row["n_lookups"] == int(whole.counts[mine].sum())
                others = mine & (keys != int(view["keys"][str(row["layer_id"])]))
                assert row["n_sharers"] == int(others.sum()) == len(row["sharers"])
                assert sum(sharer["occurrences"] for sharer in row["sharers"]) == int(whole.counts[others].sum())
                if view["occurrences"] is not None and row["n_lookups"]:
                    shares = [sharer["share"] for sharer in row["sharers"]]
                    assert sum(shares) + row["own_share"] == pytest.approx(1)
                else:
                    assert row["own_share"] is None
            if view["occurrences"] is not None:
                assert view["occurrences"] == counted.lookup([ids])[0]


def test_several_texts_stand_side_by_side(engram: Engram, tiny_table: Path, counts: Path) -> None:
    texts = (" the cat", "The cat sat", "a")
    both = list(records(engram("inspect", "ngram", tiny_table, *texts, "--counts", counts, "--json")))
    assert [(view["text"], view["order"]) for view in both] == [(text, o) for text in texts for o in (2, 3, 4)]
    for view in both:
        alone = engram("inspect", "ngram", tiny_table, view["text"], "--counts", counts, "--last", "--json", "--orders",
                       view["order"])  # fmt: skip
        (record,) = records(alone)
        same = ("keys", "rows", "occurrences", "tokens", "next_tokens")
        assert {key: record[key] for key in same} == {key: view[key] for key in same}
    shown = engram("inspect", "ngram", tiny_table, *texts, "--counts", counts)
    assert shown.code == 0
    lines = shown.out.splitlines()
    assert [line.split("  ", 1)[0] for line in lines[:3]] == ["text 1", "text 2", "text 3"]
    assert "' cat'" in lines[0]
    in_table = [line for line in lines if line.startswith((" 1  ", " 2  ", " 3  "))]
    assert len(in_table) == 9
    assert sum("‹fill›" in line for line in in_table) == sum(view["n_before_text"] > 0 for view in both) > 0
    every = engram("inspect", "ngram", tiny_table, *texts, "--every", "--orders", 2, "--json")
    assert len(every.records()) > 3


def test_what_a_fetch_costs_with_bundles_and_without(engram: Engram, bundled_table: Path, counts: Path) -> None:
    (view,) = records(engram("inspect", "ngram", bundled_table, " the cat", "--orders", 2, "--last", "--json"))
    fetch = view["fetch"]
    with open_table(bundled_table) as table:
        row_bytes, heads, layers = table.row_bytes, table.spec.heads[0], table.spec.layer_ids
    n_rows = heads * len(layers)
    assert (fetch["rows"]["n_reads"], fetch["rows"]["n_bytes"]) == (n_rows, n_rows * row_bytes)
    assert fetch["bundles"] == list(layers)
    assert (fetch["bundled"]["n_reads"], fetch["bundled"]["n_bytes"]) == (len(layers), n_rows * row_bytes)
    (rare,) = records(engram("inspect", "ngram", bundled_table, "zq", "--orders", 2, "--last", "--json"))
    assert rare["fetch"]["bundles"] == []
    assert rare["fetch"]["bundled"] == rare["fetch"]["rows"]
    human = engram("inspect", "ngram", bundled_table, " the cat", "--orders", 2, "--last").out
    assert "so 2 reads" in human
    owned = engram("inspect", "row", bundled_table, 1, view["rows"][0]["row"], "--counts", counts, "--json")
    (record,) = records(owned)
    held = {tuple(owner["canonical_ids"]): owner["in_bundle"] for owner in record["owners"]}
    assert held[tuple(token["canonical_id"] for token in view["tokens"])] is True


def test_a_row_says_whose_it_is(engram: Engram, tiny_table: Path, counts: Path, tmp_path: Path) -> None:
    with open_table(tiny_table) as table:
        spec = table.spec
        layer = spec.layers[1]
        rows = [layer.offsets[0], layer.offsets[3] + 5, layer.offsets[-1]]
        values = table.decode(table.fetch_rows(3, rows))
    hot = HotList.of([3, 3], [rows[1], rows[0]], [7.0, 2.0], fingerprint=spec.fingerprint)
    write_hot_list(tmp_path / "hot.parquet", hot)
    asked = ("inspect", "row", tiny_table, 3, *rows, "--counts", counts, "--hot-list", "hot.parquet")
    found = list(records(engram(*asked, "--owners", 1000, "--json")))
    assert [(record["layer_id"], record["row"]) for record in found] == [(3, row) for row in rows]
    columns = (0, 3, spec.n_columns - 1)
    with open_counts(counts) as counted:
        for record, column, of_row in zip(found, columns, values, strict=True):
            order, head = spec.columns[column]
            (home,) = record["heads"]
            assert (home["order"], home["head"]) == (order, head)
            assert home["row_in_head"] == record["row"] - layer.offsets[column]
            assert record["values"]["norm"] == pytest.approx(float(np.linalg.norm(of_row)))
            assert record["values"]["first"] == of_row[:8].tolist()
            whole = counted.load(order).whole()
            mine = hash_ngrams(spec, 3, order, np.ascontiguousarray(whole.ngrams))[1][:, head] == record["row"]
            assert record["n_owners"] == int(mine.sum()) == len(record["owners"])
            assert record["n_lookups"] == int(whole.counts[mine].sum())
            assert {tuple(owner["canonical_ids"]) for owner in record["owners"]} == set(
                map(tuple, whole.ngrams[mine].tolist())
            )
    assert [record["hot"] and record["hot"]["rank"] for record in found] == [2, 1, None]
    human = engram(*asked)
    assert "by head 0" in human.out
    assert "not in it" in human.out
    assert "rank 1" in human.out
    assert engram("inspect", "row", tiny_table, 3, 10**6).code == 3
    assert engram("inspect", "row", tiny_table, 2, 0).code == 3


def test_coverage_and_collisions(engram: Engram, tiny_table: Path, counts: Path, tiny_vocab_file: Path) -> None:
    (record,) = records(engram("inspect", "coverage", tiny_table, "--counts", counts, "--json"))
    assert len(record["heads"]) == 12
    corpus = counts.with_name("corpus.txt")
    (of_text,) = records(engram("inspect", "coverage", tiny_table, corpus, "--orders", 3, "--layers", 1, "--json"))
    assert [(head["layer_id"], head["order"]) for head in of_text["heads"]] == [(1, 3)] * 2
    assert of_text["basis"] == "tokens"
    human = engram("inspect", "coverage", tiny_table, "--counts", counts, "--all", "--strict")
    assert human.code == 0, human.err
    assert "no head is uneven" in human.out
    (record,) = records(engram("inspect", "collisions", tiny_table, "--counts", counts, "--rows", 3, "--json"))
    assert len(record["rows"]) == 3
    assert record["rows"][0]["ngrams"][0]["forms"]
    human = engram("inspect", "collisions", tiny_table, "--counts", counts, "--all")
    assert "heaviest shared rows" in human.out
    assert engram("inspect", "collisions", tiny_table).code == 3
    assert engram("inspect", "coverage", tiny_table).code == 2
    assert engram("inspect", "coverage", "no-such-place", "--counts", counts).code == 3


def test_rows_of_next_tokens_are_read_beside_the_counted_ones(
    engram: Engram, counts: Path, tiny_vocab_file: Path
) -> None:
    made = engram("spec", "make", "--vocab", tiny_vocab_file, "--rows-per-head", 4001, "--heads", 2, "--row-width", 64,
                  "--orders", "2,3,4", "--pad-token", 0, "--layers", 1, "-o", "spec.json")  # fmt: skip
    assert made.code == 0, made.err
    built = engram("build-table", "--spec", "spec.json", "--vocab", tiny_vocab_file, "--codec", "f32", "--from-counts",
                   counts, "--init", "next-token", "-o", "table")  # fmt: skip
    assert built.code == 0, built.err
    asked = ("inspect", "ngram", "table", " the cat", "--last", "--orders", 2, "--counts", counts)
    (view,) = records(engram(*asked, "--json"))
    (said,) = view["next_tokens"]
    with open_counts(counts) as counted:
        tokens, followed = counted.following([token["canonical_id"] for token in view["tokens"]])
    expected = dict(zip(tokens.tolist(), followed.tolist(), strict=True))
    assert (said["n_counted"], said["n_distinct"]) == (sum(expected.values()), len(expected))
    first = said["tokens"][0]
    assert (first["token_id"], first["is_convincing"]) == (max(expected, key=lambda token: expected[token]), True)
    assert all(token["counted"] == expected.get(token["token_id"], 0) for token in said["tokens"])
    assert first["estimate"] == pytest.approx(first["counted"], rel=0.2)
    human = engram(*asked).out
    assert "rows say" in human
    beside = engram("inspect", "ngram", "table", " the cat", "The cat sat", "zq", "--orders", 2, "--counts", counts).out
    assert "how often the rows say" in beside
    assert "none" in beside
    # Beyond the likeliest by the rows stand the most counted ones, with what the rows say of them.
    (short,) = records(engram(*asked, "--next", 1, "--json"))
    (of_one,) = short["next_tokens"]
    assert of_one["tokens"][0] == first
    assert all(token["estimate"] == 0 or token["estimate"] <= first["estimate"] for token in of_one["tokens"])
    (none,) = records(engram(*asked, "--next", 0, "--json"))
    assert none["next_tokens"] == []
    owned = ("inspect", "row", "table", 1, view["rows"][0]["row"])
    (row,) = records(engram(*owned, "--counts", counts, "--owners", 1, "--json"))
    home, size = row["heads"][0], load_vocabulary(tiny_vocab_file).token_count
    assert row["tokens_per_value"] == size * 4 / 64
    after = [(token["token_id"], token["counted"]) for token in row["next_tokens"]]
    ranked = sorted(((count, token) for token, count in expected.items() if token >= 0), key=lambda pair: -pair[0])
    assert home["order"] == 2
    assert {count for _, count in after} == {count for count, _ in ranked[:5]}
    # Nothing but a collision moves these values, and the first is far above any.
    assert row["next_tokens"][0]["value"] == pytest.approx(after[0][1], rel=0.2)
    assert "its n-grams were followed by" in engram(*owned, "--counts", counts).out
    assert "a value here counts any of" in engram(*owned).out
    # Rows without values name nothing, and what was counted is lost in them.
    for of_row in view["rows"]:
        (part,) = of_row["parts"]
        with (Path("table") / part["file"]).open("r+b") as file:
            file.seek(part["offset"])
            file.write(bytes(part["n_bytes"]))
    (blank,) = records(engram(*asked, "--json"))
    assert {token["estimate"] for token in blank["next_tokens"][0]["tokens"] if token["token_id"] is not None} == {0}
    assert "lost" in engram(*asked).out
    alone = engram(*asked[:-2])
    assert "the rows name no next token" in alone.out
    assert "rows say" not in alone.out


def test_a_text_too_short_for_an_order_is_called_so(engram: Engram, tiny_table: Path, counts: Path) -> None:
    asked = ("inspect", "ngram", tiny_table, " the", "--counts", counts)
    for view in records(engram(*asked, "--json")):
        assert view["n_before_text"] == view["order"] - len([t for t in view["tokens"] if t["token_id"] is not None])
        assert (view["occurrences"], view["keys_hex"]) == (
            None, {layer: f"{int(key):016x}" for layer, key in view["keys"].items()}
        )  # fmt: skip
    human = engram(*asked).out
    for least in (2, 3, 4):
        assert f"it begins before the text; give {least} tokens or more" in human
    every = engram("inspect", "ngram", tiny_table, " the cat sat", "--counts", counts).out
    assert "position 0" not in every
    assert "n-grams of earlier positions that begin before the text" in every


def test_values_near_the_end_of_float32_have_a_length(engram: Engram, tiny_table: Path) -> None:
    shutil.copytree(tiny_table, "large")
    (view,) = records(engram("inspect", "ngram", "large", " the", "--orders", "2", "--json"))
    part = view["rows"][0]["parts"][0]
    with (Path("large") / part["file"]).open("r+b") as file:
        file.seek(part["offset"])
        file.write(np.full(32, 1e30, "<f4").tobytes())
    (view,) = records(engram("inspect", "ngram", "large", " the", "--orders", "2", "--json"))
    assert view["rows"][0]["norm"] == pytest.approx(32**0.5 * 1e30)
    (row,) = records(engram("inspect", "row", "large", 1, view["rows"][0]["row"], "--json"))
    assert row["values"]["norm"] == view["rows"][0]["norm"]


def test_what_the_hash_replaces_is_counted_as_it_was(
    engram: Engram, tiny_table: Path, tiny_vocab_file: Path, counts: Path, tmp_path: Path
) -> None:
    with open_table(tiny_table) as table:
        spec, vocabulary = table.spec, table.vocabulary
    assert vocabulary is not None
    ids = vocabulary.canonical(vocabulary.encode(" cat sat")).tolist()
    hidden = replace(spec.history, replaced=((ids[0], ids[0] + 1),), replacement=ids[1])
    build_table(
        plan_table(
            replace(spec, history=hidden), codec="f32", layout="packed", init="zeros", vocabulary_file=tiny_vocab_file
        ),
        tmp_path / "t",
        threads=1,
    )
    asked = (" cat sat", "--orders", "2", "--last", "--counts", counts, "--json")
    (view,) = records(engram("inspect", "ngram", "t", *asked))
    assert [token["canonical_id"] for token in view["tokens"]] == [ids[1], ids[1]]
    assert view["occurrences"] == 100
