"""Which n-grams deserve a bundle: those that save the most reads a byte, within a budget of bytes.

Owns the choice and the order that it stands in. Knows counts and the shape of a table, and no byte of a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engram_tables.address.hashing import hash_ngrams
from engram_tables.address.spec import AddressSpec
from engram_tables.corpus.counts.counts_stats import CountsOfCounts, tally_counts, whole_ngrams
from engram_tables.corpus.counts.counts_store import Counts
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.storage.building.row_weights import check_counts
from engram_tables.storage.bundles.index import KeyIndex, slot_bytes
from engram_tables.units import Stage, unwatched

LEAST_COUNT = 2
"""N-grams that were seen once are left out: on the counts they save no read that a second look would have saved."""
DEFAULT_MEMORY_BYTES = 1 << 30
_BATCH_NGRAMS = 1 << 18

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Chosen:
    """The n-grams that are bundled, the one that saves the most reads a byte first: any prefix is the choice for a
    smaller budget.

    Attributes
    ----------
    orders
        uint8 (n,): the order of each.
    counts
        uint64 (n,): how often each was seen.
    bytes_upto
        int64 (n,): bytes of all layers' records and index slots up to and with each; file headers come on top.
    ngrams
        Of every order of the spec, those chosen of it in this same sequence: uint32 (n of the order, order), canonical
        ids, oldest first.
    budget_bytes, row_bytes, least_count
        As they were asked for.
    lookups
        Lookups of one layer in the counted text, by order.
    """

    orders: npt.NDArray[np.uint8]
    counts: npt.NDArray[np.uint64]
    bytes_upto: I64
    ngrams: Mapping[int, npt.NDArray[np.uint32]]
    budget_bytes: int
    row_bytes: int
    least_count: int
    lookups: Mapping[int, int]

    @property
    def n_looked_up(self) -> int:
        """Lookups of one layer in the counted text, of all orders."""
        return sum(self.lookups.values())

    def found(self, order: int) -> int:
        """Of the counted text's lookups of an order in one layer, those that bundles hold."""
        return int(self.counts[self.orders == order].sum())

    def n_within(self, budget_bytes: int) -> int:
        """How many of them, from the first on, fit into a budget."""
        return int(np.searchsorted(self.bytes_upto, budget_bytes, side="right"))

    def within(self, budget_bytes: int) -> Chosen:
        """The choice for a smaller budget, as views."""
        n_ngrams = self.n_within(budget_bytes)
        orders = self.orders[:n_ngrams]
        return Chosen(
            orders=orders,
            counts=self.counts[:n_ngrams],
            bytes_upto=self.bytes_upto[:n_ngrams],
            ngrams={order: of[: int(np.count_nonzero(orders == order))] for order, of in self.ngrams.items()},
            budget_bytes=min(budget_bytes, self.budget_bytes),
            row_bytes=self.row_bytes,
            least_count=self.least_count,
            lookups=self.lookups,
        )


class ChosenIndex:
    """Finds chosen n-grams by key, without a table: what a budget would find of a text.

    Parameters
    ----------
    layer_id
        Whose keys are asked for; the same n-grams are chosen in every layer.

    Notes
    -----
    Memory: 24 bytes an n-gram with keys of one word, and 8 more.
    """

    def __init__(self, chosen: Chosen, spec: AddressSpec, *, layer_id: int, threads: int | None = None) -> None:
        self._spec = spec
        self._of: dict[int, tuple[KeyIndex, I64]] = {}
        for order in spec.orders:
            ngrams, ranks = chosen.ngrams[order], np.flatnonzero(chosen.orders == order)
            index = KeyIndex.empty(len(ngrams), spec.key_words)
            kept = []
            for start in range(0, len(ngrams), _BATCH_NGRAMS):
                keys, rows = hash_ngrams(spec, layer_id, order, ngrams[start : start + _BATCH_NGRAMS], threads=threads)
                kept.append(start + np.flatnonzero(index.insert(keys, rows) >= 0))
            self._of[order] = index, ranks[np.concatenate(kept)] if kept else ranks

    def ranks(self, keys: npt.NDArray[Any]) -> I64:
        """Position in `Chosen` of every n-gram, or -1.

        Parameters
        ----------
        keys
            Of `AddressSpec.key_dtype`, (tokens, orders): one layer of `Addresses.keys`.

        Notes
        -----
        A lookup is found under a budget if its rank is not negative and below `Chosen.n_within(budget)`.
        """
        found = np.empty((len(keys), len(self._spec.orders)), np.int64)
        for place, order in enumerate(self._spec.orders):
            index, ranks = self._of[order]
            numbers = index.find(np.ascontiguousarray(keys[:, place]))
            found[:, place] = np.where(numbers < 0, -1, ranks[numbers]) if len(ranks) else -1
        return found


