"""Statistics of counts against plain Python, the power law against known laws, and the picture's bytes."""

from __future__ import annotations

import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engram_tables.corpus.counts import counts_plot, counts_query
from engram_tables.corpus.counts.counts_plot import binned_counts, check_plot, draw_svg, sampled_ranks, write_plot
from engram_tables.corpus.counts.counts_query import largest_counts, look_up_ids, top_ngrams
from engram_tables.corpus.counts.counts_stats import (
    COVERED_PERCENTS,
    CountsOfCounts,
    count_statistics,
    order_statistics,
    tally_counts,
    whole_ngrams,
)
from engram_tables.corpus.counts.ngram_counts import NO_NEXT, NgramCounts
from engram_tables.corpus.counts.power_law import MIN_TAIL_NGRAMS, Verdict, fit_power_law, hurwitz_zeta
from engram_tables.errors import BackendUnavailable, InvalidInput, SpecMismatch

Rows = dict[tuple[tuple[int, ...], int | None], int]
"""Counts by n-gram and next token: None where next tokens were not counted, `NO_NEXT` where a document ended."""


@dataclass
class MemoryCounts:
    """Counts of one order or more as `open_counts` gives them, a few rows a batch."""

    rows: dict[int, Rows]
    batch_rows: int = 3
    min_count: int = 1
    canonical_size: int = 100
    vocab_sha256: str = "0" * 64
    path: Path = Path("counts")

    @property
    def orders(self) -> tuple[int, ...]:
        return tuple(sorted(self.rows))

    @property
    def next(self) -> str | None:
        return "raw" if any(follower is not None for rows in self.rows.values() for _, follower in rows) else None

    @property
    def manifest(self) -> dict[str, Any]:
        return {"orders": {str(order): {"dropped_distinct": 0, "dropped_total": 0} for order in self.rows}}

    def n_distinct(self, order: int) -> int:
        if order not in self.rows:
            raise InvalidInput(f"counts: holds orders {self.orders}, expected {order}")
        return len(summed(self.rows[order]))

    def n_rows(self, order: int) -> int:
        return self.n_distinct(order) and len(self.rows[order])

    def n_total(self, order: int) -> int:
        return sum(self.rows[order].values())

    def lookup(self, ngrams: np.ndarray) -> np.ndarray:
        sums = summed(self.rows[ngrams.shape[1]])
        return np.array([sums.get(tuple(ngram), 0) for ngram in ngrams.tolist()], dtype=np.uint64)

    def following(self, ngram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mine = {f: n for (ids, f), n in self.rows[len(ngram)].items() if ids == tuple(ngram.tolist())}
        return np.array(list(mine), dtype=np.int64), np.array(list(mine.values()), dtype=np.uint64)

    def batches(self, order: int) -> Iterator[NgramCounts]:
        yield from batches(self.rows[order], order, self.batch_rows)

    def counts_of(self, order: int) -> Iterator[np.ndarray]:
        for batch in self.batches(order):
            yield batch.counts

    def check_vocabulary(self, map_sha256: str) -> None:
        if map_sha256 != self.vocab_sha256:
            raise SpecMismatch("counts: another vocabulary")


def in_file(ids: tuple[int, ...], follower: int | None) -> tuple[tuple[int, ...], float]:
    """Where a row stands: the end of a document comes after every next token."""
    return ids, math.inf if follower in (None, NO_NEXT) else follower


def batches(rows: Rows, order: int, batch_rows: int) -> Iterator[NgramCounts]:
    ordered = sorted(rows.items(), key=lambda item: in_file(*item[0]))
    for start in range(0, len(ordered), batch_rows):
        mine = ordered[start : start + batch_rows]
        followers = [follower for (_, follower), _ in mine]
        yield NgramCounts(
            order=order,
            columns=np.array([ids for (ids, _), _ in mine], dtype=np.uint32).T.copy(),
            counts=np.array([n for _, n in mine], dtype=np.uint64),
            next_tokens=None if None in followers else np.array(followers, dtype=np.int64),
        )


def summed(rows: Rows) -> Counter[tuple[int, ...]]:
    sums: Counter[tuple[int, ...]] = Counter()
    for (ids, _), n in rows.items():
        sums[ids] += n
    return sums


NGRAMS = st.tuples(st.integers(0, 3), st.integers(0, 3))
WITHOUT_NEXT = st.dictionaries(st.tuples(NGRAMS, st.none()), st.integers(1, 5), max_size=16)
WITH_NEXT = st.dictionaries(st.tuples(NGRAMS, st.integers(NO_NEXT, 3)), st.integers(1, 5), max_size=60)


@settings(max_examples=60, deadline=None)
@given(
    rows=WITHOUT_NEXT | WITH_NEXT,
    batch_rows=st.integers(1, 9),
    k=st.integers(0, 20),
    waiting_rows=st.sampled_from([1, 1 << 16]),
)
@example(rows={((0, 0), NO_NEXT): 1, ((0, 0), 0): 1, ((0, 0), 1): 1}, batch_rows=1, k=1, waiting_rows=1)
def test_the_most_frequent_are_those_of_a_sort(rows: Rows, batch_rows: int, k: int, waiting_rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counts_query, "_WAITING_ROWS", waiting_rows)
        check_most_frequent(rows, batch_rows, k)


def check_most_frequent(rows: Rows, batch_rows: int, k: int) -> None:
    sums = summed(rows)
    expected = sorted(sums.items(), key=lambda item: (-item[1], item[0]))[:k]
    merged = list(whole_ngrams(batches(rows, 2, batch_rows)))
    assert [tuple(ngram) for batch in merged for ngram in batch.ngrams.tolist()] == sorted(sums)
    best = largest_counts(2, merged, k)
    assert list(zip(map(tuple, best.columns.T.tolist()), best.counts.tolist(), strict=True)) == expected
    counts = MemoryCounts({2: rows}, batch_rows)
    ((order, found),) = top_ngrams(counts, k)  # type: ignore[arg-type]
    assert order == 2
    assert [(ngram.ids, ngram.count) for ngram in found] == expected
    assert all(ngram.forms is None and ngram.share == ngram.count / sum(sums.values()) for ngram in found)


@settings(max_examples=40, deadline=None)
@given(rows=WITH_NEXT, batch_rows=st.integers(1, 9), k=st.integers(0, 20))
def test_rows_with_their_next_token_rank_by_themselves(rows: Rows, batch_rows: int, k: int) -> None:
    expected = sorted(rows.items(), key=lambda item: (-item[1], in_file(*item[0])))[:k]
    best = largest_counts(2, batches(rows, 2, batch_rows), k)
    followers = [] if best.next_tokens is None else best.next_tokens.tolist()
    found = zip(map(tuple, best.columns.T.tolist()), followers, best.counts.tolist(), strict=True)
    assert list(found) == [(ids, follower, n) for (ids, follower), n in expected]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20) | st.sampled_from([65535, 65536, 65537, 2**40]), max_size=60), st.integers(1, 9))
