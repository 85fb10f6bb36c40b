"""What exact counts say follows given n-grams: the peer that a table is held against.

Owns the way through counts, a row group at a time, whatever they hold. Knows no table and no text.

The n-grams that are asked about are numbered prefix by prefix, so that a row of the counts is found by as many
searches for one word as the order has tokens, and most rows fall out at the first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.errors import InvalidInput
from engram_tables.units import ProgressHook

NONE = -1
"""Stands where there is no token."""
QUERY_BYTES = 160
"""Memory that a question takes while one order of it is answered, at most, beside 8 a token that is asked for."""
_TOKEN_BITS = np.uint64(32)

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Followers:
    """What the counts hold after each of n n-grams of one order.

    Attributes
    ----------
    n_followed
        uint64 (n,): occurrences that a token follows; 0 where the n-gram was not counted, or only ends documents.
    tokens
        int64 (n, k): the most frequent next raw tokens, largest count first, ties by token id; NONE where there are
        fewer.
    n_true
        uint64 (n,): occurrences that the token in question follows; None where none was named.
    """

    n_followed: U64
    tokens: I64
    n_true: U64 | None

    @property
    def is_seen(self) -> npt.NDArray[np.bool_]:
        """bool (n,): whether some token was seen to follow."""
        return self.n_followed > 0

    def part(self, start: int, stop: int) -> Followers:
        """N-grams start … stop - 1, as views."""
        n_true = None if self.n_true is None else self.n_true[start:stop]
        return Followers(n_followed=self.n_followed[start:stop], tokens=self.tokens[start:stop], n_true=n_true)


def followers_of(
    counts: Counts,
    ngrams: U32,
    k: int,
    *,
    is_asked: npt.NDArray[np.bool_] | None = None,
    true_tokens: U32 | None = None,
    progress: ProgressHook | None = None,
) -> Followers:
    """Look up what follows n-grams of one order.

    Parameters
    ----------
    ngrams
        uint32 (n, order): canonical ids, oldest first; fewer than 2^32.
    k
        Next tokens that are wanted of each.
    is_asked
        bool (n,): the others are not looked up, and nothing follows them; all are by default.
    true_tokens
        uint32 (n,): also how often each of these follows its n-gram.
    progress
        Called with rows of the counts.

    Raises
    ------
    InvalidInput
        An order that was not counted, or counts that do not tell followers apart.

    Notes
    -----
    The order's files are read once, from beginning to end. Memory: `QUERY_BYTES` + 8 k bytes an n-gram.
    """
    order = ngrams.shape[1]
    check_followers(counts, (order,))
    asked = np.arange(len(ngrams)) if is_asked is None else np.flatnonzero(is_asked)
    found = _Asked(ngrams[asked], k, None if true_tokens is None else true_tokens[asked])
    n_rows, done = counts.n_rows(order), 0
    for batch in counts.batches(order):
        assert batch.next_tokens is not None
        found.add(batch.columns, batch.next_tokens, batch.counts)
        done += len(batch.counts)
        if progress is not None:
            progress(done, n_rows)
    found.finish()
    n_followed, tokens = np.zeros(len(ngrams), dtype=np.uint64), np.full((len(ngrams), k), NONE, dtype=np.int64)
    n_followed[asked], tokens[asked] = found.n_followed[found.number], found.tokens[found.number]
    n_true = None
    if found.n_true is not None:
        n_true = np.zeros(len(ngrams), dtype=np.uint64)
        n_true[asked] = found.n_true[found.pair]
    return Followers(n_followed=n_followed, tokens=tokens, n_true=n_true)


def check_followers(counts: Counts, orders: tuple[int, ...]) -> None:
    """Raise `InvalidInput` unless the counts hold `orders` and tell followers apart."""
    if counts.next is None:
        raise InvalidInput(
            f"{counts.path}: its n-grams are counted without the token that follows; count again with --next raw"
        )
    for order in orders:
        counts.n_rows(order)


class _Asked:
    """Distinct n-grams and what was found of them so far; rows of counts come in ascending order."""

    def __init__(self, ngrams: U32, k: int, true_tokens: U32 | None) -> None:
        self._prefixes: list[U64] = []
        number: I64 = np.zeros(len(ngrams), dtype=np.int64)
        for column in ngrams.T:
            number = self._numbered(number, column)
        self.number = number
        n_distinct = len(self._prefixes[-1])
        self.n_followed = np.zeros(n_distinct, dtype=np.uint64)
        self.tokens = np.full((n_distinct, k), NONE, dtype=np.int64)
        self.n_true: U64 | None = None
        if true_tokens is not None:
            self._pairs, self.pair = np.unique(_joined(number, true_tokens), return_inverse=True)
            self.n_true = np.zeros(len(self._pairs), dtype=np.uint64)
        # The rows of the last n-gram of the batch before, which may go on.
        self._open: tuple[I64, I64, U64] = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint64))

    def add(self, columns: U32, tokens: I64, counts: U64) -> None:
        """Take rows of the counts: uint32 (order, n), int64 (n,), uint64 (n,)."""
        rows, number = self._found(columns, tokens >= 0)
        parts = zip(self._open, (number, tokens[rows], counts[rows]), strict=True)
        number, tokens, counts = (np.concatenate(pair) for pair in parts)
        whole = int(np.searchsorted(number, number[-1])) if len(number) else 0
        self._open = number[whole:], tokens[whole:], counts[whole:]
        self._take(number[:whole], tokens[:whole], counts[:whole])

    def finish(self) -> None:
        """No more rows come."""
        self._take(*self._open)

    def _numbered(self, number: I64, column: U32) -> I64:
        prefixes, longer = np.unique(_joined(number, column), return_inverse=True)
        self._prefixes.append(prefixes)
        return longer.astype(np.int64)

    def _found(self, columns: U32, is_token: npt.NDArray[np.bool_]) -> tuple[I64, I64]:
        """Rows whose n-gram is asked about, and its number."""
        rows = np.flatnonzero(is_token)
        number: I64 = np.zeros(len(rows), dtype=np.int64)
        for prefixes, column in zip(self._prefixes, columns, strict=True):
            is_here, place = _places(prefixes, _joined(number, column[rows]))
            rows, number = rows[is_here], place[is_here]
        return rows, number

    def _take(self, number: I64, tokens: I64, counts: U64) -> None:
        """Whole groups of rows, by ascending number."""
        if not len(number):
            return
        starts = np.flatnonzero(np.concatenate([[True], number[1:] != number[:-1]]))
        self.n_followed[number[starts]] = np.add.reduceat(counts, starts)
        if self.n_true is not None:
            is_here, place = _places(self._pairs, _joined(number, tokens.astype(np.uint32)))
            self.n_true[place[is_here]] = counts[is_here]
        sizes = np.diff(np.append(starts, len(number)))
        self.tokens[number[starts[sizes == 1]], 0] = tokens[starts[sizes == 1]]
        several = np.flatnonzero(np.repeat(sizes > 1, sizes))
        # Counts pass no 2^63, so the sign change is exact; rows of a number ascend by token, which breaks ties.
        several = several[np.lexsort((-counts[several].astype(np.int64), number[several]))]
        number, sizes = number[several], sizes[sizes > 1]
        rank = np.arange(len(several)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        first = rank < self.tokens.shape[1]
        self.tokens[number[first], rank[first]] = tokens[several[first]]


def _joined(number: I64, column: npt.NDArray[np.uint32]) -> U64:
    joined: U64 = (number.astype(np.uint64) << _TOKEN_BITS) | column
    return joined


def _places(ascending: U64, wanted: U64) -> tuple[npt.NDArray[np.bool_], I64]:
    """Which of `wanted` are there, and where."""
    place = np.minimum(np.searchsorted(ascending, wanted), max(len(ascending) - 1, 0))
    if not len(ascending):
        return np.zeros(len(wanted), dtype=bool), place
    return ascending[place] == wanted, place


def first_distinct(lists: list[I64], k: int) -> I64:
    """int64 (n, k): of lists of tokens, int64 (n, any), the first `k` that are distinct and not NONE, in their order.

    >>> first_distinct([np.array([[7, -1]]), np.array([[7, 3]])], 3)
    array([[ 7,  3, -1]])
    """
    every = np.concatenate(lists, axis=1)
    is_new = every != NONE
    for at in range(1, every.shape[1]):
        is_new[:, at] &= (every[:, :at] != every[:, at : at + 1]).all(axis=1)
    order = np.argsort(~is_new, axis=1, kind="stable")[:, :k]
    found = np.where(np.take_along_axis(is_new, order, axis=1), np.take_along_axis(every, order, axis=1), NONE)
    if found.shape[1] < k:
        found = np.pad(found, ((0, 0), (0, k - found.shape[1])), constant_values=NONE)
    return found
