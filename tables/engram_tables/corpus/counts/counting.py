"""Exact counts of the n-grams of a stream of canonical ids, in memory, several orders at once.

Owns the counting of what fits in memory, and its result. Knows no text, no vocabulary and no file.

Every position gives one key: its window, oldest token first. Keys are scattered into partitions by leading token,
each partition is sorted and its equal keys become one with a count, and one order after the other is read off these,
since an n-gram is a prefix of the window that starts with it. A partition stays inside an aligned block of leading
tokens whose common high bits need not be stored, so that 64 bits name a longer window exactly.

Where the token that follows is counted too, or the windows that begin before a document, an order is no prefix of
another one, and each is sorted by itself.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from engram_tables.corpus.counts import kernels, wide_kernels
from engram_tables.corpus.counts.ngram_counts import NgramCounts
from engram_tables.corpus.counts.unpacking import RowSink, Unpacker, kernels_of, named_columns
from engram_tables.corpus.counts.windows import MAX_CANONICAL_SIZE, MAX_ORDER, WindowForm
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.memory import anonymous_bytes
from engram_tables.threads import resolve_threads, run_all
from engram_tables.units import ProgressHook

PARTITION_KEYS = 65_536
"""Keys a partition aims at: 512 KiB, which sorts inside a core's own cache."""
CHUNK_TOKENS = 1 << 22
"""Tokens a thread takes through a pass before it looks whether it should stop."""

U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
_Item = TypeVar("_Item")


class Workspace:
    """Buffers that counting reuses, for callers that count again and again: fresh memory is slow to touch first.

    Results lie in it too. They hold until the next call that is given the same workspace.
    """

    def __init__(self) -> None:
        self._memory: dict[str, npt.NDArray[np.uint8]] = {}

    def words(self, name: str, n_words: int) -> U64:
        """uint64 (n_words,), undefined content, 64-byte aligned; the memory of the call before if it is enough."""
        return self._bytes(name, 8 * n_words).view(np.uint64)

    def ids(self, name: str, n_ids: int) -> U32:
        """uint32 (n_ids,), as `words`."""
        return self._bytes(name, 4 * n_ids).view(np.uint32)

    def _bytes(self, name: str, n_bytes: int) -> npt.NDArray[np.uint8]:
        held = self._memory.get(name)
        if held is None or len(held) < n_bytes:
            self._memory.pop(name, None)
            del held
            held = self._memory[name] = anonymous_bytes(n_bytes, huge_pages=n_bytes >= _HUGE_BYTES)
        return held[:n_bytes]


_HUGE_BYTES = 1 << 23


def check_orders(orders: Sequence[int], canonical_size: int) -> tuple[int, ...]:
    """`orders` ascending, if they can be counted over a vocabulary of `canonical_size`.

    Raises
    ------
    InvalidInput
        No order, a repeated one, or one that is not from 1 to 5.
    CapacityError
        The vocabulary has more than 2^20 ids.
    """
    found = tuple(sorted(orders))
    if not found or found[0] < 1 or found[-1] > MAX_ORDER or len(set(found)) != len(found):
        raise InvalidInput(f"orders: found {list(orders)}, expected distinct numbers from 1 to {MAX_ORDER}")
    if not 1 <= canonical_size <= MAX_CANONICAL_SIZE:
        raise CapacityError(
            f"canonical size {canonical_size:,}: exact counting takes 1 to {MAX_CANONICAL_SIZE:,} ids; "
            "use a vocabulary whose rule folds or renumbers its tokens"
        )
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Sequences:
    """Canonical ids of several sequences, one after the other, whose windows are to be counted.

    Attributes
    ----------
    ids
        uint32 (n_tokens,).
    starts
        int64 (n_sequences + 1,): where each begins in `ids`, then n_tokens; equal neighbours make an empty one.
    n_windows
        Windows begin at positions below this; what follows is only looked at.
    following
        uint32 (n_tokens,): raw ids, where the token after a window is counted with it.
    """

    ids: U32
    starts: I64
    n_windows: int
    following: U32 | None = None


class Strand(NamedTuple):
    """One kind of window, and the orders that are read off it."""

    form: WindowForm
    orders: tuple[int, ...]


def strands(orders: Sequence[int], *, canonical_size: int, next_size: int = 0, is_fused: bool = True) -> list[Strand]:
    """What has to be sorted for `orders`: one window for all if `is_fused`, which followers rule out, or one each.

    Order 1 without followers is no strand: a histogram gives it.
    """
    longer = tuple(order for order in orders if order > 1 or next_size)
    if not longer:
        return []
    if is_fused and not next_size:
        return [Strand(WindowForm(order=longer[-1], canonical_size=canonical_size), longer)]
    return [
        Strand(WindowForm(order=order, canonical_size=canonical_size, next_size=next_size), (order,))
        for order in longer
    ]


