"""What folds together in a vocabulary, why, and which tokens hold a string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engram_tables.address.folding import Folding, fold_keys, normaliser
from engram_tables.errors import InvalidInput
from engram_tables.inspect.folding_steps import FoldedToken, fold_tokens, folding_of

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary


def inspect_vocabulary(
    vocabulary: Vocabulary,
    *,
    text: str | None = None,
    token_ids: Sequence[int] = (),
    canonical_ids: Sequence[int] = (),
    why: bool = False,
) -> list[dict[str, Any]]:
    """One record for every token of `text`, every token id and every canonical id asked for.

    Each holds token_id (None for a canonical id), text, canonical_id, form, members: [token id, text] of every
    token that folds to the same canonical id; and why: for each of them, the token itself first, what each step of
    the normaliser made of it. Without `why` that is None.
    """
    asked = [*([] if text is None else vocabulary.encode(text)), *token_ids]
    if text is not None and not asked:
        raise InvalidInput("the text holds no token; give one word or more")
    mapped = vocabulary.canonical(asked).tolist()
    found = [_record(vocabulary, token, canonical, why=why) for token, canonical in zip(asked, mapped, strict=True)]
    return found + [_record(vocabulary, None, canonical_id, why=why) for canonical_id in canonical_ids]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Tokens that hold a string.

    Attributes
    ----------
    folded
        The string as the rule folds it.
    n_raw, n_folded
        Tokens whose text holds the string, and tokens whose form holds the folded one.
    records
        The first of them all: the string itself, then tokens that hold it as it stands, then the
        others, each by length and token id; as `inspect_vocabulary` gives them,
        with `matched`: `raw`, `folded` or `both`.
    """

    folded: str
    n_raw: int
    n_folded: int
    n_tokens: int
    records: list[dict[str, Any]]


def search_vocabulary(vocabulary: Vocabulary, wanted: str, *, n_most: int, why: bool = False) -> Search:
    """Every token that holds `wanted`, in its text as it stands or in its form after folding both.

    Raises
    ------
    InvalidInput
        An empty string, or one that holds what is no Unicode character.

    Notes
    -----
    Decodes every token and folds one of each class: about a second for 130 thousand tokens. A string of white space is
    looked for as it stands alone, since folding takes it away from the ends.
    """
    if not wanted:
        raise InvalidInput("search: found an empty string, expected one character or more")
    vocabulary.encode(wanted)  # refuses what is no Unicode character
    texts = vocabulary.tokenizer().decode_batch(
        [[token_id] for token_id in range(vocabulary.token_count)], skip_special_tokens=False
    )
    raw = {token_id for token_id, text in enumerate(texts) if wanted in text}
    folding = folding_of(vocabulary.rule)
    folded = wanted if folding is None else normaliser(folding).normalize_str(wanted)
    holding = raw
    if folding is not None:
        holding = _holding(vocabulary, texts, folded, folding) if folded.strip() else set()
    found = sorted(
        raw | holding, key=lambda token: (texts[token] != wanted, token not in raw, len(texts[token]), token)
    )
    records = []
    for token_id in found[:n_most]:
        record = _record(vocabulary, token_id, int(vocabulary.canonical([token_id])[0]), why=why)
        is_raw, is_folded = token_id in raw, token_id in holding
        records.append({**record, "matched": "both" if is_raw and is_folded else "raw" if is_raw else "folded"})
    return Search(folded=folded, n_raw=len(raw), n_folded=len(holding), n_tokens=len(found), records=records)


def _holding(vocabulary: Vocabulary, texts: Sequence[str], folded: str, folding: Folding) -> set[int]:
    """Tokens whose form holds a string; one of each class is folded."""
    canonical_ids, firsts = np.unique(vocabulary.canonical_ids, return_index=True)
    tokens = firsts.tolist()
    forms = fold_keys([texts[token] for token in tokens], [vocabulary.tokens[token] for token in tokens], folding)
    holding = [canonical_id for canonical_id, form in zip(canonical_ids.tolist(), forms, strict=True) if folded in form]
    return {member for canonical_id in holding for member in vocabulary.members(canonical_id)}


def _record(vocabulary: Vocabulary, token_id: int | None, canonical_id: int, *, why: bool) -> dict[str, Any]:
    members = vocabulary.members(canonical_id)
    first = [] if token_id is None else [token_id]
    ordered = [*first, *(member for member in members if member != token_id)]
    return {
        "schema": "engram.inspect-vocab/1",
        "token_id": token_id,
        "text": None if token_id is None else vocabulary.text(token_id),
        "canonical_id": canonical_id,
        "form": vocabulary.form(canonical_id),
        "members": [[member, vocabulary.text(member)] for member in members],
        "why": [_why(folded) for folded in fold_tokens(vocabulary, ordered)] if why else None,
        "matched": None,
    }


def _why(folded: FoldedToken) -> dict[str, Any]:
    return {
        "token_id": folded.token_id,
        "text": folded.text,
        "form": folded.form,
        "steps": [{"step": step.step, "text": step.text} for step in folded.steps],
    }
