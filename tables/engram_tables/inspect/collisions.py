"""What collisions weigh: rows that several n-grams of a corpus own, and whether heads collide independently.

An n-gram is a key here: those that the hash cannot tell apart are one, and counted by themselves. Knows counts and
addressing, and no table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.traffic.occupancy import shared_share
from engram_tables.corpus.traffic.row_hits import Head
from engram_tables.inspect import collision_kernels as kernels
from engram_tables.inspect.chance import NO_CHANCE, chance_of_so_many
from engram_tables.inspect.counted_keys import (
    CountedKeys,
    check_ids,
    check_memory,
    chosen_layers,
    chosen_orders,
    read_keys,
)
from engram_tables.inspect.owners import Owned, Row, find_owners
from engram_tables.threads import resolve_threads, run_all
from engram_tables.units import Stage, unwatched

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec
    from engram_tables.corpus.counts.counts_store import Counts

MEMORY_BYTES = 4 << 30
SAMPLE_NGRAMS = 1 << 22
"""N-grams of an order whose heads are compared two by two; of more, so many are drawn."""
FOREIGN_PERCENTS = (10, 50, 90)
_HEAD_BYTES = 32

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadCollisions:
    """One head.

    Attributes
    ----------
    n_rows, n_shared_rows
        Rows, and rows that two n-grams or more own.
    n_pairs, n_pairs_expected
        Pairs of n-grams that share a row, and how many a uniform hash would give.
    shared_lookups
        Lookups of shared rows; `shared_expected` is the share of all lookups that a uniform hash would give.
    outweighed_lookups
        Lookups by n-grams that are not the most frequent of their row: what such a row has learnt is mostly
        another's.
    foreign_lookups
        For each of `FOREIGN_PERCENTS`, lookups by n-grams that leave others more than so many per cent of the lookups
        of their row.
    """

    head: int
    n_rows: int
    n_shared_rows: int
    n_pairs: int
    n_pairs_expected: float
    shared_lookups: int
    shared_expected: float
    outweighed_lookups: int
    foreign_lookups: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How often two heads collide together.

    Attributes
    ----------
    n_both
        Pairs of n-grams that share a row under either head.
    expected
        If the two were independent: pairs of one, times pairs of the other, over all pairs.
    chance
        That independent heads have so many or more.
    """

    heads: tuple[int, int]
    n_both: int
    expected: float
    chance: float

    @property
    def is_independent(self) -> bool:
        """Whether chance explains it."""
        return self.chance >= NO_CHANCE


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderCollisions:
    """One order of one layer.

    Attributes
    ----------
    n_ngrams, n_keys, n_lookups
        Distinct n-grams, distinct keys among them, and occurrences.
    n_twins, twin_lookups
        N-grams whose key another one has too: no head tells them apart; and their occurrences.
    n_compared
        Keys whose heads were compared two by two: all, or a sample drawn by seed.
    n_alike
        Pairs of those that share their row under every head although their keys differ.
    """

    layer_id: int
    order: int
    n_ngrams: int
    n_keys: int
    n_lookups: int
    n_twins: int
    twin_lookups: int
    heads: tuple[HeadCollisions, ...]
    n_compared: int
    n_alike: int
    agreements: tuple[Agreement, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedRow:
    """A shared row and its n-grams.

    Attributes
    ----------
    outweighed_lookups
        Its lookups by all n-grams but the most frequent one.
    """

    layer_id: int
    order: int
    head: int
    row: int
    n_lookups: int
    outweighed_lookups: int
    n_ngrams: int
    owned: Owned


@dataclass(frozen=True, slots=True, kw_only=True)
class Collisions:
    """What was found; `rows` are the shared rows whose outweighed lookups are most, the heaviest first."""

    orders: tuple[OrderCollisions, ...]
    rows: tuple[SharedRow, ...]

    @property
    def dependent(self) -> list[tuple[OrderCollisions, Agreement]]:
        """Pairs of heads that collide together more often than chance has it."""
        return [(order, pair) for order in self.orders for pair in order.agreements if not pair.is_independent]


class _Heavy(NamedTuple):
    """A shared row before its n-grams are known; sorts by weight."""

    outweighed: int
    layer_id: int
    order: int
    head: int
    row: int
    n_lookups: int
    n_keys: int


def find_collisions(
    spec: AddressSpec,
    counts: Counts,
    *,
    layer_ids: Sequence[int] | None = None,
    orders: Sequence[int] | None = None,
    n_rows: int = 10,
    sample_ngrams: int = SAMPLE_NGRAMS,
    seed: int = 0,
    memory_bytes: int = MEMORY_BYTES,
    threads: int | None = None,
    stage: Stage = unwatched,
) -> Collisions:
    """Collisions of the counted n-grams.

    Parameters
    ----------
    layer_ids, orders
        All of the spec's, and of those all that were counted, by default.
    n_rows
        The heaviest shared rows to name n-grams of.
    sample_ngrams
        The most n-grams of an order whose heads are compared two by two; 0 compares none. `seed` draws them.

    Raises
    ------
    InvalidInput
        An order or a layer that is not there.
    SpecMismatch
        Counts of another vocabulary.
    CapacityError
        Too little memory.

    Notes
    -----
    Cost: the counts of an order are read once a layer, and once more for the names in the heaviest rows; a head adds
    its n-grams to its rows, a pair of heads sorts their n-grams.
    """
    check_ids(spec, counts)
    wanted, layers = chosen_orders(spec, counts, orders), chosen_layers(spec, layer_ids)
    check_memory(spec, counts, wanted, row_bytes=_HEAD_BYTES, memory_bytes=memory_bytes, compared_ngrams=sample_ngrams)
    found, heavy = [], list[_Heavy]()
    with stage("comparing", "orders") as progress:
        for done, (layer_id, order) in enumerate((layer_id, order) for layer_id in layers for order in wanted):
            progress(done, len(layers) * len(wanted))
            keys = read_keys(spec, counts, layer_id, order)
            of_order, rows = _of_order(spec, keys, n_rows, sample_ngrams, seed, threads)
            found.append(of_order)
            heavy = _heaviest([*heavy, *rows], n_rows)
    return Collisions(orders=tuple(found), rows=_named(spec, counts, heavy, stage))


def _heaviest(rows: list[_Heavy], n: int) -> list[_Heavy]:
    return sorted(rows, key=lambda row: (-row.outweighed, row[1:]))[:n]


def _of_order(
    spec: AddressSpec, keys: CountedKeys, n_rows: int, sample_ngrams: int, seed: int, threads: int | None
) -> tuple[OrderCollisions, list[_Heavy]]:
    layer, n_keys = spec.layer(keys.layer_id), len(keys.keys)
    columns = [column for column, (order, _) in enumerate(spec.columns) if order == keys.order]
    sample = slice(None)
    if n_keys > sample_ngrams:
        drawn = np.random.default_rng(seed).choice(n_keys, sample_ngrams, replace=False, shuffle=False)
        sample = np.sort(drawn)  # type: ignore[assignment]
    heads: dict[int, HeadCollisions] = {}
    compared: dict[int, _Compared] = {}
    heavy: list[_Heavy] = []

    def weigh(which: int) -> None:
        column = columns[which]
        head, rows = Head(spec=spec, layer=layer, column=column), np.empty(n_keys, np.int64)
        head.rows_of()(keys.keys, rows)
        heads[which], largest = _of_head(which, head.modulus, rows, keys.counts, n_rows)
        heavy.extend(
            _Heavy(lost, keys.layer_id, keys.order, which, layer.offsets[column] + row, lookups, n)
            for lost, row, lookups, n in largest
        )
        if sample_ngrams:
            compared[which] = _Compared(rows[sample], head.modulus)

    run_all(weigh, range(len(columns)), threads=resolve_threads(threads))
    agreements, n_alike = _agreements([compared[which] for which in sorted(compared)], threads)
    return OrderCollisions(
        layer_id=keys.layer_id,
        order=keys.order,
        n_ngrams=keys.n_ngrams,
        n_keys=n_keys,
        n_lookups=keys.n_lookups,
        n_twins=keys.n_twins,
        twin_lookups=keys.twin_lookups,
        heads=tuple(heads[which] for which in sorted(heads)),
        n_compared=len(compared[0].rows) if compared else 0,
        n_alike=n_alike,
        agreements=agreements,
    ), heavy


def _of_head(
    head: int, modulus: int, rows: I64, counts: U64, n_largest: int
) -> tuple[HeadCollisions, list[tuple[int, int, int, int]]]:
    """The head, and (outweighed lookups, row, lookups, n-grams) of its heaviest shared rows."""
    lookups, most = np.zeros(modulus, np.uint64), np.zeros(modulus, np.uint64)
    owners, foreign = np.zeros(modulus, np.int64), np.zeros(len(FOREIGN_PERCENTS), np.uint64)
    kernels.add_owners(rows, counts, lookups, most, owners)
    kernels.add_foreign(rows, counts, lookups, np.array(FOREIGN_PERCENTS, np.uint64), foreign)
    outweighed = lookups - most
    shared = owners > 1
    found = HeadCollisions(
        head=head,
        n_rows=modulus,
        n_shared_rows=int(shared.sum()),
        n_pairs=_pairs(owners[shared]),
        n_pairs_expected=len(rows) * (len(rows) - 1) / 2 / modulus,
        shared_lookups=int(lookups[shared].sum()),
        shared_expected=shared_share(len(rows), modulus),
        outweighed_lookups=int(outweighed.sum()),
        foreign_lookups=tuple(foreign.tolist()),
    )
    candidates = np.flatnonzero(outweighed)
    if n_largest < len(candidates):
        threshold = np.partition(outweighed[candidates], len(candidates) - max(n_largest, 1))[-max(n_largest, 1)]
        candidates = candidates[outweighed[candidates] >= threshold]
    ranked = candidates[np.argsort(-outweighed[candidates].astype(np.int64), kind="stable")][:n_largest]
    return found, [(int(outweighed[row]), int(row), int(lookups[row]), int(owners[row])) for row in ranked.tolist()]


class _Compared:
    """Rows of the compared keys under one head."""

    def __init__(self, rows: I64, modulus: int) -> None:
        self.rows, self.modulus = rows, modulus
        owners = np.bincount(rows, minlength=modulus)
        self.n_pairs = _pairs(owners[owners > 1])
        # Whether a key shares its row: two heads agree on none that does not under both.
        self.collides = (owners > 1)[rows]


def _agreements(heads: list[_Compared], threads: int | None) -> tuple[tuple[Agreement, ...], int]:
    """Every pair of heads, and the pairs of keys that share their row under all of them."""
    if len(heads) < 2:
        return (), 0
    n = len(heads[0].rows)
    both: dict[tuple[int, int], int] = {}

    def count(pair: tuple[int, int]) -> None:
        both[pair] = _pairs(_run_lengths(_joined(heads[pair[0]], heads[pair[1]])))

    pairs = list(combinations(range(len(heads)), 2))
    run_all(count, pairs, threads=resolve_threads(threads))
    found = []
    for pair in pairs:
        expected = heads[pair[0]].n_pairs * heads[pair[1]].n_pairs / max(1, n * (n - 1) // 2)
        chance = chance_of_so_many(both[pair], expected)
        found.append(Agreement(heads=pair, n_both=both[pair], expected=expected, chance=chance))
    return tuple(found), _alike(heads) if all(both.values()) else 0


def _joined(one: _Compared, other: _Compared) -> U64:
    """A number for the pair of rows of every key that shares its row under both heads."""
    chosen = one.collides & other.collides
    rows = one.rows[chosen], other.rows[chosen]
    if one.modulus * other.modulus < 2**64:
        return rows[0].view(np.uint64) * np.uint64(other.modulus) + rows[1].view(np.uint64)
    _, numbers = np.unique(np.stack(rows, axis=1), axis=0, return_inverse=True)
    return numbers.reshape(-1).astype(np.uint64)


def _run_lengths(values: U64) -> I64:
    """How often each value that is there twice or more is there."""
    values.sort()
    equal = np.flatnonzero(values[1:] == values[:-1])
    if not len(equal):
        return np.empty(0, np.int64)
    begins = np.flatnonzero(np.append(True, np.diff(equal) != 1))
    return np.diff(np.append(begins, len(equal))) + 1


def _pairs(sizes: I64) -> int:
    """Pairs within groups of these sizes."""
    return int((sizes * (sizes - 1) // 2).sum())


def _alike(heads: list[_Compared]) -> int:
    """Pairs that share their row under every head."""
    chosen = np.logical_and.reduce([head.collides for head in heads])
    rows = np.stack([head.rows[chosen] for head in heads], axis=1)
    # All heads agree on few: those of the first two come first.
    _, groups, sizes = np.unique(_joined(*heads[:2])[chosen[heads[0].collides & heads[1].collides]],
                                 return_inverse=True, return_counts=True)  # fmt: skip
    rows = rows[sizes[groups.reshape(-1)] > 1]
    return _pairs(np.unique(rows, axis=0, return_counts=True)[1]) if len(rows) else 0


def _named(spec: AddressSpec, counts: Counts, heavy: list[_Heavy], stage: Stage) -> tuple[SharedRow, ...]:
    if not heavy:
        return ()
    rows = {Row(row.layer_id, row.row) for row in heavy}
    with stage("naming n-grams", "n-grams") as progress:
        search = find_owners(spec, counts, rows, progress=progress)
    found = []
    for row in heavy:
        # Where heads share a table the row has other heads' n-grams too.
        owned = search.rows[Row(row.layer_id, row.row)]
        mine = tuple(o for o in owned.owners if (o.order, o.head) == (row.order, row.head))
        found.append(
            SharedRow(
                layer_id=row.layer_id,
                order=row.order,
                head=row.head,
                row=row.row,
                n_lookups=row.n_lookups,
                outweighed_lookups=row.outweighed,
                n_ngrams=len(mine),
                owned=Owned(owners=mine, n_lookups=row.n_lookups),
            )
        )
    return tuple(found)
