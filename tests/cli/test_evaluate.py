"""`engram evaluate`: its figures are those of plain back-off, however it reads, and it refuses in words."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from engram_tables.address.presets import load_spec
from engram_tables.address.vocabulary import Vocabulary, load_vocabulary

from .conftest import Engram, _run

ORDERS = (2, 3)
TRAIN = {
    "a.txt": "The cat sat the cat sat: the cat the sat.",
    "b.txt": "THE cat cat sat the cat:Cat sat the cat.",
    "c.txt": "The sat the sat the cat sat sat.",
}
HELD_OUT = {
    "d.txt": "The cat sat the sat:The cat sat cat.",
    "e.txt": "Cat sat the cat the cat sat:THE cat sat the cat.",
    "f.txt": ":",
}


class Home(NamedTuple):
    """Texts, their counts, and a table in which no two of their n-grams share a row."""

    place: Path
    vocabulary: Vocabulary

    @property
    def table(self) -> Path:
        return self.place / "table"

    @property
    def counts(self) -> Path:
        return self.place / "counts"

    @property
    def unseen(self) -> Path:
        return self.place / "held-out"


@pytest.fixture(scope="module")
def home(tiny_vocab_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Home:
    place = tmp_path_factory.mktemp("evaluate")
    for name, texts in (("train", TRAIN), ("held-out", HELD_OUT)):
        (place / name).mkdir()
        for file, text in texts.items():
            (place / name / file).write_text(text)
    for arguments in (
        ("count", place / "train", "--vocab", tiny_vocab_file, "--orders", "2,3", "--next", "raw",
         "-o", place / "counts"),
        ("count", place / "train", "--vocab", tiny_vocab_file, "--orders", "2,3", "-o", place / "plain-counts"),
        ("spec", "make", "--vocab", tiny_vocab_file, "--orders", "2,3", "--rows-per-head", "1009", "--heads", "8",
         "--row-width", "256", "--pad-token", "0", "--layers", "1,3", "--seed", "19", "-o", place / "spec.json"),
        ("build-table", "--spec", place / "spec.json", "--vocab", tiny_vocab_file, "--codec", "f32",
         "--from-counts", place / "counts", "--init", "next-token", "-o", place / "table"),
    ):  # fmt: skip
        ran = _run(*arguments)
        assert ran.code == 0, ran.err
    home = Home(place, load_vocabulary(tiny_vocab_file))
    spec = load_spec(place / "spec.json")
    for order in ORDERS:
        ngrams = sorted(ngram for ngram in Plain(home.vocabulary).after if len(ngram) == order)
        columns = [at for at, (of, _) in enumerate(spec.columns) if of == order]
        rows = np.array([spec.address(ngram).rows[-1, :, columns] for ngram in ngrams])
        assert all(len(set(rows[:, column, layer])) == len(ngrams) for column in range(8) for layer in range(2))
    return home


def evaluated(engram: Engram, *arguments: object) -> dict[str, Any]:
    ran = engram("evaluate", *arguments, "--json")
    assert ran.code == 0, ran.err
    (record,) = ran.records()
    assert record["schema"] == "engram.evaluate/1"
    return record


def figures(record: dict[str, Any]) -> dict[str, Any]:
    """What must not depend on how the run went about it."""
    return {key: record[key] for key in ("corpus", "sample", "overlap", "exact", "heads")}


class Plain:
    """Back-off over dictionaries, for the texts of this module."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.canonical = vocabulary.canonical_ids.tolist()
        self.after: dict[tuple[int, ...], Counter[int]] = {}
        for text in TRAIN.values():
            ids = vocabulary.encode(text)
            for order in ORDERS:
                for end in range(order, len(ids)):
                    ngram = tuple(self.canonical[token] for token in ids[end - order : end])
                    self.after.setdefault(ngram, Counter())[ids[end]] += 1

    def guess(self, before: list[int]) -> list[int]:
        found: list[int] = []
        for order in reversed(ORDERS):
            counted = self.after.get(tuple(self.canonical[token] for token in before[-order:]), Counter())
            if len(before) >= order:
                ranked = sorted(counted, key=lambda token: (-counted[token], token))
                found += [token for token in ranked if token not in found]
        return found[:5]


