"""Row traffic against its plain-Python count: every family and rule, any memory, any threads."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from traffic_specs import Tokens, small_specs, traffic_reference

from engram_tables.corpus.traffic import distinct_keys, occupancy, row_hits
from engram_tables.corpus.traffic import row_traffic as traffic
from engram_tables.corpus.traffic.distinct_keys import KeyCounter
from engram_tables.corpus.traffic.row_hits import Histogram
from engram_tables.corpus.traffic.row_traffic import Traffic, measure_traffic, plan_traffic
from engram_tables.corpus.traffic.token_addresses import TokenAddresses
from engram_tables.errors import CapacityError, InvalidInput
from engram_tables.memory import aligned_bytes

SPECS = small_specs()
documents = st.lists(st.lists(st.integers(-1, 11), max_size=12), max_size=6)


def measured(spec_name: str, run: list[list[int]], **options: Any) -> tuple[Traffic, dict[tuple[int, int], Any]]:
    hits: dict[tuple[int, int], dict[int, int]] = {}

    def sink_for(layer_id: int, column: int) -> row_hits.HitsSink:
        rows = hits.setdefault((layer_id, column), {})
        return lambda first, values: rows.update(enumerate(values.tolist(), first))

    addresses = TokenAddresses(SPECS[spec_name], Tokens(run), None)
    return measure_traffic(addresses, sink_for=sink_for, **options), hits


def check(spec_name: str, run: list[list[int]], **options: Any) -> Traffic:
    found, hits = measured(spec_name, run, **options)
    spec = SPECS[spec_name]
    expected = traffic_reference(spec, run)
    n_live = sum(token >= 0 for document in run for token in document)
    assert (found.n_tokens, found.n_dead) == (sum(map(len, run)), sum(map(len, run)) - n_live)
    assert found.n_documents == len(run)
    assert [(head.layer_id, head.order, head.head) for head in found.heads] == [
        (layer_id, order, head) for layer_id in spec.layer_ids for order, head in spec.columns
    ]
    for head, ((layer_id, column), (row_hits_, n_grams, n_distinct)) in zip(found.heads, expected.items(), strict=True):
        rows = {row: n for row, n in hits[layer_id, column].items() if n}
        assert len(hits[layer_id, column]) == head.n_rows
        assert rows == row_hits_
        assert (head.n_lookups, head.n_ngrams, head.n_touched) == (n_live, n_distinct, len(rows))
        assert as_counter(head.by_ngrams) == Counter(n_grams.values()) + Counter({0: head.n_rows - len(rows)})
        assert as_counter(head.by_hits) == Counter(rows.values()) + Counter({0: head.n_rows - len(rows)})
        assert head.most_hits == max(rows.values(), default=0)
        assert head.shared_lookups == sum(n for row, n in row_hits_.items() if n_grams[row] > 1)
    return found


def as_counter(histogram: Histogram) -> Counter[int]:
    return Counter(dict(zip(histogram.values.tolist(), histogram.n_rows.tolist(), strict=True)))


@pytest.mark.parametrize("spec_name", SPECS)
@settings(deadline=None, max_examples=25)
@given(run=documents)
def test_every_family_counts_as_the_reference_does(spec_name: str, run: list[list[int]]) -> None:
    check(spec_name, run, threads=1)


def long_run(n_tokens: int, seed: int = 1) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, 200, n_tokens // 100)
    return [np.minimum(rng.zipf(1.3, n) - 2, 11).tolist() for n in lengths]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, partitions and blocks so small that a short run has many of each."""
    monkeypatch.setattr(distinct_keys, "CHUNK_TOKENS", 64)
    monkeypatch.setattr(distinct_keys, "PARTITION_KEYS", 16)
    monkeypatch.setattr(distinct_keys, "BLOCK_KEYS", 32)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("spec_name", SPECS)
