"""The upper half of the standard normal distribution, cut into 8,192 equally likely parts."""

from __future__ import annotations

import hashlib
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

N_MAGNITUDES = 2**13
MAGNITUDES_SHA256 = "f26181fedf7b06bc936b83860f21fa0fed75314ca21dc0aa019c099f7bbae867"


def normal_magnitudes() -> NDArray[np.float32]:
    """float32 (8192,): the quantile in the middle of each part, on a grid of 2**-20, ascending.

    32 KiB, so that it stays in a first-level cache. The grid hides the last place of the C library's logarithm, so
    that every machine has the same table; the digest makes sure of it.
    """
    quantile = NormalDist().inv_cdf
    on_grid = [round(quantile(0.5 + (k + 0.5) / (2 * N_MAGNITUDES)) * 2**20) for k in range(N_MAGNITUDES)]
    table = np.array(on_grid, dtype=np.float32) * np.float32(2**-20)
    found = hashlib.sha256(table.astype("<f4").tobytes()).hexdigest()
    if found != MAGNITUDES_SHA256:
        raise AssertionError(f"normal magnitudes: found digest {found}, expected {MAGNITUDES_SHA256}")
    return table
