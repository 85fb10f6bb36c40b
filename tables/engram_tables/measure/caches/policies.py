"""Replays of a trace through caches of several policies and sizes. It names policies; how they work is elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray

from engram_tables.errors import InvalidInput
from engram_tables.measure.caches import belady, caches, lru, tiered
from engram_tables.measure.caches.accesses import Accesses, State, check_first_steady_step
from engram_tables.measure.caches.curves import Curve, StepMisses
from engram_tables.measure.caches.dense import DenseAccesses, number
from engram_tables.measure.caches.replays import Course, Replayed, Watch, run_together
from engram_tables.measure.caches.sampling import (
    N_SLICES,
    adjusted,
    chosen,
    half_width,
    sampled,
    slice_bounds,
    slices,
)
from engram_tables.measure.caches.tiered import TierShape
from engram_tables.threads import resolve_threads
from engram_tables.units import ProgressHook

_MOST_SIZES = 60_000


class Policy(StrEnum):
    """Which items a cache keeps."""

    LRU = "lru"
    """Those used last, exactly"""
    LRU_16 = "lru-16"
    """Those used last of each set of 16, as hardware and simple software caches do"""
    STATIC = "static"
    """A hot list, whatever comes"""
    TIERED = "tiered"
    """What the tiered reader of `fetch.tiers` keeps"""
    S3_FIFO = "s3-fifo"
    """Three first-in, first-out queues: new, used again, and names of those that went"""
    BELADY = "belady"
    """Those used again soonest: no cache that begins empty can do better, since none knows what comes"""


def simulate(
    accesses: Accesses,
    sizes_items: ArrayLike,
    *,
    policies: Sequence[str] = tuple(Policy),
    first_steady_step: int,
    hot: NDArray[np.uint64] | None = None,
    tier_shapes: Sequence[TierShape] | None = None,
    sample: float | None = None,
    threads: int | None = None,
    progress: ProgressHook = lambda _done, _total: None,
) -> list[Curve]:
    """Hits of each policy at each size, from empty caches on.

    Parameters
    ----------
    accesses
        The trace, or a sample of it: see `sampling.Sampler`.
    sizes_items
        Items that the caches hold (m,), 1 or more, in any order.
    policies
        Names of `Policy`.
    first_steady_step
        The steps before it count as cold, 0 to the number of steps.
    hot
        uint64 (k,): items of a hot list, the hottest first. `static` holds the first of them, `tiered` begins with
        them as its reader does. None: `static` holds those most frequent in the cold part, from the steady part on;
        `tiered` begins empty.
    tier_shapes
        Of `tiered`, one for each size; its items must be rows numbered through all layers. None: sets of 16 for the
        sizes, nothing pinned.
    sample
        The share of the items to replay, as a whole and in `N_SLICES` slices, in place of all. Error bars come with it.
    threads
        None: all CPUs.
    progress
        Called with accesses, over all replays.

    Returns
    -------
    list of Curve
        One for each of `policies`, in order. Of a sample, counts are those of the sample.

    Raises
    ------
    InvalidInput
        A size, policy, step, shape or rate out of its range; a second sample of a sample; or a sample so small that
        a slice's cache would not hold one item.
    CapacityError
        2^32 - 2 accesses or more.

    Notes
    -----
    Deterministic for any number of threads. `lru`, `static` and `belady` never lose hits when they grow; sets, S3-FIFO
    and the tiered reader may. `belady` bounds the hits of all classes and both parts together of those policies that
    begin empty; a hot list may have hits before their items come.

    Memory: 9 bytes an access are the trace's; 5 more and 12 a distinct item are needed by all policies but `tiered`,
    and for each thread what the replay in `lru`, `caches`, `tiered` and `belady` states.
    """
    asked = _Question(
        sizes=np.atleast_1d(np.asarray(sizes_items, np.int64)), policies=[_policy(name) for name in policies],
        first_steady_step=first_steady_step, hot=hot, tier_shapes=tier_shapes, threads=resolve_threads(threads),
    )  # fmt: skip
    _check(accesses, asked)
    if sample is not None:
        if accesses.sample_rate != 1:
            raise InvalidInput("sample: found a trace that is one already; expected a whole one; give no rate")
        accesses = sampled(accesses, sample, first_steady_step=first_steady_step)
    bounds = slice_bounds(accesses)
    replayed, hashes = [accesses], [(bounds[0][0], bounds[-1][1])]
    if accesses.sample_rate < 1:
        replayed, hashes = [accesses, *slices(accesses)], [*hashes, *bounds]
        _check_rate(asked, min(each.sample_rate for each in replayed))
    watch = Watch(progress, sum(len(each) for each in replayed) * _n_passes(asked))
    answers = [
        _replay(each, asked.of_sample(each.sample_rate, *of_each), watch)
        for each, of_each in zip(replayed, hashes, strict=True)
    ]
    return [
        _curve(asked, policy, accesses, [answer[k] for answer in answers]) for k, policy in enumerate(asked.policies)
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Question:
    """What is asked of a trace."""

    sizes: NDArray[np.int64]
    policies: list[Policy]
    first_steady_step: int
    hot: NDArray[np.uint64] | None
    tier_shapes: Sequence[TierShape] | None
    threads: int

    def of_sample(self, rate: float, low: int, high: int) -> _Question:
        """The same of caches in proportion, and of what the hashes `low` … `high` - 1 leave of the hot list."""
        if rate == 1:
            return self
        hot = None if self.hot is None else chosen(self.hot, low, high)
        shapes = None if self.tier_shapes is None else [shape.of_sample(rate) for shape in self.tier_shapes]
        sizes = np.maximum(1, np.rint(self.sizes * rate).astype(np.int64))
        return _Question(
            sizes=sizes, policies=self.policies, first_steady_step=self.first_steady_step, hot=hot,
            tier_shapes=shapes, threads=self.threads,
        )  # fmt: skip

    def shapes(self) -> list[TierShape]:
        """The shape of every size of `tiered`."""
        if self.tier_shapes is not None:
            return list(self.tier_shapes)
        return [TierShape(n_sets=caches.set_shape(size)[0]) for size in self.sizes.tolist()]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Answer:
    """Of one policy, in the order of the question's sizes: arrays as in `Curve`."""

    n_hits: NDArray[np.int64]
    step_misses: StepMisses | None
    n_accesses: NDArray[np.int64]