def pad_sequences(sequences: Sequences, *, order: int, pad_id: int, is_start: npt.NDArray[np.bool_]) -> Sequences:
    """`order` - 1 times `pad_id` before each sequence that begins a document, so that each token ends a window.

    Parameters
    ----------
    is_start
        bool (n_sequences,): false where a sequence goes on from one before.
    """
    n_before = order - 1
    at = sequences.starts[:-1][is_start & (np.diff(sequences.starts) > 0)]
    if not n_before or not len(at):
        return sequences
    place = np.repeat(at, n_before)
    starts = sequences.starts + n_before * np.searchsorted(at, sequences.starts, side="left")
    following = sequences.following
    return Sequences(
        ids=np.insert(sequences.ids, place, np.uint32(pad_id)),
        starts=starts,
        n_windows=int(sequences.n_windows + n_before * np.searchsorted(at, sequences.n_windows, side="left")),
        following=None if following is None else np.insert(following, place, np.uint32(0)),
    )


def count_ngrams(
    ids: npt.ArrayLike,
    document_starts: npt.ArrayLike,
    *,
    orders: Sequence[int],
    canonical_size: int,
    next_ids: npt.ArrayLike | None = None,
    next_size: int = 0,
    pad_id: int | None = None,
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
        The n to count, any subset of 1 to 5.
    canonical_size
        Bound of the ids, at most 2^20.
    next_ids, next_size
        uint32 (n_tokens,): raw ids and their bound, if n-grams are to be counted by the token that follows.
    pad_id
        Canonical id that stands before a document's first token, if windows that reach there are counted; they are
        not by default.
    threads
        Worker threads; never changes the result.
    progress
        Called with tokens; a pass over them moves it by its share.
    workspace
        Reused between calls if given; then the results lie in it until the next call.

    Returns
    -------
    `NgramCounts` by order. Memory: 12 bytes a token while counting (20 where all orders together need more than
    64 bits a window), and (4 x order + 8) bytes a distinct n-gram.

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
    following = None if next_ids is None else _check_following(next_ids, stream, next_size)
    given = Sequences(ids=stream, starts=starts, n_windows=len(stream), following=following)
    wound = strands(wanted, canonical_size=canonical_size, next_size=next_size, is_fused=pad_id is None)
    n_workers = resolve_threads(threads)
    memory = workspace or Workspace()
    ticks = _Ticks(progress, len(stream), n_passes=_Ticks.PASSES * max(len(wound), 1))
    found = {}
    if wanted[0] == 1 and following is None:
        found[1] = single_tokens(count_tokens(given, canonical_size, threads=n_workers))
    for strand in wound:
        sequences = given
        if pad_id is not None:
            every = np.ones(len(starts) - 1, dtype=bool)
            sequences = pad_sequences(given, order=strand.form.order, pad_id=pad_id, is_start=every)
        windows = sort_windows(sequences, strand.form, threads=n_workers, workspace=memory, ticks=ticks)
        found |= windows.unpack(strand.orders, threads=n_workers, workspace=memory, ticks=ticks)
    return found


class _Partitions(NamedTuple):
    """Ranges of leading tokens, none empty: partition p holds keys key_starts[p] to key_starts[p + 1]."""

    key_starts: I64
    leading: I64
    """The first token's high bits, which keys do not hold."""
    first_token: I64
    of_token: U32


@dataclass(frozen=True, slots=True, kw_only=True)
class SortedWindows:
    """The distinct windows of some sequences, sorted, with their counts.

    Attributes
    ----------
    keys
        uint64 (n_keys * form.n_words,): partition p has its `n_windows[p]` distinct keys from `key_starts[p]` on.
    counts
        uint32 (n_keys,), as `keys`.
    leading
        int64 (n_partitions,): bits of the leading token that a partition's keys do not hold.
    """

    form: WindowForm
    keys: U64
    counts: U32
    key_starts: I64
    n_windows: I64
    leading: I64

    def part(self, partition: int) -> tuple[U64, U32]:
        """Keys (with all their words, as the kernels take them) and counts of one partition."""
        start = int(self.key_starts[partition])
        stop = start + int(self.n_windows[partition])
        return _shaped(self.keys, self.form, start, stop), self.counts[start:stop]

    def unpack(
        self, orders: tuple[int, ...], *, threads: int, workspace: Workspace, ticks: _Ticks
    ) -> dict[int, NgramCounts]:
        """Allocate the results exactly and unpack every partition into its rows."""
        form, by_size = self.form, np.argsort(-self.n_windows, kind="stable").tolist()
        rows = np.zeros((len(self.leading) + 1, len(orders)), dtype=np.int64)

        def count_one(partition: int) -> None:
            for column, n in enumerate(orders):
                rows[partition + 1, column] = kernels_of(form).count_rows(
                    self.part(partition)[0], form.shift(n), form.token_bits, form.next_bits
                )

        run_all(count_one, by_size, threads=threads)
        rows = np.cumsum(rows, axis=0)
        found = {n: _result(form, n, int(rows[-1, column]), workspace) for column, n in enumerate(orders)}
        unpackers = threading.local()

        def unpack_one(partition: int) -> None:
            if not hasattr(unpackers, "mine"):
                unpackers.mine = Unpacker(form, orders, {n: RowSink(*found[n]) for n in orders})
            for column, n in enumerate(orders):
                unpackers.mine.sinks[n].row = int(rows[partition, column])
            unpackers.mine.add(*self.part(partition), leading=int(self.leading[partition]))
            unpackers.mine.close()
            ticks.add(int(self.key_starts[partition + 1] - self.key_starts[partition]))

        run_all(unpack_one, by_size, threads=threads)
        return {n: named_columns(n, columns, totals, form.next_size) for n, (columns, totals) in found.items()}


def _shaped(keys: U64, form: WindowForm, start: int, stop: int) -> U64:
    """Keys [start, stop): uint64 (n,), or (n, 2) where a key takes two words."""
    part = keys[start * form.n_words : stop * form.n_words]
    return part if form.n_words == 1 else part.reshape(-1, 2)


def _result(form: WindowForm, n: int, n_rows: int, workspace: Workspace) -> tuple[U32, U64]:
    n_columns = n + bool(form.next_size)
    columns = workspace.ids(f"columns-{n}", n_columns * n_rows).reshape(n_columns, n_rows)
    return columns, workspace.words(f"counts-{n}", n_rows)


def count_tokens(sequences: Sequences, canonical_size: int, *, threads: int) -> I64:
    """int64 (canonical_size,): how often each id begins a window."""
    occurrences: I64 = _histograms(sequences, canonical_size, threads).sum(axis=0)
    return occurrences


def single_tokens(occurrences: I64) -> NgramCounts:
    """Order 1 from the occurrences of every id."""
    present = np.flatnonzero(occurrences)
    return NgramCounts(
        order=1, columns=present.astype(np.uint32)[None, :], counts=occurrences[present].astype(np.uint64)
    )


def _histograms(sequences: Sequences, canonical_size: int, threads: int) -> I64:
    """int64 (threads, canonical_size): occurrences of each id in each thread's slice."""
    slices = _slices(sequences.n_windows, threads)
    histograms = np.zeros((len(slices), canonical_size), dtype=np.int64)

    def add(item: tuple[int, tuple[int, int]]) -> None:
        worker, (start, stop) = item
        for first in range(start, stop, CHUNK_TOKENS):
            kernels.add_histogram(sequences.ids[first : min(first + CHUNK_TOKENS, stop)], histograms[worker])

    run_all(add, enumerate(slices), threads=threads)
    return histograms


def _slices(n_windows: int, threads: int) -> list[tuple[int, int]]:
    """One near-equal range of positions a thread."""
    return list(itertools.pairwise(n_windows * k // threads for k in range(threads + 1)))


def sort_windows(
    sequences: Sequences, form: WindowForm, *, threads: int, workspace: Workspace, ticks: _Ticks | None = None
) -> SortedWindows:
    """The distinct windows of one form, sorted, with their counts; they lie in `workspace`."""
    ticks = ticks or _Ticks(None, sequences.n_windows, n_passes=1)
    histograms = _histograms(sequences, form.canonical_size, threads)
    partitions = _partition(histograms.sum(axis=0), form)
    keys = workspace.words("keys", sequences.n_windows * form.n_words)
    counts = workspace.ids("window counts", sequences.n_windows)
    _scatter(sequences, form, histograms, partitions, keys, ticks)
    n_windows = np.zeros(len(partitions.leading), dtype=np.int64)
    scratch = threading.local()

    def sort_one(partition: int) -> None:
        start, stop = partitions.key_starts[partition : partition + 2].tolist()
        mine = _shaped(keys, form, start, stop)
        if form.n_words == 1:
            mine.sort()
        else:
            _sort_wide(mine, scratch)
        n_windows[partition] = kernels_of(form).compact_windows(mine, counts[start:stop])
        ticks.add(stop - start)

    run_all(sort_one, np.argsort(-np.diff(partitions.key_starts), kind="stable").tolist(), threads=threads)
    return SortedWindows(
        form=form,
        keys=keys,
        counts=counts,
        key_starts=partitions.key_starts,
        n_windows=n_windows,
        leading=partitions.leading,
    )


def _sort_wide(keys: U64, scratch: threading.local) -> None:
    if len(getattr(scratch, "spare", ())) < len(keys):
        scratch.spare = np.empty((max(len(keys), PARTITION_KEYS), 2), dtype=np.uint64)
        scratch.places = np.empty((wide_kernels.N_DIGITS, 1 << wide_kernels.DIGIT_BITS), dtype=np.int64)
    wide_kernels.sort_keys(keys, scratch.spare, scratch.places)


def _partition(occurrences: I64, form: WindowForm) -> _Partitions:
    """Cut the leading tokens into ranges of about PARTITION_KEYS keys, inside aligned blocks."""
    tokens = np.flatnonzero(occurrences)
    ends = np.cumsum(occurrences[tokens])
    key_starts = np.concatenate([[0], ends]).astype(np.int64)
    # A new partition begins where the keys before pass a multiple of PARTITION_KEYS or a block begins.
    passed, block = key_starts[:-1] // PARTITION_KEYS, tokens >> form.free_bits
    begins = np.ones(len(tokens), dtype=bool)
    begins[1:] = (passed[1:] != passed[:-1]) | (block[1:] != block[:-1])
    of_token = np.zeros(form.canonical_size, dtype=np.uint32)
    of_token[tokens] = np.cumsum(begins) - 1
    return _Partitions(
        key_starts=np.append(key_starts[:-1][begins], key_starts[-1]),
        leading=block[begins] << form.free_bits,
        first_token=tokens[begins],
        of_token=of_token,
    )


def _scatter(
    sequences: Sequences, form: WindowForm, histograms: I64, partitions: _Partitions, keys: U64, ticks: _Ticks
) -> None:
    """Write every position's key into its partition; each thread has its own part of each partition."""
    if not len(partitions.leading):
        return
    per_thread = np.add.reduceat(histograms, partitions.first_token, axis=1)
    first_place = (np.cumsum(per_thread, axis=0) - per_thread + partitions.key_starts[:-1]).astype(np.uint64)
    following = sequences.ids if sequences.following is None else sequences.following

    def fill(item: tuple[int, tuple[int, int]]) -> None:
        worker, (start, stop) = item
        first, cursors = first_place[worker], first_place[worker].copy()
        lines = anonymous_bytes(8 * len(first) * kernels.LINE_KEYS, huge_pages=False).view(np.uint64)
        for begin in range(start, stop, CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, stop)
            about = (sequences.ids, following, sequences.starts, begin, end, form.order, form.token_bits)
            if form.n_words == 1:
                kernels.scatter_keys(*about, form.next_bits, partitions.of_token, first, cursors, lines, keys)
            else:
                wide_kernels.scatter_keys(*about, form.next_bits, partitions.of_token, cursors, keys.reshape(-1, 2))
            ticks.add(end - begin)
        if form.n_words == 1:
            kernels.flush_keys(first, cursors, lines, keys)

    slices = _slices(sequences.n_windows, len(histograms))
    run_all(fill, enumerate(slices), threads=len(histograms))


class _Ticks:
    """Progress over several passes, told as tokens."""

    PASSES = 3

    def __init__(self, hook: ProgressHook | None, n_tokens: int, *, n_passes: int) -> None:
        self._hook = hook
        self._n_tokens = n_tokens
        self._n_passes = n_passes
        self._done = 0
        self._lock = threading.Lock()

    def add(self, n_tokens: int) -> None:
        """One pass has done `n_tokens` more."""
        if self._hook is None:
            return
        with self._lock:
            self._done += n_tokens
            self._hook(min(self._done // self._n_passes, self._n_tokens), self._n_tokens)


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


def _check_following(next_ids: npt.ArrayLike, ids: U32, next_size: int) -> U32:
    following = np.ascontiguousarray(next_ids, dtype=np.uint32)
    if following.shape != ids.shape:
        raise InvalidInput(f"following ids: found shape {following.shape}, expected that of the ids, {ids.shape}")
    if not 1 <= next_size <= MAX_CANONICAL_SIZE:
        raise CapacityError(f"following ids: found a bound of {next_size:,}, expected 1 to {MAX_CANONICAL_SIZE:,}")
    if len(following) and int(following.max()) >= next_size:
        raise InvalidInput(f"following ids: found {int(following.max()):,}, expected below {next_size:,}")
    return following
