"""`engram counts top`, `get` and `stats` from the outside, over counts that `engram count` wrote."""

from __future__ import annotations

import json
import sys
from collections import Counter
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from typer.testing import CliRunner

from engram_cli.commands.count import count
from engram_cli.commands.counts import get, stats, top
from engram_cli.console import guarded
from engram_tables.address.vocabulary import build_vocabulary
from engram_tables.corpus.counts import counts_plot
from engram_tables.corpus.counts.reference import count_ngrams_reference

APP = typer.Typer()
for command in (count, top, get, stats):
    APP.command()(guarded(command))
TEXTS = {"a.txt": "abracadabra", "b.txt": "banana", "c.txt": "the cat sat on the mat", "d.txt": ""}
VOCAB = ("--vocab", "vocab.parquet")


def letters(text: str) -> list[int]:
    return [0 if letter == " " else ord(letter) - 96 for letter in text]


def expected(order: int) -> dict[tuple[int, ...], int]:
    return count_ngrams_reference([letters(text) for text in TEXTS.values()], order)


def save_vocabulary(path: Path, tokens: list[str], pattern: str, rule: str) -> None:
    tokenizer = Tokenizer(WordLevel({token: at for at, token in enumerate(["?", *tokens])}, unk_token="?"))
    tokenizer.pre_tokenizer = Split(Regex(pattern), "isolated")
    tokenizer.save(str(path.with_suffix(".json")))
    build_vocabulary(path.with_suffix(".json"), rule=rule).save(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`counts` of orders 1 to 3, `nexts` with next tokens, both `pruned` too, and `words` of another tokenizer."""
    place = tmp_path_factory.mktemp("counts")
    alphabet = [chr(97 + at) for at in range(26)]
    save_vocabulary(place / "vocab.parquet", alphabet, ".", "identity")
    save_vocabulary(place / "other.parquet", alphabet[:-1], ".", "identity")
    words = ["Of", "of", " of", "the", " the", " sea", "m", "e", "n", " "]
    save_vocabulary(place / "words.parquet", words, " ?(of|the|sea)|.", "deepseek")
    (place / "text").mkdir()
    for name, text in TEXTS.items():
        (place / "text" / name).write_text(text)
    (place / "of.txt").write_text("Of the men of the sea, one of the best.")
    for output, corpus, vocab, more in (
        ("counts", "text", "vocab.parquet", []),
        ("nexts", "text", "vocab.parquet", ["--next", "raw"]),
        ("pruned", "text", "vocab.parquet", ["--min-count", "2"]),
        ("pruned-nexts", "text", "vocab.parquet", ["--next", "raw", "--min-count", "2"]),
        ("words", "of.txt", "words.parquet", []),
    ):
        arguments = [str(place / corpus), "--vocab", str(place / vocab), "--orders", "1,2,3", *more]
        result = CliRunner().invoke(APP, ["count", *arguments, "-o", str(place / output)])
        assert result.exit_code == 0, result.stderr
    return place


@pytest.fixture
def place(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(APP, arguments)
    return result.exit_code, result.stdout, result.stderr


def records(*arguments: str) -> list[dict[str, Any]]:
    code, out, err = run(*arguments, "--json")
    assert code == 0, err
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("counts", ["counts", "nexts"])
@pytest.mark.usefixtures("place")
def test_top_ranks_every_order(counts: str) -> None:
    found = records("top", counts, "-k", "4", *VOCAB)
    for order in (1, 2, 3):
        best = sorted(expected(order).items(), key=lambda item: (-item[1], item[0]))[:4]
        mine = [record for record in found if record["order"] == order]
        assert [(tuple(record["ids"]), record["count"]) for record in mine] == best
        assert [record["rank"] for record in mine] == [1, 2, 3, 4]
        assert mine[0]["schema"] == "engram.counts-top/1"
        assert mine[0]["share"] == best[0][1] / sum(expected(order).values())
        assert mine[0]["forms"] == ["?" if ident == 0 else chr(96 + ident) for ident in best[0][0]]
        assert mine[0]["next"] is None
    code, out, _ = run("top", counts, "--order", "2", "-k", "1")
    assert (code, "1,20" in out, "order 3" in out) == (0, True, False)
    assert '"a" "t"' in run("top", counts, "--order", "2", "-k", "1", *VOCAB)[1]


@pytest.mark.usefixtures("place")
def test_top_by_next_token_ranks_rows() -> None:
    rows: Counter[tuple[tuple[int, ...], int]] = Counter()
    for text in TEXTS.values():
        ids = letters(text)
        rows.update((tuple(ids[at : at + 2]), (*ids, -1)[at + 2]) for at in range(len(ids) - 1))
    # The end of a document comes last.
    best = sorted(rows.items(), key=lambda item: (-item[1], item[0][0], item[0][1] % 1000))[:8]
    found = records("top", "nexts", "--order", "2", "-k", "8", "--by-next")
    assert [
        (tuple(r["ids"]), -1 if r["next"]["token_id"] is None else r["next"]["token_id"], r["count"]) for r in found
    ] == [(*key, n) for key, n in best]
    out = run("top", "nexts", "--order", "1", "--by-next", "-k", "99", *VOCAB)[1]
    assert "next token" in out
    assert "(end of the document)" in out


@pytest.mark.usefixtures("place")
def test_get_looks_a_text_up_whole_if_its_order_was_counted() -> None:
    (found,) = records("get", "counts", "ana", *VOCAB)
    assert found["schema"] == "engram.counts-get/1"
    assert found["readings"] == [
        {"after_space": False, "token_ids": [1, 14, 1], "tokens": ["a", "n", "a"], "canonical_ids": [1, 14, 1]}
    ]
    (ngram,) = found["ngrams"]
    assert (ngram["ids"], ngram["forms"], ngram["count"]) == ([1, 14, 1], ["a", "n", "a"], 2)
    assert ngram["share"] == 2 / sum(expected(3).values())
    assert (ngram["next"], ngram["n_next"]) == (None, None)
    code, out, _ = run("get", "counts", "zz", "ana", *VOCAB)
    assert code == 0
    assert "'zz'" in out
    assert "26,26" in out
    assert records("get", "counts", "--ids", "1,14,1")[0]["ngrams"][0]["count"] == 2


@pytest.mark.usefixtures("place")
def test_get_looks_longer_texts_up_window_by_window() -> None:
    (found,) = records("get", "counts", "banana", *VOCAB)
    windows = {tuple(ngram["ids"]): ngram["count"] for ngram in found["ngrams"]}
    ids = letters("banana")
    assert found["row_groups_read"] == 3
    assert windows == {
        window: expected(order).get(window, 0)
        for order in (1, 2, 3)
        for window in {tuple(ids[at : at + order]) for at in range(len(ids) - order + 1)}
    }
    (pairs,) = records("get", "counts", "ana", "--orders", "2", *VOCAB)
    assert [ngram["ids"] for ngram in pairs["ngrams"]] == [[1, 14], [14, 1]]


@pytest.mark.usefixtures("place")
def test_get_names_the_likeliest_next_tokens() -> None:
    (found,) = records("get", "nexts", "a", "-k", "3", *VOCAB)
    joined = Counter(
        (*text, None)[at + 1] for text in TEXTS.values() for at, letter in enumerate(text) if letter == "a"
    )
    (ngram,) = found["ngrams"]
    assert ngram["count"] == sum(joined.values())
    assert ngram["n_next"] == len(joined)
    likeliest = sorted(joined.items(), key=lambda item: (-item[1], item[0] or "~"))[:3]
    assert [(token["text"], token["count"]) for token in ngram["next"]] == likeliest
    out = run("get", "nexts", "a", *VOCAB)[1]
    assert 'after "a"' in out
    assert "(end of the document)" in out
    assert records("get", "nexts", "a", "-k", "0", *VOCAB)[0]["ngrams"][0]["next"] is None


@pytest.mark.usefixtures("place")
def test_a_text_is_read_at_the_beginning_and_after_a_space() -> None:
    vocab = ("--vocab", "words.parquet")
    (found,) = records("get", "words", "of the", *vocab)
    first, second = found["readings"]
    assert (first["after_space"], second["after_space"]) == (False, True)
    assert (first["tokens"], second["tokens"]) == (["of", " the"], [" of", " the"])
    assert first["token_ids"] != second["token_ids"]
    assert first["canonical_ids"] == second["canonical_ids"]
    assert [(ngram["forms"], ngram["count"]) for ngram in found["ngrams"]] == [(["of", "the"], 2)]
    assert "both fold to the same canonical ids" in run("get", "words", "of the", *vocab)[1]


@pytest.mark.usefixtures("place")
def test_readings_that_differ_are_both_looked_up() -> None:
    vocab = ("--vocab", "words.parquet")
    (found,) = records("get", "words", "sea", *vocab)
    assert [reading["tokens"] for reading in found["readings"]] == [["?"], [" sea"]]
    assert [ngram["ids"] for ngram in found["ngrams"]] == [reading["canonical_ids"] for reading in found["readings"]]
    assert found["ngrams"][1]["count"] == 1
    assert "the two differ" in run("get", "words", "sea", *vocab)[1]
    # A space that is a token of its own is no part of the text, and a text that begins with one is read once.
    assert len(records("get", "words", "m", *vocab)[0]["readings"]) == 1
    assert len(records("get", "words", " sea", *vocab)[0]["readings"]) == 1


@pytest.mark.parametrize("counts", ["counts", "nexts"])
@pytest.mark.usefixtures("place")
def test_stats_are_those_of_the_reference(counts: str) -> None:
    found = records("stats", counts)
    assert [record["order"] for record in found] == [1, 2, 3]
    for record in found:
        reference = expected(record["order"])
        tally = sorted(Counter(reference.values()).items())
        assert record["schema"] == "engram.counts-stats/1"
        assert record["counts_of_counts"] == [list(pair) for pair in tally]
        assert (record["n_distinct"], record["n_total"]) == (len(reference), sum(reference.values()))
        assert record["unseen_mass"] == dict(tally).get(1, 0) / sum(reference.values())
        assert record["max_count"] == max(reference.values())
        assert (record["min_count"], record["dropped_distinct"], record["power_law"]) == (1, 0, None)
    code, out, _ = run("stats", counts, "--orders", "2-3")
    assert code == 0
    assert "unseen mass" in out
    assert "order 2: too few n-grams" in out


@pytest.mark.parametrize("counts", ["pruned", "pruned-nexts"])
@pytest.mark.usefixtures("place")
def test_pruned_counts_say_what_they_cannot(counts: str) -> None:
    code, out, err = run("stats", counts, "--json")
    assert code == 0
    assert "--min-count 2" in err
    first, second, _ = (json.loads(line) for line in out.splitlines())
    assert (first["min_count"], first["n_distinct"], first["dropped_distinct"]) == (1, len(expected(1)), 0)
    kept = {ngram: n for ngram, n in expected(2).items() if n >= 2}
    assert (second["n_distinct"], second["n_total"]) == (len(kept), sum(kept.values()))
    assert second["dropped_distinct"] == second["dropped_total"] == len(expected(2)) - len(kept)
    assert (second["n_singletons"], second["unseen_mass"], second["min_count"]) == (None, None, 2)
    assert "more n-grams with" in run("stats", counts)[1]
    code, out, err = run("get", counts, "zz", *VOCAB)
    assert (code, "< 2" in out, "anything below 2" in err) == (0, True, True)
    # Its next tokens occur once or twice: an n-gram stays with all of them, or goes.
    (ngram,) = records("get", counts, "at", *VOCAB)[0]["ngrams"]
    assert (ngram["count"], ngram["share"]) == (expected(2)[1, 20], expected(2)[1, 20] / sum(expected(2).values()))


@pytest.mark.usefixtures("place")
def test_stats_draw_a_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    matplotlib = ModuleType("matplotlib")
    matplotlib.__spec__ = ModuleSpec("matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib", matplotlib)
    monkeypatch.setattr(counts_plot, "draw_svg", lambda found, title: f"{title}, {len(found)} orders")
    code, _, err = run("stats", "counts", "--plot", "zipf.svg")
    assert (code, "wrote zipf.svg" in err) == (0, True), err
    assert Path("zipf.svg").read_text(encoding="utf-8") == "counts: how often n-grams occur, 3 orders"
    code, out, err = run("stats", "counts", "--plot", "zipf.svg")
    assert (code, out, "--force" in err) == (3, "", True)


@pytest.mark.usefixtures("place")
def test_a_plot_without_matplotlib_ends_before_the_counts_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = run("stats", "counts", "--plot", "other.svg")
    assert (code, out) == (5, "")
    assert "pip install 'engram-tables[report]'" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["top", "nowhere"], 3, "nowhere"),
        (["top", "counts", "--order", "4"], 3, "expected 4"),
        (["top", "counts", "-k", "-1"], 2, "greater than or equal to 0"),
        (["top", "counts", "--by-next"], 3, "--next raw"),
        (["top", "counts", "--vocab", "other.parquet"], 3, "ids of one mean nothing in the other"),
        (["get", "counts"], 2, "give texts or --ids"),
        (["get", "counts", "a", "--ids", "1"], 2, "not both"),
        (["get", "counts", "a"], 3, "needs the vocabulary"),
        (["get", "counts", "", *VOCAB], 3, "found no token"),
        (["get", "counts", "a", "--orders", "2", *VOCAB], 3, "found 1 tokens"),
        (["get", "counts", "abcd", "--orders", "4", *VOCAB], 3, "expected 4"),
        (["get", "counts", "a", "--vocab", "other.parquet"], 3, "ids of one mean nothing in the other"),
        (["get", "counts", "--ids", "1,99"], 3, "position 1: found 99"),
        (["get", "counts", "--ids", "1,x"], 3, "'x'"),
        (["stats", "counts", "--orders", "2,4"], 3, "expected 4"),
        (["stats", "counts", "--plot", "plot.png"], 3, "'.png'"),
        (["stats", "text"], 3, "text"),
    ],
)
@pytest.mark.usefixtures("place")
def test_bad_input_ends_with_its_code(arguments: list[str], code: int, message: str) -> None:
    found, out, err = run(*arguments)
    assert (found, out) == (code, ""), err
    assert message in " ".join(err.replace("│", "").split())