def _policy(name: str) -> Policy:
    try:
        return Policy(name)
    except ValueError:
        raise InvalidInput(f"policy: found {name!r}, expected one of {', '.join(Policy)}") from None


def _check(accesses: Accesses, asked: _Question) -> None:
    check_first_steady_step(accesses, asked.first_steady_step)
    sizes = asked.sizes
    if sizes.ndim != 1 or not 1 <= sizes.size <= _MOST_SIZES or sizes.min() < 1:
        raise InvalidInput(f"sizes: found {sizes.tolist()[:8]}, expected 1 to {_MOST_SIZES} of 1 item or more")
    if asked.tier_shapes is not None and len(asked.tier_shapes) != sizes.size:
        raise InvalidInput(f"tier shapes: found {len(asked.tier_shapes)}, expected {sizes.size}, one for each size")
    for shape in asked.tier_shapes or ():
        if shape.n_sets < 1 or shape.n_pinned < 0:
            raise InvalidInput(f"tier shape: found {shape}, expected 1 set or more; give it more memory")
    if asked.hot is not None and (asked.hot.dtype != np.uint64 or asked.hot.ndim != 1):
        raise InvalidInput(f"hot list: found {asked.hot.dtype} of {asked.hot.ndim} dimensions, expected uint64 and 1")
    if asked.hot is not None and asked.hot.size and int(asked.hot.max()) >= accesses.n_items:
        raise InvalidInput(f"hot list: found item {int(asked.hot.max())}, expected less than {accesses.n_items}")


