"""Every policy hits where its plain-Python twin does, for any trace, and grows as it must."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.measure.caches import dense, reference, replays
from engram_tables.measure.caches.accesses import Accesses, State
from engram_tables.measure.caches.curves import Curve, step_misses
from engram_tables.measure.caches.policies import Policy, TierShape, simulate
from engram_tables.measure.caches.replays import Watch

N_CLASSES = 3
FAR = 2**33
"""Added to items, so that some differ in their high halves only."""
item_numbers = st.one_of(st.integers(0, 7), st.integers(0, 40), st.sampled_from([FAR, FAR + 1, 2 * FAR]))
steps_of_items = st.lists(st.lists(item_numbers, max_size=12), min_size=1, max_size=40)
steps_of_rows = st.lists(st.lists(st.integers(0, 40), max_size=12), min_size=1, max_size=40)
"""For the tiered reader, whose tags cannot tell so many items apart."""
sizes_of_caches = st.lists(st.integers(1, 50), min_size=1, max_size=5)


def class_of(item: int) -> int:
    return item % N_CLASSES


def accesses_of(steps: list[list[int]], **options: Any) -> Accesses:
    items = np.array([item for step in steps for item in step], np.uint64)
    starts = np.cumsum([0, *map(len, steps)]).astype(np.int64)
    classes = (items % np.uint64(N_CLASSES)).astype(np.uint8)
    return Accesses(
        items=items, classes=classes, step_starts=starts, n_items=int(items.max(initial=0)) + 1, n_classes=N_CLASSES,
        **options,
    )  # fmt: skip


def expected(steps: list[list[int]], policy: str, size: int, hot: list[int] | None, first: int) -> reference.Found:
    if policy == Policy.TIERED:
        return reference.tiered(steps, max(1, size // 16), hot=hot or ())
    if policy == Policy.STATIC:
        cold = reference.once_a_step(steps[:first])
        counts: dict[int, int] = {}
        for item in (item for step in cold for item in step):
            counts[item] = counts.get(item, 0) + 1
        chosen = sorted(counts, key=lambda item: -counts[item]) if hot is None else hot
        found = reference.static(steps, size, chosen)
        return found if hot is not None else [[False] * len(step) for step in found[:first]] + found[first:]
    twins = {
        Policy.LRU: reference.lru, Policy.LRU_16: reference.lru_sets, Policy.S3_FIFO: reference.s3_fifo,
        Policy.BELADY: reference.belady,
    }  # fmt: skip
    return twins[Policy(policy)](steps, size)


def tally(steps: list[list[int]], found: reference.Found, first: int) -> tuple[Any, Any, Any]:
    """Hits and accesses by state and class, and the misses of each step."""
    hits, n = np.zeros((2, 2, N_CLASSES), np.int64)
    misses = []
    for nth, (step, of_step) in enumerate(zip(steps, found, strict=True)):
        for item, is_here in zip(step, of_step, strict=True):
            hits[int(nth >= first), class_of(item)] += is_here
            n[int(nth >= first), class_of(item)] += 1
        misses.append(len(step) - sum(of_step))
    return hits, n, misses


@settings(deadline=None, max_examples=80)
@given(
    steps=steps_of_items | steps_of_rows, sizes=sizes_of_caches, cold=st.floats(0, 1), threads=st.integers(1, 3),
    hot=st.none() | st.lists(item_numbers, max_size=30),
)  # fmt: skip
@example(steps=[[]], sizes=[1], cold=0, threads=1, hot=None)
@example(steps=[[], [3], [], [3, 3]], sizes=[1, 1, 50], cold=1, threads=2, hot=[])
@example(steps=[[0, 1, 2, 3, 4, 5]] * 4, sizes=[5, 6, 7], cold=0.5, threads=2, hot=[9, 0, 0, 5])
@example(steps=[[7], [FAR + 7], [7], [2 * FAR + 7], [FAR + 7]] * 3, sizes=[2, 1], cold=0.2, threads=1, hot=None)
def test_all_policies_are_their_twins(
    steps: list[list[int]], sizes: list[int], cold: float, threads: int, hot: list[int] | None
) -> None:
    first = round(cold * len(steps))
    hot_items = None if hot is None else np.array(hot, np.uint64)
    accesses = accesses_of(steps)
    accesses = replace(accesses, n_items=max(accesses.n_items, *(item + 1 for item in [*(hot or []), 0])))
    policies = [policy for policy in Policy if accesses.n_items < FAR or policy != Policy.TIERED]
    curves = simulate(accesses, sizes, policies=policies, first_steady_step=first, hot=hot_items, threads=threads)
    assert [curve.policy for curve in curves] == policies
    for curve in curves:
        counted = steps if curve.policy == Policy.TIERED else reference.once_a_step(steps)
        misses = []
        for k, size in enumerate(sizes):
            hits, n, of_size = tally(counted, expected(steps, curve.policy, size, hot, first), first)
            assert curve.n_hits[:, k].tolist() == hits.tolist(), curve.policy
            assert curve.n_accesses.tolist() == n.tolist()
            misses.append(of_size)
        check_step_misses(curve, np.array(misses, np.uint32), first)
        assert curve.error is None
        assert curve.n_slices == 0
        assert (curve.basis is None) == (curve.policy != Policy.STATIC)


def check_step_misses(curve: Curve, misses: Any, first: int) -> None:
    """Percentiles are of the twin's steps, by a definition that is written down anew."""
    found = curve.step_misses
    assert found is not None
    for state, part in ((State.COLD, misses[:, :first]), (State.STEADY, misses[:, first:])):
        for k, of_size in enumerate(part):
            for percent, array in ((50, found.p50), (99, found.p99), (100, found.most)):
                least = next((v for v in sorted(of_size) if 100 * sum(of_size <= v) >= percent * len(of_size)), -1)
                assert array[state, k] == least


