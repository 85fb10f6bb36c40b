"""Shares with intervals: they cover what they should, and documents are the draws."""

from __future__ import annotations

import numpy as np
import pytest

from engram_tables.measure.evaluate.tallies import Tallies, student_t


def test_a_ratio_is_that_of_the_sums() -> None:
    tallies = Tallies(3)
    tallies.add("hits", np.array([0, 0, 1, 2, 2]), np.array([True, False, True, False, False]))
    tallies.add("all", np.array([0, 0, 1, 2, 2]), np.ones(5))
    found = tallies.ratio("hits", "all")
    # By hand: residuals 0.2, 0.6, -0.8; variance 1.04 * 3/2 / 25.
    half = student_t(2) * (1.04 * 1.5 / 25) ** 0.5
    assert found == pytest.approx({"value": 0.4, "low": 0.4 - half, "high": 0.4 + half})
    assert tallies.ratio("hits", "nothing") == {"value": None, "low": None, "high": None}
    assert tallies.ratio("nothing", "all")["value"] == 0
    assert tallies.sums("hits").tolist() == [1, 1, 0]


def test_one_document_has_no_interval() -> None:
    tallies = Tallies(9)
    tallies.add("hits", np.array([4, 4]), np.array([True, False]))
    tallies.add("all", np.array([4, 4]), np.ones(2))
    assert tallies.ratio("hits", "all") == {"value": 0.5, "low": None, "high": None}


def test_intervals_cover_where_documents_differ() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        n_each = rng.integers(1, 60, 40)
        documents = np.repeat(np.arange(40), n_each)
        hits = rng.random(len(documents)) < np.repeat(rng.beta(2, 3, 40), n_each)
        tallies = Tallies(40)
        tallies.add("hits", documents, hits)
        tallies.add("all", documents, np.ones(len(documents)))
        found = tallies.ratio("hits", "all")
        assert found["low"] is not None
        assert found["high"] is not None
        covered += found["low"] <= 0.4 <= found["high"]
    # 95 of 100 are meant to; draws of single positions would give 60.
    assert 0.90 < covered / 300 < 0.99


def test_many_documents_are_taken_together() -> None:
    tallies = Tallies(10_000)
    documents = np.arange(10_000)
    clusters = tallies.clusters(documents)
    assert tallies.n_clusters == 4096
    assert (np.diff(clusters) >= 0).all()
    assert clusters[0] == 0
    assert clusters[-1] == 4095


@pytest.mark.parametrize(("degrees", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (9, 2.262), (60, 2.000)])
def test_student_t_is_that_of_the_tables(degrees: int, expected: float) -> None:
    assert student_t(degrees) == pytest.approx(expected, abs=0.005)
