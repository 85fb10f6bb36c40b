"""A token as the hash saw it, for people: its text, the form it folds to, and what folds with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary

_N_SHOWN = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenView:
    """One token of an n-gram.

    Attributes
    ----------
    token_id
        None where the history is missing and the fill id stands in.
    text
        What the token says in the text; empty for the fill.
    form
        The form it folds to.
    folds_with
        Texts of other tokens with the same canonical id, the first few.
    n_folded
        Number of tokens that share the canonical id, this one included.
    """

    token_id: int | None
    canonical_id: int
    text: str
    form: str
    folds_with: tuple[str, ...]
    n_folded: int


def token_view(vocabulary: Vocabulary, token_id: int | None, canonical_id: int) -> TokenView:
    """A token as the hash saw it: nothing but the fill where it is out of sight."""
    if canonical_id >= vocabulary.canonical_size:
        # A fill or a replacement beyond the tokenizer's own ids.
        return TokenView(token_id=None, canonical_id=canonical_id, text="", form="", folds_with=(), n_folded=0)
    if token_id is not None and int(vocabulary.canonical([token_id])[0]) != canonical_id:
        token_id = None
    members = vocabulary.members(canonical_id)
    others = [vocabulary.text(member) for member in members if member != token_id]
    return TokenView(
        token_id=token_id,
        canonical_id=canonical_id,
        text="" if token_id is None else vocabulary.text(token_id),
        form=vocabulary.form(canonical_id),
        folds_with=tuple(others[:_N_SHOWN]) if token_id is not None else (),
        n_folded=len(members),
    )
