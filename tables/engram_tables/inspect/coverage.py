"""Which rows a corpus touches, head by head, against a uniform hash; and whether the sample can tell.

The counting is `corpus.traffic`'s, of a token stream or of counts; here a head is judged by it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.traffic.distinct_keys import DistinctKeys
from engram_tables.corpus.traffic.row_hits import Head, HitsSink, RowCounter
from engram_tables.corpus.traffic.row_traffic import HeadTraffic, head_traffic, measure_traffic
from engram_tables.corpus.traffic.token_addresses import TokenAddresses
from engram_tables.inspect.chance import DEVIATIONS, NO_CHANCE, chance_of_so_many
from engram_tables.inspect.counted_keys import check_ids, check_memory, chosen_layers, chosen_orders, read_keys
from engram_tables.memory import CACHE_LINE_BYTES, aligned_bytes
from engram_tables.threads import resolve_threads
from engram_tables.units import ProgressHook, Stage, unwatched

if TYPE_CHECKING:
    from engram_tables.address.spec import AddressSpec
    from engram_tables.corpus.counts.counts_store import Counts

MEMORY_BYTES = 4 << 30
_LEAST_TOUCHED = 40
"""Rows that all lie a stride of 2 or more apart by chance: fewer than one sample in 10^11."""

U64 = npt.NDArray[np.uint64]


class Evenness(StrEnum):
    """What a sample says of a head."""

    EVEN = "even"
    """As a uniform hash would."""
    CONFINED = "confined"
    """Every row that is hit lies a whole multiple of a stride from the others: the rest cannot be reached."""
    CROWDED = "crowded"
    """Fewer rows hold the n-grams than chance would have it, or hold them less evenly."""
    SPREAD = "spread"
    """More evenly than chance, as where ids are rows."""
    UNKNOWN = "too few"
    """Too few n-grams to tell a head that reaches half of its rows from one that reaches all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadCoverage:
    """One head.

    Attributes
    ----------
    traffic
        What was counted, and what a uniform hash would have given.
    stride
        Greatest common divisor of the distances between rows that are hit; None below two of them. 1 is as it should
        be.
    collisions, collisions_expected
        Pairs of n-grams that share a row, and how many a uniform hash would have made share one.
    """

    traffic: HeadTraffic
    stride: int | None
    collisions: int
    collisions_expected: float
    evenness: Evenness

    @property
    def touched_z(self) -> float | None:
        """Deviations from the rows that a uniform hash touches."""
        return self.traffic.touched_expected.z_score(self.traffic.n_touched)


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """All heads that were looked at, layer by layer, column by column.

    Attributes
    ----------
    basis
        `tokens` or `counts`. Counts hold the n-grams that lie whole within a document (with `--pad-token`, also those
        that begin before it); of tokens, every token looks up every order.
    n_tokens
        That were counted, dead ones left out.
    """

    basis: str
    n_tokens: int
    heads: tuple[HeadCoverage, ...]

    def of(self, *, layer_ids: Sequence[int] | None = None, orders: Sequence[int] | None = None) -> Coverage:
        """The heads of some layers and orders alone; None is all of them."""
        chosen = tuple(
            head
            for head in self.heads
            if (layer_ids is None or head.traffic.layer_id in layer_ids)
            and (orders is None or head.traffic.order in orders)
        )
        return replace(self, heads=chosen)

    @property
    def faults(self) -> list[HeadCoverage]:
        """Heads that do not spread n-grams as a uniform hash does."""
        return [head for head in self.heads if head.evenness in (Evenness.CONFINED, Evenness.CROWDED)]

    @property
    def undecided(self) -> list[HeadCoverage]:
        """Heads of which the sample says nothing."""
        return [head for head in self.heads if head.evenness is Evenness.UNKNOWN]


def coverage_of_tokens(
    addresses: TokenAddresses,
    *,
    memory_bytes: int = MEMORY_BYTES,
    threads: int | None = None,
    directory: Path | None = None,
    stage: Stage = unwatched,
) -> Coverage:
    """Coverage by a run of tokens; parameters and errors are those of `measure_traffic`."""
    strides: dict[tuple[int, int], _Stride] = {}

    def sink_for(layer_id: int, column: int) -> HitsSink:
        strides[layer_id, column] = _Stride()
        return strides[layer_id, column].add

    with stage("counting", "tokens") as progress:
        found = measure_traffic(
            addresses, memory_bytes=memory_bytes, threads=threads, directory=directory, sink_for=sink_for,
            progress=progress,
        )  # fmt: skip
    heads = zip(found.heads, (strides[key] for key in _columns(addresses.spec)), strict=True)
    judged = tuple(_judge(traffic, stride) for traffic, stride in heads)
    return Coverage(basis="tokens", n_tokens=found.n_tokens - found.n_dead, heads=judged)