def test_statistics_are_those_of_a_counter(each: list[int], batch: int) -> None:
    parts = [np.array(each[at : at + batch], dtype=np.uint64) for at in range(0, len(each), batch)]
    tally = tally_counts(parts)
    expected = Counter(each)
    assert list(zip(tally.counts.tolist(), tally.n_ngrams.tolist(), strict=True)) == sorted(expected.items())
    found = order_statistics(2, tally)
    assert (found.n_distinct, found.n_total, found.max_count) == (len(each), sum(each), max(each, default=0))
    assert found.n_singletons == each.count(1)
    if each:
        assert found.mean_count == sum(each) / len(each)
        assert found.unseen_mass == each.count(1) / sum(each)
        assert found.singleton_share == each.count(1) / len(each)
        ranks = list(range(1, len(each) + 1))
        assert tally.count_at(ranks).tolist() == sorted(each, reverse=True)
    else:
        assert (found.mean_count, found.unseen_mass, found.singleton_share) == (None, None, None)
    for coverage in found.coverage:
        assert coverage.n_ngrams == covering(each, coverage.percent)


def covering(each: Sequence[int], percent: int) -> int:
    held, n_ngrams = 0, 0
    for count in sorted(each, reverse=True):
        if 100 * held >= percent * sum(each):
            break
        held += count
        n_ngrams += 1
    return n_ngrams