@settings(deadline=None, max_examples=60)
@given(steps=steps_of_rows, n_sets=st.integers(1, 3), n_pinned=st.integers(0, 50), hot=st.lists(st.integers(0, 40)))
def test_tiered_pins_and_preloads(steps: list[list[int]], n_sets: int, n_pinned: int, hot: list[int]) -> None:
    shape = TierShape(n_sets=n_sets, n_pinned=n_pinned)
    (curve,) = simulate(
        replace(accesses_of(steps), n_items=41), [1], policies=["tiered"], first_steady_step=0,
        hot=np.array(hot, np.uint64), tier_shapes=[shape],
    )  # fmt: skip
    found = reference.tiered(steps, n_sets, n_pinned=min(n_pinned, shape.n_slots), hot=hot)
    assert curve.n_hits[State.STEADY, 0].tolist() == tally(steps, found, 0)[0][State.STEADY].tolist()
    assert curve.sizes_items.tolist() == [16 * n_sets]


def skewed(n_steps: int, step_items: int, *, n_items: int = 5000, seed: int = 0, skew: float = 4.0) -> Accesses:
    """Few items often, many seldom."""
    rng = np.random.default_rng(seed)
    items = (n_items * rng.random(n_steps * step_items) ** skew).astype(np.uint64)
    starts = np.arange(0, items.size + 1, step_items)
    classes = (items % np.uint64(N_CLASSES)).astype(np.uint8)
    return Accesses(items=items, classes=classes, step_starts=starts, n_items=n_items, n_classes=N_CLASSES)


def lists_of(accesses: Accesses) -> list[list[int]]:
    bounds = zip(accesses.step_starts[:-1], accesses.step_starts[1:], strict=True)
    return [accesses.items[start:stop].tolist() for start, stop in bounds]


def test_longer_traces_are_their_twins_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets fill, uses halve, ghosts return, the numbering's slots grow; and seams between parts do not show."""
    accesses = skewed(500, 40)
    steps = lists_of(accesses)
    monkeypatch.setattr(replays, "_PART_ACCESSES", 777)
    monkeypatch.setattr(dense, "_LEAST_SLOTS", 2)
    sizes = [64, 700, 2000]
    for curve in simulate(accesses, sizes, first_steady_step=200, policies=[p for p in Policy if p != Policy.BELADY]):
        counted = steps if curve.policy == Policy.TIERED else reference.once_a_step(steps)
        for k, size in enumerate(sizes):
            hits, n, _ = tally(counted, expected(steps, curve.policy, size, None, 200), 200)
            assert curve.n_hits[:, k].tolist() == hits.tolist(), (curve.policy, size)
            assert curve.n_accesses.tolist() == n.tolist()


