"""Reading rows: kernels and arrays against the plain twin, back-off, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import planted_spec

from engram_tables.errors import InvalidInput
from engram_tables.storage.next_token import reference
from engram_tables.storage.next_token.reading import NextTokenReader
from engram_tables.storage.next_token.recipe import NextTokenRecipe, check_width, n_cells
from engram_tables.storage.next_token.vectors import places_of_head

SIZE = 61
READER = NextTokenReader(
    spec=planted_spec(), width=32, recipe=NextTokenRecipe(seed=5, next_size=SIZE, counts_sha256="0" * 64)
)
following = st.dictionaries(st.integers(0, SIZE - 1), st.integers(1, 1000), max_size=6)


def rows_of(*shared: dict[int, int]) -> list[list[float]]:
    """Rows of both heads that hold the first counts; the others share head 0's row with them."""
    rows = [[float(cell) for cell in reference.sketch_row(5, 1, 2, head, 2, shared[0], 32)] for head in range(2)]
    for other in shared[1:]:
        rows[0] = [a + b for a, b in zip(rows[0], reference.sketch_row(5, 1, 2, 0, 2, other, 32), strict=True)]
    return rows


@given(st.integers(0, 2**64 - 1), st.integers(0, 60), st.integers(1, 5), st.integers(0, 31), st.integers(1, 8))
def test_places_are_those_of_the_reference(seed: int, layer_id: int, order: int, head: int, cells: int) -> None:
    places = places_of_head(seed, layer_id, order, head, next_size=9, width=11, cells=cells)
    for token in (0, 1, 8):
        expected = reference.places_of(seed, layer_id, order, head, token, width=11, cells=cells)
        assert [(place >> 1, -1 if place & 1 else 1) for place in places[token].tolist()] == expected
        assert len({cell for cell, _ in expected}) == cells


@settings(max_examples=40)
@given(following, following, st.integers(1, 7), st.sampled_from([1.0, 0.37]))
def test_top_and_scores_are_those_of_the_reference(
    mine: dict[int, int], other: dict[int, int], k: int, factor: float
) -> None:
    rows = np.array([rows_of(mine, other)], np.float32) * np.float32(factor)
    top = READER.top(rows, order=2, layer=1, k=k)
    expected = reference.top_tokens(rows[0].astype(float).tolist(), 5, 1, 2, SIZE, k)
    n = len(expected)
    assert top.ids[0].tolist() == [token for token, *_ in expected] + [-1] * (k - n)
    found = np.stack([top.estimates[0], top.agreement[0], top.evidence[0]])[:, :n]
    assert np.allclose(found.T, np.array([each[1:] for each in expected]).reshape(n, 3), rtol=1e-4)
    scores = READER.scores(rows, order=2, layer=1)
    assert scores.shape == (1, SIZE)
    assert (scores > 0).sum() >= n
    assert scores[0, top.ids[0, :n]].tolist() == top.estimates[0, :n].tolist()


def test_likelier_tokens_come_first_and_unseen_n_grams_give_nothing() -> None:
    rows = np.array([rows_of({3: 50, 9: 20, 60: 1}), np.zeros((2, 32)), rows_of({})], np.float32)
    top = READER.top(rows, order=2, layer=1, k=4, threads=2)
    assert top.ids.tolist()[0][:2] == [3, 9]
    assert top.known.tolist() == [True, False, False]
    assert (top.ids[1:] == -1).all()
    assert READER.top(rows, order=2, layer=1, k=0).ids.shape == (3, 0)


def test_values_that_are_not_finite_spoil_one_check_each() -> None:
    rows = np.array([rows_of({3: 50})], np.float32)
    cell = reference.places_of(5, 1, 2, 0, 3, width=32, cells=4)[0][0]
    rows[0, 0, cell] = np.nan
    assert READER.top(rows, order=2, layer=1, k=1).ids.tolist() == [[3]]


def test_prediction_backs_off_to_shorter_n_grams() -> None:
    spec = planted_spec()
    heads = spec.layers[0].moduli[0]
    layers = tuple(
        type(layer)(
            layer_id=layer.layer_id,
            multipliers=(3, 5, 7),
            moduli=(heads, heads),
            offsets=(0, 50, 101, 151),
            n_rows=202,
        )
        for layer in spec.layers
    )
    both = type(spec)(
        name="both", provenance="made for tests", canonical_size=1000, history=spec.history, orders=(2, 3),
        layers=layers, row_width=32,
    )  # fmt: skip
    reader = NextTokenReader(spec=both, width=32, recipe=READER.recipe)

    def rows(order: int, counts: dict[int, int]) -> list[list[int]]:
        return [reference.sketch_row(5, 1, order, head, 2, counts, 32) for head in range(2)]

    found = reader.predict(
        {
            2: np.array([rows(2, {3: 9, 4: 8}), rows(2, {3: 9, 4: 8}), rows(2, {})]),
            3: np.array([rows(3, {7: 2, 4: 1}), rows(3, {}), rows(3, {})]),
        },
        layer=1,
        k=3,
    )
    assert found.ids.tolist() == [[7, 4, 3], [3, 4, -1], [-1, -1, -1]]
    assert found.orders.tolist() == [[3, 3, 2], [2, 2, 0], [0, 0, 0]]
    assert found.convincing.tolist() == [[True] * 3, [True, True, False], [False] * 3]


def test_wrong_rows_orders_and_layers_are_refused() -> None:
    rows = np.zeros((1, 2, 32), np.float32)
    with pytest.raises(InvalidInput, match=r"rows of order 2: found shape \(1, 2, 31\), expected \(n, 1 to 2, 32\)"):
        READER.top(rows[:, :, :31], order=2, layer=1)
    with pytest.raises(InvalidInput, match="order 3: expected one of 2"):
        READER.top(rows, order=3, layer=1)
    with pytest.raises(InvalidInput, match="layer"):
        READER.top(rows, order=2, layer=2)


def test_the_least_width_is_where_all_checks_together_tell_a_token_from_chance() -> None:
    check_width(planted_spec(row_width=4), 4, 300)
    with pytest.raises(InvalidInput, match="expected 4 to"):
        check_width(planted_spec(row_width=3), 3, 300)
    assert [n_cells(heads) for heads in (1, 2, 4, 7, 8, 16)] == [8, 4, 2, 2, 1, 1]
