"""Judged positions and the exact peer are those of plain loops over the documents, whatever is cut where."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_evaluation import back_off, count_followers, judged_positions, most_frequent, ngram_of

from engram_tables.address.vocabulary import Rule, Vocabulary
from engram_tables.corpus.counts import count_work, counts_writer
from engram_tables.corpus.counts.count_corpus import plan_count, run_count
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.corpus.tokens.token_shards import write_tokens
from engram_tables.corpus.tokens.token_store import DEAD, open_tokens
from engram_tables.errors import InvalidInput
from engram_tables.measure.evaluate import positions
from engram_tables.measure.evaluate.exact import NONE, first_distinct, followers_of
from engram_tables.measure.evaluate.positions import JudgedText

CANONICAL = [0, 1, 1, 2, 3, 3, 3, 4]
ORDERS = (1, 2, 3)
Documents = list[list[int | None]]
TEXTS = st.lists(st.lists(st.sampled_from([*range(len(CANONICAL)), None]), max_size=14), min_size=1, max_size=5)


def vocabulary() -> Vocabulary:
    return Vocabulary(
        rule=Rule.IDENTITY, canonical_ids=np.array(CANONICAL, np.uint32), tokens=[], tokenizer_json=b"{}", source="test"
    )


def store(path: Path, documents: Documents) -> Path:
    stored = [[DEAD if token is None else token for token in document] for document in documents]
    write_tokens(path, stored, token_size=len(CANONICAL), shard_documents=2)
    return path


@pytest.fixture(autouse=True, scope="module")
def _small_pieces() -> Iterator[None]:
    """Several chunks of a text, parts and row groups of counts, and no flushing of files that are thrown away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(positions, "CHUNK_TOKENS", 5)
        patch.setattr(counts_writer, "PART_TOKENS", 3)
        patch.setattr(counts_writer, "ROW_GROUP_ROWS", 4)
        patch.setattr(count_work, "ROW_GROUP_ROWS", 4)
        patch.setattr("os.fsync", lambda _file: None)
        yield


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(1, 4), st.integers(0, 40))
def test_judged_positions_are_those_of_plain_loops(documents: Documents, reach: int, n_wanted: int) -> None:
    with tempfile.TemporaryDirectory() as place, open_tokens(store(Path(place) / "t", documents)) as tokens:
        text = JudgedText(tokens, reach=reach, token_size=len(CANONICAL))
        chosen = text.draw(n_wanted, seed=3)
        found = text.positions(chosen)
    every = list(judged_positions(documents))
    assert text.n_judged == len(every)
    assert len(chosen) == min(n_wanted, len(every)) == len(set(chosen.tolist()))
    assert chosen.tolist() == sorted(chosen.tolist())
    expected = [every[number] for number in chosen.tolist()]
    assert found.following.tolist() == [one.following for one in expected]
    assert found.documents.tolist() == [one.document for one in expected]
    assert found.n_back.tolist() == [min(len(one.before), reach) for one in expected]
    assert found.is_opening.tolist() == [one.is_opening and len(one.before) < reach for one in expected]
    ids = [[DEAD] * (reach - len(one.before)) + one.before[-reach:] for one in expected]
    assert found.contexts.tolist() == ids


@settings(max_examples=12, deadline=None)
@given(TEXTS, TEXTS, st.integers(1, 4), st.sampled_from([None, 0, 3]))
def test_exact_back_off_is_that_of_dictionaries(
    counted: Documents, unseen: Documents, k: int, pad_token: int | None
) -> None:
    pad_id = None if pad_token is None else CANONICAL[pad_token]
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        plan = plan_count(
            [store(place / "counted", counted)], vocabulary=vocabulary(), orders=ORDERS, next_raw=True,
            pad_token=pad_token,
            output=place / "counts",
        )  # fmt: skip
        run_count(plan, threads=1)
        with open_tokens(store(place / "unseen", unseen)) as tokens, open_counts(place / "counts") as counts:
            text = JudgedText(tokens, reach=max(ORDERS), token_size=len(CANONICAL))
            judged = text.positions(text.draw(None, seed=0))
            canonical = vocabulary().canonical_ids[np.where(judged.contexts == DEAD, 0, judged.contexts)]
            if pad_id is not None:
                canonical[judged.contexts == DEAD] = pad_id
            found = {
                order: followers_of(
                    counts, canonical[:, -order:], k, is_asked=judged.has_ngram(order, is_padded=pad_id is not None),
                    true_tokens=judged.following,
                )
                for order in ORDERS
            }  # fmt: skip
    expected = count_followers(counted, ORDERS, CANONICAL, pad_id)
    filled = first_distinct([found[order].tokens for order in reversed(ORDERS)], k)
    for at, position in enumerate(judged_positions(unseen)):
        for order in ORDERS:
            after = expected[order].get(ngram_of(position, order, CANONICAL, pad_id) or (), {})
            one = found[order]
            assert one.n_followed[at] == sum(after.values())
            assert [token for token in one.tokens[at] if token != NONE] == (most_frequent(after, k) if after else [])
            assert one.n_true is not None
            assert one.n_true[at] == (after.get(position.following, 0) if after else 0)
        plain = back_off(position, expected, k, CANONICAL, pad_id)
        assert filled[at].tolist() == plain + [NONE] * (k - len(plain))


def test_counts_without_followers_are_refused(tmp_path: Path) -> None:
    plan = plan_count([store(tmp_path / "t", [[1, 2, 3]])], vocabulary=vocabulary(), orders=(2,), output=tmp_path / "c")
    run_count(plan, threads=1)
    with open_counts(tmp_path / "c") as counts, pytest.raises(InvalidInput, match="count again with --next raw"):
        followers_of(counts, np.zeros((1, 2), np.uint32), 5)


def test_a_foreign_token_is_named(tmp_path: Path) -> None:
    with (
        open_tokens(store(tmp_path / "t", [[1, 2], [3, 4, 5, 6, 7]])) as tokens,
        pytest.raises(InvalidInput, match="position 6: found 7, expected 0 to 6"),
    ):
        JudgedText(tokens, reach=3, token_size=7)
