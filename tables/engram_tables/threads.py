"""Worker threads over slices of a batch or over items. Kernels release the GIL, so plain threads are enough."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
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


def run_slices(function: Callable[[int, int], None], n_items: int, *, threads: int, grain: int) -> None:
    """Call `function(start, stop)` on near-equal slices of `range(n_items)`, `grain` items or more in each.

    One slice runs in the calling thread. The first error is raised after all slices have ended.
    """
    n_slices = max(1, min(threads, n_items // max(grain, 1)))
    bounds = [n_items * k // n_slices for k in range(n_slices + 1)]
    if n_slices == 1:
        function(0, n_items)
        return
    pool = _pool()
    futures = [pool.submit(function, *bounds[k : k + 2]) for k in range(1, n_slices)]
    try:
        function(bounds[0], bounds[1])
    finally:
        errors = [future.exception() for future in futures]
    for error in errors:
        if error is not None:
            raise error


def in_background(function: Callable[[], _Item]) -> Future[_Item]:
    """Call `function` in a thread of the pool."""
    return _pool().submit(function)


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
        run_slices(work, threads, threads=threads, grain=1)
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
