"""Engines that keep many direct reads in flight from one thread, whatever system call they ask with."""

from __future__ import annotations

import copy
import mmap
import os
import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Protocol

import numba
import numpy as np
from numpy.typing import NDArray

from engram_tables.errors import BackendUnavailable, InvalidInput
from engram_tables.fetch.engines import queue_kernels
from engram_tables.fetch.engines.descriptors import ReadFiles, Reads
from engram_tables.fetch.engines.engine import Engine, Items, Pending
from engram_tables.fetch.engines.queue_kernels import (
    BUSY_ROUNDS,
    CODE,
    FILE,
    IN_FLIGHT,
    IS_BROKEN,
    N_FREE,
    N_STATES,
    NEEDED,
    NO_FILE,
    OFFSET,
    ROUNDS,
    UNKNOWN_ANSWER,
    Work,
    short_kernel,
)
from engram_tables.fetch.engines.queue_memory import Bundled, Slots
from engram_tables.fetch.engines.reading import Behind
from engram_tables.fetch.kernels import DONE, MISFIT
from engram_tables.fetch.placement import Batch, Placements
from engram_tables.storage.row_files import RowFiles
from engram_tables.threads import resolve_threads, run_slices
from engram_tables.units import PAGE_BYTES

DEPTH = 128
MOST_DEPTH = 4096
# Asked for in one system call, and waited for in one. More cost less CPU, but a small batch then waits for its first
# reads to be written down: of 4, 8, 16 and 48 a token's 48 rows came soonest at 4 and 8 (2-core VM, 2026-11).
AT_ONCE = 8
# Sorted where they are, which grows with the square: 128 take 2 us.
SHORT_ROWS = 128
_NO_QUEUE = -1
_MIN_SLOT_BYTES = 8 << 10
_READS_A_THREAD = 2048


class Backend(Protocol):
    """What a queue asks with: a `UringRing` or an `AioContext`."""

    view: Any

    def wait(self, n_in_flight: int) -> bool:
        """Wait until so many reads have ended; whether they have."""

    def close(self) -> None:
        """Give it back."""

    def forget(self) -> None:
        """In a child after a fork: let go of the parent's."""


class Queue:
    """Slots, and what asks for reads into them. One thread at a time uses it.

    The slots are shared memory, which a fork leaves where it is while the device writes there. They outlive the queue
    for as long as a read is in flight: Ctrl-C may take it from whoever was to wait.
    """

    def __init__(self, n_slots: int, slot_bytes: int, make: Callable[[NDArray[np.uint8]], Backend]) -> None:
        self.memory = np.frombuffer(mmap.mmap(-1, n_slots * slot_bytes), np.uint8)
        self.backend = make(self.memory)
        self.is_forgotten = False
        self.state = np.zeros(N_STATES, np.int64)
        self.state[N_FREE] = n_slots
        self.slots = Slots(
            read=np.full(n_slots, -1, np.int64),
            done=np.zeros(n_slots, np.int64),
            tries=np.zeros(n_slots, np.int64),
            free=np.arange(n_slots)[::-1].copy(),
            address=np.uint64(self.memory.ctypes.data),
            slot_bytes=slot_bytes,
        )
        self.abandoned = weakref.finalize(self, _abandon, self.backend, self.memory, self.state)


# Memory in which the system may still write, with nobody who could wait for it.
_lost: list[NDArray[np.uint8]] = []


def _abandon(backend: Backend, memory: NDArray[np.uint8], state: NDArray[np.int64]) -> None:
    """A queue that nobody has any more: its memory goes back when nothing is in flight. Otherwise a read that the
    system had put off would be carried out where something else is by then."""
    has_ended = state[IN_FLIGHT] == 0
    try:
        has_ended = has_ended or (not state[IS_BROKEN] and backend.wait(int(state[IN_FLIGHT])))
    finally:
        if not has_ended:
            _lost.append(memory)