def test_large_counts_are_tallied_without_keeping_them() -> None:
    parts = [np.full(40_000, 65_536 + part, dtype=np.uint64) for part in range(4)]
    tally = tally_counts([*parts, *parts])
    assert dict(zip(tally.counts.tolist(), tally.n_ngrams.tolist(), strict=True)) == {
        65_536 + part: 80_000 for part in range(4)
    }


def test_a_least_count_leaves_the_unseen_mass_undefined() -> None:
    tally = CountsOfCounts(counts=np.array([3, 9]), n_ngrams=np.array([2, 1]))
    found = order_statistics(2, tally, min_count=3, dropped_distinct=10, dropped_total=15)
    assert (found.n_singletons, found.singleton_share, found.unseen_mass) == (None, None, None)
    assert [coverage.n_ngrams for coverage in found.coverage] == [3, None, None]  # of 30 occurrences
    assert (found.mean_count, found.dropped_distinct, found.dropped_total) == (5, 10, 15)


def test_orders_are_streamed_and_watched() -> None:
    unigrams: Rows = {((at,), None): at + 1 for at in range(10)}
    counts = MemoryCounts({1: unigrams, 2: {((0, 1), None): 4}})
    seen: list[tuple[int, int]] = []
    found = list(count_statistics(counts, progress=lambda done, total: seen.append((done, total))))  # type: ignore[arg-type]
    assert [(order.order, order.n_total) for order in found] == [(1, 55), (2, 4)]
    assert seen == [(3, 11), (6, 11), (9, 11), (10, 11), (11, 11)]
    with pytest.raises(InvalidInput, match="expected 3"):
        list(count_statistics(counts, orders=[1, 3]))  # type: ignore[arg-type]


def test_ids_are_looked_up_whole_or_window_by_window() -> None:
    rows: dict[int, Rows] = {
        1: {((at,), follower): at + 1 for at in range(4) for follower in (NO_NEXT, 7)},
        2: {((0, 1), NO_NEXT): 2, ((0, 1), 5): 2, ((0, 1), 9): 3, ((1, 2), 4): 1},
    }
    counts: Any = MemoryCounts(rows)
    (whole,) = look_up_ids(counts, [[0, 1]], k_next=2)
    (ngram,) = whole.ngrams
    assert (ngram.ids, ngram.count, ngram.n_total, ngram.n_next) == ((0, 1), 7, 8, 3)
    assert ngram.next_tokens is not None
    assert [(token.token_id, token.text, token.count) for token in ngram.next_tokens] == [(9, None, 3), (5, None, 2)]
    (windows,) = look_up_ids(counts, [[0, 1, 2]], k_next=0)
    assert [(found.ids, found.count) for found in windows.ngrams] == [
        ((0,), 2), ((1,), 4), ((2,), 6), ((0, 1), 7), ((1, 2), 1)
    ]  # fmt: skip
    assert all(found.next_tokens is None for found in windows.ngrams)
    (pairs,) = look_up_ids(counts, [[1, 0, 1]], orders=[2])
    assert [(found.ids, found.count, found.share) for found in pairs.ngrams] == [((1, 0), 0, 0.0), ((0, 1), 7, 0.875)]
    for bad, message in (([[100]], "found 100"), ([[]], "found 0 tokens"), ([[-1]], "found -1")):
        with pytest.raises(InvalidInput, match=message):
            look_up_ids(counts, bad)
    with pytest.raises(InvalidInput, match="expected 3"):
        look_up_ids(counts, [[0, 1]], orders=[3])


