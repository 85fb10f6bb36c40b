"""The steps shown for a token are the normaliser's own: one after the other they give what the whole gives."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_tables.address.folding import DEEPSEEK, MIN_ID, REPLACEMENT, Folding, fold_keys, normaliser
from engram_tables.address.vocabulary import Rule, Vocabulary, build_vocabulary
from engram_tables.errors import InvalidInput
from engram_tables.inspect.folding_steps import (
    NO_WHOLE_TEXT,
    NOT_FOLDED,
    NOTHING_LEFT,
    STEP_NAMES,
    fold_stepwise,
    fold_tokens,
    normaliser_steps,
)
from engram_tables.inspect.vocabulary import inspect_vocabulary, search_vocabulary


@pytest.mark.parametrize("folding", [DEEPSEEK, MIN_ID])
def test_every_step_of_the_normaliser_has_its_name(folding: Folding) -> None:
    steps = normaliser_steps(folding)
    assert [type(step).__name__ for _, step in steps] == [
        "NFKC", "NFD", "StripAccents", "Lowercase", "Replace", "Replace", "Strip", "Replace",
    ]  # fmt: skip
    with pytest.raises(IndexError):
        normaliser(folding)[len(STEP_NAMES)]  # type: ignore[index]


def compare(vocabulary: Vocabulary, folding: Folding, every: int) -> None:
    token_ids = range(0, vocabulary.token_count, every)
    texts = vocabulary.tokenizer().decode_batch([[token] for token in token_ids], skip_special_tokens=False)
    tokens = [vocabulary.tokens[token] for token in token_ids]
    for text, token, key in zip(texts, tokens, fold_keys(texts, tokens, folding), strict=True):
        form, steps = fold_stepwise(text, token, folding)
        assert form == (key.removeprefix(REPLACEMENT) if folding.broken_apart and REPLACEMENT in text else key)
        assert form == (steps[-1].text if steps else text)
        assert bool(steps) or form == text


@pytest.mark.slow
@pytest.mark.parametrize("folding", [DEEPSEEK, MIN_ID])
def test_steps_compose_to_the_whole_on_every_token(v4_vocabulary: Vocabulary, folding: Folding) -> None:
    compare(v4_vocabulary, folding, 1)


def test_steps_compose_to_the_whole_on_some_tokens(v4_vocabulary: Vocabulary) -> None:
    compare(v4_vocabulary, DEEPSEEK, 17)


@given(st.text(max_size=12).filter(lambda text: REPLACEMENT not in text))
def test_steps_compose_to_the_whole_on_any_text(text: str) -> None:
    assert fold_stepwise(text, "", DEEPSEEK)[0] == fold_keys([text], [""], DEEPSEEK)[0]


def test_steps_say_what_happened(v4_vocabulary: Vocabulary) -> None:
    (folded,) = fold_tokens(v4_vocabulary, [99052])
    assert (folded.text, folded.form) == (" Thé", "the")
    assert [(step.step, step.text) for step in folded.steps] == [
        ("letters and marks apart (NFD)", " The\u0301"),
        ("marks stripped", " The"),
        ("lower case", " the"),
        ("ends stripped", "the"),
    ]
    assert fold_tokens(v4_vocabulary, [1805])[0].steps == ()
    assert fold_stepwise("\u0301", "x", DEEPSEEK)[1][-1].step == NOTHING_LEFT
    assert fold_stepwise("\ufffd", "Ġx", DEEPSEEK) == ("Ġx", fold_stepwise("\ufffd", "Ġx", DEEPSEEK)[1])
    assert fold_stepwise("\ufffd", "Ġx", DEEPSEEK)[1][0].step == NO_WHOLE_TEXT


def test_why_goes_through_every_member(v4_vocabulary: Vocabulary) -> None:
    (record,) = inspect_vocabulary(v4_vocabulary, token_ids=[20852], why=True)
    assert record["why"][0]["token_id"] == 20852
    assert {token["token_id"] for token in record["why"]} == {member for member, _ in record["members"]}
    assert all(token["form"] == "the" for token in record["why"])
    assert inspect_vocabulary(v4_vocabulary, token_ids=[20852])[0]["why"] is None


def test_search_is_what_looking_at_every_token_gives(tiny_tokenizer_json: Path) -> None:
    for rule in Rule:
        vocabulary = build_vocabulary(tiny_tokenizer_json, rule=rule)
        for wanted in ("the", "THE", "at", "é", " ", "t", "zzz", "\ufffd"):
            found = search_vocabulary(vocabulary, wanted, n_most=1000)
            texts = [vocabulary.text(token) for token in range(vocabulary.token_count)]
            raw = {token for token, text in enumerate(texts) if wanted in text}
            by_id = {record["token_id"]: record["matched"] for record in found.records}
            assert {token for token, matched in by_id.items() if matched != "folded"} == raw
            assert found.n_raw == len(raw)
            assert len(by_id) == found.n_tokens
            if rule is Rule.IDENTITY:
                assert "folded" not in by_id.values()
            else:
                folded = {
                    token
                    for token in range(vocabulary.token_count)
                    if found.folded.strip() and found.folded in vocabulary.form(int(vocabulary.canonical([token])[0]))
                }
                assert {token for token, matched in by_id.items() if matched != "raw"} == folded
    with pytest.raises(InvalidInput, match="empty string"):
        search_vocabulary(vocabulary, "", n_most=3)
    identity = build_vocabulary(tiny_tokenizer_json, rule=Rule.IDENTITY)
    assert fold_tokens(identity, [5])[0].steps[0].step == NOT_FOLDED