class QueueEngine(Engine):
    """Direct reads (O_DIRECT), `depth` of them in flight for each thread.

    One thread is enough for a device that answers more slowly than the thread asks. By default large batches get twice
    as many threads as the one before when the device waited for them, up to the usable CPUs, and half as many when it
    did not. What a thread asks with is kept for the next call, and made anew after a fork.

    Parameters
    ----------
    depth
        1 to 4096.

    Attributes
    ----------
    limit_bytes
        The longest read of several records.

    Raises
    ------
    BackendUnavailable
        The files' system refuses direct reads, or this one the engine's way of asking.
    """

    drives_ring: ClassVar[bool]
    """Whether `view` is a `Ring`, otherwise it is a `Context`."""

    def __init__(self, table: RowFiles, places: Placements, *, depth: int = DEPTH) -> None:
        super().__init__(table)
        if not 1 <= depth <= MOST_DEPTH:
            raise InvalidInput(f"depth: found {depth}, expected 1 to {MOST_DEPTH}")
        self.depth = depth
        self._n_threads = 1
        self._files = ReadFiles(self.name, table, places, direct=True)
        longest = max(part.n_bytes for part in table.parts) + 2 * self._files.unit
        self._slot_bytes = -(-max(longest, _MIN_SLOT_BYTES) // PAGE_BYTES) * PAGE_BYTES
        self.limit_bytes = self._slot_bytes - 2 * self._files.unit
        self._idle: list[Queue] = []
        self._queues: weakref.WeakSet[Queue] = weakref.WeakSet()
        self._is_released = False
        _all.add(self)
        try:
            # Whether the system allows it is known before the first read.
            self._idle.append(self._make_queue())
        except BaseException:
            self._files.close()
            raise
        if len(places.parts) == 1:
            self.warm = ShortReads(self, places, self._files, self._leases.gate())

    @abstractmethod
    def _make(self, memory: NDArray[np.uint8], fds: NDArray[np.int64]) -> Backend:
        """What asks for `depth` reads of the files at a time, into `memory`."""

    @abstractmethod
    def _drive(self, queue: Queue, work: Work, at_once: int, *, may_wait: bool) -> None:
        """The compiled loop; see `queue_kernels.drive_ring`."""

    def _read(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> None:
        if items is not None or not self._read_short(batch, out):
            self._read_all(self._plan(batch, items), out, threads)

    def _read_short(self, batch: Batch, out: NDArray[np.uint8]) -> bool:
        """Read a plain batch the short way, for those who come past `Table.fetch`; False where it is declined."""
        short = self.warm
        if short is None or type(batch) is not Batch or batch.rows.size > SHORT_ROWS:
            return False
        if batch.n_layers == 1:
            return short.fetch_rows(batch.first_layer, batch.rows, out) == DONE
        if batch.n_layers != len(self.stored.layer_ids):
            return False
        rows = batch.rows.reshape(-1, batch.n_layers, batch.n_columns)
        return short.fetch_tokens(rows, out.reshape(*rows.shape, -1)) == DONE

    def _begin(self, batch: Batch, out: NDArray[np.uint8], threads: int | None, items: Items | None) -> Pending:
        """What fits into one queue is asked for here and now; more than that is read by a thread of the pool."""
        reads = self._plan(batch, items)
        if reads.n_reads > self.depth:
            return Behind(lambda: self._read_all(reads, out, threads))
        work, queue = self._work(reads, out, np.zeros(1, np.int64)), self._take_queue()
        self._advance(queue, work, may_wait=False)
        return _Begun(self, queue, work, lambda: self._read_all(reads, out, threads))

    def _plan(self, batch: Batch, items: Items | None) -> Reads:
        return self._files.plan(batch, items, self.limit_bytes)

    def _work(self, reads: Reads, out: NDArray[np.uint8], counter: NDArray[np.int64]) -> Work:
        files = self._files
        return Work(
            starts=reads.starts, windows=reads.windows, spots=reads.spots, order=reads.order, n_reads=reads.n_reads,
            n_records=reads.n_records, row_bytes=files.row_bytes, unit=files.unit, part_starts=files.part_starts,
            part_bytes=files.part_bytes, output=np.uint64(out.ctypes.data), counter=counter,
        )  # fmt: skip

    def _read_all(self, reads: Reads, out: NDArray[np.uint8], threads: int | None) -> None:
        work = self._work(reads, out, np.zeros(1, np.int64))
        most = self._n_threads if threads is None else resolve_threads(threads)
        n_workers = max(1, min(most, reads.n_reads // _READS_A_THREAD))
        rounds = np.zeros((n_workers, 2), np.int64)
        refused: list[BackendUnavailable] = []

        def drive(start: int, stop: int) -> None:
            for worker in range(start, stop):
                try:
                    queue = self._take_queue()
                except BackendUnavailable as error:
                    refused.append(error)
                    continue
                queue.state[[ROUNDS, BUSY_ROUNDS]] = 0
                self._advance(queue, work, may_wait=True)
                rounds[worker] = queue.state[[ROUNDS, BUSY_ROUNDS]]
                self._end(queue)

        run_slices(drive, n_workers, threads=n_workers, grain=1)
        # One thread is enough to read everything.
        if len(refused) == n_workers:
            raise refused[0]
        if threads is None and reads.n_reads >= 2 * _READS_A_THREAD:
            n_rounds, n_busy = rounds.sum(axis=0).tolist()
            self._n_threads = next_threads(n_workers, n_rounds, n_busy, most=resolve_threads(None))

    def _advance(self, queue: Queue, work: Work, *, may_wait: bool) -> None:
        self._drive(queue, work, AT_ONCE, may_wait=may_wait)

    def borrow(self) -> Queue | None:
        """A queue that nobody uses, which must be given back by `keep`; None if there is none."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def keep(self, queue: Queue) -> None:
        """Keep a queue with nothing in flight for the next call."""
        if queue.state[IS_BROKEN]:
            queue.backend.close()
            return
        queue.state[CODE] = 0
        self._idle.append(queue)
        # Whoever closed the engine meanwhile has not seen this one.
        if self._is_released:
            self._close_idle()

    def _end(self, queue: Queue) -> None:
        """Keep the queue for the next call, and raise what went wrong."""
        state = queue.state.tolist()
        self.keep(queue)
        if state[CODE] == 0:
            return
        if state[FILE] != NO_FILE:
            self._files.fail(state[CODE], state[FILE], state[OFFSET], state[NEEDED])
        if state[CODE] == UNKNOWN_ANSWER:
            raise OSError(f"engine {self.name}: the system answered a read that was not asked for; use another engine")
        error = OSError(state[CODE], os.strerror(state[CODE]))
        error.add_note(f"engine {self.name}: asking the system for reads; the files are as they were")
        raise error

    def _take_queue(self) -> Queue:
        return self.borrow() or self._make_queue()

    def _make_queue(self) -> Queue:
        queue = Queue(self.depth, self._slot_bytes, lambda memory: self._make(memory, self._files.fds))
        self._queues.add(queue)
        return queue

    def _release(self) -> None:
        self._is_released = True
        self._close_idle()
        self._files.close()

    def _close_idle(self) -> None:
        while (queue := self.borrow()) is not None:
            queue.backend.close()

    def _after_fork(self) -> None:
        """Reads in flight are the parent's, and so is what asked for them."""
        for queue in list(self._queues):
            queue.is_forgotten = True
            queue.abandoned.detach()
            queue.backend.forget()
        self._idle.clear()
        self._queues.clear()


def next_threads(n_threads: int, n_rounds: int, n_busy: int, *, most: int) -> int:
    """Threads for the next large batch, after one in which the device waited for them in `n_busy` of `n_rounds`.

    >>> [next_threads(2, 100, n_busy, most=8) for n_busy in (0, 9, 10, 50, 51, 100)]
    [1, 1, 2, 2, 4, 4]
    """
    if 2 * n_busy > n_rounds:
        return min(2 * n_threads, most)
    return max(n_threads // 2, 1) if 10 * n_busy < n_rounds else n_threads


class ShortReads:
    """The short way to a few records that are read from files: one compiled call for all of it.

    What it declines, or fails to read, is found out, and named, by who goes the long way. It holds the engine's gate
    while it reads, and one of the engine's idle queues; where there is none it declines.

    Attributes
    ----------
    file_spots
        uint64 (files,): where byte 0 of each of the engine's files is in the space of spots (see `queue_kernels`).
    """

    def __init__(self, engine: QueueEngine, places: Placements, files: ReadFiles, gate: NDArray[np.int64]) -> None:
        (part,) = places.parts
        head = np.zeros(queue_kernels.PLAN_HEAD, np.int64)
        for word, value in (
            (queue_kernels.GATE, gate.ctypes.data),
            (queue_kernels.MOST_ROWS, SHORT_ROWS),
            (queue_kernels.N_LAYERS, len(places.n_rows)),
            (queue_kernels.N_COLUMNS, engine.stored.spec.n_columns),
            (queue_kernels.N_EXTENTS, len(places.file_idx)),
            (queue_kernels.CELL_ROWS, part.cell_rows),
            (queue_kernels.CELL_BYTES, part.cell_bytes),
            (queue_kernels.ROW_BYTES, part.n_bytes),
            (queue_kernels.UNIT, files.unit),
            (queue_kernels.LIMIT_BYTES, engine.limit_bytes),
            (queue_kernels.N_FILES, len(files.spots)),
        ):
            head[word] = value
        self.file_spots = files.spots
        spots = places.in_files(files.spots).bases
        self._plan = np.concatenate([head, places.extent_words(spots), files.spots.view(np.int64)])
        self._bundled: Bundled | None = None
        self._key_dtype: np.dtype[Any] | None = None
        # The plan names the gate by its address.
        self._gate = gate
        self._drives_ring = engine.drives_ring
        self._kernels: dict[tuple[int, bool], Any] = {}
        # The engine holds this one, and is to end with its last user.
        self._engine = weakref.ref(engine)
        self._maps: tuple[NDArray[np.uint8], ...] = ()

    def of_first_misses(
        self, pages: NDArray[np.uint8], missed: NDArray[np.uint8], first_pages: NDArray[np.int64], region_start: int
    ) -> ShortReads | None:
        """As this one, for batches alone of which no page is in memory, nor was missed before.

        Parameters
        ----------
        pages, missed
            uint8 (n,), maps of pages as in `residency_kernels`, written by others meanwhile as they like. What is read
            is noted in `missed`.
        first_pages
            int64 (files,): the number of each file's first page in these maps.
        region_start
            Address at which page 0 is mapped, for asking the system about one page of each batch.

        Returns
        -------
        One that answers NOT_FIRST to other batches, and STALE instead of DONE where that page is in memory after all.
        None where it looks in bundles, whose files the maps do not have.
        """
        if self._bundled is not None or len(first_pages) != len(self.file_spots):
            return None
        other = copy.copy(self)
        other._plan = np.concatenate([self._plan, first_pages])
        for word, value in (
            (queue_kernels.PAGES, pages.ctypes.data),
            (queue_kernels.MISSED, missed.ctypes.data),
            (queue_kernels.MAP_BYTES, pages.size),
            (queue_kernels.REGION_START, region_start),
            (queue_kernels.PAGE_SHIFT, mmap.PAGESIZE.bit_length() - 1),
        ):
            other._plan[word] = value
        # The plan names them by their addresses.
        other._maps = pages, missed
        return other

    def look_in(self, bundled: Bundled, key_dtype: np.dtype[Any]) -> None:
        """Let `fetch_keyed` take from these bundles, which lie in files of the engine."""
        self._bundled, self._key_dtype = bundled, key_dtype

    def fetch_tokens(self, rows: Any, out: Any) -> int:
        """As `WarmPath.fetch_tokens`; another answer than DONE says nothing about what is in `out`."""
        return self._fetch(3, 0, rows, out, None)

    def fetch_rows(self, layer: int, rows: Any, out: Any) -> int:
        """As `WarmPath.fetch_rows`; likewise."""
        return self._fetch(1, layer, rows, out, None)

    def fetch_keyed(self, rows: Any, keys: Any, out: Any) -> int:
        """As `fetch_tokens`, with the keys of the rows' n-grams, (tokens, layers, orders) of `look_in`'s type.

        Rows of n-grams that have bundles are read there; what bundles hold must be known (`look_in`). Keys of other
        n-grams cost reads and change no byte.
        """
        if self._bundled is None or keys.dtype != self._key_dtype:
            return MISFIT
        try:
            words = keys.view(np.uint64)
        except ValueError:
            # Records of words that do not follow each other.
            return MISFIT
        return self._fetch(3, 0, rows, out, words)

    def _fetch(self, n_dims: int, layer: int, rows: Any, out: Any, keys: Any) -> int:
        engine = self._engine()
        queue = None if engine is None else engine.borrow()
        if engine is None or queue is None:
            return _NO_QUEUE
        bundled = None if keys is None else self._bundled
        # Ctrl-C between these lines drops the queue, and costs a ring: whatever the kernel asked for has come when it
        # returns.
        try:
            kernel = self._kernels.get((n_dims, bundled is not None)) or self._compile(n_dims, queue, bundled)
            view, slots = queue.backend.view, queue.slots
            return int(kernel(self._plan, layer, rows, out, view, slots, queue.state, AT_ONCE, keys, bundled))
        finally:
            engine.keep(queue)

    def _compile(self, n_dims: int, queue: Queue, bundled: Bundled | None) -> Any:
        typeof: Callable[[Any], Any] = numba.typeof
        types = typeof(queue.backend.view), typeof(queue.slots)
        kernel = short_kernel(n_dims, self._drives_ring, types, typeof(bundled))
        return self._kernels.setdefault((n_dims, bundled is not None), kernel)


class _Begun:
    """Reads in flight in a queue of their own."""

    def __init__(self, engine: QueueEngine, queue: Queue, work: Work, read_afresh: Callable[[], None]) -> None:
        self._engine, self._queue, self._work, self._read_afresh = engine, queue, work, read_afresh

    def finish(self) -> None:
        """See `Pending`."""
        if self._queue.is_forgotten:
            self._read_afresh()
            return
        self._engine._advance(self._queue, self._work, may_wait=True)
        self._engine._end(self._queue)


_all: weakref.WeakSet[QueueEngine] = weakref.WeakSet()


def _after_fork() -> None:
    for engine in list(_all):
        engine._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
