"""Caches of one size, and hot lists of many: sets of least recently used items, S3-FIFO, static."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from engram_tables.measure.caches.dense import DenseAccesses
from engram_tables.measure.caches.policy_kernels import (
    N_QUEUE_STATE,
    replay_s3_fifo,
    replay_sets,
    replay_static,
)
from engram_tables.measure.caches.replays import Course, Replayed, parts

SET_WAYS = 16
_NO_PLACE = 2**62
_SMALL_SHARE = 10
"""One in so many places of S3-FIFO is for items that are new."""


def set_shape(size_items: int) -> tuple[int, int]:
    """Sets and ways of `lru-16`: as many whole sets as the size has; one smaller set where it has none.

    >>> set_shape(100), set_shape(5)
    ((6, 16), (1, 5))
    """
    return max(1, size_items // SET_WAYS), min(SET_WAYS, size_items)


def queue_shape(size_items: int) -> tuple[int, int]:
    """Places of the small and of the main queue of S3-FIFO: a tenth, at least one, and the rest.

    >>> queue_shape(100), queue_shape(5)
    ((10, 90), (1, 4))
    """
    n_small = max(1, size_items // _SMALL_SHARE)
    return n_small, size_items - n_small


def replay_lru_sets(trace: DenseAccesses, size_items: int, course: Course) -> Replayed:
    """Sets of 16 that an item's scrambled number chooses, each of which throws out what it used least recently.

    Notes
    -----
    4 bytes an item of the cache.
    """
    ways = np.zeros(set_shape(size_items), np.uint32)
    hits, misses = np.zeros((2, trace.n_classes), np.int64), course.room(1, trace.n_steps)
    for first, stop in parts(trace.whole_starts, course.watch):
        replay_sets(
            trace.ids, trace.classes, trace.step_starts, first, stop, course.first_steady_step, ways, hits, misses[0]
        )
    return course.ended(hits[:, None], misses)


def replay_s3_fifo_queues(trace: DenseAccesses, size_items: int, course: Course) -> Replayed:
    """S3-FIFO: see `policy_kernels.replay_s3_fifo`.

    Notes
    -----
    5 bytes a distinct item, 8 an item of the cache.
    """
    n_small, n_main = queue_shape(size_items)
    n_ring = min(size_items, trace.n_distinct) + 1
    small, main = np.empty(n_ring, np.uint32), np.empty(n_ring, np.uint32)
    marks, ghosts = np.zeros(trace.n_distinct, np.uint8), np.zeros(trace.n_distinct, np.uint32)
    queue = np.zeros(N_QUEUE_STATE, np.int64)
    hits, misses = np.zeros((2, trace.n_classes), np.int64), course.room(1, trace.n_steps)
    for first, stop in parts(trace.whole_starts, course.watch):
        replay_s3_fifo(
            trace.ids, trace.classes, trace.step_starts, first, stop, course.first_steady_step, marks, ghosts, small,
            main, queue, n_small, n_main, hits, misses[0],
        )  # fmt: skip
    return course.ended(hits[:, None], misses)


def replay_hot_list(
    trace: DenseAccesses, sizes: NDArray[np.int64], places: NDArray[np.int64], course: Course, *, loading_step: int = 0
) -> Replayed:
    """The first items of a hot list, as many as each size holds; ascending sizes, fewer than 65,535.

    Before `loading_step` the caches are empty.

    Parameters
    ----------
    places
        int64 (n_distinct,): see `hot_places` and `frequent_places`.

    Notes
    -----
    2 bytes a distinct item, and 8 for its place.
    """
    m = sizes.size
    # A size has the items whose place is below it.
    smallest = np.searchsorted(sizes, places, side="right").astype(np.uint16)
    hits = np.zeros((2, m + 1, trace.n_classes), np.int64)
    misses = course.room(m, trace.n_steps)
    for first, stop in parts(trace.whole_starts, course.watch):
        replay_static(
            trace.ids, trace.classes, trace.step_starts, first, stop, course.first_steady_step, loading_step,
            smallest, hits, misses,
        )  # fmt: skip
    return course.ended(np.cumsum(hits[:, :m], axis=1), misses)


def hot_places(trace: DenseAccesses, hot: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Each item's place in a hot list, from 0; past its end for those that are not in it: int64 (n_distinct,)."""
    unique, first_places = np.unique(hot, return_index=True)
    # An item that the list has twice counts where it comes first, and takes up one place.
    in_list = np.zeros(hot.size, np.bool_)
    in_list[first_places] = True
    of_unique = (np.cumsum(in_list) - 1)[first_places]
    places = np.full(trace.n_distinct, _NO_PLACE, np.int64)
    _, at, numbers = np.intersect1d(unique, trace.items_of, assume_unique=True, return_indices=True)
    places[numbers] = of_unique[at]
    return places


def frequent_places(trace: DenseAccesses, stop_step: int) -> NDArray[np.int64]:
    """As `hot_places`, of the items of most of the first steps; of equal ones those that came first."""
    counts = np.bincount(trace.ids[: trace.step_starts[stop_step]])
    places = np.full(trace.n_distinct, _NO_PLACE, np.int64)
    places[np.argsort(-counts, kind="stable")] = np.arange(counts.size)
    return places
