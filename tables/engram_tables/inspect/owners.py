"""Which n-grams of a corpus own some rows: found by one pass over the counts of every order that can own them.

A row belongs to the heads whose range it lies in: to one where every head has rows of its own, to several where heads
share a table. Knows counts and addressing, and no table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import exact_keys, hash_ngrams
from engram_tables.corpus.counts.counts_stats import whole_ngrams
from engram_tables.units import ProgressHook

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec
    from engram_tables.address.vocabulary import Vocabulary
    from engram_tables.corpus.counts.counts_store import Counts
    from engram_tables.corpus.counts.ngram_counts import NgramCounts

_FILTER_BITS = 16
_FEW_ROWS = 3

I64 = npt.NDArray[np.int64]


class Row(NamedTuple):
    """A row of a layer's table, its id global within the layer."""

    layer_id: int
    row: int


class RowHead(NamedTuple):
    """A head whose rows hold a row, and which of them it is."""

    order: int
    head: int
    row_in_head: int
    n_rows: int


class Owner(NamedTuple):
    """An n-gram that owns a row under one head.

    Attributes
    ----------
    ids
        Canonical ids, oldest first.
    key
        What names it exactly to the hash: n-grams of equal keys are one to the table.
    """

    order: int
    head: int
    ids: tuple[int, ...]
    key: int
    occurrences: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Owned:
    """The corpus n-grams of one row, the most frequent first.

    Attributes
    ----------
    n_lookups
        Times that the corpus looks the row up: the occurrences of all of them.
    """

    owners: tuple[Owner, ...]
    n_lookups: int

    def others(self, key: int, order: int) -> list[Owner]:
        """Those that are another n-gram to the table than the one of this key."""
        return [owner for owner in self.owners if (owner.key, owner.order) != (key, order)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What a search found and what it cost.

    Attributes
    ----------
    rows
        By row.
    n_ngrams, counts_bytes
        Counted n-grams that were hashed, and bytes of the files that were read for them.
    missing_orders
        Orders that own such rows and were not counted: their n-grams are not among the owners.
    """

    rows: dict[Row, Owned]
    n_ngrams: int
    counts_bytes: int
    missing_orders: tuple[int, ...]


def heads_of_row(spec: AddressSpec, row: Row) -> list[RowHead]:
    """The heads whose rows hold `row`; none where it is padding. InvalidInput for a layer the spec lacks."""
    layer = spec.layer(row.layer_id)
    moduli = chain.from_iterable(layer.moduli)
    return [
        RowHead(order, head, row.row - offset, modulus)
        for (order, head), offset, modulus in zip(spec.columns, layer.offsets, moduli, strict=True)
        if offset <= row.row < offset + modulus
    ]


def find_owners(
    spec: AddressSpec, counts: Counts, rows: Collection[Row], *, progress: ProgressHook | None = None
) -> Search:
    """The counted n-grams that own any of `rows`.

    Parameters
    ----------
    counts
        Of the vocabulary that the spec hashes.
    progress
        Called with n-grams read, of all that are to be.

    Notes
    -----
    Cost: the counts of every order that has heads with such rows are read and hashed once; memory holds a row group
    and the owners.
    """
    found: dict[Row, list[Owner]] = {row: [] for row in rows}
    by_order: dict[int, dict[int, dict[int, set[int]]]] = {}
    for row in found:
        for home in heads_of_row(spec, row):
            by_layer = by_order.setdefault(home.order, {})
            by_layer.setdefault(row.layer_id, {}).setdefault(home.head, set()).add(row.row)
    orders = sorted(order for order in by_order if order in counts.orders)
    n_total, n_done = sum(counts.n_distinct(order) for order in orders), 0
    for order in orders:
        for batch in whole_ngrams(counts.batches(order)):
            for layer_id, wanted in by_order[order].items():
                for row, owner in _owners_in(spec, layer_id, batch, wanted):
                    found[row].append(owner)
            n_done += batch.n_distinct
            if progress is not None:
                progress(n_done, n_total)
    return Search(
        rows={row: _owned(owners) for row, owners in found.items()},
        n_ngrams=n_total,
        counts_bytes=counts_bytes(counts, orders),
        missing_orders=tuple(sorted(set(by_order) - set(orders))),
    )


def counts_bytes(counts: Counts, orders: Collection[int]) -> int:
    """Bytes of the files that hold some orders."""
    return sum(int(entry["file_bytes"]) for entry in counts.manifest["files"] if entry["order"] in orders)


def _owned(owners: list[Owner]) -> Owned:
    ranked = sorted(owners, key=lambda owner: (-owner.occurrences, owner.order, owner.head, owner.ids))
    return Owned(owners=tuple(ranked), n_lookups=sum(owner.occurrences for owner in owners))


def _owners_in(
    spec: AddressSpec, layer_id: int, batch: NgramCounts, wanted: dict[int, set[int]]
) -> Iterator[tuple[Row, Owner]]:
    if not batch.n_distinct:
        return
    keys, rows = hash_ngrams(spec, layer_id, batch.order, np.ascontiguousarray(batch.ngrams))
    for head, of_head in wanted.items():
        for place in _places(rows[:, head], np.array(sorted(of_head), np.int64)).tolist():
            ids = tuple(batch.columns[:, place].tolist())
            key, occurrences = exact_keys(keys[place]), int(batch.counts[place])
            row = Row(layer_id, int(rows[place, head]))
            yield row, Owner(batch.order, head, ids, key, occurrences)


def _places(rows: I64, wanted: I64) -> I64:
    """Where `rows` holds one of `wanted`."""
    if len(wanted) <= _FEW_ROWS:
        return np.flatnonzero(np.logical_or.reduce([rows == row for row in wanted.tolist()]))
    # A small filter first: exact membership is then asked of few rows.
    mask = (1 << _FILTER_BITS) - 1
    maybe = np.zeros(1 << _FILTER_BITS, np.bool_)
    maybe[wanted & mask] = True
    places = np.flatnonzero(maybe[rows & mask])
    return places[np.isin(rows[places], wanted)]


def spell(vocabulary: Vocabulary | None, ids: Collection[int]) -> tuple[str, ...]:
    """The forms of canonical ids; the ids in figures where no vocabulary or no token has them."""
    if vocabulary is None:
        return tuple(map(str, ids))
    return tuple(
        vocabulary.form(canonical_id) if canonical_id < vocabulary.canonical_size else f"#{canonical_id}"
        for canonical_id in ids
    )
