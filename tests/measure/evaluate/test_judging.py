"""Every figure of a record is that of plain loops over positions; rows are those of the text; overlap is called so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_evaluation import judged_positions

from engram_tables.address.hashing import hash_ngrams
from engram_tables.address.recipes import make_recipe
from engram_tables.address.vocabulary import Rule, Vocabulary
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.corpus.tokens.token_store import DEAD, open_tokens
from engram_tables.measure.evaluate import positions
from engram_tables.measure.evaluate.exact import NONE, Followers
from engram_tables.measure.evaluate.judging import (
    Guess,
    Guesses,
    K,
    Truth,
    add_exact,
    add_table,
    described_exact,
    described_table,
)
from engram_tables.measure.evaluate.overlap import add_overlap
from engram_tables.measure.evaluate.positions import JudgedText
from engram_tables.measure.evaluate.subject import rows_of
from engram_tables.measure.evaluate.tallies import Tallies
from engram_tables.measure.simulate.streams import TokenLookups

CANONICAL = np.array([0, 1, 1, 2, 3, 3], np.uint32)
ORDERS = (2, 3)
HEADS = 4
TOKENS = st.lists(st.integers(-1, len(CANONICAL) - 1), min_size=K, max_size=K, unique=True)


@st.composite
def judged(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Positions with what counts and a table say of each."""
    n = draw(st.integers(1, 12))
    found = []
    for _ in range(n):
        one: dict[str, Any] = {
            "following": draw(st.integers(0, len(CANONICAL) - 1)),
            "document": draw(st.integers(0, 3)),
            "table": draw(TOKENS),
            "any known": draw(st.booleans()),
        }
        has = True
        for order in ORDERS:
            has = has and draw(st.booleans())
            # Named tokens stand before NONE, as counts and tables give them.
            exact = sorted(draw(TOKENS), key=lambda token: token == NONE)
            is_seen = has and draw(st.booleans()) and exact[0] != NONE
            one[order] = {
                "has": has,
                "exact": exact if is_seen else [NONE] * K,
                "seen": is_seen,
                "table": draw(TOKENS),
                "known": draw(st.booleans()),
                "agreeing": draw(st.integers(0, HEADS)),
            }
        found.append(one)
    return found


def is_right(tokens: list[int], following: int, way: str, top: int) -> bool:
    named = [token for token in tokens[:top] if token != NONE]
    if way == "raw":
        return following in named
    return CANONICAL[following] in [CANONICAL[token] for token in named]


def share(truths: list[bool], among: list[bool]) -> float | None:
    return sum(t and a for t, a in zip(truths, among, strict=True)) / sum(among) if any(among) else None


def backed_off(one: dict[str, Any]) -> list[int]:
    found: list[int] = []
    for order in sorted(ORDERS, reverse=True):
        found += [token for token in one[order]["exact"] if token != NONE and token not in found]
    return found[:K]


def truth_of(found: list[dict[str, Any]], tallies: Tallies) -> Truth:
    def column(order: int, key: str, kind: type) -> np.ndarray[Any, Any]:
        return np.array([one[order][key] for one in found], dtype=kind)

    exact = {
        order: Followers(
            n_followed=column(order, "seen", np.uint64), tokens=column(order, "exact", np.int64),
            n_true=column(order, "seen", np.uint64),
        )
        for order in ORDERS
    }  # fmt: skip
    return Truth(
        following=np.array([one["following"] for one in found], np.int64),
        clusters=tallies.clusters(np.array([one["document"] for one in found], np.int64)),
        has_ngram={order: column(order, "has", np.bool_) for order in ORDERS},
        exact=exact,
        canonical_ids=CANONICAL,
    )


def guesses_of(found: list[dict[str, Any]]) -> Guesses:
    return Guesses(
        of_order={
            order: Guess(
                tokens=np.array([one[order]["table"] for one in found], np.int64),
                agreeing=np.array([one[order]["agreeing"] for one in found], np.int64),
                n_heads=HEADS,
                is_known=np.array([one[order]["known"] for one in found], np.bool_),
            )
            for order in ORDERS
        },
        backed_off=np.array([one["table"] for one in found], np.int64),
        is_known=np.array([one["any known"] for one in found], np.bool_),
    )


@settings(max_examples=30, deadline=None)
@given(judged(), st.integers(1, 12))
def test_every_figure_is_that_of_plain_loops(found: list[dict[str, Any]], cut: int) -> None:
    tallies = Tallies(4)
    # In two parts, as blocks come.
    for part in (found[:cut], found[cut:]):
        if part:
            truth = truth_of(part, tallies)
            add_exact(tallies, truth)
            add_table(tallies, HEADS, truth, guesses_of(part))
    exact, table = described_exact(tallies, ORDERS), described_table(tallies, HEADS, ORDERS, has_exact=True)
    every = [True] * len(found)
    assert exact["seen"]["value"] == pytest.approx(share([bool(backed_off(one)) for one in found], every))
    assert table["known"]["value"] == pytest.approx(share([one["any known"] for one in found], every))
    for way in ("raw", "canonical"):
        for top in (1, 5):
            of_exact = [is_right(backed_off(one), one["following"], way, top) for one in found]
            of_table = [is_right(one["table"], one["following"], way, top) for one in found]
            assert exact[f"top_{top}"][way]["value"] == pytest.approx(share(of_exact, every))
            assert table[f"top_{top}"][way]["value"] == pytest.approx(share(of_table, every))
            ratio = sum(of_table) / sum(of_exact) if any(of_exact) else None
            assert table["ratio_to_exact"][f"top_{top}"][way]["value"] == pytest.approx(ratio)
            longest = [next((one[order]["exact"] for order in (3, 2) if one[order]["seen"]), []) for one in found]
            alone = [is_right(tokens, one["following"], way, top) for tokens, one in zip(longest, found, strict=True)]
            assert exact["one_order_only"][f"top_{top}"][way]["value"] == pytest.approx(share(alone, every))
    for nth, order in enumerate(ORDERS):
        check_order(order, found, exact["orders"][nth], table["orders"][nth])