@settings(deadline=None, max_examples=60)
@given(steps=steps_of_rows, cold=st.floats(0, 1))
def test_larger_caches_lose_no_hit_and_none_passes_the_bound(steps: list[list[int]], cold: float) -> None:
    """The bound is of both parts and all classes together, for policies that begin empty and items once a step."""
    steps = reference.once_a_step(steps)
    sizes = list(range(1, 40))
    curves = {c.policy: c for c in simulate(accesses_of(steps), sizes, first_steady_step=round(cold * len(steps)))}
    totals = {policy: curve.n_hits.sum(axis=(0, 2)) for policy, curve in curves.items()}
    for policy in (Policy.LRU, Policy.STATIC, Policy.BELADY):
        assert (np.diff(totals[policy]) >= 0).all()
    for policy in Policy:
        held = curves[policy].sizes_items
        bound = totals[Policy.BELADY][np.minimum(held, len(sizes)) - 1]
        assert (totals[policy] <= bound)[held <= len(sizes)].all(), policy
    n_distinct = len({item for step in steps for item in step})
    n = sum(map(len, steps))
    for policy in (Policy.LRU, Policy.S3_FIFO, Policy.BELADY):
        assert totals[policy][n_distinct:].tolist() == [n - n_distinct] * max(0, len(sizes) - n_distinct)


@pytest.mark.parametrize(
    ("policy", "n_items", "n_steps", "smallest"),
    [(Policy.LRU_16, 300, 60, 64), (Policy.S3_FIFO, 60, 40, 1), (Policy.TIERED, 300, 60, 64)],
)
def test_sets_and_queues_may_lose_hits_when_they_grow(
    policy: Policy, n_items: int, n_steps: int, smallest: int
) -> None:
    """Why they promise nothing: among evenly drawn traces there are some on which each of them does."""
    loses = []
    for seed in range(20):
        accesses = skewed(n_steps, 3, n_items=n_items, seed=seed, skew=1.0)
        (curve,) = simulate(accesses, np.arange(smallest, n_items), policies=[policy], first_steady_step=0)
        loses.append(bool((np.diff(curve.n_hits.sum(axis=(0, 2))) < 0).any()))
    assert any(loses)


def test_threads_and_order_of_sizes_change_nothing() -> None:
    accesses = skewed(2000, 30)
    shapes = [TierShape(n_sets=n) for n in (30, 3, 30, 7)]
    one, many = (
        simulate(accesses, [500, 50, 500, 130], first_steady_step=100, tier_shapes=shapes, threads=threads)
        for threads in (1, 7)
    )
    for left, right in zip(one, many, strict=True):
        assert left.n_hits.tolist() == right.n_hits.tolist()
        assert left.n_hits[:, 0].tolist() == left.n_hits[:, 2].tolist()
    assert [curve.policy for curve in simulate(accesses, 9, policies=["belady", "lru"], first_steady_step=0)] == [
        "belady", "lru",
    ]  # fmt: skip


def test_progress_ends_at_its_total_and_an_error_in_it_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "_PART_ACCESSES", 1000)
    accesses = skewed(200, 30)
    calls: list[tuple[int, int]] = []
    simulate(accesses, [5, 50, 5], first_steady_step=0, progress=lambda *call: calls.append(call))
    # Once for numbers, once each for the exact and the static ones, 2 sizes of three policies and 3 of the tiered one.
    assert calls[-1] == (12 * 6000, 12 * 6000)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(accesses, [5, 50], first_steady_step=0, threads=2, progress=interrupt)


def test_percentiles_are_nearest_rank() -> None:
    misses = np.arange(1, 201, dtype=np.uint32)[None, ::-1]
    found = step_misses(misses, 100)
    assert [found.p50.tolist(), found.p99.tolist(), found.most.tolist()] == [
        [[150], [50]],
        [[199], [99]],
        [[200], [100]],
    ]
    assert step_misses(misses, 0).p50.tolist() == [[-1], [100]]
    of_tokens = step_misses(misses, 100, np.arange(200, 0, -1))
    assert of_tokens.most.tolist() == of_tokens.p50.tolist() == [[1.0], [1.0]]