def _check_rate(asked: _Question, slice_rate: float) -> None:
    smallest = int(asked.sizes.min())
    if smallest * slice_rate < 1:
        raise InvalidInput(
            f"sample: found {slice_rate:.3g} of all items in a slice and a cache of {smallest} items, expected one "
            f"that leaves an item; sample {N_SLICES / smallest:.3g} of them or more, or leave the size out"
        )


def _n_passes(asked: _Question) -> int:
    """How often the trace is gone through: once for its numbers, and by every replay."""
    n_sizes = {Policy.LRU: 1, Policy.STATIC: 1}
    n_unique = np.unique(asked.sizes).size
    n_sizes |= {Policy.LRU_16: n_unique, Policy.S3_FIFO: n_unique, Policy.BELADY: n_unique}
    passes = sum(n_sizes.get(policy, asked.sizes.size) for policy in set(asked.policies))
    return passes + int(bool(set(asked.policies) - {Policy.TIERED}))


def _replay(accesses: Accesses, asked: _Question, watch: Watch) -> list[_Answer]:
    """Replay one trace for every policy."""
    course = Course(
        first_steady_step=asked.first_steady_step, counts_steps=accesses.sample_rate == 1, watch=watch,
        step_tokens=accesses.step_tokens,
    )  # fmt: skip
    trace = number(accesses, watch=watch) if set(asked.policies) - {Policy.TIERED} else None
    split = int(accesses.step_starts[asked.first_steady_step])
    as_they_come = np.stack(
        [
            np.bincount(part, minlength=accesses.n_classes)
            for part in (accesses.classes[:split], accesses.classes[split:])
        ]
    ).astype(np.int64)
    # In the order of the enumeration, which begins with the longest single task.
    chosen = [policy for policy in Policy if policy in asked.policies]
    done: dict[Policy, dict[int, Replayed]] = {policy: {} for policy in chosen}
    tasks: list[Callable[[], None]] = []
    unique, back = np.unique(asked.sizes, return_inverse=True)
    for policy in chosen:
        if policy is Policy.TIERED:
            tasks += _tiered_tasks(accesses, asked, done[policy], course)
        elif trace is not None:
            tasks += _tasks(trace, asked, policy, unique, done[policy], course)
    run_together(tasks, threads=asked.threads, watch=watch)
    answers: dict[Policy, _Answer] = {}
    for policy, found in done.items():
        order = np.arange(asked.sizes.size) if policy is Policy.TIERED else back
        hits = np.concatenate([found[k].n_hits for k in sorted(found)], axis=1)[:, order]
        misses = _joined([found[k].step_misses for k in sorted(found)], order)
        n_accesses = (
            as_they_come if trace is None or policy is Policy.TIERED else trace.n_accesses(asked.first_steady_step)
        )
        answers[policy] = _Answer(n_hits=hits, step_misses=misses, n_accesses=n_accesses)
    return [answers[policy] for policy in asked.policies]


def _tiered_tasks(
    accesses: Accesses, asked: _Question, found: dict[int, Replayed], course: Course
) -> list[Callable[[], None]]:
    def task(at: int, shape: TierShape) -> None:
        found[at] = tiered.replay(accesses, shape, asked.hot, course)

    return [lambda at=at, shape=shape: task(at, shape) for at, shape in enumerate(asked.shapes())]  # type: ignore[misc]


