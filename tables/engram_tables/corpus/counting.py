"""Exact counts of the n-grams of a stream of canonical ids, in memory, several orders at once.

Owns the counting and its result. Knows no text, no vocabulary and no file.

Every position gives one key: its window, oldest token first. Keys are scattered into partitions by leading token,
each partition is sorted, and one order after the other is read off the sorted keys, since an n-gram is a prefix of
the window that starts with it. A partition stays inside an aligned block of leading tokens whose common high bits
need not be stored, so that 64 bits name a longer window exactly.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from engram_tables.corpus import kernels
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import ProgressHook

MAX_ORDER = 5
MAX_CANONICAL_SIZE = 2**20
PARTITION_KEYS = 65_536
"""Keys a partition aims at: 512 KiB, which sorts inside a core's own cache."""
CHUNK_TOKENS = 1 << 22
"""Tokens a thread takes through a pass before it looks whether it should stop."""

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True, kw_only=True)
class NgramCounts:
    """The distinct n-grams of one order and how often each occurs.

    Attributes
    ----------
    order
        Tokens in each n-gram.
    columns
        uint32 (order, n_distinct), C-contiguous: canonical ids, oldest token in row 0. The n-grams are distinct and
        ascend, compared from the oldest token to the newest.
    counts
        uint64 (n_distinct,), each at least 1.
    """

    order: int
    columns: U32
    counts: U64

    @property
    def ngrams(self) -> U32:
        """uint32 (n_distinct, order): a view of `columns`, one n-gram a row, oldest token first."""
        return self.columns.T

    @property
    def n_distinct(self) -> int:
        """Number of distinct n-grams."""
        return len(self.counts)

    @property
    def n_total(self) -> int:
        """Number of n-grams, each occurrence counted."""
        return int(self.counts.sum())

    def top(self, k: int) -> I64:
        """Positions of the `k` largest counts, largest first; equal counts in the order of their n-grams."""
        best = np.empty(0, dtype=np.int64)
        for start in range(0, self.n_distinct, CHUNK_TOKENS):
            block = np.arange(start, min(start + CHUNK_TOKENS, self.n_distinct), dtype=np.int64)
            best = _largest(np.concatenate([best, block]), self.counts, k)
        return best


def _largest(candidates: I64, counts: U64, k: int) -> I64:
    """The `k` of the ascending positions `candidates` whose counts are largest."""
    values = counts[candidates]
    if k < len(values):
        threshold = np.partition(values, len(values) - k)[len(values) - k] if k else np.uint64(2**64 - 1)
        candidates = candidates[values >= threshold]
        values = counts[candidates]
    # Counts pass no 2^63, so the sign change is exact; stable keeps equal counts in the order of their n-grams.
    return candidates[np.argsort(-values.astype(np.int64), kind="stable")][:k]


class Workspace:
    """A buffer that counting reuses, for callers that count again and again: fresh memory is slow to touch first."""

    def __init__(self) -> None:
        self._keys = np.empty(0, dtype=np.uint64)

    def keys(self, n_keys: int) -> U64:
        """uint64 (n_keys,), undefined content; the same memory as in the call before if it is large enough."""
        if len(self._keys) < n_keys:
            self._keys = np.empty(0, dtype=np.uint64)
            self._keys = _aligned(n_keys)
        return self._keys[:n_keys]


def _aligned(n_words: int) -> U64:
    """uint64 (n_words,), undefined content, on a 64-byte boundary."""
    memory = np.empty(n_words + kernels.LINE_KEYS, dtype=np.uint64)
    offset = -memory.ctypes.data % 64 // 8
    return memory[offset : offset + n_words]


