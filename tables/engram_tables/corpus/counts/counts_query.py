"""Questions to counts: the most frequent n-grams, and how often given ones occur.

Owns how a text becomes n-grams to look up, and the answers. Knows no layout on disk, and of a vocabulary only what
maps text to canonical ids and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.counts_stats import least_count, read_orders, whole_ngrams
from engram_tables.corpus.counts.ngram_counts import NO_NEXT, NgramCounts
from engram_tables.errors import InvalidInput
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.counts_store import Counts

_WAITING_ROWS = 1 << 16
"""Rows that gather before they are ranked, so that a large `k` is not sorted anew with every batch."""

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NextToken:
    """A raw token that follows an n-gram; `token_id` and `text` are None where the document ends.

    `text` is also None without a vocabulary.
    """

    token_id: int | None
    text: str | None
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedNgram:
    """An n-gram and its count.

    Attributes
    ----------
    ids
        Canonical ids, oldest first.
    forms
        What they stand for; None without a vocabulary.
    count
        Occurrences; 0 where the counts do not hold it.
    min_count
        Rarer ones were left out.
    n_total
        Occurrences of all n-grams of the order, those that a least count left out among them.
    next_tokens
        The likeliest next raw tokens, largest count first, ties by token id with the document's end last; None
        where they were not counted or not asked for.
    n_next
        Distinct next tokens, the end of the document among them; None like `next_tokens`.
    """

    ids: tuple[int, ...]
    forms: tuple[str, ...] | None
    count: int
    min_count: int
    n_total: int
    next_tokens: tuple[NextToken, ...] | None = None
    n_next: int | None = None

    @property
    def order(self) -> int:
        """Tokens in it."""
        return len(self.ids)

    @property
    def share(self) -> float | None:
        """Of all occurrences of the order; None where there is none."""
        return self.count / self.n_total if self.n_total else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One way that a tokenizer splits a text.

    Attributes
    ----------
    after_space
        False: as the text stands, as at a document's beginning. True: as within a text, after a space.
    token_ids, tokens
        The raw tokens and what each stands for.
    canonical_ids
        What the vocabulary folds them to.
    """

    after_space: bool
    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]
    canonical_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LookedUp:
    """What was asked for and what the counts hold of it.

    Attributes
    ----------
    text
        As given; None where ids were.
    readings
        Its splits: one, or two where a space before it changes a token. Empty where ids were given.
    ngrams
        Of the distinct runs of canonical ids that the readings give, in their order; equal runs are looked up once.
    """

    text: str | None
    readings: tuple[Reading, ...]
    ngrams: tuple[CountedNgram, ...]


def top_ngrams(
    counts: Counts,
    k: int,
    *,
    orders: Sequence[int] | None = None,
    vocabulary: Vocabulary | None = None,
    by_next: bool = False,
    progress: ProgressHook | None = None,
) -> Iterator[tuple[int, list[CountedNgram]]]:
    """Each order and its `k` most frequent n-grams, largest count first, ties in n-gram order.

    Streams row groups: memory holds one of them and at most 2 `k` n-grams, whatever the counts hold.

    Parameters
    ----------
    orders
        All that were counted, if None.
    vocabulary
        For the forms; must be the one that was counted with.
    by_next
        Rank each n-gram with each of its next tokens by itself, instead of their sum; `next_tokens` holds that one.

    Raises
    ------
    InvalidInput
        An order that was not counted, or `by_next` for counts without next tokens.
    SpecMismatch
        Another vocabulary.
    """
    _check_vocabulary(counts, vocabulary)
    if by_next and counts.next is None:
        raise InvalidInput(
            f"{counts.path}: counted without next tokens, expected some; count again with --next raw, or ask for whole "
            "n-grams"
        )
    for order, batches in read_orders(counts, orders, counts.batches, progress=progress):
        best = largest_counts(order, batches if by_next else whole_ngrams(batches), k)
        n_total = _n_total(counts, order)
        found = []
        for at, count in enumerate(best.counts.tolist()):
            ids = tuple(best.columns[:, at].tolist())
            followed = None
            if best.next_tokens is not None:
                followed = (_next_token(int(best.next_tokens[at]), count, vocabulary),)
            found.append(
                CountedNgram(
                    ids=ids,
                    forms=_forms(ids, vocabulary),
                    count=count,
                    min_count=least_count(counts, order),
                    n_total=n_total,
                    next_tokens=followed,
                )
            )
        yield order, found


