"""Exact counting against its plain-Python twin."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables.corpus import counting, kernels
from engram_tables.corpus.counting import Workspace, check_orders, count_ngrams
from engram_tables.corpus.ngram_counts import NgramCounts
from engram_tables.corpus.reference import count_ngrams_reference
from engram_tables.errors import CapacityError, InvalidInput

SIZES = [1, 2, 3, 255, 256, 257, 65_535, 65_536, 99_092, 131_071, 131_072, 2**20 - 1, 2**20]


def stream(documents: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array(list(itertools.chain.from_iterable(documents)), dtype=np.uint32)
    return ids, np.cumsum([0, *map(len, documents)], dtype=np.int64)


def as_dict(counts: NgramCounts) -> dict[tuple[int, ...], int]:
    return {tuple(row): n for row, n in zip(counts.ngrams.tolist(), counts.counts.tolist(), strict=True)}


def assert_equals_reference(documents: list[list[int]], counts: dict[int, NgramCounts]) -> None:
    for order, found in counts.items():
        expected = count_ngrams_reference(documents, order)
        assert list(as_dict(found).items()) == list(expected.items())  # same n-grams, same sequence
        assert found.n_total == sum(expected.values())
        assert found.columns.dtype == np.uint32
        assert found.counts.dtype == np.uint64
        assert found.columns.flags.c_contiguous


@st.composite
def corpora(draw: st.DrawFn) -> tuple[list[list[int]], int, tuple[int, ...]]:
    canonical_size = draw(st.sampled_from(SIZES))
    largest = min(5, 63 // canonical_size.bit_length() + 1)
    orders = draw(st.sets(st.integers(1, largest), min_size=1))
    few = draw(st.lists(st.integers(0, canonical_size - 1), min_size=1, max_size=4))
    token = st.sampled_from([*few, 0, canonical_size - 1, canonical_size // 2])
    documents = draw(st.lists(st.lists(token, max_size=12), max_size=12))
    return documents, canonical_size, tuple(orders)


@given(corpora(), st.integers(1, 5), st.sampled_from([1, 2, 3, 7]), st.sampled_from([1, 2, 5, 65_536]))
@settings(deadline=None, max_examples=300)
def test_counts_equal_the_reference_for_any_threads_chunks_and_partitions(
    corpus: tuple[list[list[int]], int, tuple[int, ...]], threads: int, chunk: int, partition: int
) -> None:
    documents, canonical_size, orders = corpus
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "CHUNK_TOKENS", chunk)
        patch.setattr(counting, "PARTITION_KEYS", partition)
        counts = count_ngrams(*stream(documents), orders=orders, canonical_size=canonical_size, threads=threads)
    assert sorted(counts) == sorted(orders)
    assert_equals_reference(documents, counts)


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 2047, 2048, 2049, 4096, 65_537, 200_003])
@pytest.mark.parametrize("orders", [(1, 2, 3, 4), (2,), (3, 4)])
def test_sizes_around_block_and_partition_borders(n_tokens: int, orders: tuple[int, ...]) -> None:
    generator = np.random.default_rng(n_tokens)
    # Half the tokens are one id, so that its partition is longer than a stretch.
    ids = np.where(generator.random(n_tokens) < 0.7, 174, generator.integers(0, 99_092, n_tokens)).astype(np.uint32)
    starts = np.unique(np.concatenate([[0, n_tokens], generator.integers(0, n_tokens, 20)])).astype(np.int64)
    documents = [ids[a:b].tolist() for a, b in itertools.pairwise(starts)]
    counts = count_ngrams(ids, starts, orders=orders, canonical_size=99_092, threads=2)
    assert_equals_reference(documents, counts)


def test_one_id_everywhere() -> None:
    ids = np.full(300_000, 99_091, dtype=np.uint32)
    starts = np.array([0, 0, 1, 3, 300_000, 300_000], dtype=np.int64)
    counts = count_ngrams(ids, starts, orders=(2, 3, 4), canonical_size=99_092, threads=2)
    assert {order: as_dict(found) for order, found in counts.items()} == {
        order: {(99_091,) * order: 299_997 - order + 1 + (order == 2)} for order in (2, 3, 4)
    }


def test_a_workspace_is_reused_and_holds_no_result() -> None:
    workspace = Workspace()
    first = count_ngrams([1, 2, 1, 2], [0, 4], orders=(2,), canonical_size=5, workspace=workspace)[2]
    before = as_dict(first)
    count_ngrams([3, 3, 3], [0, 3], orders=(2,), canonical_size=5, workspace=workspace)
    assert as_dict(first) == before == {(1, 2): 2, (2, 1): 1}


@given(st.lists(st.integers(1, 6), max_size=40), st.integers(0, 45), st.sampled_from([1, 3, 64]))
@settings(deadline=None)
def test_top_is_largest_first_with_ties_in_order(counts: list[int], k: int, chunk: int) -> None:
    ngrams = np.arange(len(counts), dtype=np.uint32)[None, :]
    found = NgramCounts(order=1, columns=ngrams, counts=np.array(counts, dtype=np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "CHUNK_TOKENS", chunk)
        top = found.top(k).tolist()
    assert top == sorted(range(len(counts)), key=lambda at: (-counts[at], at))[:k]


def test_progress_ends_at_all_tokens() -> None:
    seen: list[tuple[int, int]] = []
    ids = np.arange(1000, dtype=np.uint32)
    count_ngrams(
        ids,
        [0, 1000],
        orders=(2,),
        canonical_size=1000,
        threads=2,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen[-1] == (1000, 1000)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_an_error_in_a_worker_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernels, "count_distinct", fail)
    with pytest.raises(KeyboardInterrupt):
        count_ngrams([1, 2, 3], [0, 3], orders=(2,), canonical_size=5, threads=2)


@pytest.mark.parametrize("orders", [(), (0,), (2, 2), (-1,)])
def test_orders_that_mean_nothing_are_refused(orders: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match="orders"):
        check_orders(orders, 100)


@pytest.mark.parametrize(("order", "canonical_size"), [(5, 99_092), (6, 10), (2, 2**20 + 1), (5, 65_535)])
def test_windows_beyond_a_key_are_refused_with_numbers(order: int, canonical_size: int) -> None:
    with pytest.raises(CapacityError, match=f"{canonical_size:,}"):
        check_orders((order,), canonical_size)


@pytest.mark.parametrize(("order", "canonical_size"), [(4, 2**20), (4, 99_092), (5, 32_767), (1, 2**20)])
def test_windows_that_just_fit_are_taken(order: int, canonical_size: int) -> None:
    assert check_orders((order,), canonical_size) == (order,)


def test_an_id_out_of_range_is_named_with_its_position() -> None:
    with pytest.raises(InvalidInput, match=r"position 2: found 5, expected below 5"):
        count_ngrams([1, 2, 5, 9], [0, 4], orders=(2,), canonical_size=5)


@pytest.mark.parametrize("starts", [[], [1, 4], [0, 3], [0, 3, 2, 4]])
def test_document_starts_that_do_not_cover_the_tokens_are_refused(starts: list[int]) -> None:
    with pytest.raises(InvalidInput):
        count_ngrams([1, 2, 3, 4], starts, orders=(2,), canonical_size=5)
