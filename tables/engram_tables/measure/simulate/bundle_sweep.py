"""Reads a token with bundles and without, over budgets: what counts of one text are worth to another; and what a
cache in front of the bundles leaves of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.spec import AddressSpec
from engram_tables.corpus.counts.counts_store import open_counts
from engram_tables.errors import InvalidInput
from engram_tables.measure.simulate.streams import CHUNK_TOKENS, Groups, Lookups
from engram_tables.measure.simulate.units import RowBytes
from engram_tables.storage.bundles.choosing import Chosen, ChosenIndex, choose
from engram_tables.units import PAGE_BYTES, Stage, unwatched


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BundleSweep:
    """What budgets of bundles would find of a text.

    Attributes
    ----------
    record
        The part `bundles` of an `engram.simulate/1`.
    budgets_bytes
        Ascending, the first of them 0.
    groups
        Of each n-gram the first budget that has a bundle for it, by its place in `budgets_bytes`; past their end
        where none has.
    """

    record: dict[str, Any]
    budgets_bytes: tuple[int, ...]
    groups: Groups

    def reads_left(
        self, misses: NDArray[np.int64], accesses: NDArray[np.int64], *, heads: Sequence[int], n_tokens: float
    ) -> list[dict[str, Any]]:
        """Reads a token that a cache leaves to rows and bundles, for each budget.

        Parameters
        ----------
        misses, accesses
            int64 (classes, groups): of the cache, rows, by layer and order.
        heads
            Of each class's order.
        n_tokens
            Whose they are; of a sample the share of them.

        Notes
        -----
        The cache is asked first, for every row, as the tiered reader does; a bundle is read once where one of its rows
        is missing or more. Rows of an n-gram that are missing all at once make the fewest such reads, and rows that
        are missing one by one the most: at most one for each time that the n-gram is looked up.
        """
        of_heads = np.asarray(heads, np.int64)
        found = []
        for at, budget_bytes in enumerate(self.budgets_bytes):
            bundled = misses[:, : at + 1].sum(axis=1)
            alone = int(misses[:, at + 1 :].sum())
            looked_up = accesses[:, : at + 1].sum(axis=1) / of_heads
            least, most = (bundled / of_heads).sum(), np.minimum(bundled, looked_up).sum()
            found.append(
                {
                    "budget_bytes": budget_bytes,
                    "reads_a_token_least": float(alone + least) / n_tokens,
                    "reads_a_token_most": float(alone + most) / n_tokens,
                }
            )
        return found


def sweep_bundles(
    lookups: Lookups,
    counts: Path,
    rows: RowBytes,
    *,
    budgets_bytes: Sequence[int],
    memory_bytes: int,
    threads: int | None = None,
    stage: Stage = unwatched,
) -> BundleSweep:
    """Look every n-gram of a text up among the bundles that counts would give, for each budget.

    Parameters
    ----------
    counts
        A directory of `engram count`. Counts of the text itself flatter: it should be of the same kind, and unseen.
    budgets_bytes
        Of records and index in all layers, in ascending order; the first point of the record has none.

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
    groups = np.empty((lookups.n_tokens, len(spec.orders)), np.uint8)
    with stage("looking for bundles", "tokens") as progress:
        index = ChosenIndex(chosen, spec, layer_id=spec.layer_ids[0], threads=threads)
        for begin in range(0, lookups.n_tokens, CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, lookups.n_tokens)
            groups[begin:end] = _groups(lookups.addresses(begin, end).keys, index, limits)
            progress(end, lookups.n_tokens)
    n_live = lookups.n_tokens - int(lookups.dead.size)
    found = _found(groups, lookups.dead, limits.size)
    record = {
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
    columns = np.array([spec.orders.index(order) for order, _ in spec.columns], np.int64)
    return BundleSweep(
        record=record, budgets_bytes=(0, *budgets_bytes),
        groups=Groups(of_ngrams=groups, order_of_column=columns, n_groups=limits.size + 1),
    )  # fmt: skip


def _groups(keys: NDArray[Any], index: ChosenIndex, limits: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The first budget that has a bundle for each n-gram of keys (tokens, layers, orders), by its place."""
    ranks = index.ranks(np.ascontiguousarray(keys[:, 0]))
    # A rank is within a budget where it is below its limit.
    places = np.searchsorted(limits, ranks, side="right")
    return np.where(ranks < 0, limits.size, places).astype(np.uint8)


def _found(groups: NDArray[np.uint8], dead: NDArray[np.int64], n_budgets: int) -> NDArray[np.int64]:
    """Lookups of live tokens that each budget finds, by order: int64 (budgets, orders)."""
    n_of = [np.bincount(of, minlength=n_budgets + 1) for of in groups.T]
    n_dead = [np.bincount(of, minlength=n_budgets + 1) for of in groups[dead].T]
    return np.cumsum(np.stack(n_of, axis=1) - np.stack(n_dead, axis=1), axis=0)[:n_budgets]


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
