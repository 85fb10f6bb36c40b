"""Compiled loops of reading: the stretches of one part from a file's bytes to their places in records.

Nothing is checked here; `reading` validates shapes. The plain twin is `reading.place_plainly`.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def place_stretches(
    words: np.ndarray, in_cell: int, cell_rows: int, spare_words: int, n_words: int, out: np.ndarray, start: int
) -> None:
    """Copy stretches of `n_words` words that follow each other in `words` (m,) into columns `start` on of `out` (n, w).

    The first one is the `in_cell`-th of its cell; behind every `cell_rows`-th lie `spare_words` words to skip.
    """
    flat = out.reshape(-1)
    # Unsigned: a signed index may count from the end, and the test for that makes the copy four times slower.
    source, target = np.uint64(0), np.uint64(start)
    n, stride, spare = np.uint64(n_words), np.uint64(out.shape[1]), np.uint64(spare_words)
    for _ in range(out.shape[0]):
        for k in range(n):
            flat[target + k] = words[source + k]
        target += stride
        source += n
        in_cell += 1
        if in_cell == cell_rows:
            source += spare
            in_cell = 0
