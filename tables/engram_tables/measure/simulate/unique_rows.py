"""How many rows a chunk of text asks for when each is read once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_tables.measure.simulate.streams import Lookups

CHUNKS = (1, 8, 64, 512, 4096, 8192)
_MOST_TOKENS = 1 << 17
_MOST_CHUNKS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class UniqueRows:
    """Of chunks of one length, spread evenly over the text in its own order.

    Attributes
    ----------
    n_chunks
        That were looked at; 0 where the text is shorter than one.
    unique_ratio
        Distinct rows of a chunk over its lookups, over all chunks; None without one.
    p50, p99
        Distinct rows of a chunk: nearest rank, so that p99 of fewer than 100 chunks is their most.
    """

    chunk_tokens: int
    n_chunks: int
    unique_ratio: float | None
    p50: int | None
    p99: int | None


def unique_rows(lookups: Lookups, chunks: Sequence[int] = CHUNKS) -> list[UniqueRows]:
    """Measure chunks of each length; reads at most 131,072 tokens of each, or one chunk."""
    return [_of_length(lookups, n_tokens) for n_tokens in chunks]


def _of_length(lookups: Lookups, n_tokens: int) -> UniqueRows:
    n_unique, n_looked_up = [], 0
    for rows in _chunks(lookups, n_tokens):
        n_unique.append(sum(np.unique(rows[:, layer]).size for layer in range(rows.shape[1])))
        n_looked_up += rows.size
    found = np.sort(np.array(n_unique, np.int64))
    if not n_looked_up:
        return UniqueRows(chunk_tokens=n_tokens, n_chunks=0, unique_ratio=None, p50=None, p99=None)
    return UniqueRows(
        chunk_tokens=n_tokens, n_chunks=found.size, unique_ratio=int(found.sum()) / n_looked_up,
        p50=_nearest_rank(found, 0.50), p99=_nearest_rank(found, 0.99),
    )  # fmt: skip


def _chunks(lookups: Lookups, n_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Rows of the live tokens of each chunk."""
    n_there = lookups.n_tokens // n_tokens
    n_chosen = min(n_there, max(1, min(_MOST_TOKENS // n_tokens, _MOST_CHUNKS)))
    # Places are multiples of a chunk, so that none is looked at twice.
    for nth in np.linspace(0, n_there - 1, n_chosen).astype(np.int64) if n_there else ():
        start = int(nth) * n_tokens
        rows = lookups.rows(start, start + n_tokens)
        first, last = np.searchsorted(lookups.dead, (start, start + n_tokens))
        yield np.delete(rows, lookups.dead[first:last] - start, axis=0)


def _nearest_rank(ascending: NDArray[np.int64], share: float) -> int:
    return int(ascending[max(0, int(np.ceil(share * ascending.size)) - 1)])