def _tasks(
    trace: DenseAccesses, asked: _Question, policy: Policy, sizes: NDArray[np.int64], found: dict[int, Replayed],
    course: Course,
) -> list[Callable[[], None]]:  # fmt: skip
    """Replays of one policy, which put what they find at the position of their (first) size."""
    following = _Once(lambda: belady.next_uses(trace))

    def all_sizes() -> None:
        if policy is Policy.LRU:
            found[0] = lru.replay(trace, sizes, course)
        else:
            found[0] = _static(trace, asked, sizes, course)

    def one_size(at: int) -> None:
        size = int(sizes[at])
        match policy:
            case Policy.LRU_16:
                found[at] = caches.replay_lru_sets(trace, size, course)
            case Policy.S3_FIFO:
                found[at] = caches.replay_s3_fifo_queues(trace, size, course)
            case _:
                found[at] = belady.replay(trace, following.get(), size, course)

    if policy in (Policy.LRU, Policy.STATIC):
        return [all_sizes]
    return [lambda at=at: one_size(at) for at in range(sizes.size)]  # type: ignore[misc]


def _static(trace: DenseAccesses, asked: _Question, sizes: NDArray[np.int64], course: Course) -> Replayed:
    if asked.hot is not None:
        return caches.replay_hot_list(trace, sizes, caches.hot_places(trace, asked.hot), course)
    # It is made of the cold part, and so is not there while that lasts.
    first = asked.first_steady_step
    return caches.replay_hot_list(trace, sizes, caches.frequent_places(trace, first), course, loading_step=first)


def _joined(found: Sequence[StepMisses | None], order: NDArray[np.int64]) -> StepMisses | None:
    """Of several sizes, in an order."""
    each = [misses for misses in found if misses is not None]
    if not each:
        return None
    return StepMisses(
        p50=np.concatenate([misses.p50 for misses in each], axis=1)[:, order],
        p99=np.concatenate([misses.p99 for misses in each], axis=1)[:, order],
        most=np.concatenate([misses.most for misses in each], axis=1)[:, order],
    )


class _Once:
    """A value that the first thread to want it computes."""

    def __init__(self, compute: Callable[[], NDArray[np.uint32]]) -> None:
        self._compute, self._lock = compute, threading.Lock()
        self._value: NDArray[np.uint32] | None = None

    def get(self) -> NDArray[np.uint32]:
        with self._lock:
            if self._value is None:
                self._value = self._compute()
            return self._value


def _curve(asked: _Question, policy: Policy, accesses: Accesses, answers: list[_Answer]) -> Curve:
    """Of the whole trace's answer; or of a sample's, and those of its slices."""
    whole = answers[0]
    basis = None
    if policy is Policy.STATIC:
        of_trace = f"the most frequent items of the first {asked.first_steady_step} steps"
        basis = of_trace if asked.hot is None else "the hot list"
    if accesses.sample_rate == 1:
        return Curve(
            policy=policy, sizes_items=_held(asked, policy), n_hits=whole.n_hits, n_accesses=whole.n_accesses,
            step_misses=whole.step_misses, basis=basis,
        )  # fmt: skip
    n_whole = None if accesses.n_whole is None else accesses.n_whole[int(policy is Policy.TIERED)]
    found = []
    for nth, answer in enumerate(answers):
        rate = accesses.sample_rate / (N_SLICES if nth else 1)
        expected = answer.n_accesses if n_whole is None else n_whole * rate
        found.append(adjusted(answer.n_hits, answer.n_accesses, np.asarray(expected, np.float64)))
    if policy is Policy.STATIC and asked.hot is None:
        for hits, _ in found:
            hits[State.COLD] = 0
    with np.errstate(invalid="ignore"):
        ratios = [hits.sum(axis=2) / n_accesses.sum(axis=1)[:, None] for hits, n_accesses in found]
    return Curve(
        policy=policy, sizes_items=_held(asked, policy), n_hits=found[0][0], n_accesses=found[0][1],
        step_misses=None, error=half_width(ratios[0], ratios[1:]), n_slices=N_SLICES, basis=basis,
    )  # fmt: skip


def _held(asked: _Question, policy: Policy) -> NDArray[np.int64]:
    if policy is Policy.TIERED:
        return np.array([shape.n_slots for shape in asked.shapes()], np.int64)
    return asked.sizes
