"""Sums over the n-grams of rows. Knows rows of one head and weights, and not what they are of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def add_owners(rows: Any, counts: Any, lookups: Any, most: Any, owners: Any) -> None:
    """Add every key to its row.

    Parameters
    ----------
    rows, counts
        int64 and uint64 (n,).
    lookups, most, owners
        uint64, uint64 and int64 (rows,): the sum of the counts, the largest of them, and how many; updated.
    """
    for place in range(rows.size):
        row = np.uint64(rows[place])
        lookups[row] += counts[place]
        most[row] = max(most[row], counts[place])
        owners[row] += 1


@njit(cache=True, nogil=True)
def add_foreign(rows: Any, counts: Any, lookups: Any, percents: Any, foreign: Any) -> None:
    """Add up the counts of keys that leave others more than so many per cent of their row's lookups.

    Parameters
    ----------
    percents, foreign
        uint64 (k,) each; `foreign` is updated.
    """
    for place in range(rows.size):
        of_row = lookups[np.uint64(rows[place])]
        others = (of_row - counts[place]) * np.uint64(100)
        for which in range(percents.size):
            if others > percents[which] * of_row:
                foreign[which] += counts[place]
