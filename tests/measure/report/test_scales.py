"""Axes: marks lie within, are round, and do not touch; figures read as they should."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engram_tables.measure.report.figures import MISSING, number, percent, scaled, short, size, words
from engram_tables.measure.report.scales import Scale, domain, spaced, ticks

VALUES = st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=8)
ABOVE = st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=8)


@given(values=VALUES, from_zero=st.booleans())
def test_a_straight_axis_holds_its_values(values: list[float], from_zero: bool) -> None:
    _check(values, *domain(values, is_log=False, from_zero=from_zero), is_log=False)


@given(values=ABOVE)
def test_a_logarithmic_axis_holds_its_values(values: list[float]) -> None:
    _check(values, *domain(values, is_log=True), is_log=True)


def _check(values: list[float], low: float, high: float, *, is_log: bool) -> None:
    assert low < high
    assert low <= min(values)
    assert max(values) <= high
    marks = ticks(low, high, is_log=is_log)
    room = (high - low) * 1e-6
    assert 2 <= len(marks) <= 12
    assert marks == sorted(set(marks))
    assert low - room <= marks[0]
    assert marks[-1] <= high + room
    scale = Scale(low=low, high=high, start=10, stop=410, is_log=is_log)
    places = [scale.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(10 - 1e-6 <= place <= 410 + 1e-6 for place in places)
    kept = spaced([*marks, *values], scale, scaled)
    assert max([*marks, *values]) in kept
    edges = [(scale.at(value), len(scaled(value)) * 7.6 / 2) for value in kept]
    for (left, one), (right, other) in pairwise(edges):
        assert left + one <= right - other


def test_no_values_make_an_axis_too() -> None:
    assert domain([], is_log=False) == pytest.approx((0, 1.04))
    assert domain([0.0], is_log=True, from_zero=True)[0] > 0
    assert ticks(0, 1.04, is_log=False) == pytest.approx([0, 0.25, 0.5, 0.75, 1])
    assert ticks(0.9, 1200, is_log=True) == [1, 10, 100, 1000]


@pytest.mark.parametrize("value", [True, "1", [1], math.nan, math.inf, -math.inf, 1e31, 10**400])
def test_what_is_no_figure_is_refused(value: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        number(value)


def test_figures_read_as_people_write_them() -> None:
    assert [short(value) for value in (0, 5, 999.96, 0.00001, -0.5)] == ["0", "5", "1000", "1.00e-05", "-0.5"]
    assert [percent(value) for value in (0, 0.001, 0.5, 1.2, 30)] == ["0.0 %", "0.10 %", "50.0 %", "120.0 %", "3,000 %"]
    assert [size(value) for value in (0, 2**30, 10**9, 1536)] == ["0 B", "1 GiB", "1 GB", "1.54 kB"]
    assert words({"a": [1, None], "b": True}) == f"a 1, {MISSING}, b yes"
