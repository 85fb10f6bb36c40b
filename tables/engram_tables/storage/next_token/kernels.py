"""Kernels of next-token rows: n-grams' entries, counts into rows, likeliest tokens out of rows.

Callers check every bound. `reference.py` is the plain twin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
F32 = npt.NDArray[np.float32]

TAIL = np.float32(0.9)
"""Cells from this share of an estimate on count as large as it: codecs round by less."""


@njit(cache=True, nogil=True)
def collect_entries(
    rows: I64, head: int, first_ngram: int, start: int, stop: int, ngram_bits: int, entries: U64, n_entries: int
) -> Any:
    """Append an entry, row - start above and number of the n-gram below, for each row in start … stop - 1.

    Parameters
    ----------
    rows
        int64 (n, heads): of the n-grams from number `first_ngram` on.
    entries
        uint64: room for all of them, from `n_entries` on.

    Returns
    -------
    Entries that there are now.
    """
    shift, at = np.uint64(ngram_bits), n_entries
    for place in range(rows.shape[0]):
        row = rows[place, head]
        if start <= row < stop:
            entries[at] = (np.uint64(row - start) << shift) | np.uint64(first_ngram + place)
            at += 1
    return at


@njit(cache=True, nogil=True)
def add_counts(
    entries: U64, ngram_bits: int, first_row: int, starts: I64, next_tokens: Any, counts: I64, places: I32,
    first_place: int, n_cells: int, width: int, cells: I64,
) -> None:  # fmt: skip
    """Add the counted next tokens of some n-grams to their rows.

    Parameters
    ----------
    entries
        As `collect_entries` makes them.
    first_row
        What is subtracted from an entry's row.
    starts
        int64 (n-grams + 1,): where each n-gram's next tokens begin.
    next_tokens, counts
        uint32 and int64 (pairs,).
    places
        int32 (tokens, checks); the head's are those from `first_place` on, `n_cells` of them.
    cells
        int64 (rows * width,): added to.
    """
    shift = np.uint64(ngram_bits)
    in_ngram = (np.uint64(1) << shift) - np.uint64(1)
    for entry in entries:
        ngram = np.int64(entry & in_ngram)
        row_at = (np.int64(entry >> shift) - first_row) * width
        for pair in range(starts[ngram], starts[ngram + 1]):
            token, times = np.int64(next_tokens[pair]), counts[pair]
            for check in range(first_place, first_place + n_cells):
                place = places[token, check]
                cells[row_at + (place >> 1)] += -times if place & 1 else times


@njit(cache=True, nogil=True)
def find_top(
    rows: F32, places: I32, listed: I32, list_starts: I64, n_misses: int, start: int, stop: int, ids: I64,
    estimates: F32, agreement: F32, evidence: F32,
) -> None:  # fmt: skip
    """The likeliest tokens of rows start … stop - 1, and how sure that is.

    Parameters
    ----------
    rows
        float32 (n, heads, width).
    places
        int32 (tokens, checks).
    listed, list_starts
        int32 (checks, tokens) and int64 (checks, 2 * width + 1): a check's tokens by place, ascending within one.
    n_misses
        Checks that an estimate passes over, fewer than there are.
    ids, estimates, agreement, evidence
        (n, k): written; -1 and 0 where there is no further token.
    """
    n_heads, n_checks, k = rows.shape[1], places.shape[1], ids.shape[1]
    n_cells = n_checks // n_heads
    values, ranked = np.empty(n_checks, np.float32), np.empty(n_checks, np.float32)
    means, occupied, sizes = np.empty(k), np.empty(n_checks, np.int64), np.empty(rows.shape[2], np.float32)
    chances = 0.0
    for miss in range(n_misses):
        chances += np.log((n_checks - miss) / (miss + 1.0))
    for at in range(start, stop):
        ids[at], estimates[at], agreement[at], evidence[at], means[:] = -1, 0, 0, 0, 0
        for check in range(n_checks):
            occupied[check] = 0
            for cell in range(sizes.size):
                occupied[check] += 1 if rows[at, check // n_cells, cell] != 0 else 0
        # A token misses few checks, so it is in one of as many lists and one more: take the shortest.
        for _ in range(n_misses + 1):
            check = _least(occupied)
            occupied[check] = sizes.size + 1
            for cell in range(sizes.size):
                sizes[cell] = -abs(rows[at, check // n_cells, cell])
            for _ in range(sizes.size):
                # One of these checks reaches the estimate: smaller cells of each can be passed over.
                cell = _least(sizes)
                size = -sizes[cell]
                if not size > 0 or size < estimates[at, k - 1]:
                    break
                sizes[cell] = 0
                code = 2 * cell + (1 if rows[at, check // n_cells, cell] < 0 else 0)
                for place in range(list_starts[check, code], list_starts[check, code + 1]):
                    token, n_bad, total = listed[check, place], 0, 0.0
                    least = estimates[at, k - 1]
                    for other in range(n_checks):
                        where = places[token, other]
                        found = rows[at, other // n_cells, where >> 1]
                        found = -found if where & 1 else found
                        values[other] = found
                        total += found
                        n_bad += 0 if found > 0 and found >= least else 1
                        if n_bad > n_misses:
                            break
                    if n_bad <= n_misses:
                        _sort_into(ranked, values)
                        _keep(token, ranked[n_misses], total, ids[at], estimates[at], means)
        for rank in range(k):
            if ids[at, rank] < 0:
                break
            _judge(rows[at], places[ids[at, rank]], estimates[at, rank], rank, agreement[at], evidence[at])
            evidence[at, rank] -= chances


@njit(cache=True, nogil=True)
def _least(values: Any) -> int:
    """Where the first of the smallest values is; NaN is none."""
    best = 0
    for at in range(1, values.size):
        best = at if values[at] < values[best] or values[best] != values[best] else best
    return best


@njit(cache=True, nogil=True)
def _sort_into(ranked: F32, values: F32) -> None:
    """The few `values` ascending, NaN below all; NumPy's sort would compile for seconds."""
    for place in range(values.size):
        value, at = values[place], place
        while at > 0 and not ranked[at - 1] <= value and ranked[at - 1] == ranked[at - 1]:
            ranked[at] = ranked[at - 1]
            at -= 1
        ranked[at] = value