def check_orders(orders: Sequence[int], canonical_size: int) -> tuple[int, ...]:
    """`orders` ascending, if they can be counted over a vocabulary of `canonical_size`.

    Raises
    ------
    InvalidInput
        No order, a repeated one, or one below 1.
    CapacityError
        The vocabulary has more than 2^20 ids, an order is above 5, or the window does not fit a key.
    """
    found = tuple(sorted(orders))
    if not found or found[0] < 1 or len(set(found)) != len(found):
        raise InvalidInput(f"orders: found {list(orders)}, expected distinct numbers from 1 to {MAX_ORDER}")
    if not 1 <= canonical_size <= MAX_CANONICAL_SIZE:
        raise CapacityError(
            f"canonical size {canonical_size:,}: exact counting takes 1 to {MAX_CANONICAL_SIZE:,} ids; "
            "use a vocabulary whose rule folds or renumbers its tokens"
        )
    key_bits = (found[-1] - 1) * canonical_size.bit_length()
    if found[-1] > MAX_ORDER or key_bits >= 64:
        largest = min(MAX_ORDER, 63 // canonical_size.bit_length() + 1)
        raise CapacityError(
            f"order {found[-1]} over {canonical_size:,} canonical ids: {found[-1] - 1} tokens of "
            f"{canonical_size.bit_length()} bits after the first make {key_bits} bits, and a key holds 63; "
            f"count orders up to {largest}"
        )
    return found


def count_ngrams(
    ids: npt.ArrayLike,
    document_starts: npt.ArrayLike,
    *,
    orders: Sequence[int],
    canonical_size: int,
    threads: int | None = None,
    progress: ProgressHook | None = None,
    workspace: Workspace | None = None,
) -> dict[int, NgramCounts]:
    """Exact counts of all n-grams that lie wholly inside one document.

    Parameters
    ----------
    ids
        uint32 (n_tokens,): canonical ids below `canonical_size`.
    document_starts
        int64 (n_documents + 1,): where each document starts in `ids`, then n_tokens; equal neighbours make an empty
        document.
    orders
        The n to count, any subset of 1 to 5 whose window fits a key (see `check_orders`).
    canonical_size
        Bound of the ids.
    threads
        Worker threads; never changes the result.
    progress
        Called with tokens; each of the three passes moves it by a third.
    workspace
        Reused between calls if given; the results never lie in it.

    Returns
    -------
    `NgramCounts` by order. Memory: 8 bytes a token while counting, and (4 x order + 8) bytes a distinct n-gram.

    Raises
    ------
    InvalidInput
        An id out of range, with its position, or document starts that do not cover `ids`.
    CapacityError
        See `check_orders`.
    """
    wanted = check_orders(orders, canonical_size)
    stream = np.ascontiguousarray(ids, dtype=np.uint32)
    starts = np.ascontiguousarray(document_starts, dtype=np.int64)
    _check_stream(stream, starts, canonical_size)
    job = _Job(
        ids=stream,
        document_starts=starts,
        order=wanted[-1],
        token_bits=canonical_size.bit_length(),
        canonical_size=canonical_size,
        threads=resolve_threads(threads),
        ticks=_Ticks(progress, len(stream)),
    )
    return job.count(wanted, workspace or Workspace())


class _Partitions(NamedTuple):
    """Ranges of leading tokens, none empty: partition p holds keys key_starts[p] to key_starts[p + 1]."""

    key_starts: I64
    leading: I64
    """The first token's high bits, which keys do not hold."""
    first_token: I64
    of_token: U32


class _Stretch:
    """Scratch of one thread while it unpacks a stretch of PARTITION_KEYS sorted keys."""

    def __init__(self) -> None:
        self.windows = np.empty(PARTITION_KEYS + 1, dtype=np.uint64)
        self.ends = np.empty(PARTITION_KEYS + 1, dtype=np.int64)
        self.block = np.empty((2, kernels.BLOCK_KEYS + 1), dtype=np.uint64)


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One call of `count_ngrams`, validated."""

    ids: U32
    document_starts: I64
    order: int
    token_bits: int
    canonical_size: int
    threads: int
    ticks: _Ticks

    @cached_property
    def slices(self) -> list[tuple[int, int]]:
        """One near-equal range of positions a thread."""
        bounds = [len(self.ids) * k // self.threads for k in range(self.threads + 1)]
        return list(itertools.pairwise(bounds))

    def count(self, orders: tuple[int, ...], workspace: Workspace) -> dict[int, NgramCounts]:
        histograms = self.histograms()
        found = {1: _single_tokens(histograms.sum(axis=0))} if orders[0] == 1 else {}
        longer = [order for order in orders if order > 1]
        if longer and not len(self.ids):
            found |= {order: _no_ngrams(order) for order in longer}
        elif longer:
            partitions = self.partition(histograms.sum(axis=0))
            keys = workspace.keys(len(self.ids))
            self.scatter(histograms, partitions, keys)
            rows = self.sort(partitions, keys, longer)
            found |= self.emit(partitions, keys, longer, rows)
        return found

    def histograms(self) -> I64:
        """int64 (threads, canonical_size): occurrences of each id in each thread's slice."""
        histograms = np.zeros((len(self.slices), self.canonical_size), dtype=np.int64)

        def add(item: tuple[int, tuple[int, int]]) -> None:
            worker, (start, stop) = item
            for first in range(start, stop, CHUNK_TOKENS):
                kernels.add_histogram(self.ids[first : min(first + CHUNK_TOKENS, stop)], histograms[worker])

        _run_all(add, enumerate(self.slices), threads=self.threads)
        return histograms

    def partition(self, occurrences: I64) -> _Partitions:
        """Cut the leading tokens into ranges of about PARTITION_KEYS keys, inside aligned blocks."""
        free_bits = min(64 - (self.order - 1) * self.token_bits, self.token_bits)
        tokens = np.flatnonzero(occurrences)
        ends = np.cumsum(occurrences[tokens])
        key_starts = np.concatenate([[0], ends])
        # A new partition begins where the keys before pass a multiple of PARTITION_KEYS or a block begins.
        passed, block = key_starts[:-1] // PARTITION_KEYS, tokens >> free_bits
        begins = np.ones(len(tokens), dtype=bool)
        begins[1:] = (passed[1:] != passed[:-1]) | (block[1:] != block[:-1])
        of_token = np.zeros(self.canonical_size, dtype=np.uint32)
        of_token[tokens] = np.cumsum(begins) - 1
        return _Partitions(
            key_starts=np.append(key_starts[:-1][begins], len(self.ids)),
            leading=block[begins] << free_bits,
            first_token=tokens[begins],
            of_token=of_token,
        )

    def scatter(self, histograms: I64, partitions: _Partitions, keys: U64) -> None:
        """Write every position's key into its partition; each thread has its own part of each partition."""
        per_thread = np.add.reduceat(histograms, partitions.first_token, axis=1)
        first_place = (np.cumsum(per_thread, axis=0) - per_thread + partitions.key_starts[:-1]).astype(np.uint64)

        def fill(item: tuple[int, tuple[int, int]]) -> None:
            worker, (start, stop) = item
            first, cursors = first_place[worker], first_place[worker].copy()
            lines = _aligned(len(first) * kernels.LINE_KEYS)
            for begin in range(start, stop, CHUNK_TOKENS):
                end = min(begin + CHUNK_TOKENS, stop)
                kernels.scatter_keys(
                    self.ids, self.document_starts, begin, end, self.order, self.token_bits,
                    partitions.of_token, first, cursors, lines, keys,
                )  # fmt: skip
                self.ticks.add(end - begin)
            kernels.flush_keys(first, cursors, lines, keys)

        _run_all(fill, enumerate(self.slices), threads=self.threads)

    def sort(self, partitions: _Partitions, keys: U64, orders: list[int]) -> I64:
        """Sort each partition; int64 (n_partitions + 1, n_orders): the row at which its n-grams of an order begin."""
        rows = np.zeros((len(partitions.leading) + 1, len(orders)), dtype=np.int64)
        wanted = np.array(orders, dtype=np.int64)

        def sort_one(partition: int) -> None:
            mine = keys[partitions.key_starts[partition] : partitions.key_starts[partition + 1]]
            mine.sort()
            kernels.count_distinct(mine, self.order, self.token_bits, wanted, rows[partition + 1])
            self.ticks.add(len(mine))

        _run_all(sort_one, _largest_first(partitions), threads=self.threads)
        return np.cumsum(rows, axis=0)

    def emit(self, partitions: _Partitions, keys: U64, orders: list[int], rows: I64) -> dict[int, NgramCounts]:
        """Allocate the results exactly and unpack every partition into its rows."""
        found = {
            n: NgramCounts(
                order=n,
                columns=np.empty((n, rows[-1, column]), dtype=np.uint32),
                counts=np.empty(rows[-1, column], dtype=np.uint64),
            )
            for column, n in enumerate(orders)
        }
        scratch = threading.local()

        def emit_one(partition: int) -> None:
            if not hasattr(scratch, "stretch"):
                scratch.stretch = _Stretch()
            mine = keys[partitions.key_starts[partition] : partitions.key_starts[partition + 1]]
            results = [(found[n], int(row)) for n, row in zip(orders, rows[partition], strict=True)]
            self.emit_partition(mine, int(partitions.leading[partition]), results, scratch.stretch)
            self.ticks.add(len(mine))

        _run_all(emit_one, _largest_first(partitions), threads=self.threads)
        return found

    def emit_partition(
        self, keys: U64, leading: int, results: list[tuple[NgramCounts, int]], stretch: _Stretch
    ) -> None:
        """Unpack one partition's sorted keys into each result, from the row beside it on."""
        rows = [row for _, row in results]
        run_starts = [0] * len(results)
        for start in range(0, len(keys), PARTITION_KEYS):
            stop = min(start + PARTITION_KEYS, len(keys))
            n_windows = int(kernels.compact_windows(keys, start, stop, stretch.windows, stretch.ends))
            for which, (result, _) in enumerate(results):
                row, run_start = kernels.emit_runs(
                    stretch.windows, stretch.ends, n_windows, stop == len(keys), run_starts[which], leading,
                    self.order, result.order, self.token_bits, result.columns, result.counts, rows[which],
                    stretch.block,
                )  # fmt: skip
                rows[which], run_starts[which] = int(row), int(run_start)


def _single_tokens(occurrences: I64) -> NgramCounts:
    present = np.flatnonzero(occurrences)
    return NgramCounts(
        order=1, columns=present.astype(np.uint32)[None, :], counts=occurrences[present].astype(np.uint64)
    )


def _no_ngrams(order: int) -> NgramCounts:
    return NgramCounts(order=order, columns=np.empty((order, 0), dtype=np.uint32), counts=np.empty(0, dtype=np.uint64))


def _largest_first(partitions: _Partitions) -> list[int]:
    """Partitions by falling size, so that the last ones to finish are short."""
    n_keys = np.diff(partitions.key_starts)
    order: list[int] = np.argsort(-n_keys, kind="stable").tolist()
    return order


def _run_all(function: Callable[[_Item], None], items: Iterable[_Item], *, threads: int) -> None:
    """Call `function` on every item, threads taking the next one as they come free; an error or Ctrl-C stops all."""
    shared = iter(items)
    lock = threading.Lock()
    stopped = threading.Event()

    def work(_start: int, _stop: int) -> None:
        try:
            while not stopped.is_set():
                with lock:
                    item = next(shared, None)
                if item is None:
                    return
                function(item)
        except BaseException:
            stopped.set()
            raise

    try:
        run_slices(work, threads, threads=threads, grain=1)
    except BaseException:
        stopped.set()
        raise


class _Ticks:
    """Progress over three passes, told as tokens."""

    PASSES = 3

    def __init__(self, hook: ProgressHook | None, n_tokens: int) -> None:
        self._hook = hook
        self._n_tokens = n_tokens
        self._done = 0
        self._lock = threading.Lock()

    def add(self, n_tokens: int) -> None:
        """One pass has done `n_tokens` more."""
        if self._hook is None:
            return
        with self._lock:
            self._done += n_tokens
            self._hook(self._done // self.PASSES, self._n_tokens)


def _check_stream(ids: U32, document_starts: I64, canonical_size: int) -> None:
    if ids.ndim != 1 or document_starts.ndim != 1 or len(document_starts) < 1:
        raise InvalidInput(
            f"token stream: found ids of shape {ids.shape} and document starts of shape {document_starts.shape}, "
            "expected (n_tokens,) and (n_documents + 1,)"
        )
    if document_starts[0] != 0 or document_starts[-1] != len(ids) or (np.diff(document_starts) < 0).any():
        raise InvalidInput(
            f"document starts: found {document_starts[0]:,} to {document_starts[-1]:,}, expected to ascend "
            f"from 0 to the {len(ids):,} tokens"
        )
    if len(ids) and int(ids.max()) >= canonical_size:
        position = int(np.argmax(ids >= canonical_size))
        raise InvalidInput(
            f"canonical id at position {position:,}: found {ids[position]:,}, expected below {canonical_size:,}; "
            "map token ids through the vocabulary first"
        )