ZETAS = [
    (2.0, 1.0, math.pi**2 / 6),
    (4.0, 1.0, math.pi**4 / 90),
    (1.5, 1.0, 2.6123753486854883),
    (3.0, 1.0, 1.2020569031595943),
    (1.001, 1.0, 1000.5772884760117),
    (20.0, 1.0, 1.0000009539620338),
    (2.0, 0.5, math.pi**2 / 2),
    (2.0, 2.0, math.pi**2 / 6 - 1),
    (2.0, 1000.0, 0.0010005001666666333),
]


@pytest.mark.parametrize(("s", "q", "expected"), ZETAS)
def test_zeta_has_its_known_values(s: float, q: float, expected: float) -> None:
    assert float(hurwitz_zeta(s, q)) == pytest.approx(expected, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.floats(1.01, 20), st.integers(1, 10**6))
def test_zeta_falls_by_its_first_term(s: float, q: int) -> None:
    ours, rest = hurwitz_zeta(s, [q, q + 1])
    assert float(ours) == pytest.approx(float(rest) + float(q) ** -s, rel=1e-11)


def sampled(alpha: float, xmin: int, n_ngrams: int, seed: int) -> tuple[list[int], list[int]]:
    """Counts of counts of a sample of the law, by inverting its cumulated shares with the plain sum."""
    generator = random.Random(seed)
    shares = np.cumsum(np.arange(xmin, 400_000, dtype=np.float64) ** -alpha)
    draws = np.array([generator.random() for _ in range(n_ngrams)]) * shares[-1]
    values, weights = np.unique(xmin + np.searchsorted(shares, draws), return_counts=True)
    return values.tolist(), weights.tolist()


@pytest.mark.parametrize(("alpha", "xmin"), [(1.8, 1), (2.0, 5), (2.2, 1), (3.0, 2)])
def test_the_fit_recovers_the_law_it_was_drawn_from(alpha: float, xmin: int) -> None:
    law = fit_power_law(*sampled(alpha, xmin, 20_000, seed=3))
    assert law is not None
    assert law.alpha == pytest.approx(alpha, abs=0.05)
    assert law.alpha == pytest.approx(alpha, abs=4 * law.alpha_stderr)
    assert law.rank_exponent == 1 / (law.alpha - 1)
    assert law.verdict is Verdict.CONSISTENT
    assert law.xmin <= 3 * xmin
    assert float(law.n_from(law.xmin)) == pytest.approx(law.n_tail)
    assert float(law.n_at(law.xmin)) == pytest.approx(float(law.n_from(law.xmin) - law.n_from(law.xmin + 1)))


def test_the_cut_off_is_found_where_the_law_begins() -> None:
    values, weights = sampled(2.3, 20, 20_000, seed=5)
    low = list(range(1, 20))
    law = fit_power_law([*low, *values], [200] * len(low) + weights)
    assert law is not None
    assert 15 <= law.xmin <= 40
    assert law.alpha == pytest.approx(2.3, abs=0.06)