def entry_bytes(spec: AddressSpec, *, row_bytes: int) -> dict[int, int]:
    """Bytes that a bundle of each order takes in all layers: its records and its share of the index."""
    # Three slots for two keys, as `n_slots_of` has it.
    share = 3 * slot_bytes(spec.key_words) // 2
    heads = zip(spec.orders, spec.heads, strict=True)
    return {order: len(spec.layers) * (n_heads * row_bytes + share) for order, n_heads in heads}


def choose(
    counts: Counts,
    spec: AddressSpec,
    *,
    row_bytes: int,
    budget_bytes: int,
    least_count: int = LEAST_COUNT,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    stage: Stage = unwatched,
) -> Chosen:
    """Choose n-grams of all orders, in descending reads saved a byte.

    Parameters
    ----------
    counts
        Of the corpus that the table is expected to read; every order of the spec must be in it.
    row_bytes
        Bytes of a record.
    budget_bytes
        Of records and index slots in all layers.
    least_count
        N-grams seen less often are left out.
    memory_bytes
        Bound of the memory for what is chosen, and for its plan (`plan_bundles`) after that.

    Raises
    ------
    InvalidInput
        Counts of other n-grams than the spec hashes, or of none seen often enough; a budget that does not hold the
        bundle that is worth most; no order has two heads.
    SpecMismatch
        Another vocabulary.
    CapacityError
        What the budget holds does not fit into `memory_bytes`.

    Notes
    -----
    A bundle of an order with h heads takes the place of h reads by one, in each of L layers: an n-gram that was seen c
    times saves c · L · (h - 1) reads for L · (h · row_bytes + index) bytes. Where all orders have as many heads, the
    n-grams with the largest counts are chosen. Equal savings go to the lower order, then to the smaller ids. The counts
    are read twice, a row group at a time.
    """
    check_counts(counts, spec)
    costs = entry_bytes(spec, row_bytes=row_bytes)
    if max(spec.heads) < 2:
        raise InvalidInput(
            f"spec {spec.name}: found one head an order, expected two or more; a bundle would save no read"
        )
    smallest = min(costs[order] for order, n_heads in zip(spec.orders, spec.heads, strict=True) if n_heads > 1)
    if budget_bytes < smallest:
        raise InvalidInput(
            f"bundle budget: found {budget_bytes:,} bytes, expected {smallest:,} or more, which one bundle "
            "takes in all layers; give a larger one"
        )
    if least_count < 1:
        raise InvalidInput(f"least count: found {least_count}, expected 1 or more; give another")
    tallies = _tallies(counts, spec, stage)
    cut = _cut(spec, tallies, costs, budget_bytes=budget_bytes, least_count=least_count)
    if not any(of.n_above + of.n_at_limit for of in cut.values()):
        raise _nothing_chosen(counts, spec, tallies, costs, budget_bytes=budget_bytes, least_count=least_count)
    _check_memory(spec, cut, memory_bytes)
    return _collect(counts, spec, cut, tallies, costs, row_bytes, budget_bytes, least_count, stage)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cut:
    """Of one order: the n-grams seen more than `limit` times, and the first `n_at_limit` of those seen so often."""

    limit: int
    n_above: int
    n_at_limit: int


def _tallies(counts: Counts, spec: AddressSpec, stage: Stage) -> dict[int, CountsOfCounts]:
    total, done, tallies = sum(counts.n_rows(order) for order in spec.orders), 0, {}
    with stage("weighing n-grams", "n-grams") as progress:
        for order in spec.orders:
            if counts.next:
                tallies[order] = tally_counts(batch.counts for batch in whole_ngrams(counts.batches(order)))
            else:
                tallies[order] = tally_counts(counts.counts_of(order))
            done += counts.n_rows(order)
            progress(done, total)
    return tallies


def _worth(spec: AddressSpec, costs: Mapping[int, int]) -> dict[int, float]:
    """Reads that one sight of an n-gram of each order saves, a byte of its bundle."""
    heads = zip(spec.orders, spec.heads, strict=True)
    return {order: len(spec.layers) * (n_heads - 1) / costs[order] for order, n_heads in heads}


