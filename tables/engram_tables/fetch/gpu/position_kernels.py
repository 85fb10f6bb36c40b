"""Compiled: row ids to positions in one block of records, layer by layer. It knows arrays alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray


class RangeArrays(NamedTuple):
    """Ranges of rows that follow each other in a block.

    Range k holds rows `first_rows[k]` to `stops[k]` of a layer, half-open, from position `first_positions[k]` on.
    """

    layers: NDArray[np.int64]
    """(layers, 2): a layer's first range, and how many follow from there, ascending"""
    first_rows: NDArray[np.int64]
    stops: NDArray[np.int64]
    first_positions: NDArray[np.int64]


@njit(cache=True, nogil=True)
def place_rows(rows: Any, ranges: Any, positions: Any) -> Any:
    """Turn row ids, int64 (tokens, layers, columns), into positions, int64 (layers, tokens, columns).

    Returns the flat index in `rows` of the first row in no range of its layer, or -1.
    """
    n_tokens, n_layers, n_columns = rows.shape
    for token in range(n_tokens):
        for layer in range(n_layers):
            first, n_ranges = ranges.layers[layer, 0], ranges.layers[layer, 1]
            for column in range(n_columns):
                row = rows[token, layer, column]
                begin, n_left = first, n_ranges
                while n_left > 1:
                    half = n_left // 2
                    if ranges.first_rows[begin + half] <= row:
                        begin += half
                    n_left -= half
                if n_ranges == 0 or row < ranges.first_rows[begin] or row >= ranges.stops[begin]:
                    return np.int64((token * n_layers + layer) * n_columns + column)
                positions[layer, token, column] = ranges.first_positions[begin] + (row - ranges.first_rows[begin])
    return np.int64(-1)
