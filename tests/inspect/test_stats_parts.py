"""The parts of `inspect stats` against plain twins: samples, sums of rows, hashes, repetitions, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_tables import small_spec

from engram_tables.inspect.record_values import hash_records, scales_of, sections_of
from engram_tables.inspect.stats_duplicates import HashedRows, chance_of_equals, find_copies
from engram_tables.inspect.stats_record import limits_of
from engram_tables.inspect.stats_sample import BLOCK_ROWS, HeadRows, choose_rows, scattered
from engram_tables.inspect.stats_tally import Tally, norm_quantiles, tally_rows
from engram_tables.storage.codecs.codec import CODEC_NAMES, FP8_SCALAR, get_codec
from engram_tables.storage.row_groups import RowGroup


@settings(max_examples=25, deadline=None)
@given(st.integers(64, 700), st.integers(0, 2**70), st.lists(st.integers(0, 2000), min_size=2, max_size=8, unique=True))
def test_a_sample_is_of_rows_that_are_here(sample: int, seed: int, ends: list[int]) -> None:
    spec = small_spec(2000)
    bounds = sorted(ends)[: len(ends) // 2 * 2]
    ranges = tuple(zip(bounds[::2], bounds[1::2], strict=True))
    owned = {1: ranges, 14: ((0, 2000),)}
    heads = choose_rows(spec, owned, sample=sample, seed=seed)
    assert [head.rows is None for head in heads] == [head.n_here <= sample for head in heads]
    again = choose_rows(spec, owned, sample=sample, seed=seed)
    for head, same in zip(heads, again, strict=True):
        here = {row for start, stop in head.ranges for row in range(start, stop)}
        assert here <= set(range(head.group.start, head.group.stop))
        if head.rows is not None and same.rows is not None:
            assert np.array_equal(head.rows, same.rows)
            assert (np.diff(head.rows) > 0).all()
            assert set(head.rows.tolist()) <= here
            first, last = head.ranges[0][0], head.ranges[-1][1] - 1
            assert {first, last} <= set(head.rows.tolist())
    assert sum(head.n_here for head in heads) == 2000 + sum(stop - start for start, stop in ranges)


@given(st.integers(0, 2**64 - 1), st.integers(1, 2**40))
def test_scattered_numbers_are_within(seed: int, below: int) -> None:
    numbers = scattered(seed, 3, 50, below)
    assert ((numbers >= 0) & (numbers < below)).all()
    assert below < 1000 or len(set(numbers.tolist())) > 25


def plain_tally(values: NDArray[np.float32], rows: list[int]) -> dict[str, list[int]]:
    """Which rows are what, value by value."""
    found: dict[str, list[int]] = {"zero": [], "constant": [], "nan": [], "infinite": []}
    for row, row_values in zip(rows, values.tolist(), strict=True):
        if any(math.isnan(value) for value in row_values):
            found["nan"].append(row)
        if any(math.isinf(value) for value in row_values):
            found["infinite"].append(row)
        if all(value == 0 for value in row_values):
            found["zero"].append(row)
        elif len(set(row_values)) == 1 and math.isfinite(row_values[0]):
            found["constant"].append(row)
    return found


few_values = st.sampled_from([0.0, -0.0, 1.0, 2.5, float("nan"), float("inf"), -float("inf")])


@settings(deadline=None)
@given(st.lists(st.lists(few_values, min_size=8, max_size=8), min_size=1, max_size=40), st.integers(1, 3))
def test_rows_are_told_apart_as_value_by_value(listed: list[list[float]], step: int) -> None:
    values = np.array(listed, np.float32)
    rows = np.arange(5, 5 + step * len(values), step)
    tally = tally_rows(values.view(np.uint8).reshape(len(values), -1), rows, get_codec("f32"))
    for what, expected in plain_tally(values, rows.tolist()).items():
        marked = getattr(tally, what)
        assert (marked.n_rows, marked.first) == (len(expected), expected[:8]), what
        assert marked.last == (expected[-1] if expected else None)
    assert tally.n_nan_values == int(np.isnan(values).sum())
    assert tally.n_neighbours == (len(values) - 1 if step == 1 else 0)
    halves = Tally()
    for part in (slice(0, len(values) // 2), slice(len(values) // 2, None)):
        if len(rows[part]):
            halves.add(tally_rows(values[part].view(np.uint8).reshape(-1, 32), rows[part], get_codec("f32")))
    assert halves.zero == tally.zero
    assert halves.nan == tally.nan
    assert halves.constant == tally.constant
    assert np.array_equal(halves.section_bytes["records"], tally.section_bytes["records"])


def test_runs_of_zeros_and_equal_neighbours() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(200, 32)).astype(np.float32)
    values[20:36] = values[50:65] = 0
    values[101] = values[100]
    values[150] = values[140]
    rows = np.arange(1000, 1200)
    tally = tally_rows(get_codec("bf16").encode(values), rows, get_codec("bf16"))
    assert (tally.zero.n_rows, tally.zero_runs.n_rows, tally.zero_runs.first[0]) == (31, BLOCK_ROWS, 1020)
    assert tally.equal_neighbours.first == [1101]
    group = RowGroup(1, 2, 0, 1000, 1200)
    (copies,), shared = find_copies([HashedRows(group=group, hashes=tally.hashes[0], rows=tally.hashed_rows[0])])
    assert (copies.n_rows, copies.n_apart, sorted(copies.first)) == (2, 1, [(1100, 1101), (1140, 1150)])
    assert shared == []


@given(st.integers(1, 70), st.integers(0, 2**32))
def test_records_that_differ_hash_apart(row_bytes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    records = rng.integers(0, 256, (20, row_bytes), np.uint8)
    changed = records.copy()
    changed[:, rng.integers(row_bytes)] ^= np.uint8(1 << rng.integers(8))
    assert np.array_equal(hash_records(records), hash_records(records.copy()))
    assert (hash_records(records) != hash_records(changed)).all()
    # Equal words in other places.
    double = np.concatenate((records, changed), axis=1)
    swapped = np.concatenate((changed, records), axis=1)
    assert (hash_records(double) != hash_records(swapped)).all()


@pytest.mark.parametrize("name", [name for name in CODEC_NAMES if name != FP8_SCALAR])
def test_sections_are_the_record_and_scales_scale(name: str) -> None:
    codec = get_codec(name)
    rng = np.random.default_rng(1)
    records = rng.integers(0, 256, (30, codec.row_bytes(64)), np.uint8)
    sections = sections_of(codec, records)
    assert sum(section.shape[1] for section in sections.values()) == records.shape[1]
    together = np.sort(np.concatenate(list(sections.values()), axis=1), axis=1)
    assert np.array_equal(together, np.sort(records, axis=1))
    scales = scales_of(codec, records)
    if name in ("f32", "f16", "bf16"):
        assert scales is None
        return
    assert scales is not None
    if codec.can_encode and name != "int4-g32":
        # Values of twice the size have scales of twice the size.
        values = rng.normal(size=(30, 64)).astype(np.float32)
        one, two = (scales_of(codec, codec.encode(values * factor)) for factor in (np.float32(1), np.float32(2)))
        assert one is not None
        assert two is not None
        assert np.array_equal(two, one * 2)


def test_scales_that_are_no_numbers() -> None:
    records = np.zeros((2, 33), np.uint8)
    records[:, 32] = (255, 0)
    (nan,), (smallest,) = scales_of(get_codec("fp8-e4m3-e8m0"), records)  # type: ignore[misc]
    assert np.isnan(nan)
    assert smallest == np.float32(2.0**-127)


@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=50))
def test_quantiles_of_norms(norms: list[float]) -> None:
    exact = np.array(norms, np.float32)
    bins = np.bincount(exact.view(np.uint32) >> np.uint32(16), minlength=1 << 15)
    found = norm_quantiles(bins, (0.0, 0.5, 1.0))
    assert found is not None
    ordered = np.sort(exact)
    for norm, rank in zip(found, (0, len(norms) // 2, len(norms) - 1), strict=True):
        assert 127 / 128 * ordered[rank] <= norm <= ordered[rank]


@pytest.mark.parametrize("shift", [0, 1, -3])
def test_a_moved_copy_is_told_by_its_shift(shift: int) -> None:
    groups = [RowGroup(1, 2, 0, 0, 1000), RowGroup(1, 2, 1, 1000, 2003)]
    rng = np.random.default_rng(2)
    contents = rng.integers(0, 2**63, 1100).astype(np.uint64)
    rows = np.arange(100, 200)
    hashed = [
        HashedRows(group=groups[0], rows=rows, hashes=contents[rows]),
        HashedRows(group=groups[1], rows=rows + 1000, hashes=contents[rows - shift]),
    ]
    _, (shared,) = find_copies(hashed)
    assert (shared.shift, shared.is_copy, shared.is_of_layers) == (shift, True, False)
    assert shared.n_shifted == shared.n_comparable == 100 - abs(shift)
    assert all(b - a == 1000 + shift for a, b in shared.first)


def test_chance_of_equal_rows() -> None:
    rng = np.random.default_rng(3)
    assert chance_of_equals(rng.integers(0, 4, (5000, 3)).astype(np.uint8)) == pytest.approx(4.0**-3, rel=0.05)
    assert chance_of_equals(rng.integers(0, 256, (5000, 64)).astype(np.uint8)) == 0.0


def test_the_limit_of_repetitions_is_where_they_show() -> None:
    """At the stated share, a sample holds both rows of a pair in 95 of 100 cases."""
    n_here, n_read = 20_000, 2_000
    head = HeadRows(group=RowGroup(1, 2, 0, 0, n_here), is_padding=False, ranges=((0, n_here),), rows=np.arange(n_read))
    limits = limits_of(head, Tally(n_rows=n_read, n_neighbours=1000))
    assert limits.rows == pytest.approx(0.0015)
    assert limits.neighbours == pytest.approx(0.003)
    assert limits.repeated == pytest.approx(6 * n_here / n_read**2)
    n_pairs = round(limits.repeated * n_here / 2)
    rng = np.random.default_rng(4)
    seen = 0
    for _ in range(400):
        twins = np.full(n_here, -1)
        places = rng.permutation(n_here)[: 2 * n_pairs]
        twins[places] = np.tile(np.arange(n_pairs), 2)
        found = twins[rng.choice(n_here, n_read, replace=False)]
        found = found[found >= 0]
        seen += len(found) > len(set(found.tolist()))
    assert 0.92 < seen / 400 < 0.98
    assert limits_of(head, Tally(n_rows=100, n_neighbours=1)).repeated is None