def test_exact_back_off_is_that_of_dictionaries(engram: Engram, home: Home) -> None:
    record = evaluated(engram, home.table, home.unseen, "--counts", home.counts, "--sample", "all")
    plain = Plain(home.vocabulary)
    rights, n, n_seen = Counter[tuple[str, int]](), 0, 0
    for text in HELD_OUT.values():
        ids = home.vocabulary.encode(text)
        for end in range(1, len(ids)):
            guess, folded = plain.guess(ids[:end]), plain.canonical[ids[end]]
            n, n_seen = n + 1, n_seen + bool(guess)
            for top in (1, 5):
                rights["raw", top] += ids[end] in guess[:top]
                rights["canonical", top] += folded in [plain.canonical[token] for token in guess[:top]]
    assert record["sample"]["n_positions"] == record["sample"]["n_judged"] == n
    assert record["exact"]["seen"]["value"] == pytest.approx(n_seen / n)
    for (way, top), right in rights.items():
        assert record["exact"][f"top_{top}"][way]["value"] == pytest.approx(right / n)
    # The texts tell the two ways apart, or this would show nothing of either.
    assert rights["canonical", 1] > rights["raw", 1] > 0


def test_a_table_without_collisions_says_what_the_counts_say(engram: Engram, home: Home) -> None:
    record = evaluated(engram, home.table, home.unseen, "--counts", home.counts, "--sample", "all")
    assert [of_heads["n_heads"] for of_heads in record["heads"]] == [1, 2, 4, 8]
    table, exact = record["heads"][-1], record["exact"]
    assert table["known"] == exact["seen"]
    for top in ("top_1", "top_5"):
        assert table[top] == exact[top]
        assert table["ratio_to_exact"][top]["raw"]["value"] == 1
    for of, of_exact in zip(table["orders"], exact["orders"], strict=True):
        assert of["of_seen"] == of_exact["of_seen"]
        assert (of["false_known"]["value"], of["false_unknown"]["value"]) == (0, 0)
        assert (of["same_first_as_exact"]["value"], of["heads_agreement"]["value"]) == (1, 1)
    assert record["counts"]["is_source_of_table"] is True
    assert record["overlap"]["verdict"] == "held-out"
    # One head alone names tokens by one cell, of which each has many.
    assert record["heads"][0]["top_1"]["raw"]["value"] < table["top_1"]["raw"]["value"]


