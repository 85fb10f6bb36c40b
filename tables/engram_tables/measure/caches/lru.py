"""Exact least-recently-used caches of many sizes in one pass."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_tables.measure.caches.dense import DenseAccesses
from engram_tables.measure.caches.lru_kernels import replay_lru
from engram_tables.measure.caches.replays import Course, Replayed, parts


def replay(trace: DenseAccesses, sizes: NDArray[np.int64], course: Course) -> Replayed:
    """Hits at every size at once.

    Least-recently-used caches include one another: an item that a size has, all larger ones have. Where reuse
    distances are wanted for any size, a search tree counts the items used since (Mattson, Gecsei, Slutz and Traiger,
    1970; Bennett and Kruskal, 1975; Olken, 1981). For sizes known beforehand the time of the last access that still
    lies in each is enough, and it only moves forward: an access costs one comparison a size that misses it.

    Parameters
    ----------
    sizes
        int64 (m,), ascending, 1 or more.

    Notes
    -----
    4 bytes a distinct item, a bit an access, and what `Course` says of steps.
    """
    m, n = sizes.size, trace.ids.size
    last_times = np.zeros(trace.n_distinct, np.uint32)
    live = np.zeros((n + 1) // 64 + 1, np.uint64)
    bounds, n_in = np.zeros(m, np.uint64), np.zeros(m, np.int64)
    hits = np.zeros((2, m + 1, trace.n_classes), np.int64)
    misses = course.room(m, trace.n_steps)
    for first, stop in parts(trace.whole_starts, course.watch):
        replay_lru(
            trace.ids, trace.classes, trace.step_starts, first, stop, course.first_steady_step, sizes, last_times, live,
            bounds, n_in, hits, misses,
        )  # fmt: skip
    return course.ended(np.cumsum(hits[:, :m], axis=1), misses)
