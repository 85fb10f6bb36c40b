"""Compiled loops of `initialise`: a numbered stream of random words, and normal values looked up by them.

Nothing is checked here. The plain twins are in `reference`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from engram_tables.storage.quantiles import normal_quantiles

# A constant of the compiled code: as an argument it might overlap `out`, and the loop would not become vectors.
_QUANTILES = normal_quantiles()
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


@njit(cache=True, nogil=True)
def fill_words(state: np.uint64, first_word: np.uint64, out: np.ndarray) -> None:
    """Words `first_word`, `first_word` + 1, … of the SplitMix64 stream of `state` into `out` uint64 (n,)."""
    for k in range(out.size):
        word = state + (first_word + np.uint64(k) + np.uint64(1)) * _GAMMA
        word = (word ^ (word >> np.uint64(30))) * _FIRST_FACTOR
        word = (word ^ (word >> np.uint64(27))) * _SECOND_FACTOR
        out[k] = word ^ (word >> np.uint64(31))


@njit(cache=True, nogil=True)
def fill_normal(quarters: np.ndarray, std: np.float32, out: np.ndarray) -> None:
    """Normal values for `quarters` uint16 (n, width or more) into `out` float32 (n, width)."""
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            out[row, column] = _QUANTILES[quarters[row, column]] * std