def test_tokens_of_steps_are_checked() -> None:
    for tokens in ([1], [1, 0], [1, 2, 3]):
        with pytest.raises(InvalidInput, match="tokens of"):
            replace(accesses_of([[0], [1]]), step_tokens=np.array(tokens))


def test_ratios() -> None:
    (curve,) = simulate(accesses_of([[0], [0], [0, 1], [1]]), [1, 2], policies=["lru"], first_steady_step=2)
    assert curve.hit_ratios(State.COLD).tolist() == [0.5, 0.5]
    assert curve.hit_ratios(State.STEADY).tolist() == [2 / 3, 2 / 3]
    assert curve.hit_ratios(State.STEADY, 0).tolist() == [1, 1]
    assert np.isnan(curve.hit_ratios(State.STEADY, 2)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sizes_items": [0]}, "expected 1 to 60000 of 1 item or more"),
        ({"sizes_items": []}, "expected 1 to 60000"),
        ({"sizes_items": [[1, 2]]}, "expected 1 to 60000"),
        ({"policies": ["lfu"]}, "found 'lfu', expected one of lru, lru-16"),
        ({"first_steady_step": 4}, "found 4, expected 0 to 3"),
        ({"first_steady_step": -1}, "found -1, expected 0 to 3"),
        ({"tier_shapes": []}, "found 0, expected 2, one for each size"),
        ({"tier_shapes": [TierShape(n_sets=0)] * 2}, "expected 1 set or more"),
        (
            {"tier_shapes": [TierShape(n_sets=1)] * 2, "n_items": FAR},
            "found 1 sets for 8589934592 items, expected 3 or",
        ),
        ({"hot": np.array([1, 4], np.uint64)}, "hot list: found item 4, expected less than 4"),
        ({"hot": np.zeros(3)}, "found float64 of 1 dimensions, expected uint64"),
        ({"sample": 0.0}, "found a rate of 0.0, expected more than 0"),
        ({"sample": 1.5}, "found a rate of 1.5"),
        ({"sample": 0.5}, "a cache of 2 items, expected one that leaves an item; sample 4 of them or more"),
    ],
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    asked: dict[str, Any] = {"sizes_items": [2, 3], "first_steady_step": 0} | options
    accesses = replace(accesses_of([[1], [2, 3], [1]]), n_items=asked.pop("n_items", 4))
    with pytest.raises(InvalidInput, match=words):
        simulate(accesses, asked.pop("sizes_items"), **asked)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"items": np.zeros(3, np.int64)}, "found items of int64"),
        ({"classes": np.zeros(2, np.uint8)}, "found 2 classes, expected 3"),
        ({"step_starts": np.array([0, 2])}, "do not rise from 0 to 3"),
        ({"step_starts": np.array([0, 2, 1, 3])}, "do not rise"),
        ({"step_starts": np.array([], np.int64)}, "found 0 step starts"),
        ({"n_items": 2}, "found item 2, expected less than 2"),
        ({"n_classes": 1}, "found class 1, expected less than 1"),
        ({"n_classes": 257}, "found 257 classes, expected 1 to 256"),
        ({"sample_rate": 0.0}, "found a sample rate of 0.0"),
        ({"n_whole": np.zeros((2, 2))}, "found n_whole of float64"),
    ],
)
def test_accesses_are_checked(change: dict[str, Any], words: str) -> None:
    fine: dict[str, Any] = {
        "items": np.arange(3, dtype=np.uint64), "classes": np.array([0, 1, 1], np.uint8),
        "step_starts": np.array([0, 1, 3]), "n_items": 3, "n_classes": 2,
    }  # fmt: skip
    assert len(Accesses(**fine)) == 3
    with pytest.raises(InvalidInput, match=words):
        Accesses(**fine | change)


def test_too_many_accesses_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_MOST_ACCESSES", 3)
    with pytest.raises(CapacityError, match="found 3, expected less than 3; take a sample"):
        dense.number(accesses_of([[1, 2, 3]]), watch=Watch(lambda _done, _total: None, 3))