def test_what_is_no_power_law_is_called_poor_or_not_fitted() -> None:
    generator = np.random.default_rng(7)
    geometric = np.unique(generator.geometric(0.02, size=50_000), return_counts=True)
    law = fit_power_law(*geometric)
    assert law is None or law.verdict is Verdict.POOR
    assert fit_power_law([], []) is None
    assert fit_power_law([1], [10**6]) is None
    assert fit_power_law([1, 2], [MIN_TAIL_NGRAMS - 2, 1]) is None
    few = fit_power_law([1, 2], [MIN_TAIL_NGRAMS - 1, 1])
    assert few is not None
    assert few.verdict is Verdict.POOR


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(1, 2**40), st.integers(1, 10**9), max_size=30))
def test_any_counts_of_counts_have_a_fit_or_none(tally: dict[int, int]) -> None:
    law = fit_power_law(sorted(tally), [tally[count] for count in sorted(tally)])
    if law is not None:
        assert 1 < law.alpha < 20
        assert 0 <= law.ks_distance <= 1
        assert law.n_tail == sum(n for count, n in tally.items() if count >= law.xmin) >= MIN_TAIL_NGRAMS
        assert math.isfinite(law.alpha_stderr)


def test_a_plot_has_the_same_bytes_twice_and_names_no_other_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    statistics = example_statistics()
    picture, page = tmp_path / "plot.svg", tmp_path / "plot.html"
    write_plot(picture, statistics, title="<counts> & more")
    svg = draw_svg(statistics, title="<counts> & more")
    assert picture.read_text(encoding="utf-8") == svg
    assert draw_svg([], title="nothing").startswith("<?xml")
    # A drawing takes long, and the page holds the same one.
    monkeypatch.setattr(counts_plot, "draw_svg", lambda *_, **__: svg)
    write_plot(page, statistics, title="<counts> & more")
    for path in (picture, page):
        content = path.read_text(encoding="utf-8")
        assert "&lt;counts&gt; &amp; more" in content
        assert "order 1: 1,000,000 n-grams" in content
        assert "<dc:date>" not in content
        names = re.findall(r"https?:[^\s\"']*", content)
        assert set(names) <= {"http://www.w3.org/1999/xlink", "http://www.w3.org/2000/svg"}
        # A million n-grams and one take about as many points.
        assert len(content) < 80_000
    assert "prefers-color-scheme: dark" in page.read_text(encoding="utf-8")
    with pytest.raises(InvalidInput, match="--force"):
        write_plot(picture, statistics, title="")
    write_plot(picture, statistics, title="", force=True)


def example_statistics() -> list[Any]:
    values = np.arange(1, 1000)
    zipf = CountsOfCounts(counts=values, n_ngrams=np.ceil(600_000 * values**-2.1).astype(np.int64))
    missing = 10**6 - zipf.n_distinct
    zipf.n_ngrams[0] += missing
    empty = CountsOfCounts(counts=np.empty(0, dtype=np.int64), n_ngrams=np.empty(0, dtype=np.int64))
    one = CountsOfCounts(counts=np.array([7]), n_ngrams=np.array([1]))
    return [order_statistics(order, tally) for order, tally in ((1, zipf), (2, empty), (3, one))]


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.integers(1, 10**6) | st.integers(1, 30), st.integers(1, 10**6), min_size=1, max_size=40))
def test_bins_hold_every_ngram_once(tally: dict[int, int]) -> None:
    counts = CountsOfCounts(counts=np.array(sorted(tally)), n_ngrams=np.array([tally[c] for c in sorted(tally)]))
    middles, densities = binned_counts(counts)
    assert (np.diff(middles) > 0).all()
    assert {c: n for c, n in tally.items() if c < 10} == {
        round(c): round(n) for c, n in zip(middles.tolist(), densities.tolist(), strict=True) if c < 10
    }
    assert densities.max() <= max(tally.values())
    ranks = sampled_ranks(counts.n_distinct)
    assert (ranks[0], ranks[-1]) == (1, counts.n_distinct)
    assert counts.count_at(ranks)[0] == max(tally)


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(BackendUnavailable, match=r"engram-tables\[report\]"):
        check_plot(tmp_path / "plot.svg")
    with pytest.raises(InvalidInput, match=r"found the ending '\.png'"):
        check_plot(tmp_path / "plot.png")


def test_percents_ascend() -> None:
    assert list(COVERED_PERCENTS) == sorted(COVERED_PERCENTS)
