"""Tokens as accesses: a text's lookups, dealt to streams and put into steps as a server would ask for them.

A step is one fetch. Decoding, it has so many tokens of every stream; filling in a prompt, a chunk of one stream. Rows
are made step after step, so that no more than some steps' are ever there, and a sample is taken from them as they come.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engram_tables.address.hashing import hash_tokens
from engram_tables.address.spec import Addresses, AddressSpec
from engram_tables.address.vocabulary import Vocabulary
from engram_tables.corpus.traffic.token_addresses import TokenAddresses, TokenSource
from engram_tables.corpus.traffic.trace import Trace
from engram_tables.corpus.traffic.traffic_kernels import APART, DEAD_ID
from engram_tables.errors import InvalidInput
from engram_tables.measure.caches.accesses import MOST_CLASSES, Accesses
from engram_tables.measure.caches.sampling import Sampler
from engram_tables.measure.simulate import stream_kernels as kernels
from engram_tables.measure.simulate.units import Unit
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import ProgressHook

CHUNK_TOKENS = 1 << 16
SCHEDULE_BYTES = 17
"""Bytes of memory that a token takes in a schedule, at most."""
_GRAIN_TOKENS = 1 << 11
_MOST_GAP_TOKENS = 256
"""Between tokens of one step's stretch: hashing so many for nothing takes as long as a call of its own."""


class Lookups(Protocol):
    """Whatever tells the rows that each token of a text looks up.

    Attributes
    ----------
    document_starts
        int64 (n_documents + 1,): where each document starts, then n_tokens.
    dead
        int64 (n_dead,): positions that look nothing up, ascending.
    """

    spec: AddressSpec
    n_tokens: int
    document_starts: NDArray[np.int64]
    dead: NDArray[np.int64]

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """Of tokens start … stop - 1: int64 (tokens, layers, columns), global within their layer."""

    def addresses(self, start: int, stop: int) -> Addresses:
        """Rows and keys of tokens start … stop - 1; InvalidInput where keys are not known."""


class TraceLookups:
    """The lookups of a trace that was written."""

    def __init__(self, trace: Trace) -> None:
        self.spec, self.n_tokens = trace.spec, trace.n_tokens
        self.document_starts = np.asarray(trace.document_starts, np.int64)
        self.dead = np.asarray(trace.dead, np.int64)
        self._trace = trace

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """See `Lookups`; `InvalidInput` where the trace has rows that its spec has not."""
        rows = np.ascontiguousarray(self._trace.rows(start, stop))
        for nth, layer in enumerate(self.spec.layers):
            largest = int(rows[:, nth].max(initial=0))
            if largest >= layer.n_rows or int(rows[:, nth].min(initial=0)) < 0:
                raise InvalidInput(
                    f"trace: found row {largest} of layer {layer.layer_id} among tokens {start} to {stop - 1}, "
                    f"expected less than {layer.n_rows}; it is damaged: copy it again or trace again"
                )
        return rows

    def addresses(self, start: int, stop: int) -> Addresses:
        """See `Lookups`."""
        return Addresses(rows=self.rows(start, stop), keys=self._trace.keys(start, stop))


