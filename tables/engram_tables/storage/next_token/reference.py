"""The sketch in plain Python: what the kernels and the array code of this package must agree with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from engram_tables.storage.building.initialise import layer_state, mix
from engram_tables.storage.next_token.recipe import n_cells, n_misses

_GAMMA = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def places_of(
    seed: int, layer_id: int, order: int, head: int, token: int, *, width: int, cells: int
) -> list[tuple[int, int]]:
    """The (cell, sign) pairs of a token in one head's row."""
    state = mix((layer_state(seed, layer_id) + order * _GAMMA) & _MASK)
    state = mix((state + (head + 1) * _GAMMA) & _MASK)
    free, found = list(range(width)), []
    for place in range(cells):
        word = mix((state + (token * cells + place + 1) * _GAMMA) & _MASK)
        cell = free.pop((word >> 32) * len(free) >> 32)
        found.append((cell, -1 if word >> 31 & 1 else 1))
    return found


def sketch_row(
    seed: int, layer_id: int, order: int, head: int, n_heads: int, counts: Mapping[int, int], width: int
) -> list[int]:
    """The integers of a row that belongs to one head and holds these counts of next tokens."""
    row = [0] * width
    for token, times in counts.items():
        for cell, sign in places_of(seed, layer_id, order, head, token, width=width, cells=n_cells(n_heads)):
            row[cell] += sign * times
    return row


def top_tokens(
    rows: Sequence[Sequence[float]], seed: int, layer_id: int, order: int, next_size: int, k: int
) -> list[tuple[int, float, float, float]]:
    """(token, estimate, agreement, evidence) of the `k` likeliest tokens of one n-gram's rows, one a head."""
    n_heads, width, cells = len(rows), len(rows[0]), n_cells(len(rows))
    n_checks = n_heads * cells
    misses = n_misses(n_checks)
    found = []
    for token in range(next_size):
        places = [
            (head, cell, sign)
            for head in range(n_heads)
            for cell, sign in places_of(seed, layer_id, order, head, token, width=width, cells=cells)
        ]
        values = [sign * rows[head][cell] for head, cell, sign in places]
        estimate = sorted(values)[misses]
        if estimate > 0:
            found.append((-estimate, -sum(values), token, places, values))
    chances = math.log(math.comb(n_checks, misses))
    best = []
    for minus, _, token, places, values in sorted(found)[:k]:
        nats = -chances
        for (head, _, _), value in zip(places, values, strict=True):
            if value >= -minus:
                n_large = sum(abs(cell) >= -minus * 0.9 for cell in rows[head])
                nats += math.log(2 * width / n_large)
        best.append((token, -minus, sum(value > 0 for value in values) / n_checks, nats))
    return best
