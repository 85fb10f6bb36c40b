"""Where a raw token lands in a row, and with what sign: a pure function of (seed, layer, order, head, token).

Owns the map. Knows no counts and no rows.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from engram_tables.storage.building.initialise import layer_state, mix
from engram_tables.storage.next_token.recipe import n_cells

I32 = npt.NDArray[np.int32]
_GAMMA = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1
_SIGN_BIT = np.uint64(31)


def places_of_head(seed: int, layer_id: int, order: int, head: int, *, next_size: int, width: int, cells: int) -> I32:
    """int32 (next_size, cells): twice the cell that each token is added to, plus 1 where it is subtracted.

    Notes
    -----
    With gamma and mix those of SplitMix64, the head's stream starts at
    s = mix(mix(layer_state(seed, layer_id) + order * gamma) + (head + 1) * gamma), and word number
    w = token * cells + j belongs to place j of a token: mix(s + (w + 1) * gamma). Its upper half u gives the cell
    u * (width - j) >> 32 among those cells that the token's places before j left, in ascending order; bit 31 is the
    sign. So a token's cells in one row differ.
    """
    state = mix((mix((layer_state(seed, layer_id) + order * _GAMMA) & _MASK) + (head + 1) * _GAMMA) & _MASK)
    places = np.empty((next_size, cells), np.int32)
    taken = np.empty((next_size, cells), np.uint64)
    for place in range(cells):
        words = np.arange(place + 1, next_size * cells + 1, cells, dtype=np.uint64) * np.uint64(_GAMMA)
        words = _mix(words + np.uint64(state))
        cell = ((words >> np.uint64(32)) * np.uint64(width - place)) >> np.uint64(32)
        taken[:, :place].sort(axis=1)
        for before in range(place):
            cell += cell >= taken[:, before]
        taken[:, place] = cell
        places[:, place] = (cell << np.uint64(1)) | ((words >> _SIGN_BIT) & np.uint64(1))
    return places


def places_of_order(seed: int, layer_id: int, order: int, *, n_heads: int, next_size: int, width: int) -> I32:
    """int32 (next_size, heads * cells), C-contiguous: `places_of_head` of all heads of an order, side by side."""
    cells = n_cells(n_heads)
    places = np.empty((next_size, n_heads, cells), np.int32)
    for head in range(n_heads):
        places[:, head] = places_of_head(seed, layer_id, order, head, next_size=next_size, width=width, cells=cells)
    return places.reshape(next_size, n_heads * cells)


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64, as `initialise.mix` for many words."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
