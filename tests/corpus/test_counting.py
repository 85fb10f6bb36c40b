"""Exact counting against its plain-Python twin."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from engram_tables.corpus.counts import counting, kernels, ngram_counts, wide_kernels
from engram_tables.corpus.counts.chunks import _without_dead
from engram_tables.corpus.counts.counting import Sequences, Workspace, check_orders, count_ngrams, pad_sequences
from engram_tables.corpus.counts.ngram_counts import NgramCounts
from engram_tables.corpus.counts.reference import count_followed_reference, count_ngrams_reference
from engram_tables.corpus.tokens.token_store import DEAD
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
    # Small vocabularies more often: a histogram of 2^20 for each thread takes most of an example's time.
    canonical_size = draw(st.sampled_from(SIZES[:9]) | st.sampled_from(SIZES))
    orders = draw(st.sets(st.integers(1, 5), min_size=1))
    few = draw(st.lists(st.integers(0, canonical_size - 1), min_size=1, max_size=4))
    token = st.sampled_from([*few, 0, canonical_size - 1, canonical_size // 2])
    documents = draw(st.lists(st.lists(token, max_size=12), max_size=12))
    return documents, canonical_size, tuple(orders)


@given(corpora(), st.integers(1, 5), st.sampled_from([1, 2, 3, 7]), st.sampled_from([1, 2, 5, 65_536]))
@settings(deadline=None, max_examples=50)
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


@given(
    corpora(),
    st.sampled_from([1, 2, 255, 256, 2**20 - 1, 2**20]),
    st.booleans(),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([1, 3, 65_536]),
)
@settings(deadline=None, max_examples=80)
def test_followed_and_padded_counts_equal_the_reference(
    corpus: tuple[list[list[int]], int, tuple[int, ...]],
    next_size: int,
    with_next: bool,
    is_padded: bool,
    threads: int,
    partition: int,
) -> None:
    documents, canonical_size, orders = corpus
    ids, starts = stream(documents)
    # The raw token of each id, the largest one among them.
    raw = ((ids.astype(np.uint64) * np.uint64(next_size - 1)) // np.uint64(max(canonical_size - 1, 1))).astype(
        np.uint32
    )
    pad_id = canonical_size - 1 if is_padded else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, "PARTITION_KEYS", partition)
        counts = count_ngrams(
            ids, starts, orders=orders, canonical_size=canonical_size, threads=threads, pad_id=pad_id,
            next_ids=raw if with_next else None, next_size=next_size if with_next else 0,
        )  # fmt: skip
    for order, found in counts.items():
        expected = followed_reference(documents, raw.tolist(), order, pad_id=pad_id, with_next=with_next)
        rows = found.ngrams.tolist()
        if with_next:
            assert found.next_tokens is not None
            rows = [[*row, token] for row, token in zip(rows, found.next_tokens.tolist(), strict=True)]
        assert list(zip(map(tuple, rows), found.counts.tolist(), strict=True)) == list(expected.items())


def followed_reference(
    documents: list[list[int]], raw: list[int], order: int, *, pad_id: int | None, with_next: bool
) -> dict[tuple[int, ...], int]:
    """Positions stand for raw tokens, so that the twin's map gives ids, and its followers are found by position."""
    places = itertools.count()
    at = [[next(places) for _ in document] for document in documents]
    expected = count_followed_reference(
        at, order, canonical_ids=list(itertools.chain.from_iterable(documents)), pad_id=pad_id, with_next=with_next
    )
    if not with_next:
        return expected
    totals: Counter[tuple[int, ...]] = Counter()
    for key, n in expected.items():
        totals[(*key[:-1], raw[key[-1]] if key[-1] >= 0 else -1)] += n
    return dict(sorted(totals.items(), key=lambda item: [token if token >= 0 else 2**32 for token in item[0]]))


@pytest.mark.parametrize("n_tokens", [1, 2, 5, 2047, 2048, 2049, 4096, 65_537, 200_003])
@pytest.mark.parametrize("orders", [(1, 2, 3, 4), (2,), (3, 4), (5,), (2, 5)])
def test_sizes_around_block_and_partition_borders(n_tokens: int, orders: tuple[int, ...]) -> None:
    generator = np.random.default_rng(n_tokens)
    # Most tokens are one id, so that its partition is longer than a stretch.
    ids = np.where(generator.random(n_tokens) < 0.7, 174, generator.integers(0, 99_092, n_tokens)).astype(np.uint32)
    starts = np.unique(np.concatenate([[0, n_tokens], generator.integers(0, n_tokens, 20)])).astype(np.int64)
    counts = count_ngrams(ids, starts, orders=orders, canonical_size=99_092, threads=2)
    for order, found in counts.items():
        distinct, occurrences = packed_counts(ids, starts, order)
        np.testing.assert_array_equal(pack(found.columns), distinct)
        np.testing.assert_array_equal(found.counts, occurrences.astype(np.uint64))


