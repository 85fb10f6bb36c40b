"""Predictions of a table and of exact counts, judged position by position and summed up by document.

Owns what is called right, seen and known, and the names of the sums. Knows no file.

A token is *right* raw if it is the very token that follows, and canonical if it folds to the same canonical id. An
n-gram is *seen* if the counts hold it with a token after it, and *known* if the table says that its rows hold one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.measure.evaluate.exact import NONE, Followers, first_distinct
from engram_tables.measure.evaluate.tallies import Tallies

TOPS = (1, 5)
"""How many tokens may be named for one of them to be right."""
K = max(TOPS)
RAW, CANONICAL = "raw", "canonical"
WAYS = (RAW, CANONICAL)
EXACT = "exact"
BACKED_OFF = "backed off"
"""Stands for an order where all of them together are meant."""

Bools = npt.NDArray[np.bool_]
U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


class Guess(NamedTuple):
    """What a table says of n positions from the rows of one order.

    Attributes
    ----------
    tokens
        int64 (n, K): next tokens, the likeliest first; NONE where it names fewer.
    agreeing
        int64 (n,): how many heads hold the first of them.
    n_heads
        Heads that were read.
    is_known
        bool (n,): whether it says that the n-gram's rows hold something.
    """

    tokens: I64
    agreeing: I64
    n_heads: int
    is_known: Bools


class Guesses(NamedTuple):
    """The same of every order, what back-off makes of them, and whether any order is known."""

    of_order: Mapping[int, Guess]
    backed_off: I64
    is_known: Bools


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What n positions are judged by.

    Attributes
    ----------
    following
        int64 (n,): the raw tokens that follow.
    clusters
        int64 (n,): the draw of `Tallies` that each belongs to.
    has_ngram
        By order, bool (n,): where there is an n-gram.
    exact
        By order, what the counts hold; None without counts.
    canonical_ids
        uint32: canonical id by raw id.
    """

    following: I64
    clusters: I64
    has_ngram: Mapping[int, Bools]
    exact: Mapping[int, Followers] | None
    canonical_ids: U32

    @property
    def orders(self) -> Sequence[int]:
        """The longest first, as back-off goes."""
        return sorted(self.has_ngram, reverse=True)

    def part(self, start: int, stop: int) -> Truth:
        """Positions start … stop - 1, as views."""
        here = slice(start, stop)
        return Truth(
            following=self.following[here],
            clusters=self.clusters[here],
            has_ngram={order: has[here] for order, has in self.has_ngram.items()},
            exact=None if self.exact is None else {order: one.part(start, stop) for order, one in self.exact.items()},
            canonical_ids=self.canonical_ids,
        )

    def is_right(self, tokens: I64) -> dict[tuple[str, int], Bools]:
        """By way and number of tokens, bool (n,): whether one of the first so many of `tokens` is right."""
        named = tokens != NONE
        folded = self.canonical_ids[np.where(named, tokens, 0)]
        equal = {
            RAW: tokens == self.following[:, None],
            CANONICAL: named & (folded == self.canonical_ids[self.following][:, None]),
        }
        return {(way, top): equal[way][:, :top].any(axis=1) for way in WAYS for top in TOPS}


def add_exact(tallies: Tallies, truth: Truth) -> None:
    """Sum up what the text is and how exact back-off does."""
    every = np.ones(len(truth.following), dtype=bool)
    tallies.add("positions", truth.clusters, every)
    for order in truth.orders:
        tallies.add((order, "ngrams"), truth.clusters, truth.has_ngram[order])
    if truth.exact is None:
        return
    for order, found in truth.exact.items():
        tallies.add((order, "seen"), truth.clusters, found.is_seen)
        tallies.add((order, "unseen"), truth.clusters, truth.has_ngram[order] & ~found.is_seen)
        _add_right(tallies, (EXACT, order, "seen"), truth, found.tokens, found.is_seen)
    backed_off = first_distinct([truth.exact[order].tokens for order in truth.orders], K)
    _add_backed_off(tallies, EXACT, truth, backed_off, backed_off[:, 0] != NONE)
    # The same without filling up from shorter orders, which only top-5 can tell apart.
    alone = np.full_like(backed_off, NONE)
    for order in reversed(truth.orders):
        alone = np.where(truth.exact[order].is_seen[:, None], truth.exact[order].tokens, alone)
    _add_right(tallies, (EXACT, "one order"), truth, alone, every)


