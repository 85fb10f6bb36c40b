"""Searches among sorted rows, against plain Python."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engram_tables.corpus.counts.sorted_rows import first_above, first_not_below

IDS = st.integers(0, 3) | st.just(2**32 - 1)


@settings(deadline=None)
@given(st.integers(1, 4).flatmap(lambda order: st.tuples(*[st.lists(st.tuples(*[IDS] * order), max_size=20)] * 2)))
def test_rows_are_found_as_bisection_finds_them(drawn: tuple[list[tuple[int, ...]], list[tuple[int, ...]]]) -> None:
    rows, wanted = sorted(drawn[0]), drawn[1]
    order = len((rows or wanted or [(0,)])[0])
    columns = np.array(rows, dtype=np.uint32).reshape(-1, order).T
    ngrams = np.array(wanted, dtype=np.uint32).reshape(-1, order)
    assert first_not_below(columns, ngrams).tolist() == [bisect_left(rows, ngram) for ngram in wanted]
    assert first_above(columns, ngrams).tolist() == [bisect_right(rows, ngram) for ngram in wanted]