class RankedRows(NamedTuple):
    """Rows of counts by falling count.

    Attributes
    ----------
    columns
        uint32 (order, n), canonical ids, oldest token in row 0.
    counts
        uint64 (n,).
    next_tokens
        int64 (n,), NO_NEXT where a document ended; None where none were counted.
    """

    columns: npt.NDArray[np.uint32]
    counts: U64
    next_tokens: I64 | None


def largest_counts(order: int, batches: Iterable[NgramCounts], k: int) -> RankedRows:
    """The rows of the `k` largest counts of some batches, largest first, ties in the order they come in."""
    best = RankedRows(np.empty((order, 0), dtype=np.uint32), np.empty(0, dtype=np.uint64), None)
    waiting: list[RankedRows] = []
    for batch in batches:
        # A later row loses against an earlier one of its count, so only larger counts come in.
        rows = np.flatnonzero(batch.counts > best.counts[-1]) if len(best.counts) == k > 0 else slice(None)
        following = None if batch.next_tokens is None else batch.next_tokens[rows]
        waiting.append(RankedRows(batch.columns[:, rows], batch.counts[rows], following))
        if sum(len(part.counts) for part in waiting) >= max(k, _WAITING_ROWS):
            best, waiting = _largest([best, *waiting], k), []
    return _largest([best, *waiting], k)


def _largest(parts: list[RankedRows], k: int) -> RankedRows:
    parts = [part for part in parts if len(part.counts)] or parts[:1]
    counts = np.concatenate([part.counts for part in parts])
    # Counts pass no 2^63, so the sign change is exact.
    keep = np.argsort(-counts.astype(np.int64), kind="stable")[:k]
    following = [part.next_tokens for part in parts if part.next_tokens is not None]
    return RankedRows(
        np.concatenate([part.columns for part in parts], axis=1)[:, keep],
        counts[keep],
        np.concatenate(following)[keep] if following else None,
    )


def look_up_texts(
    counts: Counts,
    texts: Sequence[str],
    vocabulary: Vocabulary,
    *,
    orders: Sequence[int] | None = None,
    k_next: int = 10,
) -> list[LookedUp]:
    """How often texts occur, each as the n-gram of all its tokens or, if no such order was counted, window by window.

    A tokenizer splits a text otherwise at a document's beginning than after a space. Both splits are made; where they
    fold to the same canonical ids they are one n-gram, else each is looked up.

    Parameters
    ----------
    orders
        Look up every window of these orders instead.
    k_next
        Likeliest next tokens of each n-gram, if they were counted; 0 for none.

    Raises
    ------
    InvalidInput
        A text without a token, or shorter than every order; an order that was not counted.
    SpecMismatch
        The counts were made with another vocabulary.
    """
    _check_vocabulary(counts, vocabulary)
    asked = [(text, _readings(text, vocabulary)) for text in texts]
    runs = [
        (f"text {text!r}", list(dict.fromkeys(reading.canonical_ids for reading in readings)))
        for text, readings in asked
    ]
    found = _look_up(counts, runs, orders, vocabulary, k_next)
    return [
        LookedUp(text=text, readings=tuple(readings), ngrams=tuple(ngrams))
        for (text, readings), ngrams in zip(asked, found, strict=True)
    ]


def look_up_ids(
    counts: Counts,
    runs: Sequence[Sequence[int]],
    *,
    vocabulary: Vocabulary | None = None,
    orders: Sequence[int] | None = None,
    k_next: int = 10,
) -> list[LookedUp]:
    """The same for runs of canonical ids, oldest first.

    Raises
    ------
    InvalidInput
        As `look_up_texts`, and for an id that the vocabulary does not have.
    """
    _check_vocabulary(counts, vocabulary)
    for run in runs:
        for position, canonical_id in enumerate(run):
            if not 0 <= canonical_id < counts.canonical_size:
                raise InvalidInput(
                    f"canonical id at position {position}: found {canonical_id:,}, expected 0 to "
                    f"{counts.canonical_size - 1:,}; raw token ids must be folded first, or give the text itself"
                )
    named = [(f"ids {','.join(map(str, run))}", [tuple(int(canonical_id) for canonical_id in run)]) for run in runs]
    found = _look_up(counts, named, orders, vocabulary, k_next)
    return [LookedUp(text=None, readings=(), ngrams=tuple(ngrams)) for ngrams in found]


