"""How a replay proceeds: in parts of some million accesses, watched, and stopped between two of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engram_tables.measure.caches.curves import StepMisses, step_misses
from engram_tables.threads import run_slices
from engram_tables.units import ProgressHook

_PART_ACCESSES = 1 << 21


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replayed:
    """Hits of some sizes.

    Attributes
    ----------
    n_hits
        int64 (2, m, n_classes) by `State`, size and class.
    step_misses
        None where steps were not counted.
    """

    n_hits: NDArray[np.int64]
    step_misses: StepMisses | None


class Watch:
    """Counts the accesses that threads have replayed, and tells them to stop."""

    def __init__(self, progress: ProgressHook, total: int) -> None:
        self._progress, self._total = progress, total
        self._done = 0
        self._lock = threading.Lock()
        self._is_stopped = threading.Event()

    def add(self, n_accesses: int) -> None:
        """Report them; raises `Stopped` where another thread has failed or the user has interrupted."""
        self.check()
        with self._lock:
            self._done += n_accesses
            self._progress(self._done, self._total)

    def check(self) -> None:
        """See `add`."""
        if self._is_stopped.is_set():
            raise Stopped

    def stop(self) -> None:
        """Have every thread raise at its next part."""
        self._is_stopped.set()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Course:
    """What every replay of a trace is told.

    Attributes
    ----------
    first_steady_step
        Where the cold part ends.
    counts_steps
        Whether the misses of each step are wanted: 4 bytes a step and size while a replay runs.
    watch
        Told how far it is.
    step_tokens
        As in `Accesses`.
    """

    first_steady_step: int
    counts_steps: bool
    watch: Watch
    step_tokens: NDArray[np.int64] | None = None

    def room(self, n_sizes: int, n_steps: int) -> NDArray[np.uint32]:
        """Where kernels put the misses of each step: uint32 (n_sizes, n_steps); no steps if they are not counted."""
        return np.zeros((n_sizes, n_steps if self.counts_steps else 0), np.uint32)

    def ended(self, n_hits: NDArray[np.int64], misses: NDArray[np.uint32]) -> Replayed:
        """The replay's answer."""
        found = step_misses(misses, self.first_steady_step, self.step_tokens) if self.counts_steps else None
        return Replayed(n_hits=n_hits, step_misses=found)


class Stopped(Exception):
    """Another thread's error is on its way to the caller."""


def parts(step_starts: NDArray[np.int64], watch: Watch) -> Iterator[tuple[int, int]]:
    """Ranges of steps of about as many accesses each, which the watch is told when the range is done."""
    n_steps, step = step_starts.size - 1, 0
    while step < n_steps:
        at = np.searchsorted(step_starts, step_starts[step] + _PART_ACCESSES)
        stop = int(min(max(at, step + 1), n_steps))
        yield step, stop
        watch.add(int(step_starts[stop] - step_starts[step]))
        step = stop


def run_together(tasks: Sequence[Callable[[], None]], *, threads: int, watch: Watch) -> None:
    """Run tasks on threads, in order; the first error stops all of them, Ctrl-C too."""
    left = list(tasks)[::-1]
    lock = threading.Lock()

    def work(_start: int, _stop: int) -> None:
        try:
            while True:
                with lock:
                    if not left:
                        return
                    task = left.pop()
                watch.check()
                task()
        except Stopped:
            return
        except BaseException:
            watch.stop()
            raise

    run_slices(work, max(1, min(threads, len(left))), threads=threads, grain=1, stop=watch.stop)