class TokenLookups:
    """The lookups of tokens, hashed whenever they are asked for.

    Raises
    ------
    InvalidInput
        Ids that the vocabulary does not have, or no vocabulary where one is needed.
    SpecMismatch
        Another vocabulary.
    """

    def __init__(
        self,
        spec: AddressSpec,
        tokens: TokenSource,
        vocabulary: Vocabulary | None,
        *,
        threads: int | None = None,
        progress: ProgressHook | None = None,
    ) -> None:
        self.spec, self.n_tokens = spec, tokens.n_tokens
        self._addresses = TokenAddresses(spec, tokens, vocabulary)
        self._buffers = self._addresses.buffers(CHUNK_TOKENS)
        self._threads = resolve_threads(threads)
        starts, dead = [], []
        for begin in range(0, self.n_tokens, CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, self.n_tokens)
            stream = tokens.read(begin, end)
            chunk = self._addresses.chunk(begin, end, self._buffers)
            starts.append(chunk.starts)
            dead.append(np.flatnonzero(stream.ids == DEAD_ID) + begin)
            if progress is not None:
                progress(end, self.n_tokens)
        self.document_starts = np.concatenate([*starts, [self.n_tokens]]).astype(np.int64)
        self.dead = np.concatenate([np.empty(0, np.int64), *dead])

    def rows(self, start: int, stop: int) -> NDArray[np.int64]:
        """See `Lookups`."""
        return self.addresses(start, stop).rows

    def addresses(self, start: int, stop: int) -> Addresses:
        """See `Lookups`."""
        rows: list[NDArray[np.int64]] = []
        keys: list[NDArray[Any]] = []
        for begin in range(start, stop, CHUNK_TOKENS):
            chunk = self._addresses.chunk(begin, min(begin + CHUNK_TOKENS, stop), self._buffers)
            found = hash_tokens(self.spec, chunk.ids, dead=chunk.ids == DEAD_ID, threads=self._threads)
            here = chunk.kinds != APART
            rows.append(found.rows[here])
            keys.append(found.keys[here])
        if len(rows) == 1:
            return Addresses(rows=rows[0], keys=keys[0])
        n_layers = len(self.spec.layers)
        no_rows = np.empty((0, n_layers, self.spec.n_columns), np.int64)
        no_keys = np.empty((0, n_layers, len(self.spec.orders)), self.spec.key_dtype)
        return Addresses(rows=np.concatenate([no_rows, *rows]), keys=np.concatenate([no_keys, *keys]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """How streams take turns.

    Attributes
    ----------
    n_streams
        Documents go, in their order, to the stream that is free first.
    tokens_a_turn
        Tokens of a stream before the next one has its turn.
    is_prefill
        Whether each turn is a step by itself (a chunk of a prompt), rather than one turn of every stream (decoding).
    """

    n_streams: int = 1
    tokens_a_turn: int = 1
    is_prefill: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.n_streams <= 65_536 or self.tokens_a_turn < 1:
            raise InvalidInput(
                f"streams: found {self.n_streams:,}, expected 1 to 65,536; choose another number"
                if self.tokens_a_turn >= 1
                else f"tokens of a batch or chunk: found {self.tokens_a_turn:,}, expected 1 or more; choose another"
            )

    @property
    def tokens_a_step(self) -> int:
        """Tokens of a step while every stream has some."""
        return self.tokens_a_turn * (1 if self.is_prefill else self.n_streams)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Groups:
    """Which of some groups each n-gram of a text is in.

    Attributes
    ----------
    of_ngrams
        uint8 (tokens, orders), below `n_groups`; the same in every layer.
    order_of_column
        int64 (columns,): the place of each column's order.
    """

    of_ngrams: NDArray[np.uint8]
    order_of_column: NDArray[np.int64]
    n_groups: int

    def divide(self, classes: NDArray[np.uint8], tokens: NDArray[np.int64], shape: tuple[int, ...]) -> None:
        """Make classes of rows, (tokens x layers x columns,), classes of groups, in place."""
        of_rows = self.of_ngrams[tokens][:, self.order_of_column]
        found = classes.reshape(len(tokens), *shape)
        found *= np.uint8(self.n_groups)
        found += of_rows[:, None, :]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Schedule:
    """When each token is fetched.

    Attributes
    ----------
    order
        int64 (n,): the tokens that look something up, as they are fetched.
    step_starts
        int64 (steps + 1,): where in `order` each step begins, then n.
    """

    order: NDArray[np.int64]
    step_starts: NDArray[np.int64]

    @property
    def n_steps(self) -> int:
        """Fetches."""
        return self.step_starts.size - 1

    def first_step_from(self, share: float) -> int:
        """The first step that begins with `share` of the tokens done, or after; `n_steps` if none does."""
        return int(np.searchsorted(self.step_starts[:-1], share * self.order.size))


def schedule(lookups: Lookups, turns: Turns) -> Schedule:
    """Deal documents to streams, and let these take turns; the same for the same text, always.

    Notes
    -----
    `SCHEDULE_BYTES` a token.
    """
    starts = lookups.document_starts
    is_dead = np.zeros(lookups.n_tokens, np.bool_)
    is_dead[lookups.dead] = True
    n_live = np.diff(starts) - np.diff(np.searchsorted(lookups.dead, starts))
    streams = np.zeros(n_live.size, np.int64)
    if turns.n_streams > 1:
        kernels.assign_documents(n_live.astype(np.int64), turns.n_streams, streams)
    documents = np.argsort(streams, kind="stable").astype(np.int64)
    bounds = np.searchsorted(streams[documents], np.arange(turns.n_streams + 1)).astype(np.int64)
    order = np.empty(lookups.n_tokens - lookups.dead.size, np.int64)
    step_starts = np.empty(order.size + 1, np.int64)
    n_steps = kernels.interleave(
        starts, documents, bounds, turns.tokens_a_turn, turns.is_prefill, is_dead, order, step_starts
    )
    return Schedule(order=order, step_starts=step_starts[: int(n_steps) + 1].copy())


def classes_of(spec: AddressSpec) -> tuple[NDArray[np.uint8], list[tuple[int, int]]]:
    """Classes of accesses: uint8 (layers, columns), and each class's layer id and order.

    Raises
    ------
    InvalidInput
        More layers times orders than there are classes.
    """
    named = [(layer_id, order) for layer_id in spec.layer_ids for order in spec.orders]
    if len(named) > MOST_CLASSES:
        raise InvalidInput(
            f"spec {spec.name}: found {len(named)} pairs of layer and order, expected {MOST_CLASSES} at most; "
            "simulate some layers of it"
        )
    of_order = np.array([spec.orders.index(order) for order, _ in spec.columns])
    found = np.arange(len(spec.layers))[:, None] * len(spec.orders) + of_order[None, :]
    return found.astype(np.uint8), named


def accesses_of(
    lookups: Lookups,
    planned: Schedule,
    unit: Unit,
    *,
    rate: float = 1.0,
    first_steady_step: int = 0,
    groups: Groups | None = None,
    threads: int | None = None,
    progress: ProgressHook | None = None,
) -> Accesses:
    """The accesses of a schedule.

    Parameters
    ----------
    rate
        The share of the items to keep; a sample is taken as the accesses are made, which are never all there.
    first_steady_step
        Of the schedule; a sample remembers what the whole has before and after.
    groups
        Parts of every class, which are counted apart: class c becomes c * n_groups, and the group of its n-gram on
        top. Rows alone have them.
    progress
        Called with tokens.

    Notes
    -----
    Nine bytes an access that is kept, twice that for a sample, beside `SCHEDULE_BYTES` a token of the schedule.
    """
    of_column, named = classes_of(lookups.spec)
    n_classes = _n_classes(len(named), groups)
    made = _Making(lookups, planned, unit, of_column, groups, resolve_threads(threads))
    sampler = Sampler(rate=rate, n_items=unit.n_items, n_classes=n_classes, first_steady_step=first_steady_step)
    # Memory that is never written is never taken: pages a row are few on average, and here it is their bound.
    most = planned.order.size * of_column.size * unit.most_items_a_row if rate == 1 else 0
    items, classes = np.empty(most, np.uint64), np.empty(most, np.uint8)
    starts, n_made = [np.zeros(1, np.int64)], 0
    for first, stop in _windows(planned.step_starts):
        part = made.steps(first, stop)
        if rate == 1:
            end = n_made + part[0].size
            items[n_made:end], classes[n_made:end] = part[0], part[1]
            starts.append(part[2][1:] + n_made)
            n_made = end
        else:
            sampler.add(*part)
        if progress is not None:
            progress(int(planned.step_starts[stop]), planned.order.size)
    if rate != 1:
        return sampler.accesses()
    return Accesses(
        items=items[:n_made], classes=classes[:n_made], step_starts=np.concatenate(starts), n_items=unit.n_items,
        n_classes=n_classes, step_tokens=np.diff(planned.step_starts),
    )  # fmt: skip


def _n_classes(n_named: int, groups: Groups | None) -> int:
    n_groups = 1 if groups is None else groups.n_groups
    if n_named * n_groups > MOST_CLASSES:
        raise InvalidInput(
            f"bundle budgets: found {n_groups - 1} for {n_named} pairs of layer and order, expected "
            f"{MOST_CLASSES // n_named - 1} at most; give fewer"
        )
    return n_named * n_groups


def _windows(step_starts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of steps with `CHUNK_TOKENS` tokens or one step each."""
    first, n_steps = 0, step_starts.size - 1
    while first < n_steps:
        at = int(np.searchsorted(step_starts, step_starts[first] + CHUNK_TOKENS, side="right")) - 1
        stop = min(max(at, first + 1), n_steps)
        yield first, stop
        first = stop


class _Making:
    """Makes the accesses of some steps after the other."""

    def __init__(
        self, lookups: Lookups, planned: Schedule, unit: Unit, classes_of: NDArray[np.uint8], groups: Groups | None,
        threads: int,
    ) -> None:  # fmt: skip
        self._lookups, self._planned, self._unit = lookups, planned, unit
        self._classes_of, self._groups, self._threads = classes_of, groups, threads

    def steps(self, first: int, stop: int) -> tuple[NDArray[np.uint64], NDArray[np.uint8], NDArray[np.int64]]:
        """Items, classes and step starts of steps first … stop - 1."""
        step_starts = self._planned.step_starts[first : stop + 1]
        tokens = self._planned.order[step_starts[0] : step_starts[-1]]
        rows, places = self._rows(tokens)
        arrays, n = self._unit.arrays, tokens.size
        bounds = np.zeros(n + 1, np.int64)
        if arrays.is_page:
            self._slices(lambda a, b: kernels.count_pages(rows, places, a, b, arrays, bounds), n)
        else:
            bounds[1:] = self._classes_of.size
        np.cumsum(bounds, out=bounds)
        items, classes = np.empty(int(bounds[-1]), np.uint64), np.empty(int(bounds[-1]), np.uint8)
        of = self._classes_of
        if arrays.is_page:
            self._slices(lambda a, b: kernels.place_pages(rows, places, a, b, arrays, of, bounds, items, classes), n)
        else:
            self._slices(lambda a, b: kernels.place_rows(rows, places, a, b, arrays, of, items, classes), n)
            if self._groups is not None:
                self._groups.divide(classes, tokens, of.shape)
        return items, classes, bounds[step_starts - step_starts[0]]

    def _rows(self, tokens: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of stretches that hold the tokens, and where among them each token is."""
        by_position = np.sort(tokens)
        breaks = np.flatnonzero(np.diff(by_position) > _MOST_GAP_TOKENS) + 1
        firsts = by_position[np.concatenate([[0], breaks])]
        stops = by_position[np.concatenate([breaks - 1, [-1]])] + 1
        found = [self._lookups.rows(int(a), int(b)) for a, b in zip(firsts, stops, strict=True)]
        begins = np.concatenate([[0], np.cumsum(stops - firsts)[:-1]])
        stretch = np.searchsorted(firsts, tokens, side="right") - 1
        places = begins[stretch] + tokens - firsts[stretch]
        return found[0] if len(found) == 1 else np.concatenate(found), places

    def _slices(self, function: Callable[[int, int], None], n_tokens: int) -> None:
        run_slices(function, n_tokens, threads=self._threads, grain=_GRAIN_TOKENS)