def _look_up(
    counts: Counts,
    asked: Sequence[tuple[str, list[tuple[int, ...]]]],
    orders: Sequence[int] | None,
    vocabulary: Vocabulary | None,
    k_next: int,
) -> list[list[CountedNgram]]:
    """For each name and its runs, the n-grams of the runs; one look-up for each order of all of them."""
    windows = [
        list(dict.fromkeys(window for run in runs for window in _windows(counts, where, run, orders)))
        for where, runs in asked
    ]
    n_found: dict[tuple[int, ...], int] = {}
    every = sorted({window for mine in windows for window in mine}, key=lambda window: (len(window), window))
    for order in sorted({len(window) for window in every}):
        mine = [window for window in every if len(window) == order]
        n_found |= zip(mine, counts.lookup(np.array(mine, dtype=np.uint32)).tolist(), strict=True)
    return [[_counted(counts, window, n_found[window], vocabulary, k_next) for window in mine] for mine in windows]


def _windows(counts: Counts, where: str, run: tuple[int, ...], orders: Sequence[int] | None) -> list[tuple[int, ...]]:
    """The n-grams that a run of ids is looked up as, by order and then by place."""
    if orders is None and len(run) in counts.orders:
        return [run]
    wanted = counts.orders if orders is None else sorted(set(orders))
    for order in wanted:
        counts.n_distinct(order)
    found = [run[start : start + order] for order in wanted for start in range(len(run) - order + 1)]
    if not found:
        raise InvalidInput(
            f"{where}: found {len(run)} tokens, expected at least {min(wanted)}, the lowest order asked for; "
            "give a longer text or a lower order"
        )
    return found


def _readings(text: str, vocabulary: Vocabulary) -> list[Reading]:
    plain = _reading(text, vocabulary, after_space=False)
    if not plain.token_ids:
        raise InvalidInput(f"text {text!r}: found no token in it, expected at least one; give some text")
    if text[0].isspace():
        return [plain]
    spaced = _reading(" " + text, vocabulary, after_space=True)
    alone = vocabulary.encode(" ")
    if list(spaced.token_ids[: len(alone)]) == alone:
        # The space is a token of its own, which the text does not hold.
        spaced = Reading(
            after_space=True,
            token_ids=spaced.token_ids[len(alone) :],
            tokens=spaced.tokens[len(alone) :],
            canonical_ids=spaced.canonical_ids[len(alone) :],
        )
    return [plain] if spaced.token_ids == plain.token_ids else [plain, spaced]


def _reading(text: str, vocabulary: Vocabulary, *, after_space: bool) -> Reading:
    token_ids = vocabulary.encode(text)
    return Reading(
        after_space=after_space,
        token_ids=tuple(token_ids),
        tokens=tuple(vocabulary.text(token_id) for token_id in token_ids),
        canonical_ids=tuple(vocabulary.canonical(np.array(token_ids, dtype=np.int64)).tolist()),
    )


def _counted(
    counts: Counts, ids: tuple[int, ...], count: int, vocabulary: Vocabulary | None, k_next: int
) -> CountedNgram:
    followed, n_next = None, None
    if counts.next is not None and k_next:
        tokens, each = counts.following(np.array(ids, dtype=np.uint32))
        likeliest = np.lexsort((tokens, tokens == NO_NEXT, -each.astype(np.int64)))[:k_next].tolist()
        followed = tuple(_next_token(int(tokens[at]), int(each[at]), vocabulary) for at in likeliest)
        n_next = len(tokens)
    return CountedNgram(
        ids=ids,
        forms=_forms(ids, vocabulary),
        count=count,
        min_count=least_count(counts, len(ids)),
        n_total=_n_total(counts, len(ids)),
        next_tokens=followed,
        n_next=n_next,
    )


def _next_token(token_id: int, count: int, vocabulary: Vocabulary | None) -> NextToken:
    if token_id == NO_NEXT:
        return NextToken(token_id=None, text=None, count=count)
    return NextToken(token_id=token_id, text=None if vocabulary is None else vocabulary.text(token_id), count=count)


def _forms(ids: tuple[int, ...], vocabulary: Vocabulary | None) -> tuple[str, ...] | None:
    return None if vocabulary is None else tuple(vocabulary.form(canonical_id) for canonical_id in ids)


def _n_total(counts: Counts, order: int) -> int:
    return counts.n_total(order) + int(counts.manifest["orders"][str(order)]["dropped_total"])


def _check_vocabulary(counts: Counts, vocabulary: Vocabulary | None) -> None:
    if vocabulary is not None:
        counts.check_vocabulary(vocabulary.map_sha256)
