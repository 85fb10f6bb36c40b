"""Reads a token with bundles and without, over budgets: what counts of one text are worth to another."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.errors import InvalidInput
from engram_tables.measure.simulate.streams import CHUNK_TOKENS, Lookups
from engram_tables.measure.simulate.units import RowBytes
from engram_tables.storage.bundles.choosing import Chosen, ChosenIndex, choose
from engram_tables.units import PAGE_BYTES, Stage, unwatched


def sweep_bundles(
    lookups: Lookups,
    counts: Path,
    rows: RowBytes,
    *,
    budgets_bytes: Sequence[int],
    memory_bytes: int,
    threads: int | None = None,
    stage: Stage = unwatched,
) -> dict[str, Any]:
    """Look every n-gram of a text up among the bundles that counts would give, for each budget.

    Parameters
    ----------
    counts
        A directory of `engram count`. Counts of the text itself flatter: it should be of the same kind, and unseen.
    budgets_bytes
        Of records and index in all layers, in ascending order; the first point of the record has none.

    Returns
    -------
    dict
        The part `bundles` of an `engram.simulate/1`.

    Raises
    ------
    InvalidInput, SpecMismatch, CapacityError
        As `choose`; lookups of a trace that holds rows alone, which has no keys.

    Notes
    -----
    Reads are those of a fetch of one token, a row each and a bundle each. `page_bytes_a_token` are the bytes of the
    4 KiB pages that they touch on average, each by itself and both packed: a record of b bytes touches
    1 + (b - gcd(b, 4096)) / 4096 pages. Dead tokens fetch nothing and are left out.
    """
    spec = lookups.spec
    if not budgets_bytes or list(budgets_bytes) != sorted(set(budgets_bytes)):
        raise InvalidInput(f"bundle budgets: found {list(budgets_bytes)}, expected one or more that ascend; order them")
    with open_counts(counts) as opened:
        digest = str(opened.manifest["manifest_sha256"])
        n_counted = opened.total_tokens
        chosen = choose(
            opened, spec, row_bytes=rows.n_bytes, budget_bytes=budgets_bytes[-1], memory_bytes=memory_bytes,
            stage=stage,
        )  # fmt: skip
    limits = np.array([0, *(chosen.n_within(budget) for budget in budgets_bytes)], np.int64)
    with stage("looking for bundles", "tokens") as progress:
        found = np.zeros((limits.size, len(spec.orders)), np.int64)
        index = ChosenIndex(chosen, spec, layer_id=spec.layer_ids[0], threads=threads)
        for begin in range(0, lookups.n_tokens, CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, lookups.n_tokens)
            found += _found(_live_keys(lookups, begin, end), index, limits)
            progress(end, lookups.n_tokens)
    n_live = lookups.n_tokens - int(lookups.dead.size)
    return {
        "counts": str(counts),
        "counts_sha256": digest,
        "n_counted_tokens": n_counted,
        "n_tokens": n_live,
        "payload_bytes_a_token": len(spec.layers) * spec.n_columns * rows.n_bytes,
        "points": [
            _point(spec, rows, chosen, budget, of_budget / n_live)
            for budget, of_budget in zip((0, *budgets_bytes), found, strict=True)
        ],
    }


def _live_keys(lookups: Lookups, begin: int, end: int) -> NDArray[Any]:
    """Keys of the first layer of live tokens: (tokens, orders)."""
    keys = np.ascontiguousarray(lookups.addresses(begin, end).keys[:, 0])
    first, stop = np.searchsorted(lookups.dead, (begin, end))
    return np.delete(keys, lookups.dead[first:stop] - begin, axis=0)


def _found(keys: NDArray[Any], index: ChosenIndex, limits: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lookups that each budget finds, by order: int64 (budgets, orders)."""
    if not len(keys):
        return np.zeros((limits.size, keys.shape[1]), np.int64)
    ranks = index.ranks(keys)
    return np.stack([((ranks >= 0) & (ranks < limit)).sum(axis=0) for limit in limits])


def _point(
    spec: AddressSpec, rows: RowBytes, chosen: Chosen, budget_bytes: int, shares: NDArray[np.float64]
) -> dict[str, Any]:
    n_layers, reads, pages = len(spec.layers), 0.0, 0.0
    for share, n_heads in zip(shares.tolist(), spec.heads, strict=True):
        reads += n_layers * (share + (1 - share) * n_heads)
        pages += n_layers * (share * _pages(n_heads * rows.n_bytes) + (1 - share) * n_heads * _pages(rows.n_bytes))
    return {
        "budget_bytes": budget_bytes,
        "n_bundles": chosen.n_within(budget_bytes),
        "reads_a_token": reads,
        "page_bytes_a_token": pages * PAGE_BYTES,
        "found": [{"order": order, "share": share} for order, share in zip(spec.orders, shares.tolist(), strict=True)],
    }


def _pages(n_bytes: int) -> float:
    """Pages of 4 KiB that one of many records, directly after each other, touches on average."""
    return 1 + (n_bytes - gcd(n_bytes, PAGE_BYTES)) / PAGE_BYTES