def test_how_it_reads_changes_nothing(engram: Engram, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    from engram_tables.measure.evaluate import evaluating

    asked = (home.table, home.unseen, "--counts", home.counts, "--sample", "20", "--seed", "5", "--heads", "4")
    expected = figures(evaluated(engram, *asked))
    assert expected["sample"]["n_positions"] == 20
    for engine in ("gather", "pread"):
        assert figures(evaluated(engram, *asked, "--engine", engine, "--threads", "1")) == expected
    monkeypatch.setattr(evaluating, "BLOCK_POSITIONS", 7)
    monkeypatch.setattr(evaluating._Evaluation, "_block_positions", lambda _: 16)
    assert figures(evaluated(engram, *asked, "--threads", "3")) == expected
    other = evaluated(engram, *asked[:-2], "--heads", "8", "--layer", "3")
    assert other["table"]["layer_id"] == 3
    assert figures(other)["exact"] == expected["exact"]
    assert evaluated(engram, *asked[:4], "--sample", "20", "--seed", "6")["exact"] != expected["exact"]


def test_what_was_counted_is_called_so(engram: Engram, home: Home) -> None:
    ran = engram("evaluate", home.table, home.place / "train", "--counts", home.counts)
    assert ran.code == 0, ran.err
    assert "warning: this text was counted: 100 % of its 3-grams go on as counted" in ran.err
    assert "counted" in ran.out


def test_without_counts_a_table_is_judged_alone(engram: Engram, home: Home) -> None:
    record = evaluated(engram, home.table, home.unseen, "--sample", "all")
    beside = evaluated(engram, home.table, home.unseen, "--counts", home.counts, "--sample", "all")
    assert (record["counts"], record["exact"], record["overlap"]) == (None, None, None)
    for alone, other in zip(record["heads"], beside["heads"], strict=True):
        assert alone["ratio_to_exact"] is None
        assert (alone["top_1"], alone["top_5"], alone["known"]) == (other["top_1"], other["top_5"], other["known"])
    ran = engram("evaluate", home.table, home.unseen)
    assert ran.code == 0, ran.err
    assert "where the table says that it knows" in ran.out


def test_it_shows_and_keeps_the_record(engram: Engram, home: Home, tmp_path: Path) -> None:
    ran = engram("evaluate", home.table, home.unseen, "--counts", home.counts, "--record", "record.json",
                 "--plot", "plot.svg", "--max-tokens", "20")  # fmt: skip
    assert ran.code == 0, ran.err
    for words in ("exact back-off", "table, 8 heads", "table, 1 head ", "right, canonical", "known of unseen"):
        assert words in ran.out
    assert "of these n-grams at which table and counts name the same token first" in " ".join(ran.out.split())
    record = json.loads((tmp_path / "record.json").read_bytes())
    assert record["sample"]["n_tokens"] == 20
    text = "".join(ET.fromstring((tmp_path / "plot.svg").read_text()).itertext())
    assert "all orders with back-off, raw" in text
    assert "exact, order 3" in text
    again = engram("evaluate", home.table, home.unseen, "--record", "record.json")
    assert again.code == 3
    assert "record.json" in again.err


def test_token_stores_and_dead_positions(engram: Engram, home: Home, tmp_path: Path) -> None:
    lines = [{"ids": home.vocabulary.encode(text), "dead": [[3, 5]]} for text in HELD_OUT.values() if len(text) > 9]
    (tmp_path / "ids.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    table_vocab = home.place / "v.parquet"
    if not table_vocab.exists():
        home.vocabulary.save(table_vocab)
    ran = engram("tokenize", "ids.jsonl", "--vocab", table_vocab, "--field", "ids", "--dead-field", "dead",
                 "-o", "tokens")  # fmt: skip
    assert ran.code == 0, ran.err
    record = evaluated(engram, home.table, "tokens", "--counts", home.counts)
    n_tokens = sum(len(line["ids"]) for line in lines)
    assert record["corpus"]["n_dead"] == 2 * len(lines)
    # Each dead span takes two positions, and the one before it, which no token follows.
    assert record["sample"]["n_judged"] == n_tokens - len(lines) - 3 * len(lines)


def test_refusals(engram: Engram, home: Home, tiny_table: Path, tiny_vocab_file: Path, tmp_path: Path) -> None:
    def refused(*arguments: object, code: int = 3) -> str:
        ran = engram("evaluate", *arguments)
        assert ran.code == code, (ran.out, ran.err)
        return ran.err

    assert "expected a next-token table" in refused(tiny_table, home.unseen)
    assert "count again with --next raw" in refused(home.table, home.unseen, "--counts", home.place / "plain-counts")
    (tmp_path / "empty.txt").write_text("")
    assert "of which none follows another" in refused(home.table, "empty.txt")
    assert "expected one of auto" in refused(home.table, home.unseen, "--engine", "teleport")
    assert "--heads: found 'x'" in refused(home.table, home.unseen, "--heads", "1,x")
    assert "heads: found [0]" in refused(home.table, home.unseen, "--heads", "0")
    assert "sample: found 0" in refused(home.table, home.unseen, "--sample", "0")
    assert "layer" in refused(home.table, home.unseen, "--layer", "2")
    assert "memory: found 5 bytes" in refused(home.table, home.unseen, "--memory", "5")
    refused(home.table, home.unseen, "--counts", home.place / "nothing")
    refused(home.place / "nothing", home.unseen, code=4)


def test_the_first_whole_layer_is_read_and_a_part_refused(engram: Engram, home: Home) -> None:
    assert engram("build-table", "--from", home.table, "--layers", "3", "-o", "third").code == 0
    assert engram("build-table", "--from", home.table, "--rows", "0:50", "-o", "part").code == 0
    (alone,) = engram("evaluate", "third", home.unseen, "--json").records()
    (whole,) = engram("evaluate", home.table, home.unseen, "--layer", "3", "--json").records()
    assert alone["table"]["layer_id"] == 3
    assert alone["heads"] == whole["heads"]
    ran = engram("evaluate", "third", home.unseen, "--layer", "1")
    assert (ran.code, "of layer 1, expected all; give the whole table, or --layer 3" in ran.err) == (3, True), ran.err
    ran = engram("evaluate", "part", home.unseen)
    assert (ran.code, "found 50 of the" in ran.err) == (3, True), ran.err


def test_another_vocabulary_is_refused(engram: Engram, home: Home, tmp_path: Path) -> None:
    own = home.vocabulary
    other = Vocabulary(
        rule=own.rule, canonical_ids=np.arange(own.token_count, dtype=np.uint32), tokens=own.tokens,
        tokenizer_json=own.tokenizer_json, source="another",
    )  # fmt: skip
    other.save(tmp_path / "other.parquet")
    ran = engram("evaluate", home.table, home.unseen, "--vocab", "other.parquet")
    assert ran.code == 3
    assert "expected the table's" in ran.err
    counted = engram("count", home.unseen, "--vocab", "other.parquet", "--orders", "2,3", "--next", "raw", "-o", "c")
    assert counted.code == 0, counted.err
    ran = engram("evaluate", home.table, home.unseen, "--counts", "c")
    assert ran.code == 3
    assert "counted with the vocabulary" in ran.err
