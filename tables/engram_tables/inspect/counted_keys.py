"""The distinct keys of counted n-grams, of one layer and order: what the rows of every head follow from.

N-grams of equal keys are one n-gram to the table; here they are one key, and how many there were is known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_ngrams
from engram_tables.corpus.counts.counts_stats import whole_ngrams
from engram_tables.errors import CapacityError, InvalidInput, SpecMismatch
from engram_tables.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engram_tables.address.spec import AddressSpec
    from engram_tables.corpus.counts.counts_store import Counts

U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedKeys:
    """Keys and how often each is looked up.

    Attributes
    ----------
    keys
        uint64 (n, words), least significant word first; distinct.
    counts
        uint64 (n,).
    n_ngrams
        N-grams behind them.
    n_twins, twin_lookups
        N-grams that have their key together with another one, and lookups of all such keys.
    """

    layer_id: int
    order: int
    keys: U64
    counts: U64
    n_ngrams: int
    n_twins: int
    twin_lookups: int

    @property
    def n_lookups(self) -> int:
        """Occurrences of all n-grams."""
        return int(self.counts.sum())


def check_ids(spec: AddressSpec, counts: Counts) -> None:
    """Raise `SpecMismatch` unless the counted ids are those that the spec hashes, as far as the two say."""
    if spec.vocab_sha256 is not None:
        counts.check_vocabulary(spec.vocab_sha256)
    found, expected = counts.canonical_size, spec.canonical_size
    if found > expected or (spec.folded and found != expected):
        raise SpecMismatch(
            f"{counts.path}: found {found:,} canonical ids, expected {expected:,} as {spec.name} has; count with the "
            "vocabulary that belongs to it"
        )


def chosen_orders(spec: AddressSpec, counts: Counts, orders: Sequence[int] | None) -> tuple[int, ...]:
    """The orders to look at: those asked for, or all that the spec has and that were counted.

    Raises
    ------
    InvalidInput
        An order that the spec lacks or that was not counted, or none left.
    """
    wanted = [order for order in spec.orders if order in counts.orders] if orders is None else sorted(set(orders))
    for order in wanted:
        if order not in spec.orders:
            raise InvalidInput(f"order {order}: {spec.name} has orders {', '.join(map(str, spec.orders))}")
        counts.n_rows(order)  # raises where it was not counted
    if not wanted:
        raise InvalidInput(
            f"{counts.path}: holds orders {', '.join(map(str, counts.orders))}, expected one of those of {spec.name} "
            f"({', '.join(map(str, spec.orders))}); count again with --orders"
        )
    return tuple(wanted)


def chosen_layers(spec: AddressSpec, layer_ids: Sequence[int] | None) -> tuple[int, ...]:
    """The layers to look at, in the spec's order; InvalidInput for one that it lacks."""
    for layer_id in layer_ids or ():
        spec.layer(layer_id)
    return tuple(layer_id for layer_id in spec.layer_ids if layer_ids is None or layer_id in layer_ids)


def check_memory(
    spec: AddressSpec,
    counts: Counts,
    orders: Sequence[int],
    *,
    row_bytes: int,
    memory_bytes: int,
    key_bytes: int = 0,
    compared_ngrams: int = 0,
) -> None:
    """Raise `CapacityError` where it does not fit: the keys of an order, `key_bytes` more for each, `row_bytes` for
    every row of a head, and the rows under every head of `compared_ngrams`."""
    largest = max(modulus for layer in spec.layers for heads in layer.moduli for modulus in heads)
    n_keys = max(counts.n_distinct(order) for order in orders)
    # Keys, counts, rows, and a sorted copy with its positions.
    needed = n_keys * (16 * spec.key_words + 32 + key_bytes) + largest * row_bytes
    needed += 8 * max(spec.heads) * min(compared_ngrams, n_keys)
    if needed > memory_bytes:
        raise CapacityError(
            f"--memory {format_bytes(memory_bytes)}: found too little for {n_keys:,} n-grams of an order and heads of "
            f"{largest:,} rows, expected {format_bytes(needed)} or more; give more, or counts with a higher --min-count"
        )


def read_keys(
    spec: AddressSpec,
    counts: Counts,
    layer_id: int,
    order: int,
    *,
    add_progress: Callable[[int], None] = lambda _ngrams: None,
) -> CountedKeys:
    """Hash every counted n-gram of an order; the counts are read once, a row group at a time."""
    n_ngrams, words = counts.n_distinct(order), spec.key_words
    keys, occurrences = np.empty((n_ngrams, words), np.uint64), np.empty(n_ngrams, np.uint64)
    place = 0
    for batch in whole_ngrams(counts.batches(order)):
        stop = place + batch.n_distinct
        if batch.n_distinct:
            found, _ = hash_ngrams(spec, layer_id, order, np.ascontiguousarray(batch.ngrams))
            keys[place:stop] = found.view(np.uint64).reshape(-1, words)
            occurrences[place:stop] = batch.counts
        add_progress(batch.n_distinct)
        place = stop
    return _merged(layer_id, order, keys[:place], occurrences[:place])


def _merged(layer_id: int, order: int, keys: U64, counts: U64) -> CountedKeys:
    """Each key once."""
    n_ngrams = len(keys)
    n_twins, twin_lookups = 0, 0
    if _has_equal(keys):
        by_key = np.lexsort(keys.T)
        keys, counts = keys[by_key], counts[by_key]
        begins = np.flatnonzero(np.append(True, (keys[1:] != keys[:-1]).any(axis=1)))
        sizes = np.diff(np.append(begins, n_ngrams))
        keys, counts = keys[begins], np.add.reduceat(counts, begins)
        n_twins, twin_lookups = int(sizes[sizes > 1].sum()), int(counts[sizes > 1].sum())
    return CountedKeys(
        layer_id=layer_id,
        order=order,
        keys=keys,
        counts=counts,
        n_ngrams=n_ngrams,
        n_twins=n_twins,
        twin_lookups=twin_lookups,
    )


def _has_equal(keys: U64) -> bool:
    # A plain sort of one word is many times faster than one through an index.
    if keys.shape[1] == 1:
        ordered = np.sort(keys[:, 0])
        return bool((ordered[1:] == ordered[:-1]).any())
    ordered = keys[np.lexsort(keys.T)]
    return bool((ordered[1:] == ordered[:-1]).all(axis=1).any())
