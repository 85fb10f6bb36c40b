"""Worker threads over slices of a batch or over items. Kernels release the GIL, so plain threads are enough."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar

from engram_tables.errors import InvalidInput

_Item = TypeVar("_Item")


def resolve_threads(threads: int | None) -> int:
    """`threads`, or the CPUs this process may use."""
    if threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if threads < 1:
        raise InvalidInput(f"threads: found {threads}, expected 1 or more")
    return threads


def run_slices(
    function: Callable[[int, int], None], n_items: int, *, threads: int, grain: int,
    stop: Callable[[], object] | None = None,
) -> None:  # fmt: skip
    """Call `function(start, stop)` on near-equal slices of `range(n_items)`, `grain` items or more in each.

    The calling thread takes slices as well, so that it never waits for a thread that has not come. The first error is
    raised after all slices have ended. Ctrl-C lets no further one begin, calls `stop`, which may have those under way
    end early, and is raised when they have: they use memory and files that the caller is about to give back.
    """
    n_slices = max(1, min(threads, n_items // max(grain, 1)))
    if n_slices == 1:
        function(0, n_items)
        return
    bounds = [n_items * k // n_slices for k in range(n_slices + 1)]
    slices = _Slices(function, list(pairwise(bounds)))
    try:
        for _ in range(n_slices - 1):
            # Once the interpreter ends the pool takes nothing more: the calling thread takes all slices then.
            with contextlib.suppress(RuntimeError):
                _pool().submit(slices.help)
        slices.take_all()
    finally:
        try:
            slices.end()
        except KeyboardInterrupt:
            if stop is not None:
                stop()
            slices.end()
            raise
    for _, error in sorted(slices.errors, key=lambda each: each[0]):
        raise error


class _Slices:
    """The slices of one call, and who is at work on them."""

    def __init__(self, function: Callable[[int, int], None], bounds: list[tuple[int, int]]) -> None:
        self._function, self._bounds = function, bounds
        # Each is taken once: popping from a list is one step for all threads.
        self._left = list(range(len(bounds)))[::-1]
        self._lock = threading.Lock()
        self._has_ended = False
        self._n_helping = 0
        self._idle = threading.Event()
        self.errors: list[tuple[int, BaseException]] = []

    def take_all(self) -> None:
        """Take slice after slice until none is left."""
        while self._left:
            try:
                nth = self._left.pop()
            except IndexError:
                return
            try:
                self._function(*self._bounds[nth])
            except BaseException as error:
                self.errors.append((nth, error))
                if not isinstance(error, Exception):
                    self._left.clear()

    def help(self) -> None:
        """As `take_all`, in a thread of the pool, which `end` waits for."""
        with self._lock:
            if self._has_ended or not self._left:
                return
            self._n_helping += 1
        self.take_all()
        with self._lock:
            self._n_helping -= 1
            if self._n_helping == 0 and self._has_ended:
                self._idle.set()

    def end(self) -> None:
        """Let no slice begin any more, and wait for those of other threads; broken off, it may be called again."""
        self._left.clear()
        with self._lock:
            self._has_ended = True
            if self._n_helping == 0:
                return
        self._idle.wait()


def in_background(function: Callable[[], _Item]) -> Future[_Item]:
    """Call `function` in a thread of the pool; or here and now when the interpreter ends, whose pool takes nothing
    more."""
    try:
        return _pool().submit(function)
    except RuntimeError:
        done: Future[_Item] = Future()
        try:
            done.set_result(function())
        except BaseException as error:
            done.set_exception(error)
        return done


def run_all(function: Callable[[_Item], None], items: Iterable[_Item], *, threads: int) -> None:
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
        run_slices(work, threads, threads=threads, grain=1, stop=stopped.set)
    except BaseException:
        stopped.set()
        raise


_executor: tuple[int, ThreadPoolExecutor] | None = None


def _pool() -> ThreadPoolExecutor:
    """One pool a process, made anew after a fork: a child inherits the object but none of its threads."""
    global _executor
    if _executor is None or _executor[0] != os.getpid():
        _executor = (os.getpid(), ThreadPoolExecutor(max_workers=256, thread_name_prefix="engram"))
    return _executor[1]
