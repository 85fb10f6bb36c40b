"""How often n-grams occur: counts of counts, unseen mass, coverage and Zipf's law, from one pass over counts.

Owns the statistics of an order. Knows no vocabulary and draws nothing. Memory is bounded by the distinct counts, of
which N occurrences have at most sqrt(2 N), however many n-grams there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts.ngram_counts import NgramCounts
from engram_tables.corpus.counts.power_law import PowerLaw, fit_power_law
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from engram_tables.corpus.counts.counts_store import Counts

COVERED_PERCENTS = (50, 90, 99)
_DENSE_COUNTS = 1 << 16
"""Counts below are tallied in an array; occurrences above are so many that few n-grams have them."""

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
Batch = TypeVar("Batch", NgramCounts, U64)


@dataclass(frozen=True, slots=True, kw_only=True)
class CountsOfCounts:
    """How many n-grams occur how often.

    Attributes
    ----------
    counts
        int64 (n,), ascending and distinct, each at least 1.
    n_ngrams
        int64 (n,): n-grams that occur so often, each at least 1.
    """

    counts: I64
    n_ngrams: I64

    @property
    def n_distinct(self) -> int:
        """N-grams."""
        return int(self.n_ngrams.sum())

    @property
    def n_total(self) -> int:
        """Occurrences of all of them."""
        return int((self.counts * self.n_ngrams).sum())

    @property
    def max_count(self) -> int:
        """Occurrences of the most frequent; 0 if there is none."""
        return int(self.counts[-1]) if len(self.counts) else 0

    def n_with(self, count: int) -> int:
        """N-grams that occur exactly `count` times."""
        at = int(np.searchsorted(self.counts, count))
        return int(self.n_ngrams[at]) if at < len(self.counts) and self.counts[at] == count else 0

    def count_at(self, ranks: npt.ArrayLike) -> I64:
        """int64, the shape of `ranks`: occurrences of the n-gram at each rank, 1 being the most frequent."""
        last_ranks = np.cumsum(self.n_ngrams[::-1])
        found: I64 = self.counts[::-1][np.searchsorted(last_ranks, np.asarray(ranks))]
        return found

    def n_covering(self, occurrences: int) -> int | None:
        """How many n-grams, the most frequent first, it takes to hold so many occurrences; None if all hold fewer."""
        counts, n_ngrams = self.counts[::-1], self.n_ngrams[::-1]
        held = np.concatenate([[0], np.cumsum(counts * n_ngrams)])
        if occurrences > held[-1]:
            return None
        if occurrences <= 0:
            return 0
        at = int(np.searchsorted(held, occurrences)) - 1
        missing = occurrences - int(held[at])
        return int(n_ngrams[:at].sum()) - (-missing // int(counts[at]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """`n_ngrams` of an order, the most frequent ones, hold `percent` of all its occurrences.

    `n_ngrams` is None where it would take n-grams that `min_count` left out.
    """

    percent: int
    n_ngrams: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderStatistics:
    """What the counts of one order say.

    Attributes
    ----------
    n_distinct, n_total
        N-grams kept and their occurrences.
    dropped_distinct, dropped_total
        N-grams left out for occurring fewer than `min_count` times, and their occurrences.
    mean_count
        Occurrences of a kept n-gram on average; None if there is none.
    counts_of_counts
        Of the kept n-grams.
    n_singletons, singleton_share, unseen_mass
        N-grams that occur once, their share of the distinct ones, and Good's and Turing's estimate n1 / N of the
        probability that the next n-gram of such a text is none of those seen. None where `min_count` above 1 left
        the singletons out, and the shares where there is no n-gram.
    power_law
        See `fit_power_law`; None where it finds none.
    """

    order: int
    min_count: int
    n_distinct: int
    n_total: int
    dropped_distinct: int
    dropped_total: int
    mean_count: float | None
    max_count: int
    counts_of_counts: CountsOfCounts
    n_singletons: int | None
    singleton_share: float | None
    unseen_mass: float | None
    coverage: tuple[Coverage, ...]
    power_law: PowerLaw | None


def count_statistics(
    counts: Counts, *, orders: Sequence[int] | None = None, progress: ProgressHook | None = None
) -> Iterator[OrderStatistics]:
    """Statistics of each order, one streamed after the other.

    Parameters
    ----------
    orders
        All that were counted, if None.
    progress
        Called with rows read of all orders, after every row group.

    Raises
    ------
    InvalidInput
        An order that was not counted, before anything is read.
    """
    tallies: list[tuple[int, Iterator[U64]]]
    if counts.next is None:
        tallies = read_orders(counts, orders, counts.counts_of, progress=progress)
    else:
        followed = read_orders(counts, orders, counts.batches, progress=progress)
        tallies = [(order, (batch.counts for batch in whole_ngrams(batches))) for order, batches in followed]
    for order, totals in tallies:
        told = counts.manifest["orders"][str(order)]
        yield order_statistics(
            order,
            tally_counts(totals),
            min_count=least_count(counts, order),
            dropped_distinct=told["dropped_distinct"],
            dropped_total=told["dropped_total"],
        )


def least_count(counts: Counts, order: int) -> int:
    """N-grams of an order that occur less often were left out; order 1 is always whole."""
    return 1 if order == 1 else counts.min_count


def order_statistics(
    order: int,
    counts_of_counts: CountsOfCounts,
    *,
    min_count: int = 1,
    dropped_distinct: int = 0,
    dropped_total: int = 0,
) -> OrderStatistics:
    """Statistics of one order from its counts of counts, and from what is known of n-grams that were left out."""
    n_distinct, n_total = counts_of_counts.n_distinct, counts_of_counts.n_total
    everything = n_total + dropped_total
    singletons = counts_of_counts.n_with(1) if min_count <= 1 else None
    known = singletons is not None and n_distinct > 0
    return OrderStatistics(
        order=order,
        min_count=min_count,
        n_distinct=n_distinct,
        n_total=n_total,
        dropped_distinct=dropped_distinct,
        dropped_total=dropped_total,
        mean_count=n_total / n_distinct if n_distinct else None,
        max_count=counts_of_counts.max_count,
        counts_of_counts=counts_of_counts,
        n_singletons=singletons,
        singleton_share=singletons / n_distinct if known and singletons is not None else None,
        unseen_mass=singletons / n_total if known and singletons is not None else None,
        coverage=tuple(
            # Rounded up in integers: the n-grams hold at least this share.
            Coverage(percent=percent, n_ngrams=counts_of_counts.n_covering(-(-everything * percent // 100)))
            for percent in COVERED_PERCENTS
        ),
        power_law=fit_power_law(counts_of_counts.counts, counts_of_counts.n_ngrams),
    )


def tally_counts(batches: Iterable[U64]) -> CountsOfCounts:
    """Counts of counts from counts in any order: integers (n,) each, at least 1 and below 2^63."""
    dense = np.zeros(_DENSE_COUNTS, dtype=np.int64)
    large = np.empty((2, 0), dtype=np.int64)
    pending: list[I64] = []
    for batch in batches:
        counts = np.asarray(batch).astype(np.int64)
        is_large = counts >= _DENSE_COUNTS
        dense += np.bincount(counts[~is_large], minlength=_DENSE_COUNTS)
        if is_large.any():
            pending.append(counts[is_large])
        if sum(map(len, pending)) > _DENSE_COUNTS:
            large, pending = _merged(large, pending), []
    large = _merged(large, pending)
    low = np.flatnonzero(dense)
    return CountsOfCounts(
        counts=np.concatenate([low, large[0]]),
        n_ngrams=np.concatenate([dense[low], large[1]]),
    )


def _merged(tally: I64, counts: list[I64]) -> I64:
    """int64 (2, n): a tally of counts and how many n-grams have each, and more counts, as one tally."""
    values, inverse = np.unique(np.concatenate([tally[0], *counts]), return_inverse=True)
    n_ngrams = np.zeros(len(values), dtype=np.int64)
    np.add.at(n_ngrams, inverse[: tally.shape[1]], tally[1])
    np.add.at(n_ngrams, inverse[tally.shape[1] :], 1)
    return np.stack([values, n_ngrams])


def read_orders(
    counts: Counts,
    orders: Sequence[int] | None,
    read: Callable[[int], Iterator[Batch]],
    *,
    progress: ProgressHook | None = None,
) -> list[tuple[int, Iterator[Batch]]]:
    """Orders and their batches, not yet read; all the counted orders if `orders` is None.

    Parameters
    ----------
    read
        An order's batches: `counts.batches`, or `counts.counts_of` where n-grams are not needed.
    progress
        Called with rows read of all the orders, after every batch.

    Raises
    ------
    InvalidInput
        An order that was not counted.
    """
    wanted = counts.orders if orders is None else tuple(sorted(set(orders)))
    n_rows = sum(counts.n_rows(order) for order in wanted)
    done = 0

    def told(batches: Iterator[Batch]) -> Iterator[Batch]:
        nonlocal done
        for batch in batches:
            yield batch
            done += batch.n_distinct if isinstance(batch, NgramCounts) else len(batch)
            if progress is not None:
                progress(done, n_rows)

    return [(order, told(read(order))) for order in wanted]


def whole_ngrams(batches: Iterable[NgramCounts]) -> Iterator[NgramCounts]:
    """Sorted batches in which every n-gram stands once: the rows of its next tokens are summed.

    A batch without next tokens is passed on as it is; with them, the last n-gram of a batch waits for the next one,
    which may go on with it.
    """
    held: NgramCounts | None = None
    for batch in batches:
        if batch.next_tokens is None:
            yield batch
            continue
        columns, counts = batch.columns, batch.counts
        if held is not None:
            columns = np.concatenate([held.columns, columns], axis=1)
            counts = np.concatenate([held.counts, counts])
        if not len(counts):
            continue
        begins = np.ones(len(counts), dtype=np.bool_)
        begins[1:] = (columns[:, 1:] != columns[:, :-1]).any(axis=0)
        starts = np.flatnonzero(begins)
        columns, counts = columns[:, starts], np.add.reduceat(counts, starts)
        yield NgramCounts(order=batch.order, columns=np.ascontiguousarray(columns[:, :-1]), counts=counts[:-1])
        held = NgramCounts(order=batch.order, columns=np.ascontiguousarray(columns[:, -1:]), counts=counts[-1:])
    if held is not None:
        yield held
