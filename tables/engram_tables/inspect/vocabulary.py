"""What folds together in a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from engram_tables.errors import InvalidInput

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary


def inspect_vocabulary(
    vocabulary: Vocabulary,
    *,
    text: str | None = None,
    token_ids: Sequence[int] = (),
    canonical_ids: Sequence[int] = (),
) -> list[dict[str, Any]]:
    """One record for every token of `text`, every token id and every canonical id asked for.

    Each holds token_id (None for a canonical id), text, canonical_id, form, and members: [token id, text] of every
    token that folds to the same canonical id.
    """
    asked = [*([] if text is None else vocabulary.encode(text)), *token_ids]
    if text is not None and not asked:
        raise InvalidInput("the text holds no token; give one word or more")
    mapped = vocabulary.canonical(asked).tolist()
    found = [_record(vocabulary, token, canonical) for token, canonical in zip(asked, mapped, strict=True)]
    return found + [_record(vocabulary, None, canonical_id) for canonical_id in canonical_ids]


def _record(vocabulary: Vocabulary, token_id: int | None, canonical_id: int) -> dict[str, Any]:
    return {
        "schema": "engram.inspect-vocab/1",
        "token_id": token_id,
        "text": None if token_id is None else vocabulary.text(token_id),
        "canonical_id": canonical_id,
        "form": vocabulary.form(canonical_id),
        "members": [[member, vocabulary.text(member)] for member in vocabulary.members(canonical_id)],
    }