def _cut(
    spec: AddressSpec,
    tallies: Mapping[int, CountsOfCounts],
    costs: Mapping[int, int],
    *,
    budget_bytes: int,
    least_count: int,
) -> dict[int, _Cut]:
    """Where the budget ends in each order, from how many n-grams have each count."""
    worth = _worth(spec, costs)
    values, sizes, orders = [], [], []
    for order, tally in tallies.items():
        wanted = (tally.counts >= least_count) & (worth[order] > 0)
        values.append(tally.counts[wanted].astype(np.int64))
        sizes.append(tally.n_ngrams[wanted].astype(np.int64))
        orders.append(np.full(int(wanted.sum()), order, np.int64))
    count, n_ngrams, order_of = (np.concatenate(parts) for parts in (values, sizes, orders))
    gain = count * np.array([worth[order] for order in order_of.tolist()], np.float64)
    cut = dict.fromkeys(spec.orders, _Cut(limit=2**63 - 1, n_above=0, n_at_limit=0))
    left = budget_bytes
    # Stable, and the orders ascend: equal gains go to the lower order.
    for place in np.argsort(-gain, kind="stable").tolist():
        order, n_here = int(order_of[place]), int(n_ngrams[place])
        n_fitting = min(n_here, left // costs[order])
        if n_fitting:
            before = cut[order]
            cut[order] = _Cut(limit=int(count[place]), n_above=before.n_above + before.n_at_limit, n_at_limit=n_fitting)
            left -= n_fitting * costs[order]
        if n_fitting < n_here:
            break
    return cut


def _nothing_chosen(
    counts: Counts,
    spec: AddressSpec,
    tallies: Mapping[int, CountsOfCounts],
    costs: Mapping[int, int],
    *,
    budget_bytes: int,
    least_count: int,
) -> InvalidInput:
    worthy = [order for order, n_heads in zip(spec.orders, spec.heads, strict=True) if n_heads > 1]
    if any((tallies[order].counts >= least_count).any() for order in worthy):
        largest = max(costs[order] for order in worthy)
        return InvalidInput(
            f"bundle budget: found {budget_bytes:,} bytes, expected {largest:,} or more, which the bundle that saves "
            "most may take in all layers; give a larger one"
        )
    return InvalidInput(
        f"{counts.path}: found no n-gram seen {least_count} times or more, expected some to bundle; count more text"
    )


def _check_memory(spec: AddressSpec, cut: Mapping[int, _Cut], memory_bytes: int) -> None:
    # Ids; count, gain, sequence and bytes of each; and a second copy while they are put in sequence. Or, once that is
    # done, their slots in every layer and which are kept, with one index more while it is made anew in its size.
    slots = 3 * slot_bytes(spec.key_words) // 2
    planned = len(spec.layers) * (slots + 8) + slots + 16
    needed = sum(
        (c.n_above + c.n_at_limit) * max(2 * (4 * order + 33), 4 * order + 17 + planned) for order, c in cut.items()
    )
    if needed > memory_bytes:
        n_ngrams = sum(c.n_above + c.n_at_limit for c in cut.values())
        raise CapacityError(
            f"bundles: found {n_ngrams:,} n-grams within the budget, which take {needed:,} bytes of memory, expected "
            f"{memory_bytes:,} at most; give more with --memory, or a smaller budget"
        )


def _collect(
    counts: Counts,
    spec: AddressSpec,
    cut: Mapping[int, _Cut],
    tallies: Mapping[int, CountsOfCounts],
    costs: Mapping[int, int],
    row_bytes: int,
    budget_bytes: int,
    least_count: int,
    stage: Stage,
) -> Chosen:
    worth = _worth(spec, costs)
    found: dict[int, tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]] = {}
    total, done = sum(counts.n_rows(order) for order in spec.orders), 0
    with stage("choosing n-grams", "n-grams") as progress:
        for order in spec.orders:
            found[order] = _of_order(counts, order, cut[order])
            done += counts.n_rows(order)
            progress(done, total)
    orders = np.concatenate([np.full(len(found[order][1]), order, np.uint8) for order in spec.orders])
    times = np.concatenate([found[order][1] for order in spec.orders])
    gain = times * np.concatenate([np.full(len(found[order][1]), worth[order]) for order in spec.orders])
    sequence = np.argsort(-gain, kind="stable")
    orders = orders[sequence]
    cost_of = np.zeros(max(spec.orders) + 1, np.int64)
    cost_of[list(costs)] = list(costs.values())
    return Chosen(
        orders=orders,
        counts=times[sequence],
        bytes_upto=np.cumsum(cost_of[orders]),
        # Within an order, gains fall as counts do.
        ngrams={
            order: ngrams[np.argsort(-of.astype(np.int64), kind="stable")] for order, (ngrams, of) in found.items()
        },
        budget_bytes=budget_bytes,
        row_bytes=row_bytes,
        least_count=least_count,
        lookups={order: tally.n_total for order, tally in tallies.items()},
    )


def _of_order(counts: Counts, order: int, cut: _Cut) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint64]]:
    """N-grams uint32 (n, order) and counts of what the cut leaves, ascending by id."""
    ngrams = np.empty((cut.n_above + cut.n_at_limit, order), np.uint32)
    times = np.empty(len(ngrams), np.uint64)
    n_done, n_left = 0, cut.n_at_limit
    if not len(ngrams):
        return ngrams, times
    for batch in whole_ngrams(counts.batches(order)):
        at_limit = np.flatnonzero(batch.counts == np.uint64(cut.limit))[:n_left]
        n_left -= len(at_limit)
        mine = batch.counts > np.uint64(cut.limit)
        mine[at_limit] = True
        n_more = int(np.count_nonzero(mine))
        ngrams[n_done : n_done + n_more] = batch.ngrams[mine]
        times[n_done : n_done + n_more] = batch.counts[mine]
        n_done += n_more
    return ngrams, times
