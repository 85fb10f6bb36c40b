"""The n-grams of one order with their counts, in memory. Knows neither how they were counted nor where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NO_NEXT = -1
"""Stands for the following token where the document ends."""
_BLOCK_ROWS = 1 << 22

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramCounts:
    """The distinct n-grams of one order and how often each occurs.

    Attributes
    ----------
    order
        Tokens in each n-gram.
    columns
        uint32 (order, n_distinct), C-contiguous: canonical ids, oldest token in row 0. The n-grams are distinct and
        ascend, compared from the oldest token to the newest.
    counts
        uint64 (n_distinct,), each at least 1.
    next_tokens
        int64 (n_distinct,), where the following token was counted: its raw id, or NO_NEXT (-1) where the document
        ends. One n-gram then fills a row for each of its followers, in ascending order with the end last.
    """

    order: int
    columns: U32
    counts: U64
    next_tokens: I64 | None = None

    @property
    def ngrams(self) -> U32:
        """uint32 (n_rows, order): a view of `columns`, one n-gram a row, oldest token first."""
        return self.columns.T

    @property
    def n_distinct(self) -> int:
        """Number of rows: distinct n-grams, or distinct pairs of n-gram and following token."""
        return len(self.counts)

    @property
    def n_total(self) -> int:
        """Number of n-grams, each occurrence counted."""
        return int(self.counts.sum())

    def rows(self, start: int, stop: int) -> NgramCounts:
        """Rows [start, stop), as views."""
        following = None if self.next_tokens is None else self.next_tokens[start:stop]
        return NgramCounts(
            order=self.order,
            columns=self.columns[:, start:stop],
            counts=self.counts[start:stop],
            next_tokens=following,
        )

    def whole(self) -> NgramCounts:
        """Every n-gram in one row, whatever follows it."""
        if self.next_tokens is None or not len(self.counts):
            return NgramCounts(order=self.order, columns=self.columns, counts=self.counts)
        begins = np.ones(len(self.counts), dtype=bool)
        begins[1:] = (self.columns[:, 1:] != self.columns[:, :-1]).any(axis=0)
        firsts = np.flatnonzero(begins)
        return NgramCounts(
            order=self.order, columns=self.columns[:, firsts], counts=np.add.reduceat(self.counts, firsts)
        )

    def top(self, k: int) -> I64:
        """Positions of the `k` largest counts, largest first; equal counts in the order of their n-grams."""
        best = np.empty(0, dtype=np.int64)
        for start in range(0, self.n_distinct, _BLOCK_ROWS):
            block = np.arange(start, min(start + _BLOCK_ROWS, self.n_distinct), dtype=np.int64)
            best = _largest(np.concatenate([best, block]), self.counts, k)
        return best


def _largest(candidates: I64, counts: U64, k: int) -> I64:
    """The `k` of the ascending positions `candidates` whose counts are largest."""
    values = counts[candidates]
    if k < len(values):
        threshold = np.partition(values, len(values) - k)[len(values) - k] if k else np.uint64(2**64 - 1)
        candidates = candidates[values >= threshold]
        values = counts[candidates]
    # Counts pass no 2^63, so the sign change is exact; stable keeps equal counts in the order of their n-grams.
    return candidates[np.argsort(-values.astype(np.int64), kind="stable")][:k]
