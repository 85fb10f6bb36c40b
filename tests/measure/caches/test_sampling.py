"""A sample is what its hash says, it counts the whole, and its error bars hold what the whole trace answers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_policies import N_CLASSES, accesses_of, lists_of, skewed, steps_of_items

from engram_tables.errors import InvalidInput
from engram_tables.measure.caches.accesses import State
from engram_tables.measure.caches.policies import Policy, TierShape, simulate
from engram_tables.measure.caches.sampling import N_SLICES, Sampler, adjusted, sampled, slices


def scrambled(item: int) -> int:
    """The upper half of SplitMix64's scramble."""
    item = (item + 0x9E3779B97F4A7C15) % 2**64
    item = (item ^ item >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    item = (item ^ item >> 27) * 0x94D049BB133111EB % 2**64
    return (item ^ item >> 31) >> 32


@settings(deadline=None, max_examples=80)
@given(
    steps=steps_of_items, rate=st.floats(0.01, 1), cold=st.floats(0, 1), cuts=st.lists(st.integers(0, 40), max_size=3)
)
def test_samples_are_what_the_hash_says(steps: list[list[int]], rate: float, cold: float, cuts: list[int]) -> None:
    """In any number of parts; with counts of the whole, items of a step once and as they come."""
    first = round(cold * len(steps))
    whole = accesses_of(steps)
    sampler = Sampler(rate=rate, n_items=whole.n_items, n_classes=N_CLASSES, first_steady_step=first)
    bounds = [0, *sorted(min(cut, len(steps)) for cut in cuts), len(steps)]
    for start, stop in pairwise(bounds):
        part = accesses_of(steps[start:stop])
        sampler.add(part.items, part.classes, part.step_starts)
    sample = sampler.accesses()
    kept = [[item for item in step if scrambled(item) < round(rate * 2**32)] for step in steps]
    assert lists_of(sample) == kept
    assert sample.classes.tolist() == [item % N_CLASSES for step in kept for item in step]
    assert sample.sample_rate == pytest.approx(rate, abs=1e-9)
    n_whole = np.zeros((2, 2, N_CLASSES), np.int64)
    for nth, step in enumerate(steps):
        for item in step:
            n_whole[1, int(nth >= first), item % N_CLASSES] += 1
        for item in set(step):
            n_whole[0, int(nth >= first), item % N_CLASSES] += 1
    assert sample.n_whole is not None
    assert sample.n_whole.tolist() == n_whole.tolist()
    parts = [lists_of(part) for part in slices(sample)]
    assert len(parts) == N_SLICES
    for nth, step in enumerate(kept):
        assert sorted(item for part in parts for item in part[nth]) == sorted(step)
    found = [{item for step in part for item in step} for part in parts]
    assert sum(map(len, found)) == len(set().union(*found))


def test_a_sampler_without_parts_is_empty() -> None:
    sample = Sampler(rate=0.5, n_items=3, n_classes=1, first_steady_step=0).accesses()
    assert (len(sample), sample.n_steps) == (0, 0)


def test_error_bars_hold_the_whole_traces_answer() -> None:
    """Of 6 policies, 3 sizes and 2 parts, at three rates; a 95 % interval may miss a few."""
    accesses = skewed(4000, 40, n_items=60_000, skew=3.0)
    sizes = [2000, 8000, 30_000]
    shapes = [TierShape(n_sets=size // 16, n_pinned=0) for size in sizes]
    truth = simulate(accesses, sizes, first_steady_step=1000, tier_shapes=shapes)
    n_within = n_all = 0
    for rate in (0.5, 0.2, 0.1):
        found = simulate(accesses, sizes, first_steady_step=1000, tier_shapes=shapes, sample=rate)
        for exact, estimate in zip(truth, found, strict=True):
            assert estimate.error is not None
            assert estimate.step_misses is None
            assert estimate.n_slices == N_SLICES
            assert estimate.sizes_items.tolist() == exact.sizes_items.tolist()
            for state in State:
                off = np.abs(estimate.hit_ratios(state) - exact.hit_ratios(state))
                assert (estimate.error[state] < 0.08).all(), exact.policy
                assert (off < 0.03).all(), exact.policy
                n_within += int((off <= estimate.error[state] + 1e-12).sum())
                n_all += off.size
    assert n_all == 3 * 6 * 3 * 2
    assert n_within >= 0.9 * n_all


def test_a_hot_list_is_sampled_as_the_trace_is() -> None:
    """Otherwise a small cache would hold items that the sample does not have."""
    accesses = skewed(3000, 40, n_items=60_000, skew=3.0)
    sizes, hot = [2000, 8000], np.arange(30_000, dtype=np.uint64)
    options = {
        "policies": ["static", "tiered"], "first_steady_step": 500, "hot": hot,
        "tier_shapes": [TierShape(n_sets=size // 16, n_pinned=size // 2) for size in sizes],
    }  # fmt: skip
    truth, found = simulate(accesses, sizes, **options), simulate(accesses, sizes, **options, sample=0.3)  # type: ignore[arg-type]
    for exact, estimate in zip(truth, found, strict=True):
        for state in State:
            assert (np.abs(estimate.hit_ratios(state) - exact.hit_ratios(state)) < 0.02).all(), exact.policy


def test_a_streamed_sample_is_answered_as_the_same_in_memory() -> None:
    accesses = skewed(500, 20)
    sample = sampled(accesses, 0.4, first_steady_step=100)
    left = simulate(accesses, [900], first_steady_step=100, sample=0.4)
    for one, other in zip(left, simulate(sample, [900], first_steady_step=100), strict=True):
        assert one.n_hits.tolist() == other.n_hits.tolist()
        assert one.n_accesses.tolist() == other.n_accesses.tolist()
    with pytest.raises(InvalidInput, match="found a trace that is one already"):
        simulate(sample, [900], first_steady_step=100, sample=0.4)


def test_what_a_sample_has_too_much_or_too_little_counts_as_hits() -> None:
    """And never makes hits of less than nothing, or of more than there are accesses."""
    hits, n = np.array([[[5], [2]]] * 2), np.array([[10], [10]])
    assert [found.tolist() for found in adjusted(hits, n, np.array([[12.4], [7.0]]))] == [
        [[[7], [4]], [[2], [0]]], [[12], [7]],
    ]  # fmt: skip
    assert adjusted(np.array([[[10]]] * 2), n, np.array([[10.0], [0.0]]))[0].tolist() == [[[10]], [[0]]]


def test_samples_of_all_are_exact() -> None:
    accesses = skewed(100, 20)
    for one, other in zip(
        simulate(accesses, [50], first_steady_step=10),
        simulate(accesses, [50], first_steady_step=10, sample=1.0),
        strict=True,
    ):
        assert one.n_hits.tolist() == other.n_hits.tolist()
        assert other.error is None
    assert {curve.policy for curve in simulate(accesses, [50], first_steady_step=10)} == set(Policy)