def test_threads_memory_and_passes_change_nothing(spec_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = long_run(2000)
    first = check(spec_name, run, threads=1)
    assert first.n_passes == 1 or spec_name == "wide"
    planned = traffic.plan_traffic

    def starved(addresses: TokenAddresses, **options: Any) -> Any:
        plan = planned(addresses, **options)
        return replace(plan, in_memory=False, room_rows=1 << 16, n_entries=0, room_keys=300)

    class Starved(KeyCounter):
        spare = property(lambda self: aligned_bytes(8 << 18, 64).view(np.uint64))

    monkeypatch.setattr(traffic, "plan_traffic", starved)
    monkeypatch.setattr(traffic, "KeyCounter", Starved)
    second = check(spec_name, run, threads=3)
    assert second.n_passes > 1
    for one, two in zip(first.heads, second.heads, strict=True):
        assert one.touched_expected == two.touched_expected
        assert (one.gini, one.hottest, one.dispersion) == (two.gini, two.hottest, two.dispersion)


@pytest.mark.usefixtures("small_parts")
def test_one_key_more_often_than_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = traffic.plan_traffic
    monkeypatch.setattr(
        traffic, "plan_traffic", lambda *a, **o: replace(planned(*a, **o), room_keys=100, n_entries=1 << 18)
    )
    check("xor", [[4] * 3000, [5, 6] * 50], threads=2)


def test_no_token_at_all() -> None:
    found = check("xor", [[], []])
    assert {head.gini for head in found.heads} == {None}
    assert found.heads[0].sharing() == [(0, 11, 11.0)]


def test_too_little_memory_is_refused_with_what_is_needed() -> None:
    addresses = TokenAddresses(SPECS["xor"], Tokens([[1, 2]]), None)
    with pytest.raises(CapacityError, match=r"found too little for 1 threads, expected .* or more"):
        plan_traffic(addresses, memory_bytes=1 << 20, threads=1)


def test_a_token_that_nothing_knows_is_named() -> None:
    with pytest.raises(InvalidInput, match="token id at position 2: found 12, expected 0 to 11"):
        check("xor", [[1, 2], [12]])


@pytest.mark.parametrize(("n_ngrams", "n_rows"), [(0, 5), (1, 1), (3, 2), (7, 4), (6, 1)])
def test_occupancy_is_that_of_every_throw(n_ngrams: int, n_rows: int) -> None:
    throws = list(product(range(n_rows), repeat=n_ngrams))
    touched = [len(set(throw)) for throw in throws]
    found = occupancy.touched_rows(n_ngrams, n_rows)
    assert found.mean == pytest.approx(np.mean(touched))
    assert found.deviation == pytest.approx(np.std(touched), abs=1e-12)
    counted = [[Counter(throw)[row] for row in range(n_rows)] for throw in throws]
    expected = [np.mean([sum(n == k for n in rows) for rows in counted]) for k in range(n_ngrams + 1)]
    assert occupancy.rows_by_ngrams(n_ngrams, n_rows, n_ngrams) == pytest.approx(expected)
    if n_ngrams:
        shared = np.mean([Counter(throw)[throw[0]] > 1 for throw in throws])
        assert occupancy.shared_share(n_ngrams, n_rows) == pytest.approx(shared)
    if n_ngrams and n_rows > 1:
        squares = [sum(n * n for n in rows) for rows in counted]
        ratios = [occupancy.dispersion(square, n_ngrams, n_rows) for square in squares]
        assert np.mean([found.ratio for found in ratios if found]) == pytest.approx(1.0)
        scores = [found.z_score for found in ratios if found and found.z_score is not None]
        assert not scores or np.std(scores) == pytest.approx(1.0)


def test_a_sample_large_enough_leaves_no_row_to_chance() -> None:
    needed = occupancy.ngrams_needed(1000)
    assert occupancy.untouched_by_chance(needed, 1000) < occupancy.CHANCE_ROWS
    assert occupancy.untouched_by_chance(needed - 10, 1000) > occupancy.CHANCE_ROWS * 0.99


def test_a_row_that_nothing_can_reach_is_called_dead_only_by_a_large_sample() -> None:
    few = check("identity", [[1, 2, 3]])
    assert [head.shows_dead_rows for head in few.heads] == [False]
    assert few.undecided == list(few.heads)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_evenness_is_that_of_the_definition(hits: list[int]) -> None:
    values, rows = np.unique(hits, return_counts=True)
    histogram = Histogram(values, rows)
    if sum(hits) == 0:
        assert traffic.gini(histogram) is None
        assert traffic.hottest_share(histogram, 0.1) is None
        return
    differences = sum(abs(one - two) for one in hits for two in hits)
    assert traffic.gini(histogram) == pytest.approx(differences / (2 * len(hits) * sum(hits)))
    hottest = sorted(hits, reverse=True)[: math.ceil(len(hits) * 0.3)]
    assert traffic.hottest_share(histogram, 0.3) == pytest.approx(sum(hottest) / sum(hits))