def check_order(order: int, found: list[dict[str, Any]], exact: dict[str, Any], table: dict[str, Any]) -> None:
    has, seen, known = ([one[order][key] for one in found] for key in ("has", "seen", "known"))
    known = [k and h for k, h in zip(known, has, strict=True)]
    unseen = [h and not s for h, s in zip(has, seen, strict=True)]
    assert exact["ngrams"]["value"] == pytest.approx(share(has, [True] * len(found)))
    assert exact["seen"]["value"] == pytest.approx(share(seen, has))
    assert table["known"]["value"] == pytest.approx(share(known, has))
    assert table["false_known"]["value"] == pytest.approx(share(known, unseen))
    assert table["false_unknown"]["value"] == pytest.approx(share([not k for k in known], seen))
    same = [one[order]["table"][0] == one[order]["exact"][0] for one in found]
    assert table["same_first_as_exact"]["value"] == pytest.approx(share(same, seen))
    agreeing = sum(one[order]["agreeing"] for one in found if one[order]["seen"])
    assert table["heads_agreement"]["value"] == pytest.approx(agreeing / (HEADS * sum(seen)) if any(seen) else None)
    for way in ("raw", "canonical"):
        for top in (1, 5):
            right = [is_right(one[order]["table"], one["following"], way, top) for one in found]
            of_exact = [is_right(one[order]["exact"], one["following"], way, top) for one in found]
            assert table["of_seen"][f"top_{top}"][way]["value"] == pytest.approx(share(right, seen))
            assert exact["of_seen"][f"top_{top}"][way]["value"] == pytest.approx(share(of_exact, seen))


def test_without_counts_the_table_is_judged_where_it_knows() -> None:
    tallies = Tallies(2)
    truth = Truth(
        following=np.array([1, 3, 5]), clusters=np.array([0, 1, 1]), has_ngram={2: np.array([True, True, False])},
        exact=None, canonical_ids=CANONICAL,
    )  # fmt: skip
    add_exact(tallies, truth)
    add_overlap(tallies, truth)
    guess = Guess(
        tokens=np.array([[2, 1, NONE, NONE, NONE], [0, NONE, NONE, NONE, NONE], [5, NONE, NONE, NONE, NONE]]),
        agreeing=np.array([2, 1, 2]), n_heads=2, is_known=np.array([True, False, True]),
    )  # fmt: skip
    add_table(tallies, 2, truth, Guesses({2: guess}, guess.tokens, guess.is_known))
    found = described_table(tallies, 2, (2,), has_exact=False)
    (order,) = found["orders"]
    assert found["ratio_to_exact"] is None
    assert order["known"]["value"] == 0.5
    assert order["of_known"]["top_1"]["raw"]["value"] == 0
    assert order["of_known"]["top_1"]["canonical"]["value"] == 1
    assert order["of_known"]["top_5"]["raw"]["value"] == 1
    assert order["heads_agreement"]["value"] == 1
    assert [order[key] for key in ("of_seen", "false_known", "false_unknown", "same_first_as_exact")] == [None] * 4


def test_rows_of_drawn_positions_are_those_of_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions, "CHUNK_TOKENS", 50)
    rng = np.random.default_rng(4)
    vocabulary = Vocabulary(
        rule=Rule.DEEPSEEK, canonical_ids=np.arange(64, dtype=np.uint32) // 2, tokens=[], tokenizer_json=b"{}",
        source="test",
    )  # fmt: skip
    documents: list[list[int | None]] = [
        [None if rng.random() < 0.1 else int(token) for token in rng.integers(0, 64, n)] for n in (1, 40, 0, 3, 90)
    ]
    stored = [[DEAD if token is None else token for token in document] for document in documents]
    write_tokens(tmp_path / "t", stored, token_size=64)
    spec = make_recipe(
        vocabulary, name="test", orders=(2, 3), heads=2, rows_per_head=(97,), layer_ids=(1, 3), row_width=32,
        pad_token=0,
    ).resolve()  # fmt: skip
    with open_tokens(tmp_path / "t") as tokens:
        text = JudgedText(tokens, reach=3, token_size=64)
        drawn = text.positions(text.draw(40, seed=1))
        every = TokenLookups(spec, tokens, vocabulary)
        rows = every.rows(0, tokens.n_tokens)
    at, offset = [], 0
    for document in documents:
        at += [
            offset + place
            for place in range(len(document) - 1)
            if document[place] is not None and document[place + 1] is not None
        ]
        offset += len(document)
    assert len(at) == len(list(judged_positions(documents)))
    for layer in range(2):
        expected = rows[np.array(at)[text.draw(40, seed=1)], layer]
        assert np.array_equal(rows_of(drawn, spec, vocabulary, layer), expected)
    # Where shorter n-grams are looked up late, those that end at the position are meant, as they were counted.
    lagged = replace(spec, mix=replace(spec.mix, oldest_first=True, lagged=True))
    found, whole = rows_of(drawn, lagged, vocabulary, 1), drawn.n_back >= 3
    for order in (2, 3):
        ngrams = vocabulary.canonical_ids[drawn.contexts[whole][:, -order:]]
        columns = [column for column, (length, _) in enumerate(lagged.columns) if length == order]
        assert np.array_equal(found[whole][:, columns], hash_ngrams(lagged, 3, order, ngrams)[1])
