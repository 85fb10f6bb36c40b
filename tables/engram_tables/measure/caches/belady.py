"""The bound of all caches: one that knows what comes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_tables.measure.caches.belady_kernels import find_next_uses, replay_belady
from engram_tables.measure.caches.dense import DenseAccesses
from engram_tables.measure.caches.replays import Course, Replayed, parts


def next_uses(trace: DenseAccesses) -> NDArray[np.uint32]:
    """For each access the next one of its item, uint32 (n,); n where there is none. One thread, 4 bytes an access."""
    found = np.empty(trace.ids.size, np.uint32)
    find_next_uses(trace.ids, trace.n_distinct, found)
    return found


def replay(trace: DenseAccesses, following: NDArray[np.uint32], size_items: int, course: Course) -> Replayed:
    """Hits of the best cache of a size, which may leave out what it has read.

    Keeping an item from one step to the next that has it earns one hit; so the most hits are the most such spans of
    which no more than `size_items` lie over one another at any time, and throwing out the span that ends last, as often
    as there is one too many, finds them. Of spans that end in one step it is the one whose item comes later in it.

    Parameters
    ----------
    following
        See `next_uses`.

    Notes
    -----
    A bit an access. The hits of all classes together are the bound: of one class alone, a cache
    that cares for no other may have more.
    """
    levels: list[int] = []
    n_words, total = trace.ids.size, 0
    while not levels or n_words > 1:
        n_words = max(1, -(-n_words // 64))
        levels.append(total)
        total += n_words
    bits, n_in = np.zeros(total, np.uint64), np.zeros(1, np.int64)
    hits, misses = np.zeros((2, trace.n_classes), np.int64), course.room(1, trace.n_steps)
    for first, stop in parts(trace.whole_starts, course.watch):
        replay_belady(
            following, trace.classes, trace.step_starts, first, stop, course.first_steady_step, size_items,
            bits, np.array(levels), n_in, hits, misses[0],
        )  # fmt: skip
    return course.ended(hits[:, None], misses)