def packed_counts(ids: np.ndarray, starts: np.ndarray, order: int) -> tuple[np.ndarray, np.ndarray]:
    """The twin for long streams: every whole window as bytes that sort as it does, and NumPy's own counting."""
    windows = [ids[a + place : max(a, b - order + 1) + place] for a, b in itertools.pairwise(starts)
               for place in range(order)]  # fmt: skip
    columns = [np.concatenate(windows[place::order]) for place in range(order)]
    return np.unique(pack(columns), return_counts=True)


def pack(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Big-endian 32-bit ids side by side, as fixed-length byte strings without a trailing zero that would be lost."""
    raw = np.stack([*columns, np.ones(len(columns[0]), dtype=np.uint32)], axis=1).astype(">u4")
    return np.ascontiguousarray(raw).view(f"S{4 * raw.shape[1]}").ravel()


def test_one_id_everywhere() -> None:
    ids = np.full(300_000, 99_091, dtype=np.uint32)
    starts = np.array([0, 0, 1, 3, 300_000, 300_000], dtype=np.int64)
    counts = count_ngrams(ids, starts, orders=(2, 3, 4), canonical_size=99_092, threads=2)
    assert {order: as_dict(found) for order, found in counts.items()} == {
        order: {(99_091,) * order: 299_997 - order + 1 + (order == 2)} for order in (2, 3, 4)
    }


@pytest.mark.parametrize(("orders", "canonical_size"), [((2,), 5), ((2, 5), 2**20), ((1, 3), 99_092)])
def test_results_lie_in_a_workspace_until_the_next_call(orders: tuple[int, ...], canonical_size: int) -> None:
    workspace, options = Workspace(), {"orders": orders, "canonical_size": canonical_size}
    one, two = [[1, 2, 1, 2, 4, 0]], [[3, 3, 3, 1, 2, 3], [], [4]]
    for documents in (one, two, one, [[]], two):
        counts = count_ngrams(*stream(documents), workspace=workspace, **options)
        assert_equals_reference(documents, counts)
    first = count_ngrams(*stream(one), workspace=workspace, **options)[orders[-1]]
    second = count_ngrams(*stream(one), workspace=workspace, **options)[orders[-1]]
    assert np.shares_memory(first.columns, second.columns)
    assert np.shares_memory(first.counts, second.counts)
    free = count_ngrams(*stream(one), **options)
    count_ngrams(*stream(two), **options)
    count_ngrams(*stream(two), workspace=workspace, **options)
    assert_equals_reference(one, free)


@given(st.lists(st.integers(1, 6), max_size=40), st.integers(0, 45), st.sampled_from([1, 3, 64]))
@settings(deadline=None)
def test_top_is_largest_first_with_ties_in_order(counts: list[int], k: int, chunk: int) -> None:
    ngrams = np.arange(len(counts), dtype=np.uint32)[None, :]
    found = NgramCounts(order=1, columns=ngrams, counts=np.array(counts, dtype=np.uint64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ngram_counts, "_BLOCK_ROWS", chunk)
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

    for module, name, canonical_size in (
        (kernels, "add_histogram", 5),
        (kernels, "scatter_keys", 5),
        (kernels, "compact_windows", 5),
        (kernels, "unpack_rows", 5),
        (wide_kernels, "sort_keys", 2**20),
        (wide_kernels, "unpack_rows", 2**20),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, fail)
            with pytest.raises(KeyboardInterrupt):
                count_ngrams([1, 2, 3], [0, 3], orders=(5, 1), canonical_size=canonical_size, threads=2)
        assert as_dict(count_ngrams([1, 2], [0, 2], orders=(2,), canonical_size=canonical_size)[2]) == {(1, 2): 1}


@pytest.mark.parametrize("orders", [(), (0,), (2, 2), (-1,), (6,), (1, 2, 3, 4, 5, 6)])
def test_orders_that_mean_nothing_are_refused(orders: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInput, match=r"orders: found .*from 1 to 5"):
        check_orders(orders, 100)


@pytest.mark.parametrize("canonical_size", [0, 2**20 + 1, 2**32])
def test_vocabularies_beyond_a_key_are_refused_with_numbers(canonical_size: int) -> None:
    with pytest.raises(CapacityError, match=f"{canonical_size:,}"):
        check_orders((2,), canonical_size)
    with pytest.raises(CapacityError, match=f"{canonical_size:,}"):
        count_ngrams([0], [0, 1], orders=(2,), canonical_size=5, next_ids=[0], next_size=canonical_size)


@pytest.mark.parametrize("canonical_size", [1, 32_767, 32_768, 65_535, 99_092, 2**20])
def test_every_order_fits_every_vocabulary(canonical_size: int) -> None:
    assert check_orders((5, 4, 3, 2, 1), canonical_size) == (1, 2, 3, 4, 5)
    document = [0, canonical_size - 1] * 4
    counts = count_ngrams(*stream([document]), orders=range(1, 6), canonical_size=canonical_size)
    assert_equals_reference([document], counts)


@pytest.mark.parametrize(
    ("next_ids", "message"), [([1, 2], "shape"), ([1, 2, 3, 7], "found 7, expected below 7"), ([[1, 2, 3, 4]], "shape")]
)
def test_followers_that_fit_nothing_are_refused(next_ids: list[int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        count_ngrams([1, 2, 3, 4], [0, 4], orders=(2,), canonical_size=5, next_ids=next_ids, next_size=7)


def test_an_id_out_of_range_is_named_with_its_position() -> None:
    with pytest.raises(InvalidInput, match=r"position 2: found 5, expected below 5"):
        count_ngrams([1, 2, 5, 9], [0, 4], orders=(2,), canonical_size=5)


@pytest.mark.parametrize("starts", [[], [1, 4], [0, 3], [0, 3, 2, 4]])
def test_document_starts_that_do_not_cover_the_tokens_are_refused(starts: list[int]) -> None:
    with pytest.raises(InvalidInput):
        count_ngrams([1, 2, 3, 4], starts, orders=(2,), canonical_size=5)


def test_ids_of_another_shape_are_refused() -> None:
    with pytest.raises(InvalidInput, match="token stream"):
        count_ngrams(np.zeros((2, 2)), [0, 4], orders=(2,), canonical_size=5)


WORDS = st.sampled_from([0, 1, 2, 2**11 - 1, 2**11, 2**32, 2**63, 2**64 - 2, 2**64 - 1]) | st.integers(0, 2**64 - 1)


def wide(keys: Sequence[tuple[int, int]]) -> np.ndarray:
    return np.array(keys, dtype=np.uint64).reshape(-1, 2)


def wide_sorted(keys: np.ndarray) -> np.ndarray:
    mine = keys.copy()
    places = np.empty((wide_kernels.N_DIGITS, 1 << wide_kernels.DIGIT_BITS), dtype=np.int64)
    # The scratch is longer than the keys, as it is where a smaller partition follows a larger one.
    wide_kernels.sort_keys(mine, np.full((len(mine) + 3, 2), 7, dtype=np.uint64), places)
    return mine


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=60))
@settings(deadline=None, max_examples=100)
def test_wide_keys_sort_as_numbers_do(keys: list[tuple[int, int]]) -> None:
    assert list(map(tuple, wide_sorted(wide(keys)).tolist())) == sorted(keys)


@pytest.mark.parametrize("n_keys", [1, 2, 7919])
def test_wide_keys_of_any_number_sort_as_numpy_does(n_keys: int) -> None:
    generator = np.random.default_rng(n_keys)
    keys = generator.integers(0, 2**64, (n_keys, 2), dtype=np.uint64)
    np.testing.assert_array_equal(wide_sorted(keys), keys[np.lexsort((keys[:, 1], keys[:, 0]))])
    same = np.repeat(keys[:1], n_keys, axis=0)
    np.testing.assert_array_equal(wide_sorted(same), same)


@pytest.mark.parametrize("bit", range(128))
def test_wide_keys_that_differ_in_one_digit_sort(bit: int) -> None:
    """One pass or none for each digit, so that an odd number of passes ends in the scratch and is brought back."""
    base = 0x5555_5555_5555_5555_AAAA_AAAA_AAAA_AAAA
    values = [base ^ (1 << bit), base, base ^ (1 << bit), base]
    keys = wide([(value >> 64, value % 2**64) for value in values])
    assert [(high << 64) | low for high, low in wide_sorted(keys).tolist()] == sorted(values)


@given(st.lists(st.sampled_from([0, 1, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1), min_size=1, max_size=60))
@settings(deadline=None, max_examples=60)
def test_compacting_leaves_each_key_once_with_its_count(values: list[int]) -> None:
    expected = sorted(Counter(values).items())
    narrow, counts = np.array(sorted(values), dtype=np.uint64), np.full(len(values), 9, dtype=np.uint32)
    n_windows = kernels.compact_windows(narrow, counts)
    assert list(zip(narrow[:n_windows].tolist(), counts[:n_windows].tolist(), strict=True)) == expected
    for key in (lambda value: (value, 5), lambda value: (5, value), lambda value: (value, value)):
        keys = wide([key(value) for value in sorted(values)])
        n_windows = wide_kernels.compact_windows(keys, counts)
        found = list(zip(map(tuple, keys[:n_windows].tolist()), counts[:n_windows].tolist(), strict=True))
        assert found == [(key(value), n) for value, n in expected]


@st.composite
def sequences_with_starts(draw: st.DrawFn) -> tuple[list[list[int]], list[bool], int]:
    documents = draw(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6))
    is_start = draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    return documents, is_start, draw(st.integers(0, sum(map(len, documents))))


@given(sequences_with_starts(), st.integers(1, 5), st.booleans())
@settings(deadline=None, max_examples=100)
def test_padding_stands_before_what_begins_a_document(
    given_sequences: tuple[list[list[int]], list[bool], int], order: int, has_following: bool
) -> None:
    documents, is_start, n_windows = given_sequences
    ids, starts = stream(documents)
    sequences = Sequences(ids=ids, starts=starts, n_windows=n_windows, following=ids + 100 if has_following else None)
    padded = pad_sequences(sequences, order=order, pad_id=77, is_start=np.array(is_start, dtype=bool))
    pads = [
        [77] * (order - 1) if first and document else [] for document, first in zip(documents, is_start, strict=True)
    ]
    expected = [before + document for before, document in zip(pads, documents, strict=True)]
    assert padded.ids.tolist() == list(itertools.chain.from_iterable(expected))
    assert padded.starts.tolist() == stream(expected)[1].tolist()
    # Windows begin wherever one did, and at the padding of the sequences that begin before `n_windows`.
    begun = [before for before, start in zip(pads, starts, strict=False) if start < n_windows]
    assert padded.n_windows == n_windows + sum(map(len, begun))
    if has_following:
        assert padded.following is not None
        real = np.array(list(itertools.chain.from_iterable(expected))) != 77
        np.testing.assert_array_equal(padded.following[real], padded.ids[real] + 100)
    else:
        assert padded.following is None


@given(st.lists(st.lists(st.none() | st.integers(0, 9), max_size=6), max_size=6), st.integers(0, 36), st.data())
@settings(deadline=None, max_examples=150)
def test_dead_positions_end_a_sequence_and_belong_to_none(
    documents: list[list[int | None]], n_windows: int, data: st.DataObject
) -> None:
    flat = [DEAD if token is None else token for token in itertools.chain.from_iterable(documents)]
    assume(flat)  # a chunk holds a position
    n_windows = min(n_windows, len(flat))
    is_start = data.draw(st.lists(st.booleans(), min_size=len(documents), max_size=len(documents)))
    starts = np.cumsum([0, *map(len, documents)], dtype=np.int64)
    ids, found_starts, firsts, n_left = _without_dead(
        np.array(flat, dtype=np.uint32), starts, np.array(is_start, dtype=bool), n_windows
    )
    found = [ids[a:b].tolist() for a, b in itertools.pairwise(found_starts.tolist())]
    expected = []
    for document, first in zip(documents, is_start, strict=True):
        alive: list[int] = []
        for place, token in enumerate(document):
            if token is None:
                expected.append((alive, first))
                alive, first = [], False
            else:
                first = first and place == len(alive)
                alive.append(token)
        expected.append((alive, first))
    assert [one for one in found if one] == [alive for alive, _ in expected if alive]
    assert [first for one, first in zip(found, firsts.tolist(), strict=True) if one] == [
        first for alive, first in expected if alive
    ]
    assert n_left == sum(token != DEAD for token in flat[:n_windows])
    assert found_starts[0] == 0
    assert found_starts[-1] == len(ids)
