"""Compiled sums of differences; its plain twin is `reference.distance`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

N_LANES = 16


class Sums(NamedTuple):
    """Sums by column, written by the kernel.

    `n_rows`, `n_changed` uint64 (columns,): rows, each as often as its weight, and those of them with a value that
    differs. `largest`, `errors`, `values` float64 (columns,): the largest absolute error, and the sums of squared
    errors and of squared original values.
    """

    n_rows: np.ndarray
    n_changed: np.ndarray
    largest: np.ndarray
    errors: np.ndarray
    values: np.ndarray


@njit(cache=True, nogil=True)
def add_rows(
    original: np.ndarray, decoded: np.ndarray, columns: np.ndarray, weights: np.ndarray, sums: Sums, weighted: Sums
) -> None:
    """Add rows of float32 (n, width) to `sums` and, `weights` uint64 (n,) times, to `weighted`; with no weights (0,)
    to `sums` alone.

    `columns` int64 (n,). Value k is summed in lane k modulo 16 and the lanes one after the other, so that every
    machine's vectors give the same sum.
    """
    largest_of, errors_of, values_of = np.zeros(N_LANES), np.zeros(N_LANES), np.zeros(N_LANES)
    n_whole = original.shape[1] // N_LANES
    for row in range(original.shape[0]):
        largest_of[:] = 0.0
        errors_of[:] = 0.0
        values_of[:] = 0.0
        # The constant number of lanes and the unsigned index are what keeps the lanes in vector registers.
        for chunk in range(n_whole):
            for lane in range(N_LANES):
                k = np.uint64(chunk * N_LANES) + np.uint64(lane)
                value = np.float64(original[row, k])
                error = abs(value - np.float64(decoded[row, k]))
                largest_of[lane] = max(largest_of[lane], error)
                errors_of[lane] += error * error
                values_of[lane] += value * value
        for last in range(n_whole * N_LANES, original.shape[1]):
            lane = last % N_LANES
            value = np.float64(original[row, last])
            error = abs(value - np.float64(decoded[row, last]))
            largest_of[lane] = max(largest_of[lane], error)
            errors_of[lane] += error * error
            values_of[lane] += value * value
        largest, squared_error, squared_value = 0.0, 0.0, 0.0
        for lane in range(N_LANES):
            largest = max(largest, largest_of[lane])
            squared_error += errors_of[lane]
            squared_value += values_of[lane]
        _add(sums, columns[row], np.uint64(1), largest, squared_error, squared_value)
        if weights.size and weights[row]:
            _add(weighted, columns[row], weights[row], largest, squared_error, squared_value)


@njit(cache=True, nogil=True)
def _add(
    sums: Sums, column: int, weight: np.uint64, largest: float, squared_error: float, squared_value: float
) -> None:
    sums.n_rows[column] += weight
    sums.n_changed[column] += weight if largest > 0.0 else np.uint64(0)
    sums.largest[column] = max(sums.largest[column], largest)
    sums.errors[column] += np.float64(weight) * squared_error
    sums.values[column] += np.float64(weight) * squared_value
