"""Why a token folds to its form: the rule's normaliser taken apart, one step after the other.

The steps are those of the very object that `address.folding` folds with; nothing of the rule is repeated here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from engram_tables.address.folding import DEEPSEEK, MIN_ID, REPLACEMENT, Folding, normaliser
from engram_tables.address.vocabulary import Rule

if TYPE_CHECKING:
    from tokenizers.normalizers import Normalizer

    from engram_tables.address.vocabulary import Vocabulary

STEP_NAMES = (
    "compatibility forms (NFKC)",
    "letters and marks apart (NFD)",
    "marks stripped",
    "lower case",
    "white space to one space",
    "a lone space set aside",
    "ends stripped",
    "the lone space put back",
)
NO_WHOLE_TEXT = "no whole text, so the token's own string"
NOTHING_LEFT = "nothing left, so the text as it stands"
NOT_FOLDED = "not folded by this rule"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldStep:
    """A step that changed something, and the text after it."""

    step: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedToken:
    """How one token comes to its form.

    Attributes
    ----------
    text
        What it stands for in a text.
    form
        The key that it folds under.
    steps
        Only those that changed something, in order.
    """

    token_id: int
    text: str
    form: str
    steps: tuple[FoldStep, ...]


@cache
def normaliser_steps(folding: Folding) -> tuple[tuple[str, Normalizer], ...]:
    """The steps of a rule's normaliser with their names, in order."""
    whole = normaliser(folding)
    return tuple((name, whole[position]) for position, name in enumerate(STEP_NAMES))  # type: ignore[index]


def fold_stepwise(text: str, token: str, folding: Folding) -> tuple[str, tuple[FoldStep, ...]]:
    """The form of a token and the steps that changed something on the way.

    Parameters
    ----------
    text, token
        What the token decodes to by itself, and its own string.

    Notes
    -----
    Equal to `address.folding.fold_keys`, which a test compares over whole vocabularies, except that no mark is put
    before the string of a token that must fold with nothing.
    """
    if REPLACEMENT in text:
        return token, (FoldStep(step=NO_WHOLE_TEXT, text=token),)
    steps, current = [], text
    for name, step in normaliser_steps(folding):
        changed = step.normalize_str(current)
        if changed != current:
            steps.append(FoldStep(step=name, text=changed))
        current = changed
    if not current:
        steps.append(FoldStep(step=NOTHING_LEFT, text=text))
    return current or text, tuple(steps)


def folding_of(rule: Rule) -> Folding | None:
    """How a rule folds; None for the one that does not."""
    return {Rule.DEEPSEEK: DEEPSEEK, Rule.MIN_ID: MIN_ID}.get(rule)


def fold_tokens(vocabulary: Vocabulary, token_ids: Sequence[int]) -> list[FoldedToken]:
    """Each token's way to its form."""
    folding = folding_of(vocabulary.rule)
    found = []
    for token_id in token_ids:
        text = vocabulary.text(token_id)
        form = text
        steps: tuple[FoldStep, ...] = (FoldStep(step=NOT_FOLDED, text=text),)
        if folding is not None:
            form, steps = fold_stepwise(text, vocabulary.tokens[token_id], folding)
        found.append(FoldedToken(token_id=token_id, text=text, form=form, steps=steps))
    return found