def coverage_of_counts(
    spec: AddressSpec,
    counts: Counts,
    *,
    layer_ids: Sequence[int] | None = None,
    orders: Sequence[int] | None = None,
    memory_bytes: int = MEMORY_BYTES,
    threads: int | None = None,
    stage: Stage = unwatched,
) -> Coverage:
    """Coverage by counted n-grams.

    Parameters
    ----------
    layer_ids, orders
        All of the spec's, and of those all that were counted, by default.

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
    Cost: the counts of each order are read once a layer; then 8 bytes a distinct key and head go through the cache
    (`row_hits`).
    """
    check_ids(spec, counts)
    wanted, layers = chosen_orders(spec, counts, orders), chosen_layers(spec, layer_ids)
    check_memory(spec, counts, wanted, row_bytes=16, memory_bytes=memory_bytes)
    heads: dict[tuple[int, int], HeadCoverage] = {}
    n_ngrams = len(layers) * sum(counts.n_distinct(order) for order in wanted)
    with stage("hashing", "n-grams") as progress:
        ticks = _Ticks(progress, n_ngrams)
        for layer_id in layers:
            for order in wanted:
                for column, head in _count_order(spec, counts, layer_id, order, threads, ticks):
                    heads[layer_id, column] = head
    judged = tuple(heads[key] for key in _columns(spec) if key in heads)
    return Coverage(basis="counts", n_tokens=counts.total_tokens, heads=judged)


def _columns(spec: AddressSpec) -> list[tuple[int, int]]:
    return [(layer_id, column) for layer_id in spec.layer_ids for column in range(spec.n_columns)]


def _count_order(
    spec: AddressSpec, counts: Counts, layer_id: int, order: int, threads: int | None, ticks: _Ticks
) -> Iterator[tuple[int, HeadCoverage]]:
    found = read_keys(spec, counts, layer_id, order, add_progress=ticks.add)
    columns = [column for column, (o, _) in enumerate(spec.columns) if o == order]
    largest = max(Head(spec=spec, layer=spec.layer(layer_id), column=column).modulus for column in columns)
    dtype = np.dtype(np.uint32 if found.n_lookups < 2**32 else np.uint64)
    n_threads = resolve_threads(threads)
    distinct = DistinctKeys(spec.key_words, dtype)
    distinct.hold(found.keys.reshape(-1), found.counts.astype(dtype), [(0, len(found.keys))])
    distinct.n_total = found.n_lookups
    n_entries = RowCounter.least_entries(largest, n_threads) + len(found.keys)
    pages = aligned_bytes(8 * n_entries, CACHE_LINE_BYTES).view(np.uint64)
    counter = RowCounter(room_rows=largest, threads=n_threads, counts_dtype=dtype)
    for column in columns:
        head, stride = Head(spec=spec, layer=spec.layer(layer_id), column=column), _Stride()
        rows = counter.count(head, distinct, pages, sink=stride.add)
        yield column, _judge(head_traffic(head, rows, found.n_lookups, len(found.keys)), stride)


class _Stride:
    """Greatest common divisor of the distances between rows that are hit, from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._first: int | None = None
        self._stride = 0

    def add(self, first_row: int, hits: npt.NDArray[Any]) -> None:
        """Take the hits of the rows from `first_row` on."""
        if self._stride == 1:
            return
        rows = np.flatnonzero(hits) + first_row
        if not len(rows):
            return
        within = int(np.gcd.reduce(np.diff(rows))) if len(rows) > 1 else 0
        with self._lock:
            self._first = int(rows[0]) if self._first is None else self._first
            self._stride = int(np.gcd(np.gcd(self._stride, within), abs(int(rows[0]) - self._first)))

    @property
    def found(self) -> int | None:
        """None below two rows."""
        return self._stride or None


class _Ticks:
    def __init__(self, progress: ProgressHook, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def add(self, n: int) -> None:
        self._done += n
        self._progress(self._done, self._total)


def _judge(traffic: HeadTraffic, stride: _Stride) -> HeadCoverage:
    n, m = traffic.n_ngrams, traffic.n_rows
    by_ngrams = zip(traffic.by_ngrams.values.tolist(), traffic.by_ngrams.n_rows.tolist(), strict=True)
    collisions = sum(value * (value - 1) // 2 * rows for value, rows in by_ngrams)
    expected = n * (n - 1) / 2 / m
    return HeadCoverage(
        traffic=traffic,
        stride=stride.found,
        collisions=collisions,
        collisions_expected=expected,
        evenness=_evenness(traffic, stride.found, collisions, expected),
    )


def _evenness(traffic: HeadTraffic, stride: int | None, collisions: int, expected: float) -> Evenness:
    if stride is not None and stride > 1 and traffic.n_touched >= _LEAST_TOUCHED:
        return Evenness.CONFINED
    # Half of the rows mean twice the collisions, so `expected` more: that many deviations are its square root.
    if expected < DEVIATIONS**2:
        return Evenness.CROWDED if chance_of_so_many(collisions, expected) < NO_CHANCE else Evenness.UNKNOWN
    touched = traffic.touched_expected.z_score(traffic.n_touched) or 0.0
    dispersion = (None if traffic.dispersion is None else traffic.dispersion.z_score) or 0.0
    if touched < -DEVIATIONS or dispersion > DEVIATIONS:
        return Evenness.CROWDED
    return Evenness.SPREAD if touched > DEVIATIONS or dispersion < -DEVIATIONS else Evenness.EVEN
