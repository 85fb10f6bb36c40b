"""Compiled loops that compare records and values. Nothing is checked here; arrays are C-contiguous.

The plain twin of each stands in the tests.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_ZERO = np.float32(0.0)
_INFINITY = np.float32(np.inf)


@njit(cache=True, nogil=True)
def mark_unequal_bytes(left: np.ndarray, right: np.ndarray, start: int, stop: int, unequal: np.ndarray) -> int:
    """Which records differ in the bytes from `start` to `stop`, and how many.

    `left`, `right` uint8 (n, row_bytes); `unequal` uint8 (n,) gets 1 where they differ and 0 elsewhere.
    """
    n_unequal = 0
    for row in range(left.shape[0]):
        # Slices count from zero: an index that might be negative keeps the loop from becoming vectors.
        mine, other = left[row, start:stop], right[row, start:stop]
        seen = np.uint8(0)
        for k in range(mine.size):
            seen = np.uint8(seen | np.uint8(mine[k] ^ other[k]))
        unequal[row] = seen != np.uint8(0)
        n_unequal += unequal[row]
    return n_unequal


@njit(cache=True, nogil=True)
def mark_unequal_values(left: np.ndarray, right: np.ndarray, unequal: np.ndarray) -> int:
    """Which rows differ in a value, and how many; two NaN are equal, and so are the two zeros.

    `left`, `right` float32 (n, width); `unequal` uint8 (n,).
    """
    n_unequal = 0
    for row in range(left.shape[0]):
        mine, other = left[row], right[row]
        seen = False
        for k in range(mine.size):
            x, y = mine[k], other[k]
            seen |= (x != y) & ((x == x) | (y == y))
        unequal[row] = seen
        n_unequal += unequal[row]
    return n_unequal


# Sums in an order of the compiler's choice, the same for equal arguments: one after the other they take three times
# as long.
@njit(cache=True, nogil=True, fastmath={"reassoc"})
def add_distances(left: np.ndarray, right: np.ndarray, sums: np.ndarray) -> int:
    """Add how far `right` is from `left` to `sums`; how many pairs of values are not both finite and left out.

    `left`, `right` float32 (n, width); `sums` float64 (3,): the largest absolute difference, the sum of its squares,
    the sum of the squares of `left`.
    """
    n_left_out = 0
    for row in range(left.shape[0]):
        mine, other = left[row], right[row]
        largest = squared_error = squared = 0.0
        for k in range(mine.size):
            is_finite = (abs(mine[k]) < _INFINITY) & (abs(other[k]) < _INFINITY)
            x = np.float64(mine[k] if is_finite else _ZERO)
            distance = abs(x - np.float64(other[k] if is_finite else _ZERO))
            largest = distance if distance > largest else largest
            squared_error += distance * distance
            squared += x * x
            n_left_out += not is_finite
        sums[0] = max(sums[0], largest)
        sums[1] += squared_error
        sums[2] += squared
    return n_left_out