def add_table(tallies: Tallies, n_heads: int, truth: Truth, guesses: Guesses) -> None:
    """Sum up how a table's first `n_heads` heads do."""
    _add_backed_off(tallies, n_heads, truth, guesses.backed_off, guesses.is_known)
    for order, guess in guesses.of_order.items():
        has, known = truth.has_ngram[order], truth.has_ngram[order] & guess.is_known
        name = (n_heads, order)
        tallies.add((*name, "known"), truth.clusters, known)
        if truth.exact is None:
            _add_right(tallies, (*name, "known"), truth, guess.tokens, known)
            _add_agreeing(tallies, name, truth, guess, known)
            continue
        exact = truth.exact[order]
        tallies.add((*name, "false known"), truth.clusters, known & ~exact.is_seen)
        tallies.add((*name, "false unknown"), truth.clusters, has & exact.is_seen & ~known)
        _add_right(tallies, (*name, "seen"), truth, guess.tokens, exact.is_seen)
        same = exact.is_seen & (guess.tokens[:, 0] == exact.tokens[:, 0])
        tallies.add((*name, "same first"), truth.clusters, same)
        _add_agreeing(tallies, name, truth, guess, exact.is_seen)


def _add_backed_off(tallies: Tallies, name: str | int, truth: Truth, tokens: I64, is_known: Bools) -> None:
    tallies.add((name, BACKED_OFF, "known"), truth.clusters, is_known)
    _add_right(tallies, (name, BACKED_OFF), truth, tokens, np.ones(len(tokens), dtype=bool))


def _add_agreeing(tallies: Tallies, name: tuple[int, int], truth: Truth, guess: Guess, among: Bools) -> None:
    # Whole numbers, whose sums are the same in any order of the blocks.
    tallies.add((*name, "agreeing"), truth.clusters, guess.agreeing * among)
    tallies.add((*name, "asked"), truth.clusters, guess.n_heads * among)


def _add_right(tallies: Tallies, name: tuple[Any, ...], truth: Truth, tokens: I64, among: Bools) -> None:
    for (way, top), right in truth.is_right(tokens).items():
        tallies.add((*name, way, top), truth.clusters, right & among)


def described_exact(tallies: Tallies, orders: Sequence[int]) -> dict[str, Any]:
    """What the record says of exact back-off."""
    return {
        "seen": tallies.ratio((EXACT, BACKED_OFF, "known"), "positions"),
        **_described_right(tallies, (EXACT, BACKED_OFF), "positions"),
        "one_order_only": _described_right(tallies, (EXACT, "one order"), "positions"),
        "orders": [
            {
                "order": order,
                "ngrams": tallies.ratio((order, "ngrams"), "positions"),
                "seen": tallies.ratio((order, "seen"), (order, "ngrams")),
                "of_seen": _described_right(tallies, (EXACT, order, "seen"), (order, "seen")),
            }
            for order in orders
        ],
    }


def described_table(tallies: Tallies, n_heads: int, orders: Sequence[int], *, has_exact: bool) -> dict[str, Any]:
    """What the record says of a table's first heads; what only counts tell is None without them."""
    return {
        "n_heads": n_heads,
        "known": tallies.ratio((n_heads, BACKED_OFF, "known"), "positions"),
        **_described_right(tallies, (n_heads, BACKED_OFF), "positions"),
        "ratio_to_exact": _described_ratio(tallies, (n_heads, BACKED_OFF), (EXACT, BACKED_OFF)) if has_exact else None,
        "orders": [_described_order(tallies, n_heads, order, has_exact=has_exact) for order in orders],
    }


def _described_order(tallies: Tallies, n_heads: int, order: int, *, has_exact: bool) -> dict[str, Any]:
    name, seen = (n_heads, order), (order, "seen")
    told: dict[str, Any] = {
        "order": order,
        "known": tallies.ratio((*name, "known"), (order, "ngrams")),
        "false_known": None,
        "false_unknown": None,
        "of_seen": None,
        "of_seen_ratio_to_exact": None,
        "same_first_as_exact": None,
        "of_known": None,
        "heads_agreement": tallies.ratio((*name, "agreeing"), (*name, "asked")),
    }
    if not has_exact:
        return told | {"of_known": _described_right(tallies, (*name, "known"), (*name, "known"))}
    return told | {
        "false_known": tallies.ratio((*name, "false known"), (order, "unseen")),
        "false_unknown": tallies.ratio((*name, "false unknown"), seen),
        "of_seen": _described_right(tallies, (*name, "seen"), seen),
        "of_seen_ratio_to_exact": _described_ratio(tallies, (*name, "seen"), (EXACT, order, "seen")),
        "same_first_as_exact": tallies.ratio((*name, "same first"), seen),
    }


def _described_right(tallies: Tallies, name: tuple[Any, ...], below: Any) -> dict[str, Any]:
    return {f"top_{top}": {way: tallies.ratio((*name, way, top), below) for way in WAYS} for top in TOPS}


def _described_ratio(tallies: Tallies, name: tuple[Any, ...], below: tuple[Any, ...]) -> dict[str, Any]:
    return {f"top_{top}": {way: tallies.ratio((*name, way, top), (*below, way, top)) for way in WAYS} for top in TOPS}
