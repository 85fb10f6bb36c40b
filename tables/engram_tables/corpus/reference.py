"""The plain-Python twin of the counting kernels: obviously right, and slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def count_ngrams_reference(documents: Sequence[Sequence[int]], order: int) -> dict[tuple[int, ...], int]:
    """Counts of the n-grams of one order, oldest token first, sorted; none crosses from document to document.

    >>> count_ngrams_reference([[7, 7, 7], [7]], 2)
    {(7, 7): 2}
    """
    counts: Counter[tuple[int, ...]] = Counter()
    for document in documents:
        counts.update(tuple(document[start : start + order]) for start in range(len(document) - order + 1))
    return dict(sorted(counts.items()))
