"""Where n-grams lie among sorted ones: binary searches of all of them at once.

In numpy, since a look-up of a few n-grams would wait a second for a compiler to be loaded. Knows no file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

U32 = npt.NDArray[np.uint32]
I64 = npt.NDArray[np.int64]


def first_not_below(columns: U32, ngrams: U32) -> I64:
    """int64 (n_ngrams,), 0 to n_columns: the first column that is no smaller than each n-gram.

    Parameters
    ----------
    columns
        uint32 (order, n_columns), ascending, compared from row 0 down.
    ngrams
        uint32 (n_ngrams, order).
    """
    return _search(columns, ngrams, is_below=False)


def first_above(columns: U32, ngrams: U32) -> I64:
    """The same for the first column that is larger."""
    return _search(columns, ngrams, is_below=True)


def _search(columns: U32, ngrams: U32, *, is_below: bool) -> I64:
    """The first column that does not lie below each n-gram, where an equal one does as `is_below` says."""
    low = np.searchsorted(columns[0], ngrams[:, 0], side="left")
    high = np.searchsorted(columns[0], ngrams[:, 0], side="right")
    # Every search ends after as many halvings; one that has ended stays where it is.
    for _ in range(int((high - low).max(initial=0)).bit_length()):
        middle = np.minimum((low + high) // 2, columns.shape[1] - 1)
        below = np.full(len(ngrams), is_below)
        for column, wanted in zip(columns[:0:-1], ngrams.T[:0:-1], strict=True):
            found = column[middle]
            below = (found < wanted) | ((found == wanted) & below)
        below &= low < high
        low = np.where(below, middle + 1, low)
        high = np.where(below, high, middle)
    return low