@njit(cache=True, nogil=True)
def _keep(token: int, estimate: Any, total: float, ids: I64, estimates: F32, means: Any) -> None:
    """Put a token into its rank: larger estimate, then larger sum of checks, then lower id first; once."""
    for rank in range(ids.size):
        if ids[rank] == token:
            return
    rank = ids.size
    while rank > 0:
        other = ids[rank - 1]
        if other >= 0:
            is_behind = total < means[rank - 1] or (total == means[rank - 1] and token > other)
            if estimate < estimates[rank - 1] or (estimate == estimates[rank - 1] and is_behind):
                break
        rank -= 1
        if rank + 1 < ids.size:
            ids[rank + 1], estimates[rank + 1], means[rank + 1] = ids[rank], estimates[rank], means[rank]
    if rank < ids.size:
        ids[rank], estimates[rank], means[rank] = token, estimate, total


@njit(cache=True, nogil=True)
def _judge(row: F32, places: I32, estimate: Any, rank: int, agreement: F32, evidence: F32) -> None:
    """Share of the checks that hold the token, and minus the logarithm of the odds that chance reaches its estimate."""
    n_checks, width = places.size, row.shape[1]
    n_cells = n_checks // row.shape[0]
    n_right, nats, least = 0, 0.0, estimate * TAIL
    for check in range(n_checks):
        cells, place = row[check // n_cells], places[check]
        value = -cells[place >> 1] if place & 1 else cells[place >> 1]
        n_right += 1 if value > 0 else 0
        if value >= estimate:
            n_large = 0
            for cell in range(width):
                n_large += 1 if abs(cells[cell]) >= least else 0
            nats += np.log(2.0 * width / n_large)
    agreement[rank], evidence[rank] = n_right / n_checks, nats
