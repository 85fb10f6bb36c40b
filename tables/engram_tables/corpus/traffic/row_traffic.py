"""Row traffic: how often each row of a layer is hit by a run of tokens, how evenly, and how many n-grams share it.

Every order of every layer is counted by itself: its distinct keys first, then the rows of one head after the other.
Knows no file but the temporary one; `trace.py` writes hits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from engram_tables.address.spec import AddressSpec, LayerAddressing
from engram_tables.corpus.traffic import occupancy
from engram_tables.corpus.traffic.distinct_keys import KeyCounter, KeySource, room_for_all
from engram_tables.corpus.traffic.occupancy import Dispersion, Occupancy
from engram_tables.corpus.traffic.row_hits import Head, Histogram, HitsSink, RowCounter, RowCounts
from engram_tables.corpus.traffic.token_addresses import TokenAddresses
from engram_tables.corpus.traffic.traffic_kernels import WINDOW_ROWS
from engram_tables.errors import CapacityError
from engram_tables.memory import CACHE_LINE_BYTES, aligned_bytes
from engram_tables.threads import resolve_threads
from engram_tables.units import ProgressHook, format_bytes

MEMORY_BYTES = 1 << 30
PROCESS_BYTES = 256 << 20
"""Of the memory given, what the interpreter, the libraries, compiled kernels and a vocabulary take."""
HOTTEST = (0.001, 0.01, 0.1)
_LEAST_KEYS = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPlan:
    """How the memory is divided.

    Attributes
    ----------
    room_keys
        Keys sorted at once.
    room_rows
        Rows of a head counted at once.
    n_entries
        Weights that wait to be added at once.
    in_memory
        Whether all keys of an order fit at once; otherwise tokens are hashed in several passes, and distinct keys go to
        a temporary file of up to `most_spilled_bytes`, so that the keys' memory is free while rows are counted.
    """

    memory_bytes: int
    threads: int
    room_keys: int
    room_rows: int
    n_entries: int
    in_memory: bool
    most_spilled_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadTraffic:
    """The traffic of one head of one layer.

    Attributes
    ----------
    first_row, n_rows
        The head's rows, global within the layer.
    n_lookups, n_ngrams
        Rows read, and distinct keys behind them.
    n_touched, most_hits
        Rows hit at all, and the hits of the hottest.
    touched_expected
        Rows that as many distinct n-grams touch under a uniform hash.
    gini
        Of hits over all rows: 0 where all are hit alike, towards 1 where one takes all. None without a lookup.
    hottest
        For each share of `HOTTEST`, the share of lookups that so many of the head's rows take, rounded up to a row.
    by_hits, by_ngrams
        Rows by hits and by distinct n-grams.
    shared_lookups
        Lookups of rows that another n-gram of the sample owns too.
    n_ngrams_needed
        Distinct n-grams from which on chance leaves no row untouched.
    """

    layer_id: int
    order: int
    head: int
    first_row: int
    n_rows: int
    n_lookups: int
    n_ngrams: int
    n_touched: int
    most_hits: int
    touched_expected: Occupancy
    gini: float | None
    hottest: tuple[float | None, ...]
    by_hits: Histogram
    by_ngrams: Histogram
    shared_lookups: int
    dispersion: Dispersion | None
    n_ngrams_needed: int

    @property
    def n_untouched(self) -> int:
        """Rows that no lookup hit."""
        return self.n_rows - self.n_touched

    @property
    def shows_dead_rows(self) -> bool:
        """Whether the sample is so large that an untouched row is no matter of chance."""
        return self.n_ngrams >= self.n_ngrams_needed

    @property
    def shared_expected(self) -> float:
        """Share of n-grams whose row another one owns too, under a uniform hash."""
        return occupancy.shared_share(self.n_ngrams, self.n_rows)

    def sharing(self, most: int = 63) -> list[tuple[int, int, float]]:
        """(n-grams, rows, rows under a uniform hash), from 0 n-grams on; rows of `most` and more stand together."""
        last = min(most, int(self.by_ngrams.values[-1]))
        found = np.zeros(last + 1, np.int64)
        np.add.at(found, np.minimum(self.by_ngrams.values, last), self.by_ngrams.n_rows)
        expected = occupancy.rows_by_ngrams(self.n_ngrams, self.n_rows, last)
        if last == most:
            expected[-1] += max(0.0, self.n_rows - float(expected.sum()))
        return list(zip(range(last + 1), found.tolist(), expected.tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The traffic of all heads.

    Attributes
    ----------
    n_tokens, n_documents
        Of the run; dead tokens and empty documents are counted.
    n_dead
        Tokens that take no part and look nothing up.
    heads
        Layer by layer, column by column.
    n_passes
        The most times that the tokens were hashed for one order's keys.
    """

    spec: AddressSpec
    n_tokens: int
    n_documents: int
    n_dead: int
    heads: tuple[HeadTraffic, ...]
    plan: TrafficPlan
    n_passes: int

    @property
    def undecided(self) -> list[HeadTraffic]:
        """Heads of which the sample is too small to call an untouched row dead."""
        return [head for head in self.heads if head.n_untouched and not head.shows_dead_rows]


