"""Held-out text judged in plain Python: dictionaries and lists, obviously right, and slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

Documents = Sequence[Sequence[int | None]]


class Judged(NamedTuple):
    """A position: the ids of its sequence up to it, the token after it, its document, and whether that begins there."""

    before: list[int]
    following: int
    document: int
    is_opening: bool


def judged_positions(documents: Documents) -> Iterator[Judged]:
    for number, document in enumerate(documents):
        sequence: list[int] = []
        is_opening = True
        for at, token in enumerate(document):
            if token is None:
                sequence, is_opening = [], False
                continue
            sequence.append(token)
            following = document[at + 1] if at + 1 < len(document) else None
            if following is not None:
                yield Judged(list(sequence), following, number, is_opening)


def ngram_of(position: Judged, order: int, canonical: Sequence[int], pad_id: int | None) -> tuple[int, ...] | None:
    """The canonical n-gram that ends at a position, or None where counting finds none."""
    ids = [canonical[token] for token in position.before[-order:]]
    if len(ids) < order:
        if pad_id is None or not position.is_opening:
            return None
        ids = [pad_id] * (order - len(ids)) + ids
    return tuple(ids)


def count_followers(
    documents: Documents, orders: Sequence[int], canonical: Sequence[int], pad_id: int | None = None
) -> dict[int, dict[tuple[int, ...], Counter[int]]]:
    """Of each order, each n-gram's next tokens; what only ends a sequence is followed by nothing."""
    found: dict[int, dict[tuple[int, ...], Counter[int]]] = {order: {} for order in orders}
    for position in judged_positions(documents):
        for order in orders:
            ngram = ngram_of(position, order, canonical, pad_id)
            if ngram is not None:
                found[order].setdefault(ngram, Counter())[position.following] += 1
    return found


def most_frequent(counted: Counter[int], k: int) -> list[int]:
    """Largest count first, ties by token id."""
    return sorted(counted, key=lambda token: (-counted[token], token))[:k]


def back_off(
    position: Judged,
    counted: dict[int, dict[tuple[int, ...], Counter[int]]],
    k: int,
    canonical: Sequence[int],
    pad_id: int | None = None,
) -> list[int]:
    """The longest order's next tokens, then those of shorter ones that are not among them yet."""
    found: list[int] = []
    for order in sorted(counted, reverse=True):
        ngram = ngram_of(position, order, canonical, pad_id)
        if ngram in counted[order]:
            found += [token for token in most_frequent(counted[order][ngram], k) if token not in found]
    return found[:k]