def heads_are_apart(layer: LayerAddressing) -> bool:
    """Whether each head has rows of its own."""
    moduli = [modulus for heads in layer.moduli for modulus in heads]
    ranges = sorted((offset, offset + modulus) for offset, modulus in zip(layer.offsets, moduli, strict=True))
    return all(before[1] <= after[0] for before, after in pairwise(ranges))


def plan_traffic(addresses: TokenAddresses, *, memory_bytes: int, threads: int | None = None) -> TrafficPlan:
    """Divide the memory.

    Raises
    ------
    CapacityError
        It is too little, with how much is needed.
    """
    n_threads = resolve_threads(threads)
    spec, n_tokens = addresses.spec, addresses.n_tokens
    item_bytes = 4 if n_tokens < 2**32 else 8
    largest = max(modulus for layer in spec.layers for heads in layer.moduli for modulus in heads)
    is_wide = spec.key_words > 1
    key_bytes = 8 + item_bytes + (4 if is_wide else 0)
    fixed = PROCESS_BYTES + KeyCounter.n_bytes(addresses, n_threads)
    least_rows = min(largest, WINDOW_ROWS)
    least_keys = max(min(n_tokens, _LEAST_KEYS), RowCounter.least_entries(least_rows, n_threads))
    least = fixed + 2 * item_bytes * least_rows + key_bytes * least_keys
    if memory_bytes < least:
        raise CapacityError(
            f"--memory {format_bytes(memory_bytes)}: found too little for {n_threads} threads, expected "
            f"{format_bytes(least)} or more; give more, or fewer --threads"
        )
    room = memory_bytes - fixed
    room_rows = max(least_rows, min(largest, room // 3 // (2 * item_bytes)))
    if room_rows < largest:
        room_rows = max(least_rows, room_rows // WINDOW_ROWS * WINDOW_ROWS)
    entries = RowCounter.least_entries(room_rows, n_threads)
    room -= 2 * item_bytes * room_rows
    most_spilled = n_tokens * (8 * spec.key_words + item_bytes)
    all_keys = room_for_all(spec, n_tokens)
    if all_keys * key_bytes + 8 * max(entries, n_tokens // 4) <= room:
        left = (room - all_keys * key_bytes) // 8
        return TrafficPlan(
            memory_bytes=memory_bytes, threads=n_threads, room_keys=all_keys, room_rows=room_rows,
            n_entries=min(left, entries + n_tokens), in_memory=True, most_spilled_bytes=0,
        )  # fmt: skip
    return TrafficPlan(
        memory_bytes=memory_bytes, threads=n_threads, room_keys=max(room // key_bytes, entries), room_rows=room_rows,
        n_entries=0, in_memory=False, most_spilled_bytes=most_spilled,
    )  # fmt: skip


def measure_traffic(
    addresses: TokenAddresses,
    *,
    memory_bytes: int = MEMORY_BYTES,
    threads: int | None = None,
    directory: Path | None = None,
    sink_for: Callable[[int, int], HitsSink] | None = None,
    progress: ProgressHook | None = None,
) -> Traffic:
    """Count the hits of every row and say how evenly they fall.

    Parameters
    ----------
    memory_bytes
        Bound of the process, as far as its other parts stay within `PROCESS_BYTES`. Never changes a result.
    directory
        Where a temporary file goes; the system's place by default.
    sink_for
        Called with layer id and column: what takes the hits of that head.
    progress
        Called with tokens done, over all that is to be done with them.

    Raises
    ------
    CapacityError
        Too little memory.
    InvalidInput
        A token id that the vocabulary or the spec does not have.
    """
    plan = plan_traffic(addresses, memory_bytes=memory_bytes, threads=threads)
    spec, n_tokens = addresses.spec, addresses.n_tokens
    ticks = _Ticks(progress, n_tokens)
    counter = KeyCounter(
        addresses, room_keys=plan.room_keys, threads=plan.threads, hold=plan.in_memory, directory=directory,
        add_progress=ticks.add,
    )  # fmt: skip
    sources = counter.sources()
    ticks.n_parts = 1 + 2 * len(sources)
    rows = RowCounter(room_rows=plan.room_rows, threads=plan.threads, counts_dtype=counter.counts_dtype)
    own_pages = aligned_bytes(8 * plan.n_entries, CACHE_LINE_BYTES).view(np.uint64)
    counter.size_partitions()
    found: dict[tuple[int, int], HeadTraffic] = {}
    n_passes, n_lookups = 0, 0
    for nth, source in enumerate(sources):
        ticks.begin(1 + 2 * nth, n_tokens * len(counter.passes(source)))
        n_passes = max(n_passes, len(counter.passes(source)))
        with counter.count(source) as distinct:
            heads = _heads(spec, source)
            n_lookups = distinct.n_total
            ticks.begin(2 + 2 * nth, distinct.n_distinct * len(heads))
            pages = own_pages if plan.in_memory else counter.spare
            for head in heads:
                where = head.layer.layer_id, head.column
                sink = None if sink_for is None else sink_for(*where)
                counts = rows.count(head, distinct, pages, sink=sink, add_progress=ticks.add)
                found[where] = head_traffic(head, counts, distinct.n_total, distinct.n_distinct)
    ticks.begin(ticks.n_parts, 1)
    return Traffic(
        spec=spec,
        n_tokens=n_tokens,
        n_documents=addresses.tokens.n_documents,
        n_dead=n_tokens - n_lookups,
        heads=tuple(found[layer.layer_id, column] for layer in spec.layers for column in range(spec.n_columns)),
        plan=plan,
        n_passes=n_passes,
    )


def _heads(spec: AddressSpec, source: KeySource) -> list[Head]:
    layers = spec.layers if source.layer_id is None else (spec.layer(source.layer_id),)
    columns = [column for column, (order, _) in enumerate(spec.columns) if order == source.order]
    return [Head(spec=spec, layer=layer, column=column) for layer in layers for column in columns]


def head_traffic(head: Head, counts: RowCounts, n_lookups: int, n_ngrams: int) -> HeadTraffic:
    """What the counters of a head say of its traffic: `n_lookups` of `n_ngrams` distinct keys."""
    hits, ngrams = counts.by_hits, counts.by_ngrams
    untouched = int(hits.n_rows[hits.values == 0].sum())
    squares = sum(int(value) ** 2 * int(rows) for value, rows in zip(ngrams.values, ngrams.n_rows, strict=True))
    return HeadTraffic(
        layer_id=head.layer.layer_id,
        order=head.order,
        head=head.spec.columns[head.column][1],
        first_row=head.layer.offsets[head.column],
        n_rows=head.modulus,
        n_lookups=n_lookups,
        n_ngrams=n_ngrams,
        n_touched=head.modulus - untouched,
        most_hits=int(hits.values[-1]),
        touched_expected=occupancy.touched_rows(n_ngrams, head.modulus),
        gini=gini(hits),
        hottest=tuple(hottest_share(hits, share) for share in HOTTEST),
        by_hits=hits,
        by_ngrams=ngrams,
        shared_lookups=counts.shared_hits,
        dispersion=occupancy.dispersion(squares, n_ngrams, head.modulus),
        n_ngrams_needed=occupancy.ngrams_needed(head.modulus),
    )


def gini(by_hits: Histogram) -> float | None:
    """Gini coefficient of hits over rows; None where nothing was hit.

    >>> gini(Histogram(np.array([0, 4]), np.array([3, 1])))
    0.75
    """
    n_rows, n_hits = int(by_hits.n_rows.sum()), int((by_hits.values * by_hits.n_rows).sum())
    if n_hits == 0:
        return None
    values, rows = by_hits.values.tolist(), by_hits.n_rows.tolist()
    # Rows of equal hits hold the ranks first + 1 … first + n, whose mean is first + (n + 1) / 2; doubled to stay whole.
    firsts = accumulate(rows, initial=0)
    ranked = sum(value * n * (2 * first + n + 1) for value, n, first in zip(values, rows, firsts, strict=False))
    excess: int = ranked - (n_rows + 1) * n_hits
    return excess / (n_rows * n_hits)


def hottest_share(by_hits: Histogram, share: float) -> float | None:
    """Share of the hits that the hottest `share` of the rows take, rounded up to a row; None where nothing was hit.

    >>> hottest_share(Histogram(np.array([0, 1, 6]), np.array([7, 2, 1])), 0.2)
    0.875
    """
    n_hits = int((by_hits.values * by_hits.n_rows).sum())
    if n_hits == 0:
        return None
    left, taken = math.ceil(int(by_hits.n_rows.sum()) * share), 0
    for value, n in zip(by_hits.values[::-1].tolist(), by_hits.n_rows[::-1].tolist(), strict=True):
        taken += value * min(n, left)
        left -= min(n, left)
        if left == 0:
            break
    return taken / n_hits


class _Ticks:
    """Progress over parts of equal weight, told as tokens."""

    def __init__(self, hook: ProgressHook | None, n_tokens: int) -> None:
        self.n_parts = 1
        self._hook = hook
        self._n_tokens = n_tokens
        self._part, self._done, self._total = 0, 0, n_tokens
        self._lock = threading.Lock()

    def begin(self, part: int, total: int) -> None:
        """Part number `part` begins, of `total` units."""
        with self._lock:
            self._part, self._done, self._total = part, 0, total
        self.add(0)

    def add(self, n: int) -> None:
        """`n` units more of this part are done."""
        if self._hook is None:
            return
        with self._lock:
            self._done += n
            share = (self._part + min(1.0, self._done / max(1, self._total))) / self.n_parts
            self._hook(min(self._n_tokens, int(share * self._n_tokens)), self._n_tokens)
